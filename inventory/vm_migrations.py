"""How far the VMs of an evacuation are: what people watch, not what decides."""

from sqlmodel import col, select, update

from contracts.vms import MigrationState, VmMigration
from inventory.database import Database
from inventory.models import VmMigrationRow, now
from inventory.upsert import insert_or_replace


class VmMigrations:
    """One row per VM and operation; `operation` is "workflow id#first run id"."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def start(
        self, operation: str, vm: str, source: str, destination: str, attempt: int
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
                ),
            )

    async def progress(
        self, operation: str, vm: str, percent: int, rate_mib_s: float, remaining_mib: float
    ) -> None:
        """How far the running migration is."""
        values: dict[str, object] = {
            "percent": percent,
            "rate_mib_s": rate_mib_s,
            "remaining_mib": remaining_mib,
        }
        await self._update(operation, vm, values)

    async def finish(
        self, operation: str, vm: str, state: MigrationState, error: str | None
    ) -> None:
        """How it ended; no effect if it never began."""
        values: dict[str, object] = {"state": state, "error": error, "finished_at": now()}
        if state is MigrationState.MOVED:
            values |= {"percent": 100, "remaining_mib": 0}
        await self._update(operation, vm, values)

    async def close(self, source: str) -> None:
        """None from `source` is under way any more: those without an end were cut off."""
        async with self._database.writing() as session:
            await session.exec(
                update(VmMigrationRow)
                .where(
                    col(VmMigrationRow.source) == source, col(VmMigrationRow.finished_at).is_(None)
                )
                .values(state=MigrationState.CANCELED, finished_at=now())
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

    async def unfinished(self, source: str, vm: str) -> set[str]:
        """Destinations of migrations of the VM from `source` of which no end was recorded."""
        query = select(VmMigrationRow.destination).where(
            col(VmMigrationRow.source) == source,
            col(VmMigrationRow.vm) == vm,
            col(VmMigrationRow.finished_at).is_(None),
        )
        async with self._database.reading() as session:
            return set(await session.exec(query))

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
