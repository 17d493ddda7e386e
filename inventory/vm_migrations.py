"""How far the VMs of an evacuation are: what people watch, not what decides."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import or_
from sqlmodel import col, select, update

from contracts.vms import MigrationState, VmMigration
from inventory.database import Database
from inventory.models import VmMigrationRow, now
from inventory.upsert import insert_or_replace


@dataclass(frozen=True)
class MigrationFigures:
    """What is recorded of a running migration; see VmMigration for the units."""

    percent: int
    rate_mib_s: float
    remaining_mib: float
    dirty_rate_mib_s: float
    iteration: int
    throttle_percent: int
    expected_end_at: datetime | None


class VmMigrations:
    """One row per VM and operation; `operation` is "workflow id#first run id"."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def start(
        self,
        operation: str,
        vm: str,
        source: str,
        destination: str,
        attempt: int,
        *,
        tls: bool = False,
    ) -> None:
        """A migration begins: the row starts anew."""
        async with self._database.writing() as session:
            await insert_or_replace(
                session,
                VmMigrationRow(
                    operation=operation,
                    vm=vm,
                    source=source,
                    destination=destination,
                    attempt=attempt,
                    tls=tls,
                ),
            )

    async def progress(self, operation: str, vm: str, seen: MigrationFigures) -> None:
        """How far the running migration is."""
        await self._update(operation, vm, asdict(seen))

    async def finish(
        self, operation: str, vm: str, state: MigrationState, error: str | None
    ) -> None:
        """How it ended; no effect if it never began."""
        values: dict[str, object] = {"state": state, "error": error, "finished_at": now()}
        if state is MigrationState.MOVED:
            values |= {"percent": 100, "remaining_mib": 0, "expected_end_at": None}
        await self._update(operation, vm, values)

    async def open_operations(self, source: str) -> set[str]:
        """Operations with a migration from `source` of which no end was recorded."""
        query = select(VmMigrationRow.operation).where(
            col(VmMigrationRow.source) == source, col(VmMigrationRow.finished_at).is_(None)
        )
        async with self._database.reading() as session:
            return set(await session.exec(query))

    async def close(self, source: str, operations: Collection[str]) -> None:
        """None of these operations' from `source` is under way any more: those without an end were
        cut off."""
        async with self._database.writing() as session:
            await session.exec(
                update(VmMigrationRow)
                .where(
                    col(VmMigrationRow.source) == source,
                    col(VmMigrationRow.operation).in_(operations),
                    col(VmMigrationRow.finished_at).is_(None),
                )
                .values(state=MigrationState.CANCELED, finished_at=now())
            )

    async def latest_moves(self, source: str) -> list[VmMigration]:
        """VMs that the latest operation which moved any from `source` has moved, by VM."""
        moved = (
            select(VmMigrationRow)
            .where(
                col(VmMigrationRow.source) == source,
                col(VmMigrationRow.state) == MigrationState.MOVED,
            )
            .order_by(col(VmMigrationRow.finished_at).desc())
        )
        async with self._database.reading() as session:
            latest = (await session.exec(moved.limit(1))).first()
        if latest is None:
            return []
        everything = await self.list(latest.operation)
        return [
            one for one in everything if one.source == source and one.state is MigrationState.MOVED
        ]

    async def last_seen(self, host: str) -> list[str]:
        """VMs that are on the host as far as their latest migration from or to it tells, by
        name. VMs that Hostler never moved are not among them."""
        touching = (
            select(VmMigrationRow)
            .where(or_(col(VmMigrationRow.source) == host, col(VmMigrationRow.destination) == host))
            .order_by(col(VmMigrationRow.started_at))
        )
        async with self._database.reading() as session:
            latest = {row.vm: row for row in await session.exec(touching)}
        arrived = (MigrationState.MOVED, MigrationState.MIGRATING)
        left = (MigrationState.MOVED, MigrationState.GONE)
        return sorted(
            vm
            for vm, row in latest.items()
            if (row.state in arrived if row.destination == host else row.state not in left)
        )

    async def list(self, operation: str) -> list[VmMigration]:
        """All of an operation, by VM."""
        query = (
            select(VmMigrationRow)
            .where(col(VmMigrationRow.operation) == operation)
            .order_by(col(VmMigrationRow.vm))
        )
        async with self._database.reading() as session:
            return [VmMigration(**row.model_dump()) for row in await session.exec(query)]

    async def unfinished(self, source: str, vm: str) -> dict[str, str]:
        """Migrations of the VM from `source` of which no end was recorded: operation to
        destination."""
        query = select(VmMigrationRow.operation, VmMigrationRow.destination).where(
            col(VmMigrationRow.source) == source,
            col(VmMigrationRow.vm) == vm,
            col(VmMigrationRow.finished_at).is_(None),
        )
        async with self._database.reading() as session:
            return dict((await session.exec(query)).all())

    async def unfinished_by_tls(self, source: str, vm: str) -> dict[str, str]:
        """Those of them by TLS, which may go on without Hostler."""
        query = select(VmMigrationRow.operation, VmMigrationRow.destination).where(
            col(VmMigrationRow.source) == source,
            col(VmMigrationRow.vm) == vm,
            col(VmMigrationRow.tls).is_(True),
            col(VmMigrationRow.finished_at).is_(None),
        )
        async with self._database.reading() as session:
            return dict((await session.exec(query)).all())

    async def _update(self, operation: str, vm: str, values: dict[str, object]) -> None:
        async with self._database.writing() as session:
            await session.exec(
                update(VmMigrationRow)
                .where(
                    col(VmMigrationRow.operation) == operation,
                    col(VmMigrationRow.vm) == vm,
                    col(VmMigrationRow.finished_at).is_(None),
                )
                .values(**values)
            )
