"""SSH servers on loopback, each as one host:

    python -m tests.simulation.ssh_hosts DIRECTORY N [HASH]

Commands really run, by a shell of this machine, but each host has /etc, /root and /var/lib of its
own (in mount namespaces, so it takes root): what is changed on a host stays there. Beside root,
each has the users OPS, who may become root by sudo, and GUEST, who may not. In DIRECTORY are then

    hosts.json    name, address, port, fingerprint of each
    known_hosts   their keys, in OpenSSH's format
    password, id  what lets them in: a password, a private key
    journal       a line for each connection, and for each command's begin and end

HASH is what pam_unix makes of a new password: "yescrypt rounds=3", unless it is given.

And for each host, in hosts/NAME, its own etc, root and var/lib. Files there are its troubles: `cut`
cuts its cable, `dead` says that its sshd has died, `read-only` that nothing can write its
/etc/shadow. They begin when an account is to get another password there, by `read-only-at-set`, or
has got it, by `cut-after-set` or `dead-after-set`; and end when the file is deleted.
"""

import asyncio
import ctypes
import ctypes.util
import json
import os
import re
import shlex
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import asyncssh

from tests.ports import free_port

_crypt = ctypes.CDLL(ctypes.util.find_library("crypt")).crypt
_crypt.restype = ctypes.c_char_p
_crypt_lock = threading.Lock()


def _hash(password: str, like: str) -> str:
    """As crypt(3), which is not for several threads."""
    with _crypt_lock:
        made: bytes = _crypt(password.encode(), like.encode())
    return made.decode()


READY = "All hosts are ready."
OPS, GUEST = "ops", "guest"
# The cheapest yescrypt there is: all hosts share this machine.
PAM_HASH = "yescrypt rounds=3"
_PASSWORD = "simulated"
# Their ids; their homes are below /var/lib, since that is the host's own.
_USERS = {OPS: 64001, GUEST: 64002}
_CHUNK = 64 * 1024
_PAUSE_S = 0.1
# A login with the key comes after that, and nothing else of an addition.
_LAST = "own-key install"
_OVERLAID = ("etc", "var/lib")
_WORD = re.compile(r"""(?:[^\s'"\\]|'[^']*'|"[^"]*"|\\.)+""")  # of a shell
# A mount namespace as each host has one. It lasts until this process ends, and with it the pipe.
# One account, with `_PASSWORD`.
_HASH = _hash(_PASSWORD, "$5$rounds=1000$simulated")
_SHADOW = re.sub(
    r"^root:[^:]*:", lambda _: f"root:{_HASH}:", Path("/etc/shadow").read_text(), flags=re.MULTILINE
)
_MAKE = (
    "".join(
        f'mount -t overlay overlay -o "lowerdir=/{path},upperdir=$1/{path},'
        f'workdir=$1/.work/{path}" /{path} && '
        for path in _OVERLAID
    )
    + 'mount --bind "$1/root" /root && echo made && exec cat'
)


@dataclass(frozen=True)
class SshHost:
    """Where a host is, and the fingerprint of its key."""

    name: str
    address: str
    port: int
    fingerprint: str


@dataclass(frozen=True)
class Entry:
    """A line of the journal. `what`: connect, begin or end; `command`: without scripts."""

    at: float
    host: str
    what: str
    command: str = ""


def read_hosts(directory: Path) -> list[SshHost]:
    """Those that are served from there."""
    return [SshHost(**host) for host in json.loads((directory / "hosts.json").read_text())]


def read_journal(directory: Path) -> list[Entry]:
    """What they have seen so far."""
    lines = (directory / "journal").read_text().splitlines()
    return [Entry(**json.loads(line)) for line in lines]


def most_at_once(directory: Path, *, since: float = 0) -> int:
    """Hosts that were worked on at the same time, as they saw it themselves: from the first
    connection after `since` to the last change; without one, for ever."""
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for entry in read_journal(directory):
        if entry.at < since:
            continue
        first.setdefault(entry.host, entry.at)
        if entry.what == "end" and _LAST in entry.command:
            last[entry.host] = entry.at
    changes = [(at, 1) for at in first.values()] + [(at, -1) for at in last.values()]
    now = most = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


class _Server(asyncssh.SSHServer):
    def __init__(self, host: "_Host") -> None:
        self._host = host

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._host.note("connect")
        self._host.connected(conn)

    def password_auth_supported(self) -> bool:
        return True

    async def validate_password(self, username: str, password: str) -> bool:
        return await self._host.takes(username, password)

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return username in ("root", *_USERS) and key in self._host.authorized_keys(username)


class _Host:
    """One host: its key, its directories, what runs there."""

    def __init__(self, directory: Path, number: int, login: asyncssh.SSHKey, pam_hash: str) -> None:
        self.name = f"ssh-{number}"
        self.key = asyncssh.generate_private_key("ssh-ed25519")
        self._address = f"127.83.{number // 250}.{number % 250 + 1}"
        self._root = directory / "hosts" / self.name
        self._journal = (directory / "journal").open("a", buffering=1)
        self._login = login.convert_to_public()
        self._namespace: asyncio.subprocess.Process | None = None
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._port = 0
        self._server: asyncssh.SSHAcceptor | None = None
        self._revival: asyncio.Task[None] | None = None
        self._is_read_only = False
        for path in _OVERLAID:
            (self._root / path).mkdir(parents=True)
            (self._root / ".work" / path).mkdir(parents=True)
        (self._root / "root").mkdir(mode=0o700)
        (self._root / "etc" / "shadow").touch(mode=0o640)
        self._make_users(pam_hash)

    async def serve(self) -> SshHost:
        """Be there from now on."""
        self._namespace = await asyncio.create_subprocess_exec(
            *("unshare", "--mount", "--propagation", "private"),
            *("sh", "-c", _MAKE, "sh", str(self._root)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._namespace.stdout is not None
        assert await self._namespace.stdout.readline() == b"made\n"
        self._port = free_port(self._address)
        await self._listen()
        return SshHost(self.name, self._address, self._port, self.key.get_fingerprint("sha256"))

    async def _listen(self) -> None:
        self._server = await asyncssh.create_server(
            lambda: _Server(self),
            self._address,
            self._port,
            server_host_keys=[self.key],
            process_factory=self._run,
            sftp_factory=self._files,
            encoding=None,
            # Of what clients offer, that which costs this process least: it is all hosts.
            kex_algs=["curve25519-sha256"],
            encryption_algs=["aes128-gcm@openssh.com"],
            # As many may come at once as there are.
            login_timeout=60,
        )

    def _make_users(self, pam_hash: str) -> None:
        etc = self._root / "etc"
        for file, line in (
            ("passwd", "{0}:x:{1}:{1}::/var/lib/{0}:/bin/sh\n"),
            ("group", "{0}:x:{1}:\n"),
            ("shadow", f"{{0}}:{_HASH}:19000:0:99999:7:::\n"),
        ):
            lines = "".join(line.format(*user) for user in _USERS.items())
            before = _SHADOW if file == "shadow" else Path("/etc", file).read_text()
            (etc / file).write_text(before + lines)
        for name, number in _USERS.items():
            home = self._root / "var/lib" / name
            home.mkdir(mode=0o700)
            os.chown(home, number, number)
        rules = Path("/etc/pam.d/common-password").read_text()
        rules, found = re.subn(r"(pam_unix\.so.*) yescrypt\b", rf"\1 {pam_hash}", rules)
        assert found, rules
        (etc / "pam.d").mkdir()
        (etc / "pam.d" / "common-password").write_text(rules)
        (etc / "sudoers.d").mkdir()
        (etc / "sudoers.d" / OPS).write_text(f"{OPS} ALL=(ALL) NOPASSWD: ALL\n")

    def authorized_keys(self, user: str) -> list[asyncssh.SSHKey]:
        """The one that ansible has, and those that were put there."""
        home = "root" if user == "root" else f"var/lib/{user}"
        path = self._root / home / ".ssh" / "authorized_keys"
        lines = path.read_text().splitlines() if path.exists() else []
        own = [asyncssh.import_public_key(line) for line in lines if line.startswith("ssh-")]
        return [self._login, *own]

    def connected(self, connection: asyncssh.SSHServerConnection) -> None:
        """Unless its cable is cut."""
        if (self._root / "cut").exists():
            connection.abort()
        else:
            self._connections.add(connection)

    def _abort_all(self) -> None:
        for connection in self._connections:
            connection.abort()
        self._connections.clear()

    def _begins(self, trouble: str, when: str) -> bool:
        """Whether it does, at that moment."""
        announced = self._root / f"{trouble}-{when}"
        if not announced.exists():
            return False
        announced.rename(self._root / trouble)
        return True

    async def _revive(self) -> None:
        while (self._root / "dead").exists():
            await asyncio.sleep(_PAUSE_S)
        await self._listen()

    async def _change_shadow(self) -> None:
        """As `read-only` wants it; a mount over itself, which is in the way of a renaming, too."""
        wanted = (self._root / "read-only").exists()
        if wanted != self._is_read_only:
            self._is_read_only = wanted
            mount = "mount --bind /etc/shadow /etc/shadow && mount -o remount,bind,ro /etc/shadow"
            child = await asyncio.create_subprocess_exec(
                *self._inside(), "sh", "-c", mount if wanted else "umount /etc/shadow"
            )
            assert await child.wait() == 0

    def _inside(self) -> tuple[str, ...]:
        assert self._namespace is not None
        return ("nsenter", "--target", str(self._namespace.pid), "--mount")

    async def takes(self, username: str, password: str) -> bool:
        """By its own /etc/shadow."""
        lines = (self._root / "etc" / "shadow").read_text().splitlines()
        hashes = {line.split(":")[0]: line.split(":")[1] for line in lines}
        hashed = hashes.get(username, "")
        return hashed != "" and await asyncio.to_thread(_hash, password, hashed) == hashed

    def note(self, what: str, command: str = "") -> None:
        """Write it into the journal."""
        self._journal.write(json.dumps(asdict(Entry(time.time(), self.name, what, command))) + "\n")

    def _files(self, channel: asyncssh.SSHServerChannel[bytes]) -> asyncssh.SFTPServer:
        return asyncssh.SFTPServer(channel, chroot=str(self._root).encode())

    async def _run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        line = process.command or ""
        # A script would be most of the journal.
        command = " ".join(_words(line))
        self.note("begin", command)
        changes = " password set " in command
        if changes:
            self._begins("read-only", "at-set")
        await self._change_shadow()
        user = process.get_extra_info("username")
        home = "/root" if user == "root" else f"/var/lib/{user}"
        become = ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups")
        child = await asyncio.create_subprocess_exec(
            *self._inside(),
            *(() if user == "root" else become),
            *("sh", "-c", line),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"HOME": home, "USER": user, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        feeding = asyncio.create_task(_feed(process.stdin, child.stdin))
        await asyncio.gather(
            _pump(child.stdout, process.stdout), _pump(child.stderr, process.stderr)
        )
        status = await child.wait()
        feeding.cancel()
        if changes and self._begins("cut", "after-set"):
            self._abort_all()
        if changes and self._begins("dead", "after-set"):
            assert self._server is not None
            self._server.close()
            self._abort_all()
            self._revival = asyncio.create_task(self._revive())
        self.note("end", command)
        process.exit(status)


async def _feed(source: asyncssh.SSHReader[bytes], sink: asyncio.StreamWriter) -> None:
    with suppress(OSError, asyncssh.Error):
        while data := await source.read(_CHUNK):
            sink.write(data)
            await sink.drain()
    sink.close()


async def _pump(source: asyncio.StreamReader, sink: asyncssh.SSHWriter[bytes]) -> None:
    """To the end, also when nobody is there any more to take it: the command goes on."""
    while data := await source.read(_CHUNK):
        with suppress(OSError, asyncssh.Error):
            sink.write(data)
            await sink.drain()


def _words(line: str) -> list[str]:
    """Those of one line; scripts, which shlex takes milliseconds for, are left out."""
    short = " ".join(word for word in _WORD.findall(line) if "\n" not in word)
    try:
        return shlex.split(short)
    except ValueError:
        return [short]


async def serve(directory: Path, number: int, pam_hash: str) -> None:
    """Until the process is ended."""
    _watch_children()
    login = asyncssh.generate_private_key("ssh-ed25519")
    (directory / "password").write_text(_PASSWORD + "\n")
    identity = directory / "id"
    identity.touch(mode=0o600)
    login.write_private_key(identity)
    hosts = [_Host(directory, one, login, pam_hash) for one in range(1, number + 1)]
    served = [await host.serve() for host in hosts]
    (directory / "known_hosts").write_text(
        "".join(
            f"[{at.address}]:{at.port} {host.key.export_public_key().decode().strip()}\n"
            for at, host in zip(served, hosts, strict=True)
        )
    )
    (directory / "hosts.json").write_text(json.dumps([asdict(host) for host in served]))
    _say(READY)
    await asyncio.Event().wait()


def _watch_children() -> None:
    """Without a thread for each, as asyncio has it before Python 3.12."""
    if sys.version_info < (3, 12):
        watcher = asyncio.PidfdChildWatcher()
        watcher.attach_loop(asyncio.get_running_loop())
        asyncio.set_child_watcher(watcher)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> Any:
    """The command line."""
    directory, number, *pam_hash = arguments
    asyncio.run(serve(Path(directory), int(number), *(pam_hash or [PAM_HASH])))


if __name__ == "__main__":
    main(sys.argv[1:])
