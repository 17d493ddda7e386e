"""Pinned SSH host keys, and those that are pinned no more: `@revoked`, as in OpenSSH's known_hosts.

Nothing that is read as a public key begins so: a revoked key can't be connected with by mistake.
"""

from sqlalchemy import ColumnElement, and_, null, or_
from sqlmodel import col

from contracts.states import ResourceState
from inventory.models import HostRow

_MARK = "@revoked "


def is_revoked(line: str) -> bool:
    """Whether nothing is trusted that shows that key."""
    return line.startswith(_MARK)


def revoked(line: str) -> str:
    """The line of a key that is trusted no more."""
    return line if is_revoked(line) else _MARK + line


def unmarked(line: str) -> str:
    """The key itself, trusted or not."""
    return line.removeprefix(_MARK)


def being_reinstalled() -> ColumnElement[bool]:
    """Of a host: its key is revoked, or its new installation is not provisioned yet."""
    return or_(
        col(HostRow.host_key_line).startswith(_MARK, autoescape=True),
        and_(
            col(HostRow.resource_state) == ResourceState.MAINTENANCE,
            col(HostRow.facts).is_(null()),
        ),
    )
