"""What is seen of a host and its cluster, and what is waited for."""

import asyncio

import pytest
from temporalio.client import Client

from activities.survey import HostNotSound, SurveyActivities
from contracts.evacuation import BlockerKind
from contracts.leases import LeaseRef, LeaseScope
from contracts.settings import MIGRATION_NETWORK, STORAGE_SHARED_PATHS
from contracts.states import AllocationState, HostStatus, ResourceState
from contracts.steps import (
    AwaitChangeInput,
    CheckHostInput,
    HostRef,
    ReturnSurveyInput,
    SurveyInput,
    VmChange,
    WatchVmInput,
)
from inventory import Inventory
from tests.activities.conftest import (
    GUEST,
    SOURCE,
    change_state,
    open_workflow,
    put,
    ref,
    reserve,
    run,
)
from tests.lab import Lab

DESTINATION = "kvm-2"


async def test_a_survey_sees_vms_room_and_reasons(
    survey_activities: SurveyActivities, inventory: Inventory, client: Client, vm: str, lab: Lab
) -> None:
    survey = await run(survey_activities.survey_host, SurveyInput(host=SOURCE))
    assert vm in [one.uuid for one in survey.vms]
    rooms = {one.host: one for one in survey.candidates}
    assert set(rooms) == {"kvm-2", "kvm-3"}
    assert all(room.unsuitable is None and room.cpus_free > 0 for room in rooms.values())
    free = rooms["kvm-2"].memory_free_mib
    assert 0 < free <= 512
    _, owner = await open_workflow(client)
    theirs = ref(await inventory.leases.acquire("kvm-3", LeaseScope.PLACEMENT, owner, "test"))
    own = ref(await inventory.leases.acquire(SOURCE, LeaseScope.PLACEMENT, owner, "test"))
    await reserve(inventory, own, DESTINATION, vm)  # its own place does not stand in its way
    await reserve(inventory, theirs, DESTINATION, "somebody-elses")
    await inventory.hosts.set_status(
        "kvm-3", HostStatus.DISCONNECTED, actor="test", reason="silent"
    )
    survey = await run(survey_activities.survey_host, SurveyInput(host=SOURCE))
    rooms = {one.host: one for one in survey.candidates}
    assert rooms["kvm-2"].memory_free_mib == free - 96
    assert rooms["kvm-2"].reserved_for == {vm, "somebody-elses"}
    assert rooms["kvm-3"].unsuitable == "is Disconnected"
    await inventory.topology.set_zone_state("zone-1", AllocationState.DISABLED, actor="test")
    survey = await run(survey_activities.survey_host, SurveyInput(host=SOURCE))
    rooms = {one.host: one for one in survey.candidates}
    assert rooms["kvm-2"].unsuitable == "zone zone-1 is Disabled"


async def test_what_remains_and_what_is_on_its_way(
    survey_activities: SurveyActivities, inventory: Inventory, lease: LeaseRef, vm: str
) -> None:
    await reserve(inventory, lease, DESTINATION, vm)
    here = await run(survey_activities.list_remaining_vms, HostRef(host=SOURCE))
    there = await run(survey_activities.list_remaining_vms, HostRef(host="kvm-2"))
    assert GUEST in [one.name for one in here.vms]
    assert here.arriving == ()
    assert there.arriving == (GUEST,)


async def test_facts_are_read_and_kept(
    survey_activities: SurveyActivities, inventory: Inventory, lease: LeaseRef
) -> None:
    facts = await run(survey_activities.read_facts, lease)
    assert facts.cpus >= 1
    assert facts.libvirt_version.startswith("9.")
    assert facts.operating_system.startswith("Debian")
    assert (await inventory.hosts.get(SOURCE)).facts == facts


async def test_a_destination_lacks_what_the_vm_needs(
    survey_activities: SurveyActivities, inventory: Inventory, lab: Lab
) -> None:
    await lab.remove_guest(GUEST)
    await lab.exec(SOURCE, "ip", "link", "add", "br-tenant", "type", "bridge")
    await lab.exec(SOURCE, "ip", "link", "set", "br-tenant", "up")
    try:
        await lab.start_guest(GUEST, on=SOURCE, bridge="br-tenant")
        survey = await run(survey_activities.survey_host, SurveyInput(host=SOURCE))
        assert "br-tenant" in survey.environment.interfaces
        for candidate in survey.candidates:
            problem = candidate.incompatible[GUEST]
            assert problem.kind is BlockerKind.NETWORK
            assert problem.message == "has no network device br-tenant"
        check = CheckHostInput(host=SOURCE, environment=survey.environment)
        await run(survey_activities.check_host, check)
        await lab.remove_guest(GUEST)
        await lab.exec(SOURCE, "ip", "link", "del", "br-tenant")
        with pytest.raises(HostNotSound, match="network device br-tenant"):
            await run(survey_activities.check_host, check)
    finally:
        await lab.remove_guest(GUEST)
        await lab.exec(SOURCE, "ip", "link", "del", "br-tenant", check=False)


async def test_storage_that_is_declared_shared_is_not_local(
    survey_activities: SurveyActivities, inventory: Inventory, lab: Lab
) -> None:
    await lab.remove_guest(GUEST)
    uuid = await lab.start_guest(GUEST, on=SOURCE, disk_local=True)
    look = SurveyInput(host=SOURCE, only=uuid)
    try:
        (vm,) = (await run(survey_activities.survey_host, look)).vms
        assert vm.local_disks == (f"/var/lib/libvirt/images/{GUEST}.raw",)
        await put(inventory, STORAGE_SHARED_PATHS, ["/var/lib/libvirt/images"])
        (shared,) = (await run(survey_activities.survey_host, look)).vms
        assert (shared.local_disks, shared.shared_disks) == ((), vm.local_disks)
    finally:
        await lab.remove_guest(GUEST)


async def test_hosts_outside_of_the_migration_network_take_no_vm(
    survey_activities: SurveyActivities, inventory: Inventory, vm: str, lab: Lab
) -> None:
    await put(inventory, MIGRATION_NETWORK, "198.18.77.0/24")
    await lab.exec(DESTINATION, "ip", "address", "add", "198.18.77.2/24", "dev", "lo")
    try:
        survey = await run(survey_activities.survey_host, SurveyInput(host=SOURCE, only=vm))
    finally:
        await lab.exec(DESTINATION, "ip", "address", "del", "198.18.77.2/24", "dev", "lo")
    rooms = {one.host: one.unsuitable for one in survey.candidates}
    assert rooms["kvm-2"] is None
    assert rooms["kvm-3"] == "has no address in the migration network 198.18.77.0/24"


async def test_a_host_that_is_out_tells_for_whom_and_what_it_would_have(
    survey_activities: SurveyActivities, inventory: Inventory, client: Client, vm: str
) -> None:
    _, owner = await open_workflow(client)
    theirs = ref(await inventory.leases.acquire("kvm-3", LeaseScope.PLACEMENT, owner, "test"))
    own = ref(await inventory.leases.acquire(SOURCE, LeaseScope.PLACEMENT, owner, "test"))
    await reserve(inventory, own, DESTINATION, vm)  # its own place does not stand in its way
    await run(survey_activities.read_facts, theirs)
    await change_state(inventory, "kvm-3", ResourceState.PREPARE_FOR_MAINTENANCE)
    survey = await run(survey_activities.survey_host, SurveyInput(host=SOURCE, only=vm))
    (out,) = [one for one in survey.candidates if one.host == "kvm-3"]
    assert out.unsuitable == "is PrepareForMaintenance"
    assert out.out_for == owner.workflow_id
    assert out.memory_free_mib == 512
    assert out.cpus_free > 0


async def test_a_vm_is_watched_until_something_changes(
    survey_activities: SurveyActivities,
    inventory: Inventory,
    lease: LeaseRef,
    vm: str,
    lab: Lab,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("activities.survey._WATCH_AGAIN_S", 0.2)
    quiet = WatchVmInput(host=SOURCE, uuid=vm, within_s=1)
    assert await run(survey_activities.watch_vm, quiet) is VmChange.NONE
    patient = quiet.model_copy(update={"within_s": 60})
    watch = asyncio.create_task(run(survey_activities.watch_vm, patient))
    await asyncio.sleep(2)
    await inventory.hosts.set_status(
        "kvm-3", HostStatus.DISCONNECTED, actor="test", reason="silent"
    )
    assert await watch is VmChange.CHANGED
    watch = asyncio.create_task(run(survey_activities.watch_vm, patient))
    await lab.virsh(SOURCE, "destroy", GUEST)
    assert await watch is VmChange.LEFT


async def test_room_is_waited_for(
    survey_activities: SurveyActivities, inventory: Inventory, lab: Lab
) -> None:
    wait = AwaitChangeInput(host=SOURCE, within_s=60)
    waiting = asyncio.create_task(run(survey_activities.await_room, wait))
    await asyncio.sleep(1)
    assert not waiting.done()
    await change_state(inventory, "kvm-3", ResourceState.PREPARE_FOR_MAINTENANCE)
    await waiting


async def test_vms_that_are_to_come_back_are_found_where_they_are(
    survey_activities: SurveyActivities, inventory: Inventory, vm: str, lab: Lab
) -> None:
    asked = ReturnSurveyInput(host="kvm-3", vms=(GUEST, "never-was"))
    found = await run(survey_activities.survey_return, asked)
    (survey,) = found.surveys
    assert (survey.host, [one.uuid for one in survey.vms]) == (SOURCE, [vm])
    assert [one.host for one in survey.candidates] == ["kvm-3"]
    await lab.cut("kvm-2")
    try:
        found = await run(survey_activities.survey_return, asked)
    finally:
        await lab.heal("kvm-2")
    assert found.unseen == ("kvm-2",)
    assert len(found.surveys) == 1
