"""Requests that are stored before their operation is started, and started once, whoever dies."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
import pytest_asyncio
from sqlmodel import update
from temporalio.client import Client
from temporalio.testing import ActivityEnvironment

from activities.accepted_operations import AcceptedActivities
from api.operations import Operations
from contracts.errors import Conflict, Unavailable
from contracts.secrets import SecretState
from inventory.models import OperationRow, now
from tests.api.conftest import TASK_QUEUE, Api, problem
from tests.api.test_passwords import CANARY, cluster, staged

__all__ = ["cluster"]

pytestmark = pytest.mark.asyncio(loop_scope="package")

BODY = {"password": CANARY, "reason": "quarterly"}
KEY = {"Idempotency-Key": "5b0c6a2e"}


class Killed(Exception):
    """The process ends here."""


@pytest_asyncio.fixture(loop_scope="package")
async def path(cluster: str) -> AsyncIterator[str]:
    yield f"/v1/clusters/{cluster}/password-rotation"


async def ask(api: Api, path: str, **more: Any) -> httpx.Response:
    return await api.admin.post(path, **({"json": BODY, "headers": KEY} | more))


async def end(api: Api, path: str, cluster: str) -> None:
    await api.admin.post(f"{path}/retry")
    await api.workflow(f"rotation/{cluster}").result()


async def runs(client: Client, cluster: str, number: int) -> int:
    """How many there are, as soon as Temporal's index has `number` of them."""
    while True:
        found = [run async for run in client.list_workflows(f"WorkflowId = 'rotation/{cluster}'")]
        if len(found) >= number:
            return len(found)
        await asyncio.sleep(0.1)


async def start_overdue(api: Api, *, age: timedelta = timedelta(minutes=2)) -> None:
    """The part of a round of checks, when that much time has gone by."""
    async with api.inventory.database.writing() as session:
        await session.exec(update(OperationRow).values(accepted_at=now() - age))
    environment = ActivityEnvironment()
    environment.info = dataclasses.replace(environment.info, task_queue=TASK_QUEUE)
    await environment.run(AcceptedActivities(api.inventory, api.client).start_accepted)


async def test_the_same_request_gets_the_same_operation(api: Api, cluster: str, path: str) -> None:
    first = await ask(api, path)
    assert first.status_code == 202, first.text
    again = await ask(api, path)
    assert (again.status_code, again.json()) == (202, first.json())
    assert again.headers["Location"] == first.headers["Location"]
    await end(api, path, cluster)
    ended = await ask(api, path)
    assert ended.status_code == 202
    assert ended.json()["run_id"] == first.json()["run_id"]
    assert await runs(api.client, cluster, 1) == 1
    assert await staged(api, cluster) == CANARY
    other = await ask(api, path, headers={"Idempotency-Key": "another"})
    assert other.json()["run_id"] != first.json()["run_id"]


@pytest.mark.parametrize(
    "other", [{"password": "another"}, {"reason": "yearly"}, {"password": None}]
)
async def test_a_key_goes_with_one_request(
    api: Api, cluster: str, path: str, other: dict[str, Any]
) -> None:
    await ask(api, path)
    told = problem(await ask(api, path, json=BODY | other), 422, "InvalidInput")
    assert "'5b0c6a2e' was the key of another request" in told["detail"]
    assert [error["field"] for error in told["errors"]] == ["Idempotency-Key"]
    assert CANARY not in str(told)
    assert await runs(api.client, cluster, 1) == 1


@pytest.mark.parametrize("key", ["", "two words", "x" * 256])
async def test_a_key_that_is_none(api: Api, path: str, key: str) -> None:
    problem(await ask(api, path, headers={"Idempotency-Key": key}), 422, "InvalidInput")


async def test_what_is_stored_tells_no_password(api: Api, cluster: str, path: str) -> None:
    await ask(api, path)
    assert CANARY not in repr(api.rows())


@pytest.mark.parametrize("body", [BODY, {}, {"password": CANARY, "host": "kvm-1"}])
async def test_one_that_nobody_started_is_started_by_a_round_of_checks(
    api: Api, cluster: str, path: str, body: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(*_: object, **__: object) -> str:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Operations, "start", killed)
        assert (await ask(api, path, json=body)).status_code == 500
    assert await api.run_id(f"rotation/{cluster}") is None
    await start_overdue(api, age=timedelta(seconds=50))
    assert await api.run_id(f"rotation/{cluster}") is None, "whoever took it may be about to"
    for _ in range(2):
        await start_overdue(api)
    run_id = await api.run_id(f"rotation/{cluster}")
    again = await ask(api, path, json=body)
    assert again.json()["run_id"] == run_id
    assert await runs(api.client, cluster, 1) == 1
    described = await api.workflow(f"rotation/{cluster}").describe()
    assert await described.memo_value("requested_by") == "anna"


async def test_one_whose_start_nobody_noted_is_not_started_again(
    api: Api, cluster: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(type(api.inventory.accepted), "begin", killed)
        assert (await ask(api, path)).status_code == 500
    run_id = await api.run_id(f"rotation/{cluster}")
    assert run_id is not None
    await start_overdue(api)
    assert await api.inventory.accepted.overdue(timedelta()) == []
    assert (await ask(api, path)).json()["run_id"] == run_id
    assert await runs(api.client, cluster, 1) == 1


async def test_whoever_sends_it_again_starts_it_too(
    api: Api, cluster: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(*_: object, **__: object) -> str:
        raise Unavailable("Temporal did not answer: connection refused.")

    with monkeypatch.context() as patch:
        patch.setattr(Operations, "start", silent)
        told = problem(await ask(api, path), 503, "Unavailable")
    assert "The request is stored, and is started as soon as that is possible" in told["detail"]
    assert (await ask(api, path)).status_code == 202
    await start_overdue(api)
    assert await runs(api.client, cluster, 1) == 1


async def test_one_that_is_too_old_expires(
    api: Api, cluster: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(*_: object, **__: object) -> str:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Operations, "start", killed)
        await ask(api, path)
    await start_overdue(api, age=timedelta(seconds=901))
    assert await api.run_id(f"rotation/{cluster}") is None
    assert await staged(api, cluster) is None
    told = problem(await ask(api, path), 409, "Conflict")
    assert "nobody started it within 900 s. Nothing was changed." in told["detail"]
    assert (await ask(api, path, headers={})).status_code == 202


async def test_one_that_another_operation_is_in_the_way_of_expires(
    api: Api, cluster: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(*_: object, **__: object) -> str:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Operations, "start", killed)
        await ask(api, path)
    await api.client.start_workflow(
        "PasswordRotation", {"cluster": cluster}, id=f"rotation/{cluster}", task_queue=TASK_QUEUE
    )
    await start_overdue(api)
    told = problem(await ask(api, path), 409, "Conflict")
    assert f"rotation/{cluster} runs already" in told["detail"]
    passwords = api.inventory.cluster_passwords
    assert await passwords.find(cluster, SecretState.STAGED, account="root") is None


async def test_one_that_is_refused_may_be_sent_again(
    api: Api, cluster: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: object, **__: object) -> str:
        raise Conflict("not now")

    with monkeypatch.context() as patch:
        patch.setattr(Operations, "start", refused)
        problem(await ask(api, path), 409, "Conflict")
    assert await api.inventory.accepted.overdue(timedelta()) == []
    assert (await ask(api, path)).status_code == 202
