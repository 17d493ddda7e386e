"""The ports that activities are written against."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from contracts.evacuation import HostEnvironment
from contracts.host_status import Reach
from contracts.hosts import HostFacts, HostUsage
from contracts.passwords import Proof
from contracts.power import BmcPrivilege, PowerCommand, PowerState
from contracts.preflight import HostReport
from contracts.tls_check import TlsFacts
from contracts.vms import Vm


@dataclass(frozen=True)
class ClientCertificate:
    """A certificate to connect with, the CAs between it and the root behind it, and its key, in
    PEM."""

    certificate: str
    key: str = field(repr=False)


@dataclass(frozen=True)
class TlsLogin:
    """How to be let in by a host's libvirtd: with that, if it shows what `authorities` (PEM) have
    signed."""

    client: ClientCertificate
    authorities: str


@dataclass(frozen=True)
class HostAccess:
    """How to reach a host: address, pinned key, credential. Stays in the process that made it.

    Attributes:
        host_key: the pinned public key as one line of OpenSSH's format ("ssh-ed25519 AAAA...").
        password: the login password, or None.
        private_key: an OpenSSH private key in PEM, or None.
        own_key: that key is Hostler's own, which it takes off the host when it leaves.
        unprivileged: commands run as `user`, not as root by sudo.
        tls: how its libvirtd is reached by TLS; None: by its socket, through SSH.
    """

    name: str
    address: str
    port: int
    user: str
    host_key: str
    password: str | None = field(default=None, repr=False)
    private_key: str | None = field(default=None, repr=False)
    own_key: bool = False
    unprivileged: bool = False
    tls: TlsLogin | None = None


@dataclass(frozen=True)
class HostKey:
    """A host's public SSH key (`line`, OpenSSH's format) and its SHA256 fingerprint."""

    line: str
    sha256: str


@dataclass(frozen=True)
class CommandResult:
    """What a command on a host answered."""

    exit_status: int
    stdout: str
    stderr: str


class RemoteShell(Protocol):
    """Commands and files on a host. Connections are kept and reopened when they break."""

    async def scan_host_key(self, address: str, port: int) -> HostKey:
        """The key the host shows now, without logging in. Raises HostUnreachable."""

    async def run(
        self,
        access: HostAccess,
        command: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: float = 30.0,  # noqa: ASYNC109 - the remote command's own deadline
    ) -> CommandResult:
        """Run `command` (quoted word by word) as root, by sudo where another user logs in. Raises
        HostUnreachable, CallTimedOut, HostKeyChanged, LoginRefused, SudoRefused; a status other
        than 0 is an answer, not an error."""

    async def forget(self, host: str) -> None:
        """Close what is open to `host`, if anything."""

    async def close(self) -> None:
        """Close every connection."""


class LoginShell(RemoteShell, Protocol):
    """One that also proves credentials."""

    async def log_in(self, access: HostAccess) -> None:
        """A new connection with exactly that credential, of any user, closed at once. Raises what
        `run` raises, and LoginCutOff."""

    async def first_login(self, access: HostAccess, passwords: Sequence[str]) -> int | None:
        """Which of these passwords, and nothing else of `access`, gets in first on a new
        connection, closed at once; None: none does. Those before it were refused, those after it
        not tried. Raises what `run` raises, but for LoginRefused, and LoginCutOff."""


@dataclass(frozen=True)
class Capacity:
    """What a host could give to VMs, and what they take: MiB and virtual CPUs. `vm_uuids`: the VMs
    that are counted as taking it, those on their way in among them."""

    memory_mib: int
    cpus: int
    memory_used_mib: int
    cpus_used: int
    vm_uuids: frozenset[str]


@dataclass(frozen=True)
class MigrationProgress:
    """libvirt's job statistics of a running migration, reduced to what people look at.

    Attributes:
        rate_mib_s: of memory: while disks are copied, which comes first, libvirt tells none.
        remaining_mib: of memory, and of disks that are copied; 0 before QEMU has counted, too.
        dirty_rate_mib_s: what the guest writes anew; 0 until the first pass over its memory ends.
        iteration: which pass over the memory this is; 0 before the first.
        throttle_percent: CPU time that auto-converge takes from the guest.
        expected_s: seconds until the end if it goes on like this, or None: no end in sight.
    """

    percent: int
    rate_mib_s: float
    remaining_mib: float
    dirty_rate_mib_s: float = 0
    iteration: int = 0
    throttle_percent: int = 0
    elapsed_s: float = 0
    expected_s: float | None = None


@dataclass(frozen=True)
class MigrationOptions:
    """How to migrate.

    Attributes:
        uri_address: the destination's address for the streams of memory and disks.
        bandwidth_mib_s: upper bound of each stream, None for libvirt's default.
        auto_converge: take CPU time from a guest that writes faster than is copied.
        trust_shared_storage: migrate although libvirt can't see that source and destination have
            the same disks, and hold them coherent. Only for a VM whose disks are all copied or on
            storage that the operator has declared shared: anything else corrupts them.
        copy_disks: targets ("vda") of disks to copy; each must have been prepared (LocalDisks).
        tls: the source's libvirtd carries the commands (peer-to-peer), and they, the memory and the
            disks go by TLS, for which both hosts need certificates. It goes on without its caller.
    """

    uri_address: str
    bandwidth_mib_s: int | None = None
    auto_converge: bool = False
    trust_shared_storage: bool = False
    copy_disks: tuple[str, ...] = ()
    tls: bool = False


@dataclass(frozen=True)
class HostCpu:
    """A host's CPU as a guest's `<cpu>` (`xml`) would be expanded from it; `virt_type`: "kvm" or
    "qemu"."""

    architecture: str
    virt_type: str
    xml: str


@dataclass(frozen=True)
class DiskImage:
    """A disk of a VM that can be copied: a file without a backing file.

    Attributes:
        target: its name in the VM ("vda").
        format: "raw" or "qcow2".
        size_bytes: what the guest sees.
    """

    target: str
    path: str
    format: str
    size_bytes: int


class Hypervisor(Protocol):
    """A host's hypervisor. Every method may raise HostUnreachable, CallTimedOut,
    HypervisorFailed, HostKeyChanged, LoginRefused and SudoRefused."""

    async def facts(self, access: HostAccess) -> HostFacts:
        """Read what the host says about itself."""

    async def capacity(self, access: HostAccess) -> Capacity:
        """Memory and CPUs, and what active domains take of them (their maxima)."""

    async def usage(self, access: HostAccess) -> HostUsage:
        """Active VMs, and the maxima of what they take, in a single call: whether it answers."""

    async def list_vms(self, access: HostAccess) -> list[Vm]:
        """All active domains (running, paused, ...), in one snapshot, by name."""

    async def find_vm(self, access: HostAccess, uuid: str) -> Vm | None:
        """The domain with that UUID, active or only defined, or None."""

    async def defined_vms(self, access: HostAccess) -> list[str]:
        """Names of the domains that are defined persistently, active or not."""

    async def environment(self, access: HostAccess) -> HostEnvironment:
        """What the host offers to VMs beside memory and CPUs."""

    async def missing_files(self, access: HostAccess, paths: Collection[str]) -> frozenset[str]:
        """Which of the paths (POOL/VOLUME for a volume) do not exist on the host."""

    async def disks(self, access: HostAccess, uuid: str, paths: Collection[str]) -> list[DiskImage]:
        """The VM's disks that have any of `paths` (Vm.local_disks) in them, to be copied. Raises
        VmNotFound; HypervisorFailed, naming the disk, if one of them can't be copied."""

    async def cpu_incompatibility(self, access: HostAccess, vm: Vm) -> str | None:
        """Why the host's CPU can't run `vm`, by libvirt's compareHypervisorCPU; None: it can."""

    async def host_cpu(self, access: HostAccess) -> HostCpu | None:
        """The host's own CPU; None: libvirt does not know it well enough to compare it."""

    async def cpu_shortfall(self, access: HostAccess, cpu: HostCpu) -> str | None:
        """Why this host's CPU can't do all that `cpu` can; None: it can."""

    async def migrate(
        self,
        source: HostAccess,
        destination: HostAccess,
        uuid: str,
        options: MigrationOptions,
        on_progress: Callable[[MigrationProgress], None],
    ) -> None:
        """Live-migrate a domain, persistently defined at the destination afterwards and no longer
        at the source. Cancelling the awaiting task aborts the job and waits until libvirt has ended
        it. Raises VmNotFound, MigrationRefused, MigrationAborted."""

    async def follow_migration(
        self,
        source: HostAccess,
        uuid: str,
        on_progress: Callable[[MigrationProgress], None],
    ) -> None:
        """Watch a migration by TLS that runs already until it has ended, however: look where the
        VM is. A cancel aborts it, and waits for its end."""

    async def migration_progress(self, access: HostAccess, uuid: str) -> MigrationProgress | None:
        """Of the migration job that runs for the domain at this host, or None if none runs."""

    async def abort_migration(self, access: HostAccess, uuid: str) -> bool:
        """Abort a running migration job and wait for its end; False if there was none."""

    async def shut_down(self, access: HostAccess, uuid: str) -> None:
        """Ask the guest to power off (ACPI). Returns at once; look with `find_vm`."""

    async def start(self, access: HostAccess, uuid: str) -> None:
        """Start a defined domain that is shut off; an active one stays as it is."""

    async def suspend(self, access: HostAccess, uuid: str) -> None:
        """Pause a domain whose migration runs, so that it can finish: it runs on at the destination
        then, or at the source if the migration fails. Refuses (HypervisorFailed) any other."""

    async def pause(self, access: HostAccess, uuid: str) -> None:
        """Pause a domain that runs, whatever it does; any other stays as it is."""

    async def resume(self, access: HostAccess, uuid: str) -> None:
        """Let a paused domain run."""

    async def discard_migrated(self, access: HostAccess, uuid: str) -> None:
        """Remove a paused leftover whose VM runs at the destination: end its QEMU, undefine it.
        Refuses (HypervisorFailed) any domain that is not paused by a migration or shut off."""

    async def start_probe(self, access: HostAccess) -> str | None:
        """Try to start a tiny paused domain through libvirt. Returns the refusal's text, or None
        if it started (it is removed again at once)."""

    async def forget(self, host: str) -> None:
        """Close what is open to `host`, if anything."""

    async def close(self) -> None:
        """Close every connection."""


# What the fence says to those it refuses; a refusal without either came from something else.
FENCED = "host is fenced by "
CLOSED = "host is closed: "


def refused_as_closed(refusal: str) -> bool:
    """Whether it was refused because the host is closed, and so not by the fence of an operation,
    which goes first and may have any id."""
    return CLOSED in refusal and FENCED not in refusal


@dataclass(frozen=True)
class FenceState:
    """The fence as the host itself has it: the operation it stands for, or None; its epoch; why the
    host is closed, or None."""

    operation: str | None
    epoch: int
    closed: str | None = None


class Fence(Protocol):
    """What keeps VMs from starting on a host, whoever asks. `epoch` is the lease's: the host
    refuses one lower than it has seen (EpochRefused). `generation` is that of the inventory's
    answer whether the host is to be closed (GenerationRefused)."""

    async def install(self, access: HostAccess, epoch: int) -> bool:
        """Put the hook in place; True if it was missing or different (libvirtd must then be
        restarted once before it calls it)."""

    async def refresh(self, access: HostAccess) -> bool:
        """The same on a host on which an operation has installed it, whoever works there now; fails
        (CommandFailed) on any other, and so do `close` and `reopen`: it may have been taken off."""

    async def put_up(self, access: HostAccess, operation: str, epoch: int) -> None:
        """Refuse starts and incoming migrations from now on, across reboots."""

    async def take_down(self, access: HostAccess, epoch: int) -> None:
        """Allow them again."""

    async def close(self, access: HostAccess, because: str, generation: int) -> None:
        """Refuse, from now on and across reboots, VMs that are not there yet."""

    async def reopen(self, access: HostAccess, generation: int) -> None:
        """Allow them again."""

    async def read(self, access: HostAccess) -> FenceState:
        """The fence as it is now."""

    async def restart_libvirtd(self, access: HostAccess) -> None:
        """Restart the daemon (VMs run on) and wait until it answers."""


class Neighbours(Protocol):
    """What hosts say of each other."""

    async def reach(self, peer: HostAccess, address: str, port: int, seconds: int) -> Reach:
        """What comes of a TCP connection from `peer`, which has so many seconds. Raises
        HostUnreachable, CallTimedOut, CommandFailed, HostKeyChanged, LoginRefused, SudoRefused: of
        `peer`."""


class HostCleaner(Protocol):
    """What Hostler has put on a host under the name `host`, and its removal. `epoch` is the lease's
    (see Fence; EpochRefused). Every method may be called many times, may be killed at any moment
    and called again, and raises CommandFailed if something stays."""

    async def look(self, access: HostAccess, host: str) -> list[str]:
        """What of Hostler's is there, one line each ("file /etc/hostler/fence"); those of its key
        begin with "key "."""

    async def remove_files(
        self, access: HostAccess, epoch: int, *, spare_jobs: bool = False
    ) -> list[str]:
        """Remove all but the key that logs in; what was there. With `spare_jobs`, jobs that run go
        on and stay, one line each ("running UNIT")."""

    async def remove_key(
        self, access: HostAccess, host: str, epoch: int, *, user: str | None = None
    ) -> list[str]:
        """Remove Hostler's own key, which comes last; what was there. `user`: whom it lets in, if
        that is another one than logs in now."""


@dataclass(frozen=True)
class CertificateFiles:
    """What lies beside a key, in PEM: its certificate with the CAs between it and the root, all CAs
    that are trusted, their revocation lists."""

    certificate: str
    authorities: str
    crls: str


@dataclass(frozen=True)
class TlsAnswer:
    """How a host's libvirtd answers a client: the serial (hexadecimal) of its own certificate, and
    whether it lets that client in."""

    serial: str
    lets_in: bool


class HostCertificates(Protocol):
    """Sets of keys and certificates on a host: libvirt's, and QEMU's. Every change carries the
    epoch of the lease `trust` and may be called many times; it raises CommandFailed,
    EpochRefused.

    What may take a restart of libvirtd is told whether it may do that (`restart`). If not, it
    raises RestartNeeded before it changes anything, unless libvirtd does not answer anyway.
    """

    async def prepare(
        self, access: HostAccess, name: str, epoch: int, *, key_bits: int, restart: bool = True
    ) -> tuple[str, str]:
        """Make the keys of a new set, there; signing requests (PEM) of libvirt's and QEMU's. Puts
        back first what an operation has switched that was ended before it was proven."""

    async def place(
        self,
        access: HostAccess,
        name: str,
        epoch: int,
        *,
        libvirt: CertificateFiles,
        qemu: CertificateFiles,
    ) -> None:
        """Write the certificates beside their keys, and check that they belong together."""

    async def switch(
        self,
        access: HostAccess,
        name: str,
        epoch: int,
        *,
        allowed: Sequence[str],
        restart: bool = True,
    ) -> None:
        """Have libvirt and QEMU go by the set from now on, libvirt by TLS for clients of these
        names alone (`tls_allowed_dn_list`), and not by plain TCP. VMs run on. Raises
        HostBusy while VMs migrate, which a restart of libvirtd would break off."""

    async def restore(
        self, access: HostAccess, name: str, epoch: int, *, restart: bool = True
    ) -> bool:
        """What counted before the switch counts again, and the set is deleted. True if libvirtd
        listens by certificates of Hostler's again that it had left, until that is confirmed. Raises
        HostBusy while VMs migrate, if libvirtd has to be restarted for that."""

    async def confirm(self, access: HostAccess, epoch: int) -> None:
        """What was restored has been proven from outside."""

    async def finish(self, access: HostAccess, name: str, epoch: int) -> None:
        """The switch stays: delete what it has replaced."""

    async def update_crls(self, access: HostAccess, epoch: int, crls: str) -> None:
        """Have libvirt and QEMU go by these revocation lists (PEM) from now on. libvirtd is not
        restarted, and what is connected stays so. If it does not take them, the former ones count.
        """

    async def update_trust(
        self, access: HostAccess, epoch: int, *, libvirt: str, qemu: str
    ) -> None:
        """Have libvirt and QEMU trust these CAs (PEM) from now on, and no others; they have to
        have signed its own certificates. libvirtd is not restarted. If it does not take
        them, or the host itself any more, the former ones count."""

    async def examine(self, access: HostAccess) -> TlsFacts:
        """What is so of all that, and of libvirtd; changes nothing."""

    async def look(self, access: HostAccess) -> list[str]:
        """What of all that is there, one line each."""

    async def remove(self, access: HostAccess) -> list[str]:
        """Take all of it off; what was there. What others had put in its places is there again, and
        libvirt listens as it did with that. Raises HostBusy while VMs migrate, if libvirtd has to
        be restarted for that."""

    async def secure(self, access: HostAccess, epoch: int, *, restart: bool = True) -> None:
        """Have libvirt refuse migrations that are not by TLS, in and out. VMs run on. Raises
        HostBusy while VMs migrate."""

    async def ask(
        self, access: HostAccess, authorities: str, client: ClientCertificate | None = None
    ) -> TlsAnswer:
        """Connect from here, without a certificate or with that, trusting `authorities` (PEM)
        alone. Raises HostUnreachable; TlsRefused if what answers is not this host's."""


class LocalDisks(Protocol):
    """Files on hosts for disks that are copied with their VM. A destination's half-made copy is
    marked with its owner, the operation that copies. Every method may be called many times, may be
    killed at any moment and called again, and raises CommandFailed if the host can't do it."""

    async def prepare(self, destination: HostAccess, image: DiskImage, owner: str) -> None:
        """Make an empty disk of that path, format and size. Raises DiskInTheWay if there is a file
        that was not prepared by `owner`."""

    async def is_copy(self, destination: HostAccess, path: str, owner: str) -> bool:
        """Whether that disk was prepared by `owner`, and is not kept yet."""

    async def keep(self, destination: HostAccess, path: str) -> None:
        """The VM runs there: from now on the disk is its own, and nobody discards it."""

    async def discard(self, destination: HostAccess, path: str, owner: str) -> None:
        """Remove a copy that `owner` has prepared, and nothing else. Raises DiskInUse."""

    async def retire(self, source: HostAccess, path: str) -> None:
        """Rename the old copy of a disk that has moved to PATH.moved; one of an earlier move is
        overwritten. Raises DiskInUse."""


@dataclass(frozen=True)
class Job:
    """A shell script to run on a host. `name`: letters, digits, `-` and `_`; the same name never
    runs twice on a host. `environment`: one line each. `timeout`: seconds, then it is ended."""

    name: str
    script: str
    environment: Mapping[str, str]
    timeout: int


@dataclass(frozen=True)
class JobState:
    """How a job stands: `started` on the host or unknown there; once it has ended, its status, or
    why it has none."""

    started: bool
    exit_status: int | None = None
    problem: str | None = None

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self.exit_status is not None or self.problem is not None


@dataclass(frozen=True)
class Boot:
    """Which boot of a host this is, and whether everything that belongs to it has been started."""

    boot_id: str
    complete: bool


class ServiceManager(Protocol):
    """What runs on a host without us: jobs, which outlive the connection and whoever has started
    them, and the boot itself. Every method may raise HostUnreachable, CallTimedOut, CommandFailed,
    HostKeyChanged, LoginRefused and SudoRefused."""

    async def start_job(self, access: HostAccess, job: Job) -> None:
        """Start it, unless a job of that name runs or ran there. May be called many times."""

    async def look_at_job(self, access: HostAccess, name: str) -> JobState:
        """How it stands."""

    async def job_output(self, access: HostAccess, name: str, most: int) -> str:
        """The end of what it has printed, `most` bytes at the most."""

    async def boot(self, access: HostAccess) -> Boot:
        """The boot that the host is in."""

    async def reboot(self, access: HostAccess, boot_id: str) -> None:
        """Ask for a reboot in good order, if the host is still in that boot. Returns at once."""


class HostInspector(Protocol):
    """Looks at a host that is not in service. Changes nothing. Every method may raise
    HostUnreachable, CallTimedOut, HostKeyChanged, LoginRefused and SudoRefused."""

    async def log_in(self, access: HostAccess) -> None:
        """Prove the credential."""

    async def inspect(self, access: HostAccess) -> HostReport:
        """Everything that the host itself can tell. Raises CommandFailed if that can't be asked, or
        its answer can't be read."""

    async def forget(self, host: str) -> None:
        """Close what is open to `host`, if anything."""


class OwnKeys(Protocol):
    """Hostler's own key on a host: one per host, told by its comment `hostler:NAME`. `epoch` is the
    lease's (EpochRefused). Every method may be called many times."""

    def create(self) -> str:
        """A new private key, OpenSSH's PEM."""

    async def install(self, access: HostAccess, private_key: str, epoch: int) -> None:
        """Let its public half in, in the place of any other own key. Raises CommandFailed."""

    async def log_in(self, access: HostAccess, private_key: str) -> None:
        """Prove it by a new login with nothing else. Raises LoginRefused."""

    async def remove(self, access: HostAccess, epoch: int) -> None:
        """Let no own key in any more; all others stay as they are. Raises CommandFailed."""


@dataclass(frozen=True)
class AccountReport:
    """What a host tells of an account before its password is changed.

    Attributes:
        problems: why it can't be changed there, or not to that one, in words; the host's own rules
            are among them, where it has a program that tells them.
        locked: nobody gets in with any password now.
        hash: the method of the present one ("yescrypt", "sha512crypt", ...), or None.
        compares: the host can say which password its hash is made of (HostAccounts.match).
        proofs: what may prove a login, the best first, as the host's configuration tells it; where
            it does not tell, all.
        refused: logins that were refused lately, of which the host keeps count to lock the account.
        matches: which of the passwords it was asked about the account has, as HostAccounts.match;
            only where it compares.
    """

    problems: tuple[str, ...]
    locked: bool
    hash: str | None
    compares: bool
    proofs: tuple[Proof, ...]
    refused: int
    matches: int | None = None


class HostAccounts(Protocol):
    """Passwords of accounts on hosts. The way in is `access`'s key: a password login only proves
    one. No error's text has a password in it.

    Every method may raise what RemoteShell.run raises; passwords have no line breaks.
    """

    async def look(
        self,
        access: HostAccess,
        account: str,
        new_password: str,
        passwords: Sequence[str] = (),
    ) -> AccountReport:
        """What is there, what the host's rules say to `new_password`, and which of `passwords` it
        has; nothing changes. Raises CommandFailed."""

    async def match(self, access: HostAccess, account: str, passwords: Sequence[str]) -> int | None:
        """Which of them the account has, by the stored hash alone: no login, so nothing is counted
        against the account. None: none of them. Raises CommandFailed."""

    async def takes(self, access: HostAccess, account: str, password: str, proof: Proof) -> bool:
        """Whether a new login gets in with it. A refused one counts against the account, but for
        Proof.HASH. Raises CommandFailed, LoginCutOff."""

    async def first_taken(
        self, access: HostAccess, account: str, passwords: Sequence[str]
    ) -> int | None:
        """Which of them gets in first by Proof.SSH, tried one after another on one new connection;
        None: none of them. Each one before it was refused, and counts against the account. Raises
        LoginCutOff."""

    async def set(self, access: HostAccess, account: str, password: str, epoch: int) -> None:
        """Set it. Raises CommandFailed, with what the host said; EpochRefused."""


@dataclass(frozen=True)
class BmcAccess:
    """How to reach the BMC of a host. Stays in the process that made it.

    Attributes:
        name: the host's.
        address: an address or a name.
        port: None: the driver's own (IPMI 623, Redfish 443).
        privilege: the level that sessions ask for.
        cipher_suite: of IPMI; None: the driver's choice. Not used by Redfish.
        guid: whose BMC it must be (BmcReport.guid), or None: whoever answers there.
        certificate: the certificates, in PEM, of which one must have signed the BMC's (or be it);
            None: those that this machine trusts. Redfish alone.
        options: what the settings `outofbandmanagement.DRIVER.*` say, without that prefix; what is
            missing has the driver's default. ipmitool: `interface` (lanplus), `path`
            (/usr/bin/ipmitool), `retries` (1).
    """

    name: str
    address: str
    user: str
    password: str = field(repr=False)
    port: int | None = None
    privilege: BmcPrivilege = BmcPrivilege.ADMINISTRATOR
    cipher_suite: int | None = 3
    guid: str | None = None
    certificate: str | None = None
    options: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True)
class BmcReport:
    """What a BMC tells of itself after a login.

    Attributes:
        guid: what tells this BMC from any other: its system's UUID, in lower case with hyphens, or
            None if it has none.
        privilege: what the login may do there; None: it does not tell.
        state: `On`, `Off`, or `Unknown` (it has answered, but with neither).
    """

    guid: str | None
    privilege: BmcPrivilege | None
    state: PowerState


class PowerDriver(Protocol):
    """Speaks with BMCs. Sessions are kept, and opened again when they break. Any number of calls
    may run at once: one BMC that is mute, slow or out of its mind delays no other.

    `timeout` is the deadline of the whole call in seconds, login included. Every method but
    `validate`, `forget` and `close` may raise

        InvalidInput            what `validate` says
        BmcUnreachable          no answer from that address, or its name is unknown
        CallTimedOut            it answers, but not within the deadline
        LoginRefused            user or password not accepted. Never tried again here: BMCs lock
                                accounts
        InsufficientPrivilege   the login may not do this
        WrongBmc                another GUID than `access.guid` was shown; nothing was read or sent
        BmcUnidentified         `access.guid` is known, and none was shown; nothing was read or sent
        BmcCertificateRefused   of Redfish: the BMC's certificate is not trusted; nothing was sent
        BmcCommandRejected      the BMC answered that it does not do this
        PowerDriverFailed       what the driver works with has failed (a program is missing)

    No error's text, and nothing that is logged, has the password in it.
    """

    def validate(self, access: BmcAccess) -> None:
        """Look at the form of it, without any contact. Raises InvalidInput, naming the field."""

    async def examine(self, access: BmcAccess, *, timeout: float) -> BmcReport:  # noqa: ASYNC109
        """Log in anew, whatever session is kept, and look: the proof of a configuration."""

    async def power_state(self, access: BmcAccess, *, timeout: float) -> PowerState:  # noqa: ASYNC109
        """`On` or `Off`; `Unknown` if the BMC has answered with neither."""

    async def set_power(
        self,
        access: BmcAccess,
        command: PowerCommand,
        *,
        timeout: float,  # noqa: ASYNC109
    ) -> None:
        """Send `command` once, and return when the BMC has accepted it: no proof that it has done
        it. BmcUnreachable, CallTimedOut, BmcUnidentified and PowerDriverFailed say that it was not
        sent: it is sent again then. The others in the list above say that the BMC does not do it.
        PowerOutcomeUnknown, and whatever else is raised, says that the BMC may have got it: it is
        not sent again."""

    async def change_password(
        self,
        access: BmcAccess,
        new_password: str,
        *,
        timeout: float,  # noqa: ASYNC109
    ) -> None:
        """Give `access.user` another password on the BMC, and prove it by a new login. May be
        called again after any error: done if the new one logs in already. Raises InvalidInput if
        the protocol can't have such a password (IPMI: 16 bytes at most, no NUL)."""

    async def forget(self, host: str) -> None:
        """End what is kept for the BMC of `host`, if anything."""

    async def close(self) -> None:
        """End all sessions, and what the driver has running."""


@runtime_checkable
class SessionKeeper(Protocol):
    """What a PowerDriver may be able to do besides, whose sessions or connections are kept."""

    async def power_state_and_guid(
        self,
        access: BmcAccess,
        *,
        timeout: float,  # noqa: ASYNC109
    ) -> tuple[PowerState, str | None]:
        """As `power_state`, with BmcReport's GUID: of a BMC that has shown none so far, and may be
        another one by now."""


@runtime_checkable
class NetworkBooter(Protocol):
    """What a PowerDriver may be able to do besides. All raise what its other methods raise."""

    async def check_network_boot(self, access: BmcAccess, *, timeout: float) -> None:  # noqa: ASYNC109
        """Look whether the BMC can do it; nothing changes. Raises BmcCommandRejected."""

    async def set_network_boot(self, access: BmcAccess, *, timeout: float) -> None:  # noqa: ASYNC109
        """The next boot, and no other, is from the network; proven by reading it back. It boots
        when somebody has it boot: BMCs may forget it after a minute (IPMI 2.0, 28.13), or never
        (Redfish). May be called many times. Raises BmcCommandRejected: also if the BMC says yes,
        and does not."""

    async def clear_network_boot(self, access: BmcAccess, *, timeout: float) -> None:  # noqa: ASYNC109
        """Take back what `set_network_boot` has set, if the BMC still shows it; proven by reading
        it back. What else it is to boot from stays. May be called many times. Raises
        BmcCommandRejected as that does."""


class KeyService(Protocol):
    """Wraps master keys with a key that it keeps to itself. `origin` says which one it is."""

    origin: str

    async def wrap(self, secret: str) -> str:
        """What `unwrap` makes `secret` of, in one word. Raises Unavailable, Failed."""

    async def unwrap(self, wrapped: str) -> str:
        """The secret. Raises Unavailable, Failed (made by another key, or refused)."""
