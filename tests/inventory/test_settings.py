import asyncio
import re
from typing import Any, cast

import pytest

from activities.records import RecordActivities
from contracts.cluster_maintenance import PlanClusterInput
from contracts.errors import Conflict, InvalidInput, NotFound
from contracts.settings import (
    CPU_OVERPROVISIONING,
    HOOK_TIMEOUT,
    MAINTENANCE_HOSTS_OUT_MAX,
    MIGRATION_BANDWIDTH,
    MIGRATION_NETWORK,
    MIGRATION_PARALLEL_MAX,
    OOBM_SYNC_INTERVAL,
    SETTINGS,
    STORAGE_SHARED_PATHS,
    Effect,
    ResolvedSettings,
    Setting,
)
from contracts.steps import HostRef
from inventory import Inventory
from inventory.cluster_maintenance import plan_cluster_maintenance
from inventory.models import SettingRow
from inventory.settings import UnknownSetting
from tests.inventory.conftest import enabled

PARALLEL = MIGRATION_PARALLEL_MAX.name
EVERYWHERE: tuple[dict[str, str], ...] = ({}, {"zone": "zone-1"}, {"cluster": "cluster-1"})


async def messages(inventory: Inventory, setting: Setting[Any]) -> list[str]:
    """The events of `setting`, oldest first."""
    events = await inventory.events.list(subject=f"setting/{setting.name}")
    return [event.message for event in reversed(events)]


async def store(inventory: Inventory, name: str, value: object) -> None:
    """Globally, as only another version of Hostler does it."""
    row = SettingRow(scope="global", scope_name="", name=name, value=value, updated_by="other")
    async with inventory.database.writing() as session:
        session.add(row)


@pytest.mark.parametrize("place", EVERYWHERE)
async def test_without_any_the_defaults_are_in_force(
    inventory: Inventory, place: dict[str, str]
) -> None:
    resolved = await inventory.settings.resolve(**place)
    assert {name: resolved[setting] for name, setting in SETTINGS.items()} == {
        name: setting.default for name, setting in SETTINGS.items()
    }
    explained = await inventory.settings.explain_all(**place)
    assert [value.name for value in explained] == sorted(SETTINGS)
    assert {value.origin for value in explained} == {"default"}
    assert all(value.value == value.default and not value.updated_by for value in explained)


async def test_the_narrowest_wins(inventory: Inventory) -> None:
    settings = inventory.settings
    await inventory.topology.create_zone("zone-2", actor="test")
    await inventory.topology.create_pod("pod-2", "zone-2", actor="test")
    await inventory.topology.create_cluster("cluster-2", "pod-2", actor="test")
    await inventory.topology.create_cluster("cluster-3", "pod-1", actor="test")
    await settings.set(PARALLEL, 3, actor="test")
    await settings.set(PARALLEL, 4, zone="zone-1", actor="test")
    await settings.set(PARALLEL, 5, cluster="cluster-1", actor="test")
    for place, value, origin in (
        ({}, 3, "global"),
        ({"zone": "zone-1"}, 4, "zone zone-1"),
        ({"zone": "zone-2"}, 3, "global"),
        ({"cluster": "cluster-1"}, 5, "cluster cluster-1"),
        ({"cluster": "cluster-2"}, 3, "global"),
        ({"cluster": "cluster-3"}, 4, "zone zone-1"),
    ):
        assert (await settings.resolve(**place))[MIGRATION_PARALLEL_MAX] == value
        explained = await settings.explain(PARALLEL, **place)
        assert (explained.value, explained.origin) == (value, origin)
        assert explained in await settings.explain_all(**place)
    await settings.unset(PARALLEL, zone="zone-1", actor="test")
    assert (await settings.resolve("cluster-1"))[MIGRATION_PARALLEL_MAX] == 5
    assert (await settings.resolve("cluster-3"))[MIGRATION_PARALLEL_MAX] == 3


async def test_each_change_is_an_event(inventory: Inventory) -> None:
    settings = inventory.settings
    for value in (4, 4, "4", 6):
        changed = await settings.set(PARALLEL, value, cluster="cluster-1", actor="token:anna")
        assert (changed.value, changed.updated_by) == (int(value), "token:anna")
        assert changed.updated_at is not None
    await settings.set(PARALLEL, 2, actor="test")
    for _ in range(2):
        inherited = await settings.unset(PARALLEL, cluster="cluster-1", actor="test")
        assert (inherited.value, inherited.origin) == (2, "global")
    await settings.set(PARALLEL, 2, zone="zone-1", actor="test")
    await settings.unset(PARALLEL, actor="test")
    assert await messages(inventory, MIGRATION_PARALLEL_MAX) == [
        "cluster cluster-1: 2 (default) -> 4",
        "cluster cluster-1: 4 -> 6",
        "global: 2 (default) -> 2",
        "cluster cluster-1: 6 -> 2 (global)",
        "zone zone-1: 2 (global) -> 2",
        "global: 2 -> 2 (default)",
    ]
    first = (await inventory.events.list(subject=f"setting/{PARALLEL}"))[-1]
    assert (first.kind, first.actor) == ("setting.changed", "token:anna")


@pytest.mark.parametrize(
    ("setting", "value", "stored"),
    [
        (MIGRATION_BANDWIDTH, 7, 7),
        (MIGRATION_BANDWIDTH, None, None),
        (MIGRATION_NETWORK, "198.18.0.0/24", "198.18.0.0/24"),
        (MIGRATION_NETWORK, "FD00::/64", "fd00::/64"),
        (STORAGE_SHARED_PATHS, ["/srv/vms", "/mnt/\u00fc"], ["/srv/vms", "/mnt/\u00fc"]),
        (CPU_OVERPROVISIONING, 2, 2.0),
    ],
)
async def test_each_kind_of_value_comes_back(
    inventory: Inventory, setting: Setting[Any], value: object, stored: object
) -> None:
    changed = await inventory.settings.set(setting.name, value, cluster="cluster-1", actor="test")
    assert changed.value == stored
    resolved = await inventory.settings.resolve("cluster-1")
    assert resolved[setting] == setting.parse(value)
    assert changed.origin == "cluster cluster-1"


async def test_null_is_a_value(inventory: Inventory) -> None:
    await inventory.settings.set(MIGRATION_BANDWIDTH.name, 7, actor="test")
    for bandwidth in (5, None):
        await inventory.settings.set(
            MIGRATION_BANDWIDTH.name, bandwidth, cluster="cluster-1", actor="test"
        )
        assert (await inventory.settings.resolve("cluster-1"))[MIGRATION_BANDWIDTH] == bandwidth
    assert (await messages(inventory, MIGRATION_BANDWIDTH))[-1] == "cluster cluster-1: 5 -> null"


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        (MIGRATION_PARALLEL_MAX, 65, "less than or equal to 64; possible: integer from 1 to 64"),
        (MIGRATION_PARALLEL_MAX, "many", "valid integer, unable to parse string as an integer"),
        (MIGRATION_PARALLEL_MAX, True, "must not be a boolean; possible: integer from 1 to 64"),
        (MIGRATION_PARALLEL_MAX, None, "a valid integer; possible: integer from 1 to 64"),
        (MIGRATION_PARALLEL_MAX, [2], "a valid integer; possible: "),
        (MIGRATION_BANDWIDTH, 0, "possible: integer from 1 to 1000000 or null"),
        (CPU_OVERPROVISIONING, float("nan"), "possible: number from 1 to 64"),
        (CPU_OVERPROVISIONING, "inf", "possible: number from 1 to 64"),
        (MIGRATION_NETWORK, "198.18.0.1/24", "198.18.0.1/24 has host bits set; possible: "),
        (MIGRATION_NETWORK, "198.18.0.1", "CIDR notation; possible: string like 198.18.0.0/24 or"),
        (MIGRATION_NETWORK, 5, "must be a network in CIDR notation"),
        (MIGRATION_NETWORK, "a/b", "does not appear to be an IPv4 or IPv6 network"),
        (STORAGE_SHARED_PATHS, "/srv", "valid array; possible: array of string like /srv/vms"),
        (STORAGE_SHARED_PATHS, ["/srv", "srv"], "value: entry 1: must match ^/"),
        (STORAGE_SHARED_PATHS, ["/\0"], "entry 0: must match"),
        (STORAGE_SHARED_PATHS, ["/\ud800"], "entry 0: input should be a valid string"),
    ],
)
async def test_a_value_that_is_not_possible(
    inventory: Inventory, setting: Setting[Any], value: object, says: str
) -> None:
    with pytest.raises(InvalidInput, match=re.escape(says)) as caught:
        await inventory.settings.set(setting.name, value, cluster="cluster-1", actor="test")
    assert str(caught.value).startswith(f"The input of setting {setting.name} is not valid: value:")
    (field,) = cast(list[dict[str, str]], caught.value.details["fields"])
    assert field["field"] == "value"
    assert (await inventory.settings.resolve("cluster-1"))[setting] == setting.default
    assert await messages(inventory, setting) == []


async def test_an_unknown_name(inventory: Inventory) -> None:
    settings = inventory.settings
    for asked in (
        settings.explain("migration.bandwith"),
        settings.set("migration.bandwith", 1, actor="test"),
        settings.unset("migration.bandwith", actor="test"),
    ):
        with pytest.raises(UnknownSetting) as caught:
            await asked
        assert str(caught.value).startswith(
            "There is no setting 'migration.bandwith'. Is migration.bandwidth "
        )
    with pytest.raises(
        UnknownSetting, match=r"is not a setting\. Give it with `hostler ca import`"
    ):
        await inventory.settings.explain("ca.plugin.root.private.key")
    with pytest.raises(InvalidInput, match=r"no setting 'x'\. See `hostler setting list`"):
        await settings.explain("x")


@pytest.mark.parametrize(
    ("place", "kind", "says"),
    [
        ({"cluster": "x"}, NotFound, "no cluster 'x'"),
        ({"zone": "x"}, NotFound, "no zone 'x'"),
        ({"cluster": "cluster-1", "zone": "zone-1"}, InvalidInput, "zone: not together with clus"),
    ],
)
async def test_a_place_that_there_is_not(
    inventory: Inventory, place: dict[str, str], kind: type[Exception], says: str
) -> None:
    settings = inventory.settings
    for asked in (
        settings.resolve(**place),
        settings.explain_all(**place),
        settings.explain(PARALLEL, **place),
        settings.set(PARALLEL, 3, **place, actor="test"),
        settings.unset(PARALLEL, **place, actor="test"),
    ):
        with pytest.raises(kind, match=says):
            await asked
    assert await messages(inventory, MIGRATION_PARALLEL_MAX) == []


async def test_a_scope_that_the_setting_does_not_have(inventory: Inventory) -> None:
    name = STORAGE_SHARED_PATHS.name
    for place, scope in (({}, "global"), ({"zone": "zone-1"}, "zone")):
        for asked in (
            inventory.settings.set(name, ["/srv"], **place, actor="test"),
            inventory.settings.unset(name, **place, actor="test"),
        ):
            with pytest.raises(
                InvalidInput,
                match=rf"storage\.shared\.paths can't be set at the scope {scope}, only at cluster",
            ):
                await asked
    assert await messages(inventory, STORAGE_SHARED_PATHS) == []


async def test_what_another_version_has_stored(inventory: Inventory) -> None:
    settings = inventory.settings
    await store(inventory, PARALLEL, "many")
    await store(inventory, "a.setting.of.later", 1)
    await store(inventory, STORAGE_SHARED_PATHS.name, ["/everywhere"])
    await settings.set(MIGRATION_BANDWIDTH.name, 7, actor="test")

    resolved = await settings.resolve("cluster-1")
    assert resolved[MIGRATION_BANDWIDTH] == 7
    assert resolved[STORAGE_SHARED_PATHS] == ()
    with pytest.raises(Conflict, match=r"stored setting migration\.parallel\.max is not valid"):
        resolved[MIGRATION_PARALLEL_MAX]

    explained = {value.name: value for value in await settings.explain_all(cluster="cluster-1")}
    assert explained.keys() == SETTINGS.keys()
    wrong = explained.pop(PARALLEL)
    assert (wrong.value, wrong.origin, wrong.updated_by) == ("many", "global", "other")
    assert wrong.problem is not None
    assert wrong.problem.endswith("; possible: integer from 1 to 64")
    assert [value.name for value in explained.values() if value.problem] == []

    await settings.set(PARALLEL, 3, actor="test")
    assert (await settings.resolve("cluster-1"))[MIGRATION_PARALLEL_MAX] == 3
    assert await messages(inventory, MIGRATION_PARALLEL_MAX) == ['global: "many" -> 3']


async def test_many_at_once(inventory: Inventory) -> None:
    await asyncio.gather(
        *(
            inventory.settings.set(PARALLEL, number, cluster="cluster-1", actor="test")
            for number in range(1, 9)
        )
    )
    told = await messages(inventory, MIGRATION_PARALLEL_MAX)
    assert len(told) == 8
    in_force = (await inventory.settings.resolve("cluster-1"))[MIGRATION_PARALLEL_MAX]
    assert told[-1].endswith(f" -> {in_force}")


async def test_those_that_an_operation_takes_along_say_so(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read at its beginning alone can't change under it."""
    await enabled(inventory, 1)
    used: set[str] = set()

    class Watched(ResolvedSettings):
        def __getitem__(self, setting: Setting[Any]) -> Any:
            used.add(setting.name)
            return super().__getitem__(setting)

    monkeypatch.setattr("inventory.settings.ResolvedSettings", Watched)
    await RecordActivities(inventory).read_settings(HostRef(host="kvm-1"))
    await plan_cluster_maintenance(
        inventory, PlanClusterInput(cluster="cluster-1", hosts=None, parallel=1)
    )
    assert len(used) > 1
    # The bound on hosts that are out is read again for each of them.
    assert {name for name in used if SETTINGS[name].effect is Effect.AT_ONCE} == {
        MAINTENANCE_HOSTS_OUT_MAX.name
    }
    explained = await inventory.settings.explain(HOOK_TIMEOUT.name)
    assert explained.effect is Effect.NEXT_OPERATION


async def test_a_bmc_does_not_have_longer_than_a_round(inventory: Inventory) -> None:
    settings, sync = inventory.settings, "outofbandmanagement.sync."
    with pytest.raises(InvalidInput, match=re.escape(f"less than {sync}interval")):
        await settings.set(f"{sync}timeout", 30, actor="test")
    with pytest.raises(InvalidInput, match="must be less than"):
        await settings.set(f"{sync}interval", 10, actor="test")
    await settings.set(f"{sync}interval", 60, actor="test")
    await settings.set(f"{sync}timeout", 45, actor="test")
    with pytest.raises(InvalidInput, match="must be less than"):
        await settings.unset(f"{sync}interval", actor="test")
    assert (await settings.resolve())[OOBM_SYNC_INTERVAL] == 60


async def test_what_another_version_has_stored_keeps_nobody_from_setting_it_right(
    inventory: Inventory,
) -> None:
    settings, sync = inventory.settings, "outofbandmanagement.sync."
    await store(inventory, f"{sync}interval", 0)
    await settings.set(f"{sync}timeout", 20, actor="test")
    await settings.set(f"{sync}interval", 40, actor="test")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ipmitool.retries", 0),
        ("ipmitool.retries", 11),
        ("ipmitool.interface", "open"),
        ("sync.shard.size", 100),
    ],
)
async def test_what_no_driver_takes_is_no_setting(
    inventory: Inventory, name: str, value: object
) -> None:
    with pytest.raises(InvalidInput):
        await inventory.settings.set(f"outofbandmanagement.{name}", value, actor="test")
