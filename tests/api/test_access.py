"""Tokens and roles."""

import pytest

from tests.api.conftest import Api, new_name, problem

pytestmark = pytest.mark.asyncio(loop_scope="package")

VIEWS = ("zones", "pods", "clusters", "hosts", "settings", "operations", "events")


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (None, "has no token"),
        ("", "has no token"),
        ("Bearer", "has no token"),
        ("Bearer  ", "has no token"),
        ("Basic YWRtaW46eA==", "has no token"),
        ("Bearer hostler_wrong", "is not valid"),
        ("Bearer \xe4", "is not valid"),
    ],
)
async def test_without_a_valid_token_nothing_is_told_or_done(
    api: Api, host: str, header: str | None, says: str
) -> None:
    before = api.rows()
    headers = {} if header is None else {b"Authorization": header.encode("latin-1")}
    for response in (
        await api.nobody.get("/v1/hosts", headers=headers),
        await api.nobody.get("/v1/hosts/kvm-none", headers=headers),
        await api.nobody.get("/v1/nothing", headers=headers),
        await api.nobody.post(f"/v1/hosts/{host}/maintenance", headers=headers),
        await api.nobody.post("/v1/zones", headers=headers, json={"name": "zone-2"}),
        # Not even whether the body can be read.
        await api.nobody.post("/v1/hosts", headers=headers, content=b"{"),
    ):
        assert says in problem(response, 401, "Unauthenticated")["detail"]
        assert response.headers["www-authenticate"] == "Bearer"
    assert api.rows() == before
    assert await api.run_id(f"maintenance/{host}") is None


async def test_the_scheme_is_case_insensitive(api: Api) -> None:
    token = api.viewer.headers["Authorization"].removeprefix("Bearer ")
    response = await api.nobody.get("/v1/zones", headers={"Authorization": f"bearer {token}"})
    assert response.status_code == 200


async def test_every_role_may_look(api: Api) -> None:
    for client in (api.viewer, api.operator, api.admin):
        for path in VIEWS:
            assert (await client.get(f"/v1/{path}")).status_code == 200


async def test_a_viewer_changes_nothing(api: Api, host: str) -> None:
    before = api.rows()
    for method, path, body in (
        ("POST", f"/v1/hosts/{host}/maintenance", {}),
        ("DELETE", f"/v1/hosts/{host}/maintenance", None),
        ("POST", f"/v1/hosts/{host}/maintenance/return", {}),
        ("PATCH", f"/v1/hosts/{host}", {"resource_state": "Disabled"}),
        ("POST", f"/v1/hosts/{host}/maintenance/vms/vm-1", {"action": "retry"}),
        ("DELETE", f"/v1/operations/maintenance/{host}", None),
    ):
        found = problem(await api.viewer.request(method, path, json=body), 403, "Refused")
        assert "'vera' has the role viewer; this needs the role operator." in found["detail"]
        assert found["remedy"]
    assert api.rows() == before
    assert await api.run_id(f"maintenance/{host}") is None


async def test_an_operator_neither_builds_nor_adds(api: Api) -> None:
    before = api.rows()
    name = new_name()
    addition = {"name": name, "cluster": "cluster-1", "address": "198.18.0.9", "password": "pw"}
    for method, path, body in (
        ("POST", "/v1/zones", {"name": "zone-2"}),
        ("POST", "/v1/pods", {"name": "pod-2", "zone": "zone-1"}),
        ("POST", "/v1/clusters", {"name": "cluster-2", "pod": "pod-1"}),
        ("PATCH", "/v1/zones/zone-1", {"allocation_state": "Enabled"}),
        ("PATCH", "/v1/pods/pod-1", {"allocation_state": "Enabled"}),
        ("PATCH", "/v1/clusters/cluster-1", {"allocation_state": "Enabled"}),
        ("POST", "/v1/hosts", addition),
        ("POST", f"/v1/hosts/{name}/host-key", {"fingerprint": "SHA256:" + "a" * 43}),
        ("DELETE", f"/v1/operations/addition/{name}", None),
        ("DELETE", "/v1/operations/zone-allocation/zone-1", None),
        ("PUT", "/v1/settings/migration.bandwidth", {"value": 3}),
        ("DELETE", "/v1/settings/migration.bandwidth", None),
    ):
        found = problem(await api.operator.request(method, path, json=body), 403, "Refused")
        assert "needs the role admin" in found["detail"]
    assert api.rows() == before
    assert await api.run_id(f"addition/{name}") is None


async def test_a_role_that_does_not_suffice_comes_before_a_body_that_is_not_valid(api: Api) -> None:
    problem(await api.viewer.post("/v1/zones", json={"name": ""}), 403, "Refused")
