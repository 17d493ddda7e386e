"""The arithmetic of a plan, in cases where the plain way does not do."""

from workflows.packing import Room, Unit, pack

ALL_ROOMS = (0, 1, 2)


def units(*sizes: tuple[int, int], **more: tuple[str, ...]) -> list[Unit]:
    return [
        Unit(f"u{number}", memory_mib, cpus, 1, ALL_ROOMS, more.get(f"u{number}", ()))
        for number, (memory_mib, cpus) in enumerate(sizes)
    ]


def rooms(*sizes: tuple[int, int], ranks: tuple[int, ...] = (0, 0, 0)) -> list[Room]:
    """Three rooms; those that are not named have no room."""
    named = [*sizes, *[(0, 0)] * (3 - len(sizes))]
    return [
        Room(f"r{number}", *size, rank)
        for number, (size, rank) in enumerate(zip(named, ranks, strict=True))
    ]


def test_the_only_way_that_does_is_searched_for() -> None:
    """None of the ways that never look back finds 8 = 3 + 5 and 11 = 7 + 2 + 2."""
    given = units((3, 1), (7, 1), (2, 1), (5, 1), (2, 1))
    assert pack(given, rooms((8, 9), (11, 9))) == {0: 0, 3: 0, 1: 1, 2: 1, 4: 1}


def test_one_that_is_left_over_is_let_in_by_another_that_goes_elsewhere() -> None:
    """With one that fits nowhere there is nothing to search for, and still the others all fit."""
    fitting = units((2, 1), (4, 1), (2, 3), (5, 3), (2, 3), (4, 4), (100, 1))
    assert sorted(pack(fitting, rooms((11, 8), (8, 7)))) == [0, 1, 2, 3, 4, 5]


def test_many_small_ones_are_let_in_before_a_large_one() -> None:
    assert sorted(pack(units((8, 1), (3, 1), (3, 1), (2, 1)), rooms((8, 9)))) == [1, 2, 3]


def test_neither_memory_nor_cpus_are_used_up_before_the_other() -> None:
    large_in_memory, large_in_cpus = [(8, 1)] * 2, [(1, 8)] * 2
    places = pack(units(*large_in_memory, *large_in_cpus), rooms((9, 9), (9, 9)))
    assert sorted(places[number] for number in (0, 1)) == [0, 1]
    assert sorted(places[number] for number in (2, 3)) == [0, 1]


def test_a_room_of_higher_rank_is_the_last_resort() -> None:
    given, last = units((4, 1), (3, 1)), (0, 1, 2)
    assert pack(given, rooms((7, 9), (99, 9), (99, 9), ranks=last)) == {0: 0, 1: 0}
    assert pack(given, rooms((6, 9), (99, 9), (99, 9), ranks=last)) == {0: 0, 1: 1}


def test_those_apart_share_no_room() -> None:
    given = units((1, 1), (1, 1), (1, 1), u0=("web",), u1=("web", "db"), u2=("db",))
    places = pack(given, rooms((99, 9), (1, 9)))
    assert places[0] == places[2] != places[1]


def test_a_search_that_turns_back_forgets_who_was_there() -> None:
    given = units((4, 1), (3, 1), (2, 1), (3, 1), u0=("web",), u3=("web",))
    assert pack(given, rooms((5, 9), (7, 9))) == {0: 1, 1: 1, 2: 0, 3: 0}
