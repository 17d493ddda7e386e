"""What a host is like before it is added, by one script that runs there (hooks/preflight)."""

import importlib.resources
import time
from collections.abc import Callable

from contracts.preflight import DiskSpace, HostReport, PackageManager, ServiceState
from drivers.commands import check
from drivers.errors import CommandFailed
from drivers.protocols import CommandResult, HostAccess, RemoteShell

_ABSENT = ServiceState(load="not-found", active="inactive", enabled="disabled")
_SHOWN = 200  # characters of an answer that can't be read


class ShellInspector:
    """HostInspector with a shell script.

    Args:
        shell: runs it on the host.
        timeout: seconds for one run.
        clock: Hostler's own, in seconds since 1970.
    """

    def __init__(
        self,
        shell: RemoteShell,
        *,
        timeout: float = 30.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._shell = shell
        self._timeout = timeout
        self._clock = clock

    async def log_in(self, access: HostAccess) -> None:
        """Raises LoginRefused, SudoRefused, HostKeyChanged, HostUnreachable, CallTimedOut."""
        await self._shell.run(access, ["true"], timeout=self._timeout)

    async def inspect(self, access: HostAccess) -> HostReport:
        """Everything that the host itself can tell. Raises CommandFailed if what the script needs
        most is missing, or its answer can't be read."""
        before = self._clock()
        command = ["sh", "-c", _SCRIPT, "preflight", access.user]
        result = await self._shell.run(access, command, timeout=self._timeout)
        check(access, "preflight", result)
        return _report(access, result, before, self._clock())

    async def forget(self, host: str) -> None:
        """Close what is open to `host`, if anything."""
        await self._shell.forget(host)


def _report(access: HostAccess, result: CommandResult, before: float, after: float) -> HostReport:
    said = _lines(result.stdout)
    try:
        return HostReport(
            skew_s=_skew(int(said["clock"][0]), before, after),
            uid=int(said["uid"][0]),
            systemd=_one(said, "systemd"),
            operating_system=_one(said, "os") or "unknown",
            package_manager=PackageManager(said["packages"][0]) if "packages" in said else None,
            daemon=_unit(said, "daemon"),
            socket=_unit(said, "socket"),
            modular="modular" in said,
            listening="listening" in said,
            uuid=said["uuid"][0].lower() if "uuid" in said else None,
            libvirt_version=_one(said, "libvirt"),
            qemu_version=_one(said, "qemu"),
            kvm="kvm" in said,
            epoch=int(_one(said, "epoch") or 0),
            told=int(_one(said, "told") or 0),
            closed=_one(said, "closed"),
            damaged=tuple(said.get("damaged", ())),
            missing_programs=tuple(said.get("missing", ())),
            disks=tuple(_disk(line) for line in said.get("disk", ())),
        )
    except (KeyError, ValueError) as error:
        first, _, _ = result.stdout.partition("\n")
        raise CommandFailed(
            f"What {access.name} says of itself can't be read ({_reason(error)}); its first line "
            f"is {first[:_SHOWN]!r}.",
            remedy="See whether a start-up file of the shell there (~/.bashrc) prints something "
            "where nobody is at a terminal.",
            details={"command": "preflight", "exit_status": 0, "stderr": result.stderr[-1000:]},
        ) from error


def _reason(error: KeyError | ValueError) -> str:
    """In one line."""
    if isinstance(error, KeyError):
        return f"nothing of its {error.args[0]}"
    return str(error).partition("\n")[0]


def _lines(text: str) -> dict[str, list[str]]:
    said: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        said.setdefault(key, []).append(value.strip())
    return said


def _one(said: dict[str, list[str]], key: str) -> str | None:
    return said[key][0] if key in said else None


def _unit(said: dict[str, list[str]], key: str) -> ServiceState:
    if key not in said:
        return _ABSENT
    load, active, enabled = said[key][0].split()
    return ServiceState(load=load, active=active, enabled=enabled)


def _disk(line: str) -> DiskSpace:
    path, free, mount = line.split(maxsplit=2)
    return DiskSpace(path=path, mount=mount, free_mib=int(free))


def _skew(there: int, before: float, after: float) -> float:
    """The host told whole seconds, at some moment between the two of ours."""
    if there > after:
        return there - after
    return min(there + 1 - before, 0.0)


_SCRIPT = importlib.resources.files("drivers.hooks").joinpath("preflight").read_text("utf-8")
