"""Passwords of a cluster's hosts: staged, changed, looked at. None ever leaves by these paths."""

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, TypeVar

from fastapi import APIRouter, Header, Query, Response, status
from temporalio.client import WorkflowExecutionDescription

from api.authentication import VIEWER, Admin, Operator, actor
from api.dependencies import PRIVATE_WAY, NameInPath, TheInventory, TheOperations
from api.operations import Operations, as_operation, is_open, link
from api.requests import Items, PasswordRotationRequest, StagePasswordRequest
from contracts.access import Principal
from contracts.addition import UserName
from contracts.base import Contract
from contracts.errors import Conflict, HostlerError, NotFound, Unavailable
from contracts.operations import AcceptedOperation, AcceptedState, Operation, OperationKind
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
from inventory.accepted_operations import Repeatable

T = TypeVar("T")
IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", min_length=1, max_length=255, pattern=r"^[!-~]+$"),
]

_KIND = OperationKind.ROTATION
_NO_CHOICES = PasswordRotationRequest()
_ITS_OWN = "its own: the cluster has none yet"


router = APIRouter(prefix="/v1/clusters/{name}", tags=["passwords"], dependencies=[VIEWER])


@router.get("/passwords")
async def list_passwords(
    name: NameInPath,
    inventory: TheInventory,
    account: Annotated[UserName, Query()] = DEFAULT_ACCOUNT,
) -> Items[HostPasswordReport]:
    """Which of the cluster's passwords each host has, as it was last proven or looked at."""
    holdings = await inventory.cluster_passwords.holdings(name, account=account)
    current = await inventory.cluster_passwords.find(name, SecretState.CURRENT, account=account)
    reason = _ITS_OWN if current is None else ""
    checks = await inventory.password_checks.of_hosts([one.host for one in holdings], account)
    reports = []
    for one in holdings:
        seen = checks.get(one.host) or HostPasswordReport(
            host=one.host, account=account, state=PasswordState.UNKNOWN
        )
        if one.stale and (one.host not in checks or _agreed(seen)):
            seen = seen.model_copy(update={"state": PasswordState.STALE, "reason": reason})
        reports.append(seen.model_copy(update={"version": one.version}))
    return Items(items=reports)


def _agreed(seen: HostPasswordReport) -> bool:
    """With what was current then; other reasons to agree still count."""
    return seen.state is PasswordState.AGREES and seen.reason == ""


@router.post("/passwords/staged", status_code=status.HTTP_201_CREATED, dependencies=[PRIVATE_WAY])
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


@router.post("/password-rotation", status_code=status.HTTP_202_ACCEPTED, dependencies=[PRIVATE_WAY])
async def start_password_rotation(
    name: NameInPath,
    caller: Admin,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
    request: PasswordRotationRequest = _NO_CHOICES,
    idempotency_key: IdempotencyKey = None,
) -> Operation:
    """Start a PasswordRotation: every host gets another password, a random one if none is given or
    staged. All that works is kept until all hosts are proven.

    The request and the password are stored in one transaction, before anything is started. With the
    header `Idempotency-Key`, the same request gets the same operation for a day, however often it
    is sent; another one with that key is refused."""
    await inventory.topology.get_cluster(name)
    what = _repeatable(name, request, idempotency_key)
    accepted = await inventory.accepted.repeated(caller, what) if what is not None else None
    if accepted is None:
        await operations.require_no_rotation(name)
        accepted = await _accept(name, request, caller, what, inventory, operations)
    run_id = await _begin(accepted, caller, inventory, operations)
    started = await operations.run(_KIND, name, run_id)
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


def _repeatable(name: str, request: PasswordRotationRequest, key: str | None) -> Repeatable | None:
    """Of a request with a key: that, and all that was asked, the password too."""
    if key is None:
        return None
    asked = request.model_dump(mode="json", exclude={"password"})
    password = request.password.get_secret_value() if request.password is not None else None
    body = json.dumps([str(_KIND), name, asked, password], sort_keys=True)
    return Repeatable(key=key, body=body)


async def _accept(
    name: str,
    request: PasswordRotationRequest,
    caller: Principal,
    what: Repeatable | None,
    inventory: Inventory,
    operations: Operations,
) -> AcceptedOperation:
    """Stored, and not started yet. One that an operation has left staged goes. Raises
    InvalidInput, Conflict."""
    password = request.password.get_secret_value() if request.password is not None else None
    if password is not None:
        check_password(password)
    accept = partial(
        inventory.accepted.accept_rotation,
        PasswordRotationInput(cluster=name, **request.model_dump(exclude={"password"})),
        password,
        caller=caller,
        actor=actor(caller),
        what=what,
    )
    return await _after_ended(name, accept, operations)


async def _begin(
    accepted: AcceptedOperation, caller: Principal, inventory: Inventory, operations: Operations
) -> str:
    """The run that was started for it, now or before."""
    if accepted.state is AcceptedState.EXPIRED:
        raise Conflict(
            f"That request has expired: {accepted.reason}. Nothing was changed.",
            remedy="Send it again with another Idempotency-Key.",
        )
    if accepted.run_id is not None:
        return accepted.run_id
    asked = PasswordRotationInput.model_validate(accepted.request)
    try:
        run_id = await operations.start(
            _KIND, asked.cluster, asked, caller, asked.reason, accepted=accepted.id
        )
    except Unavailable as error:
        raise Unavailable(
            f"{error.message} The request is stored, and is started as soon as that is possible.",
            remedy=f"See `hostler passwords status {asked.cluster}`, or send it again with the "
            "same Idempotency-Key.",
            details=error.details,
        ) from error
    except HostlerError:
        await inventory.accepted.withdraw(accepted.id)
        raise
    await inventory.accepted.begin(accepted.id, run_id)
    return run_id


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
    return await _after_ended(name, stage, operations)


async def _after_ended(name: str, stage: Callable[..., Awaitable[T]], operations: Operations) -> T:
    """What `stage` gives; once more, with `takeover_from`, if an operation that has ended has the
    staged password. Raises LeaseHeld if that is open."""
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
