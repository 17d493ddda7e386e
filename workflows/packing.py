"""Units into rooms, by memory and CPUs: the arithmetic of an evacuation plan.

Pure and deterministic, and bounded by counted looks instead of time: a workflow task must answer
soon, and answer the same when it is replayed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

# Looks at a room. So many take a fraction of a second, and they exceed all that there are to take
# for six units and four rooms: (1 + 4 + 16 + ... + 4^5) times 4.
_MOST_LOOKS = 100_000


@dataclass(frozen=True)
class Unit:
    """What goes into one room as a whole.

    Attributes:
        count: of VMs in it.
        ways: numbers of the rooms that may take it.
        apart: no two units that have one of these in common share a room.
    """

    name: str
    memory_mib: int
    cpus: int
    count: int
    ways: tuple[int, ...]
    apart: tuple[str, ...] = ()


@dataclass(frozen=True)
class Room:
    """What is free there. A room of a higher rank is used only if those below have no room."""

    name: str
    memory_mib: int
    cpus: int
    rank: int = 0


def pack(units: Sequence[Unit], rooms: Sequence[Room]) -> dict[int, int]:
    """Number of unit to number of room; units without a room are left out.

    Largest unit first, each into the room with the most memory left, so that the load spreads.
    Where that leaves a unit over, tighter ways are tried: all units get a room whenever that is
    possible, unless there are too many ways to try; else as few VMs are left over as in the best
    try.
    """
    best = _Packing(units, rooms)
    for order, choose in _TRIES:
        packing = _in_turn(units, rooms, order, choose)
        best = min(best, packing, key=lambda packing: packing.left_over)
        if not best.left_over:
            return best.places
    _make_way_for_the_left_over(best)
    if best.left_over and not _Packing(units, rooms).is_hopeless():
        best = _search(units, rooms) or best
    return best.places


class _Packing:
    """Which unit is in which room, and what the rooms have left."""

    def __init__(self, units: Sequence[Unit], rooms: Sequence[Room]) -> None:
        self.units = units
        self.rooms = rooms
        self.places: dict[int, int] = {}
        self.memory_mib = [room.memory_mib for room in rooms]
        self.cpus = [room.cpus for room in rooms]
        self.looks = 0
        self._cpu_mib = max(sum(self.memory_mib), 1) / max(sum(self.cpus), 1)
        self._inside: list[dict[int, None]] = [{} for _ in rooms]
        self._apart: list[set[str]] = [set() for _ in rooms]

    @property
    def left_over(self) -> int:
        """How many VMs have no room."""
        return sum(self.units[number].count for number in self.without_room())

    def without_room(self) -> list[int]:
        """The units that are left over."""
        return [number for number in range(len(self.units)) if number not in self.places]

    def size(self, number: int) -> float:
        """Of the unit, in memory and CPUs together."""
        unit = self.units[number]
        return unit.memory_mib + unit.cpus * self._cpu_mib

    def inside(self, room: int) -> list[int]:
        """The units in a room."""
        return list(self._inside[room])

    def fitting(self, number: int) -> list[int]:
        """The rooms that can take the unit as things stand."""
        unit = self.units[number]
        self.looks += len(unit.ways)
        return [room for room in unit.ways if self.fits(unit, room)]

    def fits(self, unit: Unit, room: int) -> bool:
        """Whether that room, one of the unit's ways, can take it as things stand."""
        return (
            unit.memory_mib <= self.memory_mib[room]
            and unit.cpus <= self.cpus[room]
            and self._apart[room].isdisjoint(unit.apart)
        )

    def roomiest(self, number: int) -> int | None:
        """The room for the unit that has the most left."""
        return max(
            self.fitting(number),
            key=lambda room: (-self.rooms[room].rank, *self._left(room)),
            default=None,
        )

    def tightest(self, number: int) -> int | None:
        """The room for the unit that has the least left."""
        return min(self.fitting(number), key=self._tightness, default=None)

    def most_alike(self, number: int) -> int | None:
        """The room for the unit that has memory and CPUs left in the proportion that it takes, so
        that neither is used up before the other."""
        unit = self.units[number]
        unit_cpus = unit.cpus * self._cpu_mib

        def unlikeness(room: int) -> tuple[int, float, str]:
            memory_mib, cpus = self.memory_mib[room], self.cpus[room] * self._cpu_mib
            product = unit.memory_mib * memory_mib + unit_cpus * cpus
            length = memory_mib * memory_mib + cpus * cpus
            return self.rooms[room].rank, -product * product / (length or 1), self.rooms[room].name

        return min(self.fitting(number), key=unlikeness, default=None)

    def by_tightness(self, number: int) -> list[int]:
        """All rooms for the unit, the tightest first."""
        return sorted(self.fitting(number), key=self._tightness)

    def put(self, number: int, room: int) -> None:
        """The unit goes there."""
        unit = self.units[number]
        self.places[number] = room
        self.memory_mib[room] -= unit.memory_mib
        self.cpus[room] -= unit.cpus
        self._inside[room][number] = None
        self._apart[room].update(unit.apart)

    def take_out(self, number: int) -> None:
        """The unit goes elsewhere, or nowhere."""
        unit = self.units[number]
        room = self.places.pop(number)
        self.memory_mib[room] += unit.memory_mib
        self.cpus[room] += unit.cpus
        del self._inside[room][number]
        self._apart[room].difference_update(unit.apart)

    def is_hopeless(self) -> bool:
        """Whether it is plain that some unit must be left over, so that no search is worth while:
        together they are too large, or one fits nowhere."""
        return (
            sum(unit.memory_mib for unit in self.units)
            > sum(max(free, 0) for free in self.memory_mib)
            or sum(unit.cpus for unit in self.units) > sum(max(free, 0) for free in self.cpus)
            or any(not self.fitting(number) for number in range(len(self.units)))
        )

    def _left(self, room: int) -> tuple[int, int, str]:
        return self.memory_mib[room], self.cpus[room], self.rooms[room].name

    def _tightness(self, room: int) -> tuple[int, int, int, str]:
        return self.rooms[room].rank, *self._left(room)


_Order = Callable[[_Packing, int], tuple[float, ...]]
_Choice = Callable[[_Packing, int], int | None]


def _largest_memory_first(packing: _Packing, number: int) -> tuple[float, ...]:
    return (-packing.units[number].memory_mib,)


def _fewest_ways_first(packing: _Packing, number: int) -> tuple[float, ...]:
    return len(packing.units[number].ways), -packing.units[number].memory_mib


def _largest_first(packing: _Packing, number: int) -> tuple[float, ...]:
    return (-packing.size(number),)


def _smallest_first(packing: _Packing, number: int) -> tuple[float, ...]:
    return (packing.size(number) / packing.units[number].count,)


_TRIES: tuple[tuple[_Order, _Choice], ...] = (
    (_largest_memory_first, _Packing.roomiest),
    (_fewest_ways_first, _Packing.most_alike),
    (_largest_first, _Packing.most_alike),
    (_smallest_first, _Packing.tightest),
    (_smallest_first, _Packing.most_alike),
)


def _in_turn(
    units: Sequence[Unit],
    rooms: Sequence[Room],
    order: _Order,
    choose: _Choice,
) -> _Packing:
    """Each unit once, into the room chosen for it as things stand at its turn."""
    packing = _Packing(units, rooms)
    in_order = sorted(
        range(len(units)), key=lambda number: (order(packing, number), units[number].name)
    )
    for number in in_order:
        room = choose(packing, number)
        if room is not None:
            packing.put(number, room)
    return packing


def _make_way_for_the_left_over(packing: _Packing) -> None:
    """Let in units that were left over, each by sending another one from its room to a third."""
    packing.looks = 0
    before = packing.left_over + 1
    while 0 < packing.left_over < before:
        before = packing.left_over
        for number in packing.without_room():
            room = packing.tightest(number)
            if room is not None:
                packing.put(number, room)
            elif packing.looks < _MOST_LOOKS:
                _make_way(packing, number)


def _make_way(packing: _Packing, number: int) -> None:
    unit = packing.units[number]
    for room in unit.ways:
        for other in packing.inside(room):
            packing.looks += 1
            packing.take_out(other)
            if packing.fits(unit, room):
                packing.put(number, room)
                third = packing.tightest(other)
                if third is not None:
                    packing.put(other, third)
                    return
                packing.take_out(number)
            packing.put(other, room)


def _search(units: Sequence[Unit], rooms: Sequence[Room]) -> _Packing | None:
    """A room for every unit, by depth-first search: the unit with the fewest ways first, into the
    tightest room. None if there is no such packing, or none was found soon."""
    packing = _Packing(units, rooms)
    order = sorted(
        range(len(units)),
        key=lambda number: (
            len(packing.fitting(number)),
            -units[number].memory_mib,
            units[number].name,
        ),
    )
    packing.looks = 0
    ways: list[Iterator[int]] = []
    while packing.looks < _MOST_LOOKS:
        depth = len(packing.places)
        if depth == len(order):
            return packing
        if len(ways) == depth:
            ways.append(iter(packing.by_tightness(order[depth])))
        room = next(ways[-1], None)
        if room is not None:
            packing.put(order[depth], room)
            continue
        ways.pop()
        if depth == 0:
            return None
        packing.take_out(order[depth - 1])
    return None
