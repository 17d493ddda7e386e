"""Hosts are re-installed: what starts it, what is in its way, what answers it."""

import json
from typing import Any

import pytest

from api.requests import AnswerReinstallationRequest, HostReinstallationRequest
from contracts.base import Contract
from contracts.operations import Operation
from contracts.reinstallation import AnswerReinstallationInput, HostReinstallationInput
from tests.api.conftest import Api, history, problem
from tests.samples import FINGERPRINT

pytestmark = pytest.mark.asyncio(loop_scope="package")

CANARY = "canary-password-5d2e"


async def reinstall(api: Api, host: str, **body: Any) -> Any:
    return await api.admin.post(f"/v1/hosts/{host}/reinstallation", json=body)


async def answer(api: Api, host: str, **body: Any) -> Any:
    return await api.admin.post(f"/v1/hosts/{host}/reinstallation/answer", json=body)


@pytest.mark.parametrize(
    ("request_model", "input_model", "own"),
    [
        (HostReinstallationRequest, HostReinstallationInput, {"host", "secret"}),
        (AnswerReinstallationRequest, AnswerReinstallationInput, {"secret"}),
    ],
)
async def test_the_body_has_the_fields_of_the_workflows_input(
    request_model: type[Contract], input_model: type[Contract], own: set[str]
) -> None:
    credential = {"password", "private_key"}
    assert {*request_model.model_fields} - credential == {*input_model.model_fields} - own


async def test_post_starts_the_workflow_and_says_where_to_look(api: Api, host: str) -> None:
    response = await reinstall(
        api,
        host,
        reason="slow",
        after_maintenance=True,
        lose_vms=True,
        host_key_sha256=FINGERPRINT,
        command=["systemctl", "reboot"],
        password=CANARY,
    )
    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/operations/reinstallation/{host}"
    started = Operation.model_validate(response.json())
    assert (started.kind, started.subject, started.status) == ("reinstallation", host, "RUNNING")
    stored = await history(api.workflow(f"reinstallation/{host}"))
    assert b'"reason":"slow","after_maintenance":true' in stored
    assert b'"command":["systemctl","reboot"]' in stored
    assert CANARY.encode() not in stored
    (event,) = await api.inventory.events.list(operation=f"reinstallation/{host}")
    assert (event.kind, event.subject, event.actor) == (
        "reinstallation.requested",
        f"host/{host}",
        "token:anna",
    )
    assert event.message == "after maintenance, loses VMs: slow"
    shown = (await api.viewer.get(response.headers["location"])).json()
    assert shown["details"]["phase"] == "Reinstalling"
    before = api.rows()
    again = problem(await reinstall(api, host, password=CANARY), 409, "LeaseHeld")
    assert again["operation"] == response.headers["location"]
    assert api.rows() == before


async def test_a_dry_run_without_a_body_of_its_own(api: Api, host: str) -> None:
    await api.enter(host, reason="busy")
    response = await reinstall(api, host, dry_run=True)
    assert response.status_code == 202
    await api.workflow(f"reinstallation/{host}").result()
    shown = (await api.viewer.get(response.headers["location"])).json()
    assert (shown["status"], shown["details"]["outcome"]) == ("COMPLETED", "planned")


async def test_only_a_maintenance_that_is_ready_is_taken_over(api: Api, host: str) -> None:
    await api.enter(host, reason="busy")
    found = problem(await reinstall(api, host), 409, "Conflict")
    assert f"maintenance/{host} is not ready (Question" in found["detail"]
    assert await api.run_id(f"reinstallation/{host}") is None
    await api.operator.delete(f"/v1/hosts/{host}/maintenance")
    await api.workflow(f"maintenance/{host}").result()
    await api.enter(host, reason="ready")
    assert (await reinstall(api, host)).status_code == 202


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"on_blocker": "keep"}, "on_blocker can't be keep"),
        ({"host_is_down": True, "command": ["true"]}, "not with host_is_down"),
        ({"command": []}, "command"),
        ({"host_key_sha256": "abc"}, "host_key_sha256"),
        ({"password": "a", "private_key": "b"}, "only one of password and private_key"),
        ({"unknown": 1}, "there is no such field"),
    ],
)
async def test_a_body_that_is_not_valid(
    api: Api, host: str, body: dict[str, Any], said: str
) -> None:
    before = api.rows()
    assert said in problem(await reinstall(api, host, **body), 422, "InvalidInput")["detail"]
    assert api.rows() == before
    assert await api.run_id(f"reinstallation/{host}") is None


async def test_an_unknown_host(api: Api) -> None:
    problem(await reinstall(api, "kvm-none"), 404, "NotFound")


async def test_it_is_the_admins(api: Api, host: str) -> None:
    path = f"/v1/hosts/{host}/reinstallation"
    for caller in (api.viewer, api.operator):
        problem(await caller.post(path, json={}), 403, "Refused")
        problem(await caller.post(f"{path}/answer", json={}), 403, "Refused")
    await reinstall(api, host, reason="slow")
    operation = f"/v1/operations/reinstallation/{host}"
    problem(await api.operator.delete(operation), 403, "Refused")
    assert (await api.admin.delete(operation)).status_code == 202


async def test_what_can_not_be_taken_back_is_not_cancelled(api: Api, host: str) -> None:
    await reinstall(api, host, reason="final")
    found = problem(
        await api.admin.delete(f"/v1/operations/reinstallation/{host}"), 409, "Conflict"
    )
    assert "the old installation is trusted no more" in found["detail"]
    assert "terminate" in found["remedy"]
    await api.workflow(f"reinstallation/{host}").signal("go")
    await api.workflow(f"reinstallation/{host}").result()


async def test_answers_reach_it_without_their_credential(api: Api, host: str) -> None:
    none = await answer(api, host)
    assert "No re-installation" in problem(none, 404, "NotFound")["detail"]
    location = (await reinstall(api, host, reason="slow")).headers["location"]
    given = {"host_key_sha256": FINGERPRINT, "password": CANARY}
    assert (await answer(api, host, **given)).status_code == 204
    shown = (await api.viewer.get(location)).json()
    said = json.loads(shown["details"]["message"])
    assert said["host_key_sha256"] == FINGERPRINT
    assert (await api.inventory.secrets.reveal(said["secret"])).plaintext == CANARY
    newest = (await api.inventory.events.list(subject=f"host/{host}"))[0]
    assert (newest.kind, newest.actor) == ("reinstallation.answered", "token:anna")
    assert newest.message == f"the host key is {FINGERPRINT}, another credential"
    before = api.rows()
    problem(await answer(api, host, password=CANARY), 409, "Conflict")
    assert api.rows()["secret_version"] == before["secret_version"]
