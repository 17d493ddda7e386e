"""VmReturn: bring VMs back to the host that a maintenance has moved them from."""

from datetime import datetime

from contracts.base import Contract, Name, VmName
from contracts.maintenance import VmStatus
from contracts.states import Phase


class VmReturnInput(Contract):
    """Bring VMs back to `host`. `vms`: which; none: those that its last maintenance moved."""

    host: Name
    vms: tuple[VmName, ...] = ()


class VmReturnStatus(Contract):
    """What the `status` query answers."""

    host: Name
    phase: Phase
    message: str
    since: datetime
    vms: tuple[VmStatus, ...]


class VmReturnResult(Contract):
    """Where the VMs are. One that did not come back says why in its `error`."""

    host: Name
    vms: tuple[VmStatus, ...]
