"""Tombstones: machines that were removed, so that none comes back by accident."""

from sqlalchemy import or_
from sqlmodel import col, delete, select
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.hosts import RemovedHost
from contracts.leases import LeaseRef
from inventory.database import Database
from inventory.leases import verify_lease
from inventory.models import HostRow, RemovedHostRow, SecretVersionRow, now
from inventory.secrets import unclaimed


class RemovedHosts:
    """Reads them, and closes those of machines that are back."""

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

    async def take_back(self, host: str, *, lease: LeaseRef) -> None:
        """The machine is in the inventory again, as `host`: nobody cleans it as a removed one, and
        the credential for that is deleted. Raises LeaseLost."""
        async with self._database.writing() as session:
            await verify_lease(session, lease, hold=True)
            row = (await session.exec(select(HostRow).where(col(HostRow.name) == host))).one()
            tombstones = await session.exec(
                select(RemovedHostRow).where(
                    col(RemovedHostRow.cleaned_at).is_(None),
                    or_(
                        col(RemovedHostRow.host_key_sha256) == row.host_key_sha256,
                        col(RemovedHostRow.uuid) == row.uuid,
                    ),
                )
            )
            for tombstone in tombstones.all():
                secret, tombstone.secret_id = tombstone.secret_id, None
                tombstone.cleaned_at = now()
                tombstone.cleaning_problem = f"it was added again as {host}"
                session.add(tombstone)
                await session.flush()
                await session.exec(
                    delete(SecretVersionRow).where(col(SecretVersionRow.id) == secret, unclaimed())
                )


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
