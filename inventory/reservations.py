"""Room set aside on destinations, and slots for migrations, across all operations."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, or_
from sqlmodel import col, delete, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from contracts.errors import NotFound
from contracts.leases import LeaseRef, LeaseScope
from contracts.states import AllocationState, HostStatus, ResourceState
from inventory.database import Database
from inventory.errors import DestinationFull, DestinationUnfit, SlotsBusy
from inventory.leases import verify_lease
from inventory.models import ClusterRow, HostRow, LeaseRow, PodRow, ReservationRow, ZoneRow


@dataclass(frozen=True)
class Reservation:
    """Room at `destination` for a VM that is on its way there, or (not `migrating`) planned."""

    destination: str
    source: str
    lease_host: str
    epoch: int
    migrating: bool
    vm: str
    vm_uuid: str
    memory_mib: int
    vcpus: int


@dataclass(frozen=True)
class Reserved:
    """The sum of a destination's reservations."""

    memory_mib: int
    vcpus: int


class Reservations:
    """Reserve, release, count."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def reserve(
        self,
        destination: str,
        *,
        vm_uuid: str,
        vm: str,
        memory_mib: int,
        vcpus: int,
        source: str,
        lease: LeaseRef,
        memory_free_mib: int,
        cpus_free: int,
        max_parallel_per_host: int,
        counted: frozenset[str] = frozenset(),
    ) -> None:
        """Set room aside at `destination` and a slot at both ends; idempotent by VM.

        What was planned for the VM elsewhere is given back. `memory_free_mib` and `cpus_free` are
        what the destination has before reservations, with the VMs in `counted` (UUIDs) taken off.
        Raises DestinationUnfit (it takes no VM now), DestinationFull, SlotsBusy (also while a
        libvirtd of the two is restarted), NotFound, LeaseLost.
        """
        async with self._database.writing() as session:
            await verify_lease(session, lease, hold=True)
            await _lock_hosts(session, destination, source)
            await check_fit(session, destination)
            rows = (await session.exec(_touching(destination, source))).all()
            # What an earlier attempt has begun goes on: a restart waits for its end.
            if not any(
                row.migrating and (row.vm_uuid, row.destination) == (vm_uuid, destination)
                for row in rows
            ):
                await _check_restarts(session, destination, source)
            others = [row for row in rows if row.vm_uuid != vm_uuid]
            _check_slots(others, (source, destination), max_parallel_per_host)
            coming = [
                row
                for row in others
                if row.destination == destination and row.vm_uuid not in counted
            ]
            _check_room(
                destination,
                vm,
                ("MiB of memory", memory_mib, memory_free_mib - sum(r.memory_mib for r in coming)),
                ("CPUs", vcpus, cpus_free - sum(r.vcpus for r in coming)),
            )
            await session.exec(
                delete(ReservationRow).where(
                    col(ReservationRow.vm_uuid) == vm_uuid,
                    or_(
                        col(ReservationRow.source) == source,
                        col(ReservationRow.destination) == destination,
                    ),
                )
            )
            session.add(
                ReservationRow(
                    destination=destination,
                    source=source,
                    lease_host=lease.host,
                    epoch=lease.epoch,
                    vm_uuid=vm_uuid,
                    vm=vm,
                    memory_mib=memory_mib,
                    vcpus=vcpus,
                )
            )

    async def release(self, destination: str, vm_uuid: str, lease: LeaseRef) -> None:
        """Give back what the lease's operation reserved for the VM; no effect if nothing."""
        await self._delete(
            col(ReservationRow.destination) == destination,
            col(ReservationRow.vm_uuid) == vm_uuid,
            *_owned_by(lease.host, lease.epoch),
        )

    async def release_all(self, lease: LeaseRef) -> None:
        """Give back all that this operation, or one before it on the host, reserved."""
        await self._delete(
            col(ReservationRow.lease_host) == lease.host, col(ReservationRow.epoch) <= lease.epoch
        )

    async def discard(self, reservation: Reservation) -> None:
        """Give one back, whoever owned it; no effect if it is gone or was made anew."""
        await self._delete(
            col(ReservationRow.destination) == reservation.destination,
            col(ReservationRow.vm_uuid) == reservation.vm_uuid,
            *_owned_by(reservation.lease_host, reservation.epoch),
        )

    async def pointing_at(self, host: str) -> list[Reservation]:
        """VMs on their way to the host; not those that are only planned to come."""
        return await self._select(
            (col(ReservationRow.destination) == host) & col(ReservationRow.migrating)
        )

    async def migrating(self, host: str) -> list[str]:
        """VMs on their way from or to the host, by name; those whose reservation is being written
        are waited for. Whoever holds the host's lease `libvirtd` finds all: no other one begins."""
        async with self._database.writing() as session:
            await _lock_hosts(session, host)
            rows = (await session.exec(_touching(host))).all()
            return sorted(row.vm for row in rows if row.migrating)

    async def touching(self, host: str) -> list[Reservation]:
        """Everything that is reserved at the host, or for VMs from it."""
        return await self._select(
            or_(col(ReservationRow.destination) == host, col(ReservationRow.source) == host)
        )

    async def destinations(self) -> list[str]:
        """Hosts at which anything is reserved, by name."""
        query = select(ReservationRow.destination).distinct()
        async with self._database.reading() as session:
            return sorted(await session.exec(query))

    async def in_cluster(self, cluster: str) -> list[Reservation]:
        """Everything that is reserved at hosts of the cluster, by destination and VM."""
        hosts = (
            select(HostRow.name)
            .join(ClusterRow, col(ClusterRow.id) == col(HostRow.cluster_id))
            .where(col(ClusterRow.name) == cluster)
        )
        found = await self._select(col(ReservationRow.destination).in_(hosts))
        return sorted(found, key=lambda one: (one.destination, one.vm_uuid))

    async def total(self, host: str, *, counted: frozenset[str] = frozenset()) -> Reserved:
        """What is reserved on the host, for others than the VMs in `counted` (UUIDs)."""
        query = select(
            func.coalesce(func.sum(ReservationRow.memory_mib), 0),
            func.coalesce(func.sum(ReservationRow.vcpus), 0),
        ).where(
            col(ReservationRow.destination) == host, col(ReservationRow.vm_uuid).not_in(counted)
        )
        async with self._database.reading() as session:
            memory_mib, vcpus = (await session.exec(query)).one()
        return Reserved(memory_mib=int(memory_mib), vcpus=int(vcpus))

    async def _select(self, condition: ColumnElement[bool]) -> list[Reservation]:
        async with self._database.reading() as session:
            return [
                Reservation(**row.model_dump(exclude={"id", "created_at"}))
                for row in await session.exec(select(ReservationRow).where(condition))
            ]

    async def _delete(self, *conditions: ColumnElement[bool]) -> None:
        async with self._database.writing() as session:
            await session.exec(delete(ReservationRow).where(*conditions))


def _owned_by(host: str, epoch: int) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return col(ReservationRow.lease_host) == host, col(ReservationRow.epoch) == epoch


def _touching(*hosts: str) -> SelectOfScalar[ReservationRow]:
    return select(ReservationRow).where(
        or_(col(ReservationRow.destination).in_(hosts), col(ReservationRow.source).in_(hosts))
    )


async def _check_restarts(session: AsyncSession, *hosts: str) -> None:
    """Raises SlotsBusy while one of these may be restarting its libvirtd."""
    query = select(LeaseRow).where(
        col(LeaseRow.host).in_(hosts),
        col(LeaseRow.scope) == LeaseScope.LIBVIRTD,
        col(LeaseRow.workflow_id).is_not(None),
    )
    restarting = (await session.exec(query)).first()
    if restarting is not None:
        raise SlotsBusy(f"libvirtd of {restarting.host} is restarted by {restarting.workflow_id}.")


async def _lock_hosts(session: AsyncSession, *names: str) -> None:
    """One reservation at a time per host: in the order of names, so that none waits for ever."""
    query = (
        select(HostRow.name)
        .where(col(HostRow.name).in_(names))
        .order_by(col(HostRow.name))
        .with_for_update()
    )
    found: list[str] = list(await session.exec(query))
    missing = set(names) - set(found)
    if missing:
        raise NotFound(f"There is no host {', '.join(sorted(missing))}.")


async def check_fit(session: AsyncSession, destination: str) -> None:
    """Raises DestinationUnfit if no VM may go there now."""
    query = (
        select(HostRow, ClusterRow, PodRow, ZoneRow)
        .join(ClusterRow, col(ClusterRow.id) == col(HostRow.cluster_id))
        .join(PodRow, col(PodRow.id) == col(ClusterRow.pod_id))
        .join(ZoneRow, col(ZoneRow.id) == col(PodRow.zone_id))
        .where(col(HostRow.name) == destination)
    )
    host, cluster, pod, zone = (await session.exec(query)).one()
    problem = None
    if host.resource_state != ResourceState.ENABLED:
        problem = f"is {host.resource_state}"
    elif host.status != HostStatus.UP:
        problem = f"is {host.status}"
    elif host.fence is not None:
        problem = f"is fenced by {host.fence}"
    elif AllocationState.DISABLED in (
        cluster.allocation_state,
        pod.allocation_state,
        zone.allocation_state,
    ):
        problem = "is in a Disabled zone, pod or cluster"
    if problem is not None:
        raise DestinationUnfit(f"{destination} {problem} and takes no VM.")


def _check_slots(others: list[ReservationRow], hosts: tuple[str, str], most: int) -> None:
    for host in hosts:
        running = sum(
            1 for row in others if row.migrating and host in (row.source, row.destination)
        )
        if running >= most:
            raise SlotsBusy(f"{running} migrations run from or to {host}, {most} may.")


def _check_room(destination: str, vm: str, *needs: tuple[str, int, int]) -> None:
    for what, needed, free in needs:
        if needed > free:
            raise DestinationFull(
                f"{destination} has {max(free, 0)} {what} free, {vm} needs {needed}."
            )
