"""Workflows that stand in for Hostler's, under the same names and with the same handlers."""

from temporalio import workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from contracts.addition import (
        AcceptHostKeyInput,
        HostAdditionInput,
        HostAdditionResult,
        HostAdditionStatus,
    )
    from contracts.cluster_maintenance import (
        ClusterMaintenanceInput,
        ClusterMaintenanceOutcome,
        ClusterMaintenanceResult,
        ClusterMaintenanceStatus,
        ClusterPhase,
        PauseInput,
        ResumeInput,
        StopInput,
    )
    from contracts.maintenance import (
        HostMaintenanceInput,
        HostMaintenanceResult,
        LeaveInput,
        LeaveResult,
        MaintenanceOutcome,
        MaintenanceStatus,
        ResolveVmInput,
        VmAction,
    )
    from contracts.states import Phase, ResourceState
    from contracts.vm_return import VmReturnInput, VmReturnResult, VmReturnStatus
    from tests.samples import FACTS
    from workflows.search_attributes import HOST_CLUSTER, HOST_NAME

SHOWN_KEY = "SHA256:" + "k" * 43


@workflow.defn(name="HostMaintenance")
class StandInMaintenance:
    """Waits for `leave`, which takes until the signal `go` if the reason is "slow". With the
    reason "blocked" it fails at once."""

    def __init__(self) -> None:
        self._request: HostMaintenanceInput | None = None
        self._leaving = False
        self._go = False
        self._answers: dict[str, VmAction] = {}

    @workflow.run
    async def run(self, request: HostMaintenanceInput) -> HostMaintenanceResult:
        self._request = request
        workflow.upsert_search_attributes([HOST_NAME.value_set(request.host)])
        if request.reason == "blocked":
            raise ApplicationError(
                f"{request.host} can't be evacuated, and nothing was changed:\nvm-1: no room",
                {"plan": {"host": request.host}},
                type="EvacuationImpossible",
                non_retryable=True,
            )
        if request.dry_run:
            return self._result(MaintenanceOutcome.PLANNED)
        await workflow.wait_condition(lambda: self._leaving)
        if request.reason == "slow":
            await workflow.wait_condition(lambda: self._go)
        await workflow.wait_condition(workflow.all_handlers_finished)
        return self._result(MaintenanceOutcome.LEFT)

    @workflow.signal(name="go")
    def go(self) -> None:
        self._go = True

    @workflow.update(name="leave")
    async def leave(self, _: LeaveInput) -> LeaveResult:
        self._leaving = True
        # An update that comes with the start is handled before `run`.
        await workflow.wait_condition(lambda: self._request is not None)
        if self._asked.reason == "slow":
            await workflow.wait_condition(lambda: self._go)
        return LeaveResult(host=self._asked.host, resource_state=ResourceState.ENABLED)

    @leave.validator
    def _check_leave(self, _: LeaveInput) -> None:
        if self._request is not None and self._request.reason == "stubborn":
            raise ApplicationError("A dry run has nothing to leave.", type="Conflict")

    @workflow.update(name="resolve_vm")
    async def resolve_vm(self, answer: ResolveVmInput) -> None:
        self._answers[answer.vm] = answer.action

    @resolve_vm.validator
    def _check_answer(self, answer: ResolveVmInput) -> None:
        if answer.vm != "vm-1":
            raise ApplicationError(
                f"{answer.vm} waits for no answer; VMs that do: vm-1.", type="Conflict"
            )

    @workflow.query(name="status")
    def status(self) -> MaintenanceStatus:
        """`message` tells the answers that came in."""
        return MaintenanceStatus(
            host=self._asked.host,
            phase=Phase.LEAVING if self._leaving else Phase.QUESTION,
            reason=self._asked.reason,
            message=", ".join(f"{vm}: {action}" for vm, action in self._answers.items()),
            since=workflow.info().start_time,
            plan=None,
            vms=(),
            questions=("vm-1",),
        )

    @property
    def _asked(self) -> HostMaintenanceInput:
        assert self._request
        return self._request

    def _result(self, outcome: MaintenanceOutcome) -> HostMaintenanceResult:
        return HostMaintenanceResult(
            host=self._asked.host,
            outcome=outcome,
            resource_state=ResourceState.ENABLED,
            plan=None,
        )


@workflow.defn(name="VmReturn")
class StandInReturn:
    """Waits for the signal `go`."""

    def __init__(self) -> None:
        self._host = ""
        self._go = False

    @workflow.run
    async def run(self, request: VmReturnInput) -> VmReturnResult:
        self._host = request.host
        await workflow.wait_condition(lambda: self._go)
        return VmReturnResult(host=request.host, vms=())

    @workflow.signal(name="go")
    def go(self) -> None:
        self._go = True

    @workflow.query(name="status")
    def status(self) -> VmReturnStatus:
        return VmReturnStatus(
            host=self._host,
            phase=Phase.RETURNING,
            message="no VMs",
            since=workflow.info().start_time,
            vms=(),
        )


@workflow.defn(name="ClusterMaintenance")
class StandInClusterMaintenance:
    """Goes on until the update `stop`; `message` tells the updates that came in."""

    def __init__(self) -> None:
        self._request: ClusterMaintenanceInput | None = None
        self._updates: list[str] = []

    @workflow.run
    async def run(self, request: ClusterMaintenanceInput) -> ClusterMaintenanceResult:
        self._request = request
        workflow.upsert_search_attributes([HOST_CLUSTER.value_set(request.cluster)])
        await workflow.wait_condition(lambda: "stop" in self._updates)
        return ClusterMaintenanceResult(
            cluster=request.cluster, outcome=ClusterMaintenanceOutcome.STOPPED, hosts=()
        )

    @workflow.update(name="pause")
    async def pause(self, _: PauseInput) -> None:
        self._updates.append("pause")

    @workflow.update(name="resume")
    async def resume(self, _: ResumeInput) -> None:
        self._updates.append("resume")

    @resume.validator
    def _check_resume(self, _: ResumeInput) -> None:
        if "pause" not in self._updates:
            raise ApplicationError("There is nothing to resume.", type="Conflict")

    @workflow.update(name="stop")
    async def stop(self, _: StopInput) -> None:
        self._updates.append("stop")

    @workflow.query(name="status")
    def status(self) -> ClusterMaintenanceStatus:
        assert self._request
        return ClusterMaintenanceStatus(
            cluster=self._request.cluster,
            phase=ClusterPhase.WORKING,
            reason=self._request.reason,
            message=", ".join(self._updates),
            since=workflow.info().start_time,
            parallel=self._request.parallel,
            reboot=self._request.reboot,
            hosts=(),
        )


@workflow.defn(name="HostAddition")
class StandInAddition:
    """Waits until its host key is accepted."""

    def __init__(self) -> None:
        self._accepted: str | None = None
        self._name = ""

    @workflow.run
    async def run(self, request: HostAdditionInput) -> HostAdditionResult:
        self._name = request.name
        await workflow.wait_condition(lambda: self._accepted is not None)
        return HostAdditionResult(
            name=request.name,
            resource_state=ResourceState.ENABLED,
            host_key_sha256=SHOWN_KEY,
            facts=FACTS,
        )

    @workflow.update(name="accept_host_key")
    async def accept_host_key(self, answer: AcceptHostKeyInput) -> None:
        self._accepted = answer.fingerprint

    @accept_host_key.validator
    def _check_fingerprint(self, answer: AcceptHostKeyInput) -> None:
        if answer.fingerprint != SHOWN_KEY:
            raise ApplicationError(
                f"The host shows {SHOWN_KEY}, not {answer.fingerprint}.", type="Conflict"
            )

    @workflow.query(name="status")
    def status(self) -> HostAdditionStatus:
        return HostAdditionStatus(
            name=self._name, phase=Phase.QUESTION, message="", host_key_sha256=SHOWN_KEY
        )


WORKFLOWS = (StandInClusterMaintenance, StandInMaintenance, StandInReturn, StandInAddition)
