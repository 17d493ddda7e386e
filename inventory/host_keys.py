"""Pinned SSH host keys, and those of hosts that are being re-installed: what the column holds.

    ssh-ed25519 AAAA...                    the host's
    @revoked ssh-ed25519 AAAA...           of its old installation: nothing that shows it is trusted
    ssh-ed25519 AAAA... being-reinstalled  of its new one, which is not provisioned yet

`@revoked` is OpenSSH's own mark for that (known_hosts, sshd(8)). Nothing that is read as a public
key begins so: a revoked key can't be connected with by mistake. The other is a key's comment.
"""

from sqlalchemy import ColumnElement, or_
from sqlmodel import col

from inventory.models import HostRow

_REVOKED = "@revoked "
_NEW = " being-reinstalled"


def is_revoked(line: str) -> bool:
    """Whether nothing is trusted that shows that key."""
    return line.startswith(_REVOKED)


def in_reinstallation(line: str) -> bool:
    """Whether the host's trust was withdrawn, and it is not back in service yet."""
    return is_revoked(line) or line.endswith(_NEW)


def revoked(key: str) -> str:
    """The line of a key that is trusted no more."""
    return _REVOKED + key


def new(key: str) -> str:
    """The line of the key of a new installation."""
    return key + _NEW


def key_of(line: str) -> str:
    """The key itself, trusted or not."""
    return line.removeprefix(_REVOKED).removesuffix(_NEW)


def being_reinstalled() -> ColumnElement[bool]:
    """The same as `in_reinstallation`, of a host's row."""
    line = col(HostRow.host_key_line)
    return or_(line.startswith(_REVOKED), line.endswith(_NEW))
