"""Enabling and disabling zones, pods, clusters and hosts."""

import asyncio
import uuid
from typing import Any

import httpx
import pytest

from contracts.allocation import AllocationLevel, AllocationStateInput
from contracts.operations import Operation
from contracts.states import AllocationState, ResourceState
from tests.api.conftest import TASK_QUEUE, Api, change_state, new_name, problem

pytestmark = pytest.mark.asyncio(loop_scope="package")

_DISABLED = {"allocation_state": "Disabled", "reason": "wait"}


async def create(api: Api) -> tuple[str, str, str]:
    """A zone, a pod and a cluster whose operations no other test has."""
    zone, pod, cluster = (f"{level}-of-{new_name()}" for level in ("zone", "pod", "cluster"))
    await api.admin.post("/v1/zones", json={"name": zone})
    await api.admin.post("/v1/pods", json={"name": pod, "zone": zone})
    await api.admin.post("/v1/clusters", json={"name": cluster, "pod": pod})
    return zone, pod, cluster


async def until_listed(api: Api, kind: str, subject: str) -> list[dict[str, Any]]:
    """Visibility comes a moment after the fact."""
    while True:
        listed = await api.viewer.get("/v1/operations", params={"kind": kind, "limit": 1000})
        items: list[dict[str, Any]] = listed.json()["items"]
        if any(item["subject"] == subject for item in items):
            return items
        await asyncio.sleep(0.1)


def started(answer: httpx.Response, level: str, name: str) -> Operation:
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/v1/operations/{level}-allocation/{name}"
    operation = Operation.model_validate(answer.json())
    assert (operation.kind, operation.subject) == (f"{level}-allocation", name)
    return operation


async def test_a_place_is_changed_by_an_operation_that_is_found(api: Api) -> None:
    names = dict(zip(("zone", "pod", "cluster"), await create(api), strict=True))
    for level, name in names.items():
        answer = await api.admin.patch(f"/v1/{level}s/{name}", json=_DISABLED)
        operation = started(answer, level, name)
        shown = await api.viewer.get(answer.headers["location"])
        assert shown.json()["details"]["allocation_state"] == "Disabled"
        assert shown.json()["kind"] == operation.kind
        again = await api.admin.patch(f"/v1/{level}s/{name}", json=_DISABLED)
        refused = problem(again, 409, "LeaseHeld")
        assert refused["details"]["operation"] == answer.headers["location"]
        listed = await until_listed(api, operation.kind, name)
        assert {item["kind"] for item in listed} == {operation.kind}
        await api.workflow(operation.workflow_id).signal("go")
        result = await api.workflow(operation.workflow_id).result()
        assert result["told"] == 3
        assert (await api.viewer.get(f"/v1/operations/host-allocation/{name}")).status_code == 404
        (event,) = await api.inventory.events.list(operation=operation.workflow_id)
        assert (event.actor, event.subject) == ("token:anna", f"{level}/{name}")
        assert event.message == "Disabled: wait"


async def test_one_that_runs_is_turned_round(api: Api) -> None:
    zone, *_ = await create(api)
    first = await api.admin.patch(f"/v1/zones/{zone}", json=_DISABLED)
    operation = started(first, "zone", zone)
    enable = {"allocation_state": "Enabled", "reason": "mistaken"}
    turned = started(await api.admin.patch(f"/v1/zones/{zone}", json=enable), "zone", zone)
    assert turned.run_id == operation.run_id
    problem(await api.admin.patch(f"/v1/zones/{zone}", json=enable), 409, "LeaseHeld")
    await api.workflow(operation.workflow_id).signal("go")
    result = await api.workflow(operation.workflow_id).result()
    assert result["allocation_state"] == "Enabled"
    events = await api.inventory.events.list(operation=operation.workflow_id)
    assert [event.message for event in events] == ["Enabled: mistaken", "Disabled: wait"]


async def test_a_host_is_changed_the_same_way(api: Api, host: str) -> None:
    answer = await api.operator.patch(f"/v1/hosts/{host}", json={"resource_state": "Disabled"})
    operation = started(answer, "host", host)
    result = await api.workflow(operation.workflow_id).result()
    assert (result["level"], result["allocation_state"]) == ("host", "Disabled")
    # It holds no lease: a maintenance may begin meanwhile.
    waiting = {"resource_state": "Enabled", "reason": "wait"}
    started(await api.operator.patch(f"/v1/hosts/{host}", json=waiting), "host", host)
    await api.enter(host)


async def test_a_host_that_is_not_in_service(api: Api, host: str) -> None:
    for target in (ResourceState.PREPARE_FOR_MAINTENANCE, ResourceState.MAINTENANCE):
        current = (await api.inventory.hosts.get(host)).resource_state
        await change_state(api.inventory, host, current, target)
    answer = await api.operator.patch(f"/v1/hosts/{host}", json={"resource_state": "Disabled"})
    found = problem(answer, 409, "Conflict")
    assert "its maintenance gives back Enabled" in found["detail"]
    assert found["remedy"] == f"First put it back into service: hostler maintenance leave {host}"
    assert await api.run_id(f"host-allocation/{host}") is None


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/zones/zone-1", {}, "input"),  # it might have been to get another name
        ("/v1/pods/pod-1", {"allocation_state": "Maintenance"}, "allocation_state"),
        ("/v1/clusters/cluster-1", {"allocation_state": "Enabled", "resaon": ""}, "resaon"),
        ("/v1/clusters/cluster-1", {"allocation_state": "Enabled", "reason": "\0"}, "reason"),
        ("/v1/hosts/kvm-1", {"resource_state": "Maintenance"}, "resource_state"),
        ("/v1/hosts/kvm-1", {"allocation_state": "Enabled"}, "resource_state"),
    ],
)
async def test_a_wrong_body(api: Api, path: str, body: dict[str, Any], field: str) -> None:
    found = problem(await api.admin.patch(path, json=body), 422, "InvalidInput")
    assert field in [error["field"] for error in found["errors"]]


async def test_what_is_not_there(api: Api) -> None:
    before = api.rows()
    for path in ("zones", "pods", "clusters"):
        problem(await api.admin.patch(f"/v1/{path}/none", json=_DISABLED), 404, "NotFound")
    answer = await api.admin.patch("/v1/hosts/none", json={"resource_state": "Enabled"})
    problem(answer, 404, "NotFound")
    assert api.rows() == before


async def test_one_under_an_id_that_a_person_chose(api: Api) -> None:
    workflow_id = f"by-hand-{uuid.uuid4()}"
    _, pod, _ = await create(api)
    handle = await api.client.start_workflow(
        "AllocationState",
        AllocationStateInput(
            level=AllocationLevel.POD, name=pod, allocation_state=AllocationState.ENABLED
        ),
        id=workflow_id,
        task_queue=TASK_QUEUE,
    )
    await handle.result()
    shown = await api.viewer.get(f"/v1/operations/pod-allocation/{workflow_id}")
    assert (shown.status_code, shown.json()["subject"]) == (200, pod)
    assert (
        await api.viewer.get(f"/v1/operations/zone-allocation/{workflow_id}")
    ).status_code == 404
    listed = await until_listed(api, "pod-allocation", pod)
    assert workflow_id in [item["workflow_id"] for item in listed]


async def test_cancel(api: Api) -> None:
    zone, *_ = await create(api)
    answer = await api.admin.patch(f"/v1/zones/{zone}", json=_DISABLED)
    cancelled = await api.admin.delete(answer.headers["location"])
    assert cancelled.status_code == 202
    events = await api.inventory.events.list(operation=f"zone-allocation/{zone}")
    assert (events[0].kind, events[0].subject) == (
        "zone-allocation.cancel_requested",
        f"zone/{zone}",
    )
