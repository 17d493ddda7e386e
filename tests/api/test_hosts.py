"""What the inventory shows of hosts, and how one is added: its credential above all."""

import base64
import json
import secrets
from typing import Any

import httpx
import pytest

from api.requests import HostAdditionRequest
from contracts.addition import HostAdditionInput
from contracts.hosts import Host
from contracts.operations import Operation
from tests.api.conftest import Api, history, new_name, problem
from tests.api.stand_ins import SHOWN_KEY

pytestmark = pytest.mark.asyncio(loop_scope="package")


def body(name: str, **more: object) -> dict[str, Any]:
    return {"name": name, "cluster": "cluster-1", "address": "198.18.0.99", **more}


def secret_ids(api: Api) -> list[str]:
    return [row[0] for row in api.rows()["secret_version"]]


async def test_the_request_has_the_fields_of_the_workflows_input() -> None:
    asked, given = (
        model.model_json_schema()["properties"]
        for model in (HostAdditionRequest, HostAdditionInput)
    )
    assert asked.pop("password")["anyOf"][0]["writeOnly"]
    assert asked.pop("private_key")["anyOf"][0]["writeOnly"]
    del given["secret"]
    assert asked == given


async def test_hosts_are_listed_and_shown(api: Api, host: str) -> None:
    shown = Host.model_validate((await api.viewer.get(f"/v1/hosts/{host}")).json())
    assert shown == await api.inventory.hosts.get(host)
    for query, names in (
        ("", [host]),
        ("?cluster=cluster-1&zone=zone-1&pod=pod-1&resource_state=Enabled&status=Up", [host]),
        ("?cluster=cluster-9", []),
        ("?zone=zone-9", []),
        ("?pod=pod-9", []),
        ("?resource_state=Maintenance", []),
        ("?status=Down", []),
    ):
        listed = (await api.viewer.get(f"/v1/hosts{query}")).json()["items"]
        assert [item["name"] for item in listed] == names


@pytest.mark.parametrize("kind", ["password", "private_key"])
async def test_the_workflow_gets_the_id_of_the_stored_credential(api: Api, kind: str) -> None:
    canary, name = secrets.token_urlsafe(24), new_name()
    response = await api.admin.post(
        "/v1/hosts", json=body(name, ssh_port=2222, enabled=False, **{kind: canary})
    )
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/v1/operations/addition/{name}"
    started = Operation.model_validate(response.json())
    assert (started.kind, started.subject, started.status) == ("addition", name, "RUNNING")

    (secret_id,) = secret_ids(api)
    credential = await api.inventory.secrets.reveal(secret_id)
    assert (credential.kind, credential.plaintext) == (kind, canary)
    handle = api.workflow(f"addition/{name}")
    stored = await history(handle)
    assert f'"secret":"{secret_id}"'.encode() in stored
    assert b'"ssh_port":2222' in stored
    (event, *_) = await api.inventory.events.list(operation=handle.id)
    assert (event.subject, event.actor) == (f"host/{name}", "token:anna")

    answers = [
        response,
        await api.viewer.get(response.headers["location"]),
        await api.admin.post("/v1/hosts", json=body(name, **{kind: canary})),
        await api.viewer.get("/v1/operations"),
        await api.viewer.get("/v1/events"),
        await accept(api, name, SHOWN_KEY),
    ]
    assert [answer.status_code for answer in answers] == [202, 200, 409, 200, 200, 204]
    await handle.result()
    answers.append(await api.viewer.get(response.headers["location"]))
    files = [path.read_bytes() for path in api.database.parent.glob("inventory.db*")]
    for form in (canary, base64.b64encode(canary.encode()).decode(), canary.encode().hex()):
        for answer in answers:
            assert form not in answer.text
            assert form not in str(answer.headers)
        for stored in (await history(handle), *files):
            assert form.encode() not in stored


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"password": None}, "input"),
        ({"private_key": "also"}, "input"),
        ({"password": ""}, "password"),
        ({"password": 5}, "password"),
        ({"password": ["{canary}"]}, "password"),
        ({"password": "{canary}" * 1000}, "password"),
        ({"name": ""}, "name"),
        ({"cluster": ""}, "cluster"),
        ({"address": "kvm-9.example"}, "address"),
        ({"ssh_port": "22"}, "ssh_port"),
        ({"ssh_port": 70000}, "ssh_port"),
        ({"user": "-oProxyCommand=x"}, "user"),
        ({"host_key_sha256": "MD5:aa"}, "host_key_sha256"),
        ({"enabled": "yes"}, "enabled"),
        ({"capacity_memory_mib": 0}, "capacity_memory_mib"),
        ({"dry_run": 1}, "dry_run"),
        ({"returning": "yes"}, "returning"),
        ({"install_packages": "yes"}, "install_packages"),
        ({"secret": "an id"}, "secret"),
        ({"pasword": "{canary}"}, "pasword"),
    ],
)
async def test_a_wrong_request_stores_and_starts_nothing(
    api: Api, change: dict[str, Any], field: str
) -> None:
    canary, name, before = secrets.token_urlsafe(8), new_name(), api.rows()
    filled = json.loads(json.dumps(change).replace("{canary}", canary))
    response = await api.admin.post("/v1/hosts", json=body(name, password=canary) | filled)
    found = problem(response, 422, "InvalidInput")
    assert [error["field"] for error in found["errors"]] == [field]
    assert found["detail"].startswith("The input of HostAddition is not valid: ")
    assert canary not in response.text
    assert api.rows() == before
    assert await api.run_id(f"addition/{name}") is None


async def test_malformed_json_is_not_repeated(api: Api) -> None:
    before = api.rows()
    response = await api.admin.post(
        "/v1/hosts",
        content=b'{"password": "canary", ',
        headers={"Content-Type": "application/json"},
    )
    found = problem(response, 422, "InvalidInput")
    assert "invalid JSON" in found["detail"]
    assert "canary" not in response.text
    assert api.rows() == before


async def test_both_or_no_credential_is_said_in_words(api: Api) -> None:
    for credentials in ({}, {"password": "a", "private_key": "b"}):
        response = await api.admin.post("/v1/hosts", json=body(new_name(), **credentials))
        assert problem(response, 422, "InvalidInput")["errors"] == [
            {"field": "input", "message": "exactly one of password and private_key is required"}
        ]


async def test_a_known_host_an_unknown_cluster(api: Api, host: str) -> None:
    before, name = api.rows(), new_name()
    found = problem(
        await api.admin.post("/v1/hosts", json=body(host, password="pw")), 409, "AlreadyExists"
    )
    assert found["detail"].startswith(f"There is a host '{host}' already.")
    unknown = body(name, password="pw") | {"cluster": "cluster-9"}
    found = problem(await api.admin.post("/v1/hosts", json=unknown), 404, "NotFound")
    assert "'cluster-9'" in found["detail"]
    assert api.rows() == before
    assert await api.run_id(f"addition/{host}") is None
    assert await api.run_id(f"addition/{name}") is None


async def test_a_dry_run_of_a_known_name_is_for_the_workflow_to_answer(api: Api, host: str) -> None:
    """It tells all findings at once, that one among them."""
    response = await api.admin.post(
        "/v1/hosts", json=body(host, password="pw", dry_run=True, returning=True)
    )
    assert response.status_code == 202, response.text
    stored = await history(api.workflow(f"addition/{host}"))
    assert b'"dry_run":true' in stored
    assert b'"returning":true' in stored


async def test_an_addition_that_runs_already(api: Api) -> None:
    name = new_name()
    await api.admin.post("/v1/hosts", json=body(name, password="pw"))
    run, before = await api.run_id(f"addition/{name}"), api.rows()
    refused = await api.admin.post("/v1/hosts", json=body(name, password="other"))
    found = problem(refused, 409, "LeaseHeld")
    assert found["operation"] == f"/v1/operations/addition/{name}"
    assert api.rows() == before
    assert await api.run_id(f"addition/{name}") == run


async def test_the_secret_is_discarded_when_the_start_is_refused(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another request comes between the check and the start."""
    name = new_name()
    await api.admin.post("/v1/hosts", json=body(name, password="first"))
    kept = secret_ids(api)

    async def no_check(host: str) -> None:
        return None

    monkeypatch.setattr(api.app.state.operations, "require_free", no_check)
    refused = await api.admin.post("/v1/hosts", json=body(name, password="second"))
    found = problem(refused, 409, "LeaseHeld")
    assert found["operation"] == f"/v1/operations/addition/{name}"
    assert secret_ids(api) == kept


async def test_an_addition_under_another_id_holds_the_name(api: Api) -> None:
    name = new_name()
    await api.client.start_workflow(
        "HostAddition",
        HostAdditionInput.model_validate(body(name, secret="x")),
        id=f"people/{name}",
        task_queue="stand-ins",
    )
    await api.lease(name, f"people/{name}")
    refused = await api.admin.post("/v1/hosts", json=body(name, password="pw"))
    assert problem(refused, 409, "LeaseHeld")["details"]["workflow_id"] == f"people/{name}"
    accepted = await accept(api, name, SHOWN_KEY)
    assert accepted.status_code == 204
    result = await api.workflow(f"people/{name}").result()
    assert result["host_key_sha256"] == SHOWN_KEY


async def test_the_host_key_is_accepted_or_not(api: Api) -> None:
    name = new_name()
    await api.admin.post("/v1/hosts", json=body(name, password="pw"))
    before = api.rows()
    found = problem(await accept(api, name, "SHA256:" + "x" * 43), 409, "Conflict")
    assert found["detail"].startswith(f"The host shows {SHOWN_KEY}, not SHA256:x")
    found = problem(await accept(api, name, "MD5:1"), 422, "InvalidInput")
    assert found["detail"].startswith("The input of AcceptHostKey is not valid: fingerprint: ")
    assert api.rows() == before

    assert (await accept(api, name, SHOWN_KEY)).status_code == 204
    shown = await api.workflow(f"addition/{name}").result()
    assert shown["name"] == name
    newest = (await api.inventory.events.list(subject=f"host/{name}"))[0]
    assert (newest.kind, newest.actor) == ("addition.host_key_accepted", "token:anna")
    found = problem(await accept(api, name, SHOWN_KEY), 404, "NotFound")
    assert found["detail"].startswith(f"No addition of '{name}' is running.")


async def accept(api: Api, name: str, fingerprint: str) -> httpx.Response:
    return await api.admin.post(f"/v1/hosts/{name}/host-key", json={"fingerprint": fingerprint})
