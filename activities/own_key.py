"""Hostler's own key on a host: stored first, then installed and proven, then used."""

from temporalio import activity

from activities.directory import HostDirectory
from activities.execution import uninterrupted
from contracts.leases import LeaseRef
from contracts.steps import OwnKeyResult
from drivers.errors import CommandFailed, LoginRefused
from drivers.protocols import HostAccess, OwnKeys
from inventory import Inventory


class OwnKeyActivities:
    """Each step finds its work done if it was done."""

    def __init__(self, inventory: Inventory, directory: HostDirectory, keys: OwnKeys) -> None:
        self._inventory = inventory
        self._directory = directory
        self._keys = keys

    @activity.defn(name="stage_own_key")
    async def stage_own_key(self, lease: LeaseRef) -> None:
        """Make a key for the host and store it, unless one is stored. Raises LeaseLost."""
        await self._inventory.leases.verify(lease)
        if (await self._inventory.own_keys.find(lease.host)).staged_key is not None:
            return
        secret = await self._inventory.secrets.store(
            "own_key", self._keys.create(), actor=lease.owner.workflow_id
        )
        if await self._inventory.own_keys.stage(lease.host, secret, lease=lease) != secret:
            await self._inventory.secrets.discard(secret)

    @activity.defn(name="install_own_key")
    async def install_own_key(self, lease: LeaseRef) -> OwnKeyResult:
        """Put the stored key on the host and log in with nothing else. A host that can't take it is
        an answer; so is one that does not let it in, which loses it again. Raises LeaseLost,
        EpochRefused, CommandFailed."""
        await self._inventory.leases.verify(lease)
        staged = (await self._inventory.own_keys.find(lease.host)).staged_key
        if staged is None:
            return OwnKeyResult(proven=True)  # it is what logs in
        access = await self._directory.access(lease.host)
        key = (await self._inventory.secrets.reveal(staged)).plaintext
        return await uninterrupted(self._install(access, key, lease))

    @activity.defn(name="promote_own_key")
    async def promote_own_key(self, lease: LeaseRef) -> None:
        """From now on the key logs in; the password stays beside it. Raises LeaseLost."""
        await self._inventory.own_keys.promote(
            lease.host, operation=lease.owner.workflow_id, lease=lease
        )

    @activity.defn(name="drop_own_key")
    async def drop_own_key(self, lease: LeaseRef) -> None:
        """The host did not let it in: delete it. Raises LeaseLost."""
        await self._inventory.own_keys.drop(lease.host, lease=lease)

    async def _install(self, access: HostAccess, key: str, lease: LeaseRef) -> OwnKeyResult:
        try:
            await self._keys.install(access, key, lease.epoch)
        except CommandFailed as failed:
            return OwnKeyResult(proven=False, problem=failed.message)
        try:
            await self._keys.log_in(access, key)
        except LoginRefused as refused:
            await self._keys.remove(access, lease.epoch)
            return OwnKeyResult(proven=False, problem=refused.message)
        return OwnKeyResult(proven=True)
