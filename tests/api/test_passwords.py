"""/v1/clusters/{name}/passwords and /v1/clusters/{name}/password-rotation."""

import itertools
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from contracts.secrets import SecretState
from tests.api.conftest import Api, far_away, history, problem

pytestmark = pytest.mark.asyncio(loop_scope="package")

CANARY = "canary-password-of-hosts"
_numbers = itertools.count(1)


@pytest_asyncio.fixture(loop_scope="package")
async def cluster(api: Api) -> AsyncIterator[str]:
    """Another one for each test; no change of its passwords is left running."""
    name = f"of-passwords-{next(_numbers)}"
    await api.inventory.topology.create_cluster(name, "pod-1", actor="test")
    yield name
    if await api.run_id(f"rotation/{name}") is not None:
        running = await api.admin.post(f"/v1/clusters/{name}/password-rotation/retry")
        assert running.status_code in (204, 404)


async def staged(api: Api, cluster: str) -> str | None:
    found = await api.inventory.cluster_passwords.find(cluster, SecretState.STAGED, account="root")
    if found is None:
        return None
    return (await api.inventory.secrets.reveal(found[1])).plaintext


async def test_a_password_is_staged_and_in_no_answer(api: Api, cluster: str) -> None:
    path = f"/v1/clusters/{cluster}/passwords/staged"
    response = await api.admin.post(path, json={"password": CANARY})
    assert (response.status_code, response.json()) == (
        201,
        {"cluster": cluster, "account": "root", "version": 1},
    )
    assert await staged(api, cluster) == CANARY
    assert CANARY not in repr(api.rows())
    again = await api.admin.post(path, json={"password": CANARY + "-2"})
    assert again.json()["version"] == 2
    assert await staged(api, cluster) == CANARY + "-2"


@pytest.mark.parametrize("body", [{"password": "two\nlines"}, {"password": "x" * 129}])
@pytest.mark.parametrize("path", ["passwords/staged", "password-rotation"])
async def test_one_that_cannot_be_set_is_not_stored(
    api: Api, cluster: str, path: str, body: dict[str, str]
) -> None:
    response = await api.admin.post(f"/v1/clusters/{cluster}/{path}", json=body)
    told = problem(response, 422, "InvalidInput")
    assert [error["field"] for error in told["errors"]] == ["password"]
    assert body["password"] not in response.text
    assert await staged(api, cluster) is None
    assert await api.run_id(f"rotation/{cluster}") is None


async def test_a_change_is_started_with_a_password_that_is_stored_before(
    api: Api, cluster: str
) -> None:
    path = f"/v1/clusters/{cluster}/password-rotation"
    body = {"password": CANARY, "reason": "quarterly", "leave_out": ["kvm-9"]}
    response = await api.admin.post(path, json=body)
    assert response.status_code == 202, response.text
    assert response.headers["Location"] == f"/v1/operations/rotation/{cluster}"
    assert await staged(api, cluster) == CANARY
    assert CANARY.encode() not in await history(api.workflow(f"rotation/{cluster}"))

    twice = problem(await api.admin.post(path, json={"password": "another"}), 409, "LeaseHeld")
    assert twice["details"]["operation"] == f"/v1/operations/rotation/{cluster}"
    assert await staged(api, cluster) == CANARY, "the running change has it"

    view = (await api.viewer.get(path)).json()
    assert (view["phase"], view["workflow_id"]) == ("Question", f"rotation/{cluster}")
    refused = await api.admin.post(f"{path}/revert")
    assert "Nothing was changed yet" in problem(refused, 409, "Conflict")["detail"]
    no_reason = await api.admin.post(f"{path}/skip-host", json={"host": "kvm-2"})
    problem(no_reason, 422, "InvalidInput")
    skipped = await api.admin.post(f"{path}/skip-host", json={"host": "kvm-2", "reason": "broken"})
    assert skipped.status_code == 204
    await api.workflow(f"rotation/{cluster}").result()
    problem(await api.viewer.get(path), 404, "NotFound")
    events = await api.viewer.get("/v1/events", params={"subject": f"cluster/{cluster}"})
    kinds = [event["kind"] for event in events.json()["items"]]
    assert {"password_rotation.requested", "password_rotation.skip_host_requested"} <= set(kinds)


async def test_a_password_that_an_ended_change_has_left_is_replaced(api: Api, cluster: str) -> None:
    passwords = api.inventory.cluster_passwords
    await passwords.stage(cluster, "left", account="root", actor="test", operation="rotation/x#1")
    path = f"/v1/clusters/{cluster}/passwords/staged"
    response = await api.admin.post(path, json={"password": CANARY})
    assert response.json()["version"] == 2
    assert await staged(api, cluster) == CANARY


async def test_passwords_are_taken_from_this_machine_or_over_tls(api: Api, cluster: str) -> None:
    path = f"/v1/clusters/{cluster}/passwords/staged"
    async with far_away(api, "http") as clear:
        told = problem(await clear.post(path, json={"password": CANARY}), 403, "Refused")
        assert "TLS" in told["detail"]
        # Without one, from anywhere.
        assert (await clear.post(f"/v1/clusters/{cluster}/passwords/verification")).is_success
    assert await staged(api, cluster) is None
    async with far_away(api, "https") as tls:
        assert (await tls.post(path, json={"password": CANARY})).status_code == 201


async def test_who_may_do_what(api: Api, cluster: str) -> None:
    path = f"/v1/clusters/{cluster}"
    for part in ("passwords/staged", "password-rotation", "password-rotation/revert"):
        response = await api.operator.post(f"{path}/{part}", json={"password": CANARY})
        problem(response, 403, "Refused")
    verified = await api.operator.post(f"{path}/passwords/verification")
    assert verified.json() == {"counts": {"agrees": 3}, "hosts": [], "accounts": ["root"]}
    assert (await api.viewer.get(f"{path}/passwords")).json() == {"items": []}
    problem(await api.viewer.get("/v1/clusters/nowhere/passwords"), 404, "NotFound")


async def test_what_each_host_has(api: Api, host: str) -> None:
    await api.inventory.cluster_passwords.stage("cluster-1", CANARY, account="root", actor="test")
    (report,) = (await api.viewer.get("/v1/clusters/cluster-1/passwords")).json()["items"]
    assert (report["host"], report["state"], report["version"]) == (host, "stale", None)
    assert report["reason"] == "its own: the cluster has none yet"
