"""Looking at hosts in bulk, with drivers in memory and a real inventory; no lab."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest
from temporalio.testing import ActivityEnvironment

from activities.bmcs import BmcDirectory
from activities.directory import HostDirectory
from activities.host_checks import HostCheckActivities
from contracts.errors import Conflict, Failed, NotFound
from contracts.host_checks import Lane, RoundPlan, SweepInput, Swept
from contracts.host_status import Reach, Seen
from contracts.hosts import Host, HostFacts, HostUsage
from contracts.oobm import PowerProblem
from contracts.power import PowerState
from contracts.power_actions import PowerSighting
from contracts.states import HostStatus, ResourceState
from contracts.steps import HostRef
from drivers.errors import (
    CallTimedOut,
    ConnectionRefused,
    HostKeyChanged,
    HostUnreachable,
    LoginRefused,
)
from drivers.protocols import (
    CommandResult,
    Fence,
    FenceState,
    HostAccess,
    Hypervisor,
    RemoteShell,
)
from inventory import Inventory, SecretBox
from inventory.errors import MasterKeyMissing
from inventory.models import KeyringRow, SecretVersionRow
from inventory.secrets import identity
from tests.activities.conftest import change_state, run
from tests.databases import sqlite_database
from tests.fake_bmcs import FakeBmcs, mute
from tests.inventory.conftest import acquire, enabled, ref, register
from tests.samples import FACTS, WHEN
from workers.converter import application_error

HANGS = 30.0


@dataclass
class Machines:
    """All drivers of a check. Each set has names of hosts that behave so.

    `asked`: how often which host was asked by which driver; `about`: peers, about which address;
    `most`: at a time.
    """

    away: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    hanging: set[str] = field(default_factory=set)
    refusing: set[str] = field(default_factory=set)
    turning_down: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    fenced: set[str] = field(default_factory=set)
    vms: int = 3
    reached: dict[str, Reach] = field(default_factory=dict)
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    about: Counter[str] = field(default_factory=Counter)
    at_once: int = 0
    most: int = 0
    after_usage: Callable[[], Awaitable[None]] | None = None

    async def usage(self, access: HostAccess) -> HostUsage:
        self.asked["usage", access.name] += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await asyncio.sleep(0.02)
            self._log_in(access.name)
            if access.name in self.hanging:
                await asyncio.sleep(HANGS)
            if access.name in self.silent:
                raise CallTimedOut(f"{access.name} did not answer.")
        finally:
            self.at_once -= 1
        if self.after_usage is not None:
            await self.after_usage()
        return HostUsage(vms=self.vms, memory_used_mib=96, cpus_used=3, at=datetime.now(UTC))

    async def facts(self, access: HostAccess) -> HostFacts:
        self.asked["facts", access.name] += 1
        return FACTS

    async def run(
        self,
        access: HostAccess,
        command: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: float = 30.0,  # noqa: ASYNC109 - the protocol's
    ) -> CommandResult:
        self.asked["ssh", access.name] += 1
        self._log_in(access.name)
        return CommandResult(0, "", "")

    async def read(self, access: HostAccess) -> FenceState:
        self.asked["fence", access.name] += 1
        return FenceState("maintenance/x" if access.name in self.fenced else None, 1)

    async def reach(self, peer: HostAccess, address: str, port: int, seconds: int) -> Reach:
        self.asked["peer", peer.name] += 1
        self.about[address] += 1
        if peer.name in self.away:
            raise HostUnreachable(f"{peer.name} does not answer.")
        return self.reached.get(address, Reach.CONNECTED)

    def _log_in(self, host: str) -> None:
        if host in self.away:
            raise HostUnreachable(f"{host} does not answer: timed out.")
        if host in self.turning_down:
            raise ConnectionRefused(f"{host} does not answer: connection refused.")
        if host in self.refusing:
            raise LoginRefused(f"{host} refuses the login of root.")
        if host in self.changed:
            raise HostKeyChanged(f"{host} shows another key.")


@pytest.fixture
async def inventory(tmp_path: Path) -> AsyncIterator[Inventory]:
    """kvm-1 to kvm-3, `Enabled` and `Up`."""
    database = sqlite_database(tmp_path)
    inventory = Inventory(database, SecretBox(SecretBox.new_key()))
    await inventory.topology.create_zone("zone-1", actor="test")
    await inventory.topology.create_pod("pod-1", "zone-1", actor="test")
    await inventory.topology.create_cluster("cluster-1", "pod-1", actor="test")
    for number in range(1, 4):
        await enabled(inventory, number)
    yield inventory
    await database.close()


@pytest.fixture
def machines() -> Machines:
    return Machines()


@pytest.fixture
def bmcs() -> FakeBmcs:
    return FakeBmcs()


@pytest.fixture
def activities(inventory: Inventory, machines: Machines, bmcs: FakeBmcs) -> HostCheckActivities:
    return HostCheckActivities(
        inventory,
        HostDirectory(inventory),
        cast(Hypervisor, machines),
        cast(RemoteShell, machines),
        cast(Fence, machines),
        machines,
        BmcDirectory(inventory, bmcs),
    )


async def plan(activities: HostCheckActivities, **more: object) -> RoundPlan:
    """Whose rounds may follow each other at once."""
    made: RoundPlan = await run(activities.plan_host_check)
    return made.model_copy(update={"timeout": 1, "interval": 0, **more})


async def check(activities: HostCheckActivities, **more: object) -> Swept:
    """One round, its peers included."""
    sweep = SweepInput(plan=await plan(activities, **more))
    swept: Swept = await run(activities.check_hosts, sweep)
    missed = await run(
        activities.check_hosts, sweep.model_copy(update={"lane": Lane.MISSED, "after": ""})
    )
    await run(activities.investigate_hosts, sweep)
    return swept.model_copy(
        update={
            "seen": dict(Counter(swept.seen) + Counter(missed.seen)),
            "changed": (*swept.changed, *missed.changed),
        }
    )


async def host(inventory: Inventory, name: str = "kvm-1") -> Host:
    return await inventory.hosts.get(name)


async def test_the_plan_has_the_settings_of_now(
    activities: HostCheckActivities, inventory: Inventory
) -> None:
    await inventory.settings.set("host.check.interval", 30, actor="test")
    await inventory.settings.set("host.check.missed.max", 5, actor="test")
    made = await run(activities.plan_host_check)
    assert (made.interval, made.missed_max, made.batch, made.concurrency) == (30, 5, 200, 50)


async def test_a_healthy_host_costs_one_call(
    activities: HostCheckActivities, inventory: Inventory, machines: Machines
) -> None:
    await check(activities)  # the first one is read in full
    machines.asked.clear()
    swept = await check(activities, interval=60)
    assert swept.seen == {Seen.ANSWERED: 3}
    assert (swept.hosts, swept.last, swept.changed) == (3, None, ())
    assert machines.asked == {("usage", name): 1 for name in ("kvm-1", "kvm-2", "kvm-3")}
    usage = (await host(inventory)).usage
    assert usage is not None
    assert (usage.vms, usage.memory_used_mib, usage.cpus_used) == (3, 96, 3)


@pytest.mark.parametrize("every", [1, 1.5, 2, 3])
async def test_a_host_is_read_in_full_within_ten_intervals_however_long_rounds_take(
    activities: HostCheckActivities, inventory: Inventory, every: float
) -> None:
    """`every` so many intervals a round begins."""
    # Chance goes by the clock: always the same one here.
    round_ = await plan(activities, interval=60, started_at=WHEN)
    hosts = [(await host(inventory)).model_copy(update={"name": f"kvm-{n}"}) for n in range(1, 201)]
    read: list[list[float]] = [[] for _ in hosts]
    for number in range(int(100 / every)):
        begin = round_.started_at + timedelta(seconds=60 * every * number)
        now = round_.model_copy(update={"started_at": begin})
        for at, one in enumerate(hosts):
            if now.is_full_for(one):
                hosts[at] = one.model_copy(update={"read_at": begin + timedelta(seconds=5)})
                read[at].append(number * every)
    gaps = [later - before for one in read for before, later in pairwise(one)]
    assert min(gaps) >= 7 - every
    assert max(gaps) < 10 + every
    # They all began together, and are not together any more.
    assert Counter(one[-1] for one in read).most_common(1)[0][1] < 180


async def test_facts_are_read_in_turn_and_at_once_of_one_that_comes_back(
    activities: HostCheckActivities, inventory: Inventory, machines: Machines
) -> None:
    await check(activities, interval=60)
    assert [machines.asked["facts", f"kvm-{n}"] for n in range(1, 4)] == [1, 1, 1]
    await inventory.hosts.set_status("kvm-2", HostStatus.DOWN, actor="test", reason="test")
    machines.asked.clear()
    await check(activities, interval=60)
    assert [machines.asked["facts", f"kvm-{n}"] for n in range(1, 4)] == [0, 1, 0]
    assert (await host(inventory, "kvm-2")).status is HostStatus.UP


async def test_peers_are_asked_of_a_host_that_is_up_until_they_can_tell(
    activities: HostCheckActivities, inventory: Inventory, machines: Machines
) -> None:
    machines.reached = {"198.18.0.11": Reach.UNKNOWN, "198.18.0.12": Reach.NO_ANSWER}
    for _ in range(3):
        await check(activities, interval=60)
    told = [(await host(inventory, f"kvm-{n}")).peers_reach for n in range(1, 4)]
    assert told == [None, False, True]
    # kvm-1 in each round, the others when they were read in full.
    assert sum(n for (what, _), n in machines.asked.items() if what == "peer") == 2 * (3 + 1 + 1)


async def test_what_peers_that_never_reached_it_say_makes_nobody_down(
    activities: HostCheckActivities, inventory: Inventory, machines: Machines
) -> None:
    """Only Hostler's network is let in: from a peer all is silence, always."""
    machines.reached = {"198.18.0.11": Reach.NO_ANSWER}
    await check(activities)
    machines.away = {"kvm-1"}
    for _ in range(5):
        await check(activities)
    assert (await host(inventory)).status is HostStatus.DISCONNECTED


async def test_a_machine_that_refuses_connections_is_not_absent(
    activities: HostCheckActivities, inventory: Inventory, machines: Machines
) -> None:
    await check(activities)
    machines.reached = {"198.18.0.11": Reach.NO_ANSWER}
    machines.turning_down = {"kvm-1"}
    machines.asked.clear()
    for _ in range(4):
        swept = await check(activities, interval=0)
    assert swept.seen == {Seen.REFUSED: 1, Seen.ANSWERED: 2}
    assert (await host(inventory)).status is HostStatus.ALERT
    assert "the machine is there" in (await host(inventory)).status_reason


async def test_rounds_begun_by_hand_count_one_miss(
    activities: HostCheckActivities, inventory: Inventory, machines: Machines
) -> None:
    await check(activities)
    machines.away = {"kvm-1"}
    for _ in range(4):
        await check(activities, interval=60)
    assert (await host(inventory)).missed_checks == 1
    assert (await host(inventory)).status is HostStatus.UP


async def test_a_host_that_is_beyond_hostler_costs_itself_alone(
    activities: HostCheckActivities,
    inventory: Inventory,
    machines: Machines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = machines.usage

    async def odd(access: HostAccess) -> HostUsage:
        if access.name == "kvm-1":
            raise ValueError("not enough values to unpack")
        return await usage(access)

    async def unreadable(access: HostAccess, *_: object, **more: object) -> CommandResult:
        raise Failed(f"The pinned SSH host key of {access.name} can't be read.")

    monkeypatch.setattr(machines, "usage", odd)
    for _ in range(2):
        swept = await check(activities)
    assert swept.seen == {Seen.LIBVIRT_SILENT: 1, Seen.ANSWERED: 2}
    assert "ValueError: not enough values" in (await host(inventory)).status_reason
    monkeypatch.setattr(machines, "run", unreadable)
    swept = await check(activities)
    assert swept.seen == {Seen.LOGIN_REFUSED: 1, Seen.ANSWERED: 2}
    assert "pinned SSH host key" in (await host(inventory)).status_reason


async def test_what_is_seen_of_each_kind_of_trouble(
    activities: HostCheckActivities, inventory: Inventory, machines: Machines
) -> None:
    machines.refusing, machines.changed = {"kvm-1"}, {"kvm-2"}
    machines.silent = {"kvm-3"}
    swept = await check(activities)
    assert swept.seen == {Seen.LOGIN_REFUSED: 1, Seen.KEY_CHANGED: 1, Seen.LIBVIRT_SILENT: 1}
    assert set(swept.changed) == {"kvm-1", "kvm-2"}
    assert (await host(inventory, "kvm-3")).status is HostStatus.UP
    await check(activities)
    assert [(await host(inventory, f"kvm-{n}")).status for n in range(1, 4)] == [
        HostStatus.ALERT
    ] * 3


async def test_a_hanging_host_costs_its_own_time_and_nobody_elses(
    activities: HostCheckActivities, inventory: Inventory, machines: Machines
) -> None:
    machines.hanging = {"kvm-1"}
    checking = asyncio.create_task(check(activities, concurrency=2))
    began = time.monotonic()
    while (await host(inventory, "kvm-3")).checked_at is None:
        await asyncio.sleep(0.01)
    # What the others have shown is written while the first one still hangs.
    assert not checking.done()
    assert (await host(inventory)).checked_at is None
    swept = await checking
    assert time.monotonic() - began < HANGS / 2
    assert swept.seen == {Seen.ANSWERED: 2, Seen.LIBVIRT_SILENT: 1}


async def test_so_many_at_a_time_and_no_more(
    activities: HostCheckActivities, inventory: Inventory, machines: Machines
) -> None:
    for number in range(4, 30):
        await enabled(inventory, number)
    swept = await check(activities, concurrency=4)
    assert swept.hosts == 29
    assert machines.most == 4


async def test_batches_follow_each_other(
    activities: HostCheckActivities, machines: Machines
) -> None:
    round_ = await plan(activities, batch=2)
    first = await run(activities.check_hosts, SweepInput(plan=round_))
    assert (first.hosts, first.last) == (2, "kvm-2")
    second = await run(activities.check_hosts, SweepInput(plan=round_, after="kvm-2"))
    assert (second.hosts, second.last) == (1, None)
    assert [machines.asked["usage", f"kvm-{n}"] for n in range(1, 4)] == [1, 1, 1]


async def test_hosts_that_missed_their_last_check_are_left_to_their_own_lane(
    activities: HostCheckActivities, inventory: Inventory, machines: Machines
) -> None:
    machines.away = {"kvm-2"}
    await check(activities)
    machines.asked.clear()
    sweep = SweepInput(plan=await plan(activities))
    swept = await run(activities.check_hosts, sweep)
    # They are counted where all are.
    assert (swept.hosts, swept.seen) == (3, {Seen.ANSWERED: 2})
    assert machines.asked["usage", "kvm-2"] == 0
    missed = sweep.model_copy(update={"lane": Lane.MISSED})
    for seen in ({Seen.UNREACHABLE: 1}, {}):  # once in a round
        swept = await run(activities.check_hosts, missed)
        assert (swept.hosts, swept.last, swept.seen) == (0, None, seen)
    assert (await host(inventory, "kvm-2")).missed_checks == 2
    # One that answers there is not looked at again in that round, and back among the others.
    machines.away = set()
    sweep = SweepInput(plan=await plan(activities))
    assert (await run(activities.check_hosts, missed.model_copy(update={"plan": sweep.plan}))).seen
    swept = await run(activities.check_hosts, sweep)
    assert (swept.hosts, swept.seen) == (3, {Seen.ANSWERED: 2})
    assert (await host(inventory, "kvm-2")).missed_checks == 0


async def test_another_attempt_goes_on_where_the_first_one_ended(
    activities: HostCheckActivities, inventory: Inventory, machines: Machines
) -> None:
    machines.away, machines.hanging = {"kvm-1"}, {"kvm-2"}
    sweep = SweepInput(plan=await plan(activities, timeout=20))
    beats: list[object] = []
    environment = ActivityEnvironment()
    environment.on_heartbeat = lambda *details: beats.extend(details)
    first = asyncio.create_task(environment.run(activities.check_hosts, sweep))
    while (
        sum(one.checked_at is not None for one in await inventory.hosts.list(cluster="cluster-1"))
        < 2
    ):
        await asyncio.sleep(0.01)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert beats
    machines.hanging = set()
    swept = await run(activities.check_hosts, sweep)
    assert swept.seen == {Seen.ANSWERED: 1}
    assert machines.asked["usage", "kvm-1"] == 1
    assert (await host(inventory)).missed_checks == 1


async def test_a_host_goes_down_when_its_peers_do_not_reach_it_either(
    activities: HostCheckActivities, inventory: Inventory, machines: Machines
) -> None:
    await check(activities)
    machines.away = {"kvm-1"}
    machines.reached = {"198.18.0.11": Reach.NO_ANSWER}
    seen = []
    for _ in range(3):
        await check(activities)
        seen.append((await host(inventory)).status)
    assert seen == [HostStatus.UP, HostStatus.DISCONNECTED, HostStatus.DOWN]
    reason = (await host(inventory)).status_reason
    assert "no answer to Hostler: kvm-1 does not answer: timed out in 3 checks" in reason
    assert "kvm-2" in reason
    assert "kvm-3" in reason
    machines.away = set()
    await check(activities)
    assert (await host(inventory)).status is HostStatus.UP


async def test_one_that_a_peer_reaches_is_an_alert(
    activities: HostCheckActivities, inventory: Inventory, machines: Machines
) -> None:
    machines.away = {"kvm-1"}
    for _ in range(5):
        await check(activities)
    assert (await host(inventory)).status is HostStatus.ALERT
    assert "not from here" in (await host(inventory)).status_reason
    events = await inventory.events.list(subject="host/kvm-1")
    assert sum(event.kind == "host.status" for event in events) == 3  # with the one of its addition


async def test_when_hostler_is_cut_off_nobody_goes_down(
    activities: HostCheckActivities, inventory: Inventory, machines: Machines
) -> None:
    machines.away = {"kvm-1", "kvm-2", "kvm-3"}
    for _ in range(6):
        await check(activities)
    hosts = await inventory.hosts.list()
    assert {one.status for one in hosts} == {HostStatus.DISCONNECTED}
    assert {one.missed_checks for one in hosts} == {6}
    assert not any(driver == "peer" for driver, _ in machines.asked)


async def test_peers_are_asked_only_if_they_answered_in_this_round(
    activities: HostCheckActivities, inventory: Inventory, machines: Machines
) -> None:
    await check(activities)
    machines.reached = {"198.18.0.11": Reach.NO_ANSWER}
    machines.away = {"kvm-1"}
    await check(activities)
    await check(activities)
    machines.about.clear()
    machines.away = {"kvm-1", "kvm-2"}
    await check(activities)
    # kvm-2 is still Up by the inventory, and missed this round.
    assert (await host(inventory, "kvm-2")).status is HostStatus.UP
    assert machines.about["198.18.0.11"] == 1
    assert (await host(inventory)).status is HostStatus.DOWN


async def test_no_peer_is_asked_for_a_host_that_answers_at_that_moment(
    activities: HostCheckActivities, inventory: Inventory, machines: Machines
) -> None:
    await check(activities)
    machines.reached = {"198.18.0.11": Reach.NO_ANSWER}
    machines.away = {"kvm-1"}
    await check(activities)
    await check(activities)
    machines.about.clear()
    sweep = SweepInput(plan=await plan(activities))
    await run(activities.check_hosts, sweep)
    machines.away = set()
    await run(activities.investigate_hosts, sweep)
    assert machines.about["198.18.0.11"] == 0
    assert (await host(inventory)).status is HostStatus.DISCONNECTED


async def test_one_that_was_taken_out_down_is_up_when_it_is_fenced_and_empty(
    activities: HostCheckActivities, inventory: Inventory, machines: Machines
) -> None:
    await inventory.hosts.set_status("kvm-1", HostStatus.DOWN, actor="test", reason="said so")
    states = (ResourceState.PREPARE_FOR_MAINTENANCE, ResourceState.MAINTENANCE)
    await change_state(inventory, "kvm-1", *states)
    await check(activities)
    assert (await host(inventory)).status is HostStatus.DOWN
    machines.fenced = {"kvm-1"}
    await check(activities)
    assert (await host(inventory)).status is HostStatus.DOWN
    machines.vms = 0
    await check(activities)
    assert (await host(inventory)).status is HostStatus.UP
    assert machines.asked["fence", "kvm-2"] == 0


async def test_an_operation_that_speaks_while_a_check_looks_has_the_last_word(
    activities: HostCheckActivities, inventory: Inventory, machines: Machines
) -> None:
    async def meanwhile() -> None:
        machines.after_usage = None
        await inventory.hosts.set_status("kvm-1", HostStatus.DOWN, actor="op", reason="said so")

    machines.after_usage = meanwhile
    await check(activities)
    assert (await host(inventory)).status_reason == "said so"


async def test_one_host_out_of_turn(
    activities: HostCheckActivities, inventory: Inventory, machines: Machines
) -> None:
    sighting = await run(activities.look_at_host, HostRef(host="kvm-1"))
    assert (sighting.seen, sighting.status) == (Seen.ANSWERED, HostStatus.UP)
    assert sighting.usage is not None
    assert machines.asked["facts", "kvm-1"] == 1
    machines.away = {"kvm-1"}
    for _ in range(4):
        sighting = await run(activities.look_at_host, HostRef(host="kvm-1"))
    assert (sighting.seen, sighting.status) == (Seen.UNREACHABLE, HostStatus.UP)
    assert sighting.problem == "kvm-1 does not answer: timed out"
    assert sighting.missed_checks == 0
    with pytest.raises(NotFound):
        await run(activities.look_at_host, HostRef(host="kvm-9"))
    await register(inventory, 4)
    with pytest.raises(Conflict, match="kvm-4 is Creating"):
        await run(activities.look_at_host, HostRef(host="kvm-4"))


async def test_a_host_that_is_re_installed_is_left_alone(
    activities: HostCheckActivities, inventory: Inventory, machines: Machines
) -> None:
    out = (ResourceState.PREPARE_FOR_MAINTENANCE, ResourceState.MAINTENANCE)
    await change_state(inventory, "kvm-1", *out)
    lease = ref(await acquire(inventory, host="kvm-1"))
    await inventory.reinstallations.withdraw(lease, reason="disk broken")
    swept = await check(activities)
    assert swept.seen == {Seen.ANSWERED: 2}
    assert (await host(inventory, "kvm-1")).status_reason == "is being re-installed"
    with pytest.raises(Conflict, match="kvm-1 is being re-installed"):
        await run(activities.look_at_host, HostRef(host="kvm-1"))


async def test_a_credential_that_cannot_be_read_costs_that_host_alone(
    activities: HostCheckActivities, inventory: Inventory, machines: Machines
) -> None:
    await enabled(inventory, 4)
    secret = (await inventory.hosts.login("kvm-4")).secret_id
    other = SecretBox(SecretBox.new_key())
    async with inventory.database.writing() as session:
        row = await session.get_one(SecretVersionRow, secret)
        row.ciphertext = other.seal("pw", identity(row.id, row.kind), key_id=other.key_ids[0])
        session.add(row)
    swept = await check(activities)
    assert swept.seen == {Seen.ANSWERED: 3, Seen.LOGIN_REFUSED: 1}
    assert (await host(inventory, "kvm-4")).status is HostStatus.ALERT


async def test_a_master_key_that_is_missing_here_says_nothing_of_a_host(
    activities: HostCheckActivities, inventory: Inventory, machines: Machines
) -> None:
    await enabled(inventory, 4)
    secret = (await inventory.hosts.login("kvm-4")).secret_id
    other = SecretBox(SecretBox.new_key())
    async with inventory.database.writing() as session:
        row = await session.get_one(SecretVersionRow, secret)
        row.ciphertext = other.seal("pw", identity(row.id, row.kind), key_id=other.key_ids[0])
        keyring = await session.get_one(KeyringRow, 1)
        keyring.known = [*keyring.known, *other.key_ids]
        session.add_all([row, keyring])
    swept = await check(activities)
    assert swept.seen == {Seen.ANSWERED: 3}
    assert (await host(inventory, "kvm-4")).status is HostStatus.UP
    with pytest.raises(MasterKeyMissing) as caught:
        await run(activities.look_at_host, HostRef(host="kvm-4"))
    assert not application_error(caught.value).non_retryable


# --- a host's BMC -------------------------------------------------------------------------------


async def with_bmc(inventory: Inventory, number: int = 1) -> None:
    """kvm-<number> has one, which is asked."""
    secret = await inventory.secrets.store("bmc_password", "bmc-pw", actor="test")
    await inventory.oobm.configure(
        f"kvm-{number}",
        {"enabled": True, "address": f"127.0.1.{number}", "user": "admin"},
        secret_id=secret,
        replace=True,
        actor="test",
    )


async def miss_enough(activities: HostCheckActivities, machines: Machines) -> None:
    machines.away |= {"kvm-1"}
    machines.reached["198.18.0.11"] = Reach.UNKNOWN
    for _ in range(3):
        await check(activities)


async def test_a_host_whose_bmc_says_off_is_down_without_any_peer(
    activities: HostCheckActivities, machines: Machines, inventory: Inventory, bmcs: FakeBmcs
) -> None:
    await with_bmc(inventory)
    bmcs.of["kvm-1"].state = PowerState.OFF
    await miss_enough(activities, machines)
    found = await host(inventory)
    assert found.status is HostStatus.DOWN
    assert "its BMC says that it is off" in found.status_reason
    assert found.power is not None
    assert found.power.state is PowerState.OFF


@pytest.mark.parametrize("says", ["on", "nothing", "disabled"])
async def test_a_bmc_that_does_not_say_off_changes_nothing(
    activities: HostCheckActivities,
    machines: Machines,
    inventory: Inventory,
    bmcs: FakeBmcs,
    says: str,
) -> None:
    await with_bmc(inventory)
    if says == "nothing":
        bmcs.of["kvm-1"].fails = mute()
    if says == "disabled":
        bmcs.of["kvm-1"].state = PowerState.OFF
        await inventory.oobm.set_cluster_switch("cluster-1", enabled=False, actor="test")
    await miss_enough(activities, machines)
    assert (await host(inventory)).status is HostStatus.DISCONNECTED


async def test_the_bmc_of_another_host_is_no_evidence(
    activities: HostCheckActivities, machines: Machines, inventory: Inventory, bmcs: FakeBmcs
) -> None:
    for number in (1, 2):
        await with_bmc(inventory, number)
    known = PowerSighting(
        host="kvm-2",
        generation=(await inventory.oobm.login("kvm-2")).generation,
        began_at=datetime.now(UTC),
        state=PowerState.OFF,
        guid="guid-2",
    )
    await inventory.power.record([known], interval=timedelta(seconds=30), operation="test")
    # kvm-1's configuration leads there by mistake.
    bmcs.of["kvm-1"].state, bmcs.of["kvm-1"].guid = PowerState.OFF, "guid-2"
    await miss_enough(activities, machines)
    found = await host(inventory)
    assert found.status is HostStatus.DISCONNECTED
    assert found.power is not None
    assert found.power.problem is PowerProblem.ANOTHER_BMC


async def test_a_bmc_that_refuses_the_login_is_left_alone(
    activities: HostCheckActivities, machines: Machines, inventory: Inventory, bmcs: FakeBmcs
) -> None:
    await with_bmc(inventory)
    bmcs.of["kvm-1"].password = "another"
    await miss_enough(activities, machines)
    await check(activities)
    assert bmcs.of["kvm-1"].refused_logins == 1
