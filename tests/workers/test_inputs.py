"""Whatever a workflow or an update is given: a clear end at once, never a task that is retried."""

import uuid
from typing import Any

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType
from temporalio.client import (
    Client,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowUpdateFailedError,
)
from temporalio.common import RawValue
from temporalio.exceptions import ActivityError, ApplicationError

from contracts.maintenance import HostMaintenanceInput, ResolveVmInput, VmAction
from tests.workers.conftest import TASK_QUEUE
from workers.converter import MAX_TEXT_BYTES

pytestmark = pytest.mark.asyncio(loop_scope="package")


def raw(data: bytes, encoding: bytes = b"json/plain") -> RawValue:
    return RawValue(Payload(metadata={"encoding": encoding}, data=data))


async def start(
    client: Client, *inputs: Any, workflow: str = "HostMaintenance"
) -> WorkflowHandle[Any, Any]:
    return await client.start_workflow(
        workflow, args=inputs, id=str(uuid.uuid4()), task_queue=TASK_QUEUE
    )


async def failure(handle: WorkflowHandle[Any, Any]) -> ApplicationError:
    """Why the workflow failed; no task of it may have failed on the way."""
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    events = [event.event_type async for event in handle.fetch_history_events()]
    assert EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED not in events
    assert events[-1] == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED
    cause: BaseException = caught.value.cause
    if isinstance(cause, ActivityError) and cause.cause:
        cause = cause.cause
    assert isinstance(cause, ApplicationError)
    return cause


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([raw(b"[]")], "input: "),
        ([raw(b"5")], "input: "),
        ([raw(b"null")], "input: "),
        ([None], "input: must be a JSON object"),
        ([b"bytes"], "input: must be a JSON object"),
        ([raw(b"{}", b"strange")], "input: must be a JSON object"),
        ([raw(b'{"host": ')], "input: invalid JSON"),
        ([raw(b'{"host": "kvm-1\xff"}')], "input: "),
        ([raw(b"")], "input: invalid JSON"),
        ([{}], "host: this field is required"),
        ([{"host": ""}], "host: must not be empty"),
        ([{"host": "kvm 1"}], "host: must match"),
        ([{"host": "kvm-1", "hots": "x"}], "hots: there is no such field"),
        ([{"host": "kvm-1", "dry_run": "yes"}], "dry_run: "),
        ([{"host": "kvm-1", "on_blocker": "explode"}], "on_blocker: "),
        ([], "HostMaintenance takes exactly one input, a JSON object; it was given none."),
        (
            [{"host": "kvm-1"}, {"host": "kvm-2"}],
            "HostMaintenance takes exactly one input, a JSON object; it was given 2.",
        ),
    ],
)
async def test_a_wrong_input_fails_the_workflow_at_once(
    client: Client, inputs: list[Any], says: str
) -> None:
    error = await failure(await start(client, *inputs))
    assert error.type == "InvalidInput"
    assert error.non_retryable
    assert says in error.message
    assert error.message.endswith("nothing was changed.")
    assert error.details[0]["fields"]
    assert error.__cause__ is None


async def test_the_message_names_the_workflow(client: Client) -> None:
    error = await failure(await start(client, {"host": 5}))
    assert error.message.startswith("The input of HostMaintenance is not valid: host: ")


@pytest.mark.parametrize("inputs", [[], [{"host": "kvm-1"}], [1, 2]])
async def test_an_unknown_type_fails_at_once(client: Client, inputs: list[Any]) -> None:
    error = await failure(await start(client, *inputs, workflow="HostMaintenence"))
    assert error.type == "NotFound"
    assert error.message == (
        "There is no workflow type 'HostMaintenence'. Start one of: AllocationState, "
        "AuthorityRollover, AuthoritySetup, BmcPasswordChange, CertificateProvisioning, "
        "CertificateRevocation, CertificateSigning, ClusterCertificates, ClusterMaintenance, "
        "HostAddition, HostImport, HostMaintenance, HostReinstallation, HostRemoval, "
        "PasswordRotation, PowerAction, VmReturn."
    )


@pytest.mark.parametrize(
    ("update", "inputs", "says"),
    [
        ("leave", [], "leave takes exactly one input, a JSON object; it was given none."),
        ("leave", [{}, {}], "leave takes exactly one input, a JSON object; it was given 2."),
        ("leave", [{"now": True}], "The input of Leave is not valid: now: there is no such field"),
        ("leave", [None], "input: must be a JSON object"),
        ("resolve_vm", [], "resolve_vm takes exactly one input"),
        ("resolve_vm", [1, 2], "resolve_vm takes exactly one input"),
        ("resolve_vm", [{"vm": "vm-1"}], "action: this field is required"),
    ],
)
async def test_a_wrong_update_is_refused_and_harms_nothing(
    client: Client, update: str, inputs: list[Any], says: str
) -> None:
    handle = await start(client, HostMaintenanceInput(host="kvm-1", reason="wait"))
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await handle.execute_update(update, args=inputs)
    cause = caught.value.cause
    assert isinstance(cause, ApplicationError)
    assert cause.type == "InvalidInput"
    assert says in cause.message
    answer = ResolveVmInput(vm="vm-1", action=VmAction.RETRY)
    assert await handle.execute_update("resolve_vm", answer) == "vm-1"
    await handle.execute_update("leave", {})
    assert await handle.result() == "kvm-1"
    events = [event.event_type async for event in handle.fetch_history_events()]
    assert EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED not in events


async def test_a_typed_error_ends_the_activity_with_its_type_and_details(client: Client) -> None:
    error = await failure(await start(client, {"host": "kvm-1", "reason": "held"}))
    assert error.type == "LeaseHeld"
    assert error.non_retryable
    assert error.message == "kvm-1 is held by maintenance/x. Wait for it."
    assert error.details[0] == {"workflow_id": "maintenance/x"}


async def test_an_error_that_may_pass_is_tried_again(client: Client) -> None:
    handle = await start(client, {"host": "kvm-1", "reason": "away"})
    assert await handle.result() == "back"


async def test_texts_are_cut_and_the_cause_is_kept(client: Client) -> None:
    error = await failure(await start(client, {"host": "kvm-1", "reason": "talkative"}))
    assert error.type == "HypervisorFailed"
    cause = error.__cause__
    assert isinstance(cause, ApplicationError)
    assert cause.type == "ValueError"
    for text in (error.message, cause.message):
        assert len(text.encode()) <= MAX_TEXT_BYTES
        assert text.endswith(" [cut]")


async def test_an_unexpected_error_stays_retryable(client: Client) -> None:
    error = await failure(await start(client, {"host": "kvm-1", "reason": "wrong_result"}))
    assert error.type == "ValidationError"
    assert not error.non_retryable
