"""The directory of the embedded default, and the ports it needs."""

import errno
import fcntl
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contracts.errors import Conflict, Failed

# A predecessor that was killed may still be on its way out.
_PATIENCE_S = 3.0
_PAUSE_S = 0.1
_NEW = ".new"


@contextmanager
def locked_home(home: Path) -> Iterator[None]:
    """Own `home`, made with mode 0700 if it is missing. Raises Conflict if another process does.

    The kernel drops the lock with the process, however that ends.
    """
    try:
        make_private_directory(home)
        lock = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _unusable(home, error) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 20).decode().strip() or "unknown"
            raise Conflict(
                f"`hostler up` already runs on {home} (process {holder}).",
                remedy=f"Stop it (kill {holder}), or set HOSTLER_HOME to another directory.",
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(lock)


def make_private_directory(path: Path) -> None:
    """Make it, with mode 0700, unless it is there. Raises Failed."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(path, error) from error


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read; it is there whole or not at all, and stays so when
    the power fails. A link is followed. Raises Failed."""
    path = path.resolve()
    try:
        descriptor, new = tempfile.mkstemp(dir=path.parent, prefix=_new(path), suffix=_NEW)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            Path(new).replace(path)
        except BaseException:
            Path(new).unlink()
            raise
        with _opened(path.parent) as directory:
            os.fsync(directory)
    except OSError as error:
        raise Failed(
            f"{path} can't be written: {error.strerror}.",
            remedy="Choose a place that the account of Hostler may write: HOSTLER_HOME, or "
            "HOSTLER_MASTER_KEY_FILE for the key.",
        ) from error


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Nobody else changes that file meanwhile, and what killed writers of it have left is gone.
    Raises Conflict, Failed.

    The lock is its directory's, so that it takes no other file, and goes with the process.
    """
    path = path.resolve()
    with _opened(path.parent) as directory:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"Another command works on {path} at this moment.",
                remedy="Let it end, then try again.",
            ) from None
        try:
            for left in path.parent.glob(f"{_new(path)}*{_NEW}"):
                left.unlink()
        except OSError as error:
            raise _unusable(path.parent, error) from error
        yield


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _unusable(directory, error) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _new(path: Path) -> str:
    """What the names of files begin with that are to become this one."""
    return f".{path.name}."


def listen(host: str, port: int, purpose: str, variable: str) -> socket.socket:
    """A socket that listens. Raises Conflict, naming the port, if another process has it."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host.strip("[]"), port), family=family)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(_PAUSE_S)
                continue
            if error.errno == errno.EADDRINUSE:
                raise Conflict(
                    f"Port {port} at {host}, for {purpose}, is taken by another process.",
                    remedy=f"End it (`ss -ltnp sport = :{port}` shows it), or set {variable}.",
                ) from None
            raise Failed(
                f"{purpose[:1].upper()}{purpose[1:]} can't listen at {host} port {port}: "
                f"{error.strerror}.",
                remedy=f"Set {variable} to an address of this machine.",
            ) from error


def _unusable(path: Path, error: OSError) -> Failed:
    return Failed(
        f"The directory {path} can't be used: {error.strerror}.",
        remedy="Set HOSTLER_HOME to one that you may write.",
    )


def require_free(host: str, port: int, purpose: str, variable: str) -> None:
    """Raises Conflict if another process listens there."""
    listen(host, port, purpose, variable).close()
