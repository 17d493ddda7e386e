"""What must be true of the lab after an operation, by the word of libvirt and of the guests."""

import itertools

from tests.e2e.conftest import GUESTS, HOSTS
from tests.lab import Lab


async def places(lab: Lab) -> dict[str, str]:
    """Guest to its host, each active on exactly one and defined persistently on that one alone."""
    active: dict[str, list[str]] = {guest: [] for guest in GUESTS}
    defined: dict[str, list[str]] = {guest: [] for guest in GUESTS}
    for host in HOSTS:
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
