"""Rollover of a certificate authority: its steps, and how far it is."""

from collections.abc import Collection

from temporalio import activity

from activities.authorities import Directory
from activities.controller import ControllerCertificates
from contracts.certificates import certificates_in
from contracts.errors import Conflict, InvalidInput
from contracts.rollover import (
    FindRolloverInput,
    LeaveHostOutInput,
    LookAtRolloverInput,
    NoteRolloverInput,
    PrepareNextInput,
    RolloverProgress,
    RolloverStage,
    RolloverStepInput,
    RolloverStepResult,
    why_stopped,
)
from contracts.settings import CA_PROVIDER, CA_RENEWAL_CONCURRENCY
from drivers.authorities.protocols import SucceedsAuthority
from inventory import Inventory
from inventory.certificates import event_subject


class RolloverActivities:
    """Each step may be done again: it finds what an earlier attempt, or another run, has done."""

    def __init__(
        self, inventory: Inventory, directory: Directory, own: ControllerCertificates
    ) -> None:
        self._inventory = inventory
        self._directory = directory
        self._own = own

    @activity.defn(name="find_rollover")
    async def find_rollover(self, request: FindRolloverInput) -> RolloverProgress:
        """Whose CA it is, and where its rollover stands. An external CA is asked what it issues
        with now. Raises NotFound (there is no CA), Conflict, Unavailable."""
        if request.provider is None:
            provider = await self._directory.chosen(request.operation)
        else:
            provider = await self._directory.named(request.provider, request.operation)
        await self._inventory.authorities.get(provider.name)
        if not isinstance(provider.ca, SucceedsAuthority):
            await self._directory.authority(provider, request.operation)
        return await self._progress(provider.name)

    @activity.defn(name="prepare_next_authority")
    async def prepare_next_authority(self, request: PrepareNextInput) -> RolloverProgress:
        """Have the provider make the next CA, or take the operator's, unless a rollover was begun
        before; leave these hosts out of it. Raises NotFound, InvalidInput; Conflict, also if
        another provider issues."""
        # Before a CA is made that would be left behind.
        for host in request.leave_out:
            await self._inventory.rollovers.require_can_be_left_out(host)
        provider = await self._directory.named(request.provider, request.operation)
        if said := await self._another_issues(provider.name):
            raise Conflict(
                f"The CA of {provider.name} can't be replaced: {said}",
                remedy=f"Set {CA_PROVIDER.name} to {provider.name} until that is done.",
            )
        stage = (await self._progress(provider.name)).stage
        if request.key_secret is not None and request.chain is not None:
            await self._import_next(request, stage, request.key_secret, request.chain)
        elif stage is RolloverStage.NONE:
            if not isinstance(provider.ca, SucceedsAuthority):
                raise Conflict(
                    f"The CA of the provider {provider.name!r} is replaced there, not here.",
                    remedy="Have it issue with another one, and start this again: hosts get "
                    "certificates of that one, and then trust the former one no more.",
                )
            with provider.surprises():
                await provider.ca.make_next(request.after)
        for host in request.leave_out:
            await self._inventory.rollovers.leave_out(
                provider.name,
                host,
                f"left out from the beginning: {request.reason or 'no reason given'}",
                operation=request.operation,
                actor=request.requester or request.operation,
            )
        return await self._progress(provider.name)

    @activity.defn(name="look_at_rollover")
    async def look_at_rollover(self, request: LookAtRolloverInput) -> RolloverProgress:
        """Where it stands, and which hosts can be worked on."""
        return await self._progress(request.provider, request.busy)

    @activity.defn(name="leave_host_out")
    async def leave_host_out(self, request: LeaveHostOutInput) -> None:
        """Do not wait for that host. Raises NotFound, Conflict."""
        await self._inventory.rollovers.leave_out(
            request.provider,
            request.host,
            request.reason,
            operation=request.operation,
            actor=request.operation,
        )

    @activity.defn(name="begin_issuing")
    async def begin_issuing(self, request: RolloverStepInput) -> RolloverStepResult:
        """The next CA issues, unless a host does not trust it."""
        done = await self._inventory.rollovers.begin_issuing(
            request.provider, operation=request.operation
        )
        return RolloverStepResult(done=done)

    @activity.defn(name="renew_own_certificate")
    async def renew_own_certificate(self, request: RolloverStepInput) -> None:
        """Hostler's own, by the CA that issues now, unless it is of that one."""
        await self._own.current(request.operation)

    @activity.defn(name="withdraw_authority")
    async def withdraw_authority(self, request: RolloverStepInput) -> RolloverStepResult:
        """The former CA is to be trusted no more, unless a host has certificates of it."""
        done = await self._inventory.rollovers.withdraw(
            request.provider, operation=request.operation
        )
        return RolloverStepResult(done=done)

    @activity.defn(name="end_rollover")
    async def end_rollover(self, request: RolloverStepInput) -> RolloverStepResult:
        """It is over, unless a host still trusts the former CA."""
        done = await self._inventory.rollovers.end(request.provider, operation=request.operation)
        return RolloverStepResult(done=done)

    @activity.defn(name="drop_next_authority")
    async def drop_next_authority(self, request: RolloverStepInput) -> RolloverStepResult:
        """The next CA does not come, unless it issues already."""
        done = await self._inventory.rollovers.drop_next(
            request.provider, operation=request.operation
        )
        return RolloverStepResult(done=done)

    @activity.defn(name="note_rollover")
    async def note_rollover(self, request: NoteRolloverInput) -> None:
        """How a host has got its certificates; or that it has not, once a day."""
        await self._inventory.expiring_certificates.note_renewal(request.host, request.problem)
        if request.problem:
            said = f"it has no certificates of the new CA: {request.problem}"
            await self._inventory.events.record_once_a_day(
                "ca.rollover_host_failed",
                {event_subject(request.host): said},
                operation=request.operation,
            )

    async def _import_next(
        self, request: PrepareNextInput, stage: RolloverStage, secret: str, chain: str
    ) -> None:
        provider = await self._directory.named(request.provider, request.operation)
        current = await self._inventory.authorities.get(provider.name)
        is_current = current.chain == tuple(certificates_in(chain))
        if stage in (RolloverStage.CERTIFICATES, RolloverStage.WITHDRAWAL):
            if not is_current:
                raise Conflict(
                    f"{current.subject} is just taking the place of another CA.",
                    remedy="Bring that to its end first: hostler ca rollover.",
                )
            return
        if is_current:
            raise InvalidInput(f"{current.subject} is in use now.")
        if not isinstance(provider.ca, SucceedsAuthority):
            raise Conflict(f"The CA provider {provider.name!r} takes no key of an operator's.")
        key = await self._inventory.secrets.reveal(secret)
        with provider.surprises():
            await provider.ca.import_next(key.plaintext, chain, request.after)

    async def _progress(self, provider: str, busy: Collection[str] = ()) -> RolloverProgress:
        found = await self._inventory.rollovers.progress(provider, busy=busy)
        self._measure(found)
        clusters = sorted({*found.due.values()})
        is_open = found.stage is not RolloverStage.NONE
        return found.model_copy(
            update={
                "stopped": await self._another_issues(provider) if is_open else "",
                "at_a_time": {
                    cluster: (await self._inventory.settings.resolve(cluster=cluster))[
                        CA_RENEWAL_CONCURRENCY
                    ]
                    for cluster in clusters
                },
            }
        )

    async def _another_issues(self, provider: str) -> str:
        return why_stopped(provider, (await self._inventory.settings.resolve())[CA_PROVIDER])

    def _measure(self, found: RolloverProgress) -> None:
        gauge = activity.metric_meter().create_gauge(
            "hostler_ca_rollover_hosts", "Hosts in the present stage of a rollover", "1"
        )
        numbers = {
            "done": found.done,
            "due": found.due_count,
            "waiting": found.waiting_count,
            "left_out": found.left_out_count,
        }
        for state, number in numbers.items():
            gauge.set(
                number if found.stage is not RolloverStage.NONE else 0,
                {"provider": found.provider, "state": state},
            )
