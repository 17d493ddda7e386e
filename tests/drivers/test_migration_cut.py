"""A migration whose connections break at each message of libvirt's protocol.

What drivers/libvirt.py says of a client that dies is measured here. One guest is migrated to and
fro: each case starts from where the one before has left it, running once.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from enum import Enum, auto

import pytest

from contracts.errors import HostlerError
from contracts.vms import Vm, VmState
from drivers.errors import MigrationAborted, MigrationRefused
from drivers.libvirt import LibvirtHypervisor
from drivers.protocols import HostAccess, MigrationOptions
from drivers.ssh import AsyncSshShell
from tests.drivers.conftest import DESTINATION, SOURCE
from tests.drivers.tap import BEGIN, CONFIRM, FINISH, PERFORM, PREPARE, Cut, TappedShell
from tests.lab import Lab

GUEST = "drv-cut"


class Left(Enum):
    """What a cut migration leaves."""

    AT_SOURCE = auto()  # it runs there as if nothing had been
    NOWHERE = auto()  # paused at the source, nothing at the destination: `resume`
    BOTH = auto()  # it runs at the destination, paused at the source: `discard_migrated`
    MOVED = auto()  # it runs at the destination, nothing at the source


AT_SOURCE, NOWHERE, BOTH, MOVED = ({left} for left in Left)
CALL, REPLY = False, True
LOST, HEARD = False, True

# A call that is heard and at once followed by a hang-up: libvirtd acts on it or not.
MESSAGES = [
    ("source", BEGIN, CALL, LOST, AT_SOURCE),
    ("source", BEGIN, CALL, HEARD, AT_SOURCE),
    ("source", BEGIN, REPLY, LOST, AT_SOURCE),
    ("source", BEGIN, REPLY, HEARD, AT_SOURCE),
    ("destination", PREPARE, CALL, LOST, AT_SOURCE),
    ("destination", PREPARE, CALL, HEARD, AT_SOURCE),
    ("destination", PREPARE, REPLY, LOST, AT_SOURCE),
    ("destination", PREPARE, REPLY, HEARD, AT_SOURCE),
    ("source", PERFORM, CALL, LOST, AT_SOURCE),
    ("source", PERFORM, CALL, HEARD, AT_SOURCE),
    ("source", PERFORM, REPLY, LOST, NOWHERE),
    ("source", PERFORM, REPLY, HEARD, NOWHERE),
    ("destination", FINISH, CALL, LOST, NOWHERE),
    ("destination", FINISH, CALL, HEARD, NOWHERE | BOTH),
    ("destination", FINISH, REPLY, LOST, BOTH),
    ("destination", FINISH, REPLY, HEARD, BOTH),
    ("source", CONFIRM, CALL, LOST, BOTH),
    ("source", CONFIRM, CALL, HEARD, BOTH | MOVED),
    ("source", CONFIRM, REPLY, LOST, MOVED),
    ("source", CONFIRM, REPLY, HEARD, MOVED),
]
NAMES = {
    BEGIN: "begin",
    PREPARE: "prepare",
    PERFORM: "perform",
    FINISH: "finish",
    CONFIRM: "confirm",
}


def cases() -> Iterator[object]:
    for message in MESSAGES:
        end, procedure, reply, delivered, _ = message
        name = (
            f"{NAMES[procedure]}-{'reply' if reply else 'call'}-{'heard' if delivered else 'lost'}"
        )
        yield pytest.param(*message, False, id=f"both-{name}")
        if end == "destination":
            # The one that could make a VM run twice.
            yield pytest.param(*message, True, id=f"destination-{name}")


@pytest.fixture(scope="module")
def uuid(lab: Lab) -> Iterator[str]:
    """A guest that runs at SOURCE at first."""
    asyncio.run(lab.remove_guest(GUEST))
    yield asyncio.run(lab.start_guest(GUEST, on=SOURCE))
    asyncio.run(lab.remove_guest(GUEST))


@pytest.fixture(scope="module")
def both_hosts(lab: Lab) -> list[HostAccess]:
    return [asyncio.run(lab.access(host)) for host in (SOURCE, DESTINATION)]


@pytest.fixture
async def tapped(shell: AsyncSshShell) -> AsyncIterator[TappedShell]:
    tapped = TappedShell(shell)
    yield tapped
    await tapped.close()


@pytest.fixture
async def client(tapped: TappedShell) -> AsyncIterator[LibvirtHypervisor]:
    """The one whose connections are cut."""
    client = LibvirtHypervisor(tapped)
    yield client
    await client.close()


@pytest.mark.parametrize(
    ("end", "procedure", "reply", "delivered", "expected", "only"), list(cases())
)
async def test_it_ends_running_once(
    end: str,
    procedure: int,
    reply: bool,
    delivered: bool,
    expected: set[Left],
    only: bool,
    tapped: TappedShell,
    client: LibvirtHypervisor,
    hypervisor: LibvirtHypervisor,
    both_hosts: list[HostAccess],
    uuid: str,
    lab: Lab,
) -> None:
    source, destination = both_hosts
    if not runs(await hypervisor.find_vm(source, uuid)):
        source, destination = destination, source

    async def copying() -> None:
        while await hypervisor.migration_progress(source, uuid) is None:
            await asyncio.sleep(0.02)

    options = MigrationOptions(destination.address)
    if procedure == PERFORM and reply is CALL:
        options = MigrationOptions(destination.address, bandwidth_mib_s=1)  # it lasts
        tapped.before_cut = copying
    place = source if end == "source" else destination
    tapped.cut_at = Cut(place.name, procedure, reply, delivered, only_host=only)
    migration = asyncio.create_task(client.migrate(source, destination, uuid, options, print))
    await asyncio.wait([migration])
    assert tapped.cut_at is None
    error = migration.exception()
    assert error is None or isinstance(error, HostlerError)

    left = await settled(hypervisor, source, destination, uuid)
    assert left in expected
    if isinstance(error, MigrationRefused | MigrationAborted):
        assert left is Left.AT_SOURCE
    if error is None:
        assert left in BOTH | MOVED
    if left is Left.NOWHERE:
        await hypervisor.resume(source, uuid)
    if left is Left.BOTH:
        await hypervisor.discard_migrated(source, uuid)
    at, away = (source, destination) if left in AT_SOURCE | NOWHERE else (destination, source)
    await assert_runs_only_at(lab, at.name, away.name)


async def settled(
    hypervisor: LibvirtHypervisor, source: HostAccess, destination: HostAccess, uuid: str
) -> Left:
    """What is left when no libvirtd is at it any more. Asserts that the VM never runs twice."""
    while True:
        jobs = [await hypervisor.migration_progress(host, uuid) for host in (source, destination)]
        there = await hypervisor.find_vm(destination, uuid)
        here = await hypervisor.find_vm(source, uuid)
        assert not (runs(there) and runs(here))
        if any(jobs) or (there is not None and not runs(there)):
            await asyncio.sleep(0.05)
            continue
        if here is None:
            assert there is not None
            return Left.MOVED
        if runs(here):
            return Left.AT_SOURCE
        assert here.paused_by_migration
        return Left.BOTH if there is not None else Left.NOWHERE


def runs(vm: Vm | None) -> bool:
    return vm is not None and vm.state is VmState.RUNNING


async def assert_runs_only_at(lab: Lab, at: str, away: str) -> None:
    """Defined there alone, counting on, and no number counted twice."""
    while GUEST in (await lab.virsh(away, "list", "--all", "--name")).stdout.split():
        await asyncio.sleep(0.05)  # its libvirtd may have looked at its client last of all
    await lab.ticks_on(GUEST)
    for option in ("--state-running", "--persistent"):
        assert GUEST in (await lab.virsh(at, "list", option, "--name")).stdout.split()
    ticks = lab.ticks(GUEST)
    assert ticks == list(range(ticks[0], ticks[0] + len(ticks)))
