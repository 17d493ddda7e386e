"""The BMCs of the lab, as ipmitool sees them. kvm-3 is the host whose power they switch."""

import asyncio
import json
import os
import signal
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab import BmcAccess, Lab

HOSTS = ("kvm-1", "kvm-2", "kvm-3")
HOST = "kvm-3"
GUEST = "lab-bmc"
RUN = Path("/run/hostler-lab")
LOG = Path(__file__).parents[2] / "deploy/lab/.state/bmc.log"
# It leaves a file behind whenever the host shuts down in good order.
UNIT = """[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/rm -f /root/in-good-order
ExecStop=/usr/bin/touch /root/in-good-order
"""


@pytest.fixture(autouse=True)
async def all_on(lab: Lab) -> AsyncIterator[None]:
    """Every test finds all hosts on, and leaves them so."""
    await lab.up()
    yield
    await lab.power_on()


@pytest.fixture
async def bmc(lab: Lab) -> BmcAccess:
    return await lab.bmc(HOST)


async def watch_shutdown(lab: Lab) -> None:
    path = "/run/systemd/system/watch-shutdown.service"
    await lab.exec(HOST, "sh", "-c", f"cat >{path}", stdin=UNIT)
    await lab.exec(HOST, "systemctl", "start", "watch-shutdown")


async def in_good_order(lab: Lab) -> bool:
    """After the next boot: did the host shut down before it?"""
    return (await lab.exec(HOST, "ls", "/root/in-good-order", check=False)).exit_status == 0


async def next_boot(lab: Lab, before: str | None) -> str:
    """The id of the boot after that one."""
    while (boot := await lab.boot_id(HOST)) in (None, before):
        await asyncio.sleep(0.1)
    assert boot is not None
    return boot


async def booted(lab: Lab) -> None:
    """The host takes orders of systemd."""
    while (await lab.exec(HOST, "systemctl", "is-system-running", check=False)).stdout not in (
        "running\n",
        "degraded\n",
    ):
        await asyncio.sleep(0.2)


def saved_users() -> str:
    """What the simulator has written of users that were changed through IPMI."""
    return "".join(users.read_text() for users in (RUN / "bmc/state").rglob("users.*"))


def record(name: str) -> int:
    """The id of a process that the lab has recorded."""
    pid: int = json.loads((RUN / name).read_text())["pid"]
    return pid


async def test_every_host_has_a_bmc_of_its_own(lab: Lab) -> None:
    rows = {row["name"]: row for row in (await lab.status())["hosts"]}
    bmcs = {host: await lab.bmc(host) for host in HOSTS}
    for number, (host, bmc) in enumerate(bmcs.items(), start=11):
        assert (bmc.address, bmc.port) == (f"198.18.1.{number}", 623)
        assert mode(rows[host]["bmc"]["password_file"]) == 0o600
        assert bmc.password != (await lab.access(host)).password
        capabilities = (await lab.virsh(host, "capabilities")).stdout
        assert f"<uuid>{bmc.guid}</uuid>" in capabilities
        assert bmc.guid in (await lab.ipmitool(bmc, "mc", "guid")).stdout
        assert await lab.powered(bmc)
    assert len({bmc.password for bmc in bmcs.values()}) == len(HOSTS)
    assert len({bmc.user for bmc in bmcs.values()}) == len(HOSTS)


async def test_off_takes_the_power_from_host_and_guests(lab: Lab, bmc: BmcAccess) -> None:
    before = await lab.boot_id(HOST)
    await watch_shutdown(lab)
    await lab.start_guest(GUEST, on=HOST)
    try:
        leader = record(f"hosts/{HOST}/leader")
        assert runs(leader)
        assert len(processes_of(GUEST)) == 1
        await lab.ipmitool(bmc, "power", "off")
        await lab.until_powered(bmc, False)
        row = next(row for row in (await lab.status())["hosts"] if row["name"] == HOST)
        assert (row["state"], row["boot_id"]) == ("stopped", None)
        assert not runs(leader)
        assert not processes_of(GUEST)
        last = lab.ticks(GUEST)[-1]
        # Off it stays, and a second time is no error.
        await lab.ipmitool(bmc, "power", "off")
        assert not await lab.powered(bmc)
        await lab.ipmitool(bmc, "power", "on")
        await lab.until_powered(bmc, True)
        await next_boot(lab, before)
        await lab.power_on()
        assert not await in_good_order(lab)
        assert lab.ticks(GUEST)[-1] == last
    finally:
        await lab.power_on()
        await lab.remove_guest(GUEST)


def runs(pid: int) -> bool:
    """A dead process may wait for its parent to take note of it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def mode(path: str) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


def processes_of(guest: str) -> list[int]:
    """Every QEMU on this machine that runs the guest."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if f"guest={guest}".encode() in words and b"qemu" in words.split(b"\0")[0]:
            found.append(int(process.name))
    return found


async def test_soft_shuts_down_in_good_order(lab: Lab, bmc: BmcAccess) -> None:
    before = await lab.boot_id(HOST)
    await booted(lab)
    await watch_shutdown(lab)
    await lab.ipmitool(bmc, "power", "soft")
    await lab.until_powered(bmc, False)
    assert await lab.boot_id(HOST) is None
    await lab.ipmitool(bmc, "power", "on")
    await next_boot(lab, before)
    assert await in_good_order(lab)


@pytest.mark.parametrize("action", ["reset", "cycle"])
async def test_a_new_boot_without_a_shutdown(lab: Lab, bmc: BmcAccess, action: str) -> None:
    before, log = await lab.boot_id(HOST), len(orders())
    await watch_shutdown(lab)
    await lab.ipmitool(bmc, "power", action)
    after = await next_boot(lab, before)
    await lab.until_powered(bmc, True)
    await lab.power_on()
    assert await lab.boot_id(HOST) == after
    assert not await in_good_order(lab)
    assert orders()[log:] == {"reset": ["reset"], "cycle": ["off", "on"]}[action]


def orders() -> list[str]:
    """All that the BMC has told the host's chassis to do."""
    lines = LOG.read_text().splitlines()
    return [line.split()[2] for line in lines if line.startswith(f"bmc: {HOST}: ")]


@pytest.mark.parametrize("action", ["reset", "on"])
async def test_a_boot_from_the_network_installs_once(lab: Lab, bmc: BmcAccess, action: str) -> None:
    before, key = await lab.boot_id(HOST), (await lab.access(HOST)).host_key
    if action == "on":
        await lab.ipmitool(bmc, "power", "off")
        await lab.until_powered(bmc, False)
    await lab.ipmitool(bmc, "chassis", "bootdev", "pxe")
    assert "Force PXE" in (await lab.ipmitool(bmc, "chassis", "bootparam", "get", "5")).stdout
    await lab.ipmitool(bmc, "power", action)
    installed = await next_boot(lab, before)
    await booted(lab)
    other = (await lab.access(HOST)).host_key
    assert other != key
    await lab.ipmitool(bmc, "power", "reset")
    await next_boot(lab, installed)
    assert (await lab.access(HOST)).host_key == other


async def test_a_boot_device_that_is_taken_back_is_not_used(lab: Lab, bmc: BmcAccess) -> None:
    before, key = await lab.boot_id(HOST), (await lab.access(HOST)).host_key
    await lab.ipmitool(bmc, "chassis", "bootdev", "pxe")
    await lab.ipmitool(bmc, "chassis", "bootdev", "none")
    await lab.ipmitool(bmc, "power", "reset")
    await next_boot(lab, before)
    assert (await lab.access(HOST)).host_key == key


async def test_orders_are_followed_one_after_the_other(lab: Lab, bmc: BmcAccess) -> None:
    before = await lab.boot_id(HOST)
    for action in ("off", "on", "off", "on"):
        await lab.ipmitool(bmc, "power", action)
    await next_boot(lab, before)
    await lab.until_powered(bmc, True)
    await lab.power_on()
    assert await lab.powered(bmc)


async def test_on_leaves_a_host_alone_that_is_on(lab: Lab, bmc: BmcAccess) -> None:
    before = await lab.boot_id(HOST)
    await lab.ipmitool(bmc, "power", "on")
    await lab.exec(HOST, "true")
    assert await lab.boot_id(HOST) == before


async def test_a_host_that_is_off_has_nothing_to_shut_down(lab: Lab, bmc: BmcAccess) -> None:
    await lab.ipmitool(bmc, "power", "off")
    await lab.until_powered(bmc, False)
    for action in ("reset", "soft"):
        assert (await lab.ipmitool(bmc, "power", action, check=False)).exit_status != 0
    assert not await lab.powered(bmc)


async def test_a_host_that_dies_by_itself_is_off(lab: Lab, bmc: BmcAccess) -> None:
    os.kill(record(f"hosts/{HOST}/leader"), signal.SIGKILL)
    await lab.until_powered(bmc, False)
    await lab.power_on()
    assert await lab.powered(bmc)
    await lab.exec(HOST, "systemctl", "poweroff")
    await lab.until_powered(bmc, False)
    assert [await lab.powered(await lab.bmc(host)) for host in HOSTS] == [True, True, False]


async def test_a_host_that_reboots_has_its_power_all_the_time(lab: Lab, bmc: BmcAccess) -> None:
    reboot = asyncio.create_task(lab.reboot(HOST))
    seen = set()
    while not reboot.done():
        seen.add(await lab.powered(bmc))
    await reboot
    assert seen == {True}


async def test_who_does_not_know_the_password_is_refused(lab: Lab, bmc: BmcAccess) -> None:
    other = await lab.bmc("kvm-1")
    before = await lab.boot_id(HOST)
    for wrong in (
        replace(bmc, password="wrong"),
        replace(bmc, password=other.password),
        replace(bmc, user=other.user, password=other.password),
    ):
        done = await lab.ipmitool(wrong, "power", "off", retries=1, check=False)
        assert done.exit_status == 1
        assert "Unable to establish" in done.stderr
    assert await lab.powered(bmc)
    assert await lab.boot_id(HOST) == before


async def test_a_rebuilt_host_keeps_its_bmc(lab: Lab, bmc: BmcAccess) -> None:
    process = record("bmc/process")
    await lab.ipmitool(bmc, "power", "off")
    await lab.until_powered(bmc, False)
    await lab.rebuild(HOST)
    assert await lab.bmc(HOST) == bmc
    assert record("bmc/process") == process
    assert await lab.powered(bmc)


async def test_a_bmc_answers_while_the_cable_of_its_host_is_cut(lab: Lab, bmc: BmcAccess) -> None:
    before = await lab.boot_id(HOST)
    await lab.cut(HOST)
    assert await lab.powered(bmc)
    await lab.ipmitool(bmc, "power", "reset")
    await next_boot(lab, before)


async def test_up_leaves_bmcs_alone_and_starts_dead_ones_as_they_were(
    lab: Lab, bmc: BmcAccess
) -> None:
    boots = [await lab.boot_id(host) for host in HOSTS]
    process = record("bmc/process")
    await lab.power_on()
    assert record("bmc/process") == process
    changed = replace(bmc, password="another-one")
    await lab.ipmitool(bmc, "user", "set", "password", "2", changed.password)
    while changed.password not in saved_users():
        await asyncio.sleep(0.1)
    os.kill(process, signal.SIGKILL)
    dead = await lab.ipmitool(changed, "power", "status", retries=1, check=False)
    assert dead.exit_status != 0
    await lab.power_on()
    assert record("bmc/process") != process
    assert await lab.powered(changed)
    assert await lab.bmc(HOST) == bmc
    assert [await lab.boot_id(host) for host in HOSTS] == boots
    await lab.ipmitool(changed, "user", "set", "password", "2", bmc.password)
    assert await lab.powered(bmc)
