"""The certificate authority: its chain, its revocation list, an operator's own."""

from typing import Annotated

from fastapi import APIRouter, Query, Response, status

from api.authentication import VIEWER, Admin, actor
from api.dependencies import NameInPath, TheInventory, TheOperations
from api.operations import as_operation, link
from api.requests import AuthorityRequest, CrlFormat, Page, PageQuery
from contracts.certificate_upkeep import HostCrls
from contracts.certificates import Authority, AuthoritySetupInput, crl_to_pem
from contracts.errors import HostlerError, NotFound, Unavailable
from contracts.operations import Operation, OperationKind, workflow_id
from contracts.secrets import CA_KEY
from contracts.settings import CA_PROVIDER
from inventory import Inventory

router = APIRouter(prefix="/v1/ca", tags=["certificates"], dependencies=[VIEWER])
# Whoever checks a certificate has no token, and what is signed needs no secrecy.
public_router = APIRouter(prefix="/v1/ca", tags=["certificates"])

_KIND = OperationKind.CA_SETUP
_GENERATE = AuthorityRequest()


@router.get("")
async def get_authority(inventory: TheInventory) -> Authority:
    """What issues now, with its chain and the facts of its newest revocation list."""
    return await inventory.authorities.get(await _provider(inventory))


@public_router.get(
    "/chain",
    response_class=Response,
    responses={200: {"content": {"application/x-pem-file": {}}}},
)
async def get_chain(inventory: TheInventory) -> Response:
    """Its certificates in PEM: the issuing one first, the trust anchor last. Needs no token."""
    authority = await inventory.authorities.get(await _provider(inventory))
    return Response("".join(authority.chain), media_type="application/x-pem-file")


@public_router.get(
    "/crl",
    response_class=Response,
    responses={200: {"content": {"application/pkix-crl": {}, "application/x-pem-file": {}}}},
)
async def get_crl(inventory: TheInventory, format: CrlFormat = CrlFormat.DER) -> Response:  # noqa: A002 - the query's name
    """The newest revocation list of what issues now, in DER. In PEM: those of all whose
    certificates are not expired yet, one after the other, as libvirt and QEMU take them. Needs no
    token."""
    if format is CrlFormat.DER:
        authority = await inventory.authorities.get(await _provider(inventory))
        return await get_crl_of(authority.provider, authority.generation, inventory)
    lists = [
        await inventory.authorities.crl(one.provider, one.generation)
        for one in await inventory.authorities.live()
        if one.crl is not None
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
    secret = None
    if request.private_key is not None:
        key = request.private_key.get_secret_value()
        secret = await inventory.secrets.store(CA_KEY, key, actor=actor(caller))
    setup = AuthoritySetupInput(key_secret=secret, chain=request.chain, requester=actor(caller))
    try:
        await operations.start(_KIND, provider, setup, caller, "")
    except Unavailable:
        # It may have started and need the secret; if not, the inventory drops it after a day.
        raise
    except HostlerError:
        if secret is not None:
            await inventory.secrets.discard(secret)
        raise
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


async def _provider(inventory: Inventory) -> str:
    return (await inventory.settings.resolve())[CA_PROVIDER]
