"""Zones, pods, clusters; and what every path does with a wrong request."""

from typing import Any

import pytest

from contracts.hosts import Cluster, Pod, Zone
from tests.api.conftest import Api, problem

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_they_are_created_disabled_and_enabled(api: Api) -> None:
    for path, body, model in (
        ("zones", {"name": "zone-2"}, Zone),
        ("pods", {"name": "pod-2", "zone": "zone-2"}, Pod),
        ("clusters", {"name": "cluster-2", "pod": "pod-2"}, Cluster),
    ):
        created = await api.admin.post(f"/v1/{path}", json=body)
        assert created.status_code == 201
        assert created.headers["location"] == f"/v1/{path}/{body['name']}"
        assert model.model_validate(created.json()).allocation_state == "Disabled"
        for _ in range(2):
            changed = await api.admin.patch(
                created.headers["location"], json={"allocation_state": "Enabled"}
            )
            assert changed.status_code == 200
            assert changed.json() == {**created.json(), "allocation_state": "Enabled"}
        assert (await api.viewer.get(created.headers["location"])).json() == changed.json()
        assert changed.json() in (await api.viewer.get(f"/v1/{path}")).json()["items"]
    # Each was enabled once, by whoever holds the token.
    events = await api.inventory.events.list(subject="cluster/cluster-2")
    assert [(event.kind, event.actor) for event in events] == [
        ("cluster.state", "token:anna"),
        ("cluster.created", "token:anna"),
    ]


async def test_lists_are_filtered(api: Api) -> None:
    await api.admin.post("/v1/zones", json={"name": "zone-2"})
    await api.admin.post("/v1/pods", json={"name": "pod-2", "zone": "zone-2"})
    await api.admin.post("/v1/clusters", json={"name": "cluster-2", "pod": "pod-2"})

    async def names(path: str) -> list[str]:
        return [item["name"] for item in (await api.viewer.get(path)).json()["items"]]

    assert await names("/v1/pods?zone=zone-2") == ["pod-2"]
    assert await names("/v1/clusters?zone=zone-1") == ["cluster-1"]
    assert await names("/v1/clusters?zone=zone-1&pod=pod-2") == []


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
        ("/v1/zones/a%20b", "name"),
        ("/v1/events?limit=0", "limit"),
        ("/v1/events?limit=x", "limit"),
        ("/v1/events?subject=%00", "subject"),
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
