"""Start, look, steer, see what hooks have printed."""

import itertools
from typing import Any

import httpx
import pytest
import pytest_asyncio

from contracts.cluster_maintenance import ClusterMaintenanceView, HookOutcome, Stage
from contracts.operations import Operation
from contracts.states import ResourceState
from tests.api.conftest import Api, change_state, history, problem

pytestmark = pytest.mark.asyncio(loop_scope="package")

_numbers = itertools.count(100)


@pytest_asyncio.fixture(loop_scope="package")
async def cluster(api: Api) -> str:
    """Another one for each test, with one host that is in service."""
    number = next(_numbers)
    name, host = f"cluster-{number}", host_of(f"cluster-{number}")
    await api.inventory.topology.create_cluster(name, "pod-1", actor="test")
    await api.inventory.hosts.register(
        name=host,
        cluster=name,
        address=f"198.18.1.{number}",
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
    await change_state(api.inventory, host, ResourceState.CREATING, ResourceState.ENABLED)
    return name


def host_of(cluster: str) -> str:
    return f"{cluster}-host"


def path(cluster: str, *more: str) -> str:
    return "/".join(("/v1/clusters", cluster, "maintenance", *more))


async def start(api: Api, cluster: str, **body: object) -> httpx.Response:
    response = await api.admin.post(path(cluster), json=body)
    assert response.status_code == 202, response.text
    return response


async def test_it_starts_the_workflow_and_says_where_to_look(api: Api, cluster: str) -> None:
    hooks = {"maintenance": {"builtin": "apply-updates"}, "pre_flight": {"command": ["a", "b c"]}}
    response = await start(api, cluster, reason="kernel", reboot=True, hooks=hooks)
    assert response.headers["location"] == f"/v1/operations/cluster-maintenance/{cluster}"
    started = Operation.model_validate(response.json())
    assert (started.kind, started.subject) == ("cluster-maintenance", cluster)
    workflow = api.workflow(f"cluster-maintenance/{cluster}")
    described = await workflow.describe()
    assert described.workflow_type == "ClusterMaintenance"
    assert await described.static_summary() == f"Cluster maintenance of {cluster} by anna: kernel"
    assert b'"command":["a","b c"]' in await history(workflow)
    (event,) = await api.inventory.events.list(subject=f"cluster/{cluster}", limit=1)
    assert event.message == f"{host_of(cluster)}: kernel"
    assert (event.kind, event.actor) == ("cluster_maintenance.requested", "token:anna")
    shown = await api.viewer.get(response.headers["location"])
    assert shown.json()["details"]["reboot"] is True
    found = await api.viewer.get(path(cluster))
    view = ClusterMaintenanceView.model_validate(found.json())
    assert (view.reason, view.workflow_id, view.run_id) == ("kernel", workflow.id, started.run_id)


async def test_twice_is_refused_with_a_link(api: Api, cluster: str) -> None:
    await api.operator.post(path(cluster))
    refused = problem(await api.operator.post(path(cluster)), 409, "LeaseHeld")
    assert refused["operation"] == f"/v1/operations/cluster-maintenance/{cluster}"


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"parallel": 2}, "parallel", "2 hosts at a time, but the setting"),
        ({"hosts": ["kvm-none"]}, "hosts", "not in "),
        ({"hosts": ["a", "a"]}, "hosts", "a host is named twice"),
        ({"hosts": "all"}, "hosts", "input should be a valid array"),
        ({"on_blocker": "keep"}, "on_blocker", "with VMs kept on it"),
        ({"reboot": 1}, "reboot", "input should be a valid boolean"),
        ({"hooks": {"lunch": {"command": ["a"]}}}, "hooks.lunch.[key]", "input should be"),
        ({"hooks": {"pre_flight": {}}}, "hooks.pre_flight", "exactly one of command and builtin"),
        ({"cluster": "x"}, "cluster", "there is no such field"),
        ({"continued": None}, "continued", "there is no such field"),
    ],
)
async def test_a_wrong_body_starts_nothing(
    api: Api, cluster: str, body: Any, field: str, message: str
) -> None:
    before = api.rows()
    found = problem(await api.operator.post(path(cluster), json=body), 422, "InvalidInput")
    assert found["detail"].startswith(f"The input of ClusterMaintenance is not valid: {field}: ")
    assert found["errors"][0]["field"] == field
    assert found["errors"][0]["message"].startswith(message)
    assert api.rows() == before
    assert await api.run_id(f"cluster-maintenance/{cluster}") is None


async def test_a_host_that_is_out_already(api: Api, cluster: str) -> None:
    host = host_of(cluster)
    await change_state(
        api.inventory, host, ResourceState.ENABLED, ResourceState.PREPARE_FOR_MAINTENANCE
    )
    for body in ({}, {"hosts": [host]}):
        problem(await api.operator.post(path(cluster), json=body), 409, "Conflict")
    assert await api.run_id(f"cluster-maintenance/{cluster}") is None


async def test_pause_resume_and_stop(api: Api, cluster: str) -> None:
    await start(api, cluster)
    refused = problem(await api.operator.post(path(cluster, "resume")), 409, "Conflict")
    assert refused["detail"] == "There is nothing to resume."
    for name in ("pause", "resume"):
        assert (await api.operator.post(path(cluster, name))).status_code == 204
        view = (await api.viewer.get(path(cluster))).json()
        assert view["message"].split(", ")[-1] == name
        (event,) = await api.inventory.events.list(subject=f"cluster/{cluster}", limit=1)
        assert event.message == f"{name} asked for"
    assert (await api.operator.post(path(cluster, "stop"))).status_code == 204
    await api.workflow(f"cluster-maintenance/{cluster}").result()
    for method, what in (("GET", ()), ("POST", ("pause",)), ("POST", ("stop",))):
        answer = await api.operator.request(method, path(cluster, *what))
        assert f"No maintenance of {cluster} is open" in problem(answer, 404, "NotFound")["detail"]


async def test_without_any_there_is_nothing_to_see_or_steer(api: Api, cluster: str) -> None:
    for method, what in (
        ("GET", ()),
        ("GET", ("hooks",)),
        ("GET", ("hooks", "kvm-1")),
        ("POST", ("pause",)),
        ("POST", ("resume",)),
        ("POST", ("stop",)),
    ):
        problem(await api.operator.request(method, path(cluster, *what)), 404, "NotFound")


async def test_an_unknown_cluster(api: Api) -> None:
    before = api.rows()
    for method, what in (
        ("POST", ()),
        ("GET", ()),
        ("GET", ("hooks",)),
        ("GET", ("hooks", "kvm-1")),
        ("POST", ("pause",)),
    ):
        answer = await api.operator.request(method, path("cluster-none", *what))
        assert "cluster-none" in problem(answer, 404, "NotFound")["detail"]
    assert api.rows() == before


async def test_hooks_of_the_newest_one_also_when_it_has_ended(api: Api, cluster: str) -> None:
    await start(api, cluster)
    workflow = api.workflow(f"cluster-maintenance/{cluster}")
    operation = f"{workflow.id}#{(await workflow.describe()).raw_info.first_run_id}"
    host, runs = host_of(cluster), api.inventory.hook_runs
    await runs.start(operation, host, Stage.PRE_FLIGHT, 1, ("true",))
    outcome = HookOutcome(stage=Stage.PRE_FLIGHT, attempt=1, exit_status=0)
    await runs.finish(operation, host, outcome, "all well\n")
    await api.operator.post(path(cluster, "stop"))
    await workflow.result()
    (listed,) = (await api.viewer.get(path(cluster, "hooks"))).json()["items"]
    assert (listed["host"], listed["exit_status"], listed["output"]) == (host, 0, None)
    (told,) = (await api.viewer.get(path(cluster, "hooks", host))).json()["items"]
    assert told["output"] == "all well\n"
    assert (await api.viewer.get(path(cluster, "hooks", "kvm-9"))).json()["items"] == []
    # The next one begins anew.
    await start(api, cluster)
    assert (await api.viewer.get(path(cluster, "hooks"))).json()["items"] == []


async def test_a_viewer_only_looks(api: Api, cluster: str) -> None:
    before = api.rows()
    for what in ((), ("pause",), ("resume",), ("stop",)):
        problem(await api.viewer.post(path(cluster, *what)), 403, "Refused")
    assert api.rows() == before


async def test_an_operator_runs_only_what_an_admin_has_put_there(api: Api, cluster: str) -> None:
    before = api.rows()
    hooks: dict[str, object] = {"maintenance": {"command": ["id"]}}
    problem(await api.operator.post(path(cluster), json={"hooks": hooks}), 403, "Refused")
    assert api.rows() == before
    hooks = {"maintenance": {"builtin": "apply-updates"}}
    assert (await api.operator.post(path(cluster), json={"hooks": hooks})).status_code == 202


async def test_cancel_is_of_a_cluster_in_the_audit_trail(api: Api, cluster: str) -> None:
    await start(api, cluster)
    answer = await api.operator.delete(f"/v1/operations/cluster-maintenance/{cluster}")
    assert answer.status_code == 202
    (event,) = await api.inventory.events.list(subject=f"cluster/{cluster}", limit=1)
    assert event.kind == "cluster-maintenance.cancel_requested"


async def test_a_host_may_have_the_name_of_a_cluster_in_maintenance(
    api: Api, cluster: str, host: str
) -> None:
    await start(api, cluster)
    body = {"name": cluster, "cluster": cluster, "address": "198.18.2.1", "password": "x"}
    added = await api.admin.post("/v1/hosts", json=body)
    assert added.status_code == 202, added.text
    assert (await api.operator.post(f"/v1/hosts/{host}/maintenance")).status_code == 202
