"""Commands on hosts, and tunnels to their UNIX sockets, through asyncssh.

The only thing that is trusted is what HostAccess holds: its pinned host key and its one credential.
Known-hosts files, configuration, keys and agents of the account that Hostler runs under play no
part, and neither do host certificates.

All that is done on a host is done as root: by sudo, where another user logs in.
"""

import asyncio
import dataclasses
import importlib.resources
import math
import shlex
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import asyncssh

from contracts.errors import Failed
from drivers.errors import (
    CallTimedOut,
    ConnectionRefused,
    HostKeyChanged,
    HostUnreachable,
    LoginCutOff,
    LoginRefused,
    SudoRefused,
)
from drivers.pool import Pool
from drivers.protocols import CommandResult, HostAccess, HostKey
from drivers.tunnels import LocalTunnel

# What is asked for first when a host shows its key. DSA and SHA-1 signatures stay out.
_HOST_KEY_ALGORITHMS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
# Commands at a time on one connection. sshd takes 10 sessions by default (MaxSessions), and may
# still count one that was just closed when the next one comes.
_SESSIONS = 5
_ROOT = "root"
# -u, since sudoers may say that it is somebody else who commands are run as by default.
_SUDO = ("sudo", "-n", "-u", _ROOT, "--")
# What sudo itself, or a shell that does not find it, ends with. Commands may do that too.
_SUDO_FAILED = frozenset({1, 127})
_TOO_MANY = "too many authentication failures"  # sshd's words, which has one code for all
_NEW_KEY_REMEDY = (
    "Compare it with the host's own (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub on its "
    "console). If the host was re-installed on purpose, accept the new key; if not, somebody may "
    "be in between."
)


class AsyncSshShell:
    """RemoteShell with asyncssh.

    Args:
        connect_timeout: seconds for TCP connection, key exchange and login together.
        keepalive_interval: seconds between keepalives on an idle connection.
        keepalive_count: how many of them may go unanswered before the connection counts as dead.
    """

    def __init__(
        self,
        *,
        connect_timeout: float = 10.0,
        keepalive_interval: float = 5.0,
        keepalive_count: int = 3,
    ) -> None:
        self._connect_timeout = connect_timeout
        self._keepalive_interval = keepalive_interval
        self._keepalive_count = keepalive_count
        self._connections = Pool(self._open)
        self._relays: dict[str, _Relays] = {}

    async def scan_host_key(self, address: str, port: int) -> HostKey:
        """The key the host shows now, without logging in. Raises HostUnreachable."""
        try:
            async with asyncio.timeout(self._connect_timeout):
                key = await asyncssh.get_server_host_key(
                    address, port, server_host_key_algs=_HOST_KEY_ALGORITHMS, config=None
                )
        except (OSError, asyncssh.Error) as error:
            raise _unreachable(error)(
                f"{address} port {port} shows no SSH host key: {_words(error)}."
            ) from error
        if key is None:
            raise HostUnreachable(f"{address} port {port} shows no SSH host key.")
        return HostKey(line=_line(key), sha256=key.get_fingerprint("sha256"))

    async def run(
        self,
        access: HostAccess,
        command: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: float = 30.0,  # noqa: ASYNC109 - the remote command's own deadline
    ) -> CommandResult:
        """Run `command` (quoted word by word) as root. A status other than 0 is an answer, not an
        error.

        After the deadline the channel is closed; the connection stays, since a migration may run
        through it: keepalives find out whether it is dead. On the host, `timeout` ends the command:
        sshd takes no signals for a command of root's, sudo can't pass every signal on to one, and
        the network may be gone.
        """
        limit = ["timeout", "--kill-after=5", str(math.ceil(timeout) + 1)]
        line = _as_root(access, [*limit, *command])
        try:
            async with (
                asyncio.timeout(timeout),
                self._connections.use(access) as connection,
                connection.sessions,
            ):
                result = await _run(connection.ssh, line, stdin)
                if result.exit_status in _SUDO_FAILED:
                    await _require_root(access, connection.ssh)
                return result
        except TimeoutError as error:
            raise CallTimedOut(
                f"{access.name} did not finish {command[0]!r} within {timeout:g} s."
            ) from error
        except (OSError, asyncssh.Error) as error:
            raise HostUnreachable(
                f"The connection to {access.name} broke during {command[0]!r}: {_words(error)}."
            ) from error

    async def open_unix_tunnel(self, access: HostAccess, remote_path: str) -> LocalTunnel:
        """A tunnel to a UNIX socket of the host, for one local connection. The caller closes it.

        For another user than root, who may not connect there, it is libvirtd's own socket alone.
        Raises HostUnreachable (also when nothing listens there), CallTimedOut, HostKeyChanged,
        LoginRefused, SudoRefused.
        """
        stack = AsyncExitStack()
        connection = await stack.enter_async_context(self._for_tunnel(access))
        tunnel = LocalTunnel(lambda: connection.dead, stack)
        try:
            async with asyncio.timeout(self._connect_timeout):
                reader, writer = await _streams(access, connection.ssh, remote_path)
                await tunnel.open(reader, writer, hang_up=writer.close)
        except TimeoutError as error:
            await tunnel.close()
            raise CallTimedOut(
                f"{access.name} did not open {remote_path} within {self._connect_timeout:g} s."
            ) from error
        except (OSError, asyncssh.Error) as error:
            await tunnel.close()
            raise HostUnreachable(
                f"{access.name} does not let us in at {remote_path}: {_words(error)}.",
                remedy="See whether libvirtd runs there: systemctl status libvirtd.socket.",
            ) from error
        except BaseException:
            await tunnel.close()
            raise
        return tunnel

    async def log_in(self, access: HostAccess) -> None:
        """A new connection with exactly that credential, of any user, closed at once. Raises
        LoginRefused, HostUnreachable (LoginCutOff), HostKeyChanged."""
        await self._log_in(access, _Client(_passwords(access)))

    async def first_login(self, access: HostAccess, passwords: Sequence[str]) -> int | None:
        """Which of these passwords, and nothing else of `access`, gets in first on a new
        connection, closed at once; None: none does. Those before it were refused, those after it
        not tried. Raises HostUnreachable (LoginCutOff), HostKeyChanged."""
        without = dataclasses.replace(access, password=None, private_key=None, own_key=False)
        begin = 0
        while begin < len(passwords):
            client = _Client(passwords[begin:])
            try:
                await self._log_in(without, client, refused=begin)
                return begin + client.tried - 1
            except LoginRefused:
                if client.tried == 0:
                    return None
            # sshd ends a connection after so many refusals (MaxAuthTries).
            begin += client.tried
        return None

    async def _log_in(self, access: HostAccess, client: "_Client", refused: int = 0) -> None:
        try:
            await (await self._connect(access, client)).close()
        except HostUnreachable as error:
            if refused + client.tried == 0:
                raise
            raise LoginCutOff(
                error.message, remedy=error.remedy, details={"tried": refused + client.tried}
            ) from error

    async def forget(self, host: str) -> None:
        """Close what is open to `host`, if anything."""
        await self._connections.forget(host)
        if host in self._relays:
            for connection in list(self._relays.pop(host).connections):
                await connection.close()

    async def close(self) -> None:
        """Close every connection."""
        await self._connections.close()
        for host in list(self._relays):
            await self.forget(host)

    @asynccontextmanager
    async def _for_tunnel(self, access: HostAccess) -> AsyncIterator["_SshConnection"]:
        """The connection that all share. But where a command stands in for a forwarded socket, it
        counts as a session, of which sshd lets a connection have few: one of its own."""
        if not _needs_sudo(access):
            async with self._connections.use(access) as connection:
                yield connection
            return
        relays = self._relays.setdefault(access.name, _Relays())
        async with relays.opening:
            connection = await self._open(access)
        relays.connections.add(connection)
        try:
            yield connection
        finally:
            relays.connections.discard(connection)
            await connection.close()

    async def _open(self, access: HostAccess) -> "_SshConnection":
        return await self._connect(access, _Client(_passwords(access)))

    async def _connect(self, access: HostAccess, client: "_Client") -> "_SshConnection":
        pinned = _pinned_key(access)
        try:
            async with asyncio.timeout(self._connect_timeout):
                ssh = await asyncssh.connect(
                    access.address,
                    access.port,
                    client_factory=lambda: client,
                    username=access.user,
                    known_hosts=([pinned], [], []),
                    client_keys=_client_keys(access),
                    preferred_auth=["publickey"]
                    if access.private_key is not None
                    else ["password", "keyboard-interactive"],
                    disable_trivial_auth=True,
                    agent_path=None,
                    config=None,
                    gss_host=None,
                    x509_trusted_certs=None,
                    keepalive_interval=self._keepalive_interval,
                    keepalive_count_max=self._keepalive_count,
                )
        except asyncssh.PermissionDenied as error:
            raise _refused(access, error) from error
        except asyncssh.HostKeyNotVerifiable as error:
            raise _key_changed(access, pinned, client.shown) from error
        except (asyncssh.KeyExchangeFailed, asyncssh.ConnectionLost, ConnectionResetError) as error:
            # Either side may hang up first when the host has no key of the pinned one's kind.
            shown = await self.scan_host_key(access.address, access.port)
            if shown.line.split()[0] != _line(pinned).split()[0]:
                raise _key_changed(
                    access, pinned, asyncssh.import_public_key(shown.line)
                ) from error
            raise ConnectionRefused(f"{access.name} hung up: {_words(error)}.") from error
        except (OSError, asyncssh.Error) as error:
            if isinstance(error, asyncssh.ProtocolError) and _TOO_MANY in error.reason.lower():
                raise _refused(access, error) from error
            raise _unreachable(error)(
                f"{access.name} ({access.address} port {access.port}) does not answer: "
                f"{_words(error)}.",
                remedy="See whether it is up, and whether this machine reaches its SSH port.",
            ) from error
        return _SshConnection(ssh)


class _SshConnection:
    """A connection for the pool."""

    def __init__(self, ssh: asyncssh.SSHClientConnection) -> None:
        self.ssh = ssh
        self.sessions = asyncio.Semaphore(_SESSIONS)

    @property
    def dead(self) -> bool:
        return self.ssh.is_closed()

    async def close(self) -> None:
        self.ssh.abort()


class _Relays:
    """A host's connections that have one tunnel each. They are opened one after another: of many at
    a time, sshd turns some away (MaxStartups)."""

    def __init__(self) -> None:
        self.opening = asyncio.Lock()
        self.connections: set[_SshConnection] = set()


class _Client(asyncssh.SSHClient):
    """Has passwords, which are tried one after another, `tried` so far; remembers a host's key that
    is not the pinned one."""

    def __init__(self, passwords: Sequence[str] = ()) -> None:
        self._passwords = passwords
        self.tried = 0
        self._answered = False
        self.shown: asyncssh.SSHKey | None = None

    def password_auth_requested(self) -> str | None:
        if self.tried == len(self._passwords):
            return None
        self.tried += 1
        return self._passwords[self.tried - 1]

    def kbdint_auth_requested(self) -> str | None:
        self._answered = False
        return "" if self.tried < len(self._passwords) else None

    def kbdint_challenge_received(
        self, name: str, instructions: str, lang: str, prompts: Sequence[tuple[str, bool]]
    ) -> list[str] | None:
        if not prompts:
            return []
        ((prompt, _), *more) = prompts
        asks = not more and ("password" in prompt.lower() or "passcode" in prompt.lower())
        # The next password belongs to the next dialogue: only its end is a refusal.
        if not asks or self._answered:
            return None
        self._answered = True
        password = self.password_auth_requested()
        return None if password is None else [password]

    def validate_host_public_key(
        self, host: str, addr: str, port: int, key: asyncssh.SSHKey
    ) -> bool:
        self.shown = key
        return False


def _passwords(access: HostAccess) -> list[str]:
    return [access.password] if access.password is not None else []


def _refused(access: HostAccess, error: Exception) -> LoginRefused:
    return LoginRefused(
        f"{access.name} refuses the login of {access.user}: {_words(error)}.",
        remedy="Check the stored credential, and whether sshd there lets "
        f"{access.user} in with it.",
        details={"user": access.user},
    )


def _key_changed(
    access: HostAccess, pinned: asyncssh.SSHKey, shown: asyncssh.SSHKey | None
) -> HostKeyChanged:
    fingerprints = {
        "pinned": pinned.get_fingerprint("sha256"),
        "shown": shown.get_fingerprint("sha256") if shown is not None else None,
    }
    return HostKeyChanged(
        f"{access.name} shows the SSH host key {fingerprints['shown'] or 'of no known kind'}, "
        f"pinned is {fingerprints['pinned']}.",
        remedy=_NEW_KEY_REMEDY,
        details=fingerprints,
    )


def _pinned_key(access: HostAccess) -> asyncssh.SSHKey:
    try:
        return asyncssh.import_public_key(access.host_key)
    except asyncssh.KeyImportError as error:
        raise Failed(
            f"The pinned SSH host key of {access.name} can't be read: {_words(error)}."
        ) from error


def _client_keys(access: HostAccess) -> list[asyncssh.SSHKey] | None:
    if access.private_key is None:
        return None
    try:
        return [asyncssh.import_private_key(access.private_key)]
    except asyncssh.KeyImportError:
        pass
    # Outside the handler: what asyncssh says of a key may quote it.
    raise LoginRefused(
        f"The stored private key for {access.name} can't be read.",
        remedy="Store an OpenSSH private key without a passphrase.",
    )


def _line(key: asyncssh.SSHKey) -> str:
    kind, base64, *_ = key.export_public_key("openssh").decode().split()
    return f"{kind} {base64}"


def _as_root(access: HostAccess, command: Sequence[str]) -> str:
    """What the login shell of `access.user` is given, for `command` to be run as root."""
    return shlex.join([*_SUDO, *command] if _needs_sudo(access) else command)


def _needs_sudo(access: HostAccess) -> bool:
    return access.user != _ROOT and not access.unprivileged


async def _require_root(access: HostAccess, ssh: asyncssh.SSHClientConnection) -> None:
    """Raises SudoRefused if sudo does not run commands: none of them has failed by itself then."""
    if not _needs_sudo(access):
        return
    line = f"env LC_ALL=C {_as_root(access, ['timeout', '5', 'true'])}"
    asked = await _run(ssh, line, None)
    if asked.exit_status == 0:
        return
    # The last line: there may be warnings before.
    *_, said = ["nothing", *f"{asked.stdout}\n{asked.stderr}".strip().splitlines()]
    if asked.exit_status == 127:
        remedy = "Install sudo there, or give a credential of root."
    elif "tty" in said:
        remedy = f"Add `Defaults:{access.user} !requiretty` to /etc/sudoers.d/hostler there."
    else:
        allow = f"{access.user} ALL=(ALL) NOPASSWD: ALL"
        remedy = f"Add `{allow}` to /etc/sudoers.d/hostler there."
    raise SudoRefused(
        f"{access.user} may not run commands as root on {access.name} without a password and a "
        f"terminal: {said.strip().rstrip('.')}.",
        remedy=remedy,
        details={"user": access.user},
    )


async def _streams(
    access: HostAccess, ssh: asyncssh.SSHClientConnection, path: str
) -> "tuple[asyncssh.SSHReader[bytes], asyncssh.SSHWriter[bytes]]":
    """What a UNIX socket of the host says, and is told. Raises SudoRefused, asyncssh.Error,
    OSError."""
    # encoding=None: the stubs can't say that streams are of bytes then.
    if not _needs_sudo(access):
        return await ssh.open_unix_connection(path, encoding=None)
    line = _as_root(access, ["sh", "-c", _RELAY, "relay-libvirt", path])
    writer, reader, problems = await ssh.open_session(line, encoding=None)
    begins = await reader.read(len(_RELAY_BEGINS))
    if not begins:
        await _require_root(access, ssh)
        raise OSError((await problems.read()).decode(errors="replace"))
    if begins != _RELAY_BEGINS:
        raise OSError("a start-up file of the shell there (~/.bashrc) prints something")
    return reader, writer


async def _run(ssh: asyncssh.SSHClientConnection, line: str, stdin: str | None) -> CommandResult:
    options = {"stdin": asyncssh.DEVNULL} if stdin is None else {"input": stdin}
    process = await ssh.create_process(line, encoding="utf-8", errors="replace", **options)
    try:
        stdout, stderr = await process.communicate()
    except BaseException:
        process.close()
        raise
    status = process.returncode
    if status is None:
        raise ConnectionResetError("it closed before the command ended")
    return CommandResult(exit_status=status, stdout=str(stdout), stderr=str(stderr))


def _unreachable(error: Exception) -> type[HostUnreachable]:
    """What it is that no connection came about: does the machine say so itself?"""
    by_itself = (ConnectionRefusedError, ConnectionResetError, asyncssh.ConnectionLost)
    return ConnectionRefused if isinstance(error, by_itself) else HostUnreachable


def _words(error: BaseException) -> str:
    """The error's own text in one line, never empty."""
    text = " ".join(str(error).split()).rstrip(".")
    return text or ("timed out" if isinstance(error, TimeoutError) else type(error).__name__)


_RELAY = importlib.resources.files("drivers.hooks").joinpath("relay-libvirt").read_text("utf-8")
# What it says when the rest is libvirtd's own words.
_RELAY_BEGINS = b"."
