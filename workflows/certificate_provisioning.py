"""CertificateProvisioning: a host gets keys and certificates of its own, or new ones.

    lease -> keys and signing requests, made there -> certificates -> placed beside their keys
    -> switched to, and proven -> what they replace deleted

Whatever fails, and a cancel until they are proven, puts back what was there before, and revokes
what was issued. VMs run on all along.
"""

import asyncio
from collections.abc import Callable

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.certificates import CertificateActivities
    from activities.leases import LeaseActivities
    from activities.provisioning import ProvisioningActivities
    from contracts.certificates import (
        CertificateProvisioningInput,
        CertificateProvisioningResult,
        CertificateProvisioningStatus,
        CertificateRequests,
        CertificateRole,
        CertificateSet,
        CertificateSigningResult,
        IssueCertificateInput,
        RevocationReason,
        RevokeCertificatesInput,
        SwitchCertificatesInput,
    )
    from contracts.leases import Lease, LeaseRef, LeaseScope, Owner
    from contracts.states import Phase
    from contracts.steps import AcquireLeaseInput
    from workflows import policies
    from workflows.failures import as_application_error, explain
    from workflows.search_attributes import HOST_NAME, PHASE
    from workflows.takeover import conflict


@workflow.defn(name="CertificateProvisioning")
class CertificateProvisioning:
    """One host, once."""

    def __init__(self) -> None:
        self._request: CertificateProvisioningInput | None = None
        self._phase = Phase.PLANNING
        self._message = ""
        self._lease: LeaseRef | None = None
        self._made: CertificateSet | None = None
        self._serials: list[str] = []
        self._proven = False
        self._canceled = False

    @workflow.run
    async def run(self, request: CertificateProvisioningInput) -> CertificateProvisioningResult:
        """Returns when the host goes by its new certificates, and that is proven."""
        self._request = request
        workflow.upsert_search_attributes([HOST_NAME.value_set(request.host)])
        self._enter(Phase.PLANNING, f"Takes {request.host} for this alone")
        work = asyncio.create_task(self._provision())
        await self._end_of(work, until=lambda: self._proven)
        problem = None if work.cancelled() else work.exception()
        if self._canceled and problem is not None and is_cancelled_exception(problem):
            problem = None
        if not work.cancelled() and work.exception() is None:
            await self._release()
            return work.result()
        said = str(problem) if problem is not None else "it was cancelled"
        if isinstance(problem, ActivityError):
            problem = as_application_error(problem)
            said = problem.message
        if self._made is not None and not self._proven:
            undo = asyncio.create_task(self._put_back(self._made, said))
            await self._end_of(undo, until=lambda: True)
            said = undo.result()
        await self._release()
        if self._canceled and not isinstance(problem, ApplicationError):
            raise asyncio.CancelledError(said)
        error = problem if isinstance(problem, ApplicationError) else None
        self._enter(Phase.DONE, said)
        raise ApplicationError(
            said,
            *(error.details if error else ()),
            type=error.type if error else "Failed",
            non_retryable=True,
        )

    async def _provision(self) -> CertificateProvisioningResult:
        host, info = self._asked.host, workflow.info()
        self._lease = lease = await self._acquire()
        self._enter(Phase.INSTALLING, f"Has {host} make its keys")
        made = CertificateSet(
            lease=lease, name=info.first_execution_run_id, added=self._asked.held is not None
        )
        self._made = made
        requests: CertificateRequests = await workflow.execute_activity_method(
            ProvisioningActivities.prepare_certificates,
            made,
            summary=f"Keys and signing requests, made on {host}",
            **policies.CERTIFICATE_CHANGE,
        )
        self._enter(Phase.INSTALLING, f"Has them certified for {host}")
        switch = SwitchCertificatesInput(
            **dict(made),
            libvirt=await self._issue(requests.libvirt, CertificateRole.HOST),
            qemu=await self._issue(requests.qemu, CertificateRole.QEMU),
        )
        self._enter(Phase.INSTALLING, f"Puts the certificates on {host}, beside those in use")
        await workflow.execute_activity_method(
            ProvisioningActivities.place_certificates,
            switch,
            summary="A complete set, checked there",
            **policies.CERTIFICATE_CHANGE,
        )
        self._enter(Phase.SWITCHING, f"Has libvirt and QEMU on {host} go by them, and proves it")
        await workflow.execute_activity_method(
            ProvisioningActivities.switch_certificates,
            switch,
            summary="In force, and proven by TLS",
            **policies.CERTIFICATE_CHANGE,
        )
        self._enter(Phase.CLEANING, f"Deletes what they have replaced on {host}")
        self._proven = True
        result: CertificateProvisioningResult = await workflow.execute_activity_method(
            ProvisioningActivities.finish_certificates,
            switch,
            summary="The former set goes",
            **policies.HOST_CHANGE,
        )
        self._enter(
            Phase.DONE, f"{host} has certificates until {result.not_after:%Y-%m-%d %H:%M} UTC"
        )
        return result

    async def _acquire(self) -> LeaseRef:
        asked, info = self._asked, workflow.info()
        if asked.held is not None:
            return asked.held
        lease: Lease = await workflow.execute_activity_method(
            LeaseActivities.acquire_lease,
            AcquireLeaseInput(
                host=asked.host,
                scope=LeaseScope.TRUST,
                owner=Owner(workflow_id=info.workflow_id, first_run_id=info.first_execution_run_id),
                purpose=f"certificates: {asked.reason or 'no reason given'}",
            ),
            summary=f"Certificates of {asked.host}, for this alone",
            **policies.RECORD,
        )
        if lease.taken_over_from is not None:
            await workflow.sleep(
                policies.HEARTBEAT_TIMEOUT, summary="The predecessor's activities come to an end"
            )
        return LeaseRef(host=lease.host, scope=lease.scope, owner=lease.owner, epoch=lease.epoch)

    async def _issue(self, csr: str, role: CertificateRole) -> str:
        """The request by which the certificate is found. It names the run that holds the lease: so
        the inventory knows whether this may have the host go by it yet."""
        info, held = workflow.info(), self._asked.held
        runs = [info.first_execution_run_id]
        if held is not None:
            runs.insert(0, held.owner.first_run_id)
        request = "/".join((info.workflow_id, *runs, role))
        issued: CertificateSigningResult = await workflow.execute_activity_method(
            CertificateActivities.issue_certificate,
            IssueCertificateInput(
                csr=csr,
                host=self._asked.host,
                role=role,
                requester=self._asked.requester,
                request=request,
                operation=info.workflow_id,
            ),
            summary=f"A certificate in the role {role}",
            **policies.CA_CALL,
        )
        self._serials.append(issued.certificate.serial)
        return request

    async def _put_back(self, made: CertificateSet, problem: str) -> str:
        """What became of it, after the problem; waits until the host is back."""
        host = self._asked.host
        self._phase = Phase.ROLLING_BACK
        self._say(f"Puts back what {host} had before: {problem}")
        try:
            await workflow.execute_activity_method(
                ProvisioningActivities.restore_certificates,
                made,
                summary="What was there before, in force again",
                **policies.HOST_CHANGE,
            )
            outcome = f"{host} has what it had before."
        except ActivityError as error:
            outcome = f"What it had before could not be put back: {explain(error)}"
        for serial in self._serials:
            try:
                await workflow.execute_activity_method(
                    CertificateActivities.revoke_certificates,
                    RevokeCertificatesInput(
                        serial=serial,
                        reason=RevocationReason.SUPERSEDED,
                        operation=workflow.info().workflow_id,
                    ),
                    summary="Of no use any more",
                    **policies.CA_ROUND,
                )
            except ActivityError as error:
                outcome += f" The certificate {serial} is still valid: {explain(error)}"
        return f"{problem.rstrip('.')}. {outcome}"

    async def _release(self) -> None:
        if self._lease is not None and self._asked.held is None:
            await workflow.execute_activity_method(
                LeaseActivities.release_lease, self._lease, **policies.RECORD
            )

    async def _end_of(self, task: "asyncio.Task[object]", until: Callable[[], bool]) -> None:
        """A cancel ends the task, unless it comes too late."""
        while not task.done():
            try:
                await workflow.wait_condition(task.done)
            except asyncio.CancelledError:
                if not until():
                    self._canceled = True
                    task.cancel()

    @workflow.query(name="status")
    def status(self) -> CertificateProvisioningStatus:
        """Where it stands."""
        host = self._asked.host
        return CertificateProvisioningStatus(
            host=host,
            phase=self._phase,
            reason=self._asked.reason,
            message=self._message,
            commands=(f"hostler cert list --host {host}",),
        )

    @property
    def _asked(self) -> CertificateProvisioningInput:
        if self._request is None:
            raise conflict("The provisioning has not begun yet.")
        return self._request

    def _enter(self, phase: Phase, message: str) -> None:
        # The SDK loses a cancel that crosses the end of an activity: no further step begins.
        if self._canceled and phase is not Phase.DONE:
            raise asyncio.CancelledError
        self._phase = phase
        self._say(message)

    def _say(self, message: str) -> None:
        self._message = message
        workflow.upsert_search_attributes([PHASE.value_set(self._phase)])
        workflow.set_current_details(
            f"### {self._asked.host}: certificates: {self._phase}\n\n{message}\n\n"
            f"    hostler cert list --host {self._asked.host}"
        )
