"""Running commands, and saying what happens."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """What went wrong, in one line for the person at the terminal."""


def say(text: str) -> None:
    """One line of progress; standard output stays free for results."""
    sys.stderr.write(f"lab: {text}\n")
    sys.stderr.flush()


def die_with_parent() -> Callable[[], None]:
    """A preexec function: the child is killed when its parent thread ends, even by kill -9."""
    parent = os.getpid()

    def arrange() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return arrange


def clean_environment(**extra: str) -> dict[str, str]:
    """The caller's variables (among them any secrets) are nothing for the lab's processes."""
    return {"PATH": PATH, "HOME": "/root", "USER": "root", "LANG": "C.UTF-8"} | extra


def run(
    command: Sequence[str | Path],
    *,
    check: bool = True,
    stdin: str | None = None,
    timeout: float | None = 60,
    env: dict[str, str] | None = None,
    log: Path | None = None,
    tied: bool = False,
    cwd: Path | None = None,
    name: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run to the end; a failure is a LabError that carries the last line of what it said.

    `name` stands for the command in messages. `tied` commands die with this process. Use it from
    the main thread only: the kernel means the thread that started the child.
    """
    argv = [str(part) for part in command]
    name = name or " ".join(argv[:6])
    try:
        with (log or Path(os.devnull)).open("a") as output:
            done = subprocess.run(
                argv,
                check=False,
                text=True,
                input=stdin if stdin is not None else "",
                stdout=output if log else subprocess.PIPE,
                stderr=subprocess.STDOUT if log else subprocess.PIPE,
                timeout=timeout,
                env=env,
                cwd=cwd,
                preexec_fn=die_with_parent() if tied else None,
            )
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]} is missing on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{name}: no answer within {timeout:.0f} s") from error
    if check and done.returncode != 0:
        said = log.read_text(errors="replace") if log else done.stderr or done.stdout
        lines = [line for line in said.splitlines() if line.strip()] or ["(it said nothing)"]
        hint = f" (all of it: {log})" if log else ""
        raise LabError(f"{name}: exit {done.returncode}: {lines[-1]}{hint}")
    return done


def write_secret(path: Path, text: str) -> None:
    """Put it there, for its owner alone, whole or not at all; nothing if it is there already."""
    if path.exists() and path.read_text() == text:
        return
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600)
    temporary.write_text(text)
    temporary.replace(path)


def quietly(command: Sequence[str | Path], timeout: float = 30) -> bool:
    """Run something whose failure is no news, like deleting what may not be there."""
    try:
        return run(command, check=False, timeout=timeout).returncode == 0
    except LabError:
        return False


def is_mounted(path: Path) -> bool:
    """Path.is_mount() does not see what is mounted from the same device, like /run/netns."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split(" ", 5)[4] == str(path) for line in mounts)
