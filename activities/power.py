"""The power of one host: looked at, switched, and watched until it is as it should be.

A command is committed before it is sent. Whoever finds it there, after a crash, does not send it
again, but looks what became of it.
"""

import asyncio
import time
from datetime import UTC, datetime, timedelta

from temporalio import activity

from activities.bmcs import Bmc, BmcDirectory, ask, surprise_of_bmc, surprises_of_bmc
from activities.directory import HostDirectory
from activities.execution import surprises_of, uninterrupted
from activities.leases import LeaseActivities
from contracts.errors import Conflict, Failed, InvalidInput, NotFound, Unavailable
from contracts.leases import Lease, LeaseRef
from contracts.oobm import LOGIN_PROBLEMS, PowerProblem
from contracts.power import PowerCommand, PowerState
from contracts.power_actions import (
    BOOTS,
    SHOULD_BE,
    STOPS,
    BootSeen,
    CommandOutcome,
    FinishPowerInput,
    PowerCommandRef,
    PowerSeen,
    PowerSent,
    PowerSettings,
    PowerSighting,
    PowerSurvey,
    PowerUse,
    PowerWord,
    RequirePowerInput,
    WatchPowerInput,
)
from contracts.power_switching import refusal
from contracts.settings import (
    HOST_REBOOT_TIMEOUT,
    OOBM_ACTION_TIMEOUT,
    OOBM_SYNC_INTERVAL,
    OOBM_SYNC_TIMEOUT,
)
from contracts.steps import AwaitLeaseInput, HostRef
from contracts.vms import Vm
from drivers.errors import (
    AccountRefused,
    BmcCertificateRefused,
    BmcCommandRejected,
    BmcUnidentified,
    BmcUnreachable,
    CallTimedOut,
    InsufficientPrivilege,
    LoginRefused,
    PowerDriverFailed,
    PowerOutcomeUnknown,
    WrongBmc,
)
from drivers.protocols import HostAccess, Hypervisor, NetworkBooter, ServiceManager
from inventory import Inventory

_POLL_S = 1.0
# What the host itself is asked beside its BMC.
_HOST_ANSWERS_WITHIN_S = 8
_COMMAND_WITHIN_S = 15
# A worker that was stopped in between, for longer than this, must not send what others by now take
# for lost.
_SENT_WITHIN_S = 5.0
# What `PowerDriver.set_power` raises when it has not sent the command, or the BMC does not take it.
# After anything else nobody knows.
_NOT_SENT = (BmcUnreachable, CallTimedOut, BmcUnidentified, PowerDriverFailed)
_REFUSED = (
    InvalidInput,
    LoginRefused,
    InsufficientPrivilege,
    WrongBmc,
    BmcCertificateRefused,
    BmcCommandRejected,
)


class PowerActivities:
    """Each step may be killed at any moment and done again by another worker."""

    def __init__(
        self,
        inventory: Inventory,
        bmcs: BmcDirectory,
        directory: HostDirectory,
        hypervisor: Hypervisor,
        services: ServiceManager,
        leases: LeaseActivities,
    ) -> None:
        self._inventory = inventory
        self._bmcs = bmcs
        self._directory = directory
        self._hypervisor = hypervisor
        self._services = services
        self._leases = leases

    @activity.defn(name="read_power_settings")
    async def read_power_settings(self, request: HostRef) -> PowerSettings:
        """What is in force in the host's cluster. Raises NotFound (host, configuration),
        Disabled."""
        host = await self._inventory.hosts.get(request.host)
        await self._bmcs.find(request.host)
        settings = await self._inventory.settings.resolve(cluster=host.cluster)
        return PowerSettings(
            cluster=host.cluster,
            zone=host.zone,
            timeout=settings[OOBM_ACTION_TIMEOUT],
            answer_timeout=settings[OOBM_SYNC_TIMEOUT],
        )

    @activity.defn(name="require_power")
    async def require_power(self, request: RequirePowerInput) -> PowerUse:
        """Whether the host's power can be switched at all: what an operation asks before it changes
        anything. Raises NotFound (the host), Conflict (no out-of-band management, or a driver that
        can't have it boot from the network), Unavailable, Failed (of the BMC)."""
        host = await self._inventory.hosts.get(request.host)
        await self._inventory.oobm.require([host.name], request.option)
        if request.network_boot:
            bmc = await self._bmcs.find(host.name)
            with surprises_of_bmc(bmc):
                await _network_booter(bmc).check_network_boot(bmc.access, timeout=_COMMAND_WITHIN_S)
        settings = await self._inventory.settings.resolve(cluster=host.cluster)
        return PowerUse(boot_timeout=settings[HOST_REBOOT_TIMEOUT])

    @activity.defn(name="set_network_boot")
    async def set_network_boot(self, lease: LeaseRef) -> None:
        """The host's next boot, and no other, is from the network. Raises LeaseLost, Conflict (the
        driver can't), Unavailable, Failed (the BMC does not do it)."""
        bmc = await self._bmcs.find(lease.host)
        booter = _network_booter(bmc)
        await self._inventory.leases.verify(lease)
        with surprises_of_bmc(bmc):
            await uninterrupted(booter.set_network_boot(bmc.access, timeout=_COMMAND_WITHIN_S))

    @activity.defn(name="clear_network_boot")
    async def clear_network_boot(self, lease: LeaseRef) -> None:
        """The host's next boot is as ever. Raises LeaseLost, NotFound, Disabled, Unavailable,
        Failed (the BMC does not do it)."""
        bmc = await self._bmcs.find(lease.host)
        if not isinstance(bmc.driver, NetworkBooter):
            return
        await self._inventory.leases.verify(lease)
        with surprises_of_bmc(bmc):
            await bmc.driver.clear_network_boot(bmc.access, timeout=_COMMAND_WITHIN_S)

    @activity.defn(name="await_power_lease")
    async def await_power_lease(self, request: AwaitLeaseInput) -> Lease:
        """Take the lease, after whoever holds it now. Raises LeaseHeld when that takes too long,
        NotFound."""
        return await self._leases.await_lease(request)

    @activity.defn(name="ask_power")
    async def ask_power(self, request: HostRef) -> PowerWord:
        """What its BMC says at this moment, which is also written down. One that says nothing is an
        answer: `Unknown`. Raises NotFound, Disabled."""
        seen = await self._look(await self._bmcs.find(request.host))
        return PowerWord(
            state=seen.state, observed_at=seen.began_at, problem=seen.problem, reason=seen.reason
        )

    @activity.defn(name="survey_power")
    async def survey_power(self, request: HostRef) -> PowerSurvey:
        """The power, what runs there, and the boot that the host is in. A host that does not answer
        is an answer; a BMC is not. Raises Unavailable, Failed (of the BMC), NotFound, Disabled."""
        bmc = await self._bmcs.find(request.host)
        seen = await self._look(bmc)
        if seen.problem is not None:
            _raise_problem(seen)
        off = seen.state is PowerState.OFF
        access = None if off else await self._access(request.host)
        survey, boot = await asyncio.gather(self._survey(bmc, seen, access), self._boot(access))
        return survey.model_copy(update={"boot_id": boot})

    @activity.defn(name="send_power_command")
    async def send_power_command(self, request: PowerCommandRef) -> PowerSent:
        """Send it, unless it was sent before: then what is known of that. Raises LeaseLost,
        Unavailable (it was not sent), Failed (the BMC does not do it), Conflict (it may not be done
        any more: VMs have come, the BMC was configured anew)."""
        host = request.lease.host
        before = await self._inventory.power.take_over_command(request)
        if before is not None:
            return before
        bmc = await self._bmcs.find(host)
        if request.action in STOPS and not request.force:
            # The survey may be minutes old: the BMC may have been silent since, again and again.
            unasked = PowerSighting(
                host=host,
                generation=bmc.login.generation,
                began_at=datetime.now(UTC),
                state=PowerState.UNKNOWN,
            )
            survey = await self._survey(bmc, unasked, await self._access(host))
            problem = refusal(
                request.action, survey, force=False, may_be_silent=request.may_be_silent
            )
            if problem is not None:
                raise Conflict(f"{problem} {request.action!s} was not sent to its BMC.")
        begun = time.monotonic()
        before = await self._inventory.power.begin_command(request, bmc.login.generation)
        if before is not None:
            return before
        return await uninterrupted(self._send(bmc, request, begun))

    async def _send(self, bmc: Bmc, command: PowerCommandRef, begun: float) -> PowerSent:
        power = self._inventory.power
        if time.monotonic() - begun > _SENT_WITHIN_S:
            await power.withdraw_command(command)
            raise Unavailable(
                f"This worker was held up before it told the BMC of {bmc.login.host} anything."
            )
        try:
            await bmc.driver.set_power(
                bmc.access, PowerCommand(command.action.value), timeout=_COMMAND_WITHIN_S
            )
        except _NOT_SENT:
            await power.withdraw_command(command)
            raise
        except _REFUSED as error:
            await power.finish_command(command, CommandOutcome.REFUSED, error.message)
            raise
        except PowerOutcomeUnknown as error:
            return await power.record_answer(command, accepted=False, problem=error.message)
        except Exception as error:
            surprise = surprise_of_bmc(bmc, error)
            return await power.record_answer(command, accepted=False, problem=surprise.message)
        return await power.record_answer(command, accepted=True)

    @activity.defn(name="watch_power")
    async def watch_power(self, request: WatchPowerInput) -> PowerSeen:
        """Look again and again until the command has come about, or its time is over. A BMC that
        has refused the login is asked once more, at the end: it might lock the account. What was
        last seen is written down. That it was seen off is in the heartbeats: a next attempt
        may come when it is on again."""
        command = request.command
        bmc = await self._bmcs.find(command.lease.host)
        # As the attempts before this one have seen it.
        was_off = any(activity.info().heartbeat_details)
        refused: PowerSighting | None = None
        while True:
            if was_off:
                activity.heartbeat(True)
            over = datetime.now(UTC) >= request.until
            if refused is not None and not over:
                seen, boot = refused, await self._seen(command)
            else:
                seen, boot = await asyncio.gather(
                    ask(bmc, await self._patience()), self._seen(command)
                )
            refused = seen if seen.problem in LOGIN_PROBLEMS else None
            was_off |= seen.state is PowerState.OFF
            if over or _has_come_about(command, seen.state, was_off, boot):
                await self._record(seen)
                return PowerSeen(
                    state=seen.state,
                    observed_at=seen.began_at,
                    was_off=was_off,
                    boot=boot,
                    problem=seen.reason,
                )
            await asyncio.sleep(_POLL_S)

    @activity.defn(name="finish_power_command")
    async def finish_power_command(self, request: FinishPowerInput) -> None:
        """Write down what became of it, with an event."""
        await self._inventory.power.finish_command(
            request.command, request.outcome, request.message
        )

    # --- looks ----------------------------------------------------------------------------------

    async def _look(self, bmc: Bmc) -> PowerSighting:
        seen = await self._inventory.power.of_its_own(await ask(bmc, await self._patience()))
        await self._record(seen)
        return seen

    async def _patience(self) -> int:
        return (await self._inventory.settings.resolve())[OOBM_SYNC_TIMEOUT]

    async def _record(self, seen: PowerSighting) -> None:
        settings = await self._inventory.settings.resolve()
        await self._inventory.power.record(
            [seen],
            interval=timedelta(seconds=settings[OOBM_SYNC_INTERVAL]),
            operation=activity.info().workflow_id or "power",
        )

    async def _survey(
        self, bmc: Bmc, seen: PowerSighting, access: HostAccess | None
    ) -> PowerSurvey:
        """But for the boot. What is off runs nothing."""
        vms = [] if seen.state is PowerState.OFF else await self._vms(access)
        host = await self._inventory.hosts.get(bmc.login.host)
        coming = await self._inventory.reservations.pointing_at(host.name)
        return PowerSurvey(
            host=host.name,
            resource_state=host.resource_state,
            state=seen.state,
            observed_at=seen.began_at,
            generation=bmc.login.generation,
            vms=None if vms is None else tuple(vm.name for vm in vms),
            coming=tuple(one.vm for one in coming),
            last_seen_vms=host.usage.vms if host.usage is not None else None,
        )

    async def _access(self, host: str) -> HostAccess | None:
        try:
            return await self._directory.access(host)
        except (NotFound, Failed) as error:
            activity.logger.info("%s can't be asked: %s", host, error)
            return None

    async def _vms(self, access: HostAccess | None) -> list[Vm] | None:
        if access is None:
            return None
        try:
            with surprises_of(access.name):
                async with asyncio.timeout(_HOST_ANSWERS_WITHIN_S):
                    return await self._hypervisor.list_vms(access)
        except (Unavailable, Failed, TimeoutError) as error:
            activity.logger.info("%s does not tell its VMs: %s", access.name, error)
            return None

    async def _boot(self, access: HostAccess | None) -> str | None:
        if access is None:
            return None
        try:
            with surprises_of(access.name):
                async with asyncio.timeout(_HOST_ANSWERS_WITHIN_S):
                    return (await self._services.boot(access)).boot_id or None
        except (Unavailable, Failed, TimeoutError) as error:
            activity.logger.info("%s does not tell its boot: %s", access.name, error)
            return None

    async def _seen(self, command: PowerCommandRef) -> BootSeen:
        if command.boot_id is None or command.action not in BOOTS:
            return BootSeen.NOT_KNOWN
        boot = await self._boot(await self._access(command.lease.host))
        if boot is None:
            return BootSeen.SILENT
        return BootSeen.SAME if boot == command.boot_id else BootSeen.ANOTHER


def _network_booter(bmc: Bmc) -> NetworkBooter:
    if isinstance(bmc.driver, NetworkBooter):
        return bmc.driver
    raise Conflict(
        f"The driver {bmc.login.driver} of the BMC of {bmc.login.host} can't have it boot from the "
        "network.",
        remedy="Configure another driver that the BMC gets on with, or ask without network_boot "
        "and boot it from the network yourself.",
    )


def _has_come_about(
    command: PowerCommandRef, state: PowerState, was_off: bool, boot: BootSeen
) -> bool:
    if command.action not in BOOTS:
        return state is SHOULD_BE[command.action]
    if command.boot_id is not None:
        # A BMC that says off to a host that has booted was asked before it did: it is asked again.
        return boot is BootSeen.ANOTHER and state is not PowerState.OFF
    return state is PowerState.ON and was_off


def _raise_problem(seen: PowerSighting) -> None:
    message = f"The BMC of {seen.host} does not say how its power is: {seen.reason}."
    remedy = f"See `hostler oobm test {seen.host}`."
    if seen.problem is PowerProblem.UNREACHABLE:
        raise Unavailable(message, remedy=remedy)
    kinds: dict[PowerProblem | None, type[Failed]] = {
        PowerProblem.LOGIN_REFUSED: LoginRefused,
        PowerProblem.ACCOUNT_REFUSED: AccountRefused,
        PowerProblem.PRIVILEGE_REFUSED: InsufficientPrivilege,
        PowerProblem.ANOTHER_BMC: WrongBmc,
    }
    raise kinds.get(seen.problem, Failed)(message, remedy=remedy)
