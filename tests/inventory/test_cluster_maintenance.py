"""What hooks have printed, and which hosts a ClusterMaintenance works on."""

import pytest

from contracts.cluster_maintenance import HookOutcome, PlanClusterInput, Stage
from contracts.errors import Conflict, InvalidInput, NotFound
from contracts.states import ResourceState
from inventory import Inventory
from inventory.cluster_maintenance import plan_cluster_maintenance
from tests.inventory.conftest import enabled

OPERATION = "cluster-maintenance/cluster-1#run-1"
STAGE = Stage.MAINTENANCE


def outcome(attempt: int, exit_status: int | None, problem: str | None = None) -> HookOutcome:
    return HookOutcome(stage=STAGE, attempt=attempt, exit_status=exit_status, problem=problem)


async def test_begun_once_and_ended_once(inventory: Inventory) -> None:
    runs = inventory.hook_runs
    for _ in range(2):
        await runs.start(OPERATION, "kvm-1", STAGE, 1, ("sh", "-c", "a b"))
    (seen,) = await runs.of_host(OPERATION, "kvm-1")
    assert (seen.command, seen.exit_status, seen.finished_at) == (("sh", "-c", "a b"), None, None)
    await runs.finish(OPERATION, "kvm-1", outcome(1, 3), "a\0b")
    await runs.finish(OPERATION, "kvm-1", outcome(1, 0), "another one")
    (seen,) = await runs.of_host(OPERATION, "kvm-1")
    assert (seen.exit_status, seen.problem) == (3, None)
    assert seen.output == "a\N{REPLACEMENT CHARACTER}b"
    assert seen.finished_at is not None
    (event,) = await inventory.events.list(subject="host/kvm-1")
    assert event.message == "hook maintenance, attempt 1: status 3"
    assert (event.operation, event.actor) == ("cluster-maintenance/cluster-1",) * 2


async def test_lists_come_in_the_order_of_the_start_and_without_output(
    inventory: Inventory,
) -> None:
    runs = inventory.hook_runs
    for host, attempt in (("kvm-2", 1), ("kvm-1", 1), ("kvm-1", 2)):
        await runs.start(OPERATION, host, STAGE, attempt, ("true",))
    await runs.finish(OPERATION, "kvm-1", outcome(1, None, "it was killed"), "long")
    await runs.start("other#run-1", "kvm-1", STAGE, 1, ("true",))
    listed = await runs.list(OPERATION)
    assert [(one.host, one.attempt) for one in listed] == [("kvm-2", 1), ("kvm-1", 1), ("kvm-1", 2)]
    assert {one.output for one in listed} == {None}
    first, second = await runs.of_host(OPERATION, "kvm-1")
    assert (first.output, first.problem, second.output) == ("long", "it was killed", "")
    assert await runs.list("nothing#run-1") == []


async def planned(inventory: Inventory, *hosts: str, parallel: int = 1) -> tuple[str, ...]:
    request = PlanClusterInput(cluster="cluster-1", hosts=hosts or None, parallel=parallel)
    return (await plan_cluster_maintenance(inventory, request)).hosts


async def test_all_that_are_in_service_by_name_or_those_that_are_named(
    inventory: Inventory,
) -> None:
    for number in (3, 1, 2, 4):
        await enabled(inventory, number)
    await change(inventory, "kvm-2", ResourceState.ENABLED, ResourceState.DISABLED)
    await change(inventory, "kvm-4", ResourceState.ENABLED, ResourceState.PREPARE_FOR_MAINTENANCE)
    assert await planned(inventory) == ("kvm-1", "kvm-2", "kvm-3")
    assert await planned(inventory, "kvm-3", "kvm-1") == ("kvm-3", "kvm-1")
    with pytest.raises(Conflict, match="not in service: kvm-4 is PrepareForMaintenance"):
        await planned(inventory, "kvm-1", "kvm-4")
    with pytest.raises(InvalidInput, match="hosts: not in cluster-1: kvm-8, kvm-9"):
        await planned(inventory, "kvm-8", "kvm-1", "kvm-9")


async def test_no_more_at_a_time_than_may_be_out(inventory: Inventory) -> None:
    await enabled(inventory, 1)
    with pytest.raises(InvalidInput) as refused:
        await planned(inventory, parallel=2)
    assert (
        "parallel: 2 hosts at a time, but the setting maintenance.hosts.out.max of cluster-1"
        in (str(refused.value))
    )
    assert "lets 1 be out" in str(refused.value)
    settings = inventory.settings
    await settings.set("maintenance.hosts.out.max", 2, cluster="cluster-1", actor="test")
    assert await planned(inventory, parallel=2) == ("kvm-1",)


async def test_the_clusters_bounds_are_settled(inventory: Inventory) -> None:
    await enabled(inventory, 1)
    for name, value in (
        ("hook.timeout", 11),
        ("host.reboot.timeout", 12),
        ("maintenance.unreachable.timeout", 13),
    ):
        await inventory.settings.set(name, value, cluster="cluster-1", actor="test")
    request = PlanClusterInput(cluster="cluster-1", hosts=None, parallel=1)
    plan = await plan_cluster_maintenance(inventory, request)
    assert plan.zone == "zone-1"
    assert (plan.hook_timeout, plan.reboot_timeout, plan.unreachable_timeout) == (11, 12, 13)


async def test_hosts_that_may_need_their_bmc_must_have_one(inventory: Inventory) -> None:
    for number in (1, 2):
        await enabled(inventory, number)
    request = PlanClusterInput(
        cluster="cluster-1", hosts=None, parallel=1, power_cycle_when_lost=True
    )
    with pytest.raises(Conflict, match=r"^power_cycle_when_lost: .* kvm-1, kvm-2\.") as refused:
        await plan_cluster_maintenance(inventory, request)
    assert "hostler oobm configure kvm-1" in str(refused.value)
    for number in (1, 2):
        await inventory.oobm.configure(
            f"kvm-{number}",
            {"enabled": number == 1, "address": f"127.0.1.{number}", "user": "admin"},
            secret_id=await inventory.secrets.store("bmc_password", "pw", actor="test"),
            replace=True,
            actor="test",
        )
    with pytest.raises(Conflict, match=r"disabled: of kvm-2 \(by host\)"):
        await plan_cluster_maintenance(inventory, request)
    await inventory.oobm.configure(
        "kvm-2", {"enabled": True}, secret_id=None, replace=False, actor="test"
    )
    assert (await plan_cluster_maintenance(inventory, request)).hosts == ("kvm-1", "kvm-2")


async def test_a_cluster_that_is_empty_or_unknown(inventory: Inventory) -> None:
    with pytest.raises(Conflict, match="No host of cluster-1 is in service"):
        await planned(inventory)
    with pytest.raises(NotFound):
        await plan_cluster_maintenance(
            inventory, PlanClusterInput(cluster="cluster-9", hosts=None, parallel=1)
        )


async def change(
    inventory: Inventory, host: str, before: ResourceState, after: ResourceState
) -> None:
    await inventory.hosts.change_state(
        host,
        expected=frozenset({before}),
        target=after,
        operation="test",
        step=after,
        actor="test",
        reason="test",
    )
