"""Out-of-band management: how hosts' BMCs are reached, and where it is enabled."""

from dataclasses import replace
from importlib.metadata import entry_points
from typing import Annotated

from fastapi import APIRouter, Query, Response, status

from api.authentication import VIEWER, Admin, Operator, actor
from api.dependencies import NameInPath, TheBmcs, TheInventory, TheOperations
from api.operations import Operations, as_operation, link
from api.requests import (
    BmcPasswordRequest,
    BmcTestRequest,
    OobmChangeRequest,
    OobmRequest,
    OobmSwitchRequest,
    RoundsQuery,
)
from contracts.errors import HostlerError, InvalidInput, Unavailable
from contracts.oobm import BmcLook, Oobm, OobmOverview, OobmSwitch
from contracts.operations import Operation, OperationKind, workflow_id
from contracts.power import POWER_DRIVER_GROUP
from contracts.power_actions import BmcPasswordChangeInput, BmcTestInput, misses_password
from inventory import Inventory
from inventory.oobm import unconfigured

router = APIRouter(prefix="/v1", tags=["out-of-band management"], dependencies=[VIEWER])

_SECRET = "bmc_password"  # noqa: S105 - a kind
_TO_TEST = BmcTestRequest()
_RANDOM = BmcPasswordRequest()


@router.get("/oobm")
async def get_oobm_overview(
    query: Annotated[RoundsQuery, Query()], inventory: TheInventory
) -> OobmOverview:
    """How all BMCs that are enabled stand, and the latest rounds in which they were asked."""
    fleet = await inventory.power.fleet()
    return OobmOverview(counts=fleet.counts, rounds=await inventory.power.rounds(query.rounds))


@router.get("/hosts/{name}/oobm")
async def get_oobm(name: NameInPath, inventory: TheInventory) -> Oobm:
    """How the host's BMC is reached, and what it last said; never its password."""
    await inventory.hosts.get(name)
    return await inventory.oobm.get(name)


@router.put("/hosts/{name}/oobm")
async def put_oobm(
    name: NameInPath,
    request: OobmRequest,
    caller: Admin,
    inventory: TheInventory,
    operations: TheOperations,
    bmcs: TheBmcs,
) -> Oobm:
    """Say how the host's BMC is reached; what is left out gets its default. The password is stored
    encrypted. Nothing is tried: see the path `test`."""
    _require_driver(request.driver)
    host = await inventory.hosts.get(name)
    await operations.require_no_power_operation(name)
    password = request.password.get_secret_value()
    fields = request.model_dump(exclude={"password", "enabled"})
    await bmcs.check(replace(unconfigured(host.name, host.cluster), **fields), password)
    return await _configure(name, request, password, True, actor(caller), inventory)


@router.patch("/hosts/{name}/oobm")
async def change_oobm(
    name: NameInPath,
    request: OobmChangeRequest,
    caller: Admin,
    inventory: TheInventory,
    operations: TheOperations,
    bmcs: TheBmcs,
) -> Oobm:
    """Change what is given, and leave the rest as it is; `enabled` switches it on or off."""
    await inventory.hosts.get(name)
    if request.model_fields_set != {"enabled"}:
        await operations.require_no_power_operation(name)
    if request.driver is not None:
        _require_driver(request.driver)
    password = request.password.get_secret_value() if request.password is not None else None
    fields = request.model_dump(exclude={"password", "enabled"}, exclude_unset=True)
    if fields or password is not None:
        login = await inventory.oobm.login(name)
        await bmcs.check(replace(login, **fields), password)
    return await _configure(name, request, password, False, actor(caller), inventory)


@router.delete("/hosts/{name}/oobm", status_code=status.HTTP_204_NO_CONTENT)
async def delete_oobm(
    name: NameInPath, caller: Admin, inventory: TheInventory, operations: TheOperations
) -> None:
    """Delete the configuration with its password."""
    await operations.require_no_power_operation(name)
    await inventory.oobm.forget(name, actor=actor(caller))


@router.post("/hosts/{name}/oobm/test")
async def look_at_bmc(
    name: NameInPath,
    caller: Operator,
    inventory: TheInventory,
    operations: TheOperations,
    request: BmcTestRequest = _TO_TEST,
) -> BmcLook:
    """Have a worker log in to the BMC and look, by the host's configuration with what is given in
    its place. Nothing of it is kept. The stored password goes to the stored address alone: another
    one, or another driver, port, user or certificate, needs a password with it."""
    await inventory.hosts.get(name)
    if request.driver is not None:
        _require_driver(request.driver)
    fields = request.model_dump(exclude={"password"})
    secret = None
    if request.password is not None:
        secret = await inventory.secrets.store(
            _SECRET, request.password.get_secret_value(), actor=actor(caller)
        )
    else:
        refused = misses_password([name for name, value in fields.items() if value is not None])
        if refused is not None:
            raise refused
    try:
        return await operations.test_bmc(BmcTestInput(host=name, secret=secret, **fields), caller)
    finally:
        if secret is not None:
            await inventory.secrets.discard(secret)


@router.post("/hosts/{name}/oobm/password", status_code=status.HTTP_202_ACCEPTED)
async def change_bmc_password(
    name: NameInPath,
    caller: Admin,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
    request: BmcPasswordRequest = _RANDOM,
) -> Operation:
    """Start a BmcPasswordChange: the BMC gets another password, a random one if none is given. Both
    are kept until the new one is proven."""
    await inventory.oobm.get(name)
    secret = None
    if request.password is not None:
        secret = await inventory.secrets.store(
            _SECRET, request.password.get_secret_value(), actor=actor(caller)
        )
    await _start_change(name, secret, request.reason, caller, inventory, operations)
    started = await operations.find(OperationKind.BMC_PASSWORD, name)
    response.headers["Location"] = link(started)
    return as_operation(started)


@router.get("/clusters/{name}/oobm")
async def get_cluster_oobm(name: NameInPath, inventory: TheInventory) -> OobmSwitch:
    """Whether out-of-band management is enabled for a cluster."""
    return await inventory.oobm.cluster_switch(name)


@router.patch("/clusters/{name}/oobm")
async def change_cluster_oobm(
    name: NameInPath, request: OobmSwitchRequest, caller: Admin, inventory: TheInventory
) -> OobmSwitch:
    """Enable or disable it for a cluster: in force where host, cluster and zone agree."""
    return await inventory.oobm.set_cluster_switch(name, request.enabled, actor=actor(caller))


@router.get("/zones/{name}/oobm")
async def get_zone_oobm(name: NameInPath, inventory: TheInventory) -> OobmSwitch:
    """Whether out-of-band management is enabled for a zone."""
    return await inventory.oobm.zone_switch(name)


@router.patch("/zones/{name}/oobm")
async def change_zone_oobm(
    name: NameInPath, request: OobmSwitchRequest, caller: Admin, inventory: TheInventory
) -> OobmSwitch:
    """Enable or disable it for a zone: in force where host, cluster and zone agree."""
    return await inventory.oobm.set_zone_switch(name, request.enabled, actor=actor(caller))


async def _configure(
    name: str,
    request: OobmRequest | OobmChangeRequest,
    password: str | None,
    replace: bool,
    caller: str,
    inventory: Inventory,
) -> Oobm:
    secret = None
    if password is not None:
        secret = await inventory.secrets.store(_SECRET, password, actor=caller)
    try:
        return await inventory.oobm.configure(
            name,
            request.model_dump(exclude={"password"}, exclude_unset=True),
            secret_id=secret,
            replace=replace,
            actor=caller,
        )
    except Unavailable:
        # It may have been written.
        raise
    except HostlerError:
        if secret is not None:
            await inventory.secrets.discard(secret)
        raise


async def _start_change(
    name: str,
    secret: str | None,
    reason: str,
    caller: Admin,
    inventory: Inventory,
    operations: Operations,
) -> None:
    kind = OperationKind.BMC_PASSWORD
    try:
        await operations.start(
            kind,
            name,
            BmcPasswordChangeInput(host=name, secret=secret, reason=reason),
            caller,
            reason,
        )
    except Unavailable:
        # It may have started and need the secret; if not, the inventory drops it after a day.
        raise
    except HostlerError:
        if secret is not None:
            await inventory.secrets.discard(secret)
        raise
    await inventory.events.record(
        "oobm.password_requested",
        f"host/{name}",
        reason or "no reason given",
        operation=workflow_id(kind, name),
        actor=actor(caller),
    )


def _require_driver(name: str) -> None:
    """Raises InvalidInput unless there is such a driver where this API is installed: workers are
    installed from the same packages."""
    known = sorted({point.name for point in entry_points(group=POWER_DRIVER_GROUP)})
    if name not in known:
        message = f"there is no driver {name!r}; there are: {', '.join(known)}"
        raise InvalidInput(
            f"The input of Oobm is not valid: driver: {message}.",
            remedy="Choose one of these, or install the package that has it.",
            details={"fields": [{"field": "driver", "message": message}]},
        )
