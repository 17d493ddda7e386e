"""Hosts leave: what starts it, what is in its way, what is remembered."""

from typing import Any

import pytest

from api.requests import RemovalQuery
from contracts.hosts import RemovedHost
from contracts.leases import LeaseRef, LeaseScope, Owner
from contracts.operations import Operation
from contracts.removal import HostRemovalInput
from contracts.states import HostStatus
from tests.api.conftest import Api, history, problem

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def remove(api: Api, host: str, **query: Any) -> Any:
    return await api.admin.delete(f"/v1/hosts/{host}", params=query)


async def test_the_query_has_the_fields_of_the_workflows_input() -> None:
    asked, given = (
        model.model_json_schema()["properties"] for model in (RemovalQuery, HostRemovalInput)
    )
    del given["host"]
    assert asked == given


async def test_delete_starts_the_workflow_and_says_where_to_look(api: Api, host: str) -> None:
    response = await remove(
        api,
        host,
        reason="slow",
        after_maintenance=True,
        leave_vms=True,
        on_blocker="shutdown",
        max_parallel=3,
        queue=False,
    )
    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/operations/removal/{host}"
    started = Operation.model_validate(response.json())
    assert (started.kind, started.subject, started.status) == ("removal", host, "RUNNING")
    stored = await history(api.workflow(f"removal/{host}"))
    assert b'"reason":"slow","after_maintenance":true,"forced":false,"leave_vms":true' in stored
    assert b'"dry_run":false,"on_blocker":"shutdown","max_parallel":3,"queue":false' in stored
    (event,) = await api.inventory.events.list(operation=f"removal/{host}")
    assert (event.kind, event.subject, event.actor) == (
        "removal.requested",
        f"host/{host}",
        "token:anna",
    )
    assert event.message == "after maintenance, leaves VMs: slow"
    shown = (await api.viewer.get(response.headers["location"])).json()
    assert shown["details"]["phase"] == "Cleaning"
    again = problem(await remove(api, host), 409, "LeaseHeld")
    assert again["operation"] == response.headers["location"]


async def test_a_dry_run(api: Api, host: str) -> None:
    await api.enter(host, reason="busy")
    response = await remove(api, host, dry_run=True)
    assert response.status_code == 202
    await api.workflow(f"removal/{host}").result()
    shown = (await api.viewer.get(response.headers["location"])).json()
    assert (shown["status"], shown["details"]["outcome"]) == ("COMPLETED", "planned")
    (event,) = await api.inventory.events.list(operation=f"removal/{host}")
    assert event.message == "dry run: no reason given"


async def test_only_a_maintenance_that_is_ready_is_taken_over(api: Api, host: str) -> None:
    await api.enter(host, reason="busy")
    found = problem(await remove(api, host), 409, "Conflict")
    assert f"maintenance/{host} is not ready (Question" in found["detail"]
    assert found["remedy"]
    assert await api.run_id(f"removal/{host}") is None
    await api.operator.delete(f"/v1/hosts/{host}/maintenance")
    await api.workflow(f"maintenance/{host}").result()
    await api.enter(host, reason="ready")
    assert (await remove(api, host)).status_code == 202


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"forced": True}, "forced needs a reason"),
        ({"forced": True, "reason": "x", "after_maintenance": True}, "not with after_maintenance"),
        ({"on_blocker": "keep"}, "on_blocker can't be keep"),
        ({"on_blocker": "nonsense"}, "on_blocker"),
        ({"max_parallel": 0}, "max_parallel"),
        ({"unknown": 1}, "there is no such field"),
    ],
)
async def test_a_query_that_is_not_valid(
    api: Api, host: str, query: dict[str, Any], said: str
) -> None:
    before = api.rows()
    assert said in problem(await remove(api, host, **query), 422, "InvalidInput")["detail"]
    assert api.rows() == before
    assert await api.run_id(f"removal/{host}") is None


async def test_an_unknown_host(api: Api) -> None:
    found = problem(await remove(api, "kvm-none"), 404, "NotFound")
    assert "There is no host 'kvm-none'" in found["detail"]


async def test_it_is_the_admins(api: Api, host: str) -> None:
    for caller in (api.viewer, api.operator):
        problem(await caller.delete(f"/v1/hosts/{host}"), 403, "Refused")
        answer = await caller.post(f"/v1/hosts/{host}/removal", json={"action": "retry"})
        problem(answer, 403, "Refused")
    await remove(api, host, reason="slow")
    problem(await api.operator.delete(f"/v1/operations/removal/{host}"), 403, "Refused")
    assert (await api.admin.delete(f"/v1/operations/removal/{host}")).status_code == 202


async def test_what_can_not_be_taken_back_is_not_cancelled(api: Api, host: str) -> None:
    await remove(api, host, reason="final")
    found = problem(await api.admin.delete(f"/v1/operations/removal/{host}"), 409, "Conflict")
    assert "can't be taken back any more" in found["detail"]
    await api.workflow(f"removal/{host}").signal("go")
    await api.workflow(f"removal/{host}").result()


async def test_a_question_is_answered(api: Api, host: str) -> None:
    answer = {"action": "leave_uncleaned"}
    none = await api.admin.post(f"/v1/hosts/{host}/removal", json=answer)
    assert "No removal" in problem(none, 404, "NotFound")["detail"]
    location = (await remove(api, host, reason="slow")).headers["location"]
    assert (await api.admin.post(f"/v1/hosts/{host}/removal", json=answer)).status_code == 204
    shown = (await api.viewer.get(location)).json()
    assert shown["details"]["message"] == "leave_uncleaned"
    newest = (await api.inventory.events.list(subject=f"host/{host}"))[0]
    assert (newest.kind, newest.message, newest.actor) == (
        "removal.resolved",
        "leave_uncleaned",
        "token:anna",
    )
    refused = await api.admin.post(f"/v1/hosts/{host}/removal", json=answer)
    assert "Nothing waits" in problem(refused, 409, "Conflict")["detail"]


async def test_tombstones_are_listed(api: Api, host: str) -> None:
    assert (await api.viewer.get("/v1/removed-hosts")).json() == {"items": []}
    inventory = api.inventory
    owner = Owner(workflow_id=f"removal/{host}", first_run_id="run-1")
    lease = await inventory.leases.acquire(host, LeaseScope.PLACEMENT, owner, "removal")
    await inventory.hosts.set_status(host, HostStatus.DOWN, actor="test", reason="is off")
    await inventory.removed_hosts.remove(
        LeaseRef(host=host, owner=owner, epoch=lease.epoch),
        reason="burnt",
        forced=True,
        vms=["vm-1"],
        cleaned=False,
        problem="does not answer",
    )
    (item,) = (await api.viewer.get("/v1/removed-hosts")).json()["items"]
    removed = RemovedHost.model_validate(item)
    assert (removed.name, removed.reason, removed.vms) == (host, "burnt", ("vm-1",))
    assert removed.cleaned_at is None
    assert "secret" not in str(item)
    problem(await api.viewer.get(f"/v1/hosts/{host}"), 404, "NotFound")
    path, asked = f"/v1/removed-hosts/{removed.id}/settlement", {"reason": "scrapped"}
    for caller in (api.viewer, api.operator):
        problem(await caller.post(path, json=asked), 403, "Refused")
    for nothing in ({}, {"reason": "  "}):
        problem(await api.admin.post(path, json=nothing), 422, "InvalidInput")
    settled = RemovedHost.model_validate((await api.admin.post(path, json=asked)).json())
    assert settled.settled_at is not None
    assert (settled.cleaned_at, settled.cleaning_problem) == (None, "scrapped")
    newest = (await inventory.events.list(subject=f"host/{host}"))[0]
    assert (newest.kind, newest.actor) == ("removed.settled", "token:anna")
    none = await api.admin.post("/v1/removed-hosts/999999/settlement", json=asked)
    problem(none, 404, "NotFound")
