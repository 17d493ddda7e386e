"""The evacuation planner: pure functions from a survey to a plan."""

from collections.abc import Iterable, Mapping

from contracts.evacuation import (
    AffinityGroup,
    AffinityKind,
    Blocker,
    BlockerKind,
    Candidate,
    EvacuationPlan,
    Move,
    Survey,
    VmPolicy,
)
from contracts.vms import Vm, VmState
from workflows.packing import Room, Unit, pack

_MIGRATABLE = frozenset({VmState.RUNNING, VmState.IDLE})


def plan_evacuation(
    survey: Survey,
    *,
    excluded: Mapping[str, frozenset[str]] | None = None,
    copy_storage: frozenset[str] = frozenset(),
) -> EvacuationPlan:
    """Give each VM a destination, or name what stands in its way.

    Largest VM first, each to the suitable host with the most memory left, so that the load
    spreads. Where that leaves a VM without a destination, tighter plans are tried: one for all of
    them is found whenever there is one, unless there are too many ways to try; else as few are
    left over as in the best try.

    VMs that leave together and share an affinity group go together or not at all. A member that
    stays because of a blocker of its own, or that was broken before, does not hold the others.

    Args:
        survey: the VMs and the possible destinations.
        excluded: VM name to hosts that have refused it already.
        copy_storage: names of the VMs whose local disks are copied along.
    """
    policies = {policy.vm: policy for policy in survey.policies}
    broken: list[Blocker] = []
    blockers: list[Blocker] = []
    leaving: list[Vm] = []
    for vm in survey.vms:
        if (crash := broken_before(vm)) is not None:
            broken.append(crash)
        elif (
            blocker := intrinsic_blocker(
                vm, policy=policies.get(vm.name), copy_storage=vm.name in copy_storage
            )
        ) is not None:
            blockers.append(blocker)
        else:
            leaving.append(vm)
    task = _Task(survey, leaving, excluded or {})
    places = task.place()
    stuck = [one for one in task.leavers if one.vm.name not in places]
    left = task.rooms_after(places)
    return EvacuationPlan(
        host=survey.host,
        moves=tuple(
            _move(one.vm, places[one.vm.name]) for one in task.leavers if one.vm.name in places
        ),
        blockers=_by_name([*blockers, *(_no_destination(one, left) for one in stuck)]),
        broken=_by_name(broken),
        waits_for=task.hosts_to_wait_for() if stuck and not blockers else (),
    )


def broken_before(vm: Vm) -> Blocker | None:
    """Why there is nothing to move, if the VM has crashed."""
    if vm.state is not VmState.CRASHED:
        return None
    return Blocker(vm=vm.name, kind=BlockerKind.VM_STATE, message=f"has crashed{_because(vm)}")


def intrinsic_blocker(
    vm: Vm, *, policy: VmPolicy | None = None, copy_storage: bool = False
) -> Blocker | None:
    """What of the VM itself forbids a live migration, wherever it would go.

    The message names everything, the kind is of what is named first: it is LOCAL_DISK only if to
    copy the disks would be enough. A crashed VM has no blocker: see `broken_before`.

    Args:
        vm: the VM.
        policy: what an operator has decided about it.
        copy_storage: its local disks are copied along.
    """
    if vm.state is VmState.CRASHED:
        return None
    found: dict[BlockerKind, str] = {}
    if policy is not None and policy.pinned:
        found[BlockerKind.POLICY] = "is pinned to its host" + (
            f": {policy.reason}" if policy.reason else ""
        )
    if vm.state is VmState.NO_STATE:
        found[BlockerKind.VM_STATE] = f"has no state that libvirt can name{_because(vm)}"
    elif vm.state not in _MIGRATABLE:
        found[BlockerKind.VM_STATE] = f"is {vm.state}{_because(vm)}, not running"
    if vm.host_devices:
        found[BlockerKind.HOST_DEVICE] = f"uses devices of the host: {', '.join(vm.host_devices)}"
    if vm.host_directories:
        directories = ", ".join(vm.host_directories)
        found[BlockerKind.HOST_DIRECTORY] = f"uses directories of the host: {directories}"
    if vm.snapshots:
        snapshots = "1 snapshot" if vm.snapshots == 1 else f"{vm.snapshots} snapshots"
        found[BlockerKind.SNAPSHOT] = f"has {snapshots}, with which libvirt does not migrate it"
    if vm.local_disks and not copy_storage:
        found[BlockerKind.LOCAL_DISK] = f"has disks on local storage: {', '.join(vm.local_disks)}"
    if not found:
        return None
    return Blocker(vm=vm.name, kind=next(iter(found)), message="; ".join(found.values()))


class _Leaver:
    """A VM that is to leave, and what rules where it may go.

    Attributes:
        apart: names of its anti-affinity groups.
        together: the VMs that must go where it goes, itself among them.
    """

    def __init__(
        self,
        vm: Vm,
        *,
        tags: frozenset[str],
        secured: bool,
        certified: bool,
        refused: frozenset[str],
    ) -> None:
        self.vm = vm
        self.refused = refused
        self.apart: list[str] = []
        self.together: list[_Leaver] = [self]
        self._tags = tags
        self._secured = secured
        self._certified = secured or certified
        self._groups: list[tuple[AffinityGroup, dict[str, list[str]]]] = []

    def join(self, group: AffinityGroup, present: Mapping[str, list[str]]) -> None:
        """It is a member; `present` are the members on each other host."""
        others = {
            host: [name for name in names if name != self.vm.name]
            for host, names in present.items()
            if names != [self.vm.name]
        }
        self._groups.append((group, others))
        if group.kind is AffinityKind.ANTI_AFFINITY:
            self.apart.append(group.name)

    def may_go_to(self, candidate: Candidate) -> bool:
        """Whether it could go to that host, if that were suitable and empty."""
        return candidate.host not in self.refused and self.refusal(candidate) is None

    def refusal(self, candidate: Candidate) -> str | None:
        """Why it could not go to that host, even if that were suitable and empty."""
        incompatible = candidate.incompatible.get(self.vm.name)
        if incompatible is not None:
            return incompatible.message
        if candidate.secured and not self._certified:
            return "is secured, its own host has no certificates"
        if self._secured and not (candidate.secured or candidate.certified):
            return "has no certificates, its own host is secured"
        if not self._tags <= candidate.tags:
            return f"lacks the tags {', '.join(sorted(self._tags - candidate.tags))}"
        for group, others in self._groups:
            if group.kind is AffinityKind.ANTI_AFFINITY and candidate.host in others:
                return f"has {_of_group(others[candidate.host], group)}"
            if group.kind is AffinityKind.AFFINITY and others and candidate.host not in others:
                names = [f"{', '.join(names)} (on {host})" for host, names in others.items()]
                return f"does not have {_of_group(names, group)}"
        return None


class _RoomLeft:
    """A candidate, and what it has left when the VMs are in their places."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self._memory_mib = candidate.memory_free_mib
        self._cpus = candidate.cpus_free
        self._apart: dict[str, str] = {}

    def take(self, leaver: _Leaver) -> None:
        """It goes there."""
        self._memory_mib -= leaver.vm.memory_mib
        self._cpus -= leaver.vm.vcpus
        self._apart.update(dict.fromkeys(leaver.apart, leaver.vm.name))

    def refusal(self, leaver: _Leaver) -> str:
        """Why a VM that is left over found no place there."""
        if self.candidate.unsuitable is not None:
            return self.candidate.unsuitable
        own = leaver.refusal(self.candidate)
        if own is not None:
            return own
        for other in leaver.together:
            its = other.refusal(self.candidate)
            if its is not None:
                return f"does not take {other.vm.name}, which must go along: {its}"
        return (
            self._lack(leaver)
            or self._conflict(leaver)
            or _refused_already(leaver, self.candidate.host)
        )

    def _lack(self, leaver: _Leaver) -> str | None:
        memory_mib = sum(one.vm.memory_mib for one in leaver.together)
        cpus = sum(one.vm.vcpus for one in leaver.together)
        others = [one.vm.name for one in leaver.together if one is not leaver]
        along = f", with {', '.join(others)}, which must go along" if others else ""
        if memory_mib > self._memory_mib:
            free = max(self._memory_mib, 0)
            return f"needs {memory_mib} MiB of memory{along}, {free} MiB are free"
        if cpus > self._cpus:
            return f"needs {cpus} CPUs{along}, {max(self._cpus, 0)} are free"
        return None

    def _conflict(self, leaver: _Leaver) -> str | None:
        apart = dict(self._apart)
        for one in leaver.together:
            for group in one.apart:
                if group in apart:
                    return (
                        f"can't have {one.vm.name} beside {apart[group]} of the anti-affinity "
                        f"group {group}"
                    )
                apart[group] = one.vm.name
        return None


class _Task:
    """The VMs that are to leave, and where they may go."""

    def __init__(
        self, survey: Survey, leaving: Iterable[Vm], excluded: Mapping[str, frozenset[str]]
    ) -> None:
        tags = {policy.vm: policy.tags for policy in survey.policies}
        self.leavers = [
            _Leaver(
                vm,
                tags=tags.get(vm.name, frozenset()),
                secured=survey.secured,
                certified=survey.certified,
                refused=excluded.get(vm.name, frozenset()),
            )
            for vm in sorted(leaving, key=lambda vm: (-vm.memory_mib, vm.name))
        ]
        self._candidates = [one for one in survey.candidates if one.host != survey.host]
        by_name = {one.vm.name: one for one in self.leavers}
        for group in survey.groups:
            self._form(group, [by_name[name] for name in sorted(group.members) if name in by_name])

    def place(self, *, on_hosts_that_are_out: bool = False) -> dict[str, str]:
        """VM to destination, without the VMs that find none. A host that is out is taken only for
        what finds no place on the others, and the next one only when that is full."""
        candidates = [one for one in self._candidates if one.unsuitable is None]
        out = self._out() if on_hosts_that_are_out else []
        ranks = [0] * len(candidates) + list(range(1, len(out) + 1))
        candidates += out
        rooms = [
            Room(one.host, one.memory_free_mib, one.cpus_free, rank)
            for one, rank in zip(candidates, ranks, strict=True)
        ]
        teams = list({id(one.together): one.together for one in self.leavers}.values())
        places = pack([_unit(team, candidates) for team in teams], rooms)
        return {
            one.vm.name: rooms[room].name for team, room in places.items() for one in teams[team]
        }

    def rooms_after(self, places: Mapping[str, str]) -> list[_RoomLeft]:
        """The candidates when the VMs are in their places."""
        rooms = {one.host: _RoomLeft(one) for one in self._candidates}
        for leaver in self.leavers:
            if leaver.vm.name in places:
                rooms[places[leaver.vm.name]].take(leaver)
        return list(rooms.values())

    def hosts_to_wait_for(self) -> tuple[str, ...]:
        """Hosts that are out with whose return every VM would find a place; none if that would not
        help."""
        out = {one.host: one for one in self._out()}
        if not out:
            return ()
        places = self.place(on_hosts_that_are_out=True)
        if len(places) < len(self.leavers):
            return ()
        return tuple(host for host in out if host in places.values())

    def _out(self) -> list[Candidate]:
        out = [
            one
            for one in self._candidates
            if one.unsuitable is not None and one.out_for is not None
        ]
        return sorted(out, key=lambda one: one.host)

    def _form(self, group: AffinityGroup, members: list[_Leaver]) -> None:
        present = {
            one.host: sorted(there)
            for one in self._candidates
            if (there := one.vms & group.members)
        }
        for member in members:
            member.join(group, present)
        if group.kind is AffinityKind.AFFINITY:
            team = list(
                {one.vm.name: one for member in members for one in member.together}.values()
            )
            for one in team:
                one.together = team


def _unit(team: list[_Leaver], candidates: list[Candidate]) -> Unit:
    apart = [group for one in team for group in one.apart]
    at_odds = len(set(apart)) < len(apart)
    return Unit(
        name=team[0].vm.name,
        memory_mib=sum(one.vm.memory_mib for one in team),
        cpus=sum(one.vm.vcpus for one in team),
        count=len(team),
        ways=tuple(
            number
            for number, candidate in enumerate(candidates)
            if not at_odds and all(one.may_go_to(candidate) for one in team)
        ),
        apart=tuple(apart),
    )


def _move(vm: Vm, destination: str) -> Move:
    return Move(
        vm=vm.name,
        uuid=vm.uuid,
        destination=destination,
        memory_mib=vm.memory_mib,
        vcpus=vm.vcpus,
    )


def _no_destination(leaver: _Leaver, rooms: list[_RoomLeft]) -> Blocker:
    name = leaver.vm.name
    reasons = {room.candidate.host: room.refusal(leaver) for room in rooms}
    incompatible = [
        room.candidate.incompatible.get(name) for room in rooms if room.candidate.unsuitable is None
    ]
    kinds = {None if one is None else one.kind for one in incompatible}
    kind = kinds.pop() if len(kinds) == 1 else None
    return Blocker(
        vm=name,
        kind=kind or BlockerKind.NO_DESTINATION,
        message="has no destination" if reasons else "has no other host in its cluster",
        candidates=reasons,
    )


def _refused_already(leaver: _Leaver, host: str) -> str:
    if host in leaver.refused:
        return "has refused it already"
    others = [one.vm.name for one in leaver.together if host in one.refused]
    return f"has refused {', '.join(others)} already, which must go along"


def _of_group(names: Iterable[str], group: AffinityGroup) -> str:
    return f"{', '.join(names)} of the {group.kind} group {group.name}"


def _because(vm: Vm) -> str:
    return f" ({vm.state_reason})" if vm.state_reason else ""


def _by_name(blockers: Iterable[Blocker]) -> tuple[Blocker, ...]:
    return tuple(sorted(blockers, key=lambda blocker: blocker.vm))
