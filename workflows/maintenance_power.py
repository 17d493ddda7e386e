"""A host that is switched off while it is out of service, and on again before it goes back."""

from collections.abc import Awaitable, Callable

from temporalio import workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.records import RecordActivities
    from activities.survey import SurveyActivities
    from contracts.maintenance import CarriedPower
    from contracts.power_actions import Action, PowerActionInput
    from contracts.states import Phase
    from contracts.steps import AwaitChangeInput, EventInput
    from workflows import policies, power_use
    from workflows.maintenance_state import MaintenanceState

_OPTION = "power_off_when_ready"


class MaintenancePower:
    """One per workflow. Without `power_off_when_ready` it does nothing.

    Attributes:
        begun: the host is off, or may be: it is switched on before it goes back.
        problem: why it was not switched off; "" if it was.
    """

    def __init__(self, state: MaintenanceState) -> None:
        self.begun = False
        self.problem = ""
        self._state = state

    @property
    def carried(self) -> CarriedPower | None:
        """What is to be known after a continue-as-new."""
        return CarriedPower(begun=self.begun, problem=self.problem) if self.begun else None

    def resume(self, carried: CarriedPower | None) -> None:
        """Go on from there."""
        if carried is not None:
            self.begun, self.problem = carried.begun, carried.problem

    @property
    def ready(self) -> str:
        """What a host that is ready for maintenance shows."""
        if not self.begun:
            return "Ready for maintenance"
        if self.problem:
            return f"Ready for maintenance, and not switched off: {self.problem}"
        return "Ready for maintenance: it is switched off"

    async def require(self) -> None:
        """Before anything has changed. Raises ApplicationError."""
        if self._state.asked.power_off_when_ready:
            await power_use.require_power(self._state.name, _OPTION)

    def found_off(self) -> None:
        """Its BMC says that it is off already."""
        self.begun = self._state.asked.power_off_when_ready

    async def switch_off(self) -> None:
        """No VM is active on it. If it does not go off it is ready for maintenance all the same,
        and says so. Raises Leaving."""
        state = self._state
        if not state.asked.power_off_when_ready:
            return
        self.begun = True
        state.enter(Phase.SWITCHING, "No VM is active on it: it is shut down and switched off")
        try:
            await state.unless_leaving(
                power_use.switch(
                    PowerActionInput(
                        host=state.name,
                        action=Action.SOFT,
                        fall_back_to_off=state.asked.fall_back_to_off,
                        reason=state.asked.reason or "is ready for maintenance",
                    )
                )
            )
        except ApplicationError as error:
            self.problem = error.message
            await workflow.execute_activity_method(
                RecordActivities.record_event,
                EventInput(
                    lease=state.lease, kind="maintenance.not_switched_off", message=error.message
                ),
                summary=f"{state.name} is not off",
                **policies.RECORD,
            )

    async def switch_on(self, phase: Phase, answers: Callable[[], Awaitable[bool]]) -> bool:
        """Until the host answers. False: it was never switched off. `answers`: whether it does now.
        Raises ApplicationError if its BMC does not do it, or if it does not come back."""
        state = self._state
        if not self.begun:
            return False
        state.enter(phase, "It is switched on before it goes back into service")
        reason = f"leaves its maintenance: {state.asked.reason or 'no reason given'}"
        try:
            await power_use.switch(
                PowerActionInput(host=state.name, action=Action.ON, reason=reason)
            )
            seconds = (await power_use.require_power(state.name, _OPTION)).boot_timeout
        except ApplicationError:
            # Somebody may have pressed its button.
            if not await answers():
                raise
        else:
            await self._await_boot(seconds)
        self.begun, self.problem = False, ""
        return True

    async def _await_boot(self, seconds: int) -> None:
        state = self._state
        state.enter(state.phase, f"Waits until {state.name} answers: it is switched on")
        back = await workflow.execute_activity_method(
            SurveyActivities.wait_for_host,
            AwaitChangeInput(host=state.name, within_s=seconds),
            summary=f"Until {state.name} is up",
            **policies.HOST_JOB,
        )
        if not back:
            raise ApplicationError(
                f"{state.name} was switched on, and does not answer after {seconds} s "
                "(host.reboot.timeout). Look at its console.",
                type="Unavailable",
                non_retryable=True,
            )
