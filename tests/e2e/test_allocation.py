"""What is Disabled takes no new VM, by the hosts' own word; what was there goes on."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from drivers.errors import MigrationRefused
from drivers.libvirt import LibvirtHypervisor
from drivers.protocols import MigrationOptions
from drivers.ssh import AsyncSshShell
from tests.e2e.conftest import GUESTS, HOSTS, add_hosts
from tests.e2e.proofs import assert_ticks, places, start_new
from tests.e2e.system import System
from tests.lab import Lab

pytestmark = pytest.mark.timeout(400)

BECAUSE = "cluster cluster-1 is Disabled"


@pytest_asyncio.fixture
async def stranger() -> AsyncIterator[LibvirtHypervisor]:
    """Somebody else's libvirt client."""
    shell = AsyncSshShell()
    hypervisor = LibvirtHypervisor(shell)
    yield hypervisor
    await hypervisor.close()
    await shell.close()


async def closed(lab: Lab, host: str) -> str:
    return (await lab.exec(host, "cat", "/etc/hostler/closed", check=False)).stdout.strip()


async def assert_open(system: System, lab: Lab) -> None:
    """By the inventory, the files and libvirt."""
    for host in HOSTS:
        assert not (await system.host(host))["closed"]
        assert (await lab.exec(host, "ls", "/etc/hostler")).stdout.split().count("closed") == 0
        status, why = await start_new(lab, host)
        assert status == 0, (host, why)


async def assert_closed(system: System, lab: Lab) -> None:
    for host in HOSTS:
        assert (await system.host(host))["closed"]
        assert await closed(lab, host) == BECAUSE
        status, why = await start_new(lab, host)
        assert status != 0, host
        assert f"host is closed: {BECAUSE}" in why


async def test_a_disabled_cluster_takes_no_new_vm_and_restarts_its_own(
    populated: System, lab: Lab, stranger: LibvirtHypervisor
) -> None:
    await populated.up()
    await assert_open(populated, lab)
    said = await populated.done("cluster", "disable", "cluster-1", "--reason", "new switch")
    assert "cluster cluster-1 is Disabled. 3 hosts were told." in said
    await assert_closed(populated, lab)
    await assert_ticks(lab)

    await lab.virsh("kvm-1", "destroy", GUESTS[0])
    await lab.virsh("kvm-1", "start", GUESTS[0])
    assert (await places(lab))[GUESTS[0]] == "kvm-1"
    # Nor does one come from another host, whoever sends it.
    source, destination = await lab.access("kvm-1"), await lab.access("kvm-2")
    uuid = (await lab.virsh("kvm-1", "domuuid", GUESTS[1])).stdout.strip()
    options = MigrationOptions(destination.address)
    with pytest.raises(MigrationRefused, match=f"host is closed: {BECAUSE}"):
        await stranger.migrate(source, destination, uuid, options, print)
    for guest in GUESTS[1:]:
        await lab.ticks_on(guest)

    await populated.done("cluster", "enable", "cluster-1")
    await assert_open(populated, lab)
    await populated.record("cluster-allocation/cluster-1", "allocation_state")


async def test_a_host_of_its_own_and_its_maintenance(populated: System, lab: Lab) -> None:
    await populated.up()
    await populated.done("host", "disable", "kvm-2")
    assert await closed(lab, "kvm-2") == "host kvm-2 is Disabled"
    assert (await start_new(lab, "kvm-2"))[0] != 0
    assert (await start_new(lab, "kvm-3"))[0] == 0
    await populated.done("maintenance", "enter", "kvm-2", "--watch")
    refused = await populated.hostler("host", "enable", "kvm-2")
    assert refused.status == 1
    assert "maintenance leave kvm-2" in refused.stderr
    assert "host is fenced by maintenance/kvm-2" in (await start_new(lab, "kvm-2"))[1]
    # It comes back as it was, without a moment in which a VM could start.
    await populated.done("maintenance", "leave", "kvm-2")
    assert (await populated.host("kvm-2"))["resource_state"] == "Disabled"
    assert "host is closed" in (await start_new(lab, "kvm-2"))[1]
    await populated.done("host", "enable", "kvm-2")
    assert (await start_new(lab, "kvm-2"))[0] == 0


async def test_a_host_that_comes_into_a_disabled_cluster_is_closed(
    embedded: System, lab: Lab
) -> None:
    await embedded.up()
    await add_hosts(embedded, lab, enabled=False)
    await assert_closed(embedded, lab)


async def test_a_host_that_is_away_is_reported(populated: System, lab: Lab) -> None:
    await populated.up()
    await lab.exec("kvm-2", "systemctl", "stop", "libvirtd.service", "libvirtd.socket")
    try:
        said = await populated.hostler("cluster", "disable", "cluster-1")
    finally:
        await lab.exec("kvm-2", "systemctl", "start", "libvirtd.socket", "libvirtd.service")
    assert said.status == 0
    assert "2 hosts were told" in said.stdout
    assert "kvm-2 could not be told" in said.stderr
    assert not (await populated.host("kvm-2"))["closed"]
    assert "3 hosts were told" in await populated.done("cluster", "disable", "cluster-1")
    await assert_closed(populated, lab)


async def test_a_worker_killed_in_the_middle_of_telling(populated_split: System, lab: Lab) -> None:
    worker = await populated_split.worker()
    # Another change on the host keeps the word from getting through.
    held = asyncio.create_task(lab.exec("kvm-2", "flock", "/etc/hostler/lock", "sleep", "12"))
    disabling = asyncio.create_task(populated_split.done("cluster", "disable", "cluster-1"))
    await populated_split.until_running("cluster-allocation/cluster-1", "tell_hosts")
    while not await closed(lab, "kvm-3"):
        await asyncio.sleep(0.1)
    populated_split.kill(worker)
    await held
    await populated_split.worker()
    assert "3 hosts were told" in await disabling
    await assert_closed(populated_split, lab)
    await populated_split.record("cluster-allocation/cluster-1", "allocation_state_worker_killed")
    await populated_split.done("cluster", "enable", "cluster-1")
    await assert_open(populated_split, lab)
