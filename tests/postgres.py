"""A real PostgreSQL server for tests: Debian's programs, a data directory that is thrown away."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.ports import free_port

_PAUSE_S = 0.02
_ACCOUNT = "postgres"  # the server refuses to run as root


class PostgresqlServer:
    """A server of its own, on a port of its own.

    Args:
        durable: it waits for the disk, as a server does that is meant to keep what it has.

    Attributes:
        url: of its superuser, without a database name.
        port: on loopback.
    """

    def __init__(self, directory: Path, *, durable: bool = False) -> None:
        self._durable = durable
        self._programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
        self._directory = directory
        shutil.chown(directory, _ACCOUNT, _ACCOUNT)
        self.port = free_port()
        self.url = f"postgresql://{_ACCOUNT}@127.0.0.1:{self.port}"
        self._run("initdb", "-A", "trust", "-N")

    def start(self) -> None:
        """Returns when it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        log = self._directory / "log"
        if not self._durable:
            options += " -c fsync=off"
        self._run("pg_ctl", "-w", "-s", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        """Ends it at once, as a crash does."""
        self._run("pg_ctl", "-w", "-s", "-m", "immediate", "stop")

    def kill(self) -> None:
        """kill -9 of every process of it."""
        postmaster = self.pid
        # Stopped, it starts nobody else meanwhile.
        os.kill(postmaster, signal.SIGSTOP)
        processes = (postmaster, *_children(postmaster))
        for process in processes:
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(process, signal.SIGKILL)
        while any(_runs(process) for process in processes):
            time.sleep(_PAUSE_S)
        # The next one takes a zombie for one that runs, and init may take seconds to reap it.
        self._lock.unlink()

    @property
    def pid(self) -> int:
        """Of the process that started the others."""
        (first, *_) = self._lock.read_text().split()
        return int(first)

    @property
    def _lock(self) -> Path:
        return self._directory / "data" / "postmaster.pid"

    def _run(self, program: str, *arguments: object) -> None:
        _as_postgres(self._programs / program, "-D", self._directory / "data", *arguments)


@contextmanager
def postgresql_server(*, durable: bool = False) -> Iterator[PostgresqlServer]:
    """A server that runs; a block that stops it starts it again."""
    directory = Path(tempfile.mkdtemp(prefix="hostler-postgresql-"))
    try:
        server = PostgresqlServer(directory, durable=durable)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory)


@contextmanager
def postgresql() -> Iterator[str]:
    """The URL of a superuser on a server of its own, without a database name."""
    with postgresql_server() as server:
        yield server.url


def dump(url: str) -> bytes:
    """What pg_dump says of a database."""
    program = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_dump"))[-1]
    return subprocess.run([str(program), "--inserts", url], capture_output=True, check=True).stdout


def _children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            _, ppid = _state_and_parent(stat)
            if ppid == parent:
                found.append(int(stat.parent.name))
    return found


def _runs(process: int) -> bool:
    try:
        state, _ = _state_and_parent(Path(f"/proc/{process}/stat"))
    except OSError:
        return False
    return state != "Z"


def _state_and_parent(stat: Path) -> tuple[str, int]:
    """Its name, in brackets before them, may have any characters."""
    state, parent, *_ = stat.read_text().rpartition(")")[2].split()
    return state, int(parent)


def _as_postgres(*command: object) -> None:
    done = subprocess.run(
        ["runuser", "-u", _ACCOUNT, "--", *(str(word) for word in command)],
        cwd="/",
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        # The server inherits them: a pipe would stay open as long as it runs.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, command
