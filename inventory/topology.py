"""Zones, pods and clusters."""

from typing import NoReturn

from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.errors import AlreadyExists, NotFound
from contracts.hosts import Cluster, Pod, Zone
from contracts.states import AllocationState
from inventory.database import Database
from inventory.events import add_event
from inventory.models import ClusterRow, PodRow, ZoneRow

_Place = ZoneRow | PodRow | ClusterRow


class Topology:
    """Creates, reads, enables and disables them. All are created `Disabled`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_zones(self) -> list[Zone]:
        """All zones, by name."""
        async with self._database.reading() as session:
            rows = await session.exec(select(ZoneRow).order_by(col(ZoneRow.name)))
            return [_zone(row) for row in rows]

    async def list_pods(self, *, zone: str | None = None) -> list[Pod]:
        """All pods, or those of a zone, by name."""
        query = select(PodRow, ZoneRow).join(ZoneRow).order_by(col(PodRow.name))
        if zone is not None:
            query = query.where(col(ZoneRow.name) == zone)
        async with self._database.reading() as session:
            return [_pod(*row) for row in await session.exec(query)]

    async def list_clusters(
        self, *, zone: str | None = None, pod: str | None = None
    ) -> list[Cluster]:
        """All clusters, or those of a zone or pod, by name."""
        query = (
            select(ClusterRow, PodRow, ZoneRow)
            .join(PodRow, col(PodRow.id) == col(ClusterRow.pod_id))
            .join(ZoneRow, col(ZoneRow.id) == col(PodRow.zone_id))
            .order_by(col(ClusterRow.name))
        )
        if zone is not None:
            query = query.where(col(ZoneRow.name) == zone)
        if pod is not None:
            query = query.where(col(PodRow.name) == pod)
        async with self._database.reading() as session:
            return [_cluster(*row) for row in await session.exec(query)]

    async def get_zone(self, name: str) -> Zone:
        """Raises NotFound."""
        async with self._database.reading() as session:
            return _zone(await zone_row(session, name))

    async def get_pod(self, name: str) -> Pod:
        """Raises NotFound."""
        found = [pod for pod in await self.list_pods() if pod.name == name]
        return found[0] if found else _missing("pod", name)

    async def get_cluster(self, name: str) -> Cluster:
        """Raises NotFound."""
        found = [cluster for cluster in await self.list_clusters() if cluster.name == name]
        return found[0] if found else _missing("cluster", name)

    async def create_zone(self, name: str, *, actor: str) -> Zone:
        """Raises AlreadyExists."""
        await self._create("zone", ZoneRow(name=name), actor)
        return await self.get_zone(name)

    async def create_pod(self, name: str, zone: str, *, actor: str) -> Pod:
        """Raises AlreadyExists, NotFound (zone)."""
        async with self._database.reading() as session:
            parent = await zone_row(session, zone)
        await self._create("pod", PodRow(name=name, zone_id=parent.id or 0), actor)
        return await self.get_pod(name)

    async def create_cluster(self, name: str, pod: str, *, actor: str) -> Cluster:
        """Raises AlreadyExists, NotFound (pod)."""
        async with self._database.reading() as session:
            parent = await pod_row(session, pod)
        await self._create("cluster", ClusterRow(name=name, pod_id=parent.id or 0), actor)
        return await self.get_cluster(name)

    async def set_zone_state(self, name: str, state: AllocationState, *, actor: str) -> Zone:
        """Enable or disable; no effect if it is so already. Raises NotFound."""
        async with self._database.writing() as session:
            _set_state(session, "zone", await zone_row(session, name), state, actor)
        return await self.get_zone(name)

    async def set_pod_state(self, name: str, state: AllocationState, *, actor: str) -> Pod:
        """Enable or disable; no effect if it is so already. Raises NotFound."""
        async with self._database.writing() as session:
            _set_state(session, "pod", await pod_row(session, name), state, actor)
        return await self.get_pod(name)

    async def set_cluster_state(self, name: str, state: AllocationState, *, actor: str) -> Cluster:
        """Enable or disable; no effect if it is so already. Raises NotFound."""
        async with self._database.writing() as session:
            _set_state(session, "cluster", await cluster_row(session, name), state, actor)
        return await self.get_cluster(name)

    async def _create(self, kind: str, row: _Place, actor: str) -> None:
        name = row.name
        try:
            async with self._database.writing() as session:
                session.add(row)
                await session.flush()
                add_event(session, f"{kind}.created", f"{kind}/{name}", "created", actor=actor)
        except IntegrityError as error:
            raise AlreadyExists(
                f"There is a {kind} {name!r} already.", remedy="Choose another name."
            ) from error.orig


async def zone_row(session: AsyncSession, name: str) -> ZoneRow:
    """Raises NotFound."""
    row = (await session.exec(select(ZoneRow).where(col(ZoneRow.name) == name))).first()
    return row or _missing("zone", name)


async def pod_row(session: AsyncSession, name: str) -> PodRow:
    """Raises NotFound."""
    row = (await session.exec(select(PodRow).where(col(PodRow.name) == name))).first()
    return row or _missing("pod", name)


async def cluster_row(session: AsyncSession, name: str) -> ClusterRow:
    """Raises NotFound."""
    row = (await session.exec(select(ClusterRow).where(col(ClusterRow.name) == name))).first()
    return row or _missing("cluster", name)


def _missing(kind: str, name: str) -> NoReturn:
    raise NotFound(
        f"There is no {kind} {name!r}.", remedy=f"See `hostler {kind} list` for those there are."
    )


def _set_state(
    session: AsyncSession, kind: str, row: _Place, state: AllocationState, actor: str
) -> None:
    if row.allocation_state == state:
        return
    message = f"{row.allocation_state} -> {state}"
    row.allocation_state = state
    session.add(row)
    add_event(session, f"{kind}.state", f"{kind}/{row.name}", message, actor=actor)


def _zone(row: ZoneRow) -> Zone:
    return Zone(name=row.name, allocation_state=AllocationState(row.allocation_state))


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
    )
