"""A closed host: the hook and its changes, run by a shell in a directory."""

import asyncio
import dataclasses
import fcntl
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from drivers.errors import CommandFailed, EpochRefused, GenerationRefused
from drivers.fence import HookFence
from drivers.protocols import CLOSED, FENCED, CommandResult, FenceState, refused_as_closed
from tests.hooks.local_host import ACCESS, LocalHost

HERE = "c7a5fdbd-edaf-9455-926a-d65c16db1809"
THERE = "c7a5fdbd-edaf-9455-926a-d65c16db1800"
NEW = "11111111-2222-3333-4444-555555555555"
BECAUSE = "cluster cluster-1 is Disabled"
# Without PATH: the hook needs no program once there is something to refuse.
SHELLS = [
    [path, *more]
    for name, *more in (["dash"], ["bash"], ["busybox", "sh"])
    if (path := shutil.which(name)) is not None
]

by_each_shell = pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: Path(shell[0]).name)


def domain(uuid: str | None, *, before: str = "", after: str = "") -> str:
    """As libvirt writes it."""
    own = "" if uuid is None else f"  <uuid>{uuid}</uuid>\n"
    return (
        "<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n"
        f"  <name>a vm &lt;uuid&gt;{NEW}&lt;/uuid&gt;</name>\n{before}{own}{after}"
        "  <memory unit='KiB'>65536</memory>\n  <os>\n    <type arch='x86_64'>hvm</type>\n"
        "    <boot dev='hd'/>\n  </os>\n  <devices>\n    <emulator>/usr/bin/kvm</emulator>\n"
        "  </devices>\n</domain>\n"
    )


OTHER_UUIDS = {
    "metadata": f"  <metadata>\n    <a:b xmlns:a='x'>\n      <uuid>{HERE}</uuid>\n    </a:b>\n"
    "  </metadata>\n",
    "a device": f"  <devices>\n    <hostdev mode='x'/>\n    <source><uuid>{HERE}</uuid></source>\n"
    "  </devices>\n",
    "another name": f"  <genid>{HERE}</genid>\n  <uuids>{HERE}</uuids>\n",
    "a comment": f"  <!-- <uuid>{HERE}</uuid> -->\n",
    "an attribute": f"  <os uuid='{HERE}'/>\n",
    "a text": f"  <title>&lt;uuid&gt;{HERE}&lt;/uuid&gt;</title>\n",
}


@pytest.fixture
def host(tmp_path: Path) -> LocalHost:
    """With the fence installed."""
    host = LocalHost(tmp_path / "host")
    host.write("epoch", "0\n")
    return host


@pytest.fixture
def fence(host: LocalHost) -> HookFence:
    return HookFence(host)


@pytest.fixture
async def closed(host: LocalHost, fence: HookFence) -> LocalHost:
    """Closed with HERE and THERE on it."""
    host.domains(THERE, HERE)
    await fence.close(ACCESS, BECAUSE, 5)
    return host


@by_each_shell
@pytest.mark.parametrize("operation", ["prepare", "migrate", "restore"])
async def test_vms_that_were_there_start_and_no_others(
    closed: LocalHost, shell: Sequence[str], operation: str
) -> None:
    for uuid in (HERE, THERE):
        done = closed.hook(domain(uuid), operation, shell)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    refused = closed.hook(domain(NEW), operation, shell)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        f"host is closed: {BECAUSE}; only VMs that were here before can start; the way out by "
        f"hand: rm {closed.root}/etc/hostler/closed\n"
    )
    assert refused_as_closed(refused.stderr)


@by_each_shell
@pytest.mark.parametrize("elsewhere", OTHER_UUIDS)
async def test_only_its_own_uuid_counts(
    closed: LocalHost, shell: Sequence[str], elsewhere: str
) -> None:
    other = OTHER_UUIDS[elsewhere]
    for xml in (domain(NEW, before=other), domain(NEW, after=other), domain(None, after=other)):
        refused = closed.hook(xml, shell=shell)
        assert refused.returncode == 1
        assert CLOSED in refused.stderr
    assert closed.hook(domain(HERE, before=other.replace(HERE, NEW)), shell=shell).returncode == 0


@by_each_shell
@pytest.mark.parametrize(
    "xml",
    [
        "",
        "no xml",
        "<domain",
        f"<domain>\n  <uuid>{HERE}",
        f"<domain>\n  <uuid>{HERE[:-1]}</uuid>\n</domain>",
        "<domain>\n  <uuid></uuid>\n</domain>",
        "<domain>\n  <uuid>*</uuid>\n</domain>",
        f"<domain>\n  <uuid>\n{HERE}\n</uuid>\n</domain>",
        f"<domain>\n  <![CDATA[ <x> ]]>\n  <uuid>{HERE}</uuid>\n</domain>",
        f"<uuid>{HERE}</uuid>",
    ],
)
async def test_what_can_not_be_told_is_refused(
    closed: LocalHost, shell: Sequence[str], xml: str
) -> None:
    refused = closed.hook(xml, shell=shell)
    assert refused.returncode == 1
    assert CLOSED + BECAUSE in refused.stderr


@by_each_shell
async def test_a_prolog_and_a_last_line_without_end_are_read(
    closed: LocalHost, shell: Sequence[str]
) -> None:
    xml = f"<?xml version='1.0'?>\n<!-- made by hand -->\n{domain(HERE)}"
    assert closed.hook(xml, shell=shell).returncode == 0
    assert closed.hook(f"<domain><uuid>{HERE}</uuid></domain>", shell=shell).returncode == 0
    closed.write("belongs", HERE)
    assert closed.hook(domain(HERE), shell=shell).returncode == 0


@by_each_shell
async def test_without_its_list_it_refuses_all(closed: LocalHost, shell: Sequence[str]) -> None:
    (closed.root / "etc/hostler/belongs").unlink()
    refused = closed.hook(domain(HERE), shell=shell)
    assert refused.returncode == 1
    assert "belongs, can't be read" in refused.stderr
    closed.write("belongs", "\n\n")
    assert closed.hook(domain(HERE), shell=shell).returncode == 1


@pytest.mark.parametrize("operation", ["start", "started", "stopped", "release", "reconnect"])
async def test_what_runs_is_left_alone(closed: LocalHost, operation: str) -> None:
    assert closed.hook(domain(NEW), operation).returncode == 0


async def test_the_fence_of_an_operation_wins(closed: LocalHost, fence: HookFence) -> None:
    await fence.put_up(ACCESS, f"maintenance/{CLOSED}x", 1)
    for uuid in (HERE, NEW):
        refused = closed.hook(domain(uuid))
        assert refused.returncode == 1
        assert FENCED in refused.stderr
        assert not refused_as_closed(refused.stderr)
    state = await fence.read(ACCESS)
    assert state == FenceState(operation=f"maintenance/{CLOSED}x", epoch=1, closed=BECAUSE)
    await fence.take_down(ACCESS, 1)
    assert closed.hook(domain(HERE)).returncode == 0
    assert closed.hook(domain(NEW)).returncode == 1


async def test_reopening_takes_everything_away(closed: LocalHost, fence: HookFence) -> None:
    for _ in range(2):
        await fence.reopen(ACCESS, 6)
        assert await fence.read(ACCESS) == FenceState(operation=None, epoch=0)
        assert (closed.read("closed"), closed.read("belongs")) == (None, None)
    assert closed.hook(domain(NEW)).returncode == 0


async def test_closing_again_keeps_the_first_list(closed: LocalHost, fence: HookFence) -> None:
    closed.domains(NEW)
    await fence.close(ACCESS, BECAUSE, 5)
    await fence.close(ACCESS, "zone zone-1 is Disabled", 7)
    assert closed.belongs() == {HERE, THERE}
    assert "zone zone-1 is Disabled" in closed.hook(domain(NEW)).stderr
    # Not so after it was open: what came then belongs here.
    await fence.reopen(ACCESS, 8)
    await fence.close(ACCESS, BECAUSE, 9)
    assert closed.belongs() == {NEW}


async def test_what_comes_while_it_is_closed_for_the_first_time_belongs_there(
    host: LocalHost, fence: HookFence
) -> None:
    host.domains(HERE, THERE)
    host.domains_next(NEW, HERE)
    await fence.close(ACCESS, BECAUSE, 1)
    assert host.belongs() == {HERE, THERE, NEW}


async def test_a_list_without_a_closed_door_is_made_anew(host: LocalHost, fence: HookFence) -> None:
    """As after a crash between the two files."""
    host.write("belongs", f"{THERE}\n")
    host.domains(HERE)
    await fence.close(ACCESS, BECAUSE, 1)
    assert host.belongs() == {HERE}


async def test_a_libvirt_that_does_not_answer_leaves_it_open(
    host: LocalHost, fence: HookFence
) -> None:
    host.break_libvirt()
    with pytest.raises(CommandFailed, match="failed to connect"):
        await fence.close(ACCESS, BECAUSE, 1)
    assert (await fence.read(ACCESS)).closed is None
    assert host.hook(domain(NEW)).returncode == 0


async def test_a_late_word_is_refused(closed: LocalHost, fence: HookFence) -> None:
    with pytest.raises(GenerationRefused, match="rm /etc/hostler/told") as refusal:
        await fence.reopen(ACCESS, 4)
    assert refusal.value.details == {"held": 5, "own": 4}
    assert (await fence.read(ACCESS)).closed == BECAUSE
    await fence.reopen(ACCESS, 6)
    with pytest.raises(GenerationRefused):
        await fence.close(ACCESS, BECAUSE, 5)
    assert (await fence.read(ACCESS)).closed is None


async def test_generations_and_epochs_do_not_meet(closed: LocalHost, fence: HookFence) -> None:
    await fence.put_up(ACCESS, "maintenance/kvm-1", 1)
    await fence.reopen(ACCESS, 6)
    await fence.take_down(ACCESS, 1)
    with pytest.raises(EpochRefused):
        await fence.put_up(ACCESS, "maintenance/late", 0)
    closed.write("told", "x")
    with pytest.raises(CommandFailed, match="damaged"):
        await fence.reopen(ACCESS, 7)
    assert (await fence.read(ACCESS)).epoch == 1


@pytest.mark.parametrize("because", ["", " ", "two\nlines"])
async def test_a_reason_is_one_line(fence: HookFence, because: str) -> None:
    with pytest.raises(ValueError, match="one line"):
        await fence.close(ACCESS, because, 1)


async def test_a_reason_is_never_read_as_shell(host: LocalHost, fence: HookFence) -> None:
    because = "a'b\"c$(id)`id`;*\\n %s"
    await fence.close(ACCESS, because, 1)
    assert (await fence.read(ACCESS)).closed == because
    assert f"{CLOSED}{because};" in host.hook(domain(NEW)).stderr


async def test_an_older_hook_is_replaced(closed: LocalHost, fence: HookFence) -> None:
    hook = closed.root / "etc/libvirt/hooks/qemu.d/hostler"
    hook.parent.mkdir(parents=True)
    hook.write_text("#!/bin/sh\n[ -s /etc/hostler/fence ] || exit 0\nexit 1\n")
    hook.chmod(0o755)
    assert await fence.refresh(ACCESS)
    assert "closed" in hook.read_text()
    assert not await fence.refresh(ACCESS)
    assert (await fence.read(ACCESS)).epoch == 0


async def test_nothing_comes_back_to_a_host_from_which_it_was_taken_off(tmp_path: Path) -> None:
    host = LocalHost(tmp_path / "clean")
    (host.root / "etc" / "hostler").rmdir()
    fence = HookFence(host)
    for change in (
        fence.refresh(ACCESS),
        fence.close(ACCESS, BECAUSE, 1),
        fence.reopen(ACCESS, 2),
    ):
        with pytest.raises(CommandFailed, match="not installed here"):
            await change
    assert list((host.root / "etc").iterdir()) == []
    assert await fence.install(ACCESS, 1)
    await fence.close(ACCESS, BECAUSE, 3)


async def test_who_takes_it_off_while_another_waits_has_the_last_word(
    host: LocalHost, fence: HookFence
) -> None:
    lock = host.root / "etc/hostler/lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        closing = asyncio.create_task(fence.close(ACCESS, BECAUSE, 1))
        # It has opened the lock: it is past its first look.
        while not _waits_for(lock):
            await asyncio.sleep(0.02)
        for path in (host.root / "etc/hostler/epoch", lock):
            path.unlink()
    with pytest.raises(CommandFailed, match="not installed here"):
        await closing
    assert list((host.root / "etc/hostler").iterdir()) == []


async def test_a_list_that_was_not_settled_is_when_it_is_closed_again(
    host: LocalHost, fence: HookFence
) -> None:
    """libvirt stops to answer between the two lists."""
    host.domains(HERE)
    host.break_libvirt_next()
    with pytest.raises(CommandFailed, match="failed to connect"):
        await fence.close(ACCESS, BECAUSE, 1)
    assert (await fence.read(ACCESS)).closed == BECAUSE
    assert host.belongs() == {HERE}
    host.mend_libvirt()
    host.domains(HERE, THERE)
    await fence.close(ACCESS, BECAUSE, 1)
    assert host.belongs() == {HERE, THERE}
    host.domains(HERE, THERE, NEW)
    await fence.close(ACCESS, BECAUSE, 1)
    assert host.belongs() == {HERE, THERE}


async def test_what_it_should_not_say_is_its_own_failure(
    host: LocalHost, fence: HookFence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an `echo` in root's .bashrc."""
    run = host.run

    async def chatty(*args: Any, **more: Any) -> CommandResult:
        result = await run(*args, **more)
        return dataclasses.replace(result, stdout=f"welcome\n{result.stdout}")

    host.write("told", "7\n")
    monkeypatch.setattr(host, "run", chatty)
    with pytest.raises(CommandFailed, match="bashrc"):
        await fence.read(ACCESS)
    with pytest.raises(CommandFailed, match="bashrc"):
        await fence.close(ACCESS, BECAUSE, 6)


def _waits_for(file: Path) -> bool:
    """Whether somebody waits for a lock of that file."""
    inode = str(file.stat().st_ino)
    return any(
        "->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines()
    )
