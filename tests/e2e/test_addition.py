"""Additions that find something, that are cut off, and that fail: on real hosts."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.conftest import add_host, add_topology
from tests.e2e.killing import Moments, MortalWorker
from tests.e2e.proofs import assert_in_service, assert_nothing_left, assert_ticks, places
from tests.e2e.system import System
from tests.forked import Said
from tests.lab import Lab

pytestmark = pytest.mark.timeout(900)

HOST = "kvm-2"
STEPS = (
    *("acquire_lease", "scan_host_key", "preflight_host", "register_host", "record_event"),
    *("read_facts", "install_fence", "stage_own_key", "install_own_key", "promote_own_key"),
    *("set_host_status", "change_host_state", "tell_hosts", "release_lease"),
)
# For what is run by SSH. All hosts of the lab have one clock, and sshd itself does not survive
# libfaketime.
AN_HOUR_AHEAD = """
set -eu
library=$(find /usr/lib -name libfaketime.so.1 | head -n 1)
[ -n "$library" ]
echo "SetEnv LD_PRELOAD=$library FAKETIME=+1h" >/etc/ssh/sshd_config.d/00-an-hour-ahead.conf
systemctl restart ssh
"""
OF_HOSTLER = r"""
ls -d /etc/hostler /etc/libvirt/hooks/qemu.d/hostler /var/lib/hostler 2>/dev/null
grep 'hostler:' /root/.ssh/authorized_keys 2>/dev/null
systemctl list-units --all --plain --no-legend 'hostler-*'
:
"""


async def row_of(lab: Lab, name: str) -> dict[str, str]:
    return next(row for row in (await lab.status())["hosts"] if row["name"] == name)


async def traces(lab: Lab, name: str) -> str:
    """All of Hostler's that is on a host."""
    return (await lab.exec(name, "sh", "-c", OF_HOSTLER)).stdout


async def attempt(system: System, row: dict[str, str], *more: str, password: str = "") -> Said:
    return await system.hostler(
        *("host", "add", row["name"], "--cluster", "cluster-1", "--address", row["address"]),
        *("--password-file", password or row["password_file"]),
        *("--accept-host-key", row["host_key_sha256"], *more),
    )


def codes(said: Said) -> list[str]:
    """Of the findings that a command has told."""
    lines = [line for line in said.stdout.splitlines() if line.startswith(("error [", "warning ["))]
    assert all(line.endswith(".") for line in lines)
    return [line.split("[")[1].split("]")[0] for line in lines]


@pytest_asyncio.fixture
async def clean(lab: Lab) -> AsyncIterator[str]:
    """HOST without anything of Hostler's, and repaired afterwards."""
    await lab.exec(HOST, "sh", "-c", "rm -rf /var/lib/hostler /root/.ssh")
    yield HOST
    repair = (
        "rm -f /etc/ssh/sshd_config.d/00-an-hour-ahead.conf; systemctl restart ssh; "
        "if [ -e /root/libvirtd.conf ]; then mv /root/libvirtd.conf /etc/libvirt/; fi; "
        "systemctl unmask libvirtd.service libvirtd.socket; "
        "systemctl daemon-reload; systemctl restart libvirtd"
    )
    await lab.exec(HOST, "sh", "-c", repair)


async def test_a_broken_host_tells_all_that_is_wrong_at_once(
    embedded: System, lab: Lab, clean: str, tmp_path: Path
) -> None:
    system = embedded
    await system.up()
    await add_topology(system)
    first, row = await row_of(lab, "kvm-1"), await row_of(lab, HOST)
    await add_host(system, first)

    wrong = tmp_path / "wrong"
    wrong.write_text("not-it-2718")
    said = await attempt(system, {**row, "name": "kvm-1"}, "--dry-run", password=str(wrong))
    assert said.status == 1
    assert codes(said) == ["name-taken", "login-refused"]

    uuid = (await lab.exec("kvm-1", "grep", "^host_uuid", "/etc/libvirt/libvirtd.conf")).stdout
    await lab.exec(
        HOST,
        *(
            "sh",
            "-c",
            'cp /etc/libvirt/libvirtd.conf /root/ && echo "$0" >>/etc/libvirt/libvirtd.conf',
        ),
        uuid.strip(),
    )
    await lab.exec(HOST, "systemctl", "stop", "libvirtd.service", "libvirtd.socket")
    await lab.exec(HOST, "systemctl", "mask", "libvirtd.service", "libvirtd.socket")
    await lab.exec(HOST, "sh", "-c", AN_HOUR_AHEAD)
    for more in (("--dry-run",), ()):
        said = await attempt(system, row, *more)
        assert said.status == 1
        assert set(codes(said)) >= {"uuid-taken", "clock-skew", "libvirtd-masked", "no-kvm"}
        assert "hostler: kvm-2" in said.stderr
        assert len(said.stderr.splitlines()) == 1
    assert await traces(lab, HOST) == ""
    assert [host["name"] for host in await system.shown("host", "list")] == ["kvm-1"]


async def test_the_key_logs_in_and_nothing_is_left_after_a_failure(
    embedded: System, lab: Lab, clean: str
) -> None:
    system = embedded
    await system.up()
    await add_topology(system)
    row = await row_of(lab, HOST)
    # A hook of somebody else's that lets no VM start: the fence is down, and that is not enough.
    theirs = "/etc/libvirt/hooks/qemu.d/theirs"
    install = f"mkdir -p {theirs.rpartition('/')[0]}; printf '#!/bin/sh\\nexit 1\\n' >{theirs}; "
    await lab.exec(HOST, "sh", "-c", install + f"chmod 755 {theirs}; systemctl restart libvirtd")
    said = await attempt(system, row)
    assert said.status == 1, said
    assert await traces(lab, HOST) == ""
    assert await system.shown("host", "list") == []

    await lab.exec(HOST, "rm", theirs)
    await add_host(system, row)
    await assert_in_service(lab, HOST, await system.host(HOST))
    line = (await lab.exec(HOST, "cat", "/root/.ssh/authorized_keys")).stdout
    assert line.startswith("ssh-ed25519 ")
    assert line.endswith(f" hostler:{HOST}\n")
    # From now on the password does not matter.
    await lab.exec(HOST, "passwd", "--lock", "root")
    try:
        await system.done("maintenance", "enter", HOST, "--watch")
        await system.done("maintenance", "leave", HOST)
    finally:
        await lab.exec(HOST, "passwd", "--unlock", "root")


async def test_a_host_whose_sshd_takes_no_keys(embedded: System, lab: Lab, clean: str) -> None:
    system = embedded
    await system.up()
    await add_topology(system)
    conf = "/etc/ssh/sshd_config.d/00-no-keys.conf"
    await lab.exec(HOST, "sh", "-c", f"echo PubkeyAuthentication no >{conf}; systemctl restart ssh")
    try:
        await add_host(system, await row_of(lab, HOST))
    finally:
        await lab.exec(HOST, "sh", "-c", f"rm {conf}; systemctl restart ssh")
    await assert_in_service(lab, HOST, await system.host(HOST))
    assert "hostler:" not in await traces(lab, HOST)
    assert any("own-key-refused" in event for event in await system.events(f"host/{HOST}"))


async def test_a_user_who_becomes_root_by_sudo(embedded: System, lab: Lab, clean: str) -> None:
    system = embedded
    await system.up()
    await add_topology(system)
    first, row = await row_of(lab, "kvm-1"), await row_of(lab, HOST)
    await add_host(system, first)
    async with lab.user(HOST, "ops"):
        said = await attempt(system, row, "--user", "ops")
        assert (said.status, codes(said)) == (1, ["no-sudo"])
        assert "ops ALL=(ALL) NOPASSWD: ALL" in said.stdout
        assert await traces(lab, HOST) == ""

    async with lab.user(HOST, "ops", "ops ALL=(ALL) NOPASSWD: ALL"):
        await add_host(system, row, "--user", "ops")
        await assert_in_service(lab, HOST, await system.host(HOST))
        line = (await lab.exec(HOST, "cat", "/srv/ops/.ssh/authorized_keys")).stdout
        assert line.endswith(f" hostler:{HOST}\n")
        assert "hostler:" not in await traces(lab, HOST)
        await lab.exec(HOST, "passwd", "--lock", "ops")

        await system.done("maintenance", "enter", "kvm-1", "--watch")
        assert set((await places(lab)).values()) == {HOST}
        await system.done("maintenance", "leave", "kvm-1")
        said = await system.hostler("host", "remove", HOST, "--after-maintenance", "--reason", "x")
        assert said.status == 0, said
        assert set((await places(lab)).values()) == {"kvm-1"}
        await assert_ticks(lab)
        await assert_nothing_left(lab, HOST)


async def test_a_worker_killed_at_each_step(
    split: System, lab: Lab, clean: str, tmp_path: Path, moments: Moments
) -> None:
    worker = MortalWorker(split, tmp_path / "failpoints")
    await worker.start()
    await add_topology(split)
    armed = worker.arm(STEPS, moments)
    adding = asyncio.create_task(add_host(split, await row_of(lab, HOST)))
    await worker.die_at(armed, adding)
    await adding
    await assert_in_service(lab, HOST, await split.host(HOST))
    keys = (await lab.exec(HOST, "cat", "/root/.ssh/authorized_keys")).stdout
    assert keys.count("hostler:") == 1
    states = [event for event in await split.events(f"host/{HOST}") if "-> Enabled" in event]
    assert len(states) == 1
