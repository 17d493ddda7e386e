"""A host that is a directory and an SSH server on loopback, for scripts that run on hosts.

What they do is done for real, by `sh`, as whoever runs the tests: the places that they work on lie
in the directory, and of programs there are only those that the machine has.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncssh

from drivers.protocols import HostAccess

PASSWORD = "canary-password-of-a-machine"
_SCRIPTS_PATH = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
# Where scripts of Hostler's look or write; all else they do not touch.
_PLACES = (
    *("/etc/hostler", "/etc/libvirt", "/etc/machine-id", "/etc/os-release"),
    *("/usr/lib/os-release", "/sys/class/dmi"),
    *("/var/lib/hostler", "/run/systemd/system", "/run/libvirt", "/dev/kvm", "/usr/libexec"),
    "/run/hostler-disks.lock",
)
_PROGRAMS = (
    *("awk", "bash", "cat", "chmod", "chown", "cmp", "cp", "cut", "date", "df", "find", "flock"),
    *("grep", "id"),
    *("ip", "ls", "mkdir", "mv", "readlink", "rm", "rmdir", "sed", "sh", "stat", "sync", "tail"),
    *("timeout", "tr", "true", "truncate", "uname", "xargs"),
)


class Machine:
    """One of them.

    Attributes:
        home: root's; `keys`: the file by which the server lets keys in.
        password: of root.
        lets_keys_in: as sshd's PubkeyAuthentication says.
        lines: every command line that was run there.
        logins: how each login was made: "password" or "publickey".
    """

    def __init__(self, directory: Path) -> None:
        self.root = directory
        self.home = directory / "root"
        self.keys = self.home / ".ssh" / "authorized_keys"
        self.password = PASSWORD
        self.lets_keys_in = True
        self.lines: list[str] = []
        self.logins: list[str] = []
        self._programs = directory / "programs"
        self._host_key = asyncssh.generate_private_key("ssh-ed25519")
        self._port = 0
        self._server: asyncssh.SSHAcceptor | None = None
        for made in (self.home, self._programs, directory / "run", directory / "dev"):
            made.mkdir(parents=True)
        for program in _PROGRAMS:
            found = shutil.which(program)
            if found is not None:
                (self._programs / program).symlink_to(found)
        homes = f"case $2 in root) home={self.home} ;; *) home={directory}/home/$2 ;; esac"
        self.program("getent", f'{homes}\necho "$2:x:0:0::$home:/bin/sh"')

    def program(self, name: str, script: str = "") -> None:
        """It has a program of that name, which does so."""
        path = self._programs / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def without(self, name: str) -> None:
        """It has no such program."""
        (self._programs / name).unlink()

    def file(self, path: str, text: str = "") -> Path:
        """A file of it, by its path there."""
        found = self.path(path)
        found.parent.mkdir(parents=True, exist_ok=True)
        found.write_text(text)
        return found

    def path(self, path: str) -> Path:
        """Where a path of it is here."""
        return self.root / path.lstrip("/")

    def here(self, text: str) -> str:
        """A command of it, so that it works here."""
        for place in _PLACES:
            text = text.replace(place, str(self.path(place)))
        text = text.replace("~root/", f"{self.home}/")
        return text.replace(_SCRIPTS_PATH, f"PATH={self._programs}")

    def access(self, name: str = "kvm-9") -> HostAccess:
        """How to reach it while it serves."""
        public = self._host_key.export_public_key("openssh").decode()
        return HostAccess(
            name=name,
            address="127.0.0.1",
            port=self._port,
            user="root",
            host_key=" ".join(public.split()[:2]),
            password=self.password,
        )

    @property
    def fingerprint(self) -> str:
        """Of its SSH host key."""
        return self._host_key.get_fingerprint("sha256")

    async def run(self, line: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        """What a command line does there."""
        self.lines.append(line)
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", self.here(line)),
            env={"HOME": str(self.home), "PATH": str(self._programs)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        stdout, stderr = await process.communicate(self.here(stdin.decode()).encode())
        return process.returncode or 0, stdout, stderr

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Its SSH server runs."""
        await self.start()
        try:
            yield
        finally:
            await self.stop()

    async def start(self) -> None:
        """Its SSH server runs from now on, at the same port as before."""

        async def handle(process: "asyncssh.SSHServerProcess[bytes]") -> None:
            stdin = await process.stdin.read()
            status, stdout, stderr = await self.run(process.command or "", stdin)
            process.stdout.write(stdout)
            process.stderr.write(stderr)
            process.exit(status)

        self._server = await asyncssh.create_server(
            lambda: _Server(self),
            "127.0.0.1",
            self._port,
            server_host_keys=[self._host_key],
            process_factory=handle,
            encoding=None,
        )
        self._port = self._server.get_port()

    async def stop(self) -> None:
        """Nobody answers, and whoever was there is cut off."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    def rebuild(self, password: str) -> None:
        """A new installation, while it is stopped: new host keys, another password, and nothing of
        what Hostler or anybody else has put on the old one."""
        self._host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.password = password
        for place in ("/etc/hostler", "/etc/libvirt/hooks", "/var/lib/hostler", "/root/.ssh"):
            shutil.rmtree(self.path(place), ignore_errors=True)


class _Server(asyncssh.SSHServer):
    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._method = ""

    def auth_completed(self) -> None:
        self._machine.logins.append(self._method)

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        self._method = "password"
        return (username, password) == ("root", self._machine.password)

    def public_key_auth_supported(self) -> bool:
        return self._machine.lets_keys_in

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        self._method = "publickey"
        known = self._machine.keys.read_text() if self._machine.keys.exists() else ""
        _, base64, *_ = key.export_public_key("openssh").decode().split()
        return base64 in known
