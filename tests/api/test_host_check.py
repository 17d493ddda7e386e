"""A look at one host, asked for through the API and made by a worker."""

import asyncio

import pytest

from api import operations
from contracts.host_checks import HostSighting
from contracts.host_status import Seen
from tests.api.conftest import Api, new_name, problem

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def add(api: Api, name: str) -> str:
    await api.inventory.hosts.register(
        name=name,
        cluster="cluster-1",
        address="198.18.0.11",
        ssh_port=22,
        user="root",
        secret_id=await api.inventory.secrets.store("password", "pw", actor="test"),
        host_key_line="ssh-ed25519 AAAA",
        host_key_sha256="SHA256:abc",
        capacity_memory_mib=None,
        capacity_cpus=None,
        reserved_memory_mib=0,
        operation="addition/x",
        actor="test",
    )
    return name


async def test_what_was_seen_is_answered(api: Api, host: str) -> None:
    response = await api.operator.post(f"/v1/hosts/{host}/check")
    assert response.status_code == 200, response.text
    sighting = HostSighting.model_validate(response.json())
    assert (sighting.host, sighting.seen) == (host, Seen.LIBVIRT_SILENT)
    described = await api.workflow(f"check/{host}").describe()
    assert described.workflow_type == "HostCheck"
    assert await described.memo() == {"requested_by": "olga"}


async def test_it_is_no_operation(api: Api, host: str) -> None:
    await api.operator.post(f"/v1/hosts/{host}/check")
    listed = (await api.viewer.get("/v1/operations?limit=1000")).json()["items"]
    assert host not in [operation["subject"] for operation in listed]


async def test_who_asks_at_the_same_time_shares_one_look(api: Api) -> None:
    name = await add(api, f"slow-{new_name()}")
    asked = [asyncio.create_task(api.operator.post(f"/v1/hosts/{name}/check")) for _ in range(3)]
    while await api.run_id(f"check/{name}") is None:
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    await api.workflow(f"check/{name}").signal("go")
    answers = await asyncio.gather(*asked)
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len({answer.text for answer in answers}) == 1


async def test_a_viewer_may_not_and_an_unknown_host_is_none(api: Api, host: str) -> None:
    problem(await api.viewer.post(f"/v1/hosts/{host}/check"), 403, "Refused")
    problem(await api.operator.post("/v1/hosts/kvm-none/check"), 404, "NotFound")


async def test_a_failure_of_the_look_is_told_as_it_is(api: Api) -> None:
    name = await add(api, f"gone-{new_name()}")
    body = problem(await api.operator.post(f"/v1/hosts/{name}/check"), 404, "NotFound")
    assert body["detail"] == f"There is no host '{name}'."


async def test_without_a_worker_it_is_said_so(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "_LONGEST_LOOK", operations._A_MOMENT)  # noqa: SLF001 - ours
    name = await add(api, f"slow-{new_name()}")
    body = problem(await api.operator.post(f"/v1/hosts/{name}/check"), 503, "Unavailable")
    assert "Is a worker running?" in body["detail"]
