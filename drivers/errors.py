"""What drivers raise.

Unavailable
├── HostUnreachable         no TCP connection, or it broke
│   └── ConnectionRefused   the machine answers: it refuses the connection, or hangs up at once
│   └── LoginCutOff         it broke while passwords were tried
├── HostBusy                the change would break migrations off, or another one is under way
├── CallTimedOut            the system took longer than the deadline
├── BmcUnreachable          no answer from the BMC's address
├── BmcUnidentified         the BMC did not tell its GUID, which is known; nothing else was asked
└── PowerDriverFailed       a power driver's own means have failed: a program, a process
Failed
├── CommandFailed           a command on the host ended with another status than 0
├── HypervisorFailed        libvirt answered with an error
│   ├── VmNotFound          no such domain on that host
│   ├── MigrationRefused    the destination or the source would not start the migration
│   └── MigrationAborted    the job was aborted (by a cancel, or from outside)
├── HostKeyChanged          the host shows another SSH key than the pinned one
├── LoginRefused            user, password or key not accepted
│   └── AccountRefused      the BMC does not look at the password: locked, or not there
├── SudoRefused             the login is accepted, and may not do what root may
├── InsufficientPrivilege   the BMC's login may not do what was asked for
├── WrongBmc                another machine's BMC answers at that address
├── BmcCertificateRefused   the BMC's certificate is not one that is trusted
├── BmcCommandRejected      the BMC answered that it does not do this
├── PowerOutcomeUnknown     a BMC may have got a command, and has not answered
├── TlsRefused              what answers by TLS is not the host
├── DiskInTheWay            a file is where a disk is to be copied to
├── DiskInUse               a process has the disk open that is to be removed or renamed
└── FenceFailed             the fence is not in the state that was asked for
LeaseLost
└── EpochRefused            the host holds the epoch of a later operation
Conflict
└── GenerationRefused       the host was told something later about its closing
"""

from contracts.errors import Conflict, Failed, LeaseLost, Unavailable


class HostUnreachable(Unavailable):
    """The host did not answer, or the connection to it broke."""


class ConnectionRefused(HostUnreachable):
    """The machine is there; its sshd is not, or does not talk to us."""


class LoginCutOff(HostUnreachable):
    """The host may have refused passwords before: `details` has as many as it was shown (`tried`),
    none of which it has taken."""

    @property
    def tried(self) -> int:
        """As many."""
        return int(str(self.details["tried"]))


class HostBusy(Unavailable):
    """The change was not begun; it can be when the migrations, or another change, have ended."""


class RestartNeeded(Unavailable):
    """The change was not begun: it takes a restart of libvirtd, which was not allowed."""


class CallTimedOut(Unavailable):
    """The host answered no call within its deadline; the connection was closed."""


class BmcUnreachable(Unavailable):
    """The BMC did not answer at all: no session was opened."""


class BmcUnidentified(Unavailable):
    """It may be another BMC, or be too busy to say. `details` has the GUID `expected`."""


class PowerDriverFailed(Unavailable):
    """The driver itself could not do it. No command was sent."""


class CommandFailed(Failed):
    """`details` has `command` (its first word), `exit_status` and the end of `stderr`."""


class HypervisorFailed(Failed):
    """libvirt's own message, with its error code in `details["code"]`."""


class VmNotFound(HypervisorFailed):
    """The domain is not on that host."""


class MigrationRefused(HypervisorFailed):
    """The migration failed with the VM still running at the source; another destination may do."""


class MigrationAborted(HypervisorFailed):
    """The migration's job was aborted; the VM runs on at the source."""


class TlsRefused(Failed):
    """Its certificate is not one that the CA has signed for that address, or has expired."""


class HostKeyChanged(Failed):
    """`details` has both fingerprints, `pinned` and `shown`."""


class LoginRefused(Failed):
    """The host, or its BMC, is there and refuses the credential."""


class AccountRefused(LoginRefused):
    """Before it has looked at any password."""


class SudoRefused(Failed):
    """sudo wants a password or a terminal, does not know the user, or is not there. It is no
    LoginRefused: the credential is good. `details` has the `user`."""


class InsufficientPrivilege(Failed):
    """`details` has the level that was asked for (`privilege`), if one was."""


class WrongBmc(Failed):
    """`details` has both GUIDs, `expected` and `shown`."""


class BmcCertificateRefused(Failed):
    """Nothing was sent to it."""


class BmcCommandRejected(Failed):
    """`details` has the BMC's `code` (IPMI's completion code, HTTP's status), if it gave one."""


class PowerOutcomeUnknown(Failed):
    """Sending it again may do it twice: look first."""


class DiskInTheWay(Failed):
    """`details` has its `path`, and `owner`: the operation that has left it there, or None."""


class DiskInUse(Failed):
    """A QEMU that was told to end may need a moment: trying again can help."""

    retryable = True


class FenceFailed(Failed):
    """Asked through libvirt, the fence let through or refused what it should not."""


class EpochRefused(LeaseLost):
    """The host itself knows a later operation than the caller's."""


class GenerationRefused(Conflict):
    """The host itself was told to close or reopen by a later look into the inventory."""
