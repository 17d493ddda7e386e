"""Enter, look, answer, leave, return; whoever started it, and however the last one ended."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from temporalio.client import WorkflowExecutionStatus

from contracts.maintenance import MaintenanceView, VmAction
from contracts.operations import Operation
from contracts.states import ResourceState
from contracts.vms import MigrationState
from inventory.vm_migrations import MigrationFigures
from tests.api.conftest import Api, change_state, history, new_name, problem
from tests.api.stand_ins import SHOWN_KEY

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_enter_starts_the_workflow_and_says_where_to_look(api: Api, host: str) -> None:
    response = await api.enter(
        host,
        reason="new\ndisk",
        on_blocker="keep",
        max_parallel=3,
        dry_run=False,
        return_vms=True,
        queue=False,
        host_is_down=True,
    )
    assert response.headers["location"] == f"/v1/operations/maintenance/{host}"
    started = Operation.model_validate(response.json())
    described = await api.workflow(f"maintenance/{host}").describe()
    assert (started.kind, started.subject) == ("maintenance", host)
    assert (started.workflow_id, started.run_id) == (described.id, described.run_id)
    assert started.status == "RUNNING"
    assert described.workflow_type == "HostMaintenance"
    assert await described.static_summary() == f"Maintenance of {host} by olga: new disk"
    assert await described.memo() == {"requested_by": "olga"}
    stored = await history(api.workflow(f"maintenance/{host}"))
    assert b'"reason":"new\\ndisk"' in stored
    assert b'"on_blocker":"keep"' in stored
    assert b'"max_parallel":3' in stored
    assert b'"return_vms":true,"queue":false,"host_is_down":true' in stored
    (event,) = await api.inventory.events.list(operation=f"maintenance/{host}")
    assert (event.subject, event.actor) == (f"host/{host}", "token:olga")
    shown = await api.viewer.get(response.headers["location"])
    assert shown.json()["details"]["reason"] == "new\ndisk"


async def test_enter_needs_no_body(api: Api, host: str) -> None:
    assert (await api.operator.post(f"/v1/hosts/{host}/maintenance")).status_code == 202


async def test_a_long_reason_fits_into_the_summary(api: Api, host: str) -> None:
    await api.enter(host, reason="ä" * 1000)
    described = await api.workflow(f"maintenance/{host}").describe()
    summary = await described.static_summary()
    assert summary is not None
    assert summary.startswith(f"Maintenance of {host} by olga: ää")


async def test_entering_twice_is_refused_with_a_link(api: Api, host: str) -> None:
    await api.enter(host)
    run, before = await api.run_id(f"maintenance/{host}"), api.rows()
    for body in ({}, {"reason": "other"}, {"dry_run": True}):
        refused = await api.operator.post(f"/v1/hosts/{host}/maintenance", json=body)
        found = problem(refused, 409, "LeaseHeld")
        assert found["operation"] == f"/v1/operations/maintenance/{host}"
        assert found["details"]["workflow_id"] == f"maintenance/{host}"
        assert f"{host} is held by maintenance/{host}" in found["detail"]
        assert found["remedy"]
    assert api.rows() == before
    assert await api.run_id(f"maintenance/{host}") == run


async def test_two_that_enter_at_the_same_time(api: Api, host: str) -> None:
    one, other = await asyncio.gather(
        api.operator.post(f"/v1/hosts/{host}/maintenance"),
        api.admin.post(f"/v1/hosts/{host}/maintenance"),
    )
    assert sorted((one.status_code, other.status_code)) == [202, 409]


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"dry_run": "yes"}, "dry_run", "input should be a valid boolean"),
        (
            {"on_blocker": "x"},
            "on_blocker",
            "input should be 'refuse', 'copy_storage', 'shutdown' or 'keep'",
        ),
        ({"return_vms": "yes"}, "return_vms", "input should be a valid boolean"),
        ({"queue": 0}, "queue", "input should be a valid boolean"),
        ({"host_is_down": "true"}, "host_is_down", "input should be a valid boolean"),
        (
            {"max_parallel": 0},
            "max_parallel",
            "input should be greater than or equal to 1",
        ),
        ({"max_parallel": "3"}, "max_parallel", "input should be a valid integer"),
        ({"reasn": "x"}, "reasn", "there is no such field"),
        ({"host": "kvm-2"}, "host", "there is no such field"),
        ({"continued": None}, "continued", "there is no such field"),
        ([], "input", "input should be an object"),
    ],
)
async def test_a_wrong_body_starts_nothing(
    api: Api, host: str, body: Any, field: str, message: str
) -> None:
    before = api.rows()
    refused = await api.operator.post(f"/v1/hosts/{host}/maintenance", json=body)
    found = problem(refused, 422, "InvalidInput")
    assert found["errors"] == [{"field": field, "message": message}]
    assert found["detail"].startswith(f"The input of HostMaintenance is not valid: {field}: ")
    assert api.rows() == before
    assert await api.run_id(f"maintenance/{host}") is None


async def test_an_unknown_host(api: Api) -> None:
    before, name = api.rows(), new_name()
    for method, path, body in (
        ("GET", f"/v1/hosts/{name}", None),
        ("GET", f"/v1/hosts/{name}/maintenance", None),
        ("POST", f"/v1/hosts/{name}/maintenance", {}),
        ("DELETE", f"/v1/hosts/{name}/maintenance", None),
        ("POST", f"/v1/hosts/{name}/maintenance/return", None),
        ("POST", f"/v1/hosts/{name}/maintenance/vms/vm-1", {"action": "keep"}),
    ):
        found = problem(await api.operator.request(method, path, json=body), 404, "NotFound")
        assert found["detail"].startswith(f"There is no host '{name}'.")
    assert api.rows() == before
    assert await api.run_id(f"maintenance/{name}") is None


async def test_a_host_that_is_not_in_maintenance(api: Api, host: str) -> None:
    before, path = api.rows(), f"/v1/hosts/{host}/maintenance"
    found = problem(await api.viewer.get(path), 404, "NotFound")
    assert found["detail"] == f"{host} is not in maintenance."
    found = problem(await api.operator.delete(path), 409, "Conflict")
    assert found["detail"].startswith(f"{host} is not in maintenance.")
    problem(await api.operator.post(f"{path}/vms/vm-1", json={"action": "keep"}), 404, "NotFound")
    assert api.rows() == before
    assert await api.run_id(f"maintenance/{host}") is None


async def test_the_view_has_status_run_and_progress(api: Api, host: str) -> None:
    await api.enter(host, reason="disk")
    described = await api.workflow(f"maintenance/{host}").describe()
    key = f"maintenance/{host}#{described.raw_info.first_run_id}"
    await api.inventory.vm_migrations.start(key, "vm-1", host, "kvm-b", 1)
    seen = MigrationFigures(
        percent=40,
        rate_mib_s=12.5,
        remaining_mib=300,
        dirty_rate_mib_s=3.5,
        iteration=2,
        throttle_percent=20,
        expected_end_at=datetime(2026, 11, 24, 9, 30, tzinfo=UTC),
    )
    await api.inventory.vm_migrations.progress(key, "vm-1", seen)
    await api.inventory.vm_migrations.start("maintenance/other#x", "vm-2", host, "kvm-b", 1)

    response = await api.viewer.get(f"/v1/hosts/{host}/maintenance")
    assert response.status_code == 200
    view = MaintenanceView.model_validate(response.json())
    assert (view.host, view.reason, view.phase) == (host, "disk", "Question")
    assert (view.workflow_id, view.run_id) == (described.id, described.run_id)
    (migration,) = view.migrations
    assert (migration.vm, migration.percent, migration.state) == (
        "vm-1",
        40,
        MigrationState.MIGRATING,
    )
    assert (migration.dirty_rate_mib_s, migration.iteration) == (3.5, 2)
    assert (migration.throttle_percent, migration.expected_end_at) == (20, seen.expected_end_at)


async def test_leave_is_accepted_before_it_is_done(api: Api, host: str) -> None:
    await api.enter(host, reason="slow")
    path = f"/v1/hosts/{host}/maintenance"
    left = await api.operator.delete(path)
    assert left.status_code == 202
    assert left.headers["location"] == f"/v1/operations/maintenance/{host}"
    assert (await api.viewer.get(path)).json()["phase"] == "Leaving"
    handle = api.workflow(f"maintenance/{host}")
    await handle.signal("go")
    assert (await handle.result())["outcome"] == "left"
    problem(await api.viewer.get(path), 404, "NotFound")
    shown = (await api.viewer.get(left.headers["location"])).json()
    assert shown["status"] == "COMPLETED"
    assert shown["closed_at"]
    assert shown["details"]["outcome"] == "left"
    newest = (await api.inventory.events.list(subject=f"host/{host}"))[0]
    assert (newest.kind, newest.actor) == ("maintenance.leave_requested", "token:olga")
    # The host is free again.
    await api.enter(host)


async def test_a_refused_leave_is_a_conflict_in_the_workflows_words(api: Api, host: str) -> None:
    await api.enter(host, reason="stubborn")
    before = api.rows()
    refused = await api.operator.delete(f"/v1/hosts/{host}/maintenance")
    found = problem(refused, 409, "Conflict")
    assert found["detail"] == "A dry run has nothing to leave."
    assert api.rows() == before


@pytest.mark.parametrize(
    ("query", "stored", "said"),
    [
        ("", b'{"return_vms":null,"force":false}', "to be put back into service"),
        (
            "?return_vms=true",
            b'{"return_vms":true,"force":false}',
            "to be put back into service, with its VMs",
        ),
        (
            "?return_vms=false&force=true",
            b'{"return_vms":false,"force":true}',
            "to be put back into service, without its VMs, forced: also without networks or "
            "storage that it had before",
        ),
    ],
)
async def test_how_to_leave_reaches_the_workflow_and_the_trail(
    api: Api, host: str, query: str, stored: bytes, said: str
) -> None:
    await api.enter(host)
    left = await api.operator.delete(f"/v1/hosts/{host}/maintenance{query}")
    assert left.status_code == 202, left.text
    handle = api.workflow(f"maintenance/{host}")
    await handle.result()
    assert stored in await history(handle)
    newest = (await api.inventory.events.list(subject=f"host/{host}"))[0]
    assert (newest.kind, newest.message) == ("maintenance.leave_requested", said)


@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        ("forced=true", "forced", "there is no such field"),
        (
            "return_vms=all",
            "return_vms",
            "input should be a valid boolean, unable to interpret input",
        ),
    ],
)
async def test_a_wrong_query_does_not_leave(
    api: Api, host: str, query: str, field: str, message: str
) -> None:
    await api.enter(host)
    before, path = api.rows(), f"/v1/hosts/{host}/maintenance"
    found = problem(await api.operator.delete(f"{path}?{query}"), 422, "InvalidInput")
    assert found["errors"] == [{"field": field, "message": message}]
    assert api.rows() == before
    assert (await api.viewer.get(path)).json()["phase"] == "Question"


@pytest.mark.parametrize("action", list(VmAction))
async def test_a_question_is_answered(api: Api, host: str, action: str) -> None:
    await api.enter(host)
    path = f"/v1/hosts/{host}/maintenance"
    answered = await api.operator.post(f"{path}/vms/vm-1", json={"action": action})
    assert (answered.status_code, answered.content) == (204, b"")
    assert (await api.viewer.get(path)).json()["message"] == f"vm-1: {action}"
    newest = (await api.inventory.events.list(subject=f"host/{host}"))[0]
    assert (newest.kind, newest.message) == ("maintenance.vm_answered", f"vm-1: {action}")


async def test_an_answer_that_does_not_apply_is_refused(api: Api, host: str) -> None:
    await api.enter(host)
    before, path = api.rows(), f"/v1/hosts/{host}/maintenance"
    refused = await api.operator.post(f"{path}/vms/vm-9", json={"action": "keep"})
    found = problem(refused, 409, "Conflict")
    assert found["detail"] == "vm-9 waits for no answer; VMs that do: vm-1."
    refused = await api.operator.post(f"{path}/vms/vm-1", json={"action": "destroy"})
    found = problem(refused, 422, "InvalidInput")
    assert found["errors"][0]["field"] == "action"
    assert found["detail"].startswith("The input of ResolveVm is not valid")
    assert api.rows() == before
    assert (await api.viewer.get(path)).json()["message"] == ""


@pytest.mark.parametrize("form", ["by-hand-{}", "people/olga {}?"])
async def test_a_maintenance_under_another_id_is_found_by_its_lease(
    api: Api, host: str, form: str
) -> None:
    own_id = form.format(host)
    handle = await api.by_hand(own_id, host, reason="night shift")
    before, path = api.rows(), f"/v1/hosts/{host}/maintenance"

    found = problem(await api.operator.post(path), 409, "LeaseHeld")
    assert found["details"]["workflow_id"] == own_id
    assert f"held by {own_id}" in found["detail"]
    assert api.rows() == before
    assert await api.run_id(f"maintenance/{host}") is None

    linked = await api.viewer.get(found["operation"])
    assert linked.status_code == 200, linked.text
    assert (linked.json()["workflow_id"], linked.json()["subject"]) == (own_id, host)
    assert linked.json()["details"]["reason"] == "night shift"
    assert (await api.viewer.get(path)).json()["workflow_id"] == own_id
    answered = await api.operator.post(f"{path}/vms/vm-1", json={"action": "keep"})
    assert answered.status_code == 204
    left = await api.operator.delete(path)
    assert left.status_code == 202
    assert left.headers["location"] == found["operation"]
    assert (await handle.result())["outcome"] == "left"
    # Its lease is still in the table, but its holder has ended.
    problem(await api.viewer.get(path), 404, "NotFound")
    await api.enter(host)


async def test_another_run_under_the_holders_id_does_not_hold_the_host(api: Api, host: str) -> None:
    """Only the chain of runs that took the lease does: this one is for another host."""
    await api.by_hand(f"reused-{host}", new_name())
    await api.lease(host, f"reused-{host}", run_id="the run of long ago")
    problem(await api.viewer.get(f"/v1/hosts/{host}/maintenance"), 404, "NotFound")
    await api.enter(host)


async def test_a_host_that_is_being_added_can_not_enter(api: Api, host: str) -> None:
    addition = {
        "name": host,
        "cluster": "cluster-1",
        "address": "198.18.0.11",
        "secret": "x",
    }
    await api.client.start_workflow(
        "HostAddition", addition, id=f"addition/{host}", task_queue="stand-ins"
    )
    await api.lease(host, f"addition/{host}")
    before = api.rows()
    refused = await api.operator.post(f"/v1/hosts/{host}/maintenance")
    found = problem(refused, 409, "LeaseHeld")
    assert found["operation"] == f"/v1/operations/addition/{host}"
    problem(await api.operator.delete(f"/v1/hosts/{host}/maintenance"), 409, "Conflict")
    assert api.rows() == before
    accepted = await api.admin.post(f"/v1/hosts/{host}/host-key", json={"fingerprint": SHOWN_KEY})
    assert accepted.status_code == 204


async def test_return_starts_the_workflow_and_says_where_to_look(api: Api, host: str) -> None:
    response = await api.operator.post(f"/v1/hosts/{host}/maintenance/return")
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/v1/operations/return/{host}"
    started = Operation.model_validate(response.json())
    handle = api.workflow(f"return/{host}")
    described = await handle.describe()
    assert (started.kind, started.subject, started.status) == ("return", host, "RUNNING")
    assert (started.workflow_id, started.run_id) == (described.id, described.run_id)
    assert described.workflow_type == "VmReturn"
    assert await described.static_summary() == f"Return of {host} by olga"
    (event,) = await api.inventory.events.list(operation=f"return/{host}")
    assert (event.kind, event.subject, event.actor) == (
        "maintenance.return_requested",
        f"host/{host}",
        "token:olga",
    )
    shown = (await api.viewer.get(response.headers["location"])).json()
    assert (shown["status"], shown["details"]["phase"]) == ("RUNNING", "Returning")
    await handle.signal("go")
    assert await handle.result() == {"host": host, "vms": []}
    shown = (await api.viewer.get(response.headers["location"])).json()
    assert (shown["status"], shown["details"]) == ("COMPLETED", {"host": host, "vms": []})


async def test_a_host_to_which_vms_return_is_taken(api: Api, host: str) -> None:
    path = f"/v1/hosts/{host}/maintenance"
    assert (await api.operator.post(f"{path}/return")).status_code == 202
    before = api.rows()
    for taken in (f"{path}/return", path):
        found = problem(await api.operator.post(taken), 409, "LeaseHeld")
        assert found["operation"] == f"/v1/operations/return/{host}"
    assert api.rows() == before
    assert await api.run_id(f"maintenance/{host}") is None
    # It is no maintenance: there is none to look at, and none to leave.
    problem(await api.viewer.get(path), 404, "NotFound")
    problem(await api.operator.delete(path), 409, "Conflict")


async def test_no_vms_return_while_a_maintenance_is_open(api: Api, host: str) -> None:
    await api.enter(host)
    before = api.rows()
    refused = await api.operator.post(f"/v1/hosts/{host}/maintenance/return")
    found = problem(refused, 409, "Conflict")
    assert f"maintenance/{host} is open" in found["detail"]
    assert f"`hostler maintenance leave {host} --return-vms`" in found["remedy"]
    assert found["operation"] == f"/v1/operations/maintenance/{host}"
    assert api.rows() == before
    assert await api.run_id(f"return/{host}") is None


async def test_no_vms_return_to_a_host_that_a_terminated_maintenance_has_left_out(
    api: Api, host: str
) -> None:
    await change_state(
        api.inventory, host, ResourceState.ENABLED, ResourceState.PREPARE_FOR_MAINTENANCE
    )
    before = api.rows()
    refused = await api.operator.post(f"/v1/hosts/{host}/maintenance/return")
    found = problem(refused, 409, "Conflict")
    assert found["detail"].startswith(f"{host} is PrepareForMaintenance")
    assert f"`hostler maintenance leave {host}`" in found["remedy"]
    assert api.rows() == before
    assert await api.run_id(f"return/{host}") is None


async def test_leaving_after_a_terminate_adopts_and_leaves(api: Api, host: str) -> None:
    await api.enter(host)
    await change_state(
        api.inventory, host, ResourceState.ENABLED, ResourceState.PREPARE_FOR_MAINTENANCE
    )
    handle = api.workflow(f"maintenance/{host}")
    await handle.terminate()
    terminated, path = await api.run_id(handle.id), f"/v1/hosts/{host}/maintenance"
    found = problem(await api.viewer.get(path), 404, "NotFound")
    assert "PrepareForMaintenance" in found["detail"]
    assert f"hostler maintenance leave {host}" in found["remedy"]

    left = await api.operator.delete(path)
    assert left.status_code == 202, left.text
    assert left.headers["location"] == f"/v1/operations/maintenance/{host}"
    assert left.json()["run_id"] != terminated
    assert (await handle.result())["outcome"] == "left"
    assert await (await handle.describe()).static_summary() == (
        f"Maintenance of {host} by olga: given back after its maintenance had ended without that"
    )


async def test_entering_after_a_terminate_starts_one_that_adopts(api: Api, host: str) -> None:
    await api.enter(host)
    handle = api.workflow(f"maintenance/{host}")
    await api.lease(host, handle.id)
    await handle.terminate()
    terminated = await api.run_id(handle.id)
    response = await api.enter(host, reason="again")
    assert response.json()["run_id"] != terminated
    assert (await handle.describe()).status is WorkflowExecutionStatus.RUNNING
