"""The evacuation planner: pure functions from a survey to a plan."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from contracts.evacuation import Blocker, BlockerKind, Candidate, EvacuationPlan, Move, Survey
from contracts.vms import Vm, VmState

# A search that long takes a fraction of a second: a workflow task must answer soon.
_MOST_TRIES = 20_000
_MIGRATABLE = frozenset({VmState.RUNNING, VmState.IDLE})


@dataclass
class _Room:
    """What a candidate still has while the plan is being made."""

    candidate: Candidate
    memory_mib: int
    cpus: int

    def take(self, vm: Vm) -> None:
        """`vm` goes there."""
        self.memory_mib -= vm.memory_mib
        self.cpus -= vm.vcpus

    def give_back(self, vm: Vm) -> None:
        """`vm` goes elsewhere."""
        self.memory_mib += vm.memory_mib
        self.cpus += vm.vcpus

    def refusal(self, vm: Vm) -> str | None:
        """Why `vm` can't go there, or None."""
        if self.candidate.unsuitable is not None:
            return self.candidate.unsuitable
        if vm.name in self.candidate.incompatible:
            return self.candidate.incompatible[vm.name]
        if vm.memory_mib > self.memory_mib:
            return f"needs {vm.memory_mib} MiB of memory, {max(self.memory_mib, 0)} MiB are free"
        if vm.vcpus > self.cpus:
            return f"needs {vm.vcpus} CPUs, {max(self.cpus, 0)} are free"
        return None


def plan_evacuation(
    survey: Survey, *, excluded: Mapping[str, frozenset[str]] | None = None
) -> EvacuationPlan:
    """Give each VM a destination, or name what stands in its way.

    Largest VM first, each to the suitable host with the most memory left, so that the load
    spreads. Where that leaves a VM without a destination, a search looks for a plan for all of
    them; it finds one whenever there is one, unless there are too many ways to try.

    Args:
        survey: the VMs and the possible destinations.
        excluded: VM name to hosts that have refused it already.
    """
    rooms = [
        _Room(candidate, candidate.memory_free_mib, candidate.cpus_free)
        for candidate in survey.candidates
        if candidate.host != survey.host
    ]
    blockers = [blocker for vm in survey.vms if (blocker := intrinsic_blocker(vm)) is not None]
    blocked = {blocker.vm for blocker in blockers}
    task = _Task(
        vms=sorted(
            (vm for vm in survey.vms if vm.name not in blocked),
            key=lambda vm: (-vm.memory_mib, vm.name),
        ),
        excluded=excluded or {},
    )
    spread = _spread(task, rooms)
    places = spread if len(spread) == len(task.vms) else _pack(task, rooms) or spread
    left = _after(task, rooms, places)
    blockers += [_no_destination(vm, left) for vm in task.vms if vm.name not in places]
    return EvacuationPlan(
        host=survey.host,
        moves=tuple(_move(vm, places[vm.name]) for vm in task.vms if vm.name in places),
        blockers=tuple(sorted(blockers, key=lambda blocker: blocker.vm)),
    )


def intrinsic_blocker(vm: Vm) -> Blocker | None:
    """What of the VM itself forbids a live migration, wherever it would go."""
    if vm.state not in _MIGRATABLE:
        return Blocker(vm=vm.name, kind=BlockerKind.VM_STATE, message=f"is {vm.state}, not running")
    if vm.host_devices:
        return Blocker(
            vm=vm.name,
            kind=BlockerKind.HOST_DEVICE,
            message=f"uses devices of the host: {', '.join(vm.host_devices)}",
        )
    if vm.local_disks:
        return Blocker(
            vm=vm.name,
            kind=BlockerKind.LOCAL_DISK,
            message=f"has disks on local storage: {', '.join(vm.local_disks)}",
        )
    return None


@dataclass(frozen=True)
class _Task:
    """The VMs to place, and the hosts that each must not go to."""

    vms: list[Vm]
    excluded: Mapping[str, frozenset[str]]

    def fitting(self, vm: Vm, rooms: Iterable[_Room]) -> list[_Room]:
        """Where the VM can go as things stand."""
        refused = self.excluded.get(vm.name, frozenset())
        return [
            room
            for room in rooms
            if room.candidate.host not in refused and room.refusal(vm) is None
        ]


def _spread(task: _Task, rooms: list[_Room]) -> dict[str, str]:
    """VM to destination, each in its turn to the roomiest; without those that found none."""
    rooms = [replace(room) for room in rooms]
    places: dict[str, str] = {}
    for vm in task.vms:
        room = max(
            task.fitting(vm, rooms),
            key=lambda room: (room.memory_mib, room.cpus, room.candidate.host),
            default=None,
        )
        if room is not None:
            room.take(vm)
            places[vm.name] = room.candidate.host
    return places


def _pack(task: _Task, rooms: list[_Room]) -> dict[str, str] | None:
    """VM to destination for all of them, by depth-first search: the VM with the fewest ways out
    first, into the tightest room. None if there is no such plan, or none was found soon."""
    rooms = [replace(room) for room in rooms]
    order = sorted(task.vms, key=lambda vm: (len(task.fitting(vm, rooms)), -vm.memory_mib, vm.name))
    ways: list[Iterator[_Room]] = []
    chosen: list[_Room] = []
    for _ in range(_MOST_TRIES):
        if len(chosen) == len(order):
            return {vm.name: room.candidate.host for vm, room in zip(order, chosen, strict=True)}
        vm = order[len(chosen)]
        if len(ways) == len(chosen):
            tightest = sorted(
                task.fitting(vm, rooms),
                key=lambda room: (room.memory_mib, room.cpus, room.candidate.host),
            )
            ways.append(iter(tightest))
        room = next(ways[-1], None)
        if room is not None:
            room.take(vm)
            chosen.append(room)
            continue
        ways.pop()
        if not chosen:
            return None
        chosen.pop().give_back(order[len(chosen)])
    return None


def _after(task: _Task, rooms: list[_Room], places: Mapping[str, str]) -> list[_Room]:
    """What the rooms have left when the VMs are in their places."""
    left = {room.candidate.host: replace(room) for room in rooms}
    for vm in task.vms:
        if vm.name in places:
            left[places[vm.name]].take(vm)
    return list(left.values())


def _move(vm: Vm, destination: str) -> Move:
    return Move(
        vm=vm.name,
        uuid=vm.uuid,
        destination=destination,
        memory_mib=vm.memory_mib,
        vcpus=vm.vcpus,
    )


def _no_destination(vm: Vm, rooms: Iterable[_Room]) -> Blocker:
    # A host with room that is not taken is one that was excluded.
    reasons = {room.candidate.host: room.refusal(vm) or "has refused it already" for room in rooms}
    return Blocker(
        vm=vm.name,
        kind=BlockerKind.NO_DESTINATION,
        message="has no destination" if reasons else "has no other host in its cluster",
        candidates=reasons,
    )
