"""What BMCs say, what they were told, and rounds."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlmodel import select, update

from contracts.errors import Conflict, LeaseLost
from contracts.leases import LeaseRef, LeaseScope, Owner
from contracts.oobm import PowerProblem, PowerRound
from contracts.power import PowerState
from contracts.power_actions import (
    Action,
    CommandOutcome,
    PowerCommandRef,
    PowerSent,
    PowerShard,
    PowerSighting,
)
from inventory import Inventory
from inventory.models import PowerCommandRow
from tests.inventory.conftest import OTHER, OWNER, ref
from tests.inventory.test_oobm import ALL, INTERVAL, configured

NOW = 0  # as generation: that of the present configuration


def sighting(number: int, state: PowerState, **more: object) -> PowerSighting:
    values = {"began_at": datetime.now(UTC), "generation": NOW, **more}
    return PowerSighting(host=f"kvm-{number}", state=state, **values)


async def generation(inventory: Inventory, host: str = "kvm-1") -> int:
    return (await inventory.oobm.login(host)).generation


async def record(inventory: Inventory, *sightings: PowerSighting) -> list[str]:
    seen = [
        one.model_copy(
            update={"generation": one.generation or await generation(inventory, one.host)}
        )
        for one in sightings
    ]
    changes = await inventory.power.record(seen, interval=INTERVAL, operation="power-sync/1")
    return [change.host for change in changes]


async def messages(inventory: Inventory, host: str = "kvm-1") -> list[str]:
    events = await inventory.events.list(subject=f"host/{host}")
    return [event.message for event in events if event.kind.startswith("power.")]


async def command(
    inventory: Inventory, action: Action = Action.OFF, owner: Owner = OWNER
) -> PowerCommandRef:
    lease = await inventory.leases.acquire("kvm-1", LeaseScope.POWER, owner, "power")
    return PowerCommandRef(
        lease=ref(lease),
        action=action,
        generation=await generation(inventory),
        reason="test",
        boot_id="boot-1",
        timeout=60,
    )


async def begin(inventory: Inventory, command: PowerCommandRef) -> PowerSent | None:
    return await inventory.power.begin_command(command, command.generation)


async def test_shards_hold_all_that_are_asked(inventory: Inventory) -> None:
    assert await inventory.power.shards(2) == ()
    for number in range(1, 6):
        await configured(inventory, number)
    await configured(inventory, 6, enabled=False)
    shards = await inventory.power.shards(2)
    assert [(shard.after, shard.last) for shard in shards] == [
        ("", "kvm-2"),
        ("kvm-2", "kvm-4"),
        ("kvm-4", "kvm-5"),
    ]
    since = datetime.now(UTC)
    found = [one.host for shard in shards for one in await inventory.power.to_ask(shard, since)]
    assert found == [f"kvm-{number}" for number in range(1, 6)]
    assert [one.last for one in await inventory.power.shards(5)] == ["kvm-5"]


async def test_a_retry_asks_only_those_that_were_not_asked_yet(inventory: Inventory) -> None:
    since = datetime.now(UTC)
    for number in (1, 2):
        await configured(inventory, number)
    await record(inventory, sighting(1, PowerState.ON))
    found = await inventory.power.to_ask(PowerShard(after="", last="kvm-2"), since)
    assert [one.host for one in found] == ["kvm-2"]


async def test_the_first_word_is_no_news_and_each_change_is(inventory: Inventory) -> None:
    await configured(inventory)
    assert await record(inventory, sighting(1, PowerState.ON)) == ["kvm-1"]
    assert await messages(inventory) == []
    assert await record(inventory, sighting(1, PowerState.ON)) == []
    assert await record(inventory, sighting(1, PowerState.OFF)) == ["kvm-1"]
    assert await messages(inventory) == ["On -> Off"]
    power = (await inventory.oobm.get("kvm-1")).power
    assert power.since == power.observed_at


async def test_an_unchanged_state_is_confirmed_in_its_time_alone(inventory: Inventory) -> None:
    await configured(inventory)
    await record(inventory, sighting(1, PowerState.ON))
    first = (await inventory.oobm.get("kvm-1")).power
    await record(inventory, sighting(1, PowerState.ON))
    second = (await inventory.oobm.get("kvm-1")).power
    assert first.since == second.since
    assert first.observed_at is not None
    assert second.observed_at is not None
    assert second.observed_at > first.observed_at


async def test_a_state_that_three_rounds_did_not_confirm_is_stale(inventory: Inventory) -> None:
    await configured(inventory)
    old = datetime.now(UTC) - 3 * INTERVAL - timedelta(seconds=1)
    await record(inventory, sighting(1, PowerState.ON, began_at=old))
    power = (await inventory.hosts.get("kvm-1")).power
    assert power is not None
    assert (power.state, power.stale) == (PowerState.ON, True)
    await record(inventory, sighting(1, PowerState.ON))
    power = (await inventory.hosts.get("kvm-1")).power
    assert power is not None
    assert not power.stale


async def test_what_is_older_than_what_is_written_is_left_out(inventory: Inventory) -> None:
    await configured(inventory)
    before = datetime.now(UTC)
    await record(inventory, sighting(1, PowerState.OFF))
    assert await record(inventory, sighting(1, PowerState.ON, began_at=before)) == []
    assert await record(inventory, sighting(1, PowerState.ON, generation=7)) == []
    assert (await inventory.oobm.get("kvm-1")).power.state is PowerState.OFF


async def test_a_slow_one_does_not_make_the_others_look_older(inventory: Inventory) -> None:
    for number in (1, 2):
        await configured(inventory, number)
    begin = datetime.now(UTC)
    at = [begin + timedelta(seconds=seconds) for seconds in range(5)]
    await record(inventory, *(sighting(one, PowerState.ON, began_at=at[0]) for one in (1, 2)))
    await record(inventory, sighting(1, PowerState.ON, began_at=at[3]))
    slow = sighting(2, PowerState.ON, began_at=at[1])
    await record(inventory, sighting(1, PowerState.ON, began_at=at[4]), slow)
    seen = [(await inventory.oobm.get(f"kvm-{number}")).power.observed_at for number in (1, 2)]
    assert seen == [at[3], at[1]]
    assert await record(inventory, sighting(1, PowerState.OFF, began_at=at[2])) == []


async def test_what_was_seen_by_a_configuration_that_is_deleted_says_nothing_of_the_next_one(
    inventory: Inventory,
) -> None:
    await configured(inventory)
    former = sighting(1, PowerState.OFF, guid="guid-9", generation=await generation(inventory))
    await inventory.oobm.forget("kvm-1", actor="test")
    secret = await inventory.secrets.store("bmc_password", "bmc-pw", actor="test")
    values = {"enabled": True, "address": "127.0.1.9", "user": "admin"}
    await inventory.oobm.configure("kvm-1", values, secret_id=secret, replace=True, actor="test")
    assert await record(inventory, former) == []
    found = await inventory.oobm.get("kvm-1")
    assert (found.power.problem, found.guid) == (PowerProblem.NOT_ASKED, None)


@pytest.mark.parametrize("at_once", [True, False])
async def test_the_bmc_of_another_host_says_nothing_of_this_one(
    inventory: Inventory, at_once: bool
) -> None:
    for number in (1, 2):
        await configured(inventory, number)
    seen = [sighting(number, PowerState.ON, guid="guid-1") for number in (2, 1)]
    if at_once:
        await record(inventory, *seen)
    else:
        for one in reversed(seen):
            await record(inventory, one)
    own, other = [(await inventory.oobm.get(f"kvm-{number}")) for number in (1, 2)]
    assert (own.power.state, own.guid) == (PowerState.ON, "guid-1")
    assert (other.power.state, other.power.problem, other.guid) == (
        PowerState.UNKNOWN,
        PowerProblem.ANOTHER_BMC,
        None,
    )
    assert "the BMC of kvm-1" in other.power.reason
    assert "the BMC of kvm-1" in (await messages(inventory, "kvm-2"))[0]
    again = await inventory.power.of_its_own(sighting(2, PowerState.OFF, guid="guid-1"))
    assert (again.state, again.problem) == (PowerState.UNKNOWN, PowerProblem.ANOTHER_BMC)


async def test_a_refused_login_is_told_once_and_left_alone(inventory: Inventory) -> None:
    await configured(inventory)
    await record(inventory, sighting(1, PowerState.ON))
    refusal = {"problem": PowerProblem.LOGIN_REFUSED, "reason": "wrong password"}
    for _ in range(3):
        await record(inventory, sighting(1, PowerState.UNKNOWN, **refusal))
    assert await messages(inventory) == ["On -> Unknown: wrong password"]
    power = (await inventory.oobm.get("kvm-1")).power
    assert (power.state, power.problem, power.failures) == (
        PowerState.UNKNOWN,
        PowerProblem.LOGIN_REFUSED,
        3,
    )
    assert power.next_try_at is not None
    assert power.next_try_at > datetime.now(UTC) + timedelta(hours=3)
    assert await inventory.power.to_ask(ALL, datetime.now(UTC)) == []
    assert await inventory.power.to_try_again(datetime.now(UTC), 10) == []


async def test_a_silent_one_is_tried_again_apart(inventory: Inventory) -> None:
    await configured(inventory)
    silence = {"problem": PowerProblem.UNREACHABLE, "reason": "no answer"}
    old = datetime.now(UTC) - INTERVAL
    await record(inventory, sighting(1, PowerState.UNKNOWN, began_at=old, **silence))
    now = datetime.now(UTC)
    assert await inventory.power.to_ask(ALL, now) == []
    assert [one.host for one in await inventory.power.to_try_again(now, 10)] == ["kvm-1"]
    await record(inventory, sighting(1, PowerState.ON))
    assert [one.host for one in await inventory.power.to_ask(ALL, datetime.now(UTC))] == ["kvm-1"]
    assert await messages(inventory) == ["Unknown -> On", "Unknown -> Unknown: no answer"]


async def test_a_change_that_a_command_explains_is_no_news(inventory: Inventory) -> None:
    await configured(inventory)
    await record(inventory, sighting(1, PowerState.ON))
    off = await command(inventory)
    assert await begin(inventory, off) is None
    await record(inventory, sighting(1, PowerState.OFF))
    await inventory.power.finish_command(off, CommandOutcome.DONE, "On -> Off")
    assert await messages(inventory) == ["off (test): On -> Off"]
    # What comes after its end is not its work.
    await record(inventory, sighting(1, PowerState.ON))
    await record(inventory, sighting(1, PowerState.OFF))
    assert len(await messages(inventory)) == 3


async def test_a_command_that_has_no_end_explains_nothing_after_its_own_time(
    inventory: Inventory,
) -> None:
    await configured(inventory)
    await record(inventory, sighting(1, PowerState.ON))
    await begin(inventory, await command(inventory))
    # Its operation was terminated; somebody switches the host off a while later.
    late = datetime.now(UTC) + timedelta(seconds=100)
    await record(inventory, sighting(1, PowerState.OFF, began_at=late))
    assert await messages(inventory) == ["On -> Off"]


async def test_what_a_command_does_not_explain_is_news(inventory: Inventory) -> None:
    await configured(inventory)
    await record(inventory, sighting(1, PowerState.OFF))
    await begin(inventory, await command(inventory, Action.OFF))
    await record(inventory, sighting(1, PowerState.ON))
    assert await messages(inventory) == ["Off -> On"]


async def test_a_command_is_begun_once(inventory: Inventory) -> None:
    await configured(inventory)
    reset = await command(inventory, Action.RESET)
    assert await begin(inventory, reset) is None
    again = await begin(inventory, reset.model_copy(update={"boot_id": "boot-2"}))
    assert again is not None
    assert (again.accepted, again.boot_id) == (False, "boot-1")
    assert (await inventory.power.record_answer(reset, accepted=True)).accepted
    again = await begin(inventory, reset)
    assert again is not None
    assert again.accepted


async def test_a_command_that_was_not_sent_may_be_begun_again(inventory: Inventory) -> None:
    await configured(inventory)
    reset = await command(inventory, Action.RESET)
    await begin(inventory, reset)
    await inventory.power.withdraw_command(reset)
    assert await begin(inventory, reset) is None


async def test_commands_of_the_past_do_not_pile_up(inventory: Inventory) -> None:
    await configured(inventory)
    ages = update(PowerCommandRow).values(until=datetime.now(UTC) - timedelta(seconds=1))
    for number in range(3):
        owner = Owner(workflow_id="power/kvm-1", first_run_id=f"run-{number}")
        soft = await command(inventory, Action.SOFT, owner)
        off = soft.model_copy(update={"action": Action.OFF})
        for one in (soft, off):
            await begin(inventory, one)
            await inventory.power.finish_command(one, CommandOutcome.DONE, "done")
            async with inventory.database.writing() as session:
                await session.exec(ages)
        # Those of an operation that is at work stay: they are not sent again.
        assert await begin(inventory, soft) is not None
        await inventory.leases.release(soft.lease)
    async with inventory.database.reading() as session:
        left = (await session.exec(select(PowerCommandRow.operation))).all()
    assert left == ["power/kvm-1#run-2"] * 2


async def test_a_sweep_reads_the_commands_of_those_hosts_alone_that_have_changed(
    inventory: Inventory,
) -> None:
    for number in (1, 2):
        await configured(inventory, number)
        await record(inventory, sighting(number, PowerState.ON))
    asked: list[list[str]] = []

    def note(_connection: Any, _cursor: Any, said: str, values: Any, *_more: Any) -> None:
        if "FROM power_command" in said:
            given = values.values() if isinstance(values, dict) else values
            asked.append([value for value in given if str(value).startswith("kvm-")])

    event.listen(Engine, "before_cursor_execute", note)
    try:
        for state in (PowerState.ON, PowerState.OFF):
            await record(inventory, sighting(1, PowerState.ON), sighting(2, state))
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert asked == [["kvm-2"]]


@pytest.mark.parametrize("found_by", ["begin_command", "take_over_command"])
async def test_a_command_that_was_taken_over_is_not_withdrawn(
    inventory: Inventory, found_by: str
) -> None:
    """Its first attempt wakes up after the second one has found it."""
    await configured(inventory)
    reset = await command(inventory, Action.RESET)
    await begin(inventory, reset)
    if found_by == "begin_command":
        found = await begin(inventory, reset)
    else:
        found = await inventory.power.take_over_command(reset)
    assert found is not None
    assert "has not said" in found.problem
    await inventory.power.withdraw_command(reset)
    await inventory.power.finish_command(reset, CommandOutcome.UNKNOWN, "On -> On")
    assert await messages(inventory) == ["reset (test): On -> On"]


@pytest.mark.parametrize("action", [Action.RESET, Action.CYCLE])
async def test_a_boot_explains_a_look_at_its_moment_without_power(
    inventory: Inventory, action: Action
) -> None:
    await configured(inventory)
    await record(inventory, sighting(1, PowerState.ON))
    boot = await command(inventory, action)
    await begin(inventory, boot)
    await record(inventory, sighting(1, PowerState.OFF))
    await record(inventory, sighting(1, PowerState.ON))
    await inventory.power.finish_command(boot, CommandOutcome.DONE, "On -> On")
    assert await messages(inventory) == [f"{action} (test): On -> On"]


async def test_a_command_needs_the_lease(inventory: Inventory) -> None:
    await configured(inventory)
    off = await command(inventory)
    await inventory.leases.acquire("kvm-1", LeaseScope.POWER, OTHER, "power", takeover_from=OWNER)
    with pytest.raises(LeaseLost):
        await begin(inventory, off)


@pytest.mark.parametrize("anew", [False, True])
async def test_a_command_goes_by_the_configuration_that_was_looked_at(
    inventory: Inventory, anew: bool
) -> None:
    await configured(inventory)
    off = await command(inventory)
    await inventory.oobm.configure(
        "kvm-1", {"address": "127.0.9.9"}, secret_id=None, replace=False, actor="test"
    )
    present = await generation(inventory)
    with pytest.raises(Conflict, match="was not sent"):
        await inventory.power.begin_command(off, present if anew else off.generation)
    assert await inventory.power.take_over_command(off) is None
    assert await begin(inventory, off.model_copy(update={"generation": present})) is None


async def test_the_power_lease_goes_beside_that_of_a_maintenance(inventory: Inventory) -> None:
    await configured(inventory)
    placement = await inventory.leases.acquire("kvm-1", LeaseScope.PLACEMENT, OTHER, "maintenance")
    off = await command(inventory)
    assert off.lease != LeaseRef(host="kvm-1", owner=OTHER, epoch=placement.epoch)
    await inventory.leases.verify(off.lease)
    await inventory.leases.verify(ref(placement))


async def test_the_fleet_is_counted_and_rounds_are_kept(inventory: Inventory) -> None:
    for number in (1, 2, 3):
        await configured(inventory, number)
    await configured(inventory, 4, enabled=False)
    await record(inventory, sighting(1, PowerState.ON), sighting(2, PowerState.ON))
    unreachable = {"problem": PowerProblem.UNREACHABLE, "reason": "no answer"}
    await record(inventory, sighting(3, PowerState.UNKNOWN, **unreachable))
    fleet = await inventory.power.fleet()
    assert [(count.state, count.problem, count.hosts) for count in fleet.counts] == [
        (PowerState.ON, None, 2),
        (PowerState.UNKNOWN, PowerProblem.UNREACHABLE, 1),
    ]
    assert fleet.waiting == 1
    assert fleet.oldest_observed_at is not None
    began = datetime.now(UTC)
    for number in range(103):
        at = began + timedelta(minutes=number)
        done = PowerRound(
            started_at=at,
            ended_at=at + timedelta(seconds=2),
            seconds=2,
            asked=3,
            answered=2,
            waiting=1,
            changed=0,
            oldest_observed_at=None,
            counts=fleet.counts,
        )
        await inventory.power.record_round(done)
    rounds = await inventory.power.rounds(1000)
    assert len(rounds) == 100
    assert rounds[0] == done
