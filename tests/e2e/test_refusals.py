"""Wrong input, each of the three ways: a clear error, nothing changed, nothing left retrying."""

import json
from typing import Any

import pytest
import pytest_asyncio

from contracts.host_checks import HOST_CHECK, HOUSEKEEPING
from tests.e2e.conftest import HOSTS
from tests.e2e.system import START, System, problem
from tests.forked import Said
from tests.lab import Lab

pytestmark = pytest.mark.timeout(300)

SCHEDULED = (HOST_CHECK, HOUSEKEEPING)
SEEN_BY_ROUNDS = ("checked_at", "missed_checks", "read_at", "peers_reach", "usage")


@pytest_asyncio.fixture
async def system(populated: System, lab: Lab) -> System:
    await populated.up()
    return populated


async def by_temporal(system: System, workflow_id: str, request: str) -> str:
    """How a run that was started with Temporal's command has failed."""
    started = await system.temporal(*START, "--workflow-id", workflow_id, "--input", request)
    assert started.status == 0, started
    ended = await system.temporal("workflow", "result", "--workflow-id", workflow_id)
    assert ended.status == 1, ended
    return ended.stdout + ended.stderr


async def assert_nothing_open(system: System) -> None:
    """But for what a schedule has started, which needs nobody."""
    client = await system.client()
    open_runs = client.list_workflows("ExecutionStatus = 'Running'")
    assert [run.id async for run in open_runs if run.workflow_type not in SCHEDULED] == []


async def kept(system: System, name: str) -> dict[str, Any]:
    """What is kept of a host, but for what the scheduled rounds see of it."""
    host = await system.host(name)
    return {field: value for field, value in host.items() if field not in SEEN_BY_ROUNDS}


def refused(said: Said, *, status: int) -> str:
    """The one line that the command says."""
    assert said.status == status, said
    assert said.stderr.startswith("hostler: ") or status == 2, said
    assert "Traceback" not in said.stderr
    return said.stderr


async def test_each_mistake_each_way(system: System) -> None:
    before = [await kept(system, name) for name in HOSTS]
    events = await system.shown("event", "list")

    # An unknown host.
    answer = await system.request("POST", "/v1/hosts/kvm-9/maintenance", json={})
    assert answer.status_code == 404
    assert "There is no host 'kvm-9'" in problem(answer)
    said = await system.hostler("maintenance", "enter", "kvm-9")
    assert "There is no host 'kvm-9'" in refused(said, status=1)
    assert "There is no host 'kvm-9'" in await by_temporal(system, "w1", '{"host": "kvm-9"}')

    # An empty name.
    answer = await system.request("POST", "/v1/hosts", json={"name": "", "cluster": "cluster-1"})
    assert answer.status_code == 422
    assert "name: must not be empty" in problem(answer)
    said = await system.hostler("maintenance", "enter", "")
    assert "must not be empty" in refused(said, status=2)
    assert "host: must not be empty" in await by_temporal(system, "w2", '{"host": ""}')

    # A wrong JSON type, an unknown field, no JSON at all.
    for field, value, says in (
        ("dry_run", "yes", "dry_run: "),
        ("max_parallel", "2", "max_parallel: "),
        ("on_blocker", "explode", "on_blocker: "),
        ("resaon", "x", "resaon: there is no such field"),
    ):
        body: dict[str, Any] = {field: value}
        answer = await system.request("POST", "/v1/hosts/kvm-1/maintenance", json=body)
        assert answer.status_code == 422
        assert says in problem(answer)
        request = json.dumps({"host": "kvm-1"} | body)
        assert says in await by_temporal(system, f"w-{field}", request)
    said = await system.hostler("maintenance", "enter", "kvm-1", "--max-parallel", "0")
    assert "max" in refused(said, status=2)
    said = await system.hostler("maintenance", "enter", "kvm-1", "--resaon", "x")
    assert "--resaon" in refused(said, status=2)
    answer = await system.request("POST", "/v1/hosts/kvm-1/maintenance", content=b'{"reason": ')
    assert answer.status_code == 422
    assert "not valid" in problem(answer)
    assert "input: " in await by_temporal(system, "w3", "[]")

    # A type that there is not.
    started = await system.temporal(
        *("workflow", "start", "--task-queue", "hostler", "--type", "HostMaintenence"),
        *("--workflow-id", "w4", "--input", "{}"),
    )
    assert started.status == 0
    ended = await system.temporal("workflow", "result", "--workflow-id", "w4")
    assert "There is no workflow type 'HostMaintenence'" in ended.stdout + ended.stderr

    # A wrong token, and none.
    answer = await system.request(
        "POST", "/v1/hosts/kvm-1/maintenance", json={}, headers={"Authorization": "Bearer wrong"}
    )
    assert answer.status_code == 401
    assert "token" in problem(answer)
    said = await system.hostler("maintenance", "enter", "kvm-1", HOSTLER_TOKEN="wrong")
    assert "token" in refused(said, status=1)

    assert [await kept(system, name) for name in HOSTS] == before
    assert await system.shown("event", "list") == events
    await assert_nothing_open(system)


async def test_a_host_that_is_in_maintenance_already(system: System) -> None:
    await system.done("maintenance", "enter", "kvm-3", "--watch")
    before = await kept(system, "kvm-3")
    answer = await system.request("POST", "/v1/hosts/kvm-3/maintenance", json={})
    assert answer.status_code == 409
    assert "kvm-3 is held by maintenance/kvm-3" in problem(answer)
    assert answer.json()["operation"] == "/v1/operations/maintenance/kvm-3"
    said = await system.hostler("maintenance", "enter", "kvm-3")
    assert "kvm-3 is held by maintenance/kvm-3" in refused(said, status=1)
    assert "kvm-3 is held by maintenance/kvm-3" in await by_temporal(
        system, "other", '{"host": "kvm-3"}'
    )
    assert await kept(system, "kvm-3") == before
    await system.done("maintenance", "leave", "kvm-3")
    said = await system.hostler("maintenance", "leave", "kvm-3")
    assert "kvm-3" in refused(said, status=1)
    await assert_nothing_open(system)


async def test_an_addition_that_cannot_succeed_leaves_nothing(embedded: System, lab: Lab) -> None:
    system = embedded
    await system.up()
    await system.done("zone", "create", "zone-1")
    await system.done("pod", "create", "pod-1", "--zone", "zone-1")
    await system.done("cluster", "create", "cluster-1", "--pod", "pod-1")
    first, second, *_ = (await lab.status())["hosts"]

    async def add(
        *, address: str = first["address"], password: str = first["password_file"], key: str
    ) -> str:
        said = await system.hostler(
            *("host", "add", "kvm-1", "--cluster", "cluster-1", "--address", address),
            *("--password-file", password, "--accept-host-key", key),
        )
        return said.stdout + refused(said, status=1)

    own, other = first["host_key_sha256"], second["host_key_sha256"]
    says = await add(key=other)
    assert own in says
    assert other in says
    assert "refuses the login of root" in await add(password=second["password_file"], key=own)
    assert "shows no SSH host key" in await add(address="198.18.0.250", key=own)
    assert await system.shown("host", "list") == []
    assert (await lab.exec("kvm-1", "test", "-e", "/etc/hostler", check=False)).exit_status == 1
    await assert_nothing_open(system)
