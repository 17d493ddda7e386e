"""Tokens of the API: 256 random bits each, of which only the hash is kept."""

import hashlib
import secrets

from sqlmodel import col, delete, select

from contracts.access import Principal, Role
from inventory.database import Database
from inventory.events import add_event
from inventory.models import ApiTokenRow

_PREFIX = "hostler_"


class Tokens:
    """Creates and checks them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, name: str, role: Role) -> str:
        """A new token, which can't be shown again; a former one of that name ceases to be valid."""
        token = _PREFIX + secrets.token_urlsafe(32)
        async with self._database.writing() as session:
            await session.exec(delete(ApiTokenRow).where(col(ApiTokenRow.name) == name))
            session.add(ApiTokenRow(name=name, sha256=_hash(token), role=role))
            add_event(session, "token.created", f"token/{name}", f"role {role}", actor="local")
        return token

    async def authenticate(self, token: str) -> Principal | None:
        """Whose token it is, or None."""
        query = select(ApiTokenRow).where(col(ApiTokenRow.sha256) == _hash(token))
        async with self._database.reading() as session:
            row = (await session.exec(query)).first()
        return Principal(name=row.name, role=Role(row.role)) if row is not None else None


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
