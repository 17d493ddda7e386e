"""A real PostgreSQL server for tests: Debian's programs, a data directory that is thrown away."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ACCOUNT = "postgres"  # the server refuses to run as root


@contextmanager
def postgresql() -> Iterator[str]:
    """The URL of a superuser on a server of its own, without a database name."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    directory = Path(tempfile.mkdtemp(prefix="hostler-postgresql-"))
    shutil.chown(directory, _ACCOUNT, _ACCOUNT)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    control = [programs / "pg_ctl", "-D", directory / "data", "-w", "-s"]
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    try:
        _as_postgres(programs / "initdb", "-D", directory / "data", "-A", "trust", "-N")
        _as_postgres(*control, "-l", directory / "log", "-o", options, "start")
        try:
            yield f"postgresql://{_ACCOUNT}@127.0.0.1:{port}"
        finally:
            _as_postgres(*control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(directory)


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
