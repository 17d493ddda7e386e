"""HostMaintenance: what starts it, what steers it, what it shows."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StrictBool, StrictInt

from contracts.base import Contract, Name, Reason, VmName
from contracts.evacuation import EvacuationPlan
from contracts.leases import LeaseRef
from contracts.states import Phase, ResourceState
from contracts.vms import MigrationState, VmMigration


class OnBlocker(StrEnum):
    """What to do with VMs that can't be live-migrated."""

    REFUSE = "refuse"
    SHUTDOWN = "shutdown"
    KEEP = "keep"


class VmAction(StrEnum):
    """An operator's answer about a VM that could not be moved."""

    RETRY = "retry"
    SHUTDOWN = "shutdown"
    KEEP = "keep"


class VmStatus(Contract):
    """One VM of an evacuation. Percent and rate are in the inventory's `vm_migration`."""

    vm: VmName
    uuid: str
    state: MigrationState
    destination: Name | None = None
    attempt: int = 0
    error: str | None = None
    seconds: float | None = None


class CarriedMaintenance(Contract):
    """What a HostMaintenance hands to itself when it continues as new."""

    lease: LeaseRef
    cluster: Name
    zone: Name
    restore_state: ResourceState
    since: datetime
    vms: tuple[VmStatus, ...]
    plan: EvacuationPlan | None


class HostMaintenanceInput(Contract):
    """Take `host` out of service.

    Attributes:
        reason: why, for whoever finds the host out of service.
        dry_run: only plan; nothing changes.
        on_blocker: what to do with VMs that can't be live-migrated.
        max_parallel: live migrations at a time from this host; None: the worker's setting.
        continued: set by Hostler alone, when the workflow continues as new.
    """

    host: Name
    reason: Reason = ""
    dry_run: StrictBool = False
    on_blocker: OnBlocker = OnBlocker.REFUSE
    max_parallel: Annotated[StrictInt, Field(ge=1, le=64)] | None = None
    continued: CarriedMaintenance | None = None


class MaintenanceOutcome(StrEnum):
    """How a HostMaintenance ended."""

    PLANNED = "planned"
    LEFT = "left"


class HostMaintenanceResult(Contract):
    """What a completed HostMaintenance answers."""

    host: Name
    outcome: MaintenanceOutcome
    resource_state: ResourceState
    plan: EvacuationPlan | None
    vms: tuple[VmStatus, ...] = ()


class LeaveInput(Contract):
    """End the maintenance; the update completes when the host is back in service."""


class LeaveResult(Contract):
    """The host's state after leaving."""

    host: Name
    resource_state: ResourceState


class ResolveVmInput(Contract):
    """Answer the question about a VM that could not be moved."""

    vm: VmName
    action: VmAction


class MaintenanceStatus(Contract):
    """What the `status` query answers.

    Attributes:
        message: one sentence: what happens now, or what is wrong.
        questions: names of the VMs that wait for `resolve_vm`.
        leave_problem: why the last attempt to leave has failed; None once it is tried again.
        commands: what an operator can run next, ready to paste.
    """

    host: Name
    phase: Phase
    reason: str
    message: str
    since: datetime
    plan: EvacuationPlan | None
    vms: tuple[VmStatus, ...]
    questions: tuple[VmName, ...] = ()
    leave_problem: str | None = None
    commands: tuple[str, ...] = ()


class MaintenanceView(MaintenanceStatus):
    """What the API shows of an open maintenance: its status, its run, its migrations' progress."""

    workflow_id: str
    run_id: str
    migrations: tuple[VmMigration, ...] = ()
