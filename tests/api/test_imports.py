"""How an import of many hosts is started, checked, and looked at: credentials above all."""

import base64
import json
import secrets
from typing import Any

import pytest

from contracts.host_import import HostImportInput, HostImportView, ImportState
from contracts.operations import Operation
from contracts.states import Phase
from tests.api.conftest import Api, history, new_name, problem
from tests.api.stand_ins import SHOWN_KEY
from tests.samples import FINGERPRINT

pytestmark = pytest.mark.asyncio(loop_scope="package")

DEFAULTS = {"cluster": "cluster-1", "password": "pw"}


def host(number: int, **more: object) -> dict[str, Any]:
    return {"name": f"rack-{number}", "address": f"198.18.3.{number}", **more}


def body(name: str, *hosts: dict[str, Any], **more: object) -> dict[str, Any]:
    return {"name": name, "defaults": DEFAULTS, "hosts": list(hosts), **more}


def secret_ids(api: Api) -> set[str]:
    return {row[0] for row in api.rows()["secret_version"]}


async def asked(api: Api, name: str) -> HostImportInput:
    """What the workflow was given."""
    first = await anext(aiter(api.workflow(f"import/{name}").fetch_history_events()))
    given = first.workflow_execution_started_event_attributes.input.payloads
    (found,) = api.client.data_converter.payload_converter.from_payloads(given, [HostImportInput])
    assert isinstance(found, HostImportInput)
    return found


async def test_each_host_gets_a_credential_of_its_own(api: Api) -> None:
    name, canary = f"import-{new_name()}", secrets.token_urlsafe(16)
    hosts = [host(1, enabled=False), host(2, private_key=canary), host(3, password=canary)]
    response = await api.admin.post("/v1/imports", json=body(name, *hosts, parallel=7))
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/v1/operations/import/{name}"
    assert Operation.model_validate(response.json()).workflow_id == f"import/{name}"

    found = await asked(api, name)
    assert found.parallel == 7
    assert [one.name for one in found.hosts] == ["rack-1", "rack-2", "rack-3"]
    assert [one.enabled for one in found.hosts] == [False, True, True]
    assert {one.cluster for one in found.hosts} == {"cluster-1"}
    stored = [await api.inventory.secrets.reveal(one.secret) for one in found.hosts]
    assert len({one.secret for one in found.hosts}) == 3
    assert [one.kind for one in stored] == ["password", "private_key", "password"]
    assert [one.plaintext for one in stored] == ["pw", canary, canary]
    (event,) = await api.inventory.events.list(subject=f"import/{name}")
    assert (event.kind, event.actor) == ("import.requested", "token:anna")

    files = [path.read_bytes() for path in api.database.parent.glob("inventory.db*")]
    shown = await api.viewer.get(response.headers["location"])
    kept = await history(api.workflow(f"import/{name}"))
    for form in (canary, base64.b64encode(canary.encode()).decode(), canary.encode().hex()):
        assert form not in response.text + shown.text
        for text in (kept, *files):
            assert form.encode() not in text


async def test_a_name_is_made_up(api: Api) -> None:
    response = await api.admin.post("/v1/imports", json={"defaults": DEFAULTS, "hosts": [host(1)]})
    assert response.status_code == 202, response.text
    subject = response.json()["subject"]
    assert (await api.viewer.get(f"/v1/operations/import/{subject}")).status_code == 200


async def test_every_problem_of_every_host_is_named_and_nothing_stored(api: Api) -> None:
    name, canary, before = f"import-{new_name()}", secrets.token_urlsafe(16), api.rows()
    response = await api.admin.post(
        "/v1/imports",
        json=body(
            name,
            host(1),
            host(2, address="kvm-2.example", ssh_port=0),
            host(3, cluster="cluster-9"),
            host(1, address="198.18.3.4"),
            host(5, address="198.18.3.1"),
            host(6, password=canary, private_key=canary),
            host(7, pasword=canary),
            canary,  # type: ignore[arg-type] # no host at all
        ),
    )
    found = problem(response, 422, "InvalidInput")
    assert {error["field"]: error["message"] for error in found["errors"]} == {
        "hosts[1].address": "value is not a valid IPv4 or IPv6 address",
        "hosts[1].ssh_port": "input should be greater than or equal to 1",
        "hosts[2].cluster": "there is no cluster 'cluster-9'",
        "hosts[3].name": "the same as that of hosts[0]: rack-1",
        "hosts[4].address": "the same as that of hosts[0]: 198.18.3.1 port 22",
        "hosts[5]": "exactly one of password and private_key is required",
        "hosts[6].pasword": "there is no such field",
        "hosts[7]": "input should be a valid dictionary or instance of HostAdditionRequest",
    }
    assert found["detail"].startswith("The input of HostImport is not valid: hosts[1].address: ")
    assert canary not in response.text
    assert api.rows() == before
    assert await api.run_id(f"import/{name}") is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"hosts": []}, "hosts"),
        ({"hosts": None}, "hosts"),
        ({"parallel": 0}, "parallel"),
        ({"parallel": 101}, "parallel"),
        ({"name": "a/b"}, "name"),
        ({"defaults": ["x"]}, "defaults"),
        ({"host": []}, "host"),
    ],
)
async def test_a_wrong_request_is_refused_by_field(
    api: Api, change: dict[str, Any], field: str
) -> None:
    before = api.rows()
    given = body(f"import-{new_name()}", host(1)) | change
    found = problem(await api.admin.post("/v1/imports", json=given), 422, "InvalidInput")
    assert [error["field"] for error in found["errors"]] == [field]
    assert api.rows() == before


async def test_many_problems_are_counted(api: Api) -> None:
    hosts = [host(1, name=f"n-{number}", address="x") for number in range(203)]
    found = problem(
        await api.admin.post("/v1/imports", json=body("big", *hosts)), 422, "InvalidInput"
    )
    assert len(found["errors"]) == 201
    assert found["errors"][-1] == {"field": "hosts", "message": "and 3 more problems"}


async def test_a_list_that_no_input_holds_is_refused_before_anything_is_stored(api: Api) -> None:
    before = api.rows()
    hosts = [
        host(1, name=f"{'n' * 58}{number}", address=f"198.18.{number // 250}.{number % 250}")
        | {"cluster": "cluster-1", "host_key_sha256": f"SHA256:{number:043}"}
        for number in range(9000)
    ]
    found = problem(
        await api.admin.post("/v1/imports", json=body("big", *hosts)), 422, "InvalidInput"
    )
    assert "make several imports" in found["detail"]
    assert api.rows() == before


async def test_one_that_runs_already_keeps_its_list(api: Api) -> None:
    name = f"import-{new_name()}"
    assert (await api.admin.post("/v1/imports", json=body(name, host(1)))).status_code == 202
    before, run = api.rows(), await api.run_id(f"import/{name}")
    refused = await api.admin.post("/v1/imports", json=body(name, host(2)))
    assert problem(refused, 409, "LeaseHeld")["operation"] == f"/v1/operations/import/{name}"
    assert api.rows() == before
    assert await api.run_id(f"import/{name}") == run


async def test_the_secrets_are_discarded_when_the_start_is_refused(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another request comes between the check and the start."""
    name = f"import-{new_name()}"
    await api.admin.post("/v1/imports", json=body(name, host(1)))
    kept = secret_ids(api)

    async def no_check(name: str) -> None:
        return None

    monkeypatch.setattr(api.app.state.operations, "require_no_import", no_check)
    refused = await api.admin.post("/v1/imports", json=body(name, host(1), host(2)))
    problem(refused, 409, "LeaseHeld")
    assert secret_ids(api) == kept


async def test_it_is_shown_with_the_phases_of_its_additions(api: Api) -> None:
    """The stand-in of an import says that its first two hosts are being added."""
    name, asking, silent = f"import-{new_name()}", new_name(), new_name()
    for one in (asking, silent):
        addition = {"name": one, "cluster": "cluster-1", "address": "198.18.0.98"}
        added = await api.admin.post("/v1/hosts", json={**addition, "password": "pw"})
        assert added.status_code == 202, added.text
    await api.workflow(f"addition/{asking}").signal("ask")
    hosts = [host(1, name=asking), host(2, name=silent, host_key_sha256=FINGERPRINT)]
    await api.admin.post("/v1/imports", json=body(name, *hosts, host(3)))
    while (
        shown := HostImportView.model_validate_json(
            (await api.viewer.get(f"/v1/imports/{name}")).content
        )
    ).additions[0].phase is None:
        pass  # Temporal's index comes a moment after the fact
    assert (shown.name, shown.workflow_id) == (name, f"import/{name}")
    assert shown.counts[ImportState.ADDING] == 2
    first, second = shown.additions
    assert (first.host, first.phase, first.host_key_sha256) == (asking, Phase.QUESTION, SHOWN_KEY)
    assert first.command == f"hostler host accept-key {asking} {SHOWN_KEY}"
    assert (second.host, second.phase, second.command) == (silent, None, None)


async def test_one_that_has_ended_is_no_running_import(api: Api) -> None:
    name = f"import-{new_name()}"
    await api.admin.post("/v1/imports", json=body(name, host(1)))
    await api.workflow(f"import/{name}").signal("go")
    await api.workflow(f"import/{name}").result()
    found = problem(await api.viewer.get(f"/v1/imports/{name}"), 404, "NotFound")
    assert f"hostler operation show import {name}" in found["detail"]
    ended = (await api.viewer.get(f"/v1/operations/import/{name}")).json()
    assert ended["details"]["hosts"][0]["state"] == "added"
    assert json.loads((await api.viewer.get("/v1/imports/no-such")).content)["status"] == 404


async def test_only_an_admin_imports_and_cancels(api: Api) -> None:
    name = f"import-{new_name()}"
    for caller in (api.viewer, api.operator):
        problem(await caller.post("/v1/imports", json=body(name, host(1))), 403, "Refused")
    await api.admin.post("/v1/imports", json=body(name, host(1)))
    path = f"/v1/operations/import/{name}"
    problem(await api.operator.delete(path), 403, "Refused")
    assert (await api.admin.delete(path)).status_code == 202
    newest = (await api.inventory.events.list(subject=f"import/{name}"))[0]
    assert newest.kind == "import.cancel_requested"


async def test_an_import_holds_no_host_of_its_name(api: Api) -> None:
    name = new_name()
    await api.admin.post("/v1/imports", json=body(name, host(1)))
    added = {"name": name, "cluster": "cluster-1", "address": "198.18.0.97", "password": "pw"}
    assert (await api.admin.post("/v1/hosts", json=added)).status_code == 202
