"""HostRemoval: what starts it, what steers it, what it shows, what its activities take and give."""

from enum import StrEnum
from typing import Annotated, Protocol

from pydantic import Field, StrictBool, StrictInt, model_validator
from pydantic_core import PydanticCustomError

from contracts.base import Contract, Name, Reason, VmName
from contracts.hosts import Host
from contracts.leases import LeaseRef, Owner
from contracts.maintenance import OnBlocker
from contracts.power import check_fall_back
from contracts.states import Phase


class RemovalChoices(Protocol):
    """The fields of a request that depend on each other."""

    @property
    def reason(self) -> str: ...
    @property
    def after_maintenance(self) -> bool: ...
    @property
    def forced(self) -> bool: ...
    @property
    def leave_vms(self) -> bool: ...
    @property
    def on_blocker(self) -> OnBlocker: ...
    @property
    def power_off(self) -> bool: ...
    @property
    def fall_back_to_off(self) -> bool: ...


def check_choices(asked: RemovalChoices) -> None:
    """Raises PydanticCustomError."""
    if asked.forced and not asked.reason.strip():
        raise PydanticCustomError("reason_missing", "forced needs a reason")
    if asked.forced and asked.after_maintenance:
        raise PydanticCustomError(
            "forced_after_maintenance",
            "forced is for hosts that can't be put into maintenance: not with after_maintenance",
        )
    if asked.after_maintenance and asked.on_blocker is OnBlocker.SHUTDOWN and not asked.leave_vms:
        raise PydanticCustomError(
            "shut_down_vms",
            "VMs that are shut down stay defined on the host: on_blocker shutdown needs leave_vms",
        )
    check_fall_back(asked, "power_off", chosen=asked.power_off)
    if asked.forced and asked.power_off:
        raise PydanticCustomError(
            "forced_power_off",
            "power_off: a host is only switched off once it was cleaned: not with forced",
        )
    if asked.on_blocker is OnBlocker.KEEP:
        raise PydanticCustomError(
            "kept_vms", "on_blocker can't be keep: a host is removed with no VM active on it"
        )


class HostRemovalInput(Contract):
    """Take `host` out of the inventory, and what Hostler has put on it off the host.

    Attributes:
        reason: why; required with `forced`.
        after_maintenance: take it out of service first, by a HostMaintenance of the usual id;
            `on_blocker`, `max_parallel` and `queue` are passed on to that.
        forced: also if the host does not answer: it is cleaned if it ever does again.
        leave_vms: also if VMs are defined there that are shut off; they stay as they are.
        power_off: shut it down and switch it off, by its BMC, once it is clean, right before it is
            deleted; `fall_back_to_off`: its power is taken away if it does not shut down in time.
        dry_run: only list what would be done; nothing changes.
    """

    host: Name
    reason: Reason = ""
    after_maintenance: StrictBool = False
    forced: StrictBool = False
    leave_vms: StrictBool = False
    dry_run: StrictBool = False
    on_blocker: OnBlocker = OnBlocker.REFUSE
    max_parallel: Annotated[StrictInt, Field(ge=1, le=64)] | None = None
    queue: StrictBool = True
    power_off: StrictBool = False
    fall_back_to_off: StrictBool = False

    @model_validator(mode="after")
    def _check(self) -> "HostRemovalInput":
        check_choices(self)
        return self


class EffectKind(StrEnum):
    """What an effect of a removal is on."""

    MAINTENANCE = "maintenance"
    HOST = "host"
    INVENTORY = "inventory"
    SECRET = "secret"  # noqa: S105 - a kind
    TOMBSTONE = "tombstone"
    CONNECTIONS = "connections"
    VMS = "vms"
    POWER = "power"


class RemovalEffect(Contract):
    """One thing that a removal does, in words."""

    kind: EffectKind
    message: str


class RemovalSurvey(Contract):
    """A host that is to be removed, as it is now.

    Attributes:
        answers: Hostler can log in.
        problem: why it can't, or why libvirt there does not tell; "" if all was told.
        active: VMs that are active there.
        defined: VMs that are defined there and shut off.
        found: what of Hostler's is on the host ("file /etc/hostler/fence").
        last_seen: VMs that were on it as far as Hostler knows from their migrations.
        belongings: what the inventory has of it beside its row ("tags: 2").
        secrets: how many credentials go with it.
        holder: the operation that holds its lease.
    """

    host: Host
    answers: bool
    problem: str = ""
    active: tuple[VmName, ...] = ()
    defined: tuple[VmName, ...] = ()
    found: tuple[str, ...] = ()
    last_seen: tuple[VmName, ...] = ()
    belongings: tuple[str, ...] = ()
    secrets: int = 0
    holder: Owner | None = None


class BeginRemovalInput(Contract):
    """The host becomes `Removed`: from here on there is no way back. `step` makes a repetition
    recognizable."""

    lease: LeaseRef
    leave_vms: bool
    step: str
    reason: str


class RemovalBegun(Contract):
    """What of Hostler's was on the host when its cleaning began."""

    found: tuple[str, ...]


class Cleaning(Contract):
    """How it is known that nothing of Hostler's is left on a host."""

    proof: str


class RemoveHostInput(Contract):
    """Delete a host from the inventory, in one step, and leave a tombstone.

    Attributes:
        vms: the names that the tombstone keeps.
        cleaned: nothing of Hostler's is left on the host; else it is cleaned when it answers again.
        problem: why it was not cleaned.
    """

    lease: LeaseRef
    reason: str
    forced: bool
    vms: tuple[VmName, ...]
    cleaned: bool
    problem: str = ""


class HostRemoved(Contract):
    """Its tombstone, and what was deleted with it."""

    tombstone: int
    deleted: tuple[str, ...]


class RemovedHostsCleaned(Contract):
    """Removed hosts that have answered again and are clean now, and those that still wait."""

    cleaned: tuple[Name, ...] = ()
    waiting: tuple[Name, ...] = ()


class RemovalAction(StrEnum):
    """An operator's answer when a host can't be cleaned."""

    RETRY = "retry"
    LEAVE_UNCLEANED = "leave_uncleaned"
    """Remove it all the same: it is cleaned if it ever answers again."""


class ResolveRemovalInput(Contract):
    """Answer the question about a host that can't be cleaned."""

    action: RemovalAction


class RemovalOutcome(StrEnum):
    """How a HostRemoval ended."""

    PLANNED = "planned"
    REMOVED = "removed"


class HostRemovalResult(Contract):
    """What a completed HostRemoval answers.

    Attributes:
        effects: what a dry run would do, or what was done.
        removed_from_host: what of Hostler's was found on the host, and is gone.
        proof: how that is known; "" if the host was not cleaned.
        left: what stays: VMs that are defined there, a host that has to be cleaned later, or that
            is still on.
        vms: VMs that were left, or last seen there.
        tombstone: its number, see `hostler host removed`.
    """

    host: Name
    outcome: RemovalOutcome
    effects: tuple[RemovalEffect, ...]
    removed_from_host: tuple[str, ...] = ()
    proof: str = ""
    left: tuple[str, ...] = ()
    vms: tuple[VmName, ...] = ()
    tombstone: int | None = None


class HostRemovalStatus(Contract):
    """What the `status` query answers.

    Attributes:
        message: one sentence: what happens now, or what is wrong.
        final: it can't be taken back any more: a cancel has no effect.
        cancel_came_late: there was one.
        commands: what an operator can run next, ready to paste.
    """

    host: Name
    phase: Phase
    reason: str
    message: str
    final: bool = False
    cancel_came_late: bool = False
    effects: tuple[RemovalEffect, ...] = ()
    commands: tuple[str, ...] = ()
