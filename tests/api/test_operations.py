"""Operations as Temporal shows them, the audit trail, and what happens when systems are away."""

import asyncio
from datetime import datetime, timedelta, timezone
from pathlib import Path

import httpx
import pytest
from temporalio.client import Client

from activities.bmcs import BmcDirectory
from api import operations
from api.app import create_app
from contracts.access import Role
from contracts.errors import Unavailable
from contracts.maintenance import HostMaintenanceInput
from drivers.power.registry import PowerDrivers
from inventory import Database, Inventory, SecretBox
from tests.api.conftest import Api, caller, new_name, problem, start_temporal

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_a_failed_operation_says_why(api: Api, host: str) -> None:
    response = await api.enter(host, reason="blocked")
    with pytest.raises(Exception, match="Workflow execution failed"):
        await api.workflow(f"maintenance/{host}").result()
    shown = (await api.viewer.get(response.headers["location"])).json()
    assert shown["status"] == "FAILED"
    assert shown["error"] == f"{host} can't be evacuated, and nothing was changed: vm-1: no room"
    assert shown["error_type"] == "EvacuationImpossible"
    assert shown["details"] == {"plan": {"host": host}}


async def test_a_dry_run_ends_with_its_plan(api: Api, host: str) -> None:
    response = await api.enter(host, dry_run=True)
    await api.workflow(f"maintenance/{host}").result()
    shown = (await api.viewer.get(response.headers["location"])).json()
    assert (shown["status"], shown["details"]["outcome"]) == ("COMPLETED", "planned")
    await api.enter(host)


async def test_cancel_asks_temporal(api: Api, host: str) -> None:
    location = (await api.enter(host)).headers["location"]
    response = await api.operator.delete(location)
    assert response.status_code == 202
    assert response.headers["location"] == location
    with pytest.raises(Exception, match="Workflow execution failed"):
        await api.workflow(f"maintenance/{host}").result()
    shown = (await api.viewer.get(location)).json()
    assert (shown["status"], shown["error_type"]) == ("CANCELED", None)
    newest = (await api.inventory.events.list(subject=f"host/{host}"))[0]
    assert (newest.kind, newest.actor) == ("maintenance.cancel_requested", "token:olga")

    before = api.rows()
    found = problem(await api.operator.delete(location), 409, "Conflict")
    assert found["detail"] == f"maintenance/{host} has ended already."
    assert api.rows() == before


async def test_a_terminated_operation_shows_the_reason(api: Api, host: str) -> None:
    location = (await api.enter(host)).headers["location"]
    await api.workflow(f"maintenance/{host}").terminate(reason="by hand")
    shown = (await api.viewer.get(location)).json()
    assert (shown["status"], shown["error"]) == ("TERMINATED", "by hand")


async def test_what_there_is_not(api: Api, host: str) -> None:
    await api.client.start_workflow(
        "HostMaintenance",
        HostMaintenanceInput(host=host),
        id=f"addition/{host}",
        task_queue="stand-ins",
    )
    before = api.rows()
    # An operation is of the kind of its workflow, whatever its id says.
    for path in (f"maintenance/{new_name()}", f"addition/{host}"):
        for method in ("GET", "DELETE"):
            response = await api.admin.request(method, f"/v1/operations/{path}")
            problem(response, 404, "NotFound")
    assert api.rows() == before


async def test_operations_are_listed_newest_first(api: Api) -> None:
    names = [new_name() for _ in range(3)]
    for name in names:
        await api.by_hand(f"listed-{name}", name, reason="listed")
    await api.workflow(f"listed-{names[1]}").cancel()

    async def listed(query: str) -> list[str]:
        items = (await api.viewer.get(f"/v1/operations{query}")).json()["items"]
        return [item["subject"] for item in items if item["workflow_id"].startswith("listed-")]

    newest_first = names[::-1]
    # Temporal's visibility follows after a moment.
    while await listed("") != newest_first:
        await asyncio.sleep(0.05)
    while await listed("?status=CANCELED") != [names[1]]:
        await asyncio.sleep(0.05)
    assert await listed("?kind=maintenance") == newest_first
    assert await listed("?kind=maintenance&status=RUNNING") == [names[2], names[0]]
    assert await listed("?kind=addition") == []
    assert await listed("?status=TIMED_OUT") == []
    assert len((await api.viewer.get("/v1/operations?limit=2")).json()["items"]) == 2


async def test_events_are_filtered_and_paged(api: Api, host: str) -> None:
    await api.enter(host, reason="disk")
    listed = (await api.viewer.get("/v1/events")).json()["items"]
    ids = [event["id"] for event in listed]
    assert ids == sorted(ids, reverse=True)
    assert listed[0]["kind"] == "maintenance.requested"
    assert (listed[0]["message"], listed[0]["actor"]) == ("disk", "token:olga")
    page = (await api.viewer.get(f"/v1/events?limit=2&before={ids[1]}")).json()
    assert [event["id"] for event in page["items"]] == ids[2:4]
    assert page["next"] == ids[3]
    last = (await api.viewer.get("/v1/events", params={"before": ids[-2]})).json()
    assert ([event["id"] for event in last["items"]], last["next"]) == (ids[-1:], None)
    of_host = (await api.viewer.get(f"/v1/events?subject=host/{host}")).json()["items"]
    assert {event["subject"] for event in of_host} == {f"host/{host}"}
    of_operation = await api.viewer.get(f"/v1/events?operation=maintenance/{host}")
    assert of_operation.json()["items"] == listed[:1]

    async def found(**query: str) -> list[int]:
        answer = await api.viewer.get("/v1/events", params=query)
        return [event["id"] for event in answer.json()["items"]]

    assert await found(actor="token:olga", kind="maintenance.requested") == ids[:1]
    assert await found(actor="token:oskar") == []
    at = datetime.fromisoformat(listed[1]["at"])
    before = [event["id"] for event in listed if datetime.fromisoformat(event["at"]) <= at]
    # A moment is the same in any zone.
    assert await found(until=at.astimezone(timezone(timedelta(hours=9))).isoformat()) == before
    assert set(await found(since=at.isoformat())) >= {*ids[:2]}
    assert await found(since=(at + timedelta(days=1)).isoformat()) == []


async def test_a_change_of_state_says_from_what_to_what_and_why(api: Api, host: str) -> None:
    answer = await api.viewer.get("/v1/events", params={"kind": "host.state"})
    changes = [
        (event["from_state"], event["to_state"], event["subject"])
        for event in reversed(answer.json()["items"])
        if event["subject"] == f"host/{host}"
    ]
    assert changes[0][:2] == (None, "Creating")
    assert [change[0] for change in changes[1:]] == [change[1] for change in changes[:-1]]
    assert changes[-1][1] == (await api.inventory.hosts.get(host)).resource_state
    assert all(event["reason"] for event in answer.json()["items"])


async def test_without_a_worker_an_operation_is_still_shown(
    api: Api, host: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(operations, "_PATIENCE", timedelta(seconds=1))
    app = create_app(api.client, api.inventory, api.bmcs, task_queue="nobody-there")
    token = await api.inventory.tokens.create("omar", Role.OPERATOR)
    async with caller(app, token) as operator:
        path = f"/v1/hosts/{host}/maintenance"
        started = await operator.post(path)
        assert started.status_code == 202
        shown = (await operator.get(started.headers["location"])).json()
        assert (shown["status"], shown["details"]) == ("RUNNING", None)
        assert f"maintenance/{host} does not say where it stands" in caplog.text
        for response in (
            await operator.get(path),
            await operator.delete(path),
            await operator.post(f"{path}/vms/vm-1", json={"action": "keep"}),
        ):
            assert "worker" in problem(response, 503, "Unavailable")["detail"]
            assert response.headers["retry-after"] == "5"
    await api.workflow(f"maintenance/{host}").terminate()


async def test_without_temporal(api: Api, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "_PATIENCE", timedelta(seconds=1))
    async with await start_temporal() as environment:
        app = create_app(environment.client, api.inventory, api.bmcs, task_queue="x")
    token = await api.inventory.tokens.create("ada", Role.ADMIN)
    before = api.rows()
    async with caller(app, token) as admin:
        addition = {"name": new_name(), "cluster": "cluster-1", "address": "198.18.0.9"}
        for response in await asyncio.gather(
            admin.get("/healthz"),
            admin.get("/v1/operations"),
            admin.post(f"/v1/hosts/{host}/maintenance"),
            admin.post("/v1/hosts", json={**addition, "password": "pw"}),
        ):
            problem(response, 503, "Unavailable")
            assert response.headers["retry-after"] == "5"
        # What only the inventory knows is there all the same.
        assert (await admin.get(f"/v1/hosts/{host}")).status_code == 200
    assert api.rows() == before


async def test_without_the_database(client: Client, tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'missing' / 'inventory.db'}")
    inventory = Inventory(database, SecretBox(SecretBox.new_key()))
    app = create_app(client, inventory, BmcDirectory(inventory, PowerDrivers()), task_queue="x")
    async with caller(app, "hostler_any") as anybody:
        for path in ("/healthz", "/v1/hosts"):
            response = await anybody.get(path)
            problem(response, 503, "Unavailable")
            assert response.headers["retry-after"] == "5"
    await database.close()


async def test_health(api: Api) -> None:
    response = await api.nobody.get("/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_the_secret_is_kept_while_nobody_knows_whether_the_start_worked(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_answer(*_: object, **__: object) -> None:
        raise Unavailable("Temporal did not answer.")

    monkeypatch.setattr(api.app.state.operations, "start", no_answer)
    addition = {"name": new_name(), "cluster": "cluster-1", "address": "198.18.0.9"}
    response = await api.admin.post("/v1/hosts", json={**addition, "password": "pw"})
    problem(response, 503, "Unavailable")
    assert len(api.rows()["secret_version"]) == 1


async def test_an_unexpected_error_tells_nothing_of_our_insides(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(**_: object) -> None:
        raise ValueError("canary")

    monkeypatch.setattr(api.inventory.topology, "list_zones", broken)
    response = await api.viewer.get("/v1/zones")
    problem(response, 500, "InternalServerError")
    assert "canary" not in response.text
    # The server that runs the application gets it, and logs it.
    server = httpx.ASGITransport(api.app, raise_app_exceptions=True)
    async with httpx.AsyncClient(
        transport=server, base_url="http://hostler", headers=api.viewer.headers
    ) as client:
        with pytest.raises(ValueError, match="canary"):
            await client.get("/v1/zones")
