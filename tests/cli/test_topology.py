import json

import pytest

from contracts.hosts import Cluster, Pod, Zone
from contracts.states import AllocationState
from tests.cli.conftest import Answer, FakeApi, hostler, items, ok, problem

DISABLED = AllocationState.DISABLED
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


def test_list(api: FakeApi) -> None:
    api.on("GET /v1/pods?limit=1000", items(POD))
    header, row = (line.split() for line in hostler("pod", "list").stdout.splitlines())
    assert header == ["NAME", "ZONE", "ALLOCATION", "STATE"]
    assert row == ["pod-1", "zone-1", "Disabled"]


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (("zone", "list", "--allocation-state", "Enabled"), "zones?allocation_state=Enabled"),
        (
            ("pod", "list", "--zone", "zone-1", "--allocation-state", "Disabled"),
            "pods?zone=zone-1&allocation_state=Disabled",
        ),
        (
            ("cluster", "list", "--zone", "zone-1", "--pod", "pod-1"),
            "clusters?zone=zone-1&pod=pod-1",
        ),
    ],
)
def test_lists_are_filtered(api: FakeApi, arguments: tuple[str, ...], path: str) -> None:
    api.on(f"GET /v1/{path}&limit=1000", items())
    done = hostler(*arguments)
    assert done.exit_code == 0, done.output
    assert [one.path for one in api.requests] == [f"/v1/{path}&limit=1000"]


def test_list_fetches_all_pages(api: FakeApi) -> None:
    zones = [
        Zone(name=f"zone-{number}", allocation_state=AllocationState.ENABLED) for number in range(3)
    ]
    for number, query in enumerate(("", "&after=zone-0", "&after=zone-1")):
        following = f"zone-{number}" if number < 2 else None
        api.on(
            f"GET /v1/zones?limit=1000{query}", ok({"items": [zones[number]], "next": following})
        )
    listed = json.loads(hostler("zone", "list", "--json").stdout)
    assert [zone["name"] for zone in listed] == ["zone-0", "zone-1", "zone-2"]
    assert len(hostler("zone", "list").stdout.splitlines()) == 4


@pytest.mark.parametrize(("noun", "place"), [("zone", ZONE), ("pod", POD), ("cluster", CLUSTER)])
def test_rename_and_delete(api: FakeApi, noun: str, place: Zone | Pod | Cluster) -> None:
    path = f"/v1/{noun}s/{place.name}"
    api.on(f"PATCH {path}", ok(place.model_copy(update={"name": "new"})))
    api.on(f"DELETE {path}", Answer(204))
    done = hostler(noun, "rename", place.name, "new")
    assert (done.exit_code, done.stdout) == (0, f"{noun} {place.name} is now new.\n")
    assert api.bodies(f"PATCH {path}") == [{"name": "new"}]
    done = hostler(noun, "delete", place.name)
    assert (done.exit_code, done.stdout) == (0, f"{noun} {place.name} is deleted.\n")
    assert api.bodies(f"DELETE {path}") == [None]


def test_what_is_not_empty_is_said(api: FakeApi) -> None:
    detail = "The zone zone-1 is not empty: pod pod-1 is in it. Delete what is in it first."
    api.on("DELETE /v1/zones/zone-1", problem(409, "Conflict", detail))
    done = hostler("zone", "delete", "zone-1")
    assert (done.exit_code, done.stderr) == (1, f"hostler: {detail}\n")


def test_a_name_that_is_none_is_not_sent(api: FakeApi) -> None:
    done = hostler("zone", "rename", "a/b", "new")
    assert done.exit_code == 2
    assert api.requests == []


def test_an_empty_list_is_a_header(api: FakeApi) -> None:
    api.on("GET /v1/zones?limit=1000", items())
    header = ["NAME", "ALLOCATION", "STATE", "OOBM", "ENABLED"]
    assert hostler("zone", "list").stdout.split() == header
    assert json.loads(hostler("zone", "list", "--json").stdout) == []


def test_json_is_what_the_api_gave(api: FakeApi) -> None:
    newer = {**CLUSTER.model_dump(mode="json"), "a field of a later version": [1]}
    api.on("GET /v1/clusters?limit=1000", ok({"items": [newer]}))
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
        ["oobm", "enabled", "True"],
    ]
