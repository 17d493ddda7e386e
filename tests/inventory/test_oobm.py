"""Out-of-band management: configurations, switches, passwords."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.exc import IntegrityError
from sqlmodel import update

from contracts.errors import AlreadyExists, Conflict, LeaseLost, NotFound
from contracts.leases import Lease, LeaseScope
from contracts.oobm import Oobm, PowerProblem
from contracts.power import BmcPrivilege, PowerState
from contracts.power_actions import PowerShard, PowerSighting
from inventory import Inventory
from inventory.models import OobmRow, SecretVersionRow
from tests.inventory.conftest import OTHER, OWNER, ref, register

INTERVAL = timedelta(seconds=30)
ALL = PowerShard(after="", last="zzz")


async def configured(inventory: Inventory, number: int = 1, **more: object) -> Oobm:
    """Enabled, of kvm-<number>, which is registered."""
    await register(inventory, number)
    secret = await inventory.secrets.store("bmc_password", "bmc-pw", actor="test")
    values = {
        "enabled": True,
        "address": f"127.0.1.{number}",
        "user": "admin",
        **more,
    }
    return await inventory.oobm.configure(
        f"kvm-{number}", values, secret_id=secret, replace=True, actor="test"
    )


async def see(inventory: Inventory, state: PowerState, guid: str | None = None) -> Oobm:
    login = await inventory.oobm.login("kvm-1")
    sighting = PowerSighting(
        host="kvm-1",
        generation=login.generation,
        began_at=datetime.now(UTC),
        state=state,
        guid=guid,
        problem=None if state is not PowerState.UNKNOWN else PowerProblem.LOGIN_REFUSED,
    )
    await inventory.power.record([sighting], interval=INTERVAL, operation="power-sync")
    return await inventory.oobm.get("kvm-1")


async def secrets_left(inventory: Inventory, *ids: str) -> set[str]:
    async with inventory.database.reading() as session:
        found = {one: await session.get(SecretVersionRow, one) for one in ids}
    return {one for one, row in found.items() if row is not None}


async def power_lease(inventory: Inventory) -> Lease:
    return await inventory.leases.acquire("kvm-1", LeaseScope.POWER, OWNER, "password")


async def test_a_new_one_has_the_defaults_and_was_not_asked(inventory: Inventory) -> None:
    made = await configured(inventory, enabled=True)
    assert (made.driver, made.port, made.cipher_suite) == ("ipmi", None, 3)
    assert made.privilege is BmcPrivilege.ADMINISTRATOR
    assert made.power.state is PowerState.UNKNOWN
    assert made.power.problem is PowerProblem.NOT_ASKED
    assert (await inventory.hosts.get("kvm-1")).power == made.power


async def test_a_host_without_any_has_no_power_state(inventory: Inventory) -> None:
    host = await register(inventory, 1)
    assert host.power is None
    with pytest.raises(NotFound, match="no out-of-band management"):
        await inventory.oobm.get("kvm-1")
    with pytest.raises(NotFound, match="no out-of-band management"):
        await inventory.oobm.configure(
            "kvm-1", {"enabled": True}, secret_id=None, replace=False, actor="test"
        )


async def test_a_change_of_how_it_is_reached_forgets_what_was_seen(inventory: Inventory) -> None:
    await configured(inventory)
    seen = await see(inventory, PowerState.ON, guid="guid-1")
    assert (seen.power.state, seen.guid) == (PowerState.ON, "guid-1")
    changed = await inventory.oobm.configure(
        "kvm-1", {"address": "bmc-1.example"}, secret_id=None, replace=False, actor="test"
    )
    assert (changed.address, changed.user, changed.guid) == ("bmc-1.example", "admin", None)
    assert changed.power.problem is PowerProblem.NOT_ASKED
    assert changed.enabled


async def test_a_password_that_is_replaced_is_deleted_and_ends_the_waiting(
    inventory: Inventory,
) -> None:
    await configured(inventory)
    refused = await see(inventory, PowerState.UNKNOWN)
    assert refused.power.next_try_at is not None
    former = (await inventory.oobm.login("kvm-1")).secret_id
    new = await inventory.secrets.store("bmc_password", "new", actor="test")
    changed = await inventory.oobm.configure(
        "kvm-1", {}, secret_id=new, replace=False, actor="test"
    )
    assert (changed.power.next_try_at, changed.power.failures) == (None, 0)
    assert await secrets_left(inventory, former, new) == {new}
    (event, *_) = await inventory.events.list(subject="host/kvm-1")
    assert (event.kind, event.message) == ("oobm.configured", "another password")


async def test_to_put_it_again_as_it_is_changes_nothing(inventory: Inventory) -> None:
    await configured(inventory)
    seen = await see(inventory, PowerState.ON)
    again = await inventory.oobm.configure(
        "kvm-1",
        {"enabled": True, "address": "127.0.1.1", "user": "admin"},
        secret_id=None,
        replace=True,
        actor="test",
    )
    assert again == seen


async def test_it_is_in_force_where_host_cluster_and_zone_agree(inventory: Inventory) -> None:
    await configured(inventory)
    await see(inventory, PowerState.ON)
    since = datetime.now(UTC)
    assert [one.host for one in await inventory.power.to_ask(ALL, since)] == ["kvm-1"]
    await inventory.oobm.set_cluster_switch("cluster-1", enabled=False, actor="test")
    await inventory.oobm.set_zone_switch("zone-1", enabled=False, actor="test")
    found = (await inventory.oobm.get("kvm-1")).power
    assert found.state is PowerState.DISABLED
    assert found.disabled_by == ("cluster cluster-1", "zone zone-1")
    assert await inventory.power.to_ask(ALL, since) == []
    await inventory.oobm.set_cluster_switch("cluster-1", enabled=True, actor="test")
    assert (await inventory.oobm.get("kvm-1")).power.disabled_by == ("zone zone-1",)
    switch = await inventory.oobm.set_zone_switch("zone-1", enabled=True, actor="test")
    assert (switch.enabled, switch.hosts) == (True, 1)
    found = (await inventory.oobm.get("kvm-1")).power
    assert (found.state, found.problem) == (PowerState.UNKNOWN, PowerProblem.NOT_ASKED)


async def test_what_was_seen_before_it_was_disabled_is_not_written(inventory: Inventory) -> None:
    await configured(inventory)
    await inventory.oobm.configure(
        "kvm-1", {"enabled": False}, secret_id=None, replace=False, actor="test"
    )
    assert (await see(inventory, PowerState.ON)).power.state is PowerState.DISABLED
    await inventory.oobm.configure(
        "kvm-1", {"enabled": True}, secret_id=None, replace=False, actor="test"
    )
    assert (await inventory.oobm.get("kvm-1")).power.state is PowerState.UNKNOWN


async def test_a_new_password_is_kept_beside_the_old_one_until_it_is_proven(
    inventory: Inventory,
) -> None:
    await configured(inventory)
    old = (await inventory.oobm.login("kvm-1")).secret_id
    lease = ref(await power_lease(inventory))
    new, late = await inventory.secrets.store_all(
        [("bmc_password", "new"), ("bmc_password", "late")], actor="test"
    )
    for secret in (new, late):
        assert await inventory.oobm.stage_password("kvm-1", secret, lease=lease) == new
    assert (await inventory.oobm.get("kvm-1")).password_changing
    with pytest.raises(Conflict, match="being changed"):
        await inventory.oobm.configure(
            "kvm-1", {"user": "root"}, secret_id=None, replace=False, actor="test"
        )
    assert await secrets_left(inventory, old, new) == {old, new}
    for _ in range(2):
        await inventory.oobm.promote_password("kvm-1", lease=lease)
    assert (await inventory.oobm.login("kvm-1")).secret_id == new
    assert await secrets_left(inventory, old, new) == {new}


async def test_rounds_leave_a_bmc_alone_while_its_password_is_being_changed(
    inventory: Inventory,
) -> None:
    await configured(inventory)
    new = await inventory.secrets.store("bmc_password", "new", actor="test")
    lease = ref(await power_lease(inventory))
    since = datetime.now(UTC)
    assert [one.host for one in await inventory.power.to_ask(ALL, since)] == ["kvm-1"]
    await inventory.oobm.stage_password("kvm-1", new, lease=lease)
    assert await inventory.power.to_ask(ALL, since) == []
    # Once it has ended, whichever password it is: a BMC is not left unasked for ever.
    await inventory.leases.release(lease)
    assert [one.host for one in await inventory.power.to_ask(ALL, since)] == ["kvm-1"]
    await see(inventory, PowerState.UNKNOWN)
    later = datetime.now(UTC) + timedelta(hours=2)
    assert [one.host for one in await inventory.power.to_try_again(later, 10)] == ["kvm-1"]
    await power_lease(inventory)
    assert await inventory.power.to_try_again(later, 10) == []


async def test_what_the_old_password_was_answered_is_worth_nothing_once_there_is_a_new_one(
    inventory: Inventory,
) -> None:
    await configured(inventory)
    await see(inventory, PowerState.ON)
    new = await inventory.secrets.store("bmc_password", "new", actor="test")
    lease = ref(await power_lease(inventory))
    before = [(await inventory.oobm.login("kvm-1")).generation]
    await inventory.oobm.stage_password("kvm-1", new, lease=lease)
    before.append((await inventory.oobm.login("kvm-1")).generation)
    await inventory.oobm.promote_password("kvm-1", lease=lease)
    for generation in before:
        late = PowerSighting(
            host="kvm-1",
            generation=generation,
            began_at=datetime.now(UTC),
            state=PowerState.UNKNOWN,
            problem=PowerProblem.LOGIN_REFUSED,
        )
        assert await inventory.power.record([late], interval=INTERVAL, operation="test") == []
    power = (await inventory.oobm.get("kvm-1")).power
    assert (power.state, power.next_try_at) == (PowerState.ON, None)


async def test_a_new_password_is_not_replaced_while_the_bmc_may_be_taking_it(
    inventory: Inventory,
) -> None:
    await configured(inventory)
    old = (await inventory.oobm.login("kvm-1")).secret_id
    new, given = await inventory.secrets.store_all(
        [("bmc_password", "new"), ("bmc_password", "given")], actor="test"
    )
    lease = ref(await power_lease(inventory))
    await inventory.oobm.stage_password("kvm-1", new, lease=lease)
    for replace in (True, False):
        values = {"address": "127.0.1.1", "user": "admin"} if replace else {}
        with pytest.raises(Conflict, match="being changed"):
            await inventory.oobm.configure(
                "kvm-1", values, secret_id=given, replace=replace, actor="test"
            )
    assert await secrets_left(inventory, old, new) == {old, new}
    # Once the change has ended and could prove neither, it is for the operator to say.
    await inventory.leases.release(lease)
    await inventory.oobm.configure("kvm-1", {}, secret_id=given, replace=False, actor="test")
    assert not (await inventory.oobm.get("kvm-1")).password_changing
    assert await secrets_left(inventory, old, new, given) == {given}


async def test_a_new_password_that_the_bmc_did_not_take_goes(inventory: Inventory) -> None:
    await configured(inventory)
    lease = ref(await power_lease(inventory))
    new = await inventory.secrets.store("bmc_password", "new", actor="test")
    await inventory.oobm.stage_password("kvm-1", new, lease=lease)
    await inventory.leases.acquire("kvm-1", LeaseScope.POWER, OTHER, "power", takeover_from=OWNER)
    with pytest.raises(LeaseLost):
        await inventory.oobm.drop_password("kvm-1", "too long", lease=lease)
    lease = ref(
        await inventory.leases.acquire(
            "kvm-1", LeaseScope.POWER, OWNER, "password", takeover_from=OTHER
        )
    )
    await inventory.oobm.drop_password("kvm-1", "too long", lease=lease)
    assert not (await inventory.oobm.get("kvm-1")).password_changing
    assert await secrets_left(inventory, new) == set()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"port": 1623}, {"port": 1623}),
        ({"port": None}, {"port": 623}),
        ({"driver": "ipmi"}, {"driver": "ipmitool", "port": 623}),
        ({"driver": "redfish"}, {"driver": "redfish", "port": 443}),
        ({"address": "BMC-1.example"}, {"address": "bmc-1.Example"}),
        ({"address": "2001:DB8::1"}, {"address": "2001:db8:0:0::1"}),
        ({"address": "127.0.1.1"}, {"address": "::ffff:127.0.1.1"}),
    ],
)
async def test_two_hosts_do_not_have_the_same_bmc(
    inventory: Inventory, first: dict[str, object], second: dict[str, object]
) -> None:
    await configured(inventory, 1, **first)
    with pytest.raises(AlreadyExists, match="that of kvm-1"):
        await configured(inventory, 2, **{"address": "127.0.1.1", **second})
    assert await inventory.oobm.find("kvm-2") is None
    secret = await inventory.secrets.store("bmc_password", "pw", actor="test")
    values = {"user": "admin", **second, "address": "127.0.1.2"}
    await inventory.oobm.configure("kvm-2", values, secret_id=secret, replace=True, actor="test")
    with pytest.raises(AlreadyExists, match="that of kvm-1"):
        await inventory.oobm.configure(
            "kvm-2",
            {"driver": "ipmi", "address": "127.0.1.1", "port": None, **second},
            secret_id=None,
            replace=False,
            actor="test",
        )
    assert (await inventory.oobm.get("kvm-2")).address == "127.0.1.2"


async def test_another_port_is_another_bmc(inventory: Inventory) -> None:
    await configured(inventory, 1)
    made = await configured(inventory, 2, address="127.0.1.1", port=1623)
    assert made.port == 1623


async def test_the_database_itself_keeps_two_hosts_from_one_bmc(inventory: Inventory) -> None:
    for number in (1, 2):
        await configured(inventory, number)
    with pytest.raises(IntegrityError):
        async with inventory.database.writing() as session:
            await session.exec(update(OobmRow).values(endpoint="127.0.1.1 623"))


async def test_it_goes_with_its_passwords(inventory: Inventory) -> None:
    await configured(inventory)
    secret = (await inventory.oobm.login("kvm-1")).secret_id
    await inventory.oobm.forget("kvm-1", actor="test")
    assert await inventory.oobm.find("kvm-1") is None
    assert await secrets_left(inventory, secret) == set()


async def test_it_goes_with_a_host_whose_addition_failed(inventory: Inventory) -> None:
    await configured(inventory)
    secret = (await inventory.oobm.login("kvm-1")).secret_id
    await inventory.hosts.forget("kvm-1", operation="addition/x", actor="test")
    assert await inventory.hosts.find("kvm-1") is None
    assert await secrets_left(inventory, secret) == set()
