"""docs/fault-matrix.md, from what was seen."""

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from textwrap import shorten
from typing import TypedDict

from tests.e2e.system import ROOT
from tests.matrix.cells import CELLS, Cell, Course
from tests.matrix.faults import FAULTS
from tests.matrix.observation import Fate
from tests.matrix.steps import STEPS, Stage

DOCUMENT = ROOT / "docs" / "fault-matrix.md"

_NOT_RUN = "not run"
_LONGEST = 160
_TROUBLE = ("ErrorIn", "Alert")


class Record(TypedDict):
    """Of one cell, as it is kept between test runs."""

    commit: str
    day: str
    short: str
    note: str


def commit() -> str:
    """Of the checkout; says so if it was changed since."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def record_of(cell: Cell, course: Course) -> Record:
    """What was seen, in words."""
    short = f"{_vms(course)}; {_ending(cell, course)}"
    if course.problems:
        short = f"**WRONG**: {'; '.join(course.problems)}"
    return _record(short, _note(course))


def record_of_failure(error: BaseException) -> Record:
    """A cell that did not come to its end."""
    (first, *_) = str(error).splitlines() or [type(error).__name__]
    return _record("**FAILED**", first)


def write(records: Mapping[str, Record]) -> None:
    """The document. Cells without a record were not run."""
    DOCUMENT.write_text(_document(records))


def _record(short: str, note: str) -> Record:
    return Record(commit=commit(), day=f"{datetime.now(UTC):%Y-%m-%d}", short=short, note=note)


# --- one cell -----------------------------------------------------------------------------------


def _vms(course: Course) -> str:
    lost = [fate for fate in course.fates if fate.struck and not fate.active]
    lived = [fate for fate in course.fates if fate not in lost]
    words = []
    if lived:
        words.append(f"{len(lived)} VMs went on, pause {max(f.pause_s for f in lived):.1f} s")
    if lost:
        words.append(f"{len(lost)} VMs lost with {lost[0].struck[0]}")
    return ", ".join(words)


def _ending(cell: Cell, course: Course) -> str:
    meanwhile = cell.key in course.during
    if cell.step.stage is Stage.ENTERING:
        after = "meanwhile" if meanwhile else f"{course.ready_after_s:.0f} s later"
        return f"Ready {after}, left, {course.state}"
    after = "meanwhile" if meanwhile else f"{course.left_after_s:.0f} s later"
    return f"left {after}, {course.state}"


def _note(course: Course) -> str:
    parts = [_guest(fate, course) for fate in course.fates]
    parts.append(f"workflow {course.status}")
    parts += [f"leave was refused once: {problem}" for problem in course.asked_again]
    troubles = [event for event in course.events if any(word in event for word in _TROUBLE)]
    parts += [f"event: {shorten(trouble, _LONGEST, placeholder=' ...')}" for trouble in troubles]
    return "; ".join(parts)


def _guest(fate: Fate, course: Course) -> str:
    attempts = course.attempts.get(fate.guest, 0)
    more = [f"{fate.last_tick} ticks"]
    if fate.active:
        more.append(f"longest pause {fate.pause_s:.1f} s")
    if attempts > 1:
        more.append(f"{attempts} attempts")
    return f"{fate.guest} {fate.words} ({', '.join(more)})"


# --- the document -------------------------------------------------------------------------------


def _document(records: Mapping[str, Record]) -> str:
    ran = [records[cell.key] for cell in CELLS if cell.key in records]
    runs = sorted({f"{record['commit']} on {record['day']}" for record in ran})
    lines = [
        "# Fault matrix",
        "",
        "Written by `deploy/test.sh --matrix`, from what was seen; not by hand.",
        "",
        f"- Commit: {', '.join(runs)}. Cells run: {len(ran)} of {len(CELLS)}.",
        f"- Machine: {_machine()}.",
        "",
        "Three guests count on their consoles on kvm-1, which is taken out of service and put",
        "back, with kvm-2 and kvm-3 as destinations. Each cell is one fault at one step of such a",
        "maintenance, which has at most one fault on its way in and one after. Wanted in each:",
        "kvm-1 becomes ready by itself and comes back into service; each guest counts on without",
        "a number missing or doubled, is active on one host and defined on that one alone. Only",
        "what ran on a host that lost its power may stop.",
        "",
        "A cell says what became of the VMs, with the longest time between two numbers of any of",
        "them, and how the operation ended; seconds are from the repair, 'meanwhile' is before it.",
        "",
        *(f"- {fault.title}: {fault.does}." for fault in FAULTS),
        "",
        "| Step | " + " | ".join(fault.title for fault in FAULTS) + " |",
        "|---" * (len(FAULTS) + 1) + "|",
        *(_row(number, records) for number in range(len(STEPS))),
        "",
        "## Each VM",
        "",
        *(
            f"- {cell.step.title} / {cell.fault.title}: {records[cell.key]['note']}."
            for cell in CELLS
            if cell.key in records
        ),
        "",
    ]
    return "\n".join(lines)


def _row(number: int, records: Mapping[str, Record]) -> str:
    step = STEPS[number]
    cells = [Cell(step, fault) for fault in FAULTS]
    texts = [
        (records[cell.key]["short"] if cell.key in records else _NOT_RUN)
        if cell.exists
        else "as before"
        for cell in cells
    ]
    name = step.title if step.place is None else f"{step.title} (`{step.place.activity}`)"
    return f"| {name} | " + " | ".join(text.replace("|", "/") for text in texts) + " |"


def _machine() -> str:
    release = platform.freedesktop_os_release()["PRETTY_NAME"]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} CPUs, {memory:.0f} GiB, {release}, Linux {platform.release()}, hosts of "
        "deploy/lab, guests under QEMU without KVM"
    )
