"""Host tags, VM policies, affinity groups."""

from typing import Any

import pytest

from contracts.evacuation import AffinityGroup, VmPolicy
from contracts.hosts import Host
from tests.api.conftest import Api, problem

pytestmark = pytest.mark.asyncio(loop_scope="package")

CLUSTER = "/v1/clusters/cluster-1"
GROUPS = f"{CLUSTER}/affinity-groups"
POLICY = f"{CLUSTER}/vms/vm-1/policy"
PAIR = {"kind": "anti-affinity", "members": ["db-1", "db-2"]}


async def test_the_tags_of_a_host(api: Api, host: str) -> None:
    shown = (await api.viewer.get(f"/v1/hosts/{host}")).json()
    assert (shown["tags"], shown["secured"]) == ([], False)
    for _ in range(2):
        changed = await api.operator.put(
            f"/v1/hosts/{host}/tags", json={"tags": ["ssd", "gpu", "rack-1", "ssd"]}
        )
        assert changed.status_code == 200
        assert Host.model_validate(changed.json()).name == host
        assert changed.json()["tags"] == ["gpu", "rack-1", "ssd"]
    assert (await api.viewer.get(f"/v1/hosts/{host}")).json() == changed.json()
    assert changed.json() in (await api.viewer.get("/v1/hosts")).json()["items"]
    cleared = await api.operator.put(f"/v1/hosts/{host}/tags", json={"tags": []})
    assert cleared.json()["tags"] == []
    events = await api.inventory.events.list(subject=f"host/{host}", limit=2)
    assert [(event.kind, event.actor) for event in events] == [("host.tags", "token:olga")] * 2


async def test_the_policy_of_a_vm(api: Api) -> None:
    policy = {"pinned": True, "reason": "license", "tags": ["ssd", "gpu"]}
    stored = await api.operator.put(POLICY, json=policy)
    assert stored.status_code == 200
    assert stored.json() == {**policy, "vm": "vm-1", "tags": ["gpu", "ssd"]}
    assert VmPolicy.model_validate(stored.json()).pinned
    assert (await api.viewer.get(POLICY)).json() == stored.json()
    assert (await api.viewer.get(f"{CLUSTER}/vms")).json() == {"items": [stored.json()]}
    # What a body leaves out is not kept.
    bare = {"vm": "vm-1", "pinned": False, "reason": "", "tags": []}
    assert (await api.operator.put(POLICY, json={})).json() == bare
    assert (await api.viewer.get(POLICY)).json() == bare
    assert (await api.operator.delete(POLICY)).status_code == 204
    problem(await api.viewer.get(POLICY), 404, "NotFound")
    assert (await api.viewer.get(f"{CLUSTER}/vms")).json() == {"items": []}


async def test_any_name_that_libvirt_allows(api: Api) -> None:
    for name, quoted in (("Größe 50%?", "Gr%C3%B6%C3%9Fe%2050%25%3F"), ("a#b", "a%23b")):
        path = f"{CLUSTER}/vms/{quoted}/policy"
        assert (await api.operator.put(path, json={"pinned": True})).json()["vm"] == name
        assert (await api.viewer.get(path)).json()["vm"] == name


async def test_affinity_groups(api: Api) -> None:
    for body in (PAIR, {"kind": "affinity", "members": ["web-2", "web-1", "web-2"]}):
        stored = await api.operator.put(f"{GROUPS}/g-1", json=body)
        assert stored.status_code == 200
        members = sorted({*body["members"]})
        assert stored.json() == {"name": "g-1", "kind": body["kind"], "members": members}
        assert AffinityGroup.model_validate(stored.json()).kind == body["kind"]
        assert (await api.viewer.get(f"{GROUPS}/g-1")).json() == stored.json()
        assert (await api.viewer.get(GROUPS)).json() == {"items": [stored.json()]}
    assert (await api.operator.delete(f"{GROUPS}/g-1")).status_code == 204
    problem(await api.operator.delete(f"{GROUPS}/g-1"), 404, "NotFound")
    assert (await api.viewer.get(GROUPS)).json() == {"items": []}


async def test_groups_that_contradict_each_other(api: Api) -> None:
    await api.operator.put(f"{GROUPS}/spread", json=PAIR)
    refused = await api.operator.put(f"{GROUPS}/pair", json={**PAIR, "kind": "affinity"})
    found = problem(refused, 409, "Conflict")
    assert found["details"] == {"groups": ["pair", "spread"], "vms": ["db-1", "db-2"]}
    assert found["remedy"]


@pytest.mark.parametrize(
    ("path", "body", "field", "message"),
    [
        ("/v1/hosts/kvm-0/tags", {}, "tags", "this field is required"),
        ("/v1/hosts/kvm-0/tags", {"tags": "ssd"}, "tags", "input should be a valid frozenset"),
        ("/v1/hosts/kvm-0/tags", {"tags": [""]}, "tags.0", "must not be empty"),
        ("/v1/hosts/kvm-0/tags", {"tags": ["a b"]}, "tags.0", "must match"),
        (POLICY, {"pinned": "yes"}, "pinned", "input should be a valid boolean"),
        (POLICY, {"reason": "\0"}, "reason", "must match"),
        (POLICY, {"tags": ["a/b"]}, "tags.0", "must match"),
        (POLICY, {"pined": True}, "pined", "there is no such field"),
        (f"{CLUSTER}/vms/%00/policy", {}, "vm", "must match"),
        (f"{GROUPS}/a%20b", PAIR, "group", "must match"),
        (f"{GROUPS}/g-1", {**PAIR, "kind": "near"}, "kind", "input should be 'affinity' or"),
        (f"{GROUPS}/g-1", {"kind": "affinity"}, "members", "this field is required"),
        (f"{GROUPS}/g-1", {**PAIR, "members": ["a", "\0"]}, "members.1", "must match"),
        (f"{GROUPS}/g-1", {**PAIR, "members": ["a", "a"]}, "members", "must name at least 2 VMs"),
    ],
)
async def test_a_wrong_body_or_path_is_refused_by_field(
    api: Api, path: str, body: Any, field: str, message: str
) -> None:
    before = api.rows()
    (error,) = problem(await api.operator.put(path, json=body), 422, "InvalidInput")["errors"]
    assert error["field"] == field
    assert error["message"].startswith(message)
    assert api.rows() == before


async def test_an_unknown_host_or_cluster(api: Api) -> None:
    before = api.rows()
    for method, path, body in (
        ("PUT", "/v1/hosts/kvm-none/tags", {"tags": ["ssd"]}),
        ("GET", "/v1/clusters/none/vms", None),
        ("GET", "/v1/clusters/none/vms/vm-1/policy", None),
        ("PUT", "/v1/clusters/none/vms/vm-1/policy", {}),
        ("DELETE", "/v1/clusters/none/vms/vm-1/policy", None),
        ("GET", "/v1/clusters/none/affinity-groups", None),
        ("GET", "/v1/clusters/none/affinity-groups/g-1", None),
        ("PUT", "/v1/clusters/none/affinity-groups/g-1", PAIR),
        ("DELETE", "/v1/clusters/none/affinity-groups/g-1", None),
        ("DELETE", POLICY, None),
    ):
        found = problem(await api.operator.request(method, path, json=body), 404, "NotFound")
        assert found["remedy"]
    assert api.rows() == before


async def test_a_viewer_changes_nothing(api: Api, host: str) -> None:
    await api.operator.put(POLICY, json={"pinned": True})
    await api.operator.put(f"{GROUPS}/g-1", json=PAIR)
    before = api.rows()
    for method, path, body in (
        ("PUT", f"/v1/hosts/{host}/tags", {"tags": ["ssd"]}),
        ("PUT", POLICY, {}),
        ("DELETE", POLICY, None),
        ("PUT", f"{GROUPS}/g-1", {**PAIR, "kind": "affinity"}),
        ("DELETE", f"{GROUPS}/g-1", None),
    ):
        found = problem(await api.viewer.request(method, path, json=body), 403, "Refused")
        assert "this needs the role operator" in found["detail"]
    assert api.rows() == before
