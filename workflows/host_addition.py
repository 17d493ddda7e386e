"""HostAddition: bring a host into the inventory, its key pinned, its fence proven.

connect -> accept the host key -> register -> read facts -> install the fence -> in service
"""

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.addition import AdditionActivities
    from activities.fencing import FencingActivities
    from activities.leases import LeaseActivities
    from activities.records import RecordActivities
    from activities.survey import SurveyActivities
    from contracts.addition import (
        AcceptHostKeyInput,
        HostAdditionInput,
        HostAdditionResult,
        HostAdditionStatus,
    )
    from contracts.hosts import Host, HostFacts
    from contracts.leases import Lease, LeaseRef, Owner
    from contracts.states import HostStatus, Phase, ResourceState
    from contracts.steps import (
        AcquireLeaseInput,
        ChangeStateInput,
        FenceInput,
        HostKeyResult,
        RegisterHostInput,
        ScanHostKeyInput,
        SetStatusInput,
    )
    from workflows import policies
    from workflows.failures import as_application_error, explain
    from workflows.search_attributes import HOST_CLUSTER, HOST_NAME, HOST_ZONE, PHASE

_ACCEPT_WITHIN = timedelta(hours=1)


@workflow.defn(name="HostAddition")
class HostAddition:
    """One addition of one host."""

    def __init__(self) -> None:
        self._request: HostAdditionInput | None = None
        self._phase = Phase.CONNECTING
        self._message = "Connects to the host"
        self._lease: LeaseRef | None = None
        self._key: HostKeyResult | None = None
        self._accepted: str | None = None
        self._registered = False
        self._fence_begun = False
        self._not_taken_back = ""
        self._canceled = False

    @workflow.run
    async def run(self, request: HostAdditionInput) -> HostAdditionResult:
        """Returns when the host is in service. After a failure neither its row, its lease nor its
        fence stay; the hook, which refuses nothing then, does."""
        self._request = request
        self._accepted = request.host_key_sha256
        self._enter(Phase.CONNECTING, f"Connects to {request.address} port {request.ssh_port}")
        work = asyncio.create_task(self._add())
        canceled = False
        while not work.done():
            try:
                await workflow.wait_condition(work.done)
            except asyncio.CancelledError:
                self._canceled = canceled = True
                work.cancel()
        failure: BaseException | None = work.exception() if not work.cancelled() else None
        if failure is None and not work.cancelled():
            return work.result()
        await self._undo()
        await workflow.wait_condition(workflow.all_handlers_finished)
        if canceled:
            raise asyncio.CancelledError("the addition was cancelled")
        if isinstance(failure, ActivityError):
            raise self._with_remains(as_application_error(failure))
        raise failure or asyncio.CancelledError

    async def _add(self) -> HostAdditionResult:
        await self._take_lease()
        await self._pin_host_key()
        host = await self._register()
        facts = await self._read_facts()
        await self._install_fence()
        host = await self._put_into_service(host)
        await self._release_lease()
        self._enter(Phase.DONE, f"{host.name} is {host.resource_state}")
        return HostAdditionResult(
            name=host.name,
            resource_state=host.resource_state,
            host_key_sha256=self._shown.sha256,
            facts=facts,
        )

    async def _take_lease(self) -> None:
        info = workflow.info()
        lease: Lease = await workflow.execute_activity_method(
            LeaseActivities.acquire_lease,
            AcquireLeaseInput(
                host=self._asked.name,
                owner=Owner(workflow_id=info.workflow_id, first_run_id=info.first_execution_run_id),
                purpose="addition",
                known=False,
            ),
            summary=f"Lease of {self._asked.name}",
            **policies.RECORD,
        )
        self._lease = LeaseRef(
            host=lease.host, scope=lease.scope, owner=lease.owner, epoch=lease.epoch
        )

    async def _pin_host_key(self) -> None:
        """The key is pinned only after somebody has said that it is the host's."""
        self._key = await workflow.execute_activity_method(
            AdditionActivities.scan_host_key,
            ScanHostKeyInput(address=str(self._asked.address), ssh_port=self._asked.ssh_port),
            summary="SSH host key",
            **policies.FIRST_CONTACT,
        )
        if self._accepted is None:
            self._enter(
                Phase.QUESTION, f"The host shows the key {self._shown.sha256}: is it the right one?"
            )
            try:
                await workflow.wait_condition(
                    lambda: self._accepted is not None,
                    timeout=_ACCEPT_WITHIN,
                    timeout_summary="An operator compares the host key",
                )
            except TimeoutError as error:
                raise ApplicationError(
                    f"Nobody accepted the host key {self._shown.sha256} within {_ACCEPT_WITHIN}.",
                    type="HostKeyNotAccepted",
                    non_retryable=True,
                ) from error
        if self._accepted != self._shown.sha256:
            raise ApplicationError(
                f"{self._asked.address} shows the host key {self._shown.sha256}, but "
                f"{self._accepted} was accepted. Find out which machine answers there.",
                {"shown": self._shown.sha256, "accepted": self._accepted},
                type="HostKeyNotAccepted",
                non_retryable=True,
            )

    async def _register(self) -> Host:
        asked = self._asked
        self._enter(Phase.INSTALLING, "Registers the host")
        self._registered = True
        host: Host = await workflow.execute_activity_method(
            RecordActivities.register_host,
            RegisterHostInput(
                lease=self._held,
                cluster=asked.cluster,
                address=str(asked.address),
                ssh_port=asked.ssh_port,
                user=asked.user,
                secret=asked.secret,
                host_key_line=self._shown.line,
                host_key_sha256=self._shown.sha256,
                capacity_memory_mib=asked.capacity_memory_mib,
                capacity_cpus=asked.capacity_cpus,
                reserved_memory_mib=asked.reserved_memory_mib,
            ),
            summary=f"{asked.name} becomes Creating",
            **policies.RECORD,
        )
        workflow.upsert_search_attributes([HOST_ZONE.value_set(host.zone)])
        return host

    async def _read_facts(self) -> HostFacts:
        self._enter(Phase.INSTALLING, "Logs in and reads the host's facts")
        facts: HostFacts = await workflow.execute_activity_method(
            SurveyActivities.read_facts,
            self._held,
            summary="Login, CPUs, memory, versions",
            **policies.FIRST_LOOK,
        )
        return facts

    async def _install_fence(self) -> None:
        self._enter(Phase.INSTALLING, "Installs the fence and proves that it holds")
        self._fence_begun = True
        await workflow.execute_activity_method(
            FencingActivities.install_fence,
            FenceInput(lease=self._held, operation=workflow.info().workflow_id),
            summary="Fence hook, proven up and down",
            **policies.HOST_CHANGE,
        )

    async def _put_into_service(self, host: Host) -> Host:
        await workflow.execute_activity_method(
            RecordActivities.set_host_status,
            SetStatusInput(lease=self._held, status=HostStatus.UP, reason="added"),
            **policies.RECORD,
        )
        target = ResourceState.ENABLED if self._asked.enabled else ResourceState.DISABLED
        added: Host = await workflow.execute_activity_method(
            RecordActivities.change_host_state,
            ChangeStateInput(
                lease=self._held,
                expected=frozenset({ResourceState.CREATING}),
                target=target,
                step="into-service",
                reason="added",
            ),
            summary=f"{host.name} becomes {target}",
            **policies.RECORD,
        )
        return added

    async def _undo(self) -> None:
        if self._lease is None:
            return
        self._enter(Phase.ROLLING_BACK, "Takes back what was done")
        if self._fence_begun:
            await self._take_down_fence()
        if self._registered:
            await workflow.execute_activity_method(
                RecordActivities.forget_host, self._held, **policies.RECORD
            )
        await self._release_lease()

    async def _take_down_fence(self) -> None:
        try:
            await workflow.execute_activity_method(
                FencingActivities.take_down_fence,
                self._held,
                summary="Fence down",
                **policies.HOST_CHANGE,
            )
        except ActivityError as error:
            # The host answered, and trying again would not help: the rest is taken back.
            self._not_taken_back = f"The fence may still be up: {explain(error)}"

    def _with_remains(self, error: ApplicationError) -> ApplicationError:
        if not self._not_taken_back:
            return error
        return ApplicationError(
            f"{error.message} {self._not_taken_back}",
            *error.details,
            type=error.type,
            non_retryable=error.non_retryable,
        )

    async def _release_lease(self) -> None:
        await workflow.execute_activity_method(
            LeaseActivities.release_lease, self._held, **policies.RECORD
        )

    @workflow.update(name="accept_host_key")
    async def accept_host_key(self, answer: AcceptHostKeyInput) -> None:
        """The fingerprint is the host's own: go on."""
        self._accepted = answer.fingerprint

    @accept_host_key.validator
    def _check_fingerprint(self, answer: AcceptHostKeyInput) -> None:
        if self._key is None or self._accepted is not None:
            raise ApplicationError("No host key waits to be accepted.", type="Conflict")
        if answer.fingerprint != self._key.sha256:
            raise ApplicationError(
                f"The host shows {self._key.sha256}, not {answer.fingerprint}.", type="Conflict"
            )

    @workflow.query(name="status")
    def status(self) -> HostAdditionStatus:
        """Where the addition stands, and the host key as soon as it is known."""
        commands: tuple[str, ...] = ()
        if self._phase is Phase.QUESTION:
            commands = (
                f"temporal workflow update execute --workflow-id {workflow.info().workflow_id} "
                "--name accept_host_key "
                f'--input \'{{"fingerprint": "{self._shown.sha256}"}}\'',
            )
        return HostAdditionStatus(
            name=self._asked.name,
            phase=self._phase,
            message=self._message,
            host_key_sha256=self._key.sha256 if self._key is not None else None,
            commands=commands,
        )

    @property
    def _asked(self) -> HostAdditionInput:
        if self._request is None:
            raise ApplicationError("The addition has not begun yet.", type="Conflict")
        return self._request

    @property
    def _held(self) -> LeaseRef:
        if self._lease is None:
            raise ApplicationError("The addition holds no lease yet.", type="Conflict")
        return self._lease

    @property
    def _shown(self) -> HostKeyResult:
        if self._key is None:
            raise ApplicationError("The host key is not known yet.", type="Conflict")
        return self._key

    def _enter(self, phase: Phase, message: str) -> None:
        # The SDK loses a cancel that crosses the end of an activity: no further step begins.
        if self._canceled and phase not in (Phase.ROLLING_BACK, Phase.DONE):
            raise asyncio.CancelledError
        self._phase, self._message = phase, message
        workflow.upsert_search_attributes(
            [
                HOST_NAME.value_set(self._asked.name),
                HOST_CLUSTER.value_set(self._asked.cluster),
                PHASE.value_set(phase),
            ]
        )
        workflow.set_current_details(
            f"### {self._asked.name}: {phase}\n\n{message}"
            + (f"\n\nSSH host key: `{self._key.sha256}`" if self._key is not None else "")
        )
