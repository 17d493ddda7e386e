import json

import pytest

from contracts.hosts import Cluster, Pod, Zone
from contracts.states import AllocationState
from tests.cli.conftest import Answer, FakeApi, hostler, items, ok

ENABLED, DISABLED = AllocationState.ENABLED, AllocationState.DISABLED
ZONE = Zone(name="zone-1", allocation_state=DISABLED)
POD = Pod(name="pod-1", zone="zone-1", allocation_state=DISABLED)
CLUSTER = Cluster(name="cluster-1", pod="pod-1", zone="zone-1", allocation_state=DISABLED)


@pytest.mark.parametrize(
    ("arguments", "route", "body", "made"),
    [
        (("zone", "create", "zone-1"), "POST /v1/zones", {"name": "zone-1"}, ZONE),
        (
            ("pod", "create", "pod-1", "--zone", "zone-1"),
            "POST /v1/pods",
            {"name": "pod-1", "zone": "zone-1"},
            POD,
        ),
        (
            ("cluster", "create", "cluster-1", "--pod", "pod-1"),
            "POST /v1/clusters",
            {"name": "cluster-1", "pod": "pod-1"},
            CLUSTER,
        ),
    ],
)
def test_create(
    api: FakeApi,
    arguments: tuple[str, ...],
    route: str,
    body: dict[str, str],
    made: Zone | Pod | Cluster,
) -> None:
    api.on(route, Answer(201, made))
    done = hostler(*arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{arguments[0]} {made.name} is Disabled.\n"
    assert api.bodies(route) == [body]


@pytest.mark.parametrize(("verb", "state"), [("enable", ENABLED), ("disable", DISABLED)])
def test_enable_and_disable(api: FakeApi, verb: str, state: AllocationState) -> None:
    route = "PATCH /v1/clusters/cluster-1"
    api.on(route, ok(CLUSTER.model_copy(update={"allocation_state": state})))
    done = hostler("cluster", verb, "cluster-1")
    assert done.stdout == f"cluster cluster-1 is {state}.\n"
    assert api.bodies(route) == [{"allocation_state": state}]


def test_list(api: FakeApi) -> None:
    api.on("GET /v1/pods", items(POD))
    header, row = (line.split() for line in hostler("pod", "list").stdout.splitlines())
    assert header == ["NAME", "ZONE", "ALLOCATION", "STATE"]
    assert row == ["pod-1", "zone-1", "Disabled"]


def test_an_empty_list_is_a_header(api: FakeApi) -> None:
    api.on("GET /v1/zones", items())
    assert hostler("zone", "list").stdout.split() == ["NAME", "ALLOCATION", "STATE"]
    assert json.loads(hostler("zone", "list", "--json").stdout) == []


def test_json_is_what_the_api_gave(api: FakeApi) -> None:
    newer = {**CLUSTER.model_dump(mode="json"), "a field of a later version": [1]}
    api.on("GET /v1/clusters", ok({"items": [newer]}))
    api.on("GET /v1/clusters/cluster-1", ok(newer))
    assert json.loads(hostler("cluster", "list", "--json").stdout) == [newer]
    assert json.loads(hostler("cluster", "show", "cluster-1", "--json").stdout) == newer


def test_show(api: FakeApi) -> None:
    api.on("GET /v1/clusters/cluster-1", ok(CLUSTER))
    lines = hostler("cluster", "show", "cluster-1").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["name", "cluster-1"],
        ["pod", "pod-1"],
        ["zone", "zone-1"],
        ["allocation", "state", "Disabled"],
    ]
