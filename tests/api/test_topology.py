"""Zones, pods, clusters; and what every path does with a wrong request."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest
import pytest_asyncio
from temporalio.client import Client
from temporalio.service import RPCError

from contracts.cluster_maintenance import ClusterMaintenanceInput
from contracts.hosts import Cluster, Pod, Zone
from tests.api.conftest import TASK_QUEUE, Api, new_name, problem

pytestmark = pytest.mark.asyncio(loop_scope="package")


@pytest_asyncio.fixture(autouse=True, loop_scope="package")
async def no_imports(client: Client) -> None:
    """Those that other tests have left running: they hold the names of their clusters."""
    query = "WorkflowType = 'HostImport' AND ExecutionStatus = 'Running'"
    async for execution in client.list_workflows(query):
        with suppress(RPCError):  # it has ended meanwhile
            await client.get_workflow_handle(execution.id).terminate()


async def test_they_are_created_disabled(api: Api) -> None:
    for path, body, model in (
        ("zones", {"name": "zone-2"}, Zone),
        ("pods", {"name": "pod-2", "zone": "zone-2"}, Pod),
        ("clusters", {"name": "cluster-2", "pod": "pod-2"}, Cluster),
    ):
        created = await api.admin.post(f"/v1/{path}", json=body)
        assert created.status_code == 201
        assert created.headers["location"] == f"/v1/{path}/{body['name']}"
        assert model.model_validate(created.json()).allocation_state == "Disabled"
        assert (await api.viewer.get(created.headers["location"])).json() == created.json()
        assert created.json() in (await api.viewer.get(f"/v1/{path}")).json()["items"]
    events = await api.inventory.events.list(subject="cluster/cluster-2")
    assert [(event.kind, event.actor) for event in events] == [("cluster.created", "token:anna")]


async def test_lists_are_filtered(api: Api) -> None:
    await api.admin.post("/v1/zones", json={"name": "zone-2"})
    await api.admin.post("/v1/pods", json={"name": "pod-2", "zone": "zone-2"})
    await api.admin.post("/v1/clusters", json={"name": "cluster-2", "pod": "pod-2"})

    async def names(path: str) -> list[str]:
        return [item["name"] for item in (await api.viewer.get(path)).json()["items"]]

    assert await names("/v1/pods?zone=zone-2") == ["pod-2"]
    assert await names("/v1/clusters?zone=zone-1") == ["cluster-1"]
    assert await names("/v1/clusters?zone=zone-1&pod=pod-2") == []


async def test_lists_come_in_pages(api: Api, host: str) -> None:
    for number in (2, 3, 4):
        await api.admin.post("/v1/zones", json={"name": f"zone-{number}"})
        await api.admin.post("/v1/pods", json={"name": f"pod-{number}", "zone": "zone-1"})
        await api.admin.post("/v1/clusters", json={"name": f"cluster-{number}", "pod": "pod-1"})
    for noun in ("zone", "pod", "cluster"):
        path, pages, after = f"/v1/{noun}s?limit=2", [], ""
        while True:
            answer = (await api.viewer.get(f"{path}{after}")).json()
            pages.append([item["name"] for item in answer["items"]])
            if answer["next"] is None:
                break
            after = f"&after={answer['next']}"
        assert pages == [[f"{noun}-1", f"{noun}-2"], [f"{noun}-3", f"{noun}-4"]]
        whole = (await api.viewer.get(f"/v1/{noun}s")).json()
        assert (len(whole["items"]), whole["next"]) == (4, None)
        enabled = (await api.viewer.get(f"/v1/{noun}s?allocation_state=Enabled")).json()
        assert enabled == {"items": [], "next": None}
    await api.operator.put(f"/v1/hosts/{host}/tags", json={"tags": ["ssd"]})
    for query, names in (("tag=ssd", [host]), ("tag=gpu", []), (f"after={host}", [])):
        listed = (await api.viewer.get(f"/v1/hosts?limit=1&{query}")).json()
        assert [item["name"] for item in listed["items"]] == names
        assert listed["next"] is None


async def test_they_are_renamed(api: Api) -> None:
    await api.admin.put("/v1/settings/hook.timeout?zone=zone-1", json={"value": 60})
    for noun in ("zone", "pod", "cluster"):
        before = (await api.viewer.get(f"/v1/{noun}s/{noun}-1")).json()
        for _ in range(2):
            renamed = await api.admin.patch(f"/v1/{noun}s/{noun}-1", json={"name": f"{noun}-1"})
            assert (renamed.status_code, renamed.json()) == (200, before)
        body = {"name": f"{noun}-new"}
        renamed = await api.admin.patch(f"/v1/{noun}s/{noun}-1", json=body)
        assert renamed.status_code == 200, renamed.text
        assert renamed.json().items() >= body.items()
        assert renamed.json()["allocation_state"] == before["allocation_state"]
        problem(await api.viewer.get(f"/v1/{noun}s/{noun}-1"), 404, "NotFound")
        problem(await api.admin.patch(f"/v1/{noun}s/{noun}-1", json=body), 404, "NotFound")
        events = await api.inventory.events.list(subject=f"{noun}/{noun}-new")
        assert [(event.kind, event.message, event.actor) for event in events] == [
            (f"{noun}.renamed", f"was {noun}-1", "token:anna"),
        ]
    path = "/v1/settings/hook.timeout?cluster=cluster-new"
    assert (await api.viewer.get(path)).json()["origin"] == "zone zone-new"


async def test_a_change_names_what_is_to_change(api: Api) -> None:
    before = api.rows()
    for path in ("/v1/zones/zone-1", "/v1/pods/pod-1", "/v1/clusters/cluster-1"):
        for body in ({}, {"name": None}, {"name": "new", "allocation_state": "Enabled"}):
            found = problem(await api.admin.patch(path, json=body), 422, "InvalidInput")
            assert "exactly one of name and allocation_state is required" in found["detail"]
        found = problem(await api.admin.patch(path, json={"name": "a b"}), 422, "InvalidInput")
        assert [error["field"] for error in found["errors"]] == ["name"]
        problem(await api.operator.patch(path, json={"name": "new"}), 403, "Refused")
        problem(await api.operator.delete(path), 403, "Refused")
    assert api.rows() == before


async def test_a_name_is_taken(api: Api) -> None:
    await api.admin.post("/v1/zones", json={"name": "zone-2"})
    before = api.rows()
    body = {"name": "zone-2"}
    problem(await api.admin.patch("/v1/zones/zone-1", json=body), 409, "AlreadyExists")
    assert api.rows() == before


async def test_they_are_deleted_when_they_are_empty(api: Api, host: str) -> None:
    before = api.rows()
    for path, says in (
        ("clusters/cluster-1", f"host {host} is in it"),
        ("pods/pod-1", "cluster cluster-1 is in it"),
        ("zones/zone-1", "pod pod-1 is in it"),
    ):
        found = problem(await api.admin.delete(f"/v1/{path}"), 409, "Conflict")
        assert says in found["detail"]
    assert found["details"] == {"pods": ["pod-1"], "number": 1}
    assert api.rows() == before
    await api.admin.post("/v1/clusters", json={"name": "cluster-2", "pod": "pod-1"})
    await api.operator.put(
        "/v1/clusters/cluster-2/vms/vm-1/policy", json={"pinned": True, "reason": "license"}
    )
    deleted = await api.admin.delete("/v1/clusters/cluster-2")
    assert (deleted.status_code, deleted.content) == (204, b"")
    problem(await api.admin.delete("/v1/clusters/cluster-2"), 404, "NotFound")
    again = await api.admin.post("/v1/clusters", json={"name": "cluster-2", "pod": "pod-1"})
    assert again.status_code == 201
    assert (await api.viewer.get("/v1/clusters/cluster-2/vms")).json() == {"items": []}


async def test_a_cluster_keeps_its_name_while_an_operation_holds_a_host(
    api: Api, host: str
) -> None:
    path, body = "/v1/clusters/cluster-1", {"name": f"of-{host}"}
    handle = await api.by_hand(f"mine/{host}", host)
    before = api.rows()
    found = problem(await api.admin.patch(path, json=body), 409, "LeaseHeld")
    assert f"cluster-1 is held by mine/{host}, which is running" in found["detail"]
    assert found["details"]["workflow_id"] == f"mine/{host}"
    assert api.rows() == before
    # Terminated, it still has its lease, which is worth nothing.
    await handle.terminate()
    renamed = await api.admin.patch(path, json=body)
    assert renamed.json()["name"] == f"of-{host}", renamed.text
    assert (await api.viewer.get(f"/v1/hosts/{host}")).json()["cluster"] == f"of-{host}"


@pytest.mark.parametrize("workflow", ["cluster-maintenance/{0}", "by-hand/{0}"])
async def test_a_cluster_in_maintenance_is_neither_renamed_nor_deleted(
    api: Api, workflow: str
) -> None:
    cluster = f"cluster-of-{new_name()}"
    workflow_id = workflow.format(cluster)
    await api.admin.post("/v1/clusters", json={"name": cluster, "pod": "pod-1"})
    handle = await api.client.start_workflow(
        "ClusterMaintenance",
        ClusterMaintenanceInput(cluster=cluster),
        id=workflow_id,
        task_queue=TASK_QUEUE,
    )
    query = f"HostlerCluster = '{cluster}' AND ExecutionStatus = 'Running'"
    while not [one async for one in api.client.list_workflows(query)]:
        await asyncio.sleep(0.05)
    for refused in (
        await api.admin.patch(f"/v1/clusters/{cluster}", json={"name": "new"}),
        await api.admin.delete(f"/v1/clusters/{cluster}"),
    ):
        assert workflow_id in problem(refused, 409, "LeaseHeld")["detail"]
    # To enable it is no matter of its name.
    enabled = await api.admin.patch(f"/v1/clusters/{cluster}", json={"allocation_state": "Enabled"})
    assert enabled.status_code == 202
    await handle.terminate()
    while [one async for one in api.client.list_workflows(query)]:
        await asyncio.sleep(0.05)
    assert (await api.admin.delete(f"/v1/clusters/{cluster}")).status_code == 204


async def test_a_cluster_keeps_its_name_while_an_import_adds_hosts_to_it(api: Api) -> None:
    """To it and to others: no search attribute names them."""
    name = new_name()
    clusters = [f"{number}-of-{name}" for number in range(3)]
    for cluster in clusters:
        await api.admin.post("/v1/clusters", json={"name": cluster, "pod": "pod-1"})
    hosts = [
        {"name": f"{name}-{n}", "address": f"198.18.4.{n}", "cluster": cluster, "password": "pw"}
        for n, cluster in enumerate(clusters[:2])
    ]
    started = await api.admin.post("/v1/imports", json={"name": name, "hosts": hosts})
    assert started.status_code == 202, started.text
    query = f"WorkflowId = 'import/{name}'"
    while not [one async for one in api.client.list_workflows(query)]:
        await asyncio.sleep(0.05)
    for cluster in clusters[:2]:
        path = f"/v1/clusters/{cluster}"
        for refused in (
            await api.admin.patch(path, json={"name": "new"}),
            await api.admin.delete(path),
        ):
            found = problem(refused, 409, "LeaseHeld")
            assert f"{cluster} is held by import/{name}" in found["detail"]
            assert found["operation"] == started.headers["location"]
    other = await api.admin.patch(f"/v1/clusters/{clusters[2]}", json={"name": f"new-{name}"})
    assert other.status_code == 200, other.text
    await api.workflow(f"import/{name}").signal("go")
    await api.workflow(f"import/{name}").result()
    renamed = await api.admin.patch(f"/v1/clusters/{clusters[0]}", json={"name": f"old-{name}"})
    assert renamed.status_code == 200, renamed.text


async def test_zones_and_pods_are_renamed_while_hosts_are_worked_on(api: Api, host: str) -> None:
    await api.enter(host)
    await api.lease(host, f"maintenance/{host}")
    for noun in ("zone", "pod"):
        renamed = await api.admin.patch(f"/v1/{noun}s/{noun}-1", json={"name": f"{noun}-new"})
        assert renamed.status_code == 200, renamed.text
    assert (await api.viewer.get(f"/v1/hosts/{host}")).json()["zone"] == "zone-new"


async def test_a_taken_name_and_an_unknown_parent(api: Api) -> None:
    before = api.rows()
    found = problem(
        await api.admin.post("/v1/zones", json={"name": "zone-1"}), 409, "AlreadyExists"
    )
    assert found["detail"].startswith("There is a zone 'zone-1' already.")
    assert found["remedy"] == "Choose another name."
    for path, body in (
        ("pods", {"name": "pod-2", "zone": "zone-9"}),
        ("clusters", {"name": "cluster-2", "pod": "pod-9"}),
    ):
        problem(await api.admin.post(f"/v1/{path}", json=body), 404, "NotFound")
    for path in ("zones", "pods", "clusters"):
        unknown = f"/v1/{path}/none"
        assert "'none'" in problem(await api.viewer.get(unknown), 404, "NotFound")["detail"]
        changed = await api.admin.patch(unknown, json={"allocation_state": "Enabled"})
        problem(changed, 404, "NotFound")
    assert api.rows() == before


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({}, "name", "this field is required"),
        ({"name": ""}, "name", "must not be empty"),
        ({"name": 5}, "name", "input should be a valid string"),
        ({"name": None}, "name", "input should be a valid string"),
        ({"name": "a b"}, "name", "must match ^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"),
        ({"name": "zone-2", "nmae": 1}, "nmae", "there is no such field"),
        ([], "input", "input should be an object"),
        (5, "input", "input should be an object"),
        ("zone-2", "input", "input should be an object"),
    ],
)
async def test_a_wrong_body_is_refused_by_field(
    api: Api, body: Any, field: str, message: str
) -> None:
    before = api.rows()
    found = problem(await api.admin.post("/v1/zones", json=body), 422, "InvalidInput")
    assert found["errors"] == [{"field": field, "message": message}]
    assert found["detail"] == (
        f"The input of Zone is not valid: {field}: {message}. "
        "Correct these fields and start it again; nothing was changed."
    )
    assert found["details"] == {}
    assert api.rows() == before


@pytest.mark.parametrize(
    ("content", "content_type", "says"),
    [
        (b'{"name": ', "application/json", "invalid JSON: Expecting value at character 9"),
        (b"name=zone-2", "application/json", "invalid JSON: "),
        (b'{"name": "\xff"}', "application/json", "must be valid JSON in UTF-8"),
        (b"", "application/json", "this field is required"),
        (b'{"name": "zone-2"}', "application/x-www-form-urlencoded", "Content-Type"),
        (b'{"name": "zone-2"}', "", "Content-Type"),
    ],
)
async def test_a_body_that_is_no_json_is_refused(
    api: Api, content: bytes, content_type: str, says: str
) -> None:
    before = api.rows()
    response = await api.admin.post(
        "/v1/zones", content=content, headers={"Content-Type": content_type}
    )
    assert says in problem(response, 422, "InvalidInput")["detail"]
    assert api.rows() == before


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/hosts?clster=cluster-1", "clster"),
        ("/v1/hosts?cluster=", "cluster"),
        ("/v1/hosts?status=Upp", "status"),
        ("/v1/hosts?limit=1001", "limit"),
        ("/v1/zones?limit=0", "limit"),
        ("/v1/pods?after=", "after"),
        ("/v1/clusters?allocation_state=enabled", "allocation_state"),
        ("/v1/zones/a%20b", "name"),
        ("/v1/events?limit=0", "limit"),
        ("/v1/events?limit=x", "limit"),
        ("/v1/events?subject=%00", "subject"),
        ("/v1/events?since=yesterday", "since"),
        ("/v1/events?until=2026-11-24T08:00:00", "until"),
        ("/v1/events?before=99999999999999999999", "before"),
        ("/v1/operations?kind=moving", "kind"),
        ("/v1/operations?status=running", "status"),
        ("/v1/operations/moving/kvm-1", "kind"),
    ],
)
async def test_a_wrong_query_or_path_is_refused_by_field(api: Api, path: str, field: str) -> None:
    found = problem(await api.viewer.get(path), 422, "InvalidInput")
    assert [error["field"] for error in found["errors"]] == [field]
    assert found["detail"].startswith(
        f"The input of GET {path.partition('?')[0]}".replace("%20", " ")
    )


async def test_what_is_not_there(api: Api) -> None:
    found = problem(await api.viewer.get("/v1/nothing"), 404, "NotFound")
    assert "/v1/nothing" in found["detail"]
    problem(await api.viewer.get("/v1/zones/"), 404, "NotFound")
    problem(await api.nobody.get("/nothing"), 404, "NotFound")
    found = problem(await api.operator.post("/v1/hosts//maintenance"), 422, "InvalidInput")
    assert "is empty" in found["detail"]
    refused = await api.viewer.put("/v1/zones")
    problem(refused, 405, "MethodNotAllowed")
    assert refused.headers["allow"]
