"""The planner is pure: properties that hold for every survey, and the words of its refusals."""

from hypothesis import given
from hypothesis import strategies as st

from contracts.evacuation import BlockerKind, Candidate, Survey
from contracts.vms import Vm, VmState
from workflows.evacuation import plan_evacuation


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


def survey(vms: list[Vm], candidates: list[Candidate]) -> Survey:
    return Survey(host="kvm-1", vms=tuple(vms), candidates=tuple(candidates), max_parallel=2)


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
def test_every_vm_is_either_moved_or_named_by_one_blocker(given_survey: Survey) -> None:
    plan = plan_evacuation(given_survey)
    named = [move.vm for move in plan.moves] + [blocker.vm for blocker in plan.blockers]
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
                st.sampled_from(["vm-1", "vm-2", "vm-3"]), st.just("lacks sse4.2"), max_size=2
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


def test_vms_that_only_fit_in_one_way_are_packed() -> None:
    plan = plan_evacuation(
        survey(
            [vm("vm-1", 300), vm("vm-2", 200), vm("vm-3", 200)],
            [candidate("kvm-2", 400), candidate("kvm-3", 300)],
        )
    )
    assert {move.vm: move.destination for move in plan.moves} == {
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
    assert {move.vm: move.destination for move in plan.moves} == {
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
