"""Tombstones: machines that were removed, so that none comes back by accident."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from sqlalchemy import ColumnElement, or_
from sqlalchemy.orm import Mapped
from sqlmodel import SQLModel, col, delete, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.errors import Conflict, NotFound
from contracts.hosts import RemovedHost
from contracts.leases import LeaseRef
from contracts.removal import HostRemoved
from contracts.states import HostStatus, ResourceState
from inventory.database import Database
from inventory.events import add_event
from inventory.host_keys import key_of
from inventory.hosts import Login
from inventory.leases import verify_lease
from inventory.models import (
    ClusterRow,
    EventRow,
    HostRow,
    HostTagRow,
    MaintenanceTicketRow,
    RemovedHostRow,
    ReservationRow,
    SecretVersionRow,
    now,
)
from inventory.secrets import unclaimed

_MAX_PROBLEM_CHARS = 1000
_BEGUN = "removed.cleaning_begun"
# A host whose evacuation has ended, or that can't be reached at all.
_UNREACHED = frozenset({ResourceState.MAINTENANCE, ResourceState.REMOVED})


@dataclass(frozen=True)
class Possessions:
    """What is deleted with a host: `belongings` in words ("tags: 2"), and how many secrets."""

    belongings: tuple[str, ...]
    secrets: int


class RemovedHosts:
    """Removes hosts, keeps their tombstones, and what became of those that were not clean."""

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

    # --- removal --------------------------------------------------------------------------------

    async def preview(self, name: str) -> Possessions:
        """What `remove` would delete with the host. Raises NotFound."""
        async with self._database.reading() as session:
            row = await _host(session, name) or _missing(name)
            return Possessions(
                belongings=await _belongings(session, name), secrets=len(_secret_ids(row))
            )

    async def remove(
        self,
        lease: LeaseRef,
        *,
        reason: str,
        forced: bool,
        vms: Sequence[str],
        cleaned: bool,
        problem: str,
    ) -> HostRemoved:
        """Delete the lease's host with all that belongs to it, and leave a tombstone: both or
        nothing. Idempotent by the lease's owner.

        The credential is kept with the tombstone until the host is clean. Raises Conflict (a host
        that was cleaned and is not `Removed`, or was not and is `Up`), NotFound, LeaseLost.
        """
        operation = f"{lease.owner.workflow_id}#{lease.owner.first_run_id}"
        async with self._database.writing() as session:
            await verify_lease(session, lease, hold=True)
            row = await _host(session, lease.host, lock=True)
            if row is None:
                return await _removed_before(session, lease.host, operation)
            _check_removable(row, cleaned=cleaned)
            tombstone = RemovedHostRow(
                name=row.name,
                cluster=await _cluster(session, row),
                address=row.address,
                ssh_port=row.ssh_port,
                user=row.user,
                secret_id=None if cleaned else row.secret_id,
                # Of one that was being re-installed, the old installation may come back.
                host_key_line=key_of(row.host_key_line),
                host_key_sha256=row.host_key_sha256,
                uuid=row.uuid,
                forced=forced,
                reason=reason,
                vms=list(vms),
                operation=operation,
                cleaned_at=now() if cleaned else None,
                cleaning_problem=problem[:_MAX_PROBLEM_CHARS],
            )
            session.add(tombstone)
            secret_ids = _secret_ids(row)
            if cleaned:
                secret_ids |= await _settle_earlier(session, row)
            belongings = await _belongings(session, lease.host)
            for owned in _BELONGINGS:
                await session.exec(delete(owned.table).where(owned.of(lease.host)))
            await session.delete(row)
            await session.flush()
            await _discard(session, secret_ids)
            _add_removal_events(session, row, tombstone, lease.owner.workflow_id)
            return HostRemoved(tombstone=tombstone.id or 0, deleted=belongings)

    # --- hosts that have to be cleaned when they answer again -----------------------------------

    async def uncleaned(self) -> Sequence[RemovedHost]:
        """Those that were not clean when they were removed, and have not been cleaned since."""
        query = (
            select(RemovedHostRow)
            .where(col(RemovedHostRow.cleaned_at).is_(None))
            .order_by(col(RemovedHostRow.id))
        )
        async with self._database.reading() as session:
            return [_removed(row) for row in await session.exec(query)]

    async def present_as(self, removed: RemovedHost) -> str | None:
        """The host that is at that address now, or is that machine, whatever its name; or None."""
        marks = [
            (col(HostRow.address) == removed.address) & (col(HostRow.ssh_port) == removed.ssh_port),
            col(HostRow.host_key_sha256) == removed.host_key_sha256,
        ]
        if removed.uuid is not None:
            marks.append(col(HostRow.uuid) == removed.uuid)
        async with self._database.reading() as session:
            return (await session.exec(select(HostRow.name).where(or_(*marks)).limit(1))).first()

    async def login(self, tombstone: int) -> Login:
        """How to log in to one that is not clean. Raises NotFound."""
        async with self._database.reading() as session:
            row = await session.get(RemovedHostRow, tombstone)
        if row is None or row.secret_id is None:
            raise NotFound(f"There is no removed host {tombstone} that has to be cleaned.")
        return Login(
            address=row.address,
            port=row.ssh_port,
            user=row.user,
            host_key_line=row.host_key_line,
            secret_id=row.secret_id,
        )

    async def begin_cleaning(self, removed: RemovedHost) -> None:
        """Record that its cleaning begins, with a credential that has just logged in: a login that
        is refused from then on is the work of that. May be called many times."""
        async with self._database.writing() as session:
            if not await _has_begun(session, removed.id):
                _add_event(session, _BEGUN, removed, "it answers again and is being cleaned")

    async def cleaning_has_begun(self, removed: RemovedHost) -> bool:
        """Whether that was recorded."""
        async with self._database.reading() as session:
            return await _has_begun(session, removed.id)

    async def record_cleaned(self, removed: RemovedHost, message: str) -> None:
        """Nothing of Hostler's is left on it; its credential is deleted. No effect if that is
        recorded already."""
        async with self._database.writing() as session:
            row = await _tombstone(session, removed.id)
            if row is None or row.cleaned_at is not None:
                return
            secret_id = row.secret_id
            row.cleaned_at, row.cleaning_problem, row.secret_id = now(), "", None
            session.add(row)
            await session.flush()
            await _discard(session, {secret_id} if secret_id is not None else set())
            _add_event(session, "removed.cleaned", removed, message)

    async def record_problem(self, removed: RemovedHost, problem: str) -> None:
        """Why it could not be cleaned although something answers; an event only if that is new."""
        problem = problem[:_MAX_PROBLEM_CHARS]
        async with self._database.writing() as session:
            row = await _tombstone(session, removed.id)
            if row is None or row.cleaned_at is not None or row.cleaning_problem == problem:
                return
            row.cleaning_problem = problem
            session.add(row)
            _add_event(session, "removed.not_cleaned", removed, problem)

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
                await _discard(session, {secret} if secret is not None else set())


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


# --- what belongs to a host ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Belongings:
    """Rows of a table that go when their host goes."""

    words: str
    table: type[SQLModel]
    host_columns: tuple[Mapped[str], ...]

    def of(self, host: str) -> ColumnElement[bool]:
        return or_(*(column == host for column in self.host_columns))


# The one place that says what goes with a host, but for its row and its secrets. Leases stay, so
# that their epochs never fall, and so does all that tells the past.
_BELONGINGS = (
    _Belongings(
        "reservations",
        ReservationRow,
        (
            col(ReservationRow.destination),
            col(ReservationRow.source),
            col(ReservationRow.lease_host),
        ),
    ),
    _Belongings("tags", HostTagRow, (col(HostTagRow.host),)),
    _Belongings(
        "places in the queue for maintenance",
        MaintenanceTicketRow,
        (col(MaintenanceTicketRow.host),),
    ),
)


async def _belongings(session: AsyncSession, host: str) -> tuple[str, ...]:
    told = []
    for owned in _BELONGINGS:
        query = select(func.count()).select_from(owned.table).where(owned.of(host))
        number = (await session.exec(query)).one()
        if number:
            told.append(f"{owned.words}: {number}")
    row = await _host(session, host)
    if row is not None and row.fence is not None:
        told.append(f"the wish for a fence, of {row.fence}")
    return tuple(told)


def _secret_ids(row: HostRow) -> set[str]:
    ids = (row.secret_id, row.staged_key_id, row.password_secret_id)
    return {secret_id for secret_id in ids if secret_id is not None}


async def _discard(session: AsyncSession, secret_ids: set[str]) -> None:
    """Those that nobody else refers to."""
    await session.exec(
        delete(SecretVersionRow).where(col(SecretVersionRow.id).in_(secret_ids), unclaimed())
    )


# --- the removal --------------------------------------------------------------------------------


def _check_removable(row: HostRow, *, cleaned: bool) -> None:
    state = ResourceState(row.resource_state)
    if cleaned and state is not ResourceState.REMOVED:
        raise Conflict(f"{row.name} is {state}: its removal has not begun.")
    if not cleaned and state not in _UNREACHED and row.status == HostStatus.UP:
        raise Conflict(f"{row.name} is {HostStatus.UP} and {state}: it is not lost.")


async def _cluster(session: AsyncSession, row: HostRow) -> str:
    return (
        await session.exec(select(ClusterRow.name).where(col(ClusterRow.id) == row.cluster_id))
    ).one()


async def _settle_earlier(session: AsyncSession, row: HostRow) -> set[str]:
    """The same machine's earlier tombstones are clean with it; the secrets that they had kept."""
    marks = [col(RemovedHostRow.host_key_sha256) == row.host_key_sha256]
    if row.uuid is not None:
        marks.append(col(RemovedHostRow.uuid) == row.uuid)
    kept: set[str] = set()
    for earlier in await session.exec(
        select(RemovedHostRow).where(or_(*marks), col(RemovedHostRow.cleaned_at).is_(None))
    ):
        kept |= {earlier.secret_id} if earlier.secret_id is not None else set()
        earlier.cleaned_at, earlier.cleaning_problem, earlier.secret_id = now(), "", None
        session.add(earlier)
    return kept


async def _removed_before(session: AsyncSession, name: str, operation: str) -> HostRemoved:
    query = select(RemovedHostRow).where(
        col(RemovedHostRow.name) == name, col(RemovedHostRow.operation) == operation
    )
    row = (await session.exec(query)).first() or _missing(name)
    return HostRemoved(tombstone=row.id or 0, deleted=())


def _add_removal_events(
    session: AsyncSession, row: HostRow, tombstone: RemovedHostRow, operation: str
) -> None:
    subject, reason = f"host/{row.name}", tombstone.reason or "no reason given"
    if row.resource_state != ResourceState.REMOVED:
        add_event(
            session,
            "host.state",
            subject,
            f"{row.resource_state} -> {ResourceState.REMOVED}: {reason}",
            operation=operation,
            actor=operation,
        )
    told = [f"removed ({'forced: ' if tombstone.forced else ''}{reason})"]
    if tombstone.cleaned_at is None:
        told.append(
            f"not clean yet, and cleaned when it answers again: {tombstone.cleaning_problem}"
        )
    if tombstone.vms:
        told.append(f"VMs left or last seen there: {', '.join(tombstone.vms)}")
    add_event(
        session, "host.removed", subject, "; ".join(told), operation=operation, actor=operation
    )


# --- rows ---------------------------------------------------------------------------------------


async def _host(session: AsyncSession, name: str, *, lock: bool = False) -> HostRow | None:
    query = select(HostRow).where(col(HostRow.name) == name)
    return (await session.exec(query.with_for_update() if lock else query)).first()


async def _tombstone(session: AsyncSession, tombstone: int) -> RemovedHostRow | None:
    query = select(RemovedHostRow).where(col(RemovedHostRow.id) == tombstone)
    return (await session.exec(query.with_for_update())).first()


async def _has_begun(session: AsyncSession, tombstone: int) -> bool:
    query = select(EventRow.id).where(
        col(EventRow.kind) == _BEGUN, col(EventRow.operation) == _operation(tombstone)
    )
    return (await session.exec(query.limit(1))).first() is not None


def _add_event(session: AsyncSession, kind: str, removed: RemovedHost, message: str) -> None:
    operation = _operation(removed.id)
    add_event(session, kind, f"host/{removed.name}", message, operation=operation, actor=operation)


def _operation(tombstone: int) -> str:
    return f"removed-host/{tombstone}"


def _missing(name: str) -> NoReturn:
    raise NotFound(
        f"There is no host {name!r}.", remedy="See `hostler host list` for those there are."
    )


def _removed(row: RemovedHostRow) -> RemovedHost:
    return RemovedHost.model_validate(
        {name: getattr(row, name) for name in RemovedHost.model_fields}
    )
