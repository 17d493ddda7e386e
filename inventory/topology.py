"""Zones, pods and clusters."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import NoReturn, TypeVar

from sqlalchemy import ColumnElement
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, func, select, update
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.errors import AlreadyExists, Conflict, LeaseHeld, NotFound
from contracts.hosts import Cluster, Pod, Zone
from contracts.leases import Owner
from contracts.states import AllocationState
from inventory.database import Database
from inventory.events import add_change, add_event
from inventory.models import ClusterRow, HostRow, PodRow, ZoneRow
from inventory.pages import page
from inventory.references import (
    ClusterHolder,
    Place,
    cluster_holders,
    delete_references,
    rename,
)

P = TypeVar("P", ZoneRow, PodRow, ClusterRow)

_MOST_NAMED = 10


class Topology:
    """Creates, reads, renames, deletes, enables and disables them. All are created `Disabled`.

    Lists are by name: at most `limit` entries (None: all) with names that come after `after`.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_zones(
        self,
        *,
        allocation_state: AllocationState | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> list[Zone]:
        """All zones, or those in that state."""
        query = select(ZoneRow).where(*_equal((ZoneRow.allocation_state, allocation_state)))
        async with self._database.reading() as session:
            rows = await session.exec(page(query, ZoneRow.name, limit=limit, after=after))
            return [_zone(row) for row in rows]

    async def list_pods(
        self,
        *,
        zone: str | None = None,
        allocation_state: AllocationState | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> list[Pod]:
        """Those that match all that is given."""
        wanted = _equal((ZoneRow.name, zone), (PodRow.allocation_state, allocation_state))
        query = select(PodRow, ZoneRow).join(ZoneRow).where(*wanted)
        async with self._database.reading() as session:
            rows = await session.exec(page(query, PodRow.name, limit=limit, after=after))
            return [_pod(*row) for row in rows]

    async def list_clusters(
        self,
        *,
        zone: str | None = None,
        pod: str | None = None,
        allocation_state: AllocationState | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> list[Cluster]:
        """Those that match all that is given."""
        wanted = _equal(
            (ZoneRow.name, zone),
            (PodRow.name, pod),
            (ClusterRow.allocation_state, allocation_state),
        )
        query = (
            select(ClusterRow, PodRow, ZoneRow)
            .join(PodRow, col(PodRow.id) == col(ClusterRow.pod_id))
            .join(ZoneRow, col(ZoneRow.id) == col(PodRow.zone_id))
            .where(*wanted)
        )
        async with self._database.reading() as session:
            rows = await session.exec(page(query, ClusterRow.name, limit=limit, after=after))
            return [_cluster(*row) for row in rows]

    async def get_zone(self, name: str) -> Zone:
        """Raises NotFound."""
        async with self._database.reading() as session:
            return _zone(await zone_row(session, name))

    async def get_pod(self, name: str) -> Pod:
        """Raises NotFound."""
        async with self._database.reading() as session:
            pod = await pod_row(session, name)
            return _pod(pod, await session.get_one(ZoneRow, pod.zone_id))

    async def get_cluster(self, name: str) -> Cluster:
        """Raises NotFound."""
        _, _, cluster = await self.get_with_parents(name)
        return cluster

    async def get_with_parents(self, cluster: str) -> tuple[Zone, Pod, Cluster]:
        """A cluster and what it is in, as they were at one moment. Raises NotFound."""
        async with self._database.reading() as session:
            row = await cluster_row(session, cluster)
            pod = await session.get_one(PodRow, row.pod_id)
            zone = await session.get_one(ZoneRow, pod.zone_id)
            return _zone(zone), _pod(pod, zone), _cluster(row, pod, zone)

    async def create_zone(self, name: str, *, actor: str) -> Zone:
        """Raises AlreadyExists."""
        async with self._naming("zone", name) as session:
            _create(session, ZoneRow(name=name), actor)
        return await self.get_zone(name)

    async def create_pod(self, name: str, zone: str, *, actor: str) -> Pod:
        """Raises AlreadyExists, NotFound (zone)."""
        async with self._naming("pod", name) as session:
            parent = await zone_row(session, zone, hold=True)
            _create(session, PodRow(name=name, zone_id=parent.id or 0), actor)
        return await self.get_pod(name)

    async def create_cluster(self, name: str, pod: str, *, actor: str) -> Cluster:
        """Raises AlreadyExists, NotFound (pod)."""
        async with self._naming("cluster", name) as session:
            parent = await pod_row(session, pod, hold=True)
            _create(session, ClusterRow(name=name, pod_id=parent.id or 0), actor)
        return await self.get_cluster(name)

    async def rename_zone(self, name: str, new: str, *, actor: str) -> Zone:
        """Its settings follow; no effect if it has that name. Raises AlreadyExists, NotFound."""
        async with self._naming("zone", new) as session:
            await _rename(session, await zone_row(session, name, lock=True), new, actor)
        return await self.get_zone(new)

    async def rename_pod(self, name: str, new: str, *, actor: str) -> Pod:
        """No effect if it has that name. Raises AlreadyExists, NotFound."""
        async with self._naming("pod", new) as session:
            await _rename(session, await pod_row(session, name, lock=True), new, actor)
        return await self.get_pod(new)

    async def rename_cluster(
        self, name: str, new: str, *, ended: Collection[Owner] = (), actor: str
    ) -> Cluster:
        """Its settings, VM policies, affinity groups and tickets follow; no effect if it has that
        name.

        `ended`: operations that are known to have ended, of all that hold something in it. Raises
        AlreadyExists, NotFound, LeaseHeld: a running operation carries the name with it.
        """
        async with self._naming("cluster", new) as session:
            row = await cluster_row(session, name, lock=True)
            for holder in await cluster_holders(session, row):
                if holder.owner not in ended:
                    raise _carried(name, holder)
            await _rename(session, row, new, actor)
        return await self.get_cluster(new)

    async def cluster_holders(self, name: str) -> list[ClusterHolder]:
        """The operations that hold one of its hosts, or a place in its queue for maintenance; those
        that have ended too, until somebody takes over. Raises NotFound."""
        async with self._database.reading() as session:
            return await cluster_holders(session, await cluster_row(session, name))

    async def delete_zone(self, name: str, *, actor: str) -> None:
        """With its settings. Raises NotFound, Conflict (it has pods)."""
        async with self._database.writing() as session:
            row = await zone_row(session, name, lock=True)
            await _delete(session, row, PodRow, col(PodRow.zone_id) == row.id, actor)

    async def delete_pod(self, name: str, *, actor: str) -> None:
        """Raises NotFound, Conflict (it has clusters)."""
        async with self._database.writing() as session:
            row = await pod_row(session, name, lock=True)
            await _delete(session, row, ClusterRow, col(ClusterRow.pod_id) == row.id, actor)

    async def delete_cluster(self, name: str, *, actor: str) -> None:
        """With its settings, VM policies and affinity groups. Raises NotFound, Conflict (it has
        hosts)."""
        async with self._database.writing() as session:
            row = await cluster_row(session, name, lock=True)
            await _delete(session, row, HostRow, col(HostRow.cluster_id) == row.id, actor)

    async def set_zone_state(
        self,
        name: str,
        state: AllocationState,
        *,
        actor: str,
        operation: str | None = None,
        reason: str = "",
    ) -> Zone:
        """Enable or disable; no effect if it is so already. Raises NotFound."""
        async with self._database.writing() as session:
            place = await zone_row(session, name)
            await _set_state(session, "zone", place, state, actor, operation, reason)
        return await self.get_zone(name)

    async def set_pod_state(
        self,
        name: str,
        state: AllocationState,
        *,
        actor: str,
        operation: str | None = None,
        reason: str = "",
    ) -> Pod:
        """Enable or disable; no effect if it is so already. Raises NotFound."""
        async with self._database.writing() as session:
            place = await pod_row(session, name)
            await _set_state(session, "pod", place, state, actor, operation, reason)
        return await self.get_pod(name)

    async def set_cluster_state(
        self,
        name: str,
        state: AllocationState,
        *,
        actor: str,
        operation: str | None = None,
        reason: str = "",
    ) -> Cluster:
        """Enable or disable; no effect if it is so already. Raises NotFound."""
        async with self._database.writing() as session:
            place = await cluster_row(session, name)
            await _set_state(session, "cluster", place, state, actor, operation, reason)
        return await self.get_cluster(name)

    @asynccontextmanager
    async def _naming(self, kind: str, name: str) -> AsyncIterator[AsyncSession]:
        """A transaction that gives one of that kind that name. Raises AlreadyExists."""
        try:
            async with self._database.writing() as session:
                yield session
        except IntegrityError as error:
            raise AlreadyExists(
                f"There is a {kind} {name!r} already.", remedy="Choose another name."
            ) from error.orig


async def zone_row(
    session: AsyncSession, name: str, *, hold: bool = False, lock: bool = False
) -> ZoneRow:
    """Raises NotFound. `hold`: it stays, under that name, until the transaction ends; `lock`: and
    nobody else holds or locks it meanwhile."""
    return await _row(session, ZoneRow, name, hold=hold, lock=lock)


async def pod_row(
    session: AsyncSession, name: str, *, hold: bool = False, lock: bool = False
) -> PodRow:
    """The same for a pod."""
    return await _row(session, PodRow, name, hold=hold, lock=lock)


async def cluster_row(
    session: AsyncSession, name: str, *, hold: bool = False, lock: bool = False
) -> ClusterRow:
    """The same for a cluster."""
    return await _row(session, ClusterRow, name, hold=hold, lock=lock)


async def _row(session: AsyncSession, table: type[P], name: str, *, hold: bool, lock: bool) -> P:
    query = select(table).where(col(table.name) == name)
    if hold or lock:
        # Changes of its state need not wait for those who only refer to it.
        query = query.with_for_update(read=not lock, key_share=not lock)
    row = (await session.exec(query)).first()
    return row if row is not None else _missing(str(table.__tablename__), name)


def _equal(*wanted: tuple[str, str | None]) -> list[ColumnElement[bool]]:
    return [col(column) == value for column, value in wanted if value is not None]


def _create(session: AsyncSession, row: Place, actor: str) -> None:
    session.add(row)
    kind = str(row.__tablename__)
    add_event(session, f"{kind}.created", f"{kind}/{row.name}", "created", actor=actor)


async def _rename(session: AsyncSession, row: Place, new: str, actor: str) -> None:
    """With a line under either name: whoever follows one of them finds the other."""
    kind, former = str(row.__tablename__), row.name
    if former == new:
        return
    await rename(session, row, new)
    add_event(session, f"{kind}.renamed", f"{kind}/{former}", f"is now {new}", actor=actor)
    add_event(session, f"{kind}.renamed", f"{kind}/{new}", f"was {former}", actor=actor)


async def _delete(
    session: AsyncSession,
    row: Place,
    inner: type[PodRow | ClusterRow | HostRow],
    is_in: ColumnElement[bool],
    actor: str,
) -> None:
    """Raises Conflict if there is any `inner` in it."""
    kind = str(row.__tablename__)
    number = (await session.exec(select(func.count()).select_from(inner).where(is_in))).one()
    if number:
        names = page(select(inner.name).where(is_in), inner.name, limit=_MOST_NAMED, after=None)
        raise _not_empty(
            f"{kind} {row.name}",
            str(inner.__tablename__),
            list(await session.exec(names)),
            number,
        )
    await delete_references(session, row, actor)
    await session.delete(row)
    add_event(session, f"{kind}.deleted", f"{kind}/{row.name}", "deleted", actor=actor)


def _not_empty(place: str, inner: str, names: list[str], number: int) -> Conflict:
    more = f" and {number - len(names)} more" if number > len(names) else ""
    verb = "Remove" if inner == "host" else "Delete"
    return Conflict(
        f"The {place} is not empty: {inner}{'s' if number > 1 else ''} {', '.join(names)}{more} "
        f"{'are' if number > 1 else 'is'} in it.",
        remedy=f"{verb} what is in it first.",
        details={f"{inner}s": names, "number": number},
    )


def _carried(cluster: str, holder: ClusterHolder) -> LeaseHeld:
    return LeaseHeld(
        f"The cluster {cluster} can't be renamed: {holder.owner.workflow_id}, which holds "
        f"{holder.host}, carries its name.",
        remedy="Wait for it, end it, or, if nobody needs it any more, terminate it in Temporal.",
        details={"workflow_id": holder.owner.workflow_id, "run_id": holder.owner.first_run_id},
    )


def _missing(kind: str, name: str) -> NoReturn:
    raise NotFound(
        f"There is no {kind} {name!r}.", remedy=f"See `hostler {kind} list` for those there are."
    )


async def _set_state(
    session: AsyncSession,
    kind: str,
    place: Place,
    state: AllocationState,
    actor: str,
    operation: str | None,
    reason: str,
) -> None:
    row = type(place)
    written = await session.exec(
        update(row)
        .where(col(row.name) == place.name, col(row.allocation_state) != state)
        .values(allocation_state=state)
    )
    if written.rowcount == 0:
        return
    (former,) = (other for other in AllocationState if other is not state)
    add_change(
        session,
        f"{kind}.state",
        f"{kind}/{place.name}",
        before=former,
        after=state,
        reason=reason,
        operation=operation,
        actor=actor,
    )


def _zone(row: ZoneRow) -> Zone:
    return Zone(
        name=row.name,
        allocation_state=AllocationState(row.allocation_state),
        oobm_enabled=row.oobm_enabled,
    )


def _pod(row: PodRow, zone: ZoneRow) -> Pod:
    return Pod(
        name=row.name, zone=zone.name, allocation_state=AllocationState(row.allocation_state)
    )


def _cluster(row: ClusterRow, pod: PodRow, zone: ZoneRow) -> Cluster:
    return Cluster(
        name=row.name,
        pod=pod.name,
        zone=zone.name,
        allocation_state=AllocationState(row.allocation_state),
        oobm_enabled=row.oobm_enabled,
    )
