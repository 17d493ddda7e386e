"""The power of hosts: what their BMCs last said, and how it is switched."""

from fastapi import APIRouter, Response, status

from api.authentication import VIEWER, Operator, actor
from api.dependencies import NameInPath, TheInventory, TheOperations
from api.operations import as_operation, link
from api.requests import PowerRequest
from contracts.errors import Conflict
from contracts.oobm import HostPower
from contracts.operations import Operation, OperationKind, workflow_id
from contracts.power import PowerState
from contracts.power_actions import Action, PowerActionInput
from contracts.states import MAINTENANCE_STATES
from workflows.power_plan import maintenance_warning

router = APIRouter(prefix="/v1/hosts/{name}/power", tags=["hosts"], dependencies=[VIEWER])

_KIND = OperationKind.POWER


@router.get("")
async def get_power(name: NameInPath, inventory: TheInventory) -> HostPower:
    """What the host's BMC last said, and when; nothing is asked now."""
    await inventory.hosts.get(name)
    return (await inventory.oobm.get(name)).power


@router.post("", status_code=status.HTTP_202_ACCEPTED)
async def switch_power(
    name: NameInPath,
    request: PowerRequest,
    caller: Operator,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
) -> Operation:
    """Start a PowerAction: `on`, `off`, `reset`, `cycle`, `soft` or `status` (only asks). Refused
    while VMs run there, or nobody knows whether any do, unless `force` is given with a reason. It
    is done when the BMC, or another boot of the host, shows it."""
    host = await inventory.hosts.get(name)
    power = (await inventory.oobm.get(name)).power
    if power.state is PowerState.DISABLED:
        raise Conflict(
            f"Out-of-band management of {name} is disabled: {', '.join(power.disabled_by)}.",
            remedy=f"Enable it, for example with `hostler oobm enable {name}`.",
        )
    asks = request.action is Action.STATUS
    # Whoever only asks is in nobody's way, and nobody is in theirs.
    subject = f"{name}/status" if asks else name
    fields = request.model_dump()
    await operations.start(
        _KIND, subject, PowerActionInput(host=name, **fields), caller, _in_words(request)
    )
    if not asks:
        await inventory.events.record(
            "power.requested",
            f"host/{name}",
            _in_words(request),
            operation=workflow_id(_KIND, name),
            actor=actor(caller),
        )
    started = await operations.find(_KIND, subject)
    response.headers["Location"] = link(started)
    warnings: tuple[str, ...] = ()
    if host.resource_state in MAINTENANCE_STATES and not asks:
        warnings = (maintenance_warning(name, host.resource_state),)
    return as_operation(started).model_copy(update={"warnings": warnings})


def _in_words(request: PowerRequest) -> str:
    how = [
        word
        for word, asked in (
            ("by force", request.force),
            ("or off", request.fall_back_to_off),
        )
        if asked
    ]
    return f"{', '.join([request.action, *how])}: {request.reason or 'no reason given'}"
