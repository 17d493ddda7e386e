"""PowerAction, PowerSync and BmcPasswordChange: their inputs and results, and what their steps take
and give."""

from collections.abc import Collection
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StrictBool, StrictInt, model_validator
from pydantic_core import PydanticCustomError

from contracts.base import Contract, Name, Reason, VmName
from contracts.errors import InvalidInput
from contracts.leases import LeaseRef
from contracts.oobm import (
    BmcAddress,
    BmcCertificate,
    BmcLook,
    BmcUser,
    CipherSuite,
    PowerCount,
    PowerProblem,
)
from contracts.power import BmcPrivilege, PowerState
from contracts.states import Phase, ResourceState

POWER_SYNC = "PowerSync"
"""The type of the workflow that sweeps all BMCs."""

POWER_SYNC_SCHEDULE = "power-sync"
"""The id of the schedule that starts it."""

POWER_PROBE = "PowerProbe"
"""The type of the workflow that asks the BMCs that did not answer before."""

POWER_PROBE_ID = "power-probe"
"""Its id: there is one at a time."""

BMC_TEST = "BmcTest"
"""The type of the workflow that looks at one BMC for whoever waits for it."""


class Action(StrEnum):
    """What a BMC is told, or asked."""

    ON = "on"
    OFF = "off"
    """At once: whatever runs there is lost."""
    RESET = "reset"
    """At once, without a moment of being off."""
    CYCLE = "cycle"
    """Off, then on, at once."""
    SOFT = "soft"
    """As by a short press of the power button: the operating system shuts down in good order."""
    STATUS = "status"


SHOULD_BE = {
    Action.ON: PowerState.ON,
    Action.OFF: PowerState.OFF,
    Action.SOFT: PowerState.OFF,
    Action.RESET: PowerState.ON,
    Action.CYCLE: PowerState.ON,
}
"""What the power is when it is done."""

BOOTS = frozenset({Action.RESET, Action.CYCLE})
"""The power says nothing about whether these have happened: it is on before and after."""

MAY_BOOT = BOOTS | {Action.ON}
"""The host boots."""

STOPS = frozenset({Action.OFF, Action.SOFT, Action.RESET, Action.CYCLE})
"""What runs on the host ends."""


# --- PowerAction --------------------------------------------------------------------------------


class PowerChoices(Contract):
    """What to do to the power of a host.

    Attributes:
        force: also while VMs run there, or nobody knows whether any do; with a reason.
        fall_back_to_off: `soft` that has not come about in time becomes `off`.
        timeout: seconds until it must have come about; None: the cluster's setting.
    """

    action: Action
    reason: Reason = ""
    force: StrictBool = False
    fall_back_to_off: StrictBool = False
    timeout: Annotated[StrictInt, Field(ge=1, le=3_600)] | None = None

    @model_validator(mode="after")
    def _check(self) -> "PowerChoices":
        if self.force and not self.reason.strip():
            raise PydanticCustomError("force_reason", "force needs a reason")
        if self.fall_back_to_off and self.action is not Action.SOFT:
            raise PydanticCustomError("fall_back", "fall_back_to_off goes with soft only")
        return self


class PowerActionInput(PowerChoices):
    """Input of PowerAction.

    Attributes:
        network_boot: with `on`, `reset` and `cycle`: it boots from the network, this once.
    """

    host: Name
    network_boot: StrictBool = False

    @model_validator(mode="after")
    def _check_network_boot(self) -> "PowerActionInput":
        if self.network_boot and self.action not in MAY_BOOT:
            raise PydanticCustomError(
                "network_boot", "network_boot goes with on, reset and cycle only"
            )
        return self


class PowerOutcome(StrEnum):
    """How a PowerAction ended that did not fail."""

    DONE = "done"
    THERE_ALREADY = "there already"
    """Nothing was sent."""
    OBSERVED = "observed"
    """It was only asked."""


class PowerActionStatus(Contract):
    """Answer of the query `status`.

    Attributes:
        state: as last seen in this operation; None: not yet.
        sent: what the BMC was told.
        cancel_came_late: what was sent can't be taken back; its outcome is still looked for.
        commands: what can be run now, ready to paste.
    """

    host: Name
    action: Action
    phase: Phase
    reason: str
    message: str
    state: PowerState | None = None
    sent: tuple[Action, ...] = ()
    cancel_came_late: bool = False
    warnings: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


class PowerActionResult(Contract):
    """What came of it. `proof`: by what that is known."""

    host: Name
    action: Action
    outcome: PowerOutcome
    state: PowerState
    observed_at: datetime
    sent: tuple[Action, ...] = ()
    proof: str = ""
    warnings: tuple[str, ...] = ()


class PowerSettings(Contract):
    """What a PowerAction goes by. `timeout`: seconds until a command must have come about;
    `answer_timeout`: those that a BMC has to answer."""

    cluster: Name
    zone: Name
    timeout: int
    answer_timeout: int


class PowerWord(Contract):
    """What a BMC says at this moment; `reason`: why it is `Unknown`."""

    state: PowerState
    observed_at: datetime
    problem: PowerProblem | None = None
    reason: str = ""


class PowerSurvey(Contract):
    """A host whose power is to be switched, as it is now.

    Attributes:
        state: what its BMC says at this moment.
        generation: of the configuration by which the BMC was asked.
        vms: active ones, as its libvirt says; None: it does not say.
        coming: those that are on their way to it.
        last_seen_vms: how many were there when it was last looked at; None: never.
        boot_id: of the boot that it is in; None: it does not say.
    """

    host: Name
    resource_state: ResourceState
    state: PowerState
    observed_at: datetime
    generation: int
    vms: tuple[VmName, ...] | None = None
    coming: tuple[VmName, ...] = ()
    last_seen_vms: int | None = None
    boot_id: str | None = None


class PowerCommandRef(Contract):
    """A command to a BMC: at most once in its operation.

    Attributes:
        generation: of the configuration by which the host was looked at; by a later one it is not
            sent.
        boot_id: of the host, before it.
        timeout: seconds until it must have come about.
        force: also while VMs run there.
        may_be_silent: the host was told to shut down before, and need not tell its VMs any more.
    """

    lease: LeaseRef
    action: Action
    generation: int
    reason: Reason = ""
    boot_id: str | None = None
    timeout: int
    force: bool = False
    may_be_silent: bool = False


class PowerSent(Contract):
    """What became of a command.

    Attributes:
        accepted: the BMC said that it does it. If not, nobody knows whether the command arrived.
        problem: what came in the way of its answer.
    """

    accepted: bool
    sent_at: datetime
    boot_id: str | None = None
    problem: str = ""


class WatchPowerInput(Contract):
    """Look until the command has come about, at the longest until then."""

    command: PowerCommandRef
    until: datetime


class BootSeen(StrEnum):
    """What a host shows of its boot after a command."""

    NOT_KNOWN = "not known"
    """It had not told its boot before."""
    SAME = "same"
    """It answers, in the boot that it was in."""
    SILENT = "silent"
    """It has stopped answering."""
    ANOTHER = "another"


class PowerSeen(Contract):
    """How the power stands after a command.

    Attributes:
        state: the BMC's last word; `Unknown` if there was none.
        was_off: it was seen off on the way.
        problem: why the BMC did not say more.
    """

    state: PowerState
    observed_at: datetime
    was_off: bool = False
    boot: BootSeen = BootSeen.NOT_KNOWN
    problem: str = ""


class CommandOutcome(StrEnum):
    """What is known of a command once it is over."""

    DONE = "done"
    REFUSED = "refused"
    """The BMC said that it does not do it."""
    UNCHANGED = "unchanged"
    """The BMC said that it does it, and did not."""
    UNKNOWN = "unknown"


class FinishPowerInput(Contract):
    """Write down what became of a command."""

    command: PowerCommandRef
    outcome: CommandOutcome
    message: str


# --- other operations that switch power -----------------------------------------------------------


class RequirePowerInput(Contract):
    """An operation is to switch the host's power. `option`: the field that asks for that."""

    host: Name
    option: str
    network_boot: bool = False


class PowerUse(Contract):
    """What such an operation goes by. `boot_timeout`: seconds that the host has to come back."""

    boot_timeout: int


# --- PowerSync ----------------------------------------------------------------------------------


class PowerRoundPlan(Contract):
    """What a round goes by, from its first step to its last.

    Attributes:
        started_at: a BMC that was asked since is not asked again in this round.
        interval: seconds between two rounds.
        concurrency: BMCs that are asked at a time within a shard.
        timeout: seconds that a BMC has to answer.
    """

    started_at: datetime
    interval: int
    concurrency: int
    timeout: int


class PowerShard(Contract):
    """BMCs of the hosts whose names come after `after`, up to `last`."""

    after: str
    last: Name


class PowerRoundBegun(Contract):
    """The plan, and the shards that are to be swept. `silent_due`: the time of some has come that
    did not answer before."""

    plan: PowerRoundPlan
    shards: tuple[PowerShard, ...]
    silent_due: bool = False


class SweepPowerInput(Contract):
    """One shard of a round."""

    plan: PowerRoundPlan
    shard: PowerShard


class PowerSwept(Contract):
    """What came of a shard, in this attempt at it."""

    asked: int = 0
    answered: int = 0
    changed: int = 0


class PowerProbeInput(Contract):
    """Of the round that starts it."""

    plan: PowerRoundPlan


class FinishPowerRoundInput(Contract):
    """What came of all shards."""

    plan: PowerRoundPlan
    asked: int
    answered: int
    changed: int


class PowerSyncInput(Contract):
    """All BMCs that are enabled: there is nothing to choose."""


class PowerSyncResult(Contract):
    """As PowerRound."""

    asked: int
    answered: int
    waiting: int
    changed: int
    seconds: float
    counts: tuple[PowerCount, ...]


class PowerSighting(Contract):
    """What asking one BMC has shown.

    Attributes:
        generation: of the configuration by which it was asked; under a later one it is worth
            nothing.
        began_at: what was written since is newer than this.
        state: `On`, `Off` or `Unknown`.
        guid: of the BMC that answered; None: it did not say.
    """

    host: Name
    generation: int
    began_at: datetime
    state: PowerState
    problem: PowerProblem | None = None
    reason: str = ""
    guid: str | None = None


# --- looking at a BMC out of turn, and its password ---------------------------------------------


PASSWORD_GOES_BY = ("driver", "address", "port", "user", "certificate")
"""What says to whom a password is shown. Whoever gives any of these for a look gives the password
too: the stored one goes by the stored configuration alone."""


def misses_password(given: Collection[str]) -> InvalidInput | None:
    """Of a look for which these fields, and no password, are given: whether it is refused."""
    by = [name for name in PASSWORD_GOES_BY if name in given]
    if not by:
        return None
    message = f"is required with {', '.join(by)}: the stored one is not sent elsewhere"
    return InvalidInput(
        f"The input of {BMC_TEST} is not valid: password: {message}.",
        remedy="Give the password of that BMC too.",
        details={"fields": [{"field": "password", "message": message}]},
    )


class BmcTestInput(Contract):
    """Look at the BMC of a host: by its configuration, or by what is given in its place.

    Attributes:
        secret: id of the stored password; it is the test's own, which deletes it at its end.
    """

    host: Name
    driver: Name | None = None
    address: BmcAddress | None = None
    port: Annotated[StrictInt, Field(ge=1, le=65_535)] | None = None
    user: BmcUser | None = None
    privilege: BmcPrivilege | None = None
    cipher_suite: CipherSuite | None = None
    certificate: BmcCertificate | None = None
    secret: str | None = None

    @property
    def gives_anything(self) -> bool:
        """Whether it is another look than by the stored configuration."""
        return any(value is not None for name, value in self if name != "host")


class BmcTestResult(Contract):
    """What the look has shown."""

    host: Name
    look: BmcLook


class BmcPasswordChangeInput(Contract):
    """Give a host's BMC another password.

    Attributes:
        secret: id of the stored new password; None: a random one.
    """

    host: Name
    secret: str | None = None
    reason: Reason = ""


class BmcPasswordStatus(Contract):
    """Answer of the query `status`."""

    host: Name
    phase: Phase
    reason: str
    message: str
    commands: tuple[str, ...] = ()


class BmcPasswordChangeResult(Contract):
    """The BMC lets Hostler in with the new password. `proof`: by what that is known."""

    host: Name
    proof: str


class BmcPasswordSettled(Contract):
    """Only one password is stored. `promoted`: it is the one that a former change has left."""

    promoted: bool = False


class StageBmcPasswordInput(Contract):
    """Keep a new password beside the one that counts."""

    lease: LeaseRef
    secret: str | None


class BmcPasswordProven(Contract):
    """Which password the BMC takes: the new one, or, with the reason, still the old one."""

    changed: bool
    proof: str
