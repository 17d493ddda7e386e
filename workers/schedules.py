"""What Temporal starts by itself: schedules, which people see, pause and trigger there."""

from dataclasses import dataclass, replace
from datetime import timedelta

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.service import RPCError

from contracts.base import Contract
from contracts.certificate_renewal import (
    CERTIFICATE_RENEWAL,
    CERTIFICATE_RENEWAL_SCHEDULE,
    CertificateRenewalInput,
)
from contracts.certificates import (
    AUTHORITY_UPKEEP,
    AUTHORITY_UPKEEP_SCHEDULE,
    AuthorityUpkeepInput,
)
from contracts.errors import Unavailable
from contracts.host_checks import HOST_CHECK, HOST_CHECK_SCHEDULE, HostCheckInput
from contracts.passwords import (
    PASSWORD_VERIFICATION,
    PASSWORD_VERIFICATION_SCHEDULE,
    PasswordVerificationInput,
)
from contracts.power_actions import POWER_SYNC, POWER_SYNC_SCHEDULE, PowerSyncInput
from contracts.settings import (
    CA_TASK_DELAY,
    HOST_CHECK_INTERVAL,
    OOBM_SYNC_INTERVAL,
    PASSWORD_VERIFICATION_INTERVAL,
    Setting,
)
from inventory import Inventory

# Rounds that were missed while Temporal was away are not made up for.
_CATCHUP = timedelta(seconds=10)


@dataclass(frozen=True)
class _Periodic:
    """A workflow that a schedule starts; the setting says how often, in seconds."""

    schedule: str
    workflow: str
    request: Contract
    interval: Setting[int]
    summary: str


_PERIODIC = (
    _Periodic(
        HOST_CHECK_SCHEDULE,
        HOST_CHECK,
        HostCheckInput(),
        HOST_CHECK_INTERVAL,
        "Looks at every host",
    ),
    _Periodic(
        POWER_SYNC_SCHEDULE,
        POWER_SYNC,
        PowerSyncInput(),
        OOBM_SYNC_INTERVAL,
        "Asks every BMC how the power is",
    ),
    _Periodic(
        PASSWORD_VERIFICATION_SCHEDULE,
        PASSWORD_VERIFICATION,
        PasswordVerificationInput(),
        PASSWORD_VERIFICATION_INTERVAL,
        "Looks whether hosts have the passwords of their clusters",
    ),
    _Periodic(
        AUTHORITY_UPKEEP_SCHEDULE,
        AUTHORITY_UPKEEP,
        AuthorityUpkeepInput(),
        CA_TASK_DELAY,
        "Looks after the certificate authorities",
    ),
    _Periodic(
        CERTIFICATE_RENEWAL_SCHEDULE,
        CERTIFICATE_RENEWAL,
        CertificateRenewalInput(),
        CA_TASK_DELAY,
        "Renews certificates that expire, and tells of those",
    ),
)


async def ensure_schedules(client: Client, inventory: Inventory, task_queue: str) -> None:
    """Create those that are missing. One that is there gets what this version starts, and how; its
    interval, which each round sets, and its state stay: somebody may have paused it. Raises
    Unavailable."""
    settings = await inventory.settings.resolve()
    for periodic in _PERIODIC:
        every = timedelta(seconds=settings[periodic.interval])
        await _ensure(client, periodic, every, task_queue)


async def _ensure(client: Client, periodic: _Periodic, every: timedelta, task_queue: str) -> None:
    wanted = Schedule(
        action=ScheduleActionStartWorkflow(
            periodic.workflow,
            periodic.request,
            id=periodic.schedule,
            task_queue=task_queue,
            static_summary=periodic.summary,
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=every)]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=_CATCHUP),
    )

    def bring_up_to_date(found: ScheduleUpdateInput) -> ScheduleUpdate:
        there = found.description.schedule
        return ScheduleUpdate(replace(there, action=wanted.action, policy=wanted.policy))

    try:
        try:
            await client.create_schedule(periodic.schedule, wanted)
        except ScheduleAlreadyRunningError:
            await client.get_schedule_handle(periodic.schedule).update(bring_up_to_date)
    except RPCError as error:
        raise Unavailable(
            f"Temporal did not create or update the schedule {periodic.schedule}: {error.message}."
        ) from error
