"""CertificateRenewal: a schedule's round over all certificates that expire.

    what is due, from the inventory; who has to be told is told -> host by host, some of each
    cluster at a time: a CertificateProvisioning

A provisioning goes on by itself, whatever becomes of the round.
"""

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    ChildWorkflowError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)
from temporalio.workflow import ChildWorkflowCancellationType, ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from activities.renewal import RenewalActivities
    from activities.schedules import ScheduleActivities
    from contracts.certificate_renewal import (
        CERTIFICATE_RENEWAL,
        CERTIFICATE_RENEWAL_SCHEDULE,
        CertificateRenewalInput,
        CertificateRenewalResult,
        ClusterRenewals,
        Lifetime,
        NoteRenewalInput,
        PlanRenewalsInput,
        RenewalPlan,
    )
    from contracts.certificates import CertificateProvisioningInput
    from contracts.host_checks import AlignScheduleInput
    from contracts.operations import WORKFLOW_TYPES, OperationKind, workflow_id
    from workflows import policies
    from workflows.failures import as_application_error


@workflow.defn(name=CERTIFICATE_RENEWAL)
class CertificateRenewal:
    """One round. A host whose renewal fails is tried again by a later one."""

    def __init__(self) -> None:
        self._renewed: list[str] = []
        self._failed: dict[str, str] = {}
        self._due = 0

    @workflow.run
    async def run(self, _request: CertificateRenewalInput) -> CertificateRenewalResult:
        """Returns when each certificate that was due was renewed, or why not is noted."""
        operation = workflow.info().workflow_id
        try:
            plan: RenewalPlan = await workflow.execute_activity_method(
                RenewalActivities.plan_renewals,
                PlanRenewalsInput(operation=operation),
                summary="What expires, and who has to know",
                **policies.RECORD,
            )
            await workflow.execute_activity_method(
                ScheduleActivities.align_schedule,
                AlignScheduleInput(schedule=CERTIFICATE_RENEWAL_SCHEDULE, every_s=plan.every_s),
                summary="The interval of these rounds",
                **policies.RECORD,
            )
            self._due = sum(len(cluster.hosts) for cluster in plan.clusters)
            self._show()
            await asyncio.gather(
                *(
                    self._renew_cluster(cluster, timedelta(seconds=plan.patience_s))
                    for cluster in plan.clusters
                )
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            raise as_application_error(error) from error
        return CertificateRenewalResult(
            renewed=tuple(sorted(self._renewed)), failed=dict(sorted(self._failed.items()))
        )

    async def _renew_cluster(self, cluster: ClusterRenewals, patience: timedelta) -> None:
        slots = asyncio.Semaphore(cluster.at_a_time)

        async def one(due: Lifetime) -> None:
            async with slots:
                problem = await self._renew(due, patience)
            if problem is None:
                return
            await workflow.execute_activity_method(
                RenewalActivities.note_renewal,
                NoteRenewalInput(
                    host=due.host, problem=problem, operation=workflow.info().workflow_id
                ),
                summary=f"How it ended: {due.host}",
                **policies.RECORD,
            )
            if problem:
                self._failed[due.host] = problem
            else:
                self._renewed.append(due.host)
            self._show()

        await asyncio.gather(*(one(due) for due in cluster.hosts))

    async def _renew(self, due: Lifetime, patience: timedelta) -> str | None:
        """What went wrong; nothing (""), or others are at it (None)."""
        operation = workflow_id(OperationKind.PROVISIONING, due.host)
        try:
            provisioning = await workflow.start_child_workflow(
                WORKFLOW_TYPES[OperationKind.PROVISIONING],
                CertificateProvisioningInput(
                    host=due.host,
                    reason=f"they expire at {due.not_after:%Y-%m-%d %H:%M} UTC",
                    requester=workflow.info().workflow_id,
                ),
                id=operation,
                parent_close_policy=ParentClosePolicy.ABANDON,
                cancellation_type=ChildWorkflowCancellationType.ABANDON,
                static_summary=f"{due.host}: new certificates in the place of old ones",
            )
        except WorkflowAlreadyStartedError:
            workflow.logger.info("%s is under way already", operation)
            return None
        try:
            # One that goes away in the middle is waited for by its provisioning, not by the round.
            await workflow.wait_condition(provisioning.done, timeout=patience)
            await provisioning
        except TimeoutError:
            return f"{operation} is still under way after {patience.total_seconds():.0f} s"
        except ChildWorkflowError as error:
            if isinstance(error.cause, ApplicationError):
                return error.cause.message
            return f"{operation} was ended: {error.cause or error}"
        return ""

    def _show(self) -> None:
        workflow.set_current_details(
            f"### {self._due} hosts whose certificates are due\n\n"
            f"{len(self._renewed)} renewed, {len(self._failed)} not"
            + "".join(f"\n- {host}: {problem}" for host, problem in self._failed.items())
        )
