"""Who may take a host of a cluster out of service next, and the step that begins it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlmodel import col, delete, select
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.evacuation import Move
from contracts.leases import LeaseRef, Owner
from contracts.states import MAINTENANCE_STATES, ResourceState
from inventory.database import Database
from inventory.errors import DestinationUnfit, PlanOutdated
from inventory.hosts import change_state
from inventory.leases import verify_lease
from inventory.models import ClusterRow, HostRow, MaintenanceTicketRow, ReservationRow
from inventory.reservations import check_fit
from inventory.topology import cluster_row

_FROM = frozenset({ResourceState.ENABLED, ResourceState.DISABLED})


@dataclass(frozen=True)
class QueuedHost:
    """A ticket: who waits for a turn, or has it."""

    host: str
    owner: Owner
    granted: bool


@dataclass(frozen=True)
class Turn:
    """Whether it is a host's turn. `ahead`: hosts that are out, or come first."""

    granted: bool
    ahead: tuple[str, ...]


class Maintenances:
    """First come, first served: at most so many hosts of a cluster are out at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def tickets(self, cluster: str) -> list[QueuedHost]:
        """All of a cluster, the first to come first."""
        query = (
            select(MaintenanceTicketRow)
            .where(col(MaintenanceTicketRow.cluster) == cluster)
            .order_by(col(MaintenanceTicketRow.id))
        )
        async with self._database.reading() as session:
            return [_queued(row) for row in await session.exec(query)]

    async def take_turn(self, lease: LeaseRef, cluster: str, most: int) -> Turn:
        """Queue the lease's host, unless it is queued; grant its turn if it has come.

        A host that is out already, whoever took it out, counts, and needs no turn of its own.
        Raises LeaseLost, NotFound (cluster).
        """
        async with self._database.writing() as session:
            await verify_lease(session, lease, hold=True)
            await cluster_row(session, cluster, lock=True)
            ticket = await _own_ticket(session, lease, cluster)
            out = await _out_of_service(session, cluster)
            ahead = _ahead(lease.host, out, await _rows(session, cluster))
            ticket.granted = ticket.granted or lease.host in out or len(ahead) < most
            session.add(ticket)
            return Turn(granted=ticket.granted, ahead=() if ticket.granted else ahead)

    async def give_up_turn(self, host: str, owner: Owner) -> None:
        """Leave the queue; no effect if that owner is not in it for the host."""
        async with self._database.writing() as session:
            await session.exec(
                delete(MaintenanceTicketRow).where(
                    col(MaintenanceTicketRow.host) == host,
                    col(MaintenanceTicketRow.workflow_id) == owner.workflow_id,
                    col(MaintenanceTicketRow.first_run_id) == owner.first_run_id,
                )
            )

    async def begin(
        self,
        lease: LeaseRef,
        moves: Sequence[Move],
        seen: Mapping[str, frozenset[str]],
        *,
        step: str,
        reason: str,
    ) -> None:
        """The lease's host becomes `PrepareForMaintenance`, and the room that its plan counts on is
        set aside: both or nothing. Idempotent by step.

        `seen`: destination to the VMs (UUIDs) for which something was reserved there when the plan
        was made. Raises PlanOutdated if a destination takes no VM any more or is wanted by others
        meanwhile, Conflict (state), LeaseLost.
        """
        operation = lease.owner.workflow_id
        async with self._database.writing() as session:
            await verify_lease(session, lease, hold=True)
            await _lock(session, {lease.host, *seen})
            if await _is_done(session, lease.host, operation, step):
                return
            own = await _own_reservations(session, lease)
            await session.exec(
                delete(ReservationRow).where(col(ReservationRow.lease_host) == lease.host)
            )
            await _check_unchanged(session, seen, own)
            if not await change_state(
                session,
                lease.host,
                expected=_FROM,
                target=ResourceState.PREPARE_FOR_MAINTENANCE,
                operation=operation,
                step=step,
                actor=operation,
                reason=reason,
            ):
                raise PlanOutdated(f"The state of {lease.host} has just changed.")
            session.add_all(
                ReservationRow(
                    destination=move.destination,
                    source=lease.host,
                    lease_host=lease.host,
                    epoch=lease.epoch,
                    migrating=False,
                    vm_uuid=move.uuid,
                    vm=move.vm,
                    memory_mib=move.memory_mib,
                    vcpus=move.vcpus,
                )
                for move in moves
            )


async def _own_ticket(session: AsyncSession, lease: LeaseRef, cluster: str) -> MaintenanceTicketRow:
    """A predecessor's place in the queue is kept: it waited for the same host."""
    query = select(MaintenanceTicketRow).where(col(MaintenanceTicketRow.host) == lease.host)
    ticket = (await session.exec(query)).first() or MaintenanceTicketRow(
        cluster=cluster,
        host=lease.host,
        workflow_id=lease.owner.workflow_id,
        first_run_id=lease.owner.first_run_id,
    )
    ticket.cluster = cluster
    ticket.workflow_id = lease.owner.workflow_id
    ticket.first_run_id = lease.owner.first_run_id
    session.add(ticket)
    await session.flush()
    return ticket


async def _rows(session: AsyncSession, cluster: str) -> list[MaintenanceTicketRow]:
    query = (
        select(MaintenanceTicketRow)
        .where(col(MaintenanceTicketRow.cluster) == cluster)
        .order_by(col(MaintenanceTicketRow.id))
    )
    return list(await session.exec(query))


async def _out_of_service(session: AsyncSession, cluster: str) -> list[str]:
    query = (
        select(HostRow.name)
        .join(ClusterRow, col(ClusterRow.id) == col(HostRow.cluster_id))
        .where(
            col(ClusterRow.name) == cluster,
            col(HostRow.resource_state).in_(sorted(MAINTENANCE_STATES)),
        )
        .order_by(col(HostRow.name))
    )
    return list(await session.exec(query))


def _ahead(host: str, out: list[str], tickets: list[MaintenanceTicketRow]) -> tuple[str, ...]:
    """Hosts that are out, or may go before `host`."""
    place = next(index for index, ticket in enumerate(tickets) if ticket.host == host)
    before = [
        ticket.host
        for index, ticket in enumerate(tickets)
        if ticket.host != host and (ticket.granted or index < place)
    ]
    return tuple(sorted({*before, *(name for name in out if name != host)}))


async def _lock(session: AsyncSession, names: set[str]) -> None:
    """In the order of names, so that none waits for ever."""
    await session.exec(
        select(HostRow.name)
        .where(col(HostRow.name).in_(sorted(names)))
        .order_by(col(HostRow.name))
        .with_for_update()
    )


async def _is_done(session: AsyncSession, host: str, operation: str, step: str) -> bool:
    query = select(HostRow.state_operation, HostRow.state_step).where(col(HostRow.name) == host)
    return (operation, step) == (await session.exec(query)).first()


async def _own_reservations(session: AsyncSession, lease: LeaseRef) -> set[str]:
    query = select(ReservationRow.vm_uuid).where(col(ReservationRow.lease_host) == lease.host)
    return set(await session.exec(query))


async def _check_unchanged(
    session: AsyncSession, seen: Mapping[str, frozenset[str]], own: set[str]
) -> None:
    for destination, counted in seen.items():
        try:
            await check_fit(session, destination)
        except DestinationUnfit as error:
            raise PlanOutdated(error.message) from error
        query = select(ReservationRow.vm_uuid).where(col(ReservationRow.destination) == destination)
        if set(await session.exec(query)) - counted - own:
            raise PlanOutdated(f"Other VMs are to go to {destination} meanwhile.")


def _queued(row: MaintenanceTicketRow) -> QueuedHost:
    return QueuedHost(
        host=row.host,
        owner=Owner(workflow_id=row.workflow_id, first_run_id=row.first_run_id),
        granted=row.granted,
    )
