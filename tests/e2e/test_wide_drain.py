"""Two hosts of a cluster are to be emptied at the same moment."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.e2e.conftest import HOSTS
from tests.e2e.proofs import assert_in_service, assert_ticks, places
from tests.e2e.system import System
from tests.lab import Lab

pytestmark = pytest.mark.timeout(400)

# Three more on kvm-2: all six, 96 MiB each, do not fit on kvm-3 with its 512 MiB.
MORE = ("vm-4", "vm-5", "vm-6")
CAPACITY_MIB = 512


@pytest_asyncio.fixture
async def crowded(populated: System, lab: Lab) -> AsyncIterator[System]:
    """Running, with three guests on kvm-1 and three on kvm-2."""
    await asyncio.gather(*(lab.start_guest(guest, on="kvm-2") for guest in MORE))
    await populated.up()
    yield populated
    for guest in MORE:
        await lab.remove_guest(guest)


class Ledger:
    """The guests of each host when they had the most memory together, by libvirt's word: name to
    MiB. Those that are on their way in have their memory already."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.most: dict[str, dict[str, int]] = {host: {} for host in HOSTS}
        self._task = asyncio.create_task(self._watch())

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            for host in HOSTS:
                now = _memory((await self._lab.virsh(host, "domstats", "--balloon")).stdout)
                if sum(now.values()) > sum(self.most[host].values()):
                    self.most[host] = now


def _memory(stats: str) -> dict[str, int]:
    """MiB of each guest, of what `virsh domstats --balloon` says."""
    found: dict[str, int] = {}
    name = ""
    for line in stats.splitlines():
        key, _, value = line.strip().partition("=")
        if key.startswith("Domain:"):
            name = key.removeprefix("Domain:").strip(" '")
        elif key == "balloon.maximum":
            found[name] = int(value) // 1024
    return {guest: mib for guest, mib in found.items() if guest.startswith("vm-")}


@pytest.mark.some_a_day(
    ("most_out", "says"),
    [
        (1, "Waits for its turn: 1 of cluster-1 may be out at a time"),
        (2, "Waits for {other} to come back"),
    ],
)
async def test_one_waits_and_says_for_whom_and_nothing_overcommits(
    crowded: System, lab: Lab, most_out: int, says: str
) -> None:
    await crowded.set("maintenance.hosts.out.max", str(most_out))
    ledger = Ledger(lab)
    both = ("kvm-1", "kvm-2")
    await asyncio.gather(*(crowded.done("maintenance", "enter", host) for host in both))

    phases: dict[str, str] = {}
    while sorted(phases.values()) != ["Queued", "Ready"]:
        for host in both:
            phases[host] = (await crowded.maintenance(host)).get("phase", "")
        await asyncio.sleep(0.2)
    first, second = sorted(both, key=lambda host: phases[host] != "Ready")
    view = await crowded.maintenance(second)
    assert says.format(other=first) in view["message"]
    assert f"maintenance/{first}" in view["message"] or first in view["message"]
    assert (await crowded.host(second))["resource_state"] == "Enabled"
    (listed,) = [row for row in await crowded.shown("maintenance", "list") if row["host"] == second]
    assert listed["phase"] == "Queued"

    await crowded.done("maintenance", "leave", first)
    await crowded.until_phase(second, "Ready")
    await crowded.done("maintenance", "leave", second)
    await ledger.end()
    assert all(sum(most.values()) <= CAPACITY_MIB for most in ledger.most.values()), ledger.most
    await places(lab)
    await assert_ticks(lab)
    for guest in MORE:
        ticks = lab.ticks(guest)
        assert ticks == list(range(1, len(ticks) + 1))
    for host in both:
        await assert_in_service(lab, host, await crowded.host(host))
