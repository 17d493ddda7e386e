"""BmcPasswordChange: give a host's BMC another password, with both kept until one is proven.

    lease -> settle -> stage -> set and prove -> promote, or keep the old one

At no moment is the only copy of a password on its way. If the BMC dies in between, or goes by the
new one later than anybody waits, both stay stored. The next change begins by settling that: it
finds out which one the BMC takes, and only then stores another one beside it.
"""

import asyncio

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.bmc_accounts import BmcAccountActivities
    from activities.leases import LeaseActivities
    from activities.power import PowerActivities
    from contracts.leases import Lease, LeaseRef, LeaseScope, Owner
    from contracts.power_actions import (
        BmcPasswordChangeInput,
        BmcPasswordChangeResult,
        BmcPasswordProven,
        BmcPasswordSettled,
        BmcPasswordStatus,
        PowerSettings,
        StageBmcPasswordInput,
    )
    from contracts.states import Phase
    from contracts.steps import AcquireLeaseInput, AwaitLeaseInput, HostRef
    from workflows import policies
    from workflows.failures import as_application_error
    from workflows.search_attributes import HOST_CLUSTER, HOST_NAME, HOST_ZONE, PHASE
    from workflows.takeover import conflict


@workflow.defn(name="BmcPasswordChange")
class BmcPasswordChange:
    """One change of one BMC's password. A cancel that comes once the BMC was told comes too late:
    the change is brought to its end."""

    def __init__(self) -> None:
        self._request: BmcPasswordChangeInput | None = None
        self._phase = Phase.PLANNING
        self._message = "Looks at the host"
        self._lease: LeaseRef | None = None
        self._settling = False
        self._staged = False
        self._canceled = False

    @workflow.run
    async def run(self, request: BmcPasswordChangeInput) -> BmcPasswordChangeResult:
        """Returns when the BMC lets Hostler in with the new password."""
        self._request = request
        workflow.upsert_search_attributes([HOST_NAME.value_set(request.host)])
        self._enter(Phase.PLANNING, f"Looks how the BMC of {request.host} is reached")
        work = asyncio.create_task(self._change())
        while not work.done():
            try:
                await workflow.wait_condition(work.done)
            except asyncio.CancelledError:
                if not self._staged:
                    self._canceled = True
                    work.cancel()
        problem = None if work.cancelled() else work.exception()
        if not self._staged and request.secret is not None:
            await workflow.execute_activity_method(
                BmcAccountActivities.discard_bmc_secret, request.secret, **policies.RECORD
            )
        if self._lease is not None:
            await workflow.execute_activity_method(
                LeaseActivities.release_lease, self._lease, **policies.RECORD
            )
        if work.cancelled() or (problem is not None and self._canceled):
            raise asyncio.CancelledError("cancelled before anything was changed")
        if isinstance(problem, ActivityError):
            problem = self._with_remains(as_application_error(problem))
        if problem is not None:
            self._enter(Phase.DONE, str(problem))
            raise problem
        return work.result()

    async def _change(self) -> BmcPasswordChangeResult:
        host = self._asked.host
        lease = await self._acquire()
        self._enter(Phase.INSTALLING, f"Looks which password the BMC of {host} takes")
        self._settling = True
        settled: BmcPasswordSettled = await workflow.execute_activity_method(
            BmcAccountActivities.settle_bmc_password,
            lease,
            summary="What a former change may have left",
            **policies.BMC_ACCOUNT,
        )
        self._settling = False
        if settled.promoted and self._asked.secret is None:
            self._enter(Phase.DONE, f"The BMC of {host} has the password of a former change")
            return BmcPasswordChangeResult(host=host, proof="it takes what a former change has set")
        self._enter(Phase.INSTALLING, f"Stores a new password for the BMC of {host}")
        self._staged = True
        staged = StageBmcPasswordInput(lease=lease, secret=self._asked.secret)
        await workflow.execute_activity_method(
            BmcAccountActivities.stage_bmc_password,
            staged,
            summary="The new password, stored beside the old one",
            **policies.RECORD,
        )
        self._enter(Phase.INSTALLING, f"Has the BMC of {host} take it, and proves that")
        proven: BmcPasswordProven = await workflow.execute_activity_method(
            BmcAccountActivities.set_bmc_password,
            lease,
            summary=f"Set at the BMC of {host}, and proven by a login",
            **policies.BMC_ACCOUNT,
        )
        if not proven.changed:
            await workflow.execute_activity_method(
                BmcAccountActivities.drop_bmc_password,
                staged,
                summary="The old password stays",
                **policies.RECORD,
            )
            raise ApplicationError(
                f"The BMC of {host} keeps its old password: {proven.proof}",
                type="Failed",
                non_retryable=True,
            )
        await workflow.execute_activity_method(
            BmcAccountActivities.promote_bmc_password,
            lease,
            summary="The new password counts, the old one is deleted",
            **policies.RECORD,
        )
        self._enter(Phase.DONE, f"The BMC of {host} has a new password")
        return BmcPasswordChangeResult(host=host, proof=proven.proof)

    async def _acquire(self) -> LeaseRef:
        asked, info = self._asked, workflow.info()
        settings: PowerSettings = await workflow.execute_activity_method(
            PowerActivities.read_power_settings,
            HostRef(host=asked.host),
            summary="Settings",
            **policies.RECORD,
        )
        workflow.upsert_search_attributes(
            [HOST_CLUSTER.value_set(settings.cluster), HOST_ZONE.value_set(settings.zone)]
        )
        self._enter(Phase.QUEUED, f"Waits for whatever else is done to the BMC of {asked.host}")
        lease: Lease = await workflow.execute_activity_method(
            PowerActivities.await_power_lease,
            AwaitLeaseInput(
                acquire=AcquireLeaseInput(
                    host=asked.host,
                    scope=LeaseScope.POWER,
                    owner=Owner(
                        workflow_id=info.workflow_id, first_run_id=info.first_execution_run_id
                    ),
                    purpose=f"password of its BMC: {asked.reason or 'no reason given'}",
                ),
                within_s=settings.timeout,
            ),
            summary=f"The BMC of {asked.host}, for this alone",
            **policies.HOST_WAIT,
        )
        self._lease = LeaseRef(
            host=lease.host, scope=lease.scope, owner=lease.owner, epoch=lease.epoch
        )
        if lease.taken_over_from is not None:
            await workflow.sleep(
                policies.HEARTBEAT_TIMEOUT, summary="The predecessor's activities come to an end"
            )
        return self._lease

    @workflow.query(name="status")
    def status(self) -> BmcPasswordStatus:
        """Where the change stands."""
        host = self._asked.host
        return BmcPasswordStatus(
            host=host,
            phase=self._phase,
            reason=self._asked.reason,
            message=self._message,
            commands=(f"hostler oobm show {host}",),
        )

    @property
    def _asked(self) -> BmcPasswordChangeInput:
        if self._request is None:
            raise conflict("The change has not begun yet.")
        return self._request

    def _with_remains(self, problem: ApplicationError) -> ApplicationError:
        """Both passwords are kept while it is not known which one the BMC takes."""
        if not (self._staged or self._settling) or problem.type == "NotFound":
            return problem
        return ApplicationError(
            f"{problem.message} Both passwords are kept. Which one it takes is found out by the "
            f"next change, and by: hostler oobm test {self._asked.host}",
            *problem.details,
            type=problem.type,
            non_retryable=problem.non_retryable,
        )

    def _enter(self, phase: Phase, message: str) -> None:
        # The SDK loses a cancel that crosses the end of an activity: no further step begins.
        if self._canceled and phase is not Phase.DONE:
            raise asyncio.CancelledError
        self._phase, self._message = phase, message
        workflow.upsert_search_attributes([PHASE.value_set(phase)])
        workflow.set_current_details(
            f"### {self._asked.host}: password of its BMC: {phase}\n\n{message}\n\n"
            f"    hostler oobm show {self._asked.host}"
        )
