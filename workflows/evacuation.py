"""The evacuation planner: pure functions from a survey to a plan."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from contracts.evacuation import Blocker, BlockerKind, Candidate, EvacuationPlan, Move, Survey
from contracts.vms import Vm, VmState

_MIGRATABLE = frozenset({VmState.RUNNING, VmState.IDLE})


@dataclass
class _Room:
    """What a candidate still has while the plan is being made."""

    candidate: Candidate
    memory_mib: int
    cpus: int

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
    spreads and the small ones fill the gaps.

    Args:
        survey: the VMs and the possible destinations.
        excluded: VM name to hosts that have refused it already.
    """
    excluded = excluded or {}
    rooms = [
        _Room(candidate, candidate.memory_free_mib, candidate.cpus_free)
        for candidate in survey.candidates
        if candidate.host != survey.host
    ]
    moves: list[Move] = []
    blockers: list[Blocker] = []
    for vm in sorted(survey.vms, key=lambda vm: (-vm.memory_mib, vm.name)):
        blocker = intrinsic_blocker(vm)
        if blocker is not None:
            blockers.append(blocker)
            continue
        refused = excluded.get(vm.name, frozenset())
        room = _roomiest(vm, (room for room in rooms if room.candidate.host not in refused))
        if room is None:
            blockers.append(_no_destination(vm, rooms))
            continue
        room.memory_mib -= vm.memory_mib
        room.cpus -= vm.vcpus
        moves.append(
            Move(
                vm=vm.name,
                uuid=vm.uuid,
                destination=room.candidate.host,
                memory_mib=vm.memory_mib,
                vcpus=vm.vcpus,
            )
        )
    return EvacuationPlan(host=survey.host, moves=tuple(moves), blockers=tuple(blockers))


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


def _roomiest(vm: Vm, rooms: Iterable[_Room]) -> _Room | None:
    fitting = [room for room in rooms if room.refusal(vm) is None]
    return max(
        fitting, key=lambda room: (room.memory_mib, room.cpus, room.candidate.host), default=None
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
