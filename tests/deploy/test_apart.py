"""deploy/lab/apart: what runs there, for a lab of its own, meets nothing of the machine's."""

import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

LAB_DIR = Path(__file__).resolve().parents[2] / "deploy/lab"
_APART = LAB_DIR / "apart"
_STATE = LAB_DIR / ".state"
_THERE = shlex.quote(str(_STATE))


def apart(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [_APART, "sh", "-c", script], capture_output=True, text=True, check=False, timeout=60
    )


def groups() -> set[Path]:
    return {*Path("/sys/fs/cgroup").glob("**/hostler-apart-*")}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = groups()
    yield
    assert groups() == before


def test_its_processes_its_network_and_its_groups_are_its_own() -> None:
    mark = Path("/run/hostler-apart-test")
    mark.touch()
    try:
        done = apart(
            "ls /sys/class/net; cat /proc/1/comm; cat /proc/self/cgroup | cut -d: -f3 | sort -u;"
            f" ls {mark} {_THERE} 2>&1 | grep -c 'No such file'"
        )
    finally:
        mark.unlink()
    assert (done.returncode, done.stdout) == (0, "lo\nbash\n/\n2\n"), done.stderr


def test_what_it_keeps_in_the_checkout_is_seen_by_nobody_else() -> None:
    before = sorted(_STATE.iterdir()) if _STATE.exists() else None
    done = apart(f"mkdir {_THERE} && touch {_THERE}/apart && rm -r {_THERE} && mkdir {_THERE}")
    assert done.returncode == 0, done.stderr
    assert (sorted(_STATE.iterdir()) if _STATE.exists() else None) == before


def test_it_ends_as_the_command_does() -> None:
    assert apart("exit 7").returncode == 7


def test_what_it_leaves_behind_ends_with_it() -> None:
    done = apart("sleep 98765 >/dev/null 2>&1 & true")
    assert done.returncode == 0, done.stderr
    assert _sleeping() == []


def test_so_it_does_when_it_is_ended() -> None:
    running = subprocess.Popen([_APART, "sleep", "98765"])
    while not _sleeping():
        assert running.poll() is None
        time.sleep(0.05)
    running.terminate()
    assert running.wait(30) != 0
    while _sleeping():
        time.sleep(0.05)


def _sleeping() -> list[Path]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if (entry / "cmdline").read_bytes() == b"sleep\x0098765\x00":
                    found.append(entry)
            except OSError:
                continue
    return found
