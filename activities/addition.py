"""The first contact with a host that is not in the inventory yet, and the way back from there."""

from temporalio import activity

from activities.directory import HostDirectory
from activities.execution import uninterrupted
from contracts.leases import LeaseRef
from contracts.states import ResourceState
from contracts.steps import (
    FormerKeysInput,
    HostKeyResult,
    ScanHostKeyInput,
    SecretRef,
    TakeBackResult,
    TombstonesClosed,
)
from drivers.protocols import HostAccess, HostCleaner, RemoteShell
from inventory import Inventory
from inventory.removed_hosts import FormerKey


class AdditionActivities:
    """What only an addition does."""

    def __init__(
        self,
        inventory: Inventory,
        directory: HostDirectory,
        shell: RemoteShell,
        cleaner: HostCleaner,
    ) -> None:
        self._inventory = inventory
        self._directory = directory
        self._shell = shell
        self._cleaner = cleaner

    @activity.defn(name="scan_host_key")
    async def scan_host_key(self, request: ScanHostKeyInput) -> HostKeyResult:
        """The SSH key the host shows, for an operator to compare. Raises HostUnreachable."""
        key = await self._shell.scan_host_key(request.address, request.ssh_port)
        return HostKeyResult(line=key.line, sha256=key.sha256)

    @activity.defn(name="take_back")
    async def take_back(self, lease: LeaseRef) -> TakeBackResult:
        """Leave nothing of Hostler's on a host whose addition did not succeed; the key goes last.

        One that is in service, since the cancel came too late, is left alone. Raises LeaseLost,
        EpochRefused, CommandFailed.
        """
        await self._inventory.leases.verify(lease)
        host = await self._inventory.hosts.get(lease.host)
        if host.resource_state is not ResourceState.CREATING:
            return TakeBackResult()
        access = await self._directory.access_by_password(
            lease.host
        ) or await self._directory.access(lease.host)

        async def remove() -> list[str]:
            epoch = lease.closing_epoch
            said = await self._cleaner.remove_files(access, epoch, spare_jobs=True)
            await self._cleaner.remove_key(access, lease.host, epoch)
            return said

        said = await uninterrupted(remove())
        await self._shell.forget(lease.host)
        running = (line.removeprefix("running ") for line in said if line.startswith("running "))
        return TakeBackResult(running_jobs=tuple(running))

    @activity.defn(name="close_tombstones")
    async def close_tombstones(self, lease: LeaseRef) -> TombstonesClosed:
        """The host is back on purpose: nobody cleans it as a removed one. Raises LeaseLost."""
        await self._inventory.removed_hosts.take_back(lease.host, lease=lease)
        former = await self._former_keys(await self._directory.access(lease.host))
        return TombstonesClosed(keys_of=tuple(dict.fromkeys(key.name for key in former)))

    @activity.defn(name="remove_former_keys")
    async def remove_former_keys(self, request: FormerKeysInput) -> None:
        """Let no key of Hostler's in that was put there under one of these names. Raises
        CommandFailed, EpochRefused, LeaseLost, and what a login raises."""
        lease = request.lease
        await self._inventory.leases.verify(lease)
        access = await self._directory.access(lease.host)

        async def remove() -> None:
            for key in await self._former_keys(access):
                await self._cleaner.remove_key(access, key.name, lease.epoch, user=key.user)

        await uninterrupted(remove())

    async def _former_keys(self, access: HostAccess) -> list[FormerKey]:
        """The one that it has under its present name is in use, or was replaced by that."""
        present = FormerKey(access.name, access.user) if access.own_key else None
        former = await self._inventory.removed_hosts.former_keys(access.name)
        return [key for key in former if key != present]

    @activity.defn(name="discard_secret")
    async def discard_secret(self, request: SecretRef) -> None:
        """Delete a credential that no host refers to; no effect if there is none."""
        await self._inventory.secrets.discard(request.secret)
