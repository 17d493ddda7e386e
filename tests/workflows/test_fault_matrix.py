"""The rows of the fault matrix are what a maintenance does."""

import pytest

from contracts.states import Phase
from tests.matrix.steps import STEPS
from tests.workflows.maintenance_run import Begin
from tests.workflows.world import running, three_hosts

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_every_activity_of_a_plain_maintenance_has_a_row(begin: Begin) -> None:
    run = await begin(three_hosts(running("vm-1"), running("vm-2")))
    entered = (await run.handle.describe()).run_id
    await run.until_phase(Phase.READY)
    await run.leave()
    await run.result()
    executed = set()
    for run_id in (entered, (await run.handle.describe()).run_id):
        handle = run.client.get_workflow_handle(run.handle.id, run_id=run_id)
        async for event in handle.fetch_history_events():
            scheduled = event.activity_task_scheduled_event_attributes
            if scheduled.activity_type.name:
                executed.add(scheduled.activity_type.name)
    assert executed == {step.place.activity for step in STEPS if step.place is not None}
