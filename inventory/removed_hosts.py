"""Tombstones: machines that were removed, so that none comes back by accident."""

from sqlalchemy import or_
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.hosts import RemovedHost
from inventory.database import Database
from inventory.models import RemovedHostRow


class RemovedHosts:
    """Reads them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(self) -> list[RemovedHost]:
        """All, the latest first."""
        query = select(RemovedHostRow).order_by(col(RemovedHostRow.id).desc())
        async with self._database.reading() as session:
            return [_removed(row) for row in await session.exec(query)]

    async def known(self, *, uuid: str | None, host_key_sha256: str | None) -> RemovedHost | None:
        """The latest tombstone of the machine with that libvirt UUID or SSH host key, or None."""
        async with self._database.reading() as session:
            row = await find_tombstone(session, uuid=uuid, host_key_sha256=host_key_sha256)
        return _removed(row) if row is not None else None


async def find_tombstone(
    session: AsyncSession, *, uuid: str | None, host_key_sha256: str | None
) -> RemovedHostRow | None:
    """The row of the latest, if there is any."""
    marks = []
    if uuid is not None:
        marks.append(col(RemovedHostRow.uuid) == uuid)
    if host_key_sha256 is not None:
        marks.append(col(RemovedHostRow.host_key_sha256) == host_key_sha256)
    query = select(RemovedHostRow).where(or_(*marks)).order_by(col(RemovedHostRow.id).desc())
    return (await session.exec(query.limit(1))).first() if marks else None


def _removed(row: RemovedHostRow) -> RemovedHost:
    return RemovedHost.model_validate(
        {name: getattr(row, name) for name in RemovedHost.model_fields}
    )
