"""Passwords that an account has on all hosts of a cluster: their change, and whether they agree."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StrictBool, StringConstraints

from contracts.addition import UserName
from contracts.base import Contract, Name, Reason
from contracts.errors import InvalidInput
from contracts.leases import LeaseRef, LeaseScope, Owner
from contracts.states import Phase

PASSWORD_VERIFICATION = "PasswordVerification"  # noqa: S105 - a workflow's name
PASSWORD_VERIFICATION_SCHEDULE = "password-verification"  # noqa: S105 - a schedule's name
DEFAULT_ACCOUNT = "root"

MOST_CHARACTERS = 128
# PAM takes no longer answer (PAM_MAX_RESP_SIZE), crypt(3) no longer passphrase.
_MOST_BYTES = 511
_DELETE = "\x7f"


def check_password(password: str) -> None:
    """Raises InvalidInput for one that can't be set, or could not be typed where it is needed."""
    problem = _problem(password)
    if problem is not None:
        raise InvalidInput(
            f"The password can't be used: password: {problem}.",
            remedy="Choose another one; nothing was changed.",
            details={"fields": [{"field": "password", "message": problem}]},
        )


def _problem(password: str) -> str | None:
    if not password:
        return "must not be empty"
    if len(password) > MOST_CHARACTERS:
        return f"must have at most {MOST_CHARACTERS} characters"
    if any(character < " " or character == _DELETE for character in password):
        # chpasswd reads lines, PAM ends at NUL, terminals act on the others.
        return "must have no line breaks and no other control characters"
    try:
        size = len(password.encode())
    except UnicodeEncodeError:
        return "must be text that UTF-8 can hold"
    return f"must take at most {_MOST_BYTES} bytes in UTF-8" if size > _MOST_BYTES else None


class OnFailure(StrEnum):
    """What becomes of a change that fails on one host."""

    REVERT = "revert"
    """All hosts get back the password that they had."""
    HOLD = "hold"
    """Both passwords stay stored, and the operation asks what to do."""


class Proof(StrEnum):
    """What a host was asked whether a password is the account's."""

    SSH = "ssh"
    """A new login over SSH with nothing but the password."""
    PAM = "pam"
    """`su` to the account, by an unprivileged user of the host: where sshd takes no password."""
    HASH = "hash"
    """Its stored hash: where neither of the others lets anybody in."""


class Held(StrEnum):
    """Which password of its account a host has."""

    NEW = "new"
    FORMER = "former"
    UNKNOWN = "unknown"


class HostWork(StrEnum):
    """Where a host stands in a change of passwords."""

    WAITING = "waiting"
    PROVEN = "proven"
    FAILED = "failed"
    PUT_BACK = "put back"
    SKIPPED = "skipped"
    LEFT_OUT = "left out"


class PasswordRotationInput(Contract):
    """Change the password that an account has on the hosts of a cluster.

    Attributes:
        account: whose password.
        host: only this one's, where the setting `password.hosts.may.differ` allows that.
        secret: id of the new password, which was stored for this change; None: the one that is
            staged, or a random one if none is.
        leave_out: hosts that are not touched and keep what they have: those that are down or being
            re-installed must be named. They are brought up to date when they are back.
        on_failure: None: what the setting `password.rotation.on.failure` says.
        accept_unknown: go on although the password that a host has is not known, or was changed by
            somebody else: it can't be put back there.
        accepted: the request that the API has stored before it started this; None: somebody else
            has started it.
    """

    cluster: Name
    account: UserName = DEFAULT_ACCOUNT
    host: Name | None = None
    secret: str | None = None
    leave_out: tuple[Name, ...] = ()
    reason: Reason = ""
    on_failure: OnFailure | None = None
    accept_unknown: StrictBool = False
    accepted: str | None = None


class HostRotation(Contract):
    """A host in a change of passwords.

    Attributes:
        held: which password it has, as far as that is known.
        proof: what that was proven by.
        reason: why it is skipped or left out; what has failed.
    """

    host: Name
    state: HostWork = HostWork.WAITING
    held: Held = Held.FORMER
    proof: Proof | None = None
    reason: str | None = None


class PasswordRotationStatus(Contract):
    """Answer of the query `status`.

    Attributes:
        version: number of the new password in its cluster; None: it is one host's own, or not
            stored yet.
        reverting: hosts get back what they had.
        commands: what can be run now, ready to paste.
    """

    cluster: Name
    account: str
    phase: Phase
    reason: str
    message: str
    since: datetime
    on_failure: OnFailure | None = None
    version: int | None = None
    reverting: bool = False
    hosts: tuple[HostRotation, ...] = ()
    commands: tuple[str, ...] = ()


class PasswordRotationView(PasswordRotationStatus):
    """The same with the workflow that says it."""

    workflow_id: str
    run_id: str


class PasswordRotationResult(Contract):
    """What every host has at the end. `promoted`: the new password is the cluster's; else all have
    what they had before, but for those that were skipped."""

    cluster: Name
    account: str
    promoted: bool
    version: int | None
    hosts: tuple[HostRotation, ...]


class StagedVersion(Contract):
    """Number of the password that the next change sets."""

    cluster: Name
    account: str
    version: int


class RetryInput(Contract):
    """Try the hosts that have failed again."""


class SkipHostInput(Contract):
    """Go on without a host that has failed: it is brought up to date when it can be."""

    host: Name
    reason: Annotated[str, StringConstraints(min_length=1, max_length=1000, pattern=r"^[^\x00]*$")]


class RevertInput(Contract):
    """Give all hosts back what they had."""


def operation_of(owner: Owner) -> str:
    """As the inventory names whose a staged password is."""
    return f"{owner.workflow_id}#{owner.first_run_id}"


def owner_of(operation: str) -> Owner:
    """The other way round."""
    workflow_id, _, first_run_id = operation.rpartition("#")
    return Owner(workflow_id=workflow_id, first_run_id=first_run_id)


# --- what activities take and give --------------------------------------------------------------


class PlanRotationInput(Contract):
    """Which hosts, of a PasswordRotationInput."""

    cluster: Name
    account: UserName
    host: Name | None
    leave_out: tuple[Name, ...] = ()


class RotationPlan(Contract):
    """Before anything is stored or changed.

    Attributes:
        left_out: on purpose; with what they are, in words.
        concurrency: hosts at a time.
    """

    zone: Name
    hosts: tuple[Name, ...]
    left_out: tuple[HostRotation, ...]
    on_failure: OnFailure
    concurrency: int


class AcquireHostsInput(Contract):
    """Who wants the lease `scope` of all these hosts, what for."""

    hosts: tuple[Name, ...]
    scope: LeaseScope
    owner: Owner
    purpose: str


class HeldHost(Contract):
    """A host under lease. `proof`: what proves a password there, once that is found out."""

    host: Name
    epoch: int
    proof: Proof | None = None


class HeldHosts(Contract):
    """Hosts, all under the same operation's lease of trust. `taken_over`: of an operation that has
    ended, whose activities may still be at work."""

    owner: Owner
    hosts: tuple[HeldHost, ...]
    taken_over: bool = False

    def leases(self) -> tuple[LeaseRef, ...]:
        """Of each of them."""
        return tuple(
            LeaseRef(host=one.host, scope=LeaseScope.TRUST, owner=self.owner, epoch=one.epoch)
            for one in self.hosts
        )

    def only(self, hosts: frozenset[str] | set[str]) -> "HeldHosts":
        """Those of that name."""
        kept = tuple(one for one in self.hosts if one.host in hosts)
        return HeldHosts(owner=self.owner, hosts=kept)


class StageRotationInput(Contract):
    """Have the new password stored, as this operation's, before anything is touched. `accepted`:
    the request that it was started for."""

    cluster: Name
    account: UserName
    host: Name | None
    secret: str | None
    owner: Owner
    accepted: str | None = None


class StagedPassword(Contract):
    """The new password. `fresh`: it was made for this change, and goes with it if nothing comes of
    it; else somebody has staged it."""

    secret: str
    version: int | None
    fresh: bool


class SweepInput(Contract):
    """Hosts on which `secret` is to be, or is not to be any more, the password of `account`."""

    cluster: Name
    account: UserName
    secret: str
    held: HeldHosts
    concurrency: Annotated[int, Field(ge=1)]
    accept_unknown: bool = False


class HostOutcome(Contract):
    """What came of one host. `problem`: None if it went well."""

    host: Name
    held: Held
    proof: Proof | None = None
    problem: str | None = None


class SweepResult(Contract):
    """Of each host."""

    hosts: tuple[HostOutcome, ...]


class EndRotationInput(Contract):
    """The end of a change. `skipped`: hosts that did not take part to its end, with why."""

    cluster: Name
    account: UserName
    host: Name | None
    staged: StagedPassword
    held: HeldHosts
    skipped: dict[Name, str] = Field(default_factory=dict)
    reason: str = ""


class Promoted(Contract):
    """`lacking`: hosts that came to the cluster meanwhile and do not have it; nothing was changed
    then."""

    lacking: tuple[Name, ...] = ()


# --- whether hosts agree ------------------------------------------------------------------------


class PasswordState(StrEnum):
    """What was seen of a host's password."""

    AGREES = "agrees"
    """It is the cluster's current one, or its own, where that is allowed."""
    STALE = "stale"
    """It is one that Hostler knows, but not the cluster's current one, or there is none yet."""
    DIFFERS = "differs"
    """It is none that Hostler knows: somebody else has changed it."""
    UNKNOWN = "unknown"
    """It could not be found out, or Hostler knows no password of the account."""


class HostPasswordReport(Contract):
    """A host's password, as it was last looked at.

    Attributes:
        version: which of the cluster's it is; None: none of them.
        reason: why it is so, as far as that is known.
    """

    host: Name
    account: str
    state: PasswordState
    version: int | None = None
    proof: Proof | None = None
    reason: str = ""
    checked_at: datetime | None = None


class PasswordVerificationInput(Contract):
    """Look at the hosts of a cluster; None: of all clusters that have a password."""

    cluster: Name | None = None


class PasswordVerificationResult(Contract):
    """How many hosts are in which state, and those that do not agree, at most 500. `accounts`:
    whose passwords were looked at; none if the cluster has no current password."""

    counts: dict[PasswordState, int]
    hosts: tuple[HostPasswordReport, ...]
    accounts: tuple[UserName, ...] = ()


class VerifyHostsInput(Contract):
    """Hosts to look at."""

    hosts: tuple[Name, ...]
    account: UserName


class VerifyHostsResult(Contract):
    """What was seen of each that is in service."""

    hosts: tuple[HostPasswordReport, ...]


class HostsOfAccount(Contract):
    """An account, and hosts whose clusters have a password of it."""

    account: UserName
    hosts: tuple[Name, ...]


class HostsToVerify(Contract):
    """By account and cluster, and how often the schedule is to look. `accounts`: of which there is
    a current password, if there are hosts in service or not."""

    found: tuple[HostsOfAccount, ...]
    every_s: int
    accounts: tuple[UserName, ...] = ()


class StaleHosts(Contract):
    """Hosts that are `Up` and have another password than their cluster, whose time has come."""

    hosts: tuple[Name, ...]


class BringUpInput(Contract):
    """Give these hosts their clusters' current passwords. `owner`: who takes their leases for
    that."""

    hosts: tuple[Name, ...]
    owner: Owner


class BringUpResult(Contract):
    """How many have it now, and what is in the way of others."""

    done: tuple[HostOutcome, ...]
    failed: tuple[HostOutcome, ...]
