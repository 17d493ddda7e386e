"""What surveys make of hosts that checks have found away; drivers in memory, no lab."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
from temporalio.client import Client

from activities.directory import HostDirectory
from activities.holders import Holders
from activities.survey import SurveyActivities
from contracts.evacuation import HostEnvironment
from contracts.states import AllocationState, HostStatus, ResourceState
from contracts.steps import CheckHostInput, SurveyInput
from contracts.vms import Vm
from drivers.errors import HostUnreachable
from drivers.protocols import Capacity, HostAccess, Hypervisor
from inventory import Inventory, SecretBox
from tests.activities.conftest import change_state, run
from tests.databases import sqlite_database
from tests.inventory.conftest import enabled


class Answering:
    """All hosts answer but those in `away`, and run nothing."""

    def __init__(self, *away: str) -> None:
        self._away = away

    async def list_vms(self, access: HostAccess) -> list[Vm]:
        return []

    async def environment(self, access: HostAccess) -> HostEnvironment:
        if access.name in self._away:
            raise HostUnreachable(f"{access.name} does not answer.")
        return HostEnvironment()

    async def capacity(self, access: HostAccess) -> Capacity:
        await self.environment(access)
        return Capacity(512, 4, 0, 0, frozenset())


@pytest.fixture
async def inventory(tmp_path: Path) -> AsyncIterator[Inventory]:
    """kvm-1 to kvm-4, `Enabled` and `Up`, in enabled places."""
    database = sqlite_database(tmp_path)
    inventory = Inventory(database, SecretBox(SecretBox.new_key()))
    topology = inventory.topology
    await topology.create_zone("zone-1", actor="test")
    await topology.set_zone_state("zone-1", AllocationState.ENABLED, actor="test")
    await topology.create_pod("pod-1", "zone-1", actor="test")
    await topology.set_pod_state("pod-1", AllocationState.ENABLED, actor="test")
    await topology.create_cluster("cluster-1", "pod-1", actor="test")
    await topology.set_cluster_state("cluster-1", AllocationState.ENABLED, actor="test")
    for number in range(1, 5):
        await enabled(inventory, number)
    yield inventory
    await database.close()


def activities(inventory: Inventory, *away: str) -> SurveyActivities:
    return SurveyActivities(
        inventory,
        HostDirectory(inventory),
        cast(Hypervisor, Answering(*away)),
        Holders(inventory, cast(Client, None)),  # nothing is held: nobody is asked
    )


async def test_a_destination_that_checks_found_away_is_absent_not_ruled_out(
    inventory: Inventory,
) -> None:
    """A VM is never shut down because the host that could take it was away for a moment."""
    await inventory.hosts.set_status("kvm-2", HostStatus.DISCONNECTED, actor="test", reason="x")
    await inventory.hosts.set_status("kvm-4", HostStatus.DISCONNECTED, actor="test", reason="x")
    await change_state(inventory, "kvm-4", ResourceState.DISABLED)
    survey = await run(activities(inventory, "kvm-3").survey_host, SurveyInput(host="kvm-1"))
    found = {one.host: (one.unsuitable, one.absent) for one in survey.candidates}
    assert found["kvm-2"] == ("is Disconnected", True)
    assert found["kvm-3"] == ("does not answer: kvm-3 does not answer.", True)
    assert found["kvm-4"] == ("is Disabled", False)


@pytest.mark.parametrize("status", [HostStatus.DISCONNECTED, HostStatus.ALERT])
async def test_a_host_that_is_checked_to_go_back_is_up_at_once(
    inventory: Inventory, status: HostStatus
) -> None:
    await inventory.hosts.set_status("kvm-1", status, actor="test", reason="rebooted")
    check = CheckHostInput(host="kvm-1", environment=None)
    with pytest.raises(HostUnreachable):
        await run(activities(inventory, "kvm-1").check_host, check)
    assert (await inventory.hosts.get("kvm-1")).status is status
    await run(activities(inventory).check_host, check)
    host = await inventory.hosts.get("kvm-1")
    assert (host.status, host.status_reason) == (HostStatus.UP, "it answers again")


async def test_one_that_is_down_is_left_to_its_operation(inventory: Inventory) -> None:
    await inventory.hosts.set_status("kvm-1", HostStatus.DOWN, actor="test", reason="said so")
    await run(activities(inventory).check_host, CheckHostInput(host="kvm-1", environment=None))
    assert (await inventory.hosts.get("kvm-1")).status is HostStatus.DOWN
