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
    from contracts.allocation import (
        AllocationStateInput,
        AllocationStateResult,
        AllocationStateStatus,
        ChangeAllocationInput,
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
    from contracts.host_checks import HostCheckInput, HostCheckResult, HostSighting
    from contracts.host_import import (
        HostImportInput,
        HostImportResult,
        HostImportStatus,
        ImportedHost,
        ImportState,
    )
    from contracts.host_status import Seen
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
    from contracts.oobm import BmcLook
    from contracts.passwords import (
        PasswordRotationInput,
        PasswordRotationResult,
        PasswordRotationStatus,
        PasswordState,
        PasswordVerificationInput,
        PasswordVerificationResult,
        RetryInput,
        RevertInput,
        SkipHostInput,
    )
    from contracts.power import PowerState
    from contracts.power_actions import (
        BmcPasswordChangeInput,
        BmcPasswordChangeResult,
        BmcTestInput,
        BmcTestResult,
        PowerActionInput,
        PowerActionResult,
        PowerOutcome,
    )
    from contracts.reinstallation import (
        AnswerReinstallationInput,
        HostReinstallationInput,
        HostReinstallationResult,
        HostReinstallationStatus,
        ReinstallationOutcome,
    )
    from contracts.removal import (
        HostRemovalInput,
        HostRemovalResult,
        HostRemovalStatus,
        RemovalOutcome,
        ResolveRemovalInput,
    )
    from contracts.states import HostStatus, Phase, ResourceState
    from contracts.vm_return import VmReturnInput, VmReturnResult, VmReturnStatus
    from tests.samples import FACTS, WHEN
    from workflows.search_attributes import HOST_CLUSTER, HOST_NAME, HOST_POD, HOST_ZONE, PHASE

SHOWN_KEY = "SHA256:" + "k" * 43


@workflow.defn(name="HostMaintenance")
class StandInMaintenance:
    """Waits for `leave`, which takes until the signal `go` if the reason is "slow". With the
    reason "blocked" it fails at once, with "ready" its host is ready."""

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
            phase=self._phase,
            reason=self._asked.reason,
            message=", ".join(f"{vm}: {action}" for vm, action in self._answers.items()),
            since=workflow.info().start_time,
            plan=None,
            vms=(),
            questions=("vm-1",),
        )

    @property
    def _phase(self) -> Phase:
        if self._leaving:
            return Phase.LEAVING
        return Phase.READY if self._asked.reason == "ready" else Phase.QUESTION

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
    """Waits until its host key is accepted; the signal `ask` lets Temporal's index know that."""

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

    @workflow.signal(name="ask")
    def ask(self) -> None:
        workflow.upsert_search_attributes([PHASE.value_set(Phase.QUESTION)])

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


@workflow.defn(name="AllocationState")
class StandInAllocation:
    """Waits for the signal `go`, if its reason is to wait. Can be turned round meanwhile."""

    def __init__(self) -> None:
        self._request: AllocationStateInput | None = None
        self._go = False

    @workflow.run
    async def run(self, request: AllocationStateInput) -> AllocationStateResult:
        self._request = request
        attribute = {"host": HOST_NAME, "cluster": HOST_CLUSTER, "pod": HOST_POD, "zone": HOST_ZONE}
        workflow.upsert_search_attributes([attribute[request.level].value_set(request.name)])
        if request.reason == "wait":
            await workflow.wait_condition(lambda: self._go)
        return AllocationStateResult(
            level=request.level,
            name=request.name,
            allocation_state=self._request.allocation_state,
            told=3,
            not_told=0,
            untold=(),
        )

    @workflow.signal(name="go")
    def go(self) -> None:
        self._go = True

    @workflow.update(name="change")
    async def change(self, request: ChangeAllocationInput) -> None:
        assert self._request
        self._request = self._request.model_copy(update=dict(request))

    @change.validator
    def _check_change(self, request: ChangeAllocationInput) -> None:
        if self._request is None or self._request.allocation_state is request.allocation_state:
            raise ApplicationError("It becomes that already.", type="Conflict")

    @workflow.query(name="status")
    def status(self) -> AllocationStateStatus:
        assert self._request
        return AllocationStateStatus(
            **dict(self._request),
            phase=Phase.TELLING,
            message="",
            since=workflow.info().start_time,
        )


@workflow.defn(name="HostImport")
class StandInImport:
    """Adds its first two hosts for ever, until the signal `go`."""

    def __init__(self) -> None:
        self._request: HostImportInput | None = None
        self._go = False

    @workflow.run
    async def run(self, request: HostImportInput) -> HostImportResult:
        self._request = request
        await workflow.wait_condition(lambda: self._go)
        return HostImportResult(
            name=request.name,
            hosts=tuple(
                ImportedHost(host=host.name, state=ImportState.ADDED) for host in request.hosts
            ),
        )

    @workflow.signal(name="go")
    def go(self) -> None:
        self._go = True

    @workflow.query(name="status")
    def status(self) -> HostImportStatus:
        assert self._request
        return HostImportStatus(
            name=self._request.name,
            message="",
            since=workflow.info().start_time,
            parallel=2,
            total=len(self._request.hosts),
            counts={ImportState.ADDING: 2},
            adding=tuple(host.name for host in self._request.hosts[:2]),
            failed=(),
            clusters=tuple(sorted({host.cluster for host in self._request.hosts})),
        )


@workflow.defn(name="HostCheck")
class StandInCheck:
    """Sees that the host is silent. Waits for the signal `go` if its name begins with "slow"; fails
    if it begins with "gone"."""

    def __init__(self) -> None:
        self._go = False

    @workflow.run
    async def run(self, request: HostCheckInput) -> HostCheckResult:
        host = str(request.host)
        if host.startswith("slow"):
            await workflow.wait_condition(lambda: self._go)
        if host.startswith("gone"):
            raise ApplicationError(f"There is no host {host!r}.", type="NotFound")
        sighting = HostSighting(
            host=host,
            seen=Seen.LIBVIRT_SILENT,
            problem="timed out",
            status=HostStatus.UP,
            status_reason="added",
            missed_checks=1,
            checked_at=workflow.now(),
            usage=None,
        )
        return HostCheckResult(hosts=1, seen={sighting.seen: 1}, sighting=sighting)

    @workflow.signal(name="go")
    def go(self) -> None:
        self._go = True


@workflow.defn(name="HostRemoval")
class StandInRemoval:
    """Waits for the signal `go`, if the reason is "slow" or "final"; with "final" it can't be taken
    back any more. `message` tells the answer that came in."""

    def __init__(self) -> None:
        self._request: HostRemovalInput | None = None
        self._go = False
        self._answer = ""

    @workflow.run
    async def run(self, request: HostRemovalInput) -> HostRemovalResult:
        self._request = request
        workflow.upsert_search_attributes([HOST_NAME.value_set(request.host)])
        await workflow.wait_condition(lambda: self._go or request.reason not in ("slow", "final"))
        outcome = RemovalOutcome.PLANNED if request.dry_run else RemovalOutcome.REMOVED
        return HostRemovalResult(host=request.host, outcome=outcome, effects=())

    @workflow.signal(name="go")
    def go(self) -> None:
        self._go = True

    @workflow.update(name="resolve")
    async def resolve(self, answer: ResolveRemovalInput) -> None:
        self._answer = answer.action

    @resolve.validator
    def _check_answer(self, answer: ResolveRemovalInput) -> None:
        if self._answer:
            raise ApplicationError(f"Nothing waits for {answer.action}.", type="Conflict")

    @workflow.query(name="status")
    def status(self) -> HostRemovalStatus:
        assert self._request
        return HostRemovalStatus(
            host=self._request.host,
            phase=Phase.CLEANING,
            reason=self._request.reason,
            message=self._answer,
            final=self._request.reason == "final",
        )


@workflow.defn(name="HostReinstallation")
class StandInReinstallation:
    """Waits for the signal `go`, if the reason is "slow" or "final"; with "final" it can't be taken
    back any more. `message` tells the answer that came in; a second one is refused."""

    def __init__(self) -> None:
        self._request: HostReinstallationInput | None = None
        self._go = False
        self._answer: AnswerReinstallationInput | None = None

    @workflow.run
    async def run(self, request: HostReinstallationInput) -> HostReinstallationResult:
        self._request = request
        workflow.upsert_search_attributes([HOST_NAME.value_set(request.host)])
        await workflow.wait_condition(lambda: self._go or request.reason not in ("slow", "final"))
        planned, done = ReinstallationOutcome.PLANNED, ReinstallationOutcome.REINSTALLED
        return HostReinstallationResult(
            host=request.host, outcome=planned if request.dry_run else done, effects=()
        )

    @workflow.signal(name="go")
    def go(self) -> None:
        self._go = True

    @workflow.update(name="answer")
    async def answer(self, said: AnswerReinstallationInput) -> None:
        self._answer = said

    @answer.validator
    def _check_answer(self, said: AnswerReinstallationInput) -> None:
        if self._answer is not None:
            raise ApplicationError("Nothing waits for an answer.", type="Conflict")

    @workflow.query(name="status")
    def status(self) -> HostReinstallationStatus:
        assert self._request
        return HostReinstallationStatus(
            host=self._request.host,
            phase=Phase.REINSTALLING,
            reason=self._request.reason,
            message=self._answer.model_dump_json() if self._answer is not None else "",
            final=self._request.reason == "final",
        )


@workflow.defn(name="PowerAction")
class StandInPower:
    """Waits for the signal `go`, if the reason is "slow"."""

    def __init__(self) -> None:
        self._go = False

    @workflow.run
    async def run(self, request: PowerActionInput) -> PowerActionResult:
        workflow.upsert_search_attributes([HOST_NAME.value_set(request.host)])
        await workflow.wait_condition(lambda: self._go or request.reason != "slow")
        return PowerActionResult(
            host=request.host,
            action=request.action,
            outcome=PowerOutcome.DONE,
            state=PowerState.ON,
            observed_at=WHEN,
        )

    @workflow.signal(name="go")
    def go(self) -> None:
        self._go = True


@workflow.defn(name="BmcTest")
class StandInBmcTest:
    """Tells what it was given."""

    @workflow.run
    async def run(self, request: BmcTestInput) -> BmcTestResult:
        if request.address == "nowhere":
            raise ApplicationError("There is no driver.", type="NotFound", non_retryable=True)
        look = BmcLook(reachable=True, problem=request.model_dump_json())
        return BmcTestResult(host=request.host, look=look)


@workflow.defn(name="BmcPasswordChange")
class StandInBmcPassword:
    """Ends at once."""

    @workflow.run
    async def run(self, request: BmcPasswordChangeInput) -> BmcPasswordChangeResult:
        workflow.upsert_search_attributes([HOST_NAME.value_set(request.host)])
        return BmcPasswordChangeResult(host=request.host, proof=request.secret or "")


@workflow.defn(name="PasswordRotation")
class StandInRotation:
    """Asks a question, until it is answered."""

    def __init__(self) -> None:
        self._answer: str | None = None

    @workflow.run
    async def run(self, request: PasswordRotationInput) -> PasswordRotationResult:
        self._request = request
        await workflow.wait_condition(lambda: self._answer is not None)
        return PasswordRotationResult(
            cluster=request.cluster, account=request.account, promoted=True, version=1, hosts=()
        )

    @workflow.update(name="retry")
    async def retry(self, _: RetryInput) -> None:
        self._answer = "retry"

    @workflow.update(name="skip_host")
    async def skip_host(self, request: SkipHostInput) -> None:
        self._answer = request.host

    @workflow.update(name="revert")
    async def revert(self, _: RevertInput) -> None:
        raise ApplicationError("Nothing was changed yet: cancel it.", type="Conflict")

    @workflow.query(name="status")
    def status(self) -> PasswordRotationStatus:
        return PasswordRotationStatus(
            cluster=self._request.cluster,
            account=self._request.account,
            phase=Phase.QUESTION,
            reason=self._request.reason,
            message="kvm-2: pam_deny",
            since=workflow.info().start_time,
        )


@workflow.defn(name="PasswordVerification")
class StandInVerification:
    """All hosts agree."""

    @workflow.run
    async def run(self, request: PasswordVerificationInput) -> PasswordVerificationResult:
        return PasswordVerificationResult(
            counts={PasswordState.AGREES: 3}, hosts=(), accounts=("root",)
        )


WORKFLOWS = (
    StandInRotation,
    StandInVerification,
    StandInAllocation,
    StandInClusterMaintenance,
    StandInMaintenance,
    StandInReturn,
    StandInAddition,
    StandInImport,
    StandInRemoval,
    StandInReinstallation,
    StandInCheck,
    StandInPower,
    StandInBmcTest,
    StandInBmcPassword,
)
