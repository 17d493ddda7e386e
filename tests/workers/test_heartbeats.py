"""Every activity whose call asks for heartbeats sends them, whatever it does meanwhile."""

import asyncio
import uuid
from datetime import timedelta

import pytest
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from contracts.steps import HostRef
    from workers.interceptors import HostlerInterceptor

pytestmark = pytest.mark.asyncio(loop_scope="package")

_LIMIT = timedelta(seconds=1.2)


@workflow.defn(name="Patient")
class Patient:
    @workflow.run
    async def run(self, request: HostRef) -> list[int]:
        said: list[int] = await workflow.execute_activity(
            takes_its_time,
            request,
            start_to_close_timeout=timedelta(seconds=30),
            heartbeat_timeout=_LIMIT,
            retry_policy=RetryPolicy(
                initial_interval=timedelta(milliseconds=10), maximum_attempts=2
            ),
        )
        return said


@activity.defn
async def takes_its_time(_request: HostRef) -> list[int]:
    """What its first attempt said, one of several heartbeat time-outs before its own end."""
    info = activity.info()
    if info.attempt == 1:
        activity.heartbeat(50)
        await asyncio.sleep(2 * _LIMIT.total_seconds())
        raise RuntimeError("its own end, not a time-out's")
    return list(info.heartbeat_details)


async def test_an_activity_beats_while_it_works_and_keeps_what_it_said(client: Client) -> None:
    queue = str(uuid.uuid4())
    async with Worker(
        client,
        task_queue=queue,
        workflows=[Patient],
        activities=[takes_its_time],
        interceptors=[HostlerInterceptor()],
        max_heartbeat_throttle_interval=timedelta(milliseconds=100),
    ):
        handle = await client.start_workflow(
            Patient.run, HostRef(host="kvm-1"), id=queue, task_queue=queue
        )
        assert await handle.result() == [50]
        events = [event async for event in handle.fetch_history_events()]
    (started,) = [
        event.activity_task_started_event_attributes
        for event in events
        if event.HasField("activity_task_started_event_attributes")
    ]
    assert "its own end" in started.last_failure.message
