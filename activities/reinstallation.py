"""Re-installing a host: its trust withdrawn, its new installation waited for, its way back."""

import asyncio
import hashlib
import shlex
import time

from temporalio import activity

from activities.directory import HostDirectory
from activities.execution import uninterrupted
from contracts.errors import Conflict, NotFound, Unavailable
from contracts.evacuation import HostEnvironment
from contracts.hosts import Host
from contracts.leases import LeaseRef
from contracts.reinstallation import (
    AwaitHostKeyInput,
    CommandOutcome,
    KeyTakenAway,
    NewHostKey,
    PinHostKeyInput,
    ReturnHostInput,
    RunCommandInput,
    SettleCredentialInput,
    SettledCredential,
    Trust,
    WithdrawTrustInput,
)
from contracts.settings import HOOK_TIMEOUT, HOST_REINSTALLATION_TIMEOUT
from contracts.states import ResourceState
from contracts.steps import HostKeyResult, HostRef
from drivers.errors import LoginRefused
from drivers.protocols import (
    HostCleaner,
    Hypervisor,
    Job,
    RemoteShell,
    ServiceManager,
)
from inventory import Inventory

_LOOK_AGAIN_S = 5.0
_JOBS = "/var/lib/hostler/jobs"


class ReinstallationActivities:
    """What only a re-installation does.

    Args:
        look_again: seconds between two looks at what is waited for.
    """

    def __init__(
        self,
        inventory: Inventory,
        directory: HostDirectory,
        cleaner: HostCleaner,
        hypervisor: Hypervisor,
        shell: RemoteShell,
        services: ServiceManager,
        *,
        look_again: float = _LOOK_AGAIN_S,
    ) -> None:
        self._inventory = inventory
        self._directory = directory
        self._cleaner = cleaner
        self._hypervisor = hypervisor
        self._shell = shell
        self._services = services
        self._look_again = look_again

    # --- the old installation -------------------------------------------------------------------

    @activity.defn(name="run_command")
    async def run_command(self, request: RunCommandInput) -> CommandOutcome:
        """Run the operator's command to its end, as a job of the host; join it if it has begun. One
        that fails is an outcome. Raises Conflict (not in `Maintenance`), LeaseLost."""
        lease = request.lease
        access = await self._directory.access(lease.host)
        name = _job_name(request)
        while not (state := await self._services.look_at_job(access, name)).ended:
            if not state.started:
                await self._require_maintenance(lease)
                await self._services.start_job(access, await self._job(request, name))
            await asyncio.sleep(min(self._look_again, 1.0))
        return CommandOutcome(
            exit_status=state.exit_status, problem=state.problem, output=f"{_JOBS}/{name}"
        )

    @activity.defn(name="read_environment")
    async def read_environment(self, request: HostRef) -> HostEnvironment:
        """What the installation that is there offers to VMs, for the next one to be compared with.
        Raises what a host raises that does not tell."""
        return await self._hypervisor.environment(await self._directory.access(request.host))

    @activity.defn(name="withdraw_trust")
    async def withdraw_trust(self, request: WithdrawTrustInput) -> Trust:
        """Revoke the host key that is pinned, and close this worker's connections. Of a host whose
        re-installation has begun before, only what is known. Raises Conflict, LeaseLost."""
        trust = await self._inventory.reinstallations.withdraw(
            request.lease, reason=request.reason, environment=request.environment
        )
        await self._forget(request.lease.host)
        return Trust(
            former_sha256=trust.former_sha256,
            pinned_sha256=trust.pinned_sha256,
            secret=trust.secret_id,
            environment=trust.environment,
            tls_again=trust.tls_again,
        )

    @activity.defn(name="take_away_key")
    async def take_away_key(self, lease: LeaseRef) -> KeyTakenAway:
        """Hostler's own key opens the old installation no more; its fence stays up until the disk
        is written anew. A host that refuses that key has lost it before.

        Raises LoginRefused (of what an operator has given), HostKeyChanged, CommandFailed,
        LeaseLost.
        """
        await self._inventory.leases.verify(lease)
        access = await self._directory.access_to_former(lease.host)
        try:
            await uninterrupted(self._cleaner.remove_key(access, lease.host, lease.epoch))
        except LoginRefused:
            if not access.own_key:
                raise
            return KeyTakenAway(proof="Hostler's key is refused")
        finally:
            await self._forget(lease.host)
        return KeyTakenAway(proof="its line is gone from authorized_keys")

    @activity.defn(name="settle_credential")
    async def settle_credential(self, request: SettleCredentialInput) -> SettledCredential:
        """Keep one credential for the new installation, and delete what opened the old one. One
        that is not stored any more is told. Raises LeaseLost."""
        reinstallations = self._inventory.reinstallations
        try:
            return SettledCredential(
                secret=await reinstallations.settle_credential(request.lease, request.secret)
            )
        except NotFound as error:
            return SettledCredential(
                secret=await reinstallations.settle_credential(request.lease, None),
                problem=str(error),
            )

    # --- the new installation -------------------------------------------------------------------

    @activity.defn(name="await_host_key")
    async def await_host_key(self, request: AwaitHostKeyInput) -> NewHostKey:
        """Returns when an SSH server shows a key that is not one of these, or after
        `host.reinstallation.timeout`. Nobody logs in. Raises NotFound."""
        started = time.monotonic()
        while True:
            try:
                key = await self._shell.scan_host_key(request.address, request.ssh_port)
            except Unavailable as error:
                activity.logger.debug("%s is not back: %s", request.host, error)
            else:
                if key.sha256 not in request.unlike:
                    return NewHostKey(key=HostKeyResult(line=key.line, sha256=key.sha256))
            if time.monotonic() - started > await self._patience(request.host):
                return NewHostKey(key=None)
            await asyncio.sleep(self._look_again)

    @activity.defn(name="pin_host_key")
    async def pin_host_key(self, request: PinHostKeyInput) -> None:
        """Hostler logs in where this key is shown, and nowhere else. Raises Conflict (the host is
        not being re-installed), LeaseLost."""
        await self._inventory.reinstallations.pin(
            request.lease, host_key_line=request.key.line, host_key_sha256=request.key.sha256
        )

    @activity.defn(name="return_host")
    async def return_host(self, request: ReturnHostInput) -> Host:
        """Read the facts, and put the host back into service, `Up`, with them. Raises AlreadyExists
        (another host has its UUID), Conflict, LeaseLost."""
        lease = request.lease
        await self._inventory.leases.verify(lease)
        host = await self._inventory.hosts.get(lease.host)
        if host.resource_state is not ResourceState.MAINTENANCE:
            return host  # it was put back in an earlier attempt
        facts = await self._hypervisor.facts(await self._directory.access(lease.host))
        return await self._inventory.reinstallations.complete(
            lease, facts, step=f"{lease.epoch}/return", reason=request.reason
        )

    # --- pieces ---------------------------------------------------------------------------------

    async def _require_maintenance(self, lease: LeaseRef) -> None:
        await self._inventory.leases.verify(lease)
        host = await self._inventory.hosts.get(lease.host)
        if host.resource_state is not ResourceState.MAINTENANCE:
            raise Conflict(f"{host.name} is {host.resource_state}: nothing is run on it.")

    async def _job(self, request: RunCommandInput, name: str) -> Job:
        host = await self._inventory.hosts.get(request.lease.host)
        settings = await self._inventory.settings.resolve(cluster=host.cluster)
        return Job(
            name=name,
            script=f"exec {shlex.join(request.command)}",
            environment={
                "HOSTLER_HOST": host.name,
                "HOSTLER_CLUSTER": host.cluster,
                "HOSTLER_STAGE": "reinstallation",
                "HOSTLER_OPERATION": request.lease.owner.workflow_id,
            },
            timeout=settings[HOOK_TIMEOUT],
        )

    async def _patience(self, name: str) -> int:
        host = await self._inventory.hosts.get(name)
        settings = await self._inventory.settings.resolve(cluster=host.cluster)
        return settings[HOST_REINSTALLATION_TIMEOUT]

    async def _forget(self, name: str) -> None:
        await self._hypervisor.forget(name)
        await self._shell.forget(name)


def _job_name(request: RunCommandInput) -> str:
    """One per attempt of a run."""
    run = hashlib.sha256(request.lease.owner.first_run_id.encode()).hexdigest()
    return f"reinstallation-{request.lease.epoch}-{request.attempt}-{run[:16]}"
