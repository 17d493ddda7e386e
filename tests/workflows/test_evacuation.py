"""The planner is pure: properties that hold for every survey, and the words of its refusals."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.evacuation import (
    AffinityGroup,
    AffinityKind,
    BlockerKind,
    Candidate,
    EvacuationPlan,
    Incompatibility,
    Survey,
    VmPolicy,
)
from contracts.vms import Vm, VmState
from workflows.evacuation import broken_before, intrinsic_blocker, plan_evacuation


def vm(name: str, memory_mib: int = 96, vcpus: int = 1, **more: object) -> Vm:
    values = {"state": VmState.RUNNING, **more}
    return Vm.model_validate(
        {"name": name, "uuid": f"uuid-{name}", "memory_mib": memory_mib, "vcpus": vcpus, **values}
    )


def candidate(host: str, memory: int = 1024, cpus: int = 8, **more: object) -> Candidate:
    values = {"unsuitable": None, **more}
    return Candidate.model_validate(
        {"host": host, "memory_free_mib": memory, "cpus_free": cpus, **values}
    )


def survey(vms: list[Vm], candidates: list[Candidate], **more: object) -> Survey:
    values = {"host": "kvm-1", "vms": vms, "candidates": candidates, "max_parallel": 2, **more}
    return Survey.model_validate(values)


def lacking(kind: BlockerKind, message: str) -> Incompatibility:
    return Incompatibility(kind=kind, message=message)


LACKS_CPU = lacking(BlockerKind.CPU, "lacks sse4.2")


def group(kind: AffinityKind, *members: str, name: str = "web") -> AffinityGroup:
    return AffinityGroup(name=name, kind=kind, members=frozenset(members))


def destinations(plan: EvacuationPlan) -> dict[str, str]:
    return {move.vm: move.destination for move in plan.moves}


surveys = st.builds(
    survey,
    st.lists(
        st.builds(
            vm,
            st.from_regex(r"vm-[0-9]{1,3}", fullmatch=True),
            st.integers(1, 600),
            st.integers(1, 4),
            state=st.sampled_from(VmState),
            host_devices=st.sampled_from([(), ("pci 0000:01:00.0",)]),
            local_disks=st.sampled_from([(), ("/var/lib/libvirt/images/a.qcow2",)]),
        ),
        max_size=8,
        unique_by=lambda one: one.name,
    ),
    st.lists(
        st.builds(
            candidate,
            st.sampled_from(["kvm-1", "kvm-2", "kvm-3", "kvm-4"]),
            st.integers(-100, 1500),
            st.integers(-1, 10),
            unsuitable=st.sampled_from([None, None, "is Disabled"]),
        ),
        max_size=4,
        unique_by=lambda one: one.host,
    ),
)


@given(surveys)
def test_every_vm_is_moved_or_blocked_or_was_broken_before(given_survey: Survey) -> None:
    plan = plan_evacuation(given_survey)
    named = [move.vm for move in plan.moves]
    named += [blocker.vm for blocker in (*plan.blockers, *plan.broken)]
    assert sorted(named) == sorted(one.name for one in given_survey.vms)


@given(surveys)
def test_no_destination_is_overcommitted_unsuitable_or_the_source(given_survey: Survey) -> None:
    plan = plan_evacuation(given_survey)
    rooms = {one.host: one for one in given_survey.candidates}
    assert "kvm-1" not in {move.destination for move in plan.moves}
    for host, room in rooms.items():
        coming = [move for move in plan.moves if move.destination == host]
        if coming:
            assert room.unsuitable is None
            assert sum(move.memory_mib for move in coming) <= room.memory_free_mib
            assert sum(move.vcpus for move in coming) <= room.cpus_free


@given(surveys)
def test_a_vm_without_destination_has_a_reason_for_each_other_host(given_survey: Survey) -> None:
    others = {one.host for one in given_survey.candidates} - {"kvm-1"}
    for blocker in plan_evacuation(given_survey).blockers:
        if blocker.kind is BlockerKind.NO_DESTINATION:
            assert set(blocker.candidates) == others
            assert all(blocker.candidates.values())


@given(surveys)
def test_a_host_that_refused_a_vm_is_not_asked_again(given_survey: Survey) -> None:
    first = plan_evacuation(given_survey)
    refused = {move.vm: frozenset({move.destination}) for move in first.moves}
    again = plan_evacuation(given_survey, excluded=refused)
    assert all(move.destination not in refused.get(move.vm, ()) for move in again.moves)


small_surveys = st.builds(
    survey,
    st.lists(
        st.builds(
            vm,
            st.from_regex(r"vm-[0-9]{1,3}", fullmatch=True),
            st.integers(1, 9),
            st.integers(1, 3),
        ),
        max_size=6,
        unique_by=lambda one: one.name,
    ),
    st.lists(
        st.builds(
            candidate,
            st.sampled_from(["kvm-2", "kvm-3", "kvm-4", "kvm-5"]),
            st.integers(0, 20),
            st.integers(0, 6),
            incompatible=st.dictionaries(
                st.sampled_from(["vm-1", "vm-2", "vm-3"]), st.just(LACKS_CPU), max_size=2
            ),
        ),
        max_size=4,
        unique_by=lambda one: one.host,
    ),
)


def can_all_be_placed(vms: tuple[Vm, ...], rooms: list[tuple[Candidate, int, int]]) -> bool:
    """Every way, one after another."""
    if not vms:
        return True
    first, *others = vms
    for index, (room, memory, cpus) in enumerate(rooms):
        if first.name in room.incompatible or first.memory_mib > memory or first.vcpus > cpus:
            continue
        less = (room, memory - first.memory_mib, cpus - first.vcpus)
        if can_all_be_placed(tuple(others), [*rooms[:index], less, *rooms[index + 1 :]]):
            return True
    return False


@given(small_surveys)
def test_a_plan_for_all_is_found_whenever_there_is_one(given_survey: Survey) -> None:
    rooms = [(one, one.memory_free_mib, one.cpus_free) for one in given_survey.candidates]
    plan = plan_evacuation(given_survey)
    assert (plan.blockers == ()) == can_all_be_placed(given_survey.vms, rooms)


NAMES = [f"vm-{number}" for number in range(6)]
ELSEWHERE = ["away-1", "away-2"]
TAGS = ["gpu", "ssd"]
SOME_TAGS = st.frozensets(st.sampled_from(TAGS), max_size=2)
SPARE = st.sampled_from([0, 0, 0, 1, 2, 9, -1])


@st.composite
def ruled_surveys(draw: st.DrawFn, kinds: tuple[AffinityKind, ...] = tuple(AffinityKind)) -> Survey:
    """Up to 6 VMs, up to 4 hosts, every rule there is, and hosts cut to about what they take if
    each VM goes to the one that was drawn for it."""
    vms = [
        vm(name, draw(st.integers(1, 9)), draw(st.integers(1, 3)))
        for name in NAMES[: draw(st.integers(1, 6))]
    ]
    hosts = ["kvm-2", "kvm-3", "kvm-4", "kvm-5"][: draw(st.integers(1, 4))]
    homes = {name: draw(st.sampled_from(hosts)) for name in [*NAMES, *ELSEWHERE]}
    tags = {host: draw(st.one_of(st.just(frozenset(TAGS)), SOME_TAGS)) for host in hosts}
    candidates = [
        candidate(
            host,
            sum(one.memory_mib for one in vms if homes[one.name] == host) + draw(SPARE),
            sum(one.vcpus for one in vms if homes[one.name] == host) + draw(SPARE),
            unsuitable=draw(st.sampled_from([None, None, None, "is Maintenance"])),
            out_for=draw(st.sampled_from([None, f"maintenance/{host}"])),
            tags=tags[host],
            secured=draw(st.sampled_from([False, False, False, True])),
            vms=frozenset(name for name in ELSEWHERE if homes[name] == host),
            incompatible=draw(
                st.dictionaries(
                    st.sampled_from([name for name in NAMES if homes[name] != host] or ["vm-9"]),
                    st.just(LACKS_CPU),
                    max_size=2,
                )
            ),
        )
        for host in hosts
    ]
    members = st.frozensets(st.sampled_from([*NAMES, *ELSEWHERE]), min_size=2, max_size=4)
    groups = [
        AffinityGroup(name=name, kind=draw(st.sampled_from(kinds)), members=draw(members))
        for name in ("web", "db", "dns")[: draw(st.integers(0, 3))]
    ]
    policies = [
        VmPolicy(vm=one.name, tags=draw(SOME_TAGS)) for one in vms[: draw(st.integers(0, 3))]
    ]
    return survey(vms, candidates, groups=groups, policies=policies)


def may_go(
    given_survey: Survey, one: Vm, place: Candidate, placed: Mapping[str, str], *, out: bool
) -> bool:
    """Whether the rules let a VM go to a host, with others placed already."""
    if place.unsuitable is not None and not (out and place.out_for is not None):
        return False
    tags = [policy.tags for policy in given_survey.policies if policy.vm == one.name]
    if any(not wanted <= place.tags for wanted in tags) or one.name in place.incompatible:
        return False
    if place.secured != given_survey.secured:
        return False
    there = [other for other in given_survey.vms if placed.get(other.name) == place.host]
    if sum(other.memory_mib for other in [*there, one]) > place.memory_free_mib:
        return False
    if sum(other.vcpus for other in [*there, one]) > place.cpus_free:
        return False
    for rule in given_survey.groups:
        if one.name not in rule.members:
            continue
        running = {
            where.host for where in given_survey.candidates if where.vms & rule.members - {one.name}
        }
        going = {host for name, host in placed.items() if name in rule.members}
        if rule.kind is AffinityKind.ANTI_AFFINITY and place.host in running | going:
            return False
        if rule.kind is AffinityKind.AFFINITY:
            if running and place.host not in running:
                return False
            if going - {place.host}:
                return False
    return True


def brute_force(given_survey: Survey, placed: Mapping[str, str], *, out: bool = False) -> bool:
    """Whether all VMs can be placed: every way, one after another."""
    if len(placed) == len(given_survey.vms):
        return True
    one = given_survey.vms[len(placed)]
    return any(
        may_go(given_survey, one, place, placed, out=out)
        and brute_force(given_survey, {**placed, one.name: place.host}, out=out)
        for place in given_survey.candidates
    )


@settings(deadline=None, max_examples=400)
@given(ruled_surveys())
def test_a_plan_for_all_is_found_whenever_the_rules_allow_one(given_survey: Survey) -> None:
    assert (plan_evacuation(given_survey).blockers == ()) == brute_force(given_survey, {})


@settings(deadline=None, max_examples=200)
@given(ruled_surveys())
def test_no_move_breaks_a_rule(given_survey: Survey) -> None:
    vms = {one.name: one for one in given_survey.vms}
    places = {one.host: one for one in given_survey.candidates}
    moves = destinations(plan_evacuation(given_survey))
    for name, host in moves.items():
        others = {other: where for other, where in moves.items() if other != name}
        assert may_go(given_survey, vms[name], places[host], others, out=False)


@settings(deadline=None, max_examples=200)
@given(ruled_surveys(kinds=(AffinityKind.ANTI_AFFINITY,)))
def test_no_more_are_left_over_than_by_taking_each_in_its_turn(given_survey: Survey) -> None:
    placed: dict[str, str] = {}
    free = {one.host: one.memory_free_mib for one in given_survey.candidates}
    for one in sorted(given_survey.vms, key=lambda one: (-one.memory_mib, one.name)):
        fits = [
            place.host
            for place in given_survey.candidates
            if may_go(given_survey, one, place, placed, out=False)
        ]
        if fits:
            placed[one.name] = max(fits, key=lambda host: free[host])
            free[placed[one.name]] -= one.memory_mib
    assert len(plan_evacuation(given_survey).moves) >= len(placed)


@settings(deadline=None, max_examples=200)
@given(ruled_surveys())
def test_vms_of_an_affinity_group_leave_together_or_not_at_all(given_survey: Survey) -> None:
    moves = destinations(plan_evacuation(given_survey))
    for rule in given_survey.groups:
        if rule.kind is AffinityKind.AFFINITY:
            leaving = [one.name for one in given_survey.vms if one.name in rule.members]
            assert len({moves.get(name) for name in leaving}) <= 1


@settings(deadline=None, max_examples=200)
@given(ruled_surveys())
def test_a_plan_waits_for_hosts_that_are_out_if_that_would_help(given_survey: Survey) -> None:
    plan = plan_evacuation(given_survey)
    helps = plan.blockers != () and brute_force(given_survey, {}, out=True)
    assert (plan.waits_for != ()) == helps
    back = [
        one.model_copy(update={"unsuitable": None}) if one.host in plan.waits_for else one
        for one in given_survey.candidates
    ]
    again = plan_evacuation(given_survey.model_copy(update={"candidates": tuple(back)}))
    assert not plan.waits_for or again.blockers == ()


@settings(deadline=None, max_examples=200)
@given(ruled_surveys())
def test_a_host_refused_nobody_that_it_was_not_asked_for(given_survey: Survey) -> None:
    for blocker in plan_evacuation(given_survey).blockers:
        assert set(blocker.candidates) == {one.host for one in given_survey.candidates}
        assert not [why for why in blocker.candidates.values() if "refused" in why]


def test_the_plan_does_not_depend_on_the_order_of_a_set() -> None:
    """Python orders sets of strings by a seed of the process: a replay elsewhere must agree."""
    program = """
from tests.workflows.test_evacuation import *
names = [f"vm-{number}" for number in range(40)]
one = survey(
    [vm(name, 10 + index % 7) for index, name in enumerate(names)],
    [candidate(f"kvm-{number}", 70, 12, tags=frozenset({"a", "b"})) for number in range(2, 8)],
    groups=[
        group(AffinityKind.AFFINITY, *names[:5]),
        group(AffinityKind.AFFINITY, *names[4:7], name="db"),
        group(AffinityKind.ANTI_AFFINITY, *names[6:14], name="dns"),
    ],
    policies=[VmPolicy(vm=name, tags=frozenset({"x", "y", "z"})) for name in names[30:32]],
)
print(plan_evacuation(one).model_dump())
"""
    plans = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(plans) == 1
    assert "lacks the tags x, y, z" in plans.pop()


def test_easy_loads_are_spread() -> None:
    plan = plan_evacuation(
        survey([vm(f"vm-{n}", 100) for n in range(4)], [candidate("kvm-2"), candidate("kvm-3")])
    )
    assert sorted(destinations(plan).values()) == ["kvm-2", "kvm-2", "kvm-3", "kvm-3"]


def test_vms_that_only_fit_in_one_way_are_packed() -> None:
    plan = plan_evacuation(
        survey(
            [vm("vm-1", 300), vm("vm-2", 200), vm("vm-3", 200)],
            [candidate("kvm-2", 400), candidate("kvm-3", 300)],
        )
    )
    assert destinations(plan) == {
        "vm-1": "kvm-3",
        "vm-2": "kvm-2",
        "vm-3": "kvm-2",
    }


def test_the_largest_vm_takes_the_only_room_it_fits_into() -> None:
    plan = plan_evacuation(
        survey(
            [vm("small", 200), vm("large", 500)],
            [candidate("kvm-2", 520), candidate("kvm-3", 210)],
        )
    )
    assert destinations(plan) == {
        "large": "kvm-2",
        "small": "kvm-3",
    }


def test_the_reasons_name_vm_host_and_figures() -> None:
    plan = plan_evacuation(
        survey(
            [vm("vm-1", 900), vm("vm-2", local_disks=("/var/a.raw",)), vm("vm-3", state="paused")],
            [candidate("kvm-2", 512), candidate("kvm-3", unsuitable="is Maintenance")],
        )
    )
    assert plan.describe_blockers().splitlines() == [
        "vm-1: has no destination (kvm-2: needs 900 MiB of memory, 512 MiB are free; "
        "kvm-3: is Maintenance)",
        "vm-2: has disks on local storage: /var/a.raw",
        "vm-3: is paused, not running",
    ]


@pytest.mark.parametrize(
    ("blocked", "kind", "message"),
    [
        (
            vm("vm-1", state=VmState.PAUSED, state_reason="I/O error"),
            BlockerKind.VM_STATE,
            "is paused (I/O error), not running",
        ),
        (
            vm("vm-1", state=VmState.PAUSED, state_reason="migration", paused_by_migration=True),
            BlockerKind.VM_STATE,
            "is paused (migration), not running",
        ),
        (
            vm("vm-1", state=VmState.IN_SHUTDOWN),
            BlockerKind.VM_STATE,
            "is in shutdown, not running",
        ),
        (vm("vm-1", state=VmState.SUSPENDED), BlockerKind.VM_STATE, "is pmsuspended, not running"),
        (
            vm("vm-1", state=VmState.NO_STATE),
            BlockerKind.VM_STATE,
            "has no state that libvirt can name",
        ),
        (
            vm("vm-1", host_devices=("pci 0000:01:00.0",)),
            BlockerKind.HOST_DEVICE,
            "uses devices of the host: pci 0000:01:00.0",
        ),
        (
            vm("vm-1", host_directories=("/srv/a", "/srv/b")),
            BlockerKind.HOST_DIRECTORY,
            "uses directories of the host: /srv/a, /srv/b",
        ),
        (
            vm("vm-1", local_disks=("/var/a.raw",)),
            BlockerKind.LOCAL_DISK,
            "has disks on local storage: /var/a.raw",
        ),
        (
            vm("vm-1", snapshots=2),
            BlockerKind.SNAPSHOT,
            "has 2 snapshots, with which libvirt does not migrate it",
        ),
    ],
)
def test_what_of_the_vm_itself_forbids_a_migration(
    blocked: Vm, kind: BlockerKind, message: str
) -> None:
    blocker = intrinsic_blocker(blocked)
    assert blocker is not None
    assert (blocker.kind, blocker.message) == (kind, message)


def test_a_pinned_vm_stays_and_says_why() -> None:
    policy = VmPolicy(vm="vm-1", pinned=True, reason="licensed for this host")
    blocker = intrinsic_blocker(vm("vm-1"), policy=policy)
    assert blocker is not None
    assert blocker.kind is BlockerKind.POLICY
    assert blocker.message == "is pinned to its host: licensed for this host"
    plan = plan_evacuation(survey([vm("vm-1")], [candidate("kvm-2")], policies=[policy]))
    assert plan.blockers == (blocker,)


def test_a_policy_that_pins_nothing_blocks_nothing() -> None:
    assert intrinsic_blocker(vm("vm-1"), policy=VmPolicy(vm="vm-1", reason="is ours")) is None


def test_all_that_stands_in_the_way_is_told_at_once() -> None:
    several = vm("vm-1", local_disks=("/var/a.raw",), snapshots=1)
    blocker = intrinsic_blocker(several)
    assert blocker is not None
    assert blocker.kind is BlockerKind.SNAPSHOT
    assert blocker.message == (
        "has 1 snapshot, with which libvirt does not migrate it; "
        "has disks on local storage: /var/a.raw"
    )


def test_local_disks_that_are_copied_along_block_nothing() -> None:
    disks = [vm("vm-1", local_disks=("/var/a.raw",)), vm("vm-2", local_disks=("/var/b.raw",))]
    plan = plan_evacuation(survey(disks, [candidate("kvm-2")]), copy_storage=frozenset({"vm-1"}))
    assert destinations(plan) == {"vm-1": "kvm-2"}
    assert [blocker.vm for blocker in plan.blockers] == ["vm-2"]
    assert intrinsic_blocker(disks[0], copy_storage=True) is None


def test_a_vm_that_had_crashed_before_is_no_blocker() -> None:
    crashed = vm("vm-1", state=VmState.CRASHED, state_reason="panicked", snapshots=1)
    plan = plan_evacuation(survey([crashed, vm("vm-2")], [candidate("kvm-2")]))
    assert plan.blockers == ()
    assert [(one.vm, one.message) for one in plan.broken] == [("vm-1", "has crashed (panicked)")]
    assert intrinsic_blocker(crashed) is None
    assert broken_before(vm("vm-2")) is None


def test_a_vm_goes_only_to_a_host_with_all_its_tags() -> None:
    policies = [VmPolicy(vm="vm-1", tags=frozenset({"gpu", "ssd"}))]
    some, every = candidate("kvm-2", 4096, tags={"gpu"}), candidate("kvm-3", tags={"gpu", "ssd"})
    plan = plan_evacuation(survey([vm("vm-1")], [some, every], policies=policies))
    assert destinations(plan) == {"vm-1": "kvm-3"}
    plan = plan_evacuation(survey([vm("vm-1")], [some], policies=policies))
    assert plan.describe_blockers() == "vm-1: has no destination (kvm-2: lacks the tags ssd)"


def test_a_vm_goes_by_tls_only_between_hosts_with_certificates() -> None:
    plain, secured = candidate("kvm-2", 4096), candidate("kvm-3", secured=True)
    plan = plan_evacuation(survey([vm("vm-1")], [plain, secured], secured=True))
    assert destinations(plan) == {"vm-1": "kvm-3"}
    assert plan_evacuation(survey([vm("vm-1")], [secured])).describe_blockers() == (
        "vm-1: has no destination (kvm-3: is secured, its own host has no certificates)"
    )
    assert plan_evacuation(survey([vm("vm-1")], [plain], secured=True)).describe_blockers() == (
        "vm-1: has no destination (kvm-2: has no certificates, its own host is secured)"
    )
    # With certificates on both sides, they can.
    ready = candidate("kvm-2", certified=True)
    for own, place in (("secured", ready), ("certified", secured), ("certified", plain)):
        (move,) = plan_evacuation(survey([vm("vm-1")], [place], **{own: True})).moves
        assert move.destination == place.host
    (move,) = plan_evacuation(survey([vm("vm-1")], [ready])).moves
    assert move.destination == "kvm-2"


def test_vms_of_an_affinity_group_go_to_one_host() -> None:
    plan = plan_evacuation(
        survey(
            [vm("vm-1", 300), vm("vm-2", 200), vm("vm-3", 100)],
            [candidate("kvm-2", 500), candidate("kvm-3", 450)],
            groups=[group(AffinityKind.AFFINITY, "vm-1", "vm-3")],
        )
    )
    assert destinations(plan) == {"vm-1": "kvm-2", "vm-3": "kvm-2", "vm-2": "kvm-3"}


def test_a_member_of_an_affinity_group_goes_where_the_others_are() -> None:
    groups = [group(AffinityKind.AFFINITY, "vm-1", "away-1")]
    away = [candidate("kvm-2", 4096), candidate("kvm-3", 96, vms={"away-1"})]
    plan = plan_evacuation(survey([vm("vm-1", 96)], away, groups=groups))
    assert destinations(plan) == {"vm-1": "kvm-3"}
    plan = plan_evacuation(survey([vm("vm-1", 97)], away, groups=groups))
    assert plan.describe_blockers() == (
        "vm-1: has no destination (kvm-2: does not have away-1 (on kvm-3) of the affinity group "
        "web; kvm-3: needs 97 MiB of memory, 96 MiB are free)"
    )


def test_room_that_is_set_aside_for_a_vm_does_not_bind_it_to_that_host() -> None:
    for kind in AffinityKind:
        hosts = [candidate("kvm-2"), candidate("kvm-3", 200, vms={"vm-1"})]
        plan = plan_evacuation(survey([vm("vm-1")], hosts, groups=[group(kind, "vm-1", "vm-2")]))
        assert destinations(plan) == {"vm-1": "kvm-2"}


def test_an_affinity_group_that_fits_nowhere_stays_whole() -> None:
    plan = plan_evacuation(
        survey(
            [vm("vm-1", 300), vm("vm-2", 200)],
            [candidate("kvm-2", 400), candidate("kvm-3", incompatible={"vm-2": LACKS_CPU})],
            groups=[group(AffinityKind.AFFINITY, "vm-1", "vm-2")],
        )
    )
    assert plan.describe_blockers().splitlines() == [
        "vm-1: has no destination (kvm-2: needs 500 MiB of memory, with vm-2, which must go along, "
        "400 MiB are free; kvm-3: does not take vm-2, which must go along: lacks sse4.2)",
        "vm-2: has no destination (kvm-2: needs 500 MiB of memory, with vm-1, which must go along, "
        "400 MiB are free; kvm-3: lacks sse4.2)",
    ]


def test_vms_of_an_anti_affinity_group_never_meet() -> None:
    groups = [group(AffinityKind.ANTI_AFFINITY, "vm-1", "vm-2", "vm-3", "away-1")]
    hosts = [candidate("kvm-2"), candidate("kvm-3"), candidate("kvm-4", 4096, vms={"away-1"})]
    plan = plan_evacuation(survey([vm("vm-1", 200), vm("vm-2", 100)], hosts, groups=groups))
    assert destinations(plan) == {"vm-1": "kvm-3", "vm-2": "kvm-2"}
    three = [vm("vm-1", 300), vm("vm-2", 200), vm("vm-3", 100)]
    assert plan_evacuation(survey(three, hosts, groups=groups)).describe_blockers() == (
        "vm-3: has no destination (kvm-2: can't have vm-3 beside vm-2 of the anti-affinity group "
        "web; kvm-3: can't have vm-3 beside vm-1 of the anti-affinity group web; "
        "kvm-4: has away-1 of the anti-affinity group web)"
    )


def test_groups_that_contradict_each_other_are_named() -> None:
    plan = plan_evacuation(
        survey(
            [vm("vm-1"), vm("vm-2")],
            [candidate("kvm-2")],
            groups=[
                group(AffinityKind.AFFINITY, "vm-1", "vm-2"),
                group(AffinityKind.ANTI_AFFINITY, "vm-1", "vm-2", name="db"),
            ],
        )
    )
    assert plan.blockers[0].candidates == {
        "kvm-2": "can't have vm-2 beside vm-1 of the anti-affinity group db"
    }


def test_what_no_suitable_host_has_is_the_kind_of_the_blocker() -> None:
    no_iso = lacking(BlockerKind.MEDIA, "lacks /iso/debian.iso")
    hosts = [
        candidate("kvm-2", incompatible={"vm-1": no_iso, "vm-2": no_iso}),
        candidate("kvm-3", incompatible={"vm-1": no_iso, "vm-2": LACKS_CPU}),
        candidate("kvm-4", unsuitable="is Maintenance"),
    ]
    plan = plan_evacuation(survey([vm("vm-1"), vm("vm-2")], hosts))
    assert [blocker.kind for blocker in plan.blockers] == [
        BlockerKind.MEDIA,
        BlockerKind.NO_DESTINATION,
    ]
    assert plan.blockers[0].candidates == {
        "kvm-2": "lacks /iso/debian.iso",
        "kvm-3": "lacks /iso/debian.iso",
        "kvm-4": "is Maintenance",
    }


def out_of_service(host: str, memory: int = 1024) -> Candidate:
    return candidate(host, memory, unsuitable="is Maintenance", out_for=f"maintenance/{host}")


def test_a_plan_waits_for_no_more_hosts_than_it_needs() -> None:
    hosts = [
        candidate("kvm-2", 100),
        out_of_service("kvm-5"),
        out_of_service("kvm-4"),
        out_of_service("kvm-3"),
    ]
    plan = plan_evacuation(survey([vm(name, 100) for name in NAMES], hosts))
    assert plan.waits_for == ("kvm-3",)
    assert len(plan.blockers) == 5


def test_a_plan_waits_for_nothing_if_that_would_not_help() -> None:
    small, paused = out_of_service("kvm-2", 50), vm("vm-2", state=VmState.PAUSED)
    assert plan_evacuation(survey([vm("vm-1", 100)], [small])).waits_for == ()
    assert plan_evacuation(survey([vm("vm-1", 100)], [out_of_service("kvm-2")])).waits_for == (
        "kvm-2",
    )
    assert (
        plan_evacuation(survey([vm("vm-1", 100), paused], [out_of_service("kvm-2")])).waits_for
        == ()
    )
    disabled = candidate("kvm-2", unsuitable="is Disabled")
    assert plan_evacuation(survey([vm("vm-1", 100)], [disabled])).waits_for == ()
