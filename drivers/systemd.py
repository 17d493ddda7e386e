"""Jobs and reboots on hosts, by their systemd and the script hooks/job.

A job is a transient unit, so it goes on when the connection breaks, when sshd is restarted and
when the worker dies; its output and its end are files, so they outlive a reboot.
"""

import importlib.resources
import re

from drivers.commands import check, number, unexpected
from drivers.protocols import Boot, HostAccess, Job, JobState, RemoteShell

_NAME = re.compile(r"[A-Za-z0-9_-]{1,200}")
# systemd's words for the end of a unit; any other one is shown as it is.
_PROBLEMS = {
    "reboot": "it was interrupted by a reboot",
    "timeout": "it took longer than it may, and was ended",
    "success": "it was stopped from outside",
    "signal": "it was killed",
    "oom-kill": "it was killed for want of memory",
}
# Whatever belongs to a boot was started then, or has failed for good.
_COMPLETE = frozenset({"running", "degraded"})


class Systemd:
    """ServiceManager with systemd.

    Args:
        shell: runs the script on the host.
        command_timeout: seconds for one call of it.
    """

    def __init__(self, shell: RemoteShell, *, command_timeout: float = 30.0) -> None:
        self._shell = shell
        self._command_timeout = command_timeout

    async def start_job(self, access: HostAccess, job: Job) -> None:
        """Start it, unless a job of that name runs or ran there. May be called many times."""
        settings = [f"{name}={value}" for name, value in job.environment.items()]
        if not all(setting.isprintable() for setting in settings):
            raise ValueError(f"the environment of {job.name} is not of one line each")
        # Script and all in one request: half of it can't arrive.
        await self._call(
            access, "start", _checked(job.name), str(job.timeout), job.script, *settings
        )

    async def look_at_job(self, access: HostAccess, name: str) -> JobState:
        """How it stands."""
        said = (await self._call(access, "look", _checked(name))).strip()
        word, _, rest = said.partition(" ")
        if word == "ended":
            return JobState(started=True, exit_status=number(access, "job look", rest))
        if word == "broken":
            return JobState(started=True, problem=_PROBLEMS.get(rest, f"systemd says: {rest}"))
        if said not in ("running", "absent"):
            raise unexpected(access, "job look", said)
        return JobState(started=said == "running")

    async def job_output(self, access: HostAccess, name: str, most: int) -> str:
        """The end of what it has printed, `most` bytes at the most."""
        return await self._call(access, "output", _checked(name), str(most))

    async def boot(self, access: HostAccess) -> Boot:
        """The boot that the host is in."""
        boot_id, _, state = (await self._call(access, "boot")).partition("\n")
        return Boot(boot_id=boot_id, complete=state.strip() in _COMPLETE)

    async def reboot(self, access: HostAccess, boot_id: str) -> None:
        """Ask for a reboot in good order, if the host is still in that boot. Returns at once."""
        await self._call(access, "reboot", boot_id)

    async def _call(self, access: HostAccess, action: str, *words: str) -> str:
        command = ["sh", "-c", _SCRIPT, "job", action, *words]
        result = await self._shell.run(access, command, timeout=self._command_timeout)
        check(access, f"job {action}", result)
        return result.stdout


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"a job's name is made of letters, digits, - and _, not {name!r}")
    return name


_SCRIPT = importlib.resources.files("drivers.hooks").joinpath("job").read_text(encoding="utf-8")
