"""What must be true of the lab after an operation, by the word of libvirt and of the guests."""

import itertools
from typing import Any

from tests.e2e.conftest import GUESTS
from tests.e2e.system import System
from tests.lab import Lab

_NEW = (
    "<domain type='qemu'><name>e2e-new</name><memory unit='MiB'>16</memory>"
    "<os><type arch='x86_64'>hvm</type></os></domain>"
)
_TRACES = (
    "/etc/hostler",
    "/etc/libvirt/hooks/qemu.d",
    "/var/lib/hostler",
    "/run/hostler-disks.lock",
)


async def places(lab: Lab) -> dict[str, str]:
    """Guest to its host, each active on exactly one and defined persistently on that one alone."""
    active: dict[str, list[str]] = {guest: [] for guest in GUESTS}
    defined: dict[str, list[str]] = {guest: [] for guest in GUESTS}
    for host in [row["name"] for row in (await lab.status())["hosts"]]:
        for found, which in ((active, ()), (defined, ("--all", "--persistent"))):
            for guest in (await lab.virsh(host, "list", "--name", *which)).stdout.split():
                if guest in found:
                    found[guest].append(host)
    for guest in GUESTS:
        assert len(active[guest]) == 1, (guest, active)
        assert defined[guest] == active[guest], (guest, defined)
    return {guest: hosts[0] for guest, hosts in active.items()}


async def assert_ticks(lab: Lab) -> None:
    """Every guest runs on, and its ticks since its boot are consecutive and unique."""
    for guest in GUESTS:
        await lab.ticks_on(guest)
        ticks = lab.ticks(guest)
        steps = {following - one for one, following in itertools.pairwise(ticks)}
        assert ticks[0] == 1, guest
        assert steps == {1}, (guest, steps)


async def assert_in_service(lab: Lab, name: str, host: dict[str, object]) -> None:
    """The inventory and the host itself agree that VMs may come."""
    assert host["resource_state"] == "Enabled"
    assert host["fence"] is None
    assert host["state_before_maintenance"] is None
    assert (await lab.exec(name, "test", "-s", "/etc/hostler/fence", check=False)).exit_status == 1


async def start_new(lab: Lab, host: str) -> tuple[int, str]:
    """Define a VM that was not there before, and try to start it; it is gone afterwards."""
    await lab.exec(host, "virsh", "define", "/dev/stdin", stdin=_NEW)
    try:
        started = await lab.virsh(host, "start", "e2e-new", "--paused", check=False)
        return started.exit_status, started.stderr
    finally:
        await lab.virsh(host, "destroy", "e2e-new", check=False)
        await lab.virsh(host, "undefine", "e2e-new")


async def assert_nothing_left(lab: Lab, host: str) -> None:
    """By the word of the host itself, asked past Hostler: ls, systemctl, grep, virsh."""
    for trace in _TRACES:
        there = await lab.exec(host, "ls", "-d", trace, check=False)
        assert there.exit_status != 0, there.stdout
    units = await lab.exec(host, "systemctl", "list-units", "--all", "--plain", "hostler-*")
    assert "hostler-" not in units.stdout
    # Whoever logged in, and wherever he is at home.
    look = 'getent passwd | cut -d : -f 6 | sort -u | sed "s|$|/.ssh|" | xargs grep -rs hostler'
    keys = await lab.exec(host, "sh", "-c", look, check=False)
    assert keys.stdout == ""
    status, why = await start_new(lab, host)
    assert status == 0, why


async def assert_audited(system: System, host: str) -> None:
    """Since the host was added last, each change of its state and status has one event, without a
    gap: the last ends where the host is now."""
    shown = await system.host(host)
    states = await _changes(system, host, "host.state")
    added = max(event["id"] for event in states if event["from_state"] is None)
    statuses = await _changes(system, host, "host.status")
    for events, now in ((states, shown["resource_state"]), (statuses, shown["status"])):
        changes = [event for event in events if event["id"] >= added]
        for former, later in itertools.pairwise(changes):
            assert later["from_state"] == former["to_state"], (former, later)
            assert later["to_state"] != later["from_state"]
        assert changes[-1]["to_state"] == now
        assert all(event["reason"] and event["actor"] for event in changes)


async def _changes(system: System, host: str, kind: str) -> list[dict[str, Any]]:
    """The oldest first."""
    query = {"subject": f"host/{host}", "kind": kind}
    events = (await system.request("GET", "/v1/events", params=query)).json()["items"]
    return [event for event in reversed(events) if event["to_state"] is not None]
