"""What the inventory knows of a host, and the changes of its states."""

from temporalio import activity

from contracts.hosts import Host
from contracts.leases import LeaseRef
from contracts.maintenance import MaintenanceSettings
from contracts.settings import (
    MAINTENANCE_ARRIVALS_TIMEOUT,
    MAINTENANCE_LEAVE_TIMEOUT,
    MAINTENANCE_QUESTION_REMINDER,
    MAINTENANCE_QUEUE_TIMEOUT,
    MAINTENANCE_RETRY_INTERVAL,
    MAINTENANCE_UNREACHABLE_TIMEOUT,
    MIGRATION_AUTO_CONVERGE,
    VM_SHUTDOWN_TIMEOUT,
)
from contracts.steps import (
    ChangeStateInput,
    EventInput,
    HostRef,
    MovedVms,
    RegisteredHost,
    RegisterHostInput,
    SetStatusInput,
)
from inventory import Inventory


class RecordActivities:
    """Reads and writes host rows."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory

    @activity.defn(name="get_host")
    async def get_host(self, request: HostRef) -> Host:
        """The host's row. Raises NotFound."""
        return await self._inventory.hosts.get(request.host)

    @activity.defn(name="read_settings")
    async def read_settings(self, request: HostRef) -> MaintenanceSettings:
        """The settings in force in the host's cluster that a maintenance goes by."""
        host = await self._inventory.hosts.get(request.host)
        resolved = await self._inventory.settings.resolve(cluster=host.cluster)
        return MaintenanceSettings(
            queue_timeout=resolved[MAINTENANCE_QUEUE_TIMEOUT],
            unreachable_timeout=resolved[MAINTENANCE_UNREACHABLE_TIMEOUT],
            retry_interval=resolved[MAINTENANCE_RETRY_INTERVAL],
            question_reminder=resolved[MAINTENANCE_QUESTION_REMINDER],
            arrivals_timeout=resolved[MAINTENANCE_ARRIVALS_TIMEOUT],
            leave_timeout=resolved[MAINTENANCE_LEAVE_TIMEOUT],
            shutdown_timeout=resolved[VM_SHUTDOWN_TIMEOUT],
            auto_converge=resolved[MIGRATION_AUTO_CONVERGE],
        )

    @activity.defn(name="record_event")
    async def record_event(self, request: EventInput) -> None:
        """A line about the lease's host. Raises LeaseLost."""
        await self._inventory.leases.verify(request.lease)
        operation = request.lease.owner.workflow_id
        await self._inventory.events.record(
            request.kind,
            f"host/{request.lease.host}",
            request.message,
            operation=operation,
            actor=operation,
        )

    @activity.defn(name="list_moved_vms")
    async def list_moved_vms(self, request: HostRef) -> MovedVms:
        """Names of the VMs that the latest maintenance of the host moved to other hosts."""
        moves = await self._inventory.vm_migrations.latest_moves(request.host)
        return MovedVms(vms=tuple(move.vm for move in moves))

    @activity.defn(name="change_host_state")
    async def change_host_state(self, request: ChangeStateInput) -> Host:
        """Compare-and-set the resource state, with its event. Raises Conflict, LeaseLost."""
        return await self._inventory.hosts.change_state(
            request.lease.host,
            expected=request.expected,
            target=request.target,
            operation=request.lease.owner.workflow_id,
            step=f"{request.lease.epoch}/{request.step}",
            actor=request.lease.owner.workflow_id,
            reason=request.reason,
            lease=request.lease,
        )

    @activity.defn(name="register_host")
    async def register_host(self, request: RegisterHostInput) -> RegisteredHost:
        """Write the row of a new host, `Creating`. Raises AlreadyExists, NotFound (cluster),
        Conflict (an addition of another machine was left half-way)."""
        operation = request.lease.owner.workflow_id
        adopted = await self._inventory.hosts.find(request.lease.host) is not None
        host = await self._inventory.hosts.register(
            name=request.lease.host,
            cluster=request.cluster,
            address=request.address,
            ssh_port=request.ssh_port,
            user=request.user,
            secret_id=request.secret,
            host_key_line=request.host_key_line,
            host_key_sha256=request.host_key_sha256,
            capacity_memory_mib=request.capacity_memory_mib,
            capacity_cpus=request.capacity_cpus,
            reserved_memory_mib=request.reserved_memory_mib,
            operation=operation,
            actor=operation,
            lease=request.lease,
        )
        return RegisteredHost(**dict(host), adopted=adopted)

    @activity.defn(name="forget_host")
    async def forget_host(self, lease: LeaseRef) -> None:
        """Delete the row of a host whose addition failed; only one that is `Creating`."""
        operation = lease.owner.workflow_id
        await self._inventory.hosts.forget(
            lease.host, operation=operation, actor=operation, lease=lease
        )

    @activity.defn(name="set_host_status")
    async def set_host_status(self, request: SetStatusInput) -> Host:
        """Record what was seen of the host, with its event."""
        return await self._inventory.hosts.set_status(
            request.lease.host,
            request.status,
            operation=request.lease.owner.workflow_id,
            actor=request.lease.owner.workflow_id,
            reason=request.reason,
            lease=request.lease,
        )
