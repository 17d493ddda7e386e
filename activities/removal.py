"""Removing a host: what there is, taking Hostler off it, deleting it, and those that come back."""

import asyncio
from datetime import UTC, datetime, timedelta

from temporalio import activity

from activities.directory import HostDirectory, TrustWithdrawn
from activities.execution import surprises_of, uninterrupted
from contracts.errors import Conflict, Failed, HostlerError, NotFound, Unavailable
from contracts.hosts import RemovedHost
from contracts.leases import LeaseRef
from contracts.removal import (
    BeginRemovalInput,
    Cleaning,
    HostRemoved,
    RemovalBegun,
    RemovalSurvey,
    RemovedHostsCleaned,
    RemoveHostInput,
)
from contracts.states import ResourceState
from contracts.steps import HostRef
from contracts.vms import ACTIVE_VM_STATES
from drivers.errors import (
    CallTimedOut,
    CommandFailed,
    FenceFailed,
    HostKeyChanged,
    HostUnreachable,
    HypervisorFailed,
    LoginRefused,
    SudoRefused,
)
from drivers.protocols import HostAccess, HostCleaner, Hypervisor, RemoteShell
from inventory import Inventory
from inventory.errors import MasterKeyLost, SecretDamaged

# It does not answer, or not as the host that it was, or can't be asked; or its libvirt can't.
_LOST = (
    HostUnreachable,
    CallTimedOut,
    HostKeyChanged,
    LoginRefused,
    SudoRefused,
    TrustWithdrawn,
    SecretDamaged,
    MasterKeyLost,
    HypervisorFailed,
)
# Removed hosts that are looked for at a time.
_AT_A_TIME = 10
# How often one that does not come back is looked for.
_EVERY_ROUND = timedelta(hours=1)
_TRIES_PER_AGE = 24
_LONGEST_PAUSE = timedelta(hours=1)


class HostNotEmpty(Conflict):
    """VMs are active on the host, or defined there."""


class RemovalActivities:
    """Survey, begin, clean, delete."""

    def __init__(
        self,
        inventory: Inventory,
        directory: HostDirectory,
        cleaner: HostCleaner,
        hypervisor: Hypervisor,
        shell: RemoteShell,
    ) -> None:
        self._inventory = inventory
        self._directory = directory
        self._cleaner = cleaner
        self._hypervisor = hypervisor
        self._shell = shell

    @activity.defn(name="survey_removal")
    async def survey_removal(self, request: HostRef) -> RemovalSurvey:
        """What a removal would find and delete. A host that does not answer, or whose credential
        can't be read, is a finding, not an error. Raises NotFound."""
        host = await self._inventory.hosts.get(request.host)
        possessions = await self._inventory.removed_hosts.preview(host.name)
        lease = await self._inventory.leases.find(host.name)
        answers, problem = False, ""
        found: list[str] = []
        active: list[str] = []
        defined: list[str] = []
        try:
            access = await self._directory.access(host.name)
            found = await self._cleaner.look(access, host.name)
            answers = True
            active, defined = await self._vms(access)
        except _LOST as error:
            problem = str(error)
        return RemovalSurvey(
            host=host,
            answers=answers,
            problem=problem,
            active=tuple(active),
            defined=tuple(defined),
            found=tuple(found),
            last_seen=tuple(await self._inventory.vm_migrations.last_seen(host.name)),
            belongings=possessions.belongings,
            secrets=possessions.secrets,
            holder=lease.owner if lease is not None else None,
        )

    @activity.defn(name="begin_removal")
    async def begin_removal(self, request: BeginRemovalInput) -> RemovalBegun:
        """The host becomes `Removed`, after a login and a last look at its VMs. Whoever finds it so
        knows that its cleaning may have begun, up to its key.

        Raises HostNotEmpty, Conflict (state), LoginRefused, LeaseLost.
        """
        lease = request.lease
        await self._inventory.leases.verify(lease)
        host = await self._inventory.hosts.get(lease.host)
        found: tuple[str, ...] = ()
        if host.resource_state is not ResourceState.REMOVED:
            access = await self._directory.access(host.name)
            await self._forget(host.name)  # a connection that is kept is no login
            found = tuple(await self._cleaner.look(access, host.name))
            active, defined = await self._vms(access)
            _require_empty(host.name, active, defined, leave_vms=request.leave_vms)
        await self._inventory.hosts.change_state(
            host.name,
            expected=frozenset({ResourceState.MAINTENANCE, ResourceState.REMOVED}),
            target=ResourceState.REMOVED,
            operation=lease.owner.workflow_id,
            step=f"{lease.epoch}/{request.step}",
            actor=lease.owner.workflow_id,
            reason=request.reason,
            lease=lease,
        )
        return RemovalBegun(found=found)

    @activity.defn(name="clean_host")
    async def clean_host(self, lease: LeaseRef) -> Cleaning:
        """Take away what Hostler has put on the host, its own key last, and prove it. Ends well if
        an earlier attempt was killed at any moment.

        Hostler's own key goes when nothing else is left, and that is recorded first: a host that
        refuses it from then on has had it taken away. Where a password is kept beside the key, that
        looks again. Raises FenceFailed (VMs are refused although the fence is gone), CommandFailed,
        LoginRefused, Conflict, LeaseLost.
        """
        await self._inventory.leases.verify(lease)
        host = await self._inventory.hosts.get(lease.host)
        if host.resource_state is not ResourceState.REMOVED:
            raise Conflict(f"{host.name} is {host.resource_state}: its removal has not begun.")
        access = await self._directory.access(host.name)
        try:
            proof = await uninterrupted(self._clean(access, lease))
        except LoginRefused:
            if not (access.own_key and await self._inventory.own_keys.is_leaving(host.name)):
                raise
            proof = await self._without_key(lease)
        finally:
            await self._forget(host.name)
        return Cleaning(proof=proof)

    @activity.defn(name="remove_host")
    async def remove_host(self, request: RemoveHostInput) -> HostRemoved:
        """Delete the host from the inventory with all that belongs to it, leave its tombstone, and
        close this worker's connections to it. Raises Conflict, NotFound, LeaseLost."""
        removed = await self._inventory.removed_hosts.remove(
            request.lease,
            reason=request.reason,
            forced=request.forced,
            vms=request.vms,
            cleaned=request.cleaned,
            problem=request.problem,
        )
        await self._forget(request.lease.host)
        return removed

    @activity.defn(name="clean_removed")
    async def clean_removed(self) -> RemovedHostsCleaned:
        """Try to clean every removed host that was not clean yet, some at a time. One that does not
        answer is tried again, the longer it is gone the less often; what else is wrong is recorded
        with its tombstone.

        VMs that run there again are named in the event, and not touched. Nothing is done to a
        machine that is a host again, nor at an address that another host has now. Also closes
        connections that this worker may have kept to hosts that others have removed.
        """
        await self._forget_gone()
        slots = asyncio.Semaphore(_AT_A_TIME)

        async def clean(removed: RemovedHost) -> bool:
            if not _is_due(removed, datetime.now(UTC)):
                return False
            async with slots:
                if await self._clean_removed(removed):
                    return True
                await self._inventory.removed_hosts.record_tried(removed)
                return False

        waiting = await self._inventory.removed_hosts.uncleaned()
        done = await asyncio.gather(*(clean(removed) for removed in waiting))
        ended = list(zip(waiting, done, strict=True))
        return RemovedHostsCleaned(
            cleaned=tuple(removed.name for removed, clean_now in ended if clean_now),
            waiting=tuple(removed.name for removed, clean_now in ended if not clean_now),
        )

    # --- a host that is being removed -----------------------------------------------------------

    async def _vms(self, access: HostAccess) -> tuple[list[str], list[str]]:
        """Names of the VMs that are active, and of the others that are defined."""
        vms = await self._hypervisor.list_vms(access)
        active = [vm.name for vm in vms if vm.state in ACTIVE_VM_STATES]
        defined = await self._hypervisor.defined_vms(access)
        return active, [name for name in defined if name not in active]

    async def _clean(self, access: HostAccess, lease: LeaseRef) -> str:
        await self._cleaner.remove_files(access, lease.epoch)
        refusal = await self._hypervisor.start_probe(access)
        if refusal is not None:
            raise FenceFailed(
                f"The fence of {access.name} is gone, yet libvirt refuses a VM: {refusal}",
                remedy="Restart libvirtd there.",
            )
        await self._require_key_alone(access, lease.host)
        await self._inventory.own_keys.record_leaving(lease.host, lease=lease)
        had_key = await self._cleaner.remove_key(access, lease.host, lease.epoch)
        proof = "looked again and found nothing but the key, and libvirt starts VMs"
        if had_key and access.private_key is not None:
            proof += "; " + await self._try_key(access)
        return proof

    async def _without_key(self, lease: LeaseRef) -> str:
        """The key is gone already. The password, if there is one, looks whether the rest is."""
        access = await self._directory.access_by_password(lease.host)
        if access is not None:
            try:
                return await uninterrupted(self._clean(access, lease))
            except LoginRefused:
                pass
        return "Hostler's key is refused, and it is taken away last"

    async def _require_key_alone(self, access: HostAccess, host: str) -> None:
        """Before the key goes: whoever finds the login refused then can't look any more."""
        found = await self._cleaner.look(access, host)
        left = [line for line in found if not line.startswith("key ")]
        if left:
            raise CommandFailed(
                f"Something of Hostler's is still on {access.name}: {', '.join(left)}.",
                remedy="Something puts it back: find out what, or remove it by hand.",
            )

    async def _try_key(self, access: HostAccess) -> str:
        """What a new login with the key says after its line has gone."""
        await self._forget(access.name)
        try:
            await self._shell.run(access, ["true"])
        except LoginRefused:
            return "Hostler's key is refused"
        return (
            f"the key of {access.user} that Hostler was given, and has not put there, still logs in"
        )

    async def _forget(self, name: str) -> None:
        await self._hypervisor.forget(name)
        await self._shell.forget(name)

    # --- hosts that were removed before ---------------------------------------------------------

    async def _forget_gone(self) -> None:
        present = {host.name for host in await self._inventory.hosts.list()}
        removed = {host.name for host in await self._inventory.removed_hosts.list()}
        for name in sorted(removed - present):
            await self._forget(name)

    async def _clean_removed(self, removed: RemovedHost) -> bool:
        """Whether it is clean now."""
        tombs = self._inventory.removed_hosts
        if await tombs.present_as(removed) is not None:
            return False
        try:
            access = await self._directory.access_to_removed(removed)
        except NotFound:
            return False  # it was settled just now
        except Failed as error:
            await tombs.record_problem(removed, str(error))
            return False
        try:
            with surprises_of(removed.name):
                message = await uninterrupted(self._take_off(access, removed))
        except Unavailable:
            return False
        except HostlerError as error:
            refused = isinstance(error, LoginRefused) and access.own_key
            if not (refused and await tombs.key_leaves(removed)):
                await tombs.record_problem(removed, str(error))
                return False
            message = "cleaned: Hostler's key is refused, and it is taken away last"
        finally:
            await self._forget(access.name)
        await tombs.record_cleaned(removed, message)
        return True

    async def _take_off(self, access: HostAccess, removed: RemovedHost) -> str:
        found = await self._cleaner.look(access, removed.name)
        vms = await self._running_again(access)
        if await self._inventory.removed_hosts.present_as(removed) is not None:
            raise Conflict(f"{removed.name} has just become a host again.")
        # A host that holds a higher one is another Hostler's by now.
        epoch = await self._inventory.leases.last_epoch(removed.name)
        await self._cleaner.remove_files(access, epoch)
        await self._require_key_alone(access, removed.name)
        await self._inventory.removed_hosts.record_key_leaving(removed)
        await self._cleaner.remove_key(access, removed.name, epoch)
        return f"answers again and was cleaned ({', '.join(found) or 'nothing was left'}); {vms}"

    async def _running_again(self, access: HostAccess) -> str:
        """A libvirtd that is broken keeps nothing from being cleaned."""
        try:
            active, _ = await self._vms(access)
        except HostlerError as error:
            return f"which VMs run there is not known: {error.message}"
        return (
            f"VMs run there, and were not touched: {', '.join(active)}" if active else "no VM runs"
        )


def _is_due(removed: RemovedHost, at: datetime) -> bool:
    """In its first hour it is tried in every round, then ever less often: after a day, hourly."""
    age = at - removed.removed_at
    if removed.tried_at is None or age < _EVERY_ROUND:
        return True
    return at - removed.tried_at >= min(age / _TRIES_PER_AGE, _LONGEST_PAUSE)


def _require_empty(host: str, active: list[str], defined: list[str], *, leave_vms: bool) -> None:
    if active:
        raise HostNotEmpty(
            f"VMs run on {host}: {', '.join(active)}.",
            remedy=f"Put it into maintenance again (hostler maintenance leave {host}, then enter).",
        )
    if defined and not leave_vms:
        raise HostNotEmpty(
            f"VMs are defined on {host}, shut off: {', '.join(defined)}.",
            remedy="Undefine or move them, or remove it with leave_vms: they stay as they are.",
        )
