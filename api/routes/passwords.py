"""Passwords of a cluster's hosts: staged, changed, looked at. None ever leaves by these paths."""

from functools import partial
from ipaddress import ip_address
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response, status
from temporalio.client import WorkflowExecutionDescription

from api.authentication import VIEWER, Admin, Operator, actor
from api.dependencies import NameInPath, TheInventory, TheOperations
from api.operations import Operations, as_operation, is_open, link
from api.requests import Items, PasswordRotationRequest, StagePasswordRequest
from contracts.access import Principal
from contracts.addition import UserName
from contracts.base import Contract
from contracts.errors import Conflict, HostlerError, NotFound, Refused, Unavailable
from contracts.operations import Operation, OperationKind, workflow_id
from contracts.passwords import (
    DEFAULT_ACCOUNT,
    HostPasswordReport,
    PasswordRotationInput,
    PasswordRotationView,
    PasswordState,
    PasswordVerificationResult,
    RetryInput,
    RevertInput,
    SkipHostInput,
    StagedVersion,
    check_password,
    owner_of,
)
from contracts.secrets import SecretState
from inventory import Inventory

_KIND = OperationKind.ROTATION
_SECRET = "password"  # noqa: S105 - a kind
_NO_CHOICES = PasswordRotationRequest()


async def _require_private_way(request: Request) -> None:
    """A password is not read off a network by others: TLS, or this machine itself (where what ends
    the TLS may run). Raises Refused."""
    client = request.client.host if request.client is not None else ""
    if request.url.scheme == "https":
        return
    try:
        if ip_address(client).is_loopback:
            return
    except ValueError:
        pass
    raise Refused(
        f"Passwords are taken over TLS or from this machine alone, not from {client} in clear.",
        remedy="Use the machine that the API runs on, or put a server in front that speaks TLS.",
    )


router = APIRouter(prefix="/v1/clusters/{name}", tags=["passwords"], dependencies=[VIEWER])
_PRIVATE_WAY = Depends(_require_private_way)


@router.get("/passwords")
async def list_passwords(
    name: NameInPath,
    inventory: TheInventory,
    account: Annotated[UserName, Query()] = DEFAULT_ACCOUNT,
) -> Items[HostPasswordReport]:
    """Which of the cluster's passwords each host has, as it was last proven or looked at."""
    holdings = await inventory.cluster_passwords.holdings(name, account=account)
    checks = await inventory.password_checks.of_hosts([one.host for one in holdings], account)
    reports = []
    for one in holdings:
        seen = checks.get(one.host) or HostPasswordReport(
            host=one.host, account=account, state=PasswordState.UNKNOWN
        )
        if one.stale and seen.state is PasswordState.AGREES and seen.reason == "":
            seen = seen.model_copy(update={"state": PasswordState.STALE})
        reports.append(seen.model_copy(update={"version": one.version}))
    return Items(items=reports)


@router.post("/passwords/staged", status_code=status.HTTP_201_CREATED, dependencies=[_PRIVATE_WAY])
async def stage_password(
    name: NameInPath,
    request: StagePasswordRequest,
    caller: Admin,
    inventory: TheInventory,
    operations: TheOperations,
) -> StagedVersion:
    """Store the password that the next change sets, in the place of one that is staged and that no
    host has. Nothing is told to any host."""
    password = request.password.get_secret_value()
    version = await _stage(name, password, request.account, caller, inventory, operations)
    return StagedVersion(cluster=name, account=request.account, version=version)


@router.post("/passwords/verification")
async def verify_passwords(
    name: NameInPath, caller: Operator, inventory: TheInventory, operations: TheOperations
) -> PasswordVerificationResult:
    """Have a worker look which password each host has now; nothing is changed."""
    await inventory.topology.get_cluster(name)
    return await operations.verify_passwords(name, caller)


@router.post(
    "/password-rotation", status_code=status.HTTP_202_ACCEPTED, dependencies=[_PRIVATE_WAY]
)
async def start_password_rotation(
    name: NameInPath,
    caller: Admin,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
    request: PasswordRotationRequest = _NO_CHOICES,
) -> Operation:
    """Start a PasswordRotation: every host gets another password, a random one if none is given or
    staged. All that works is kept until all hosts are proven."""
    await inventory.topology.get_cluster(name)
    await operations.require_no_rotation(name)
    secret = await _store(name, request, caller, inventory, operations)
    asked = PasswordRotationInput(
        cluster=name, secret=secret, **request.model_dump(exclude={"password"})
    )
    try:
        await operations.start(_KIND, name, asked, caller, request.reason)
    except Unavailable:
        # It may have started and need the secret. A staged one stays for the next change.
        raise
    except HostlerError:
        if secret is not None and request.host is not None:
            await inventory.secrets.discard(secret)
        raise
    await inventory.events.record(
        "password_rotation.requested",
        f"cluster/{name}",
        f"password of {request.account}: {request.reason or 'no reason given'}",
        operation=workflow_id(_KIND, name),
        actor=actor(caller),
    )
    started = await operations.find(_KIND, name)
    response.headers["Location"] = link(started)
    return as_operation(started)


@router.get("/password-rotation")
async def get_password_rotation(
    name: NameInPath, inventory: TheInventory, operations: TheOperations
) -> PasswordRotationView:
    """Where the cluster's open change of passwords stands, and which host has which."""
    running = await _open_rotation(name, inventory, operations)
    return PasswordRotationView(
        **dict(await operations.rotation_status(running)),
        workflow_id=running.id,
        run_id=running.run_id,
    )


@router.post("/password-rotation/retry", status_code=status.HTTP_204_NO_CONTENT)
async def retry_password_rotation(
    name: NameInPath, caller: Admin, inventory: TheInventory, operations: TheOperations
) -> None:
    """Try the hosts that have failed again."""
    await _steer(name, "retry", RetryInput(), caller, inventory, operations)


@router.post("/password-rotation/skip-host", status_code=status.HTTP_204_NO_CONTENT)
async def skip_host_in_password_rotation(
    name: NameInPath,
    request: SkipHostInput,
    caller: Admin,
    inventory: TheInventory,
    operations: TheOperations,
) -> None:
    """Go on without a host that has failed. It is brought up to date when it can be."""
    await _steer(name, "skip_host", request, caller, inventory, operations)


@router.post("/password-rotation/revert", status_code=status.HTTP_204_NO_CONTENT)
async def revert_password_rotation(
    name: NameInPath, caller: Admin, inventory: TheInventory, operations: TheOperations
) -> None:
    """Give all hosts back the password that they had."""
    await _steer(name, "revert", RevertInput(), caller, inventory, operations)


async def _store(
    name: str,
    request: PasswordRotationRequest,
    caller: Principal,
    inventory: Inventory,
    operations: Operations,
) -> str | None:
    """Before anything is started: whoever dies in between has it stored."""
    if request.password is None:
        return None
    password = request.password.get_secret_value()
    if request.host is not None:
        check_password(password)
        return await inventory.secrets.store(_SECRET, password, actor=actor(caller))
    await _stage(name, password, request.account, caller, inventory, operations)
    staged = await inventory.cluster_passwords.find(
        name, SecretState.STAGED, account=request.account
    )
    return staged[1] if staged is not None else None


async def _stage(
    name: str,
    password: str,
    account: str,
    caller: Principal,
    inventory: Inventory,
    operations: Operations,
) -> int:
    """Its number. One that an operation has left staged goes. Raises InvalidInput, Conflict."""
    check_password(password)
    stage = partial(
        inventory.cluster_passwords.stage, name, password, account=account, actor=actor(caller)
    )
    try:
        return await stage()
    except Conflict as conflict:
        holder = conflict.details.get("operation")
        if not isinstance(holder, str):
            raise
    await operations.require_ended(name, [owner_of(holder)])
    return await stage(takeover_from=holder)


async def _steer(
    name: str,
    update: str,
    argument: Contract,
    caller: Principal,
    inventory: Inventory,
    operations: Operations,
) -> None:
    running = await _open_rotation(name, inventory, operations)
    await operations.update(running, update, argument)
    reason = f": {argument.reason}" if isinstance(argument, SkipHostInput) else ""
    host = f" {argument.host}" if isinstance(argument, SkipHostInput) else ""
    await inventory.events.record(
        f"password_rotation.{update}_requested",
        f"cluster/{name}",
        f"{update}{host} asked for{reason}",
        operation=running.id,
        actor=actor(caller),
    )


async def _open_rotation(
    name: str, inventory: Inventory, operations: Operations
) -> WorkflowExecutionDescription:
    """Raises NotFound."""
    await inventory.topology.get_cluster(name)
    try:
        found = await operations.find(_KIND, name)
    except NotFound:
        found = None
    if found is None or not is_open(found):
        raise NotFound(
            f"No change of the passwords of {name} is open.",
            remedy=f"See `hostler operation show {_KIND} {name}` for how the last one ended.",
        )
    return found
