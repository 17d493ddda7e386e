"""The fence of a host: wanted in the inventory, put up on the host, proven through libvirt."""

from temporalio import activity

from activities.directory import HostDirectory
from activities.execution import uninterrupted
from contracts.leases import LeaseRef
from contracts.steps import FenceInput
from drivers.errors import FenceFailed
from drivers.protocols import Fence, HostAccess, Hypervisor, refused_as_closed
from inventory import Inventory


class FencingActivities:
    """Install, put up, take down."""

    def __init__(
        self, inventory: Inventory, directory: HostDirectory, fence: Fence, hypervisor: Hypervisor
    ) -> None:
        self._inventory = inventory
        self._directory = directory
        self._fence = fence
        self._hypervisor = hypervisor

    @activity.defn(name="install_fence")
    async def install_fence(self, request: FenceInput) -> None:
        """Put the hook in place, have libvirtd notice it, and prove both of its answers; the first
        alone if the fence is to stay up.

        Raises FenceFailed, EpochRefused. VMs on the host run on: libvirtd is restarted, QEMU not.
        """
        lease = request.lease
        await self._inventory.leases.verify(lease)
        access = await self._directory.access(lease.host)

        async def install() -> None:
            if request.stays_up:
                await self._inventory.hosts.want_fence(
                    lease.host, request.operation, lease.epoch, lease=lease
                )
            await self._fence.install(access, lease.epoch)
            await self._fence.put_up(access, request.operation, lease.epoch)
            if await self._hypervisor.start_probe(access) is None:
                # libvirtd calls hooks that were there when it started.
                await self._fence.restart_libvirtd(access)
                await self._hypervisor.forget(lease.host)
            await self._prove_up(access, request.operation)
            if request.stays_up:
                return
            await self._inventory.leases.verify(lease)
            await self._fence.take_down(access, lease.epoch)
            await self._prove_down(access)

        await uninterrupted(install())

    @activity.defn(name="put_up_fence")
    async def put_up_fence(self, request: FenceInput) -> None:
        """No VM starts on the host or migrates to it from now on. Raises FenceFailed."""
        lease = request.lease
        await self._inventory.leases.verify(lease)
        access = await self._directory.access(lease.host)

        async def put_up() -> None:
            await self._inventory.hosts.want_fence(
                lease.host, request.operation, lease.epoch, lease=lease
            )
            await self._fence.put_up(access, request.operation, lease.epoch)
            await self._prove_up(access, request.operation)

        await uninterrupted(put_up())

    @activity.defn(name="want_fence")
    async def want_fence(self, request: FenceInput) -> None:
        """Record the fence of a host that is away: it goes up there as soon as the host answers.
        Raises LeaseLost."""
        lease = request.lease
        await self._inventory.hosts.want_fence(
            lease.host, request.operation, lease.epoch, lease=lease
        )

    @activity.defn(name="take_down_fence")
    async def take_down_fence(self, lease: LeaseRef) -> None:
        """VMs may start on the host again; the operation's own late steps can't fence it any more.

        Raises FenceFailed, with the fence up again, if VMs are refused nevertheless.
        """
        await self._inventory.leases.verify(lease)
        access = await self._directory.access(lease.host)

        async def take_down() -> None:
            found = await self._fence.read(access)
            if found.operation is not None or found.epoch != lease.closing_epoch:
                await self._fence.take_down(access, lease.epoch)
                try:
                    await self._prove_down(access)
                except FenceFailed:
                    await self._fence.put_up(access, lease.owner.workflow_id, lease.epoch)
                    raise
                await self._fence.take_down(access, lease.closing_epoch)
            await self._inventory.hosts.want_fence(lease.host, None, lease.epoch, lease=lease)

        await uninterrupted(take_down())

    async def _prove_up(self, access: HostAccess, operation: str) -> None:
        refusal = await self._hypervisor.start_probe(access)
        if refusal is None or operation not in refusal:
            raise FenceFailed(
                f"The fence of {access.name} does not hold: libvirt "
                + ("started a VM." if refusal is None else f"answered {refusal!r}."),
                remedy="See whether /etc/libvirt/hooks/qemu.d/hostler is there and executable, "
                "then restart libvirtd.",
            )

    async def _prove_down(self, access: HostAccess) -> None:
        refusal = await self._hypervisor.start_probe(access)
        # A host that is closed refuses the probe, which was not there before.
        if refusal is not None and not refused_as_closed(refusal):
            raise FenceFailed(
                f"The fence of {access.name} is down, yet libvirt refuses a VM: {refusal}",
                remedy="Look at the other hooks in /etc/libvirt/hooks.",
            )
