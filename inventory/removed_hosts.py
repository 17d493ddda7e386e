"""Tombstones: machines that were removed, so that none comes back by accident."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from sqlalchemy import ColumnElement, false, or_
from sqlalchemy.orm import Mapped
from sqlmodel import SQLModel, col, delete, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.errors import Conflict, NotFound
from contracts.hosts import RemovedHost
from contracts.leases import LeaseRef
from contracts.removal import HostRemoved
from contracts.states import HostStatus, ResourceState
from inventory.database import Database
from inventory.events import add_change, add_event
from inventory.host_keys import key_of
from inventory.hosts import Login, secret_ids_of
from inventory.leases import verify_lease
from inventory.models import (
    CertificateUpkeepRow,
    ClusterRow,
    EventRow,
    HostPasswordRow,
    HostRow,
    HostTagRow,
    MaintenanceTicketRow,
    OobmRow,
    PasswordAttemptRow,
    PasswordCheckRow,
    PowerCommandRow,
    RemovedHostRow,
    ReservationRow,
    RolloverOmissionRow,
    SecretVersionRow,
    now,
)
from inventory.own_keys import is_leaving
from inventory.secrets import unclaimed

_MAX_PROBLEM_CHARS = 1000
_LEAVING = "removed.key_leaves"
# A host whose evacuation has ended, or that can't be reached at all.
_UNREACHED = frozenset({ResourceState.MAINTENANCE, ResourceState.REMOVED})


@dataclass(frozen=True)
class Possessions:
    """What is deleted with a host: `belongings` in words ("tags: 2"), and how many secrets."""

    belongings: tuple[str, ...]
    secrets: int


@dataclass(frozen=True)
class FormerKey:
    """One that lets Hostler in as `user`, put there when the host was called `name`."""

    name: str
    user: str


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
                belongings=await _belongings(session, name),
                secrets=len(await secret_ids_of(session, row)),
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
            secret_ids = await secret_ids_of(session, row)
            if cleaned:
                secret_ids |= await _settle_earlier(session, row)
            elif await is_leaving(session, row.name):
                await session.flush()
                _add_leaving(session, _removed(tombstone))
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
        """Those that were not clean when they were removed, and are still to be cleaned."""
        query = select(RemovedHostRow).where(*_waiting()).order_by(col(RemovedHostRow.id))
        async with self._database.reading() as session:
            return [_removed(row) for row in await session.exec(query)]

    async def present_as(self, removed: RemovedHost) -> str | None:
        """The host that is at that address now, or is that machine, whatever its name; or None."""
        there = (col(HostRow.address) == removed.address) & (
            col(HostRow.ssh_port) == removed.ssh_port
        )
        machine = _is_machine(HostRow, removed.uuid, removed.host_key_sha256)
        async with self._database.reading() as session:
            return (
                await session.exec(select(HostRow.name).where(there | machine).limit(1))
            ).first()

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

    async def record_key_leaving(self, removed: RemovedHost) -> None:
        """Its key is taken off it now, and nothing else is left there: a login that is refused from
        then on is the work of that. May be called many times."""
        async with self._database.writing() as session:
            if not await _key_leaves(session, removed.id):
                _add_leaving(session, removed)

    async def key_leaves(self, removed: RemovedHost) -> bool:
        """Whether that was recorded."""
        async with self._database.reading() as session:
            return await _key_leaves(session, removed.id)

    async def record_cleaned(self, removed: RemovedHost, message: str) -> None:
        """Nothing of Hostler's is left on it; its credential is deleted. No effect if that is
        recorded already."""
        async with self._database.writing() as session:
            row = await _tombstone(session, removed.id)
            if row is None or not _waits(row):
                return
            row.cleaned_at, row.cleaning_problem = now(), ""
            await _drop_secret(session, row)
            _add_event(session, "removed.cleaned", removed, message)

    async def record_problem(self, removed: RemovedHost, problem: str) -> None:
        """Why it could not be cleaned although something answers; an event only if that is new."""
        problem = problem[:_MAX_PROBLEM_CHARS]
        async with self._database.writing() as session:
            row = await _tombstone(session, removed.id)
            if row is None or not _waits(row) or row.cleaning_problem == problem:
                return
            row.cleaning_problem = problem
            session.add(row)
            _add_event(session, "removed.not_cleaned", removed, problem)

    async def record_tried(self, removed: RemovedHost) -> None:
        """It could not be cleaned just now."""
        async with self._database.writing() as session:
            row = await _tombstone(session, removed.id)
            if row is not None and _waits(row):
                row.tried_at = now()
                session.add(row)

    async def settle(self, tombstone: int, *, reason: str, actor: str) -> RemovedHost:
        """The machine never comes back, or is clean as somebody knows: nobody tries to clean it any
        more, and the credential for that is deleted. No effect if it is settled already. Raises
        NotFound, Conflict (it is clean)."""
        async with self._database.writing() as session:
            row = await _tombstone(session, tombstone)
            if row is None:
                raise NotFound(
                    f"There is no removed host {tombstone}.",
                    remedy="See `hostler host removed` for those there are.",
                )
            if row.cleaned_at is not None:
                raise Conflict(f"{row.name} (removed host {tombstone}) is clean: nothing waits.")
            if row.settled_at is None:
                await _settle(session, row, reason)
                add_event(
                    session,
                    "removed.settled",
                    f"host/{row.name}",
                    f"is not cleaned any more, and its credential is deleted: {reason}",
                    operation=_operation(tombstone),
                    actor=actor,
                )
            return _removed(row)

    async def take_back(self, host: str, *, lease: LeaseRef) -> None:
        """The machine is in the inventory again, as `host`: nobody cleans it as a removed one, and
        the credential for that is deleted. May be called many times. Raises LeaseLost."""
        async with self._database.writing() as session:
            await verify_lease(session, lease, hold=True)
            row = (await session.exec(select(HostRow).where(col(HostRow.name) == host))).one()
            for tombstone in await _uncleaned_as(session, row):
                await _settle(session, tombstone, f"it was added again as {host}")

    async def former_keys(self, host: str) -> Sequence[FormerKey]:
        """Keys of Hostler's that the machine may have from before: of each name that it had and
        under which it was never seen clean, and of each user who logged in then."""
        async with self._database.reading() as session:
            row = (await session.exec(select(HostRow).where(col(HostRow.name) == host))).one()
            query = (
                select(RemovedHostRow.name, RemovedHostRow.user)
                .where(
                    _is_machine(RemovedHostRow, row.uuid, row.host_key_sha256),
                    col(RemovedHostRow.settled_at).is_not(None),
                )
                .distinct()
            )
            return [FormerKey(*found) for found in sorted(await session.exec(query))]


async def find_tombstone(
    session: AsyncSession, *, uuid: str | None, host_key_sha256: str | None
) -> RemovedHostRow | None:
    """The row of the latest, if there is any."""
    query = (
        select(RemovedHostRow)
        .where(_is_machine(RemovedHostRow, uuid, host_key_sha256))
        .order_by(col(RemovedHostRow.id).desc())
    )
    return (await session.exec(query.limit(1))).first()


async def _uncleaned_as(session: AsyncSession, row: HostRow) -> Sequence[RemovedHostRow]:
    """The tombstones of that machine that are still to be cleaned, by whatever name."""
    query = select(RemovedHostRow).where(
        _is_machine(RemovedHostRow, row.uuid, row.host_key_sha256), *_waiting()
    )
    return (await session.exec(query)).all()


def _waiting() -> tuple[ColumnElement[bool], ...]:
    """Of tombstones that are still to be cleaned."""
    return col(RemovedHostRow.cleaned_at).is_(None), col(RemovedHostRow.settled_at).is_(None)


def _waits(row: RemovedHostRow) -> bool:
    """The same of one that was read."""
    return row.cleaned_at is None and row.settled_at is None


async def _settle(session: AsyncSession, row: RemovedHostRow, why: str) -> None:
    row.settled_at, row.cleaning_problem = now(), why[:_MAX_PROBLEM_CHARS]
    await _drop_secret(session, row)


async def _drop_secret(session: AsyncSession, row: RemovedHostRow) -> None:
    """Of a tombstone whose other changes are written with that."""
    secret, row.secret_id = row.secret_id, None
    session.add(row)
    await session.flush()
    await _discard(session, {secret} if secret is not None else set())


def _is_machine(
    table: type[HostRow] | type[RemovedHostRow], uuid: str | None, host_key_sha256: str | None
) -> ColumnElement[bool]:
    """A row of the machine with that UUID or host key, as far as they are known."""
    known = ((col(table.uuid), uuid), (col(table.host_key_sha256), host_key_sha256))
    return or_(false(), *(column == value for column, value in known if value is not None))


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
    _Belongings("notes of its password", HostPasswordRow, (col(HostPasswordRow.host),)),
    _Belongings("passwords it may have", PasswordAttemptRow, (col(PasswordAttemptRow.host),)),
    _Belongings("checks of its password", PasswordCheckRow, (col(PasswordCheckRow.host),)),
    _Belongings(
        "notes of its certificates", CertificateUpkeepRow, (col(CertificateUpkeepRow.host),)
    ),
    _Belongings(
        "places outside of a rollover", RolloverOmissionRow, (col(RolloverOmissionRow.host),)
    ),
    _Belongings(
        "places in the queue for maintenance",
        MaintenanceTicketRow,
        (col(MaintenanceTicketRow.host),),
    ),
    _Belongings("out-of-band management", OobmRow, (col(OobmRow.host),)),
    _Belongings("commands to its BMC", PowerCommandRow, (col(PowerCommandRow.host),)),
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
    kept: set[str] = set()
    for earlier in await _uncleaned_as(session, row):
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
        add_change(
            session,
            "host.state",
            subject,
            before=row.resource_state,
            after=ResourceState.REMOVED,
            reason=reason,
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


async def _key_leaves(session: AsyncSession, tombstone: int) -> bool:
    query = select(EventRow.id).where(
        col(EventRow.kind) == _LEAVING, col(EventRow.operation) == _operation(tombstone)
    )
    return (await session.exec(query.limit(1))).first() is not None


def _add_event(session: AsyncSession, kind: str, removed: RemovedHost, message: str) -> None:
    operation = _operation(removed.id)
    add_event(session, kind, f"host/{removed.name}", message, operation=operation, actor=operation)


def _add_leaving(session: AsyncSession, removed: RemovedHost) -> None:
    message = "nothing of Hostler's is left on it but its key, which goes now"
    _add_event(session, _LEAVING, removed, message)


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
