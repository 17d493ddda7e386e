"""The matrix of a change of passwords: who is killed where, on which host, and how it ends."""

import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypedDict

from tests.e2e.system import ROOT
from tests.matrix.report import commit
from tests.simulation.commit_cutter import CutAt

DOCUMENT = ROOT / "docs" / "password-matrix.md"
HOSTS = ("ssh-1", "ssh-2", "ssh-3")
REFUSES = HOSTS[-1]

_NOT_RUN = "not run"
_NONE = "-"


class Ends(StrEnum):
    """How a change ends: all hosts take the new password, or the last one refuses it."""

    PROMOTED = "promoted"
    PUT_BACK = "put back"


@dataclass(frozen=True)
class Cell:
    """One death in one change. `death`: the file of tests.simulation.accounts that has the worker
    die; or the moment in which the database does."""

    ends: Ends
    row: str
    column: str
    death: str | CutAt

    @property
    def key(self) -> str:
        return f"{self.ends}: {self.row}: {self.column}".replace(" ", "-")


class Record(TypedDict):
    """What was seen."""

    commit: str
    day: str
    said: str


_BEFORE, _AFTER = "before its effect", "after it, before Temporal knows"
_DATABASE = "PostgreSQL, in the commit of `promote_password`"

_STEPS = {
    Ends.PROMOTED: (
        *("plan_password_rotation", "acquire_hosts", "stage_password"),
        *("check_hosts_for_password", "change_passwords", "promote_password", "release_hosts"),
    ),
    Ends.PUT_BACK: ("put_passwords_back", "abandon_password", "release_hosts"),
}
# Where a host is in an activity: of tests.simulation.accounts, and in words.
_CHECK = {"before-look": "before it is looked at"}
_SET = {
    "before-set": "attempt committed, nothing set",
    "after-set": "set, nothing proven",
}
_PROVE = {
    "before-old": "before the login that is to be refused",
    "after-old": "after it was refused, before the login with what was set",
    "after-new": "after it",
    "after-record": "committed as proven",
}
_POINTS: dict[Ends, dict[str, tuple[dict[str, str], tuple[str, ...]]]] = {
    Ends.PROMOTED: {
        "check_hosts_for_password": (_CHECK, HOSTS),
        "change_passwords": (_SET | _PROVE, HOSTS),
    },
    Ends.PUT_BACK: {
        "change_passwords": ({"before-set": _SET["before-set"]}, (REFUSES,)),
        "put_passwords_back": (_SET | _PROVE, HOSTS[:-1]),
    },
}


def _cells() -> list[Cell]:
    cells = []
    for ends in Ends:
        for step in _STEPS[ends]:
            cells.append(Cell(ends, f"`{step}`", _BEFORE, f"{step}.before"))
            cells.append(Cell(ends, f"`{step}`", _AFTER, f"{step}.after"))
        for step, (points, hosts) in _POINTS[ends].items():
            cells += [
                Cell(ends, f"`{step}`: {words}", host, f"{host}.{point}@{step}")
                for point, words in points.items()
                for host in hosts
            ]
    cells += [Cell(Ends.PROMOTED, _DATABASE, at, at) for at in CutAt]
    return cells


CELLS = tuple(_cells())


@dataclass(frozen=True)
class Row:
    """Cells that may be met in one change."""

    cells: tuple[Cell, ...]

    @property
    def ends(self) -> Ends:
        return self.cells[0].ends

    @property
    def is_of_database(self) -> bool:
        return isinstance(self.cells[0].death, CutAt)

    @property
    def key(self) -> str:
        (first, *others) = self.cells
        name = f"{first.ends}: {first.row}" if others else first.key
        return name.replace(" ", "-")


def _rows() -> list[Row]:
    rows: dict[str, list[Cell]] = {}
    for cell in CELLS:
        # The database is there once in a change, for one commit.
        alone = cell.column if isinstance(cell.death, CutAt) else ""
        rows.setdefault(f"{cell.ends} {cell.row} {alone}", []).append(cell)
    return [Row(tuple(cells)) for cells in rows.values()]


ROWS = tuple(_rows())


class Records:
    """What runs have shown, by cell; kept by `keep` at each addition.

    Args:
        kept: from earlier runs.
    """

    def __init__(
        self, kept: Mapping[str, Record], keep: Callable[[dict[str, Record]], None]
    ) -> None:
        self._records = dict(kept)
        self._keep = keep
        # Of the beginning: the document is a change, too.
        self._commit = commit()

    def add(self, cells: Iterable[Cell], said: str) -> None:
        """Of now."""
        for cell in cells:
            self._records[cell.key] = Record(
                commit=self._commit, day=f"{datetime.now(UTC):%Y-%m-%d}", said=said
            )
        self._keep(self._records)


def write(records: Mapping[str, Record]) -> None:
    """The document. Cells without a record were not run."""
    DOCUMENT.write_text(_document(records))


def _document(records: Mapping[str, Record]) -> str:
    ran = [records[cell.key] for cell in CELLS if cell.key in records]
    runs = sorted({f"{record['commit']} on {record['day']}" for record in ran})
    lines = [
        "# Matrix of a change of passwords",
        "",
        "Written by `pytest tests/simulation/test_rotation_matrix.py --matrix`, from what was",
        "seen; not by hand.",
        "",
        f"- Commit: {', '.join(runs)}. Cells run: {len(ran)} of {len(CELLS)}.",
        f"- Machine: {_machine()}.",
        "",
        "Three hosts, which are SSH servers with an /etc/shadow each, get another password of",
        "root. In each cell one process is killed (-9), once, and started again: the worker, or",
        "the database. The worker's cells of a row share a change, in which it dies in one after",
        "the other; one that is not met there, since a death came before it, has a change of its",
        "own. Wanted of each change: it ends by itself; from outside, all hosts let in with the",
        "one password that Hostler says is current, and none with the other; and `hostler",
        "passwords verify` agrees. A cell says how the change ended, how long it took, and of how",
        "many deaths; that of the database, whether the transaction was there after the death.",
    ]
    for ends in Ends:
        cells = [cell for cell in CELLS if cell.ends is ends]
        lines += ["", f"## {_TITLES[ends]}"]
        columns: dict[tuple[str, ...], list[str]] = {}
        for row in dict.fromkeys(cell.row for cell in cells):
            columns.setdefault(_table_of(row, cells), []).append(row)
        for heads, rows in columns.items():
            lines += [
                "",
                f"| Killed | {' | '.join(heads)} |",
                "|---" * (len(heads) + 1) + "|",
                *(_row(row, heads, cells, records) for row in rows),
            ]
    return "\n".join([*lines, ""])


_TITLES = {
    Ends.PROMOTED: "All hosts take it",
    Ends.PUT_BACK: f"{REFUSES} refuses it, and all get back what they had",
}


def _table_of(row: str, cells: Sequence[Cell]) -> tuple[str, ...]:
    """The heads of the table in which the row is."""
    (first, *_) = [cell.column for cell in cells if cell.row == row]
    for heads in (HOSTS, (_BEFORE, _AFTER), tuple(CutAt)):
        if first in heads:
            return tuple(heads)
    raise AssertionError(first)


def _row(
    row: str, heads: Sequence[str], cells: Sequence[Cell], records: Mapping[str, Record]
) -> str:
    there = {cell.column: cell for cell in cells if cell.row == row}
    texts = [
        records[there[head].key]["said"]
        if head in there and there[head].key in records
        else (_NOT_RUN if head in there else _NONE)
        for head in heads
    ]
    return f"| {row} | " + " | ".join(text.replace("|", "/") for text in texts) + " |"


def _machine() -> str:
    release = platform.freedesktop_os_release()["PRETTY_NAME"]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} CPUs, {memory:.0f} GiB, {release}, Linux {platform.release()}, "
        "simulated hosts; heartbeat time-outs shortened to "
        f"{NOTICED_WITHIN_S} s"
    )


# Temporal notices a dead worker after a heartbeat time-out, of 20 s otherwise.
NOTICED_WITHIN_S = 4
