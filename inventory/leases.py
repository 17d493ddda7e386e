"""Leases: which operation may change a host. Whether a holder still runs, others must ask."""

from collections.abc import Collection, Sequence

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.errors import LeaseHeld, LeaseLost
from contracts.leases import Lease, LeaseRef, LeaseScope, Owner
from inventory.database import Database
from inventory.events import add_event
from inventory.models import LeaseRow, now
from inventory.upsert import insert_all_if_absent

# Room for LeaseRef.closing_epoch.
_EPOCH_STEP = 2
_AT_A_TIME = 500  # of names in one statement


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
        (lease,) = await self.acquire_all(
            [host], scope, owner, purpose, takeover_from={takeover_from} if takeover_from else ()
        )
        return lease

    async def acquire_all(
        self,
        hosts: Collection[str],
        scope: LeaseScope,
        owner: Owner,
        purpose: str,
        *,
        takeover_from: Collection[Owner] = (),
    ) -> list[Lease]:
        """The same for many hosts: the leases of all, by name, or of none."""
        names = sorted(hosts)
        async with self._database.writing() as session:
            await insert_all_if_absent(
                session, [LeaseRow(host=host, scope=scope) for host in names]
            )
            rows = await _rows(session, names, scope, lock=True)
            for row in rows:
                holder = _owner(row)
                if holder == owner:
                    continue
                if holder is not None and holder not in takeover_from:
                    raise _held(row, holder)
                _take(session, row, owner, purpose, predecessor=holder)
            return [_lease(row, owner) for row in rows]

    async def verify(self, lease: LeaseRef) -> None:
        """Raises LeaseLost unless that owner still holds it, under that epoch."""
        async with self._database.reading() as session:
            await verify_lease(session, lease)

    async def release(self, lease: LeaseRef) -> None:
        """Give it back; no effect if that owner does not hold it."""
        await self.release_all([lease])

    async def release_all(self, leases: Sequence[LeaseRef]) -> None:
        """The same for many."""
        async with self._database.writing() as session:
            for scope in sorted({lease.scope for lease in leases}):
                wanted = {lease.host: lease for lease in leases if lease.scope is scope}
                for row in await _rows(session, sorted(wanted), scope, lock=True):
                    if _lost(wanted[row.host], row) is None:
                        row.workflow_id = row.first_run_id = None
                        row.predecessor_workflow_id = row.predecessor_first_run_id = None
                        session.add(row)

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
    (lost,) = await lost_leases(session, [lease], hold=hold)
    if lost is not None:
        raise lost


async def lost_leases(
    session: AsyncSession, leases: Sequence[LeaseRef], *, hold: bool = False
) -> list[LeaseLost | None]:
    """The same for many: of each, what is to be raised, if anything."""
    there: dict[tuple[str, str], LeaseRow] = {}
    for scope in sorted({lease.scope for lease in leases}):
        hosts = sorted({lease.host for lease in leases if lease.scope is scope})
        rows = await _rows(session, hosts, scope, hold=hold)
        there |= {(row.host, row.scope): row for row in rows}
    return [_lost(lease, there.get((lease.host, lease.scope))) for lease in leases]


def _lost(lease: LeaseRef, row: LeaseRow | None) -> LeaseLost | None:
    if row is not None and row.epoch == lease.epoch and _owner(row) == lease.owner:
        return None
    holder = row.workflow_id if row is not None else None
    return LeaseLost(
        f"{lease.owner.workflow_id} no longer holds {lease.host}"
        + (f": {holder} has taken it over." if holder else "."),
    )


async def _rows(
    session: AsyncSession,
    hosts: Sequence[str],
    scope: LeaseScope,
    *,
    lock: bool = False,
    hold: bool = False,
) -> list[LeaseRow]:
    """Those there are, by host: all who lock several do so in that order. `lock`: to change them;
    `hold`: nobody else changes them until the transaction ends."""
    rows: list[LeaseRow] = []
    for start in range(0, len(hosts), _AT_A_TIME):
        query = (
            select(LeaseRow)
            .where(
                col(LeaseRow.host).in_(hosts[start : start + _AT_A_TIME]),
                col(LeaseRow.scope) == scope,
            )
            .order_by(col(LeaseRow.host))
        )
        if lock or hold:
            query = query.with_for_update(read=not lock)
        rows += (await session.exec(query)).all()
    return rows


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
