"""A directory that plays a host: the real scripts run here, with their paths turned into it."""

import asyncio
import importlib.resources
import subprocess
from collections.abc import Sequence
from pathlib import Path

from drivers.protocols import CommandResult, HostAccess, HostKey

ACCESS = HostAccess(
    name="kvm-1", address="127.0.0.1", port=22, user="root", host_key="ssh-ed25519 AAAA"
)
_VIRSH = """#!/bin/sh
# Answers `virsh list --all --uuid` from a file; the next answer, if there is one, comes after.
[ ! -e "{root}/broken" ] || { echo 'error: failed to connect' >&2; exit 1; }
[ ! -e "{root}/domains" ] || cat "{root}/domains"
[ ! -e "{root}/domains.next" ] || mv "{root}/domains.next" "{root}/domains"
[ ! -e "{root}/broken.next" ] || mv "{root}/broken.next" "{root}/broken"
echo
"""


class LocalHost:
    """RemoteShell, and what a test looks at."""

    def __init__(self, root: Path) -> None:
        self.root = root
        virsh = root / "bin" / "virsh"
        virsh.parent.mkdir(parents=True)
        virsh.write_text(_VIRSH.replace("{root}", str(root)))
        virsh.chmod(0o755)
        (root / "etc" / "hostler").mkdir(parents=True)

    async def run(
        self,
        access: HostAccess,
        command: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: float = 30.0,  # noqa: ASYNC109 - as in the protocol
    ) -> CommandResult:
        """As on the host, with /etc/ and PATH of its own."""

        def work() -> CommandResult:
            done = subprocess.run(
                [self._here(word) for word in command],
                input=self._here(stdin or ""),
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
            return CommandResult(done.returncode, done.stdout, done.stderr)

        return await asyncio.to_thread(work)

    async def scan_host_key(self, address: str, port: int) -> HostKey:
        """It has none."""
        raise NotImplementedError

    async def forget(self, host: str) -> None:
        """Nothing is open."""

    async def close(self) -> None:
        """Nothing is open."""

    def domains(self, *uuids: str) -> None:
        """What virsh lists from now on."""
        self._file("domains").write_text("".join(f"{uuid}\n" for uuid in uuids))

    def domains_next(self, *uuids: str) -> None:
        """What virsh lists after it has been asked once."""
        self._file("domains.next").write_text("".join(f"{uuid}\n" for uuid in uuids))

    def break_libvirt(self) -> None:
        self._file("broken").touch()

    def break_libvirt_next(self) -> None:
        """After it has been asked once."""
        self._file("broken.next").touch()

    def mend_libvirt(self) -> None:
        self._file("broken").unlink()

    def write(self, name: str, text: str) -> None:
        self._file(f"etc/hostler/{name}").write_text(text)

    def read(self, name: str) -> str | None:
        """A file of /etc/hostler, None if it is not there."""
        path = self._file(f"etc/hostler/{name}")
        return path.read_text() if path.exists() else None

    def belongs(self) -> set[str]:
        return set((self.read("belongs") or "").split()) - {"settled"}

    def hook(
        self, xml: str, operation: str = "prepare", shell: Sequence[str] = ("/bin/sh",)
    ) -> subprocess.CompletedProcess[str]:
        """As libvirt calls it."""
        text = importlib.resources.files("drivers.hooks").joinpath("hostler").read_text()
        return self._call([*shell, "-c", self._here(text), "hostler"], xml, operation)

    def installed_hook(self, xml: str) -> str | None:
        """What the hook that is in place says on stderr when it refuses a start; None: it does not,
        or is not there."""
        path = self._file("etc/libvirt/hooks/qemu.d/hostler")
        if not path.exists():
            return None
        done = self._call([str(path)], xml, "prepare")
        return done.stderr if done.returncode else None

    def _call(
        self, command: Sequence[str], xml: str, operation: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, "vm", operation, "begin", "-"],
            input=xml,
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/nowhere"},
        )

    def _file(self, name: str) -> Path:
        return self.root / name

    def _here(self, text: str) -> str:
        return text.replace("/etc/", f"{self.root}/etc/").replace(
            "PATH=/usr/sbin", f"PATH={self.root}/bin:/usr/sbin"
        )
