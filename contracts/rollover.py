"""Rollover of a certificate authority: another one takes its place, with an overlap in which all
hosts trust both."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from contracts.base import Contract, Name, Reason
from contracts.certificates import CertificatesPem, is_qemu_authority
from contracts.settings import CA_PROVIDER
from contracts.states import Phase

Generation = Annotated[int, Field(ge=1)]
GivenReason = Annotated[
    str, StringConstraints(min_length=1, max_length=1000, pattern=r"^[^\x00]*$")
]


class RolloverStage(StrEnum):
    """How far it is, by the inventory."""

    TRUST = "trust"
    """Hosts get to trust the next CA beside the current one, which still issues."""
    CERTIFICATES = "certificates"
    """The new CA issues: hosts get certificates of it. All trust both."""
    WITHDRAWAL = "withdrawal"
    """The old CA is taken off the hosts."""
    NONE = "none"
    """Nothing is left of a rollover, or there was none."""


class WaitingHost(Contract):
    """A host that the rollover waits for, or was told not to, and why."""

    host: Name
    reason: str


class RolloverProgress(Contract):
    """Where a rollover stands, as the inventory knows it.

    Attributes:
        cluster: whose QEMUs' CA it is; None: it is that of all hosts.
        current: the generation that issues now; `newest`: the highest that there is.
        to: the generation that hosts are being brought to; None: there is no rollover.
        total: hosts that have certificates of this provider.
        done: of these, how many are through the present stage.
        due: hosts that can be worked on now, and their cluster: the first of them. `due_count` is
            of those that are waited for; those that were left out, and are there, come after them.
            One of each cluster comes after the other.
        to_certify: those of `due` that get certificates; the others, which CAs to trust.
        at_a_time: how many of such a cluster get certificates at a time.
        waiting: those that can't, and why: the first of them.
        left_out: those that nobody waits for, and why: the first of them. They are not through.
        unmanaged: certificates of the old CA that are valid, and that others have installed.
        behind: without a rollover, hosts that trust, or go by certificates of, a CA that is gone:
            the first of them. They were left out of one.
        stopped: why nothing is worked on at all, and no stage ends; "": it is.
    """

    provider: Name
    cluster: Name | None = None
    current: Generation
    newest: Generation
    to: Generation | None
    stage: RolloverStage
    total: int
    done: int
    due: dict[Name, str] = Field(default_factory=dict)
    to_certify: tuple[Name, ...] = ()
    due_count: int = 0
    at_a_time: dict[Name, int] = Field(default_factory=dict)
    waiting: tuple[WaitingHost, ...] = ()
    waiting_count: int = 0
    left_out: tuple[WaitingHost, ...] = ()
    left_out_count: int = 0
    unmanaged: int = 0
    behind: tuple[Name, ...] = ()
    behind_count: int = 0
    stopped: str = ""

    @property
    def is_through(self) -> bool:
        """Whether the present stage is at its end."""
        return self.due_count + self.waiting_count == 0

    def command(self, *words: str) -> str:
        """Of the CLI, about this rollover."""
        return rollover_command(*words, cluster=self.cluster)


def rollover_command(*words: str, cluster: str | None) -> str:
    """Of the CLI, about the rollover of the CA of a cluster's QEMUs; without one, of all hosts'."""
    of = ("--cluster", cluster) if cluster is not None else ()
    return " ".join(("hostler ca rollover", *words, *of))


def why_stopped(provider: str, chosen: str) -> str:
    """Why a rollover of that provider stands still where the settings name the chosen one, or
    nothing: hosts would get certificates of a CA that others do not trust. That of QEMUs goes on:
    libvirt's part of what it gives to hosts is of the chosen one, as in each renewal by then."""
    if chosen == provider or is_qemu_authority(provider):
        return ""
    return f"the setting {CA_PROVIDER.name} names another provider, {chosen}, which issues now."


class RolloverCarried(Contract):
    """What a run that continues as new hands over."""

    provider: Name
    since: datetime
    paused: bool = False
    renewed_own: bool = False


class AuthorityRolloverInput(Contract):
    """Replace a provider's CA by another one. One that was begun before is brought to its end.

    Attributes:
        provider: whose; the one that the settings choose, if it is not named.
        leave_out: hosts that are not waited for. They get all of it if they are there before it
            ends; afterwards, the automatic renewal gives them certificates, unless it is off.
        key_secret: id of the stored private key of an operator's own CA, which is the next one.
        chain: its certificates in PEM, the issuing one first, a self-signed one last.
        dry_run: only look what there is to do.
        look_again_s: between two looks while hosts are waited for.
        rounds: after so many, it continues as new.
        requester: who asks, as the audit trail names them.
    """

    provider: Name | None = None
    leave_out: tuple[Name, ...] = ()
    reason: Reason = ""
    key_secret: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    chain: CertificatesPem | None = None
    dry_run: bool = False
    look_again_s: int = Field(default=30, ge=1, le=3600)
    rounds: int = Field(default=100, ge=1, le=1000)
    requester: str = ""
    carried: RolloverCarried | None = None

    @model_validator(mode="after")
    def _key_and_chain(self) -> "AuthorityRolloverInput":
        if (self.key_secret is None) != (self.chain is None):
            raise PydanticCustomError("key_and_chain", "key_secret and chain go together")
        if self.dry_run and self.chain is not None:
            raise PydanticCustomError("dry_run", "a dry run takes no CA")
        return self


class FindRolloverInput(Contract):
    """Look where the rollover of a provider stands; None: of the chosen one."""

    provider: Name | None = None
    operation: str


class PrepareNextInput(Contract):
    """Have the provider make its next authority, or take an operator's own, as the generation that
    follows `after`."""

    provider: Name
    after: Generation
    key_secret: str | None = None
    chain: CertificatesPem | None = None
    leave_out: tuple[Name, ...] = ()
    reason: Reason = ""
    operation: str
    requester: str = ""


class RolloverStepInput(Contract):
    """A step of the rollover of a provider."""

    provider: Name
    operation: str


class LookAtRolloverInput(RolloverStepInput):
    """Look how far it is; those that were `busy` in the last round come last."""

    busy: tuple[Name, ...] = ()


class RolloverStepResult(Contract):
    """Whether it is so now; if not, a host is not through the stage before."""

    done: bool


class LeaveOutInput(Contract):
    """Do not wait for that host, and why; the argument of the update `leave_out`."""

    host: Name
    reason: GivenReason


class LeaveHostOutInput(LeaveOutInput):
    """The same as a step of an operation."""

    provider: Name
    operation: str


class NoteRolloverInput(Contract):
    """How a host's new certificates have come about; `problem`: why they have not."""

    host: Name
    problem: str
    operation: str


class PauseInput(Contract):
    """The argument of the updates `pause` and `resume`."""


class AuthorityRolloverStatus(Contract):
    """What a rollover answers to its query `status`.

    Attributes:
        progress: as it has last looked; None: it has not yet.
        paused: no other host begins; those in work come to their end.
        busy: hosts that could be worked on, but for what others do there, or that went wrong.
        commands: that move it on.
    """

    provider: Name | None
    phase: Phase
    reason: str
    message: str
    since: datetime
    paused: bool
    progress: RolloverProgress | None
    busy: dict[str, str] = Field(default_factory=dict)
    commands: tuple[str, ...] = ()


class AuthorityRolloverResult(Contract):
    """Where it has ended; with `dry_run`, where it would begin."""

    progress: RolloverProgress
    dry_run: bool = False


class AuthorityRolloverView(Contract):
    """A provider's rollover as API and CLI show it.

    Attributes:
        operation: the workflow that drives it, and what that says; None: nothing does.
    """

    progress: RolloverProgress
    status: AuthorityRolloverStatus | None = None
    workflow_id: str | None = None
    run_id: str | None = None
