"""Stored credentials: told without themselves, and shown in need."""

import logging

import pytest
from sqlmodel import col, update

from contracts.leases import LeaseRef, LeaseScope, Owner
from contracts.states import HostStatus
from inventory.models import SecretVersionRow
from tests.api.conftest import Api, far_away, problem

pytestmark = pytest.mark.asyncio(loop_scope="package")

CANARY = "canary-0d4b-'\"\\$ пароль"


async def store(api: Api) -> str:
    return await api.inventory.secrets.store("password", CANARY, actor="test")


async def test_an_admin_with_a_reason_sees_it_and_that_is_told(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = await store(api)
    path = f"/v1/secrets/{secret}/disclosure"
    shown = await api.admin.post(path, json={"reason": "  console at night "})
    assert shown.status_code == 200, shown.text
    assert shown.json() == {"id": secret, "kind": "password", "plaintext": CANARY}
    assert shown.headers["cache-control"] == "no-store"
    event = (await api.inventory.events.list(subject=f"secret/{secret}"))[0]
    assert (event.kind, event.actor) == ("secret.disclosed", "token:anna")
    assert event.message == f"password {secret} was shown: console at night"
    assert CANARY not in caplog.text
    assert CANARY not in str(api.rows())


async def test_nobody_else_sees_it(api: Api) -> None:
    secret = await store(api)
    before = api.rows()
    path = f"/v1/secrets/{secret}/disclosure"
    for client in (api.viewer, api.operator):
        found = problem(await client.post(path, json={"reason": "curious"}), 403, "Refused")
        assert "needs the role admin" in found["detail"]
        for listed in ("/v1/hosts/kvm-1/secrets", "/v1/clusters/cluster-1/secrets"):
            problem(await client.get(listed), 403, "Refused")
    problem(await api.nobody.post(path, json={"reason": "curious"}), 401, "Unauthenticated")
    assert (await api.admin.get(path)).status_code == 405
    assert api.rows() == before


async def test_it_is_shown_on_this_machine_or_over_tls(api: Api) -> None:
    path, body = f"/v1/secrets/{await store(api)}/disclosure", {"reason": "console at night"}
    before = api.rows()
    async with far_away(api, "http") as clear:
        found = problem(await clear.post(path, json=body), 403, "Refused")
        assert "over TLS" in found["detail"]
    assert api.rows() == before
    async with far_away(api, "https") as tls:
        assert (await tls.post(path, json=body)).json()["plaintext"] == CANARY


@pytest.mark.parametrize("body", [{}, {"reason": ""}, {"reason": "  "}, {"reason": "x" * 1001}])
async def test_without_a_reason_nothing_is_shown(api: Api, body: dict[str, str]) -> None:
    secret = await store(api)
    before = api.rows()
    refused = await api.admin.post(f"/v1/secrets/{secret}/disclosure", json=body)
    found = problem(refused, 422, "InvalidInput")
    assert [error["field"] for error in found["errors"]] == ["reason"]
    assert api.rows() == before


async def test_what_is_not_there_or_damaged_is_told_by_name(api: Api) -> None:
    secret = await store(api)
    body = {"reason": "test"}
    missing = await api.admin.post("/v1/secrets/none/disclosure", json=body)
    assert "'none'" in problem(missing, 404, "NotFound")["detail"]
    async with api.inventory.database.writing() as session:
        await session.exec(
            update(SecretVersionRow)
            .where(col(SecretVersionRow.id) == secret)
            .values(ciphertext=b"\x01damaged")
        )
    before = api.rows()
    damaged = await api.admin.post(f"/v1/secrets/{secret}/disclosure", json=body)
    assert secret in problem(damaged, 502, "SecretDamaged")["detail"]
    assert api.rows() == before, "an event would say that it was shown"


async def test_lists_tell_all_but_the_credentials(api: Api, host: str) -> None:
    listed = await api.admin.get(f"/v1/hosts/{host}/secrets")
    (stored,) = listed.json()["items"]
    assert (stored["kind"], stored["state"]) == ("password", "current")
    assert stored["id"] == (await api.inventory.hosts.login(host)).secret_id
    await api.inventory.cluster_passwords.stage("cluster-1", CANARY, account="root", actor="test")
    listed = await api.admin.get("/v1/clusters/cluster-1/secrets")
    (stored,) = listed.json()["items"]
    assert (stored["state"], stored["account"], stored["version"]) == ("staged", "root", 1)
    assert CANARY not in listed.text
    for path in ("hosts/kvm-none", "clusters/none"):
        problem(await api.admin.get(f"/v1/{path}/secrets"), 404, "NotFound")


async def test_no_workflow_has_to_do_with_it(api: Api, host: str) -> None:
    """The one that is open on the host is not told either."""
    await api.enter(host)
    secret = (await api.inventory.hosts.login(host)).secret_id
    handle = api.workflow(f"maintenance/{host}")
    await handle.query("status")  # answered when it has begun, and only waits
    before = [event.event_id async for event in handle.fetch_history_events()]
    count = (await api.client.count_workflows()).count
    shown = await api.admin.post(f"/v1/secrets/{secret}/disclosure", json={"reason": "test"})
    assert shown.status_code == 200
    assert [event.event_id async for event in handle.fetch_history_events()] == before
    assert (await api.client.count_workflows()).count == count


async def test_a_clusters_password_that_was_shown_is_told_of_each_host_that_has_it(
    api: Api, host: str
) -> None:
    passwords = api.inventory.cluster_passwords
    await passwords.stage("cluster-1", CANARY, account="root", actor="test")
    (version,) = await passwords.versions("cluster-1")
    assert version.id is not None
    owner = Owner(workflow_id="rotation/cluster-1", first_run_id="run-1")
    lease = await api.inventory.leases.acquire(host, LeaseScope.PLACEMENT, owner, "rotation")
    held = LeaseRef(host=host, scope=lease.scope, owner=owner, epoch=lease.epoch)
    await passwords.attempt(version.id, account="root", lease=held)
    listed = (await api.admin.get(f"/v1/hosts/{host}/secrets")).json()["items"]
    assert [(one["version"], one["attempted_on"]) for one in listed] == [(None, []), (1, [host])]
    await passwords.record(version.id, account="root", lease=held)
    listed = (await api.admin.get(f"/v1/hosts/{host}/secrets")).json()["items"]
    assert [(one["version"], one["account"], one["state"]) for one in listed] == [
        (1, "root", "current"),
        (None, "root", "previous"),
    ]
    shown = await api.admin.post(f"/v1/secrets/{version.id}/disclosure", json={"reason": "console"})
    assert shown.json()["plaintext"] == CANARY
    for subject in (f"host/{host}", "cluster/cluster-1"):
        told = (await api.viewer.get(f"/v1/events?subject={subject}")).json()["items"][0]
        assert (told["kind"], told["actor"]) == ("secret.disclosed", "token:anna")


async def test_what_is_kept_of_a_removed_host_is_listed_and_shown(api: Api, host: str) -> None:
    owner = Owner(workflow_id=f"removal/{host}", first_run_id="run-1")
    lease = await api.inventory.leases.acquire(host, LeaseScope.PLACEMENT, owner, "removal")
    await api.inventory.hosts.set_status(
        host, HostStatus.DISCONNECTED, actor="test", reason="burnt down"
    )
    removed = await api.inventory.removed_hosts.remove(
        LeaseRef(host=host, scope=lease.scope, owner=owner, epoch=lease.epoch),
        reason="burnt",
        forced=True,
        vms=(),
        cleaned=False,
        problem="no answer",
    )
    path = f"/v1/removed-hosts/{removed.tombstone}/secrets"
    problem(await api.operator.get(path), 403, "Refused")
    (kept,) = (await api.admin.get(path)).json()["items"]
    assert (kept["kind"], kept["account"]) == ("password", "root")
    shown = await api.admin.post(
        f"/v1/secrets/{kept['id']}/disclosure", json={"reason": "clean it by hand"}
    )
    assert shown.json()["plaintext"] == "pw"
    assert (await api.inventory.events.list(subject=f"host/{host}"))[0].kind == "secret.disclosed"
    problem(await api.admin.get("/v1/removed-hosts/999999/secrets"), 404, "NotFound")
