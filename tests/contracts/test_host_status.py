"""The rules of a host's status: every cell of their table, and what must never come of them."""

import itertools
from collections.abc import Iterable

import pytest

from contracts.host_status import PeerWord, Reach, Seen, Standing, judge, judge_absence
from contracts.power import PowerState
from contracts.states import HOST_STATUS_TRANSITIONS, HostStatus, ResourceState

S = HostStatus
R = ResourceState
MISSES = (Seen.UNREACHABLE, Seen.LIBVIRT_SILENT)
CHECKED = [state for state in R if state not in (R.CREATING, R.ERROR, R.REMOVED)]


def standing(status: S, misses: int = 0, state: R = R.ENABLED) -> Standing:
    return Standing(state, status, "as it was", misses)


def words(*reaches: Reach) -> tuple[PeerWord, ...]:
    return tuple(PeerWord(peer=f"kvm-{n}", reach=reach) for n, reach in enumerate(reaches, 2))


def after(status: S, seen: Iterable[Seen], state: R = R.ENABLED) -> Standing:
    """How it stands after all these looks."""
    now = standing(status, state=state)
    for one in seen:
        now = judge(now, one, "timed out")
    return now


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (Seen.ANSWERED, (S.UP, S.UP, S.UP, S.UP)),
        (Seen.LOGIN_REFUSED, (S.ALERT, S.ALERT, S.ALERT, S.ALERT)),
        (Seen.KEY_CHANGED, (S.ALERT, S.ALERT, S.ALERT, S.ALERT)),
        (Seen.UUID_CHANGED, (S.ALERT, S.ALERT, S.ALERT, S.ALERT)),
        (Seen.LIBVIRT_SILENT, (S.UP, S.ALERT, S.ALERT, S.ALERT)),
        (Seen.UNREACHABLE, (S.UP, S.DISCONNECTED, S.ALERT, S.DOWN)),
    ],
)
def test_one_look(seen: Seen, expected: tuple[S, ...]) -> None:
    for before, status in zip((S.UP, S.DISCONNECTED, S.ALERT, S.DOWN), expected, strict=True):
        result = judge(standing(before), seen, "timed out")
        assert result.status is status, before
        assert result.missed_checks == (1 if seen in MISSES else 0)


@pytest.mark.parametrize("seen", MISSES)
def test_the_first_miss_is_only_counted(seen: Seen) -> None:
    once = after(S.UP, [seen])
    assert (once.status, once.reason, once.missed_checks) == (S.UP, "as it was", 1)
    assert after(S.UP, [seen, Seen.ANSWERED, seen]) == once


def test_the_second_miss_says_what_is_missing() -> None:
    silent = after(S.UP, [Seen.LIBVIRT_SILENT] * 2)
    assert silent.reason == "SSH answers, libvirt does not: timed out"
    assert silent.status is S.ALERT
    away = after(S.UP, [Seen.UNREACHABLE] * 2)
    assert (away.status, away.reason) == (S.DISCONNECTED, "no answer to Hostler: timed out")


def test_an_alert_ends_at_the_second_miss() -> None:
    before = after(S.UP, [Seen.LOGIN_REFUSED])
    assert before.reason == "it does not let Hostler in: timed out"
    now = judge(judge(before, Seen.UNREACHABLE, "a"), Seen.UNREACHABLE, "b")
    assert (now.status, now.reason) == (S.DISCONNECTED, "no answer to Hostler: b")


@pytest.mark.parametrize("status", S)
def test_no_look_alone_makes_a_host_down(status: S) -> None:
    for looks in itertools.product(Seen, repeat=4):
        if status is not S.DOWN:
            assert after(status, looks).status is not S.DOWN


@pytest.mark.parametrize("state", CHECKED)
@pytest.mark.parametrize("status", S)
def test_every_change_is_in_the_transition_table(status: S, state: R) -> None:
    for misses, seen in itertools.product(range(4), Seen):
        for emptied in (True, False):
            now = standing(status, misses, state)
            result = judge(now, seen, "x", emptied=emptied)
            assert result.status in {status, *HOST_STATUS_TRANSITIONS[status]}
    for reaches, peers_reach in itertools.product(
        itertools.product(Reach, repeat=2), (True, False)
    ):
        now = standing(status, 3, state)
        result = judge_absence(now, "x", words(*reaches), peers_reach=peers_reach)
        if status is not S.UP:  # an absent host is not Up any more
            assert result.status in {status, *HOST_STATUS_TRANSITIONS[status]}


def test_down_takes_our_own_path_and_a_peers() -> None:
    now = standing(S.DISCONNECTED, 3)
    down = judge_absence(
        now, "timed out", words(Reach.NO_ANSWER, Reach.NO_ANSWER), peers_reach=True
    )
    assert down.status is S.DOWN
    assert down.reason == (
        "no answer to Hostler: timed out in 3 checks; and no answer to kvm-2 and kvm-3, in the "
        "same cluster"
    )
    one = judge_absence(now, "timed out", words(Reach.UNKNOWN, Reach.NO_ANSWER), peers_reach=True)
    assert one.status is S.DOWN
    assert "kvm-2" not in one.reason


@pytest.mark.parametrize("reaches", [(), (Reach.UNKNOWN,), (Reach.UNKNOWN, Reach.UNKNOWN)])
def test_without_a_peers_word_nobody_is_down(reaches: tuple[Reach, ...]) -> None:
    now = judge_absence(
        standing(S.DISCONNECTED, 99), "timed out", words(*reaches), peers_reach=True
    )
    assert now.status is S.DISCONNECTED
    assert "no other host of its cluster can tell" in now.reason
    alert = standing(S.ALERT, 99)
    assert judge_absence(alert, "timed out", words(*reaches), peers_reach=True) == alert


@pytest.mark.parametrize("status", [S.DISCONNECTED, S.ALERT, S.DOWN])
def test_one_peer_that_reaches_it_is_enough(status: S) -> None:
    now = standing(status, 3)
    reached = judge_absence(now, "x", words(Reach.NO_ANSWER, Reach.CONNECTED), peers_reach=True)
    assert (reached.status, reached.reason) == (S.ALERT, "reachable from kvm-3, not from here")
    # A machine that refuses is there, and so may be its VMs.
    refused = judge_absence(now, "x", words(Reach.NO_ANSWER, Reach.REFUSED), peers_reach=True)
    assert refused.status is S.ALERT
    assert "the machine runs, sshd does not" in refused.reason


def test_peers_that_never_reached_it_tell_nothing() -> None:
    """A firewall that lets nobody but Hostler in."""
    for status in (S.DISCONNECTED, S.ALERT):
        now = judge_absence(
            standing(status, 9), "x", words(Reach.NO_ANSWER, Reach.NO_ANSWER), peers_reach=False
        )
        assert now.status is status
    disconnected = judge_absence(
        standing(S.DISCONNECTED, 9), "x", words(Reach.NO_ANSWER), peers_reach=False
    )
    assert "which never reached it while it was Up" in disconnected.reason
    there = judge_absence(
        standing(S.DISCONNECTED, 9), "x", words(Reach.CONNECTED), peers_reach=False
    )
    assert there.status is S.ALERT


def test_a_machine_that_refuses_connections_is_there() -> None:
    once, twice = (after(S.UP, [Seen.REFUSED] * misses) for misses in (1, 2))
    assert once.status is S.UP
    assert (twice.status, twice.reason) == (
        S.ALERT,
        "the machine is there, its sshd is not: timed out",
    )


def test_an_alert_is_disconnected_before_it_is_down() -> None:
    now = judge_absence(standing(S.ALERT, 5), "x", words(Reach.NO_ANSWER), peers_reach=True)
    assert now.status is S.DISCONNECTED
    assert judge_absence(now, "x", words(Reach.NO_ANSWER), peers_reach=True).status is S.DOWN


def test_a_host_in_maintenance_may_be_away() -> None:
    now = after(S.UP, [Seen.UNREACHABLE] * 5, R.MAINTENANCE)
    assert now.status is S.DISCONNECTED
    assert now.reason.startswith("in maintenance, so it may be off on purpose")
    assert judge_absence(now, "x", words(Reach.NO_ANSWER, Reach.NO_ANSWER), peers_reach=True) == now


@pytest.mark.parametrize("state", [state for state in CHECKED if state is not R.MAINTENANCE])
def test_any_other_one_may_not(state: R) -> None:
    now = after(S.UP, [Seen.UNREACHABLE] * 3, state)
    assert judge_absence(now, "x", words(Reach.NO_ANSWER), peers_reach=True).status is S.DOWN


def test_one_that_was_taken_out_down_stays_so_until_it_is_known_to_be_empty() -> None:
    down = standing(S.DOWN, 3, R.MAINTENANCE)
    for seen in Seen:
        assert judge(down, seen, "x").status is S.DOWN
    assert judge_absence(down, "x", words(Reach.CONNECTED), peers_reach=True).status is S.DOWN
    assert judge(down, Seen.ANSWERED, "", emptied=True).status is S.UP


@pytest.mark.parametrize("status", [S.UP, S.DISCONNECTED, S.ALERT, S.DOWN])
def test_a_bmc_that_says_off_is_another_path(status: HostStatus) -> None:
    now = standing(status, 3)
    off = judge_absence(now, "x", words(Reach.UNKNOWN), peers_reach=False, power=PowerState.OFF)
    assert off.status is S.DOWN
    on = judge_absence(now, "x", words(Reach.UNKNOWN), peers_reach=False, power=PowerState.ON)
    assert on.status is status


def test_a_peer_that_reaches_the_host_is_believed_before_its_bmc() -> None:
    now = standing(S.DISCONNECTED, 3)
    there = words(Reach.CONNECTED)
    seen = judge_absence(now, "x", there, peers_reach=True, power=PowerState.OFF)
    assert seen.status is S.ALERT
