"""Workflows and activities that stand in for Hostler's, under the same names."""

from datetime import timedelta

from temporalio import activity, workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from contracts.errors import LeaseHeld, Unavailable
    from contracts.hosts import HostFacts
    from contracts.maintenance import HostMaintenanceInput, LeaveInput, ResolveVmInput
    from contracts.steps import HostRef
    from drivers.errors import HypervisorFailed


@workflow.defn(name="HostMaintenance")
class SampleMaintenance:
    """Waits for `leave` if its reason is "wait", else calls the activity that its reason names."""

    def __init__(self) -> None:
        self._left = False

    @workflow.run
    async def run(self, request: HostMaintenanceInput) -> str:
        if request.reason == "wait":
            await workflow.wait_condition(lambda: self._left)
            return request.host
        workflow.logger.info("calls %s", request.reason)
        answer: str = await workflow.execute_activity(
            request.reason or "greet",
            HostRef(host=request.host),
            result_type=str,
            start_to_close_timeout=timedelta(seconds=20),
            retry_policy=RetryPolicy(
                initial_interval=timedelta(milliseconds=10), maximum_attempts=2
            ),
        )
        return answer

    @workflow.update(name="leave")
    async def leave(self, _request: LeaveInput) -> None:
        self._left = True

    @workflow.update(name="resolve_vm")
    async def resolve_vm(self, request: ResolveVmInput) -> str:
        return request.vm

    @resolve_vm.validator
    def _check(self, request: ResolveVmInput) -> None:
        pass


@activity.defn(name="greet")
async def greet(request: HostRef) -> str:
    activity.logger.info("greets")
    return f"hello from {request.host}"


@activity.defn(name="held")
async def held(request: HostRef) -> str:
    raise LeaseHeld(
        f"{request.host} is held by maintenance/x.",
        remedy="Wait for it.",
        details={"workflow_id": "maintenance/x"},
    )


@activity.defn(name="away")
async def away(request: HostRef) -> str:
    if activity.info().attempt == 1:
        raise Unavailable(f"{request.host} did not answer.")
    return "back"


@activity.defn(name="talkative")
async def talkative(request: HostRef) -> str:
    try:
        raise ValueError("ä" * 100_000)
    except ValueError as error:
        raise HypervisorFailed("é" * 100_000) from error


@activity.defn(name="wrong_result")
async def wrong_result(request: HostRef) -> HostFacts:
    return HostFacts.model_validate({"uuid": request.host})


ACTIVITIES = (greet, held, away, talkative, wrong_result)
