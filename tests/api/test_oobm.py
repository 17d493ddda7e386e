"""/v1/hosts/{name}/oobm, the switches of clusters and zones, and /v1/hosts/{name}/power."""

import json
from typing import Any

import pytest

from contracts.states import ResourceState
from tests.api.conftest import Api, change_state, history, problem

pytestmark = pytest.mark.asyncio(loop_scope="package")

CANARY = "canary-bmc-71"
BMC = {"address": "198.18.1.11", "user": "admin", "password": CANARY}


async def configure(api: Api, host: str, **more: object) -> dict[str, Any]:
    """An answer that has to be a success."""
    response = await api.admin.put(f"/v1/hosts/{host}/oobm", json={**BMC, "enabled": True, **more})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def test_it_is_configured_and_the_password_is_not_shown(api: Api, host: str) -> None:
    made = await configure(api, host, port=1623)
    assert (made["driver"], made["port"], made["cipher_suite"]) == ("ipmi", 1623, 3)
    assert made["power"]["state"] == "Unknown"
    for path in ("", "/oobm", "/power"):
        response = await api.viewer.get(f"/v1/hosts/{host}{path}")
        assert response.status_code == 200
        assert CANARY not in response.text
    assert (await api.viewer.get(f"/v1/hosts/{host}")).json()["power"] == made["power"]
    assert CANARY not in repr(api.rows())
    events = (await api.viewer.get("/v1/events", params={"subject": f"host/{host}"})).json()
    assert events["items"][0]["kind"] == "oobm.configured"
    assert events["items"][0]["actor"] == "token:anna"


async def test_put_replaces_and_patch_changes_what_is_given(api: Api, host: str) -> None:
    await configure(api, host, port=1623, privilege="operator")
    path = f"/v1/hosts/{host}/oobm"
    changed = (await api.admin.patch(path, json={"user": "root"})).json()
    assert (changed["user"], changed["port"], changed["privilege"]) == ("root", 1623, "operator")
    changed = (await api.admin.patch(path, json={"port": None, "enabled": False})).json()
    assert (changed["port"], changed["enabled"]) == (None, False)
    assert changed["power"] == {
        **changed["power"],
        "state": "Disabled",
        "disabled_by": ["host"],
    }
    put = await configure(api, host)
    assert (put["user"], put["privilege"]) == ("admin", "administrator")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"address": "198.18.1.11", "user": "admin"}, "password"),
        ({**BMC, "address": ""}, "address"),
        ({**BMC, "driver": "carrier-pigeon"}, "driver"),
        ({**BMC, "privilege": "king"}, "privilege"),
        ({**BMC, "passwort": "x"}, "passwort"),
        ({**BMC, "port": 0}, "port"),
        ({**BMC, "address": "127.1"}, "address"),
        ({**BMC, "cipher_suite": 0}, "cipher_suite"),
        ({**BMC, "password": "x" * 21}, "password"),
        ({**BMC, "user": "x" * 17}, "user"),
        ({**BMC, "driver": "redfish", "user": "a:b"}, "user"),
        ({**BMC, "driver": "redfish", "certificate": "-----BEGIN CERTIFICATE-----"}, "certificate"),
    ],
)
async def test_what_is_not_valid_is_named(
    api: Api, host: str, body: dict[str, object], field: str
) -> None:
    response = await api.admin.put(f"/v1/hosts/{host}/oobm", json=body)
    told = problem(response, 422, "InvalidInput")
    assert [error["field"] for error in told["errors"]] == [field]
    assert CANARY not in response.text


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"driver": "ipmitool"}, "password"),
        ({"user": "x" * 17, "driver": "ipmi", "password": "short"}, "user"),
    ],
)
async def test_a_change_fits_what_it_leaves_as_it_is(
    api: Api, host: str, body: dict[str, object], field: str
) -> None:
    await configure(api, host, driver="redfish", password=f"{CANARY}-and-longer-than-ipmi")
    path = f"/v1/hosts/{host}/oobm"
    told = problem(await api.admin.patch(path, json=body), 422, "InvalidInput")
    assert [error["field"] for error in told["errors"]] == [field]
    assert (await api.viewer.get(path)).json()["driver"] == "redfish"
    assert (await api.admin.patch(path, json={"enabled": False})).status_code == 200


@pytest.mark.parametrize("body", [{}, {"user": None}])
async def test_a_change_needs_something_to_change(
    api: Api, host: str, body: dict[str, object]
) -> None:
    await configure(api, host)
    problem(await api.admin.patch(f"/v1/hosts/{host}/oobm", json=body), 422, "InvalidInput")


async def test_what_is_not_configured_is_not_found(api: Api, host: str) -> None:
    path = f"/v1/hosts/{host}"
    for response in (
        await api.viewer.get(f"{path}/oobm"),
        await api.viewer.get(f"{path}/power"),
        await api.admin.patch(f"{path}/oobm", json={"password": CANARY}),
        await api.operator.post(f"{path}/power", json={"action": "on"}),
        await api.admin.post(f"{path}/oobm/password"),
    ):
        assert "no out-of-band management" in problem(response, 404, "NotFound")["detail"]
    # The password that was sent with the change is not kept either.
    assert not [row for row in api.rows()["secret_version"] if "bmc_password" in row]
    problem(await api.admin.put("/v1/hosts/nobody/oobm", json=BMC), 404, "NotFound")


async def test_roles(api: Api, host: str) -> None:
    await configure(api, host)
    path = f"/v1/hosts/{host}"
    problem(await api.operator.put(f"{path}/oobm", json=BMC), 403, "Refused")
    problem(await api.operator.patch(f"{path}/oobm", json={"enabled": False}), 403, "Refused")
    problem(await api.operator.delete(f"{path}/oobm"), 403, "Refused")
    problem(await api.operator.post(f"{path}/oobm/password"), 403, "Refused")
    problem(await api.viewer.post(f"{path}/power", json={"action": "off"}), 403, "Refused")
    problem(await api.viewer.post(f"{path}/oobm/test"), 403, "Refused")
    switch = {"enabled": False}
    problem(await api.operator.patch("/v1/zones/zone-1/oobm", json=switch), 403, "Refused")


async def test_clusters_and_zones_have_switches(api: Api, host: str) -> None:
    await configure(api, host)
    for path, by in (("clusters/cluster-1", "cluster cluster-1"), ("zones/zone-1", "zone zone-1")):
        answer = await api.admin.patch(f"/v1/{path}/oobm", json={"enabled": False})
        assert answer.json()["enabled"] is False
        assert (await api.viewer.get(f"/v1/{path}")).json()["oobm_enabled"] is False
        power = (await api.viewer.get(f"/v1/hosts/{host}/power")).json()
        assert (power["state"], power["disabled_by"]) == ("Disabled", [by])
        refused = await api.operator.post(f"/v1/hosts/{host}/power", json={"action": "on"})
        assert by in problem(refused, 409, "Conflict")["detail"]
        answer = await api.admin.patch(f"/v1/{path}/oobm", json={"enabled": True})
        assert answer.json() == (await api.viewer.get(f"/v1/{path}/oobm")).json()


async def test_a_look_stores_nothing(api: Api, host: str) -> None:
    path = f"/v1/hosts/{host}/oobm/test"
    before = api.rows()["secret_version"]
    response = await api.operator.post(path, json={**BMC, "cipher_suite": 17})
    assert response.status_code == 200
    given = json.loads(response.json()["problem"])
    assert (given["address"], given["cipher_suite"]) == ("198.18.1.11", 17)
    assert given["secret"] is not None
    assert CANARY not in response.text
    assert api.rows()["secret_version"] == before
    assert api.rows()["oobm"] == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("driver", "redfish"),
        ("address", "198.18.9.9"),
        ("port", 1623),
        ("user", "root"),
        ("certificate", "-----BEGIN CERTIFICATE-----\n"),
    ],
)
async def test_the_stored_password_is_not_sent_elsewhere(
    api: Api, host: str, field: str, value: object
) -> None:
    await configure(api, host)
    path = f"/v1/hosts/{host}/oobm/test"
    told = problem(await api.operator.post(path, json={field: value}), 422, "InvalidInput")
    assert [error["field"] for error in told["errors"]] == ["password"]
    harmless = {"privilege": "user", "cipher_suite": 17}
    for asked in ({field: value, "password": CANARY}, harmless, {}):
        assert (await api.operator.post(path, json=asked)).status_code == 200


async def test_power_starts_an_action(api: Api, host: str) -> None:
    await configure(api, host)
    response = await api.operator.post(
        f"/v1/hosts/{host}/power", json={"action": "on", "reason": "test"}
    )
    assert response.status_code == 202
    assert response.headers["Location"] == f"/v1/operations/power/{host}"
    assert response.json()["warnings"] == []
    shown = (await api.viewer.get(response.headers["Location"])).json()
    assert (shown["kind"], shown["subject"]) == ("power", host)
    events = (await api.viewer.get("/v1/events", params={"subject": f"host/{host}"})).json()
    assert events["items"][0]["message"] == "on: test"


async def test_a_second_action_is_refused_with_a_link_and_a_question_is_not(
    api: Api, host: str
) -> None:
    await configure(api, host)
    path = f"/v1/hosts/{host}/power"
    slow = {"action": "reset", "reason": "slow"}
    assert (await api.operator.post(path, json=slow)).status_code == 202
    held = problem(await api.operator.post(path, json={"action": "off"}), 409, "LeaseHeld")
    assert held["operation"] == f"/v1/operations/power/{host}"
    held = problem(await api.admin.delete(f"/v1/hosts/{host}/oobm"), 409, "LeaseHeld")
    asked = await api.operator.post(path, json={"action": "status"})
    assert asked.status_code == 202
    shown = await api.viewer.get(asked.headers["Location"])
    assert shown.json()["workflow_id"] == f"power/{host}/status"
    # A maintenance goes beside it.
    assert (await api.operator.post(f"/v1/hosts/{host}/maintenance", json={})).status_code == 202
    await api.workflow(f"power/{host}").signal("go")
    await api.workflow(f"power/{host}").result()
    assert (await api.admin.delete(f"/v1/hosts/{host}/oobm")).status_code == 204


async def test_a_host_in_maintenance_is_switched_with_a_warning(api: Api, host: str) -> None:
    await configure(api, host)
    enabled, prepare = ResourceState.ENABLED, ResourceState.PREPARE_FOR_MAINTENANCE
    await change_state(api.inventory, host, enabled, prepare)
    await change_state(api.inventory, host, prepare, ResourceState.MAINTENANCE)
    response = await api.operator.post(f"/v1/hosts/{host}/power", json={"action": "off"})
    assert response.status_code == 202
    (warning,) = response.json()["warnings"]
    assert f"{host} is Maintenance" in warning


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"action": "explode"},
        {"action": "off", "force": True},
        {"action": "off", "fall_back_to_off": True},
    ],
)
async def test_an_action_that_is_not_valid_is_refused(
    api: Api, host: str, body: dict[str, object]
) -> None:
    await configure(api, host)
    problem(await api.operator.post(f"/v1/hosts/{host}/power", json=body), 422, "InvalidInput")


async def test_a_password_goes_to_the_workflow_as_an_id(api: Api, host: str) -> None:
    await configure(api, host)
    response = await api.admin.post(
        f"/v1/hosts/{host}/oobm/password", json={"password": "canary-new-72", "reason": "leak"}
    )
    assert response.status_code == 202
    assert response.headers["Location"] == f"/v1/operations/bmc-password/{host}"
    handle = api.workflow(f"bmc-password/{host}")
    secret = (await handle.result())["proof"]
    assert (await api.inventory.secrets.reveal(secret)).plaintext == "canary-new-72"
    assert b"canary-new-72" not in await history(handle)
    random = await api.admin.post(f"/v1/hosts/{host}/oobm/password")
    assert random.status_code == 202


async def test_the_overview_counts_what_is_enabled(api: Api, host: str) -> None:
    await configure(api, host)
    overview = (await api.viewer.get("/v1/oobm")).json()
    assert overview == {
        "counts": [{"state": "Unknown", "problem": "not asked", "hosts": 1}],
        "rounds": [],
    }
