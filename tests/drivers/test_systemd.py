"""Systemd on a lab host: what is started there goes on without us, and never twice."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from drivers.errors import CommandFailed
from drivers.protocols import HostAccess, Job, JobState
from drivers.ssh import AsyncSshShell
from drivers.systemd import Systemd
from tests.drivers.conftest import DESTINATION
from tests.lab import Lab

JOBS = "/var/lib/hostler/jobs"
COUNTED = f"{JOBS}/counted"


@pytest.fixture
async def systemd(shell: AsyncSshShell, lab: Lab) -> AsyncIterator[Systemd]:
    yield Systemd(shell)
    await lab.exec(DESTINATION, "systemctl", "stop", "hostler-job-*", check=False)
    await lab.exec(DESTINATION, "rm", "-rf", JOBS)


def job(script: str, *, timeout: int = 60, **environment: str) -> Job:
    return Job(name=f"test-{uuid.uuid4()}", script=script, environment=environment, timeout=timeout)


async def until(systemd: Systemd, access: HostAccess, name: str, *, ended: bool = True) -> JobState:
    while True:
        state = await systemd.look_at_job(access, name)
        if state.ended if ended else state.started:
            return state
        await asyncio.sleep(0.1)


async def counted(lab: Lab) -> int:
    return len((await lab.exec(DESTINATION, "cat", COUNTED)).stdout)


async def test_status_environment_and_the_end_of_the_output(
    systemd: Systemd, destination: HostAccess
) -> None:
    told = job(
        'printf "%s|" "$A" "$B" "$HOME" "$PWD"; id -u >&2; exit 7', A="$(id) %n ${B}", B="two words"
    )
    assert await systemd.look_at_job(destination, told.name) == JobState(started=False)
    await systemd.start_job(destination, told)
    assert await until(systemd, destination, told.name) == JobState(started=True, exit_status=7)
    said = await systemd.job_output(destination, told.name, 1000)
    assert said == "$(id) %n ${B}|two words|/root|/|0\n"
    assert await systemd.job_output(destination, told.name, 3) == "|0\n"


async def test_the_same_name_never_runs_twice(
    systemd: Systemd, destination: HostAccess, lab: Lab
) -> None:
    once = job(f"printf x >>{COUNTED}; sleep 1")
    await asyncio.gather(*(systemd.start_job(destination, once) for _ in range(5)))
    await until(systemd, destination, once.name)
    await systemd.start_job(destination, once)
    assert await until(systemd, destination, once.name) == JobState(started=True, exit_status=0)
    # Nor when a unit of that name is begun once more, past all that the script looks at.
    runner = f"{JOBS}/{once.name}"
    await lab.exec(DESTINATION, "systemd-run", "--wait", "sh", f"{runner}/runner", runner)
    assert await counted(lab) == 1


async def test_a_job_that_takes_too_long_is_ended_with_all_it_started(
    systemd: Systemd, destination: HostAccess, lab: Lab
) -> None:
    slow = job("sleep 2718 & trap : TERM; while :; do sleep 1; done", timeout=2)
    await systemd.start_job(destination, slow)
    state = await until(systemd, destination, slow.name)
    assert state.problem == "it took longer than it may, and was ended"
    assert (await lab.exec(DESTINATION, "pgrep", "-f", "sleep 2718", check=False)).stdout == ""
    # It is said again, and nothing is left for whoever watches failed units.
    assert await systemd.look_at_job(destination, slow.name) == state
    failed = await lab.exec(DESTINATION, "systemctl", "--failed", "--no-legend")
    assert "hostler" not in failed.stdout


async def test_one_that_somebody_has_stopped(
    systemd: Systemd, destination: HostAccess, lab: Lab
) -> None:
    stopped = job("echo begun; sleep 100")
    await systemd.start_job(destination, stopped)
    while not await systemd.job_output(destination, stopped.name, 10):
        await asyncio.sleep(0.1)
    await lab.exec(DESTINATION, "systemctl", "stop", f"hostler-job-{stopped.name}")
    state = await until(systemd, destination, stopped.name)
    assert state.problem == "it was stopped from outside"


async def test_a_cut_connection_and_a_restart_of_sshd(
    systemd: Systemd, shell: AsyncSshShell, destination: HostAccess, lab: Lab
) -> None:
    long = job(f"printf x >>{COUNTED}; sleep 3; echo through")
    await systemd.start_job(destination, long)
    await lab.exec(DESTINATION, "systemctl", "restart", "ssh")
    await shell.forget(DESTINATION)
    await systemd.start_job(destination, long)
    assert (await until(systemd, destination, long.name)).exit_status == 0
    assert await systemd.job_output(destination, long.name, 100) == "through\n"
    assert await counted(lab) == 1


async def test_a_reboot_in_the_middle_ends_it(
    systemd: Systemd, shell: AsyncSshShell, destination: HostAccess, lab: Lab
) -> None:
    cut_off = job(f"printf x >>{COUNTED}; sleep 100")
    await systemd.start_job(destination, cut_off)
    await until(systemd, destination, cut_off.name, ended=False)
    before = await systemd.boot(destination)
    assert before.complete
    # Only the boot that is meant.
    await systemd.reboot(destination, "0000")
    assert (await systemd.boot(destination)).boot_id == before.boot_id
    await lab.reboot(DESTINATION)
    await shell.forget(DESTINATION)
    assert (await systemd.boot(destination)).boot_id != before.boot_id
    await systemd.start_job(destination, cut_off)
    state = await systemd.look_at_job(destination, cut_off.name)
    assert state == JobState(started=True, problem="it was interrupted by a reboot")
    assert await counted(lab) == 1


async def test_a_full_disk_is_no_start(systemd: Systemd, destination: HostAccess, lab: Lab) -> None:
    refused = job("true")
    await lab.exec(DESTINATION, "sh", "-c", f"rm -rf {JOBS}; mkdir -p {JOBS}")
    await lab.exec(DESTINATION, "mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=2", "x", JOBS)
    try:
        with pytest.raises(CommandFailed):
            await systemd.start_job(destination, refused)
    finally:
        await lab.exec(DESTINATION, "umount", JOBS)
    assert await systemd.look_at_job(destination, refused.name) == JobState(started=False)


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b", "a;b"])
async def test_names_that_would_lead_elsewhere(
    systemd: Systemd, destination: HostAccess, name: str
) -> None:
    with pytest.raises(ValueError, match="letters"):
        await systemd.start_job(destination, Job(name, "true", {}, 1))
