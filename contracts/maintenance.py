"""HostMaintenance: what starts it, what steers it, what it shows."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Protocol

from pydantic import Field, StrictBool, StrictInt, model_validator
from pydantic_core import PydanticCustomError

from contracts.base import Contract, Name, Reason, VmName
from contracts.evacuation import EvacuationPlan, HostEnvironment
from contracts.leases import LeaseRef
from contracts.power import check_fall_back
from contracts.states import Phase, ResourceState
from contracts.vms import MigrationState, VmMigration


class OnBlocker(StrEnum):
    """What to do with VMs that can't be live-migrated."""

    REFUSE = "refuse"
    """End before anything has changed."""
    COPY_STORAGE = "copy_storage"
    """Move those with local disks together with these; any other blocker refuses."""
    SHUTDOWN = "shutdown"
    """Shut them down when all others have left, and start them again when the host is back."""
    KEEP = "keep"
    """Leave them running where they are."""


class VmAction(StrEnum):
    """An operator's answer about a VM that could not be moved."""

    RETRY = "retry"
    WAIT = "wait"
    """Migrate without a time limit, however long the memory takes to settle."""
    PAUSE = "pause"
    """Pause the guest once its memory was copied, so that the migration ends."""
    COPY_STORAGE = "copy_storage"
    SHUTDOWN = "shutdown"
    KEEP = "keep"


class MigrationMode(StrEnum):
    """How a live migration is to come to its end."""

    PLAIN = "plain"
    AUTO_CONVERGE = "auto-converge"
    UNBOUNDED = "unbounded"
    PAUSED = "paused"


class VmStatus(Contract):
    """One VM of an evacuation. Percent and rate are in the inventory's `vm_migration`.

    Attributes:
        mode: how it was migrated last.
        actions: what `resolve_vm` takes for it now; empty unless it waits for an answer.
        start_again: it was shut down for this maintenance, and starts when the host is back.
    """

    vm: VmName
    uuid: str
    state: MigrationState
    destination: Name | None = None
    attempt: int = 0
    mode: MigrationMode = MigrationMode.PLAIN
    error: str | None = None
    seconds: float | None = None
    actions: tuple[VmAction, ...] = ()
    start_again: bool = False


class MaintenanceSettings(Contract):
    """The cluster's settings that a maintenance goes by; seconds. See `contracts/settings.py`."""

    queue_timeout: int
    unreachable_timeout: int
    retry_interval: int
    question_reminder: int
    arrivals_timeout: int
    leave_timeout: int
    shutdown_timeout: int
    auto_converge: bool


class CarriedPower(Contract):
    """What a maintenance has done to the host's power.

    Attributes:
        begun: it was to be switched off: it is switched on before it goes back.
        problem: why it is not off; "" if it is.
    """

    begun: bool
    problem: str = ""


class CarriedMaintenance(Contract):
    """What a HostMaintenance hands to itself when it continues as new."""

    lease: LeaseRef
    cluster: Name
    zone: Name
    restore_state: ResourceState
    since: datetime
    vms: tuple[VmStatus, ...]
    plan: EvacuationPlan | None
    settings: MaintenanceSettings
    environment: HostEnvironment | None
    down: bool = False
    power: CarriedPower | None = None


class PowerOffChoices(Protocol):
    """The fields of a request that depend on each other."""

    @property
    def power_off_when_ready(self) -> bool: ...
    @property
    def fall_back_to_off(self) -> bool: ...
    @property
    def on_blocker(self) -> OnBlocker: ...
    @property
    def host_is_down(self) -> bool: ...


def check_power_off(asked: PowerOffChoices) -> None:
    """Raises PydanticCustomError."""
    check_fall_back(asked, "power_off_when_ready", chosen=asked.power_off_when_ready)
    if asked.power_off_when_ready and asked.on_blocker is OnBlocker.KEEP:
        raise PydanticCustomError(
            "power_off_kept_vms",
            "power_off_when_ready: a host with VMs kept on it is not switched off: not with "
            "on_blocker keep",
        )
    if asked.power_off_when_ready and asked.host_is_down:
        raise PydanticCustomError(
            "power_off_down",
            "power_off_when_ready: a host that is off already is not switched off: not with "
            "host_is_down",
        )


class HostMaintenanceInput(Contract):
    """Take `host` out of service.

    Attributes:
        reason: why, for whoever finds the host out of service.
        dry_run: only plan; nothing changes.
        on_blocker: what to do with VMs that can't be live-migrated.
        max_parallel: live migrations at a time from this host; None: the cluster's setting.
        return_vms: bring back what was moved, when the host is back in service.
        queue: wait while other hosts of the cluster are out; False: be refused instead.
        host_is_down: the operator confirms that the host is off: it is taken out of service as it
            is, and what ran there is not started elsewhere.
        power_off_when_ready: shut it down and switch it off, by its BMC, when no VM is active on
            it any more; and switch it on again before it goes back into service.
        fall_back_to_off: its power is taken away if it does not shut down in time.
        continued: set by Hostler alone, when the workflow continues as new.
    """

    host: Name
    reason: Reason = ""
    dry_run: StrictBool = False
    on_blocker: OnBlocker = OnBlocker.REFUSE
    max_parallel: Annotated[StrictInt, Field(ge=1, le=64)] | None = None
    return_vms: StrictBool = False
    queue: StrictBool = True
    host_is_down: StrictBool = False
    power_off_when_ready: StrictBool = False
    fall_back_to_off: StrictBool = False
    continued: CarriedMaintenance | None = None

    @model_validator(mode="after")
    def _check(self) -> "HostMaintenanceInput":
        check_power_off(self)
        return self


class MaintenanceOutcome(StrEnum):
    """How a HostMaintenance ended."""

    PLANNED = "planned"
    LEFT = "left"
    HANDED_OVER = "handed over"
    """Another operation goes on with the host as it is."""


class HostMaintenanceResult(Contract):
    """What a completed HostMaintenance answers."""

    host: Name
    outcome: MaintenanceOutcome
    resource_state: ResourceState
    plan: EvacuationPlan | None
    vms: tuple[VmStatus, ...] = ()
    handed_over_to: str | None = None


class LeaveInput(Contract):
    """End the maintenance; the update completes when the host is back in service.

    Attributes:
        return_vms: bring back what was moved; None: as the maintenance was asked to.
        force: back into service although networks or storage that it had before are missing.
    """

    return_vms: StrictBool | None = None
    force: StrictBool = False


class LeaveResult(Contract):
    """The host's state after leaving."""

    host: Name
    resource_state: ResourceState


class HandOverInput(Contract):
    """End the maintenance with the host as it is, for another operation to go on from there.

    Attributes:
        successor: that operation's workflow id.
    """

    successor: str


class HandOverResult(Contract):
    """What the successor takes over: the lease stays in its place."""

    host: Name
    lease: LeaseRef


class ResolveVmInput(Contract):
    """Answer the question about a VM that could not be moved."""

    vm: VmName
    action: VmAction


class MaintenanceStatus(Contract):
    """What the `status` query answers.

    Attributes:
        message: one sentence: what happens now, or what is wrong.
        questions: names of the VMs that wait for `resolve_vm`.
        troubles: what keeps the host in an error state, one sentence each.
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
    troubles: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


class MaintenanceView(MaintenanceStatus):
    """What the API shows of an open maintenance: its status, its run, its migrations' progress."""

    workflow_id: str
    run_id: str
    migrations: tuple[VmMigration, ...] = ()
