"""ClusterMaintenance: one host of a cluster after another, with hooks. What starts it, what steers
it, what it shows, and what its activities take and give."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import (
    Field,
    StrictBool,
    StrictInt,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from contracts.base import Contract, Name, Reason
from contracts.leases import Owner
from contracts.maintenance import OnBlocker

# A command goes to the host as words of one SSH request.
_MAX_COMMAND_CHARS = 16_384
MAX_OUTPUT_BYTES = 64 * 1024

Word = Annotated[str, StringConstraints(max_length=_MAX_COMMAND_CHARS, pattern=r"^[^\x00]*$")]


class Stage(StrEnum):
    """When a hook runs."""

    PRE_FLIGHT = "pre_flight"
    """On all hosts, before anything is changed on any."""
    PRE_MAINTENANCE = "pre_maintenance"
    """Before the host is drained."""
    MAINTENANCE = "maintenance"
    """When no VM is on it any more: the work itself."""
    POST_MAINTENANCE = "post_maintenance"
    """After the work and the reboot, before it goes back into service."""


class BuiltinHook(StrEnum):
    """Hooks that Hostler brings along."""

    APPLY_UPDATES = "apply-updates"
    """Install the distribution's updates and say what has changed."""


class Hook(Contract):
    """What runs on the host, as root: a command, word by word, or a hook of Hostler's.

    Attributes:
        timeout_s: after that it is ended; None: the setting hook.timeout.
    """

    command: Annotated[tuple[Word, ...], Field(min_length=1)] | None = None
    builtin: BuiltinHook | None = None
    timeout_s: Annotated[StrictInt, Field(ge=1, le=30 * 86_400)] | None = None

    @model_validator(mode="after")
    def _check(self) -> "Hook":
        if (self.command is None) == (self.builtin is None):
            raise PydanticCustomError(
                "one_of_two", "exactly one of command and builtin is required"
            )
        if self.command is not None and sum(map(len, self.command)) > _MAX_COMMAND_CHARS:
            raise PydanticCustomError(
                "too_long",
                "the command has more than {limit} characters; put a script on the hosts",
                {"limit": _MAX_COMMAND_CHARS},
            )
        return self


class Step(StrEnum):
    """What is done to a host, in this order; a host that has failed is tried again from there."""

    PRE_FLIGHT = "pre_flight"
    PRE_MAINTENANCE = "pre_maintenance"
    DRAIN = "drain"
    MAINTENANCE = "maintenance"
    REBOOT = "reboot"
    POST_MAINTENANCE = "post_maintenance"
    LEAVE = "leave"


class HostWork(StrEnum):
    """How far a host is."""

    WAITING = "waiting"
    WORKING = "working"
    FAILED = "failed"
    DONE = "done"


class HookOutcome(Contract):
    """How one run of a hook ended. What it printed is in the inventory.

    Attributes:
        exit_status: None if it has none: see `problem`.
        problem: why it did not end by itself.
    """

    stage: Stage
    attempt: int
    exit_status: int | None
    problem: str | None = None

    @property
    def passed(self) -> bool:
        """Only the status 0 is a success."""
        return self.exit_status == 0


class HostProgress(Contract):
    """One host of a ClusterMaintenance.

    Attributes:
        step: the step that is next, under way, or has failed.
        error: why it failed; None once it is tried again.
        question: what its HostMaintenance wants to know from an operator.
        queued: what its HostMaintenance waits for before it may begin.
        maintenance: its HostMaintenance, once that was started.
        boot_id_before: of the boot that the reboot has ended.
        boot_id_after: of the boot after it; it differs, or the reboot has failed.
        power_cycled: it did not come back from the reboot, and its BMC was told to see to that.
    """

    host: Name
    state: HostWork = HostWork.WAITING
    step: Step = Step.PRE_FLIGHT
    error: str | None = None
    question: str | None = None
    queued: str | None = None
    maintenance: Owner | None = None
    boot_id_before: str | None = None
    boot_id_after: str | None = None
    power_cycled: bool = False
    hooks: tuple[HookOutcome, ...] = ()


class ClusterPlan(Contract):
    """What was settled at the start: which hosts, in which order, and the bounds in seconds."""

    cluster: Name
    zone: Name
    hosts: tuple[Name, ...]
    hook_timeout: int
    reboot_timeout: int
    unreachable_timeout: int


class CarriedClusterMaintenance(Contract):
    """What a ClusterMaintenance hands to itself when it continues as new."""

    plan: ClusterPlan
    hosts: tuple[HostProgress, ...]
    since: datetime
    paused: bool
    halted: bool


class ClusterMaintenanceChoices(Contract):
    """What can be chosen for a ClusterMaintenance.

    Attributes:
        hosts: which, in this order; None: all that are in service, by name.
        parallel: how many at a time; at most the setting maintenance.hosts.out.max.
        reason: why, for whoever finds a host out of service.
        on_blocker: what to do with VMs that can't be live-migrated.
        max_parallel: live migrations at a time from one host; None: the cluster's setting.
        reboot: reboot each host when its work is done.
        power_cycle_when_lost: a host that does not answer when its time for the reboot is over is
            switched off and on by its BMC, once.
        hooks: per stage, what runs on each host; a stage without one runs the host's own
            /etc/hostler/hooks/STAGE if there is one.
        return_vms: bring back what was moved, when a host is back in service.
    """

    hosts: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    parallel: Annotated[StrictInt, Field(ge=1)] = 1
    reason: Reason = ""
    on_blocker: OnBlocker = OnBlocker.REFUSE
    max_parallel: Annotated[StrictInt, Field(ge=1, le=64)] | None = None
    reboot: StrictBool = False
    power_cycle_when_lost: StrictBool = False
    hooks: dict[Stage, Hook] = Field(default_factory=dict)
    return_vms: StrictBool = False

    @model_validator(mode="after")
    def _loses_hosts_by_reboots_only(self) -> "ClusterMaintenanceChoices":
        if self.power_cycle_when_lost and not self.reboot:
            raise PydanticCustomError(
                "power_cycle_without_reboot", "power_cycle_when_lost goes with reboot only"
            )
        return self

    @field_validator("on_blocker")
    @classmethod
    def _keeps_no_vm(cls, choice: OnBlocker) -> OnBlocker:
        if choice is OnBlocker.KEEP:
            raise PydanticCustomError(
                "kept_vms", "with VMs kept on it, a host is never ready for its work"
            )
        return choice

    @field_validator("hosts")
    @classmethod
    def _names_none_twice(cls, hosts: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if hosts is not None and len(set(hosts)) < len(hosts):
            raise PydanticCustomError("named_twice", "a host is named twice")
        return hosts


class ClusterMaintenanceInput(ClusterMaintenanceChoices):
    """Take the hosts of `cluster` out of service one after another, work on them, put them back.

    Attributes:
        continued: set by Hostler alone, when the workflow continues as new.
    """

    cluster: Name
    continued: CarriedClusterMaintenance | None = None


class ClusterMaintenanceOutcome(StrEnum):
    """How a ClusterMaintenance ended."""

    COMPLETED = "completed"
    STOPPED = "stopped"


class ClusterMaintenanceResult(Contract):
    """What a ClusterMaintenance that has ended answers."""

    cluster: Name
    outcome: ClusterMaintenanceOutcome
    hosts: tuple[HostProgress, ...]


class PauseInput(Contract):
    """No new host begins; those in work go on to their end."""


class ResumeInput(Contract):
    """Go on after a pause, or after a failure: what has failed is tried again."""


class StopInput(Contract):
    """End when the hosts in work are done; one that has failed stays as it is."""


class ClusterPhase(StrEnum):
    """Where a ClusterMaintenance stands; the search attribute `HostlerPhase`."""

    PLANNING = "Planning"
    PRE_FLIGHT = "PreFlight"
    WORKING = "Working"
    PAUSED = "Paused"
    QUESTION = "Question"
    STOPPING = "Stopping"
    DONE = "Done"


class ClusterMaintenanceStatus(Contract):
    """What the `status` query answers.

    Attributes:
        message: one sentence: what happens now, or what is wrong.
        commands: what an operator can run next, ready to paste.
    """

    cluster: Name
    phase: ClusterPhase
    reason: str
    message: str
    since: datetime
    parallel: int
    reboot: bool
    hosts: tuple[HostProgress, ...]
    commands: tuple[str, ...] = ()


class ClusterMaintenanceView(ClusterMaintenanceStatus):
    """What the API shows of an open ClusterMaintenance: its status and its run."""

    workflow_id: str
    run_id: str


class HookRun(Contract):
    """One run of a hook, as the inventory keeps it.

    Attributes:
        operation: "workflow id#first run id".
        exit_status: None while it runs, and if it did not end by itself: see `problem`.
        output: the end of what it printed; None in a list of many.
    """

    operation: str
    host: Name
    stage: Stage
    attempt: int
    command: tuple[str, ...]
    exit_status: int | None
    problem: str | None
    output: str | None
    started_at: datetime
    finished_at: datetime | None


# --- activities ---------------------------------------------------------------------------------


class PlanClusterInput(Contract):
    """Which hosts, how many at a time. `power_cycle_when_lost`: all must have a BMC."""

    cluster: Name
    hosts: tuple[Name, ...] | None
    parallel: int
    power_cycle_when_lost: bool = False


class RunHookInput(Contract):
    """One run of a stage's hook on a host.

    Attributes:
        operation: "workflow id#first run id".
        attempt: the same attempt never runs twice.
        maintenance: the host must be ready in this one; None: it need not be.
        timeout: unless the hook says otherwise.
        unreachable_timeout: how long a host that does not answer is waited for.
    """

    operation: str
    cluster: Name
    host: Name
    stage: Stage
    attempt: int
    hook: Hook | None
    maintenance: Owner | None
    timeout: int
    unreachable_timeout: int


class RunHookResult(Contract):
    """`outcome` is None when there was nothing to run."""

    outcome: HookOutcome | None


class ReadBootIdInput(Contract):
    """Of which host; how long it is waited for."""

    host: Name
    unreachable_timeout: int


class BootId(Contract):
    """The kernel's name for one boot of a host."""

    boot_id: str


class RebootHostInput(Contract):
    """Reboot a host that is ready in `maintenance`, unless its boot id has changed already."""

    host: Name
    maintenance: Owner
    boot_id: str
    timeout: int


class MaintenanceProgress(Contract):
    """How a HostMaintenance stands.

    Attributes:
        ready: the host is ready for its work.
        ended: why it is not open any more; None while it is.
        question: what it wants to know from an operator.
        queued: what it waits for before it may begin.
    """

    ready: bool = False
    ended: str | None = None
    question: str | None = None
    queued: str | None = None


class WaitForMaintenanceInput(Contract):
    """Until a HostMaintenance is ready, has ended, or stands otherwise than `seen`."""

    host: Name
    maintenance: Owner
    seen: MaintenanceProgress = MaintenanceProgress()


class LeaveMaintenanceInput(Contract):
    """End a HostMaintenance. `request`: the same for every attempt at the same wish."""

    host: Name
    maintenance: Owner
    request: str
    return_vms: bool
