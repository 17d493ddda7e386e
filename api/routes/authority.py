"""The certificate authority: its chain, its revocation list, an operator's own."""

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Query, Response, status
from temporalio.client import WorkflowExecutionDescription

from api.authentication import VIEWER, Admin, actor
from api.dependencies import NameInPath, TheInventory, TheOperations
from api.operations import Operations, as_operation, is_open, link
from api.requests import AuthorityRequest, CrlFormat, Page, PageQuery, RolloverRequest
from contracts.access import Principal
from contracts.base import Contract, Name
from contracts.certificate_upkeep import HostCrls
from contracts.certificates import (
    Authority,
    AuthoritySetupInput,
    crl_to_pem,
    is_qemu_authority,
    qemu_authority,
)
from contracts.errors import HostlerError, InvalidInput, NotFound, Unavailable
from contracts.operations import Operation, OperationKind, workflow_id
from contracts.rollover import (
    AuthorityRolloverInput,
    AuthorityRolloverView,
    LeaveOutInput,
    PauseInput,
    rollover_command,
    why_stopped,
)
from contracts.secrets import CA_KEY
from contracts.settings import CA_PROVIDER
from inventory import Inventory

router = APIRouter(prefix="/v1/ca", tags=["certificates"], dependencies=[VIEWER])
# Whoever checks a certificate has no token, and what is signed needs no secrecy.
public_router = APIRouter(prefix="/v1/ca", tags=["certificates"])

_KIND = OperationKind.CA_SETUP
_GENERATE = AuthorityRequest()
_ANOTHER = RolloverRequest()

OfCluster = Annotated[Name | None, Query(description="The CA of this cluster's QEMUs instead.")]


@router.get("")
async def get_authority(inventory: TheInventory, cluster: OfCluster = None) -> Authority:
    """What issues now, with its chain and the facts of its newest revocation list."""
    return await inventory.authorities.get(await _provider(inventory, cluster))


@public_router.get(
    "/chain",
    response_class=Response,
    responses={200: {"content": {"application/x-pem-file": {}}}},
)
async def get_chain(
    inventory: TheInventory, trusted: bool = False, cluster: OfCluster = None
) -> Response:
    """Its certificates in PEM: the issuing one first, the trust anchor last. `trusted`: those of
    all CAs of its provider that hosts are to trust now, which during a rollover are two. Needs no
    token."""
    provider = await _provider(inventory, cluster)
    if trusted:
        chains = [one.chain for one in await inventory.authorities.trusted(provider)]
        pems = dict.fromkeys(pem for chain in chains for pem in chain)
        return Response("".join(pems), media_type="application/x-pem-file")
    authority = await inventory.authorities.get(provider)
    return Response("".join(authority.chain), media_type="application/x-pem-file")


@public_router.get(
    "/crl",
    response_class=Response,
    responses={200: {"content": {"application/pkix-crl": {}, "application/x-pem-file": {}}}},
)
async def get_crl(
    inventory: TheInventory,
    format: CrlFormat = CrlFormat.DER,  # noqa: A002 - the query's name
    cluster: OfCluster = None,
) -> Response:
    """The newest revocation list of what issues now, in DER. In PEM: those of all whose
    certificates are not expired yet, one after the other, as libvirt and QEMU take them; with
    `cluster`, as hosts of that one have them. Needs no token."""
    provider = await _provider(inventory, cluster)
    if format is CrlFormat.DER:
        authority = await inventory.authorities.get(provider)
        return await get_crl_of(authority.provider, authority.generation, inventory)
    lists = [
        await inventory.authorities.crl(one.provider, one.generation)
        for one in await inventory.authorities.live()
        if one.crl is not None and (one.provider == provider or not is_qemu_authority(one.provider))
    ]
    if not lists:
        raise NotFound(
            "There is no revocation list yet.", remedy="`hostler ca create` makes the CA, and one."
        )
    return Response("".join(map(crl_to_pem, lists)), media_type="application/x-pem-file")


@router.get("/crl/hosts")
async def list_hosts_of_crl(
    query: Annotated[PageQuery, Query()], inventory: TheInventory
) -> Page[HostCrls]:
    """Which revocation lists each host goes by that has got certificates from Hostler, by name. One
    that is away gets them when it is back."""
    found = await inventory.certificate_upkeep.crls(
        await inventory.authorities.crl_numbers(), limit=query.limit + 1, after=query.after
    )
    items = found[: query.limit]
    return Page(items=items, next=items[-1].host if len(found) > len(items) else None)


@public_router.get(
    "/{provider}/{generation}/crl",
    response_class=Response,
    responses={200: {"content": {"application/pkix-crl": {}}}},
)
async def get_crl_of(provider: NameInPath, generation: int, inventory: TheInventory) -> Response:
    """The newest revocation list of one authority, in DER, as certificates that it has signed name
    it (`ca.framework.crl.url`). Needs no token."""
    der = await inventory.authorities.crl(provider, generation)
    return Response(der, media_type="application/pkix-crl")


@router.post("", status_code=status.HTTP_202_ACCEPTED)
async def set_up_authority(
    caller: Admin,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
    request: AuthorityRequest = _GENERATE,
) -> Operation:
    """Start an AuthoritySetup: the provider makes its CA, unless it has one; with `private_key`
    and `chain` it takes an operator's own. The key is stored encrypted, and the workflow gets its
    id alone."""
    provider = await _provider(inventory)
    secret = await _store(request, inventory, caller)
    setup = AuthoritySetupInput(key_secret=secret, chain=request.chain, requester=actor(caller))
    await _start(_KIND, provider, setup, "", secret, caller, inventory, operations)
    await inventory.events.record(
        "ca.setup_requested",
        f"ca/{provider}",
        "an operator's own" if secret is not None else "the provider's",
        operation=workflow_id(_KIND, provider),
        actor=actor(caller),
    )
    started = await operations.find(_KIND, provider)
    response.headers["Location"] = link(started)
    return as_operation(started)


@router.post("/rollover", status_code=status.HTTP_202_ACCEPTED)
async def start_rollover(
    caller: Admin,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
    request: RolloverRequest = _ANOTHER,
    cluster: OfCluster = None,
) -> Operation:
    """Start an AuthorityRollover: another CA, made or an operator's own, takes the place of the
    present one, while all hosts trust both. One that was begun before goes on. With `dry_run`, its
    result tells what there is to do."""
    if cluster is not None and request.chain is not None:
        raise InvalidInput(
            "chain: the CA of a cluster's QEMUs is always made by Hostler, and no operator's own.",
            remedy="Leave out private_key and chain, or cluster.",
        )
    provider = await _provider(inventory, cluster)
    await inventory.authorities.get(provider)
    for host in request.leave_out:
        await inventory.hosts.get(host)
    secret = await _store(request, inventory, caller)
    asked = AuthorityRolloverInput(
        provider=provider,
        leave_out=request.leave_out,
        reason=request.reason,
        key_secret=secret,
        chain=request.chain,
        dry_run=request.dry_run,
        requester=actor(caller),
    )
    kind = OperationKind.ROLLOVER
    await _start(kind, provider, asked, request.reason, secret, caller, inventory, operations)
    if not request.dry_run:
        await inventory.events.record(
            "ca.rollover_requested",
            f"ca/{provider}",
            request.reason or "no reason given",
            operation=workflow_id(kind, provider),
            actor=actor(caller),
        )
    started = await operations.find(kind, provider)
    response.headers["Location"] = link(started)
    return as_operation(started)


@router.get("/rollover")
async def get_rollover(
    inventory: TheInventory, operations: TheOperations, cluster: OfCluster = None
) -> AuthorityRolloverView:
    """How far the rollover is, by the inventory; and the operation that drives it, if one does."""
    provider, running = await _find_rollover(inventory, operations, cluster)
    progress = await inventory.rollovers.progress(provider)
    if running is None:
        return AuthorityRolloverView(progress=progress)
    stopped = why_stopped(provider, await _provider(inventory))
    return AuthorityRolloverView(
        progress=progress.model_copy(update={"stopped": stopped}),
        status=await operations.rollover_status(running),
        workflow_id=running.id,
        run_id=running.run_id,
    )


@router.post("/rollover/pause", status_code=status.HTTP_204_NO_CONTENT)
async def pause_rollover(
    caller: Admin, inventory: TheInventory, operations: TheOperations, cluster: OfCluster = None
) -> None:
    """Let no other host begin; those in work come to their end."""
    await _steer("pause", PauseInput(), "asked for", caller, inventory, operations, cluster)


@router.post("/rollover/resume", status_code=status.HTTP_204_NO_CONTENT)
async def resume_rollover(
    caller: Admin, inventory: TheInventory, operations: TheOperations, cluster: OfCluster = None
) -> None:
    """Go on."""
    await _steer("resume", PauseInput(), "asked for", caller, inventory, operations, cluster)


@router.post("/rollover/leave-out", status_code=status.HTTP_204_NO_CONTENT)
async def leave_host_out_of_rollover(
    request: LeaveOutInput,
    caller: Admin,
    inventory: TheInventory,
    operations: TheOperations,
    cluster: OfCluster = None,
) -> None:
    """Do not wait for a host. It gets its certificates if it is back before the rollover ends;
    afterwards by the automatic renewal, unless that is off, or by a provisioning. From the
    withdrawal of the old CA until then, others do not trust it, nor it others."""
    await inventory.hosts.get(request.host)
    said = f"{request.host}: {request.reason}"
    await _steer("leave_out", request, said, caller, inventory, operations, cluster)


async def _steer(
    update: str,
    argument: Contract,
    said: str,
    caller: Principal,
    inventory: Inventory,
    operations: Operations,
    cluster: str | None,
) -> None:
    provider, running = await _find_rollover(inventory, operations, cluster)
    if running is None:
        raise NotFound(
            f"No rollover of the CA of {provider} is open.",
            remedy=f"See `{rollover_command('status', cluster=cluster)}`.",
        )
    await operations.update(running, update, argument)
    await inventory.events.record(
        f"ca.rollover_{update}_requested",
        f"ca/{provider}",
        said,
        operation=running.id,
        actor=actor(caller),
    )


async def _find_rollover(
    inventory: Inventory, operations: Operations, cluster: str | None
) -> tuple[str, WorkflowExecutionDescription | None]:
    """The open one and its provider, which the settings may not name any more; without any, the
    provider that they name. With a cluster, that of its QEMUs' CA."""
    chosen = await _provider(inventory, cluster)
    others = await inventory.authorities.providers() if cluster is None else []
    for provider in dict.fromkeys((chosen, *others)):
        with suppress(NotFound):
            found = await operations.find(OperationKind.ROLLOVER, provider)
            if is_open(found):
                return provider, found
    return chosen, None


async def _store(request: AuthorityRequest, inventory: Inventory, caller: Principal) -> str | None:
    """The id of the private key that came in, if there is one."""
    if request.private_key is None:
        return None
    key = request.private_key.get_secret_value()
    return await inventory.secrets.store(CA_KEY, key, actor=actor(caller))


async def _start(
    kind: OperationKind,
    provider: str,
    asked: AuthoritySetupInput | AuthorityRolloverInput,
    reason: str,
    secret: str | None,
    caller: Principal,
    inventory: Inventory,
    operations: Operations,
) -> None:
    """What it was refused with leaves no key behind."""
    try:
        await operations.start(kind, provider, asked, caller, reason)
    except Unavailable:
        # It may have started and need the secret; if not, the inventory drops it after a day.
        raise
    except HostlerError:
        if secret is not None:
            await inventory.secrets.discard(secret)
        raise


async def _provider(inventory: Inventory, cluster: str | None = None) -> str:
    """The one that the settings choose; with a cluster, the CA of its QEMUs. Raises NotFound."""
    if cluster is not None:
        return qemu_authority(await inventory.certificates.unit_of_cluster(cluster))
    return (await inventory.settings.resolve())[CA_PROVIDER]
