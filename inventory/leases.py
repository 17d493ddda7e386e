"""Leases: which operation may change a host. Whether a holder still runs, others must ask."""

from sqlmodel import col, select, update
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.errors import LeaseHeld, LeaseLost
from contracts.leases import Lease, LeaseRef, LeaseScope, Owner
from inventory.database import Database
from inventory.events import add_event
from inventory.models import LeaseRow, now
from inventory.upsert import insert_if_absent

# Room for LeaseRef.closing_epoch.
_EPOCH_STEP = 2


class Leases:
    """Acquire, check, release."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def acquire(
        self,
        host: str,
        scope: LeaseScope,
        owner: Owner,
        purpose: str,
        *,
        takeover_from: Owner | None = None,
    ) -> Lease:
        """Take the lease if nobody or `takeover_from` holds it; the epoch rises by 2.

        Idempotent by owner: a repetition gives the same lease. Raises LeaseHeld, with the
        `holder` in its details.
        """
        async with self._database.writing() as session:
            await insert_if_absent(session, LeaseRow(host=host, scope=scope))
            row = (
                await session.exec(
                    select(LeaseRow)
                    .where(col(LeaseRow.host) == host, col(LeaseRow.scope) == scope)
                    .with_for_update()
                )
            ).one()
            holder = _owner(row)
            if holder != owner:
                if holder not in (None, takeover_from):
                    raise _held(row, holder)
                _take(session, row, owner, purpose, predecessor=holder)
            return _lease(row, owner)

    async def verify(self, lease: LeaseRef) -> None:
        """Raises LeaseLost unless that owner still holds it, under that epoch."""
        async with self._database.reading() as session:
            await verify_lease(session, lease)

    async def release(self, lease: LeaseRef) -> None:
        """Give it back; no effect if that owner does not hold it."""
        async with self._database.writing() as session:
            await session.exec(
                update(LeaseRow)
                .where(
                    col(LeaseRow.host) == lease.host,
                    col(LeaseRow.scope) == lease.scope,
                    col(LeaseRow.epoch) == lease.epoch,
                    col(LeaseRow.workflow_id) == lease.owner.workflow_id,
                    col(LeaseRow.first_run_id) == lease.owner.first_run_id,
                )
                .values(
                    workflow_id=None,
                    first_run_id=None,
                    predecessor_workflow_id=None,
                    predecessor_first_run_id=None,
                )
            )

    async def find(self, host: str, scope: LeaseScope = LeaseScope.PLACEMENT) -> Lease | None:
        """The lease as it is held now, or None."""
        async with self._database.reading() as session:
            row = await session.get(LeaseRow, (host, scope))
        owner = _owner(row) if row is not None else None
        return _lease(row, owner) if row is not None and owner is not None else None

    async def last_epoch(self, host: str, scope: LeaseScope = LeaseScope.PLACEMENT) -> int:
        """The highest that an operation on a host of that name may have left on it; 0 if there was
        none."""
        async with self._database.reading() as session:
            row = await session.get(LeaseRow, (host, scope))
        return row.epoch + _EPOCH_STEP - 1 if row is not None else 0


async def verify_lease(session: AsyncSession, lease: LeaseRef, *, hold: bool = False) -> None:
    """The same in a transaction; `hold`: nobody takes it over before that has ended.

    What an operation writes is written only while it holds the lease: a worker that was stopped
    and goes on later must not undo what came after.
    """
    query = select(LeaseRow).where(
        col(LeaseRow.host) == lease.host, col(LeaseRow.scope) == lease.scope
    )
    row = (await session.exec(query.with_for_update(read=True) if hold else query)).first()
    if row is None or row.epoch != lease.epoch or _owner(row) != lease.owner:
        holder = row.workflow_id if row is not None else None
        raise LeaseLost(
            f"{lease.owner.workflow_id} no longer holds {lease.host}"
            + (f": {holder} has taken it over." if holder else "."),
        )


def _take(
    session: AsyncSession, row: LeaseRow, owner: Owner, purpose: str, *, predecessor: Owner | None
) -> None:
    row.workflow_id, row.first_run_id = owner.workflow_id, owner.first_run_id
    row.predecessor_workflow_id = predecessor.workflow_id if predecessor else None
    row.predecessor_first_run_id = predecessor.first_run_id if predecessor else None
    row.purpose, row.acquired_at = purpose, now()
    row.epoch += _EPOCH_STEP
    session.add(row)
    if predecessor is not None:
        add_event(
            session,
            "lease.taken_over",
            f"host/{row.host}",
            f"{row.scope}: from {predecessor.workflow_id}, which has ended",
            operation=owner.workflow_id,
            actor=owner.workflow_id,
        )


def _held(row: LeaseRow, holder: Owner | None) -> LeaseHeld:
    return LeaseHeld(
        f"{row.host} is held by {row.workflow_id} ({row.purpose}).",
        remedy="Wait for it, end it, or, if nobody needs it any more, terminate it in Temporal.",
        details={
            "holder": holder.model_dump() if holder else None,
            "workflow_id": row.workflow_id,
            "run_id": row.first_run_id,
        },
    )


def _owner(row: LeaseRow) -> Owner | None:
    if row.workflow_id is None or row.first_run_id is None:
        return None
    return Owner(workflow_id=row.workflow_id, first_run_id=row.first_run_id)


def _lease(row: LeaseRow, owner: Owner) -> Lease:
    predecessor = None
    if row.predecessor_workflow_id is not None and row.predecessor_first_run_id is not None:
        predecessor = Owner(
            workflow_id=row.predecessor_workflow_id, first_run_id=row.predecessor_first_run_id
        )
    return Lease(
        host=row.host,
        scope=LeaseScope(row.scope),
        owner=owner,
        epoch=row.epoch,
        purpose=row.purpose,
        taken_over_from=predecessor,
    )
