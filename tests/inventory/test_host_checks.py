"""What checks write: status with its event, facts, usage; and what they must not overwrite."""

from datetime import UTC, datetime, timedelta

from contracts.host_checks import Look
from contracts.host_status import PeerWord, Reach, Seen
from contracts.hosts import Host, HostUsage
from contracts.states import HostStatus, ResourceState
from inventory import Inventory
from tests.inventory.conftest import enabled, register
from tests.samples import FACTS

CHECK = "host-check-1"


def look(seen: Seen = Seen.ANSWERED, host: str = "kvm-1", **more: object) -> Look:
    """One that begins now."""
    problem = "" if seen is Seen.ANSWERED else "timed out"
    fields = {"host": host, "began_at": datetime.now(UTC), "seen": seen, "problem": problem}
    return Look.model_validate(fields | more)


async def record(
    inventory: Inventory, one: Look, misses_apart: timedelta | None = timedelta(0)
) -> None:
    await inventory.host_checks.record([one], operation=CHECK, misses_apart=misses_apart)


async def see(
    inventory: Inventory, *looks: Look, misses_apart: timedelta | None = timedelta(0)
) -> Host:
    """kvm-1, after these looks, each begun when the one before it was written down."""
    for one in looks:
        now = one.model_copy(update={"began_at": datetime.now(UTC)})
        await record(inventory, now, misses_apart)
    return await inventory.hosts.get("kvm-1")


async def told(inventory: Inventory, kind: str = "host.status") -> list[str]:
    """What checks have told, the oldest first."""
    events = await inventory.events.list(operation=CHECK)
    return [event.message for event in reversed(events) if event.kind == kind]


async def conclude(inventory: Inventory, host: Host, *reaches: Reach) -> Host:
    words = [PeerWord(peer=f"kvm-{n}", reach=reach) for n, reach in enumerate(reaches, 2)]
    await inventory.host_checks.conclude(
        host, "timed out", words, began_at=datetime.now(UTC), operation=CHECK
    )
    return await inventory.hosts.get(host.name)


async def test_a_good_check_writes_usage_and_no_event(inventory: Inventory) -> None:
    before = await enabled(inventory, 1)
    at = datetime.now(UTC)
    usage = HostUsage(vms=3, memory_used_mib=288, cpus_used=3, at=at)
    await record(inventory, look(usage=usage, began_at=at))
    host = await inventory.hosts.get("kvm-1")
    assert (host.usage, host.checked_at, host.missed_checks) == (usage, at, 0)
    assert (host.status, host.status_reason) == (HostStatus.UP, "added")
    assert host.status_since == before.status_since
    assert host.updated_at == before.updated_at
    assert await told(inventory) == []


async def test_misses_are_counted_and_the_second_one_is_told_once(inventory: Inventory) -> None:
    await enabled(inventory, 1)
    reached = [PeerWord(peer="kvm-2", reach=Reach.CONNECTED)]
    host = await see(inventory, look(words=reached), look(Seen.UNREACHABLE))
    assert (host.status, host.missed_checks) == (HostStatus.UP, 1)
    host = await see(inventory, look(Seen.UNREACHABLE), look(Seen.UNREACHABLE))
    assert (host.status, host.missed_checks) == (HostStatus.DISCONNECTED, 3)
    assert host.status_reason == "no answer to Hostler: timed out"
    down = await conclude(inventory, host, Reach.NO_ANSWER, Reach.NO_ANSWER)
    assert down.status is HostStatus.DOWN
    host = await see(inventory, look())
    assert (host.status, host.missed_checks) == (HostStatus.UP, 0)
    assert await told(inventory) == [
        "Up -> Disconnected: no answer to Hostler: timed out",
        "Disconnected -> Down: no answer to Hostler: timed out in 3 checks; and no answer to "
        "kvm-2 and kvm-3, in the same cluster",
        "Down -> Up: it answers again",
    ]


async def test_another_reason_for_an_alert_is_told_if_it_is_a_definite_one(
    inventory: Inventory,
) -> None:
    await enabled(inventory, 1)
    refused = {"problem": "Permission denied"}
    for seen in (Seen.LOGIN_REFUSED, Seen.LOGIN_REFUSED, Seen.KEY_CHANGED, Seen.LIBVIRT_SILENT):
        host = await see(inventory, look(seen, **refused))
    assert host.status_reason == "SSH answers, libvirt does not: Permission denied"
    assert await told(inventory) == [
        "Up -> Alert: it does not let Hostler in: Permission denied",
        "still Alert: it may be another machine: Permission denied",
    ]


async def test_what_was_written_since_a_look_began_stays(inventory: Inventory) -> None:
    await enabled(inventory, 1)
    stale = look(Seen.KEY_CHANGED)
    await inventory.hosts.set_status("kvm-1", HostStatus.ALERT, actor="x", reason="x")
    await inventory.hosts.set_status("kvm-1", HostStatus.UP, actor="x", reason="installed again")
    await record(inventory, stale)
    host = await inventory.hosts.get("kvm-1")
    assert (host.status, host.status_reason) == (HostStatus.UP, "installed again")
    assert host.checked_at is None
    older = look(Seen.KEY_CHANGED)
    await see(inventory, look())
    await record(inventory, older)
    assert (await inventory.hosts.get("kvm-1")).status is HostStatus.UP


async def test_peers_that_speak_of_a_host_that_answers_by_now_are_not_heard(
    inventory: Inventory,
) -> None:
    await enabled(inventory, 1)
    absent = await see(inventory, *(look(Seen.UNREACHABLE) for _ in range(3)))
    assert absent.missed_checks == 3
    await see(inventory, look())
    host = await conclude(inventory, absent, Reach.NO_ANSWER)
    assert host.status is HostStatus.UP


async def test_a_look_out_of_turn_counts_no_miss(inventory: Inventory) -> None:
    await enabled(inventory, 1)
    before = await see(inventory, look())
    missed = (look(Seen.UNREACHABLE), look(Seen.LIBVIRT_SILENT), look(Seen.REFUSED))
    assert await see(inventory, *missed, misses_apart=None) == before
    host = await see(inventory, look(Seen.KEY_CHANGED), misses_apart=None)
    assert host.status is HostStatus.ALERT
    assert (await see(inventory, look(), misses_apart=None)).status is HostStatus.UP


async def test_misses_one_right_after_the_other_are_one(inventory: Inventory) -> None:
    """Rounds that somebody has begun by hand."""
    await enabled(inventory, 1)
    apart = timedelta(seconds=30)
    first = await see(inventory, look(Seen.UNREACHABLE), misses_apart=apart)
    assert first.missed_checks == 1
    for _ in range(4):
        host = await see(inventory, look(Seen.UNREACHABLE), misses_apart=apart)
    assert host == first
    later = look(Seen.UNREACHABLE, began_at=datetime.now(UTC) + apart)
    await record(inventory, later, apart)
    assert (await inventory.hosts.get("kvm-1")).missed_checks == 2


async def test_whether_peers_reach_a_host_is_what_the_last_ones_said_that_could_tell(
    inventory: Inventory,
) -> None:
    await enabled(inventory, 1)

    async def hear(*reaches: Reach) -> bool | None:
        words = [PeerWord(peer=f"kvm-{n}", reach=reach) for n, reach in enumerate(reaches, 2)]
        return (await see(inventory, look(words=words))).peers_reach

    assert await hear(Reach.UNKNOWN) is None
    assert await hear(Reach.NO_ANSWER, Reach.CONNECTED) is True
    assert await hear() is True
    assert await hear(Reach.UNKNOWN, Reach.UNKNOWN) is True
    assert await hear(Reach.NO_ANSWER, Reach.UNKNOWN) is False


async def test_peers_that_never_reached_a_host_make_it_not_down(inventory: Inventory) -> None:
    await enabled(inventory, 1)
    host = await see(inventory, *(look(Seen.UNREACHABLE) for _ in range(3)))
    for _ in range(2):
        host = await conclude(inventory, host, Reach.NO_ANSWER, Reach.NO_ANSWER)
    assert host.status is HostStatus.DISCONNECTED
    assert "kvm" not in host.status_reason
    assert "never reached it while it was Up" in host.status_reason


async def test_facts_that_changed_are_told(inventory: Inventory) -> None:
    await enabled(inventory, 1)
    await see(inventory, look(facts=FACTS))  # nothing to compare them with
    assert (await inventory.hosts.get("kvm-1")).facts is None
    await inventory.hosts.set_facts("kvm-1", FACTS)
    newer = FACTS.model_copy(update={"qemu_version": "8.2.2", "memory_mib": 1024})
    host = await see(inventory, look(facts=FACTS), look(facts=newer), look(facts=newer))
    assert host.facts == newer
    assert await told(inventory, "host.facts") == [
        "memory mib 512 -> 1024, qemu version 7.2.19 -> 8.2.2"
    ]


async def test_another_machine_is_not_taken_for_the_host(inventory: Inventory) -> None:
    await enabled(inventory, 1)
    await inventory.hosts.set_facts("kvm-1", FACTS)
    other = FACTS.model_copy(update={"uuid": "5ab1f0c4-0000-4000-8000-000000000002", "cpus": 64})
    host = await see(inventory, look(facts=other), look(facts=other))
    assert (host.status, host.facts) == (HostStatus.ALERT, FACTS)
    (event,) = await told(inventory)
    assert other.uuid in event
    assert FACTS.uuid in event
    assert (await see(inventory, look(facts=FACTS))).status is HostStatus.UP


async def test_pages_have_every_host_that_is_to_be_checked_once(inventory: Inventory) -> None:
    for number in range(1, 6):
        await enabled(inventory, number)
    await register(inventory, 6)  # Creating
    seen: list[str] = []
    after = ""
    while page := await inventory.host_checks.page(after, 2):
        seen += [host.name for host in page]
        after = seen[-1]
    assert seen == [f"kvm-{number}" for number in range(1, 6)]


async def test_the_absent_are_those_that_missed_enough_checks_in_this_round(
    inventory: Inventory,
) -> None:
    began = datetime.now(UTC)
    for number in range(1, 5):
        await enabled(inventory, number)
    for _ in range(3):
        for host in ("kvm-1", "kvm-2", "kvm-3"):
            await see(inventory, look(Seen.UNREACHABLE, host))
    await see(inventory, look(host="kvm-2"), look(Seen.UNREACHABLE, "kvm-4"))
    for target in (ResourceState.PREPARE_FOR_MAINTENANCE, ResourceState.MAINTENANCE):
        await inventory.hosts.change_state(
            "kvm-3",
            expected=frozenset(ResourceState),
            target=target,
            operation="maintenance/kvm-3",
            step=target,
            actor="test",
            reason="test",
        )
    absent = inventory.host_checks.absent
    assert [host.name for host in await absent(3, began, "", 10)] == ["kvm-1"]
    assert await absent(3, began, "kvm-1", 10) == []
    assert await absent(4, began, "", 10) == []
    assert await absent(3, datetime.now(UTC) + timedelta(seconds=1), "", 10) == []


async def test_those_that_missed_their_last_check_until_they_are_looked_at(
    inventory: Inventory,
) -> None:
    for number in range(1, 5):
        await enabled(inventory, number)
    for host in ("kvm-1", "kvm-2", "kvm-3"):
        await see(inventory, look(Seen.UNREACHABLE, host))
    began = datetime.now(UTC)
    missed = inventory.host_checks.missed
    assert [host.name for host in await missed(began, "", 2)] == ["kvm-1", "kvm-2"]
    assert [host.name for host in await missed(began, "kvm-2", 2)] == ["kvm-3"]
    await see(inventory, look(Seen.UNREACHABLE, "kvm-1"), look(host="kvm-3"))
    assert [host.name for host in await missed(began, "", 10)] == ["kvm-2"]
    # In the next round.
    later = datetime.now(UTC) + timedelta(seconds=1)
    assert [host.name for host in await missed(later, "", 10)] == ["kvm-1", "kvm-2"]


async def test_a_host_that_is_gone_or_not_in_service_yet_is_left_out(inventory: Inventory) -> None:
    await register(inventory, 1)
    host = await see(inventory, look(Seen.ANSWERED))
    assert (host.status, host.checked_at) == (HostStatus.DISCONNECTED, None)
    changes = await inventory.host_checks.record([look(Seen.KEY_CHANGED, "kvm-9")], operation=CHECK)
    assert changes == []


async def test_the_latest_event_of_some_kinds_by_subject(inventory: Inventory) -> None:
    for kind, subject, message in (
        ("fence.differs", "host/kvm-1", "old"),
        ("fence.differs", "host/kvm-1", "new"),
        ("other", "host/kvm-1", "newer"),
        ("fence.agrees", "host/kvm-2", "so"),
        ("fence.differs", "host/kvm-3", "not asked for"),
    ):
        await inventory.events.record(kind, subject, message, actor="test")
    subjects = ("host/kvm-1", "host/kvm-2", "host/kvm-4")
    latest = await inventory.events.latest(subjects, ("fence.differs", "fence.agrees"))
    assert {subject: event.message for subject, event in latest.items()} == {
        "host/kvm-1": "new",
        "host/kvm-2": "so",
    }


async def test_many_looks_are_written_at_once(inventory: Inventory) -> None:
    names = {(await enabled(inventory, number)).name for number in range(1, 61)}
    looks = [look(Seen.KEY_CHANGED, name) for name in names]
    changes = await inventory.host_checks.record(looks, operation=CHECK)
    assert {change.host for change in changes} == names


async def test_an_operation_that_finds_a_host_up_forgives_its_misses(inventory: Inventory) -> None:
    """The first miss after a long absence is a first one."""
    await enabled(inventory, 1)
    for _ in range(5):
        await see(inventory, look(Seen.UNREACHABLE))
    await inventory.hosts.set_status("kvm-1", HostStatus.UP, actor="op", reason="it answered")
    host = await inventory.hosts.get("kvm-1")
    assert (host.status, host.missed_checks) == (HostStatus.UP, 0)
    await see(inventory, look(Seen.UNREACHABLE))
    assert (await inventory.hosts.get("kvm-1")).status is HostStatus.UP
