"""Files with a secret in them, which nobody else may read."""

import os
import stat
from pathlib import Path

from contracts.errors import Failed

_FOR_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_private(path: Path, what: str) -> str:
    """The text of a file that is this account's or root's, and that nobody else may read or change.
    `what` it is, for errors. Raises Failed if it is not private, OSError."""
    with path.open(encoding="ascii", errors="replace") as file:
        found = os.fstat(file.fileno())
        mode = stat.S_IMODE(found.st_mode)
        if mode & _FOR_OTHERS:
            raise Failed(
                f"{what} {path} is not private: its mode is {mode:04o}.",
                remedy=f"Find out who may have read it, then: chmod 600 {path}",
            )
        if found.st_uid not in (os.geteuid(), 0):
            raise Failed(
                f"{what} {path} belongs to another account, of the number {found.st_uid}.",
                remedy=f"Find out who may have changed it, then: chown {os.geteuid()} {path}",
            )
        return file.read()
