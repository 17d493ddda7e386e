"""HostReinstallation: what starts it, what steers it, what it shows, what its activities take and
give."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StrictBool, StrictInt, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from contracts.addition import Fingerprint, Port
from contracts.base import Contract, Name, Reason, VmName
from contracts.evacuation import HostEnvironment
from contracts.hosts import HostFacts
from contracts.leases import LeaseRef
from contracts.maintenance import OnBlocker
from contracts.preflight import Finding
from contracts.removal import RemovalEffect
from contracts.states import Phase, ResourceState, TlsState
from contracts.steps import HostKeyResult

Word = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\x00]*$")]
Command = Annotated[tuple[Word, ...], Field(min_length=1, max_length=100)]


class ReinstallationChoices(Contract):
    """What can be chosen, whoever asks.

    Attributes:
        after_maintenance: take the host out of service first, by a HostMaintenance of the usual id;
            `on_blocker`, `max_parallel` and `queue` are passed on to that.
        host_is_down: it is known to be off, or to be another installation already: it is taken out
            as it is, if it is in service, and nothing is done on it. One that answers is refused.
        lose_vms: also if VMs are defined there that are shut off: they are gone with its disk.
        host_key_sha256: fingerprint of the new SSH host key, if it is known in advance.
        command: run on the host, as root, right before its trust is withdrawn: one that has it
            boot into an installer a minute later, say. It may run again if nobody knows its end.
        network_boot: by its BMC, it boots once from the network, when its trust was withdrawn.
        install_packages: install libvirt's daemon and QEMU where they are missing.
        return_vms: bring back what its last maintenance has moved.
        dry_run: only list what would be done; nothing changes.
    """

    reason: Reason = ""
    after_maintenance: StrictBool = False
    host_is_down: StrictBool = False
    lose_vms: StrictBool = False
    host_key_sha256: Fingerprint | None = None
    command: Command | None = None
    network_boot: StrictBool = False
    install_packages: StrictBool = False
    return_vms: StrictBool = False
    dry_run: StrictBool = False
    on_blocker: OnBlocker = OnBlocker.REFUSE
    max_parallel: Annotated[StrictInt, Field(ge=1, le=64)] | None = None
    queue: StrictBool = True

    @model_validator(mode="after")
    def _check(self) -> "ReinstallationChoices":
        if self.on_blocker is OnBlocker.KEEP:
            raise PydanticCustomError(
                "kept_vms",
                "on_blocker can't be keep: a host is re-installed with no VM active on it",
            )
        if self.host_is_down and self.command is not None:
            raise PydanticCustomError(
                "command_while_down", "a host that is down runs no command: not with host_is_down"
            )
        return self


class HostReinstallationInput(ReinstallationChoices):
    """Wait for `host` to come back as a new installation, and take it into service again under its
    name.

    Attributes:
        secret: id of the stored credential of the new installation; None: what is known for the
            host is tried.
    """

    host: Name
    secret: str | None = None


class WithdrawTrustInput(Contract):
    """From here on nothing is trusted any more that answers at the host's address. `environment`:
    what the old installation offered to VMs; None: that is not known."""

    lease: LeaseRef
    reason: str
    environment: HostEnvironment | None = None


class Trust(Contract):
    """What is known of a host whose trust was withdrawn.

    Attributes:
        former_sha256: fingerprint of the key that is not accepted any more; None: an earlier
            re-installation has pinned the new one already, `pinned_sha256`.
        secret: id of the credential that would log in.
        environment: what the old installation offered to VMs, if that was known.
        tls_again: what certificates it had, and gets again.
    """

    former_sha256: str | None
    pinned_sha256: str | None
    secret: str
    environment: HostEnvironment | None = None
    tls_again: TlsState = TlsState.NONE


class KeyTakenAway(Contract):
    """How it is known that Hostler's own key does not open the old installation any more."""

    proof: str


class SettleCredentialInput(Contract):
    """What is to log in to the new installation. `secret` None: the password that is known."""

    lease: LeaseRef
    secret: str | None


class SettledCredential(Contract):
    """`secret`: what logs in; `problem`: why it is not the one that was asked for."""

    secret: str
    problem: str = ""


class AwaitHostKeyInput(Contract):
    """Wait until an SSH server shows another key than these."""

    host: Name
    address: str
    ssh_port: Port
    unlike: tuple[str, ...]


class NewHostKey(Contract):
    """None: it has shown none within the time that it usually takes."""

    key: HostKeyResult | None


class PinHostKeyInput(Contract):
    """The key by which the host is known from now on."""

    lease: LeaseRef
    key: HostKeyResult


class RunCommandInput(Contract):
    """One run of the operator's command on the lease's host."""

    lease: LeaseRef
    command: Command
    attempt: int


class CommandOutcome(Contract):
    """How it has ended; `problem`: why not by itself. `output`: the directory on the host that has
    what it printed."""

    exit_status: int | None
    problem: str | None
    output: str


class ReturnHostInput(Contract):
    """The host goes back into service."""

    lease: LeaseRef
    reason: str


class AnswerReinstallationInput(Contract):
    """What an operator says, asked or in advance. Without anything: look again now.

    Attributes:
        host_key_sha256: this is the fingerprint of the new installation's SSH host key.
        secret: id of the stored credential that logs in there.
        install_packages: install libvirt's daemon and QEMU where they are missing.
        skip_command: go on although the command has failed.
        skip_network_boot: go on although it was not booted from the network; somebody does it.
        force: go on although networks or storage that it had before are missing.
    """

    host_key_sha256: Fingerprint | None = None
    secret: str | None = None
    install_packages: StrictBool = False
    skip_command: StrictBool = False
    skip_network_boot: StrictBool = False
    force: StrictBool = False


class Question(StrEnum):
    """What a HostReinstallation waits to be told."""

    HOST_KEY = "host key"
    """Whether the key that it shows is the host's own."""
    FINDINGS = "findings"
    """That what stands in the way is put right; it looks again by itself too."""
    COMMAND = "command"
    """Whether the command is tried again, or skipped."""
    NETWORK_BOOT = "network boot"
    """Whether it is booted from the network again, or somebody does that."""


class ReinstallationOutcome(StrEnum):
    """How a HostReinstallation ended."""

    PLANNED = "planned"
    REINSTALLED = "reinstalled"


class HostReinstallationResult(Contract):
    """What a completed HostReinstallation answers.

    Attributes:
        effects: what a dry run would do, or what was done.
        host_key_sha256: of the new installation; None after a dry run, as the facts.
        findings: of the last preflight: warnings.
        lost_vms: VMs that were defined on the old installation, or last seen there.
    """

    host: Name
    outcome: ReinstallationOutcome
    effects: tuple[RemovalEffect, ...]
    resource_state: ResourceState | None = None
    host_key_sha256: str | None = None
    facts: HostFacts | None = None
    findings: tuple[Finding, ...] = ()
    lost_vms: tuple[VmName, ...] = ()


class HostReinstallationStatus(Contract):
    """What the `status` query answers.

    Attributes:
        message: one sentence: what happens now, or what is wrong.
        since: its trust was withdrawn by then; None: it is not.
        final: it can't be taken back any more: a cancel has no effect.
        cancel_came_late: there was one.
        host_key_sha256: the key that the new installation shows.
        findings: of the last preflight.
        commands: what an operator can run next, ready to paste.
    """

    host: Name
    phase: Phase
    reason: str
    message: str
    question: Question | None = None
    since: datetime | None = None
    final: bool = False
    cancel_came_late: bool = False
    host_key_sha256: str | None = None
    findings: tuple[Finding, ...] = ()
    effects: tuple[RemovalEffect, ...] = ()
    commands: tuple[str, ...] = ()
