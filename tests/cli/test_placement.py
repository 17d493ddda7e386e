import json

import pytest

from contracts.evacuation import AffinityGroup, AffinityKind, VmPolicy
from tests.cli.conftest import NOT_FOUND, Answer, FakeApi, hostler, items, ok, problem
from tests.samples import host

TAGS = "PUT /v1/hosts/kvm-1/tags"
VMS = "/v1/clusters/cluster-1/vms"
GROUPS = "/v1/clusters/cluster-1/affinity-groups"
POLICY = VmPolicy(vm="vm-1", pinned=True, reason="license", tags=frozenset({"ssd", "gpu"}))
PAIR = AffinityGroup(
    name="db", kind=AffinityKind.ANTI_AFFINITY, members=frozenset({"db-2", "db-1"})
)
FREE = {"pinned": False, "reason": "", "tags": []}


@pytest.mark.parametrize(
    ("tags", "said"), [(("ssd", "gpu"), "gpu, ssd"), (("ssd",), "ssd"), ((), "none")]
)
def test_the_tags_of_a_host(api: FakeApi, tags: tuple[str, ...], said: str) -> None:
    api.on(TAGS, ok(host(tags=frozenset(tags))))
    done = hostler("host", "tag", "kvm-1", *tags)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"The tags of kvm-1: {said}.\n"
    assert api.bodies(TAGS) == [{"tags": [*tags]}]


def test_a_host_is_shown_with_its_tags(api: FakeApi) -> None:
    look = "GET /v1/hosts/kvm-1"
    api.on(look, ok(host(tags=frozenset({"ssd", "gpu"}), secured=True)), ok(host()))
    lines = [line.split() for line in hostler("host", "show", "kvm-1").stdout.splitlines()]
    assert ["tags", "gpu,", "ssd"] in lines
    assert ["secured", "True"] in lines
    assert "tags" not in hostler("host", "show", "kvm-1").stdout


def test_list_policies(api: FakeApi) -> None:
    api.on(f"GET {VMS}", items(POLICY, VmPolicy(vm="vm-2", tags=frozenset({"ssd"}))))
    lines = [
        line.split() for line in hostler("vm", "policy", "list", "cluster-1").stdout.split("\n")
    ]
    assert lines == [
        ["VM", "PINNED", "TAGS", "REASON"],
        ["vm-1", "yes", "gpu,", "ssd", "license"],
        ["vm-2", "ssd"],
        [],
    ]


def test_show_a_policy(api: FakeApi) -> None:
    api.on(f"GET {VMS}/vm-1/policy", ok(POLICY), ok(VmPolicy(vm="vm-1")))
    lines = hostler("vm", "policy", "show", "cluster-1", "vm-1").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["vm", "vm-1"],
        ["pinned", "yes"],
        ["tags", "gpu,", "ssd"],
        ["reason", "license"],
    ]
    lines = hostler("vm", "policy", "show", "cluster-1", "vm-1").stdout.splitlines()
    assert [line.split() for line in lines] == [["vm", "vm-1"], ["pinned", "no"]]


@pytest.mark.parametrize(
    ("before", "options", "body"),
    [
        (NOT_FOUND, ("--pinned",), {**FREE, "pinned": True}),
        (NOT_FOUND, ("--tag", "ssd", "--tag", "gpu"), {**FREE, "tags": ["ssd", "gpu"]}),
        (
            ok(POLICY),
            ("--no-pinned",),
            {"pinned": False, "reason": "license", "tags": ["gpu", "ssd"]},
        ),
        (
            ok(POLICY),
            ("--reason", "", "--tag", "hdd"),
            {"pinned": True, "reason": "", "tags": ["hdd"]},
        ),
        (ok(POLICY), ("--no-tags",), {"pinned": True, "reason": "license", "tags": []}),
    ],
)
def test_what_is_not_given_stays(
    api: FakeApi, before: Answer, options: tuple[str, ...], body: dict[str, object]
) -> None:
    route = f"PUT {VMS}/vm-1/policy"
    api.on(f"GET {VMS}/vm-1/policy", before)
    api.on(route, ok(POLICY))
    done = hostler("vm", "policy", "set", "cluster-1", "vm-1", *options)
    assert done.exit_code == 0, done.output
    assert api.bodies(route) == [body]


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (POLICY, "vm-1 stays where it is: it blocks every evacuation of its host.\n"),
        (
            POLICY.model_copy(update={"pinned": False}),
            "vm-1 moves only to hosts tagged gpu, ssd.\n",
        ),
        (VmPolicy(vm="vm-1", reason="none"), "vm-1 moves to any host that can run it.\n"),
    ],
)
def test_what_a_policy_means_is_said(api: FakeApi, stored: VmPolicy, said: str) -> None:
    api.on(f"PUT {VMS}/vm-1/policy", ok(stored))
    assert hostler("vm", "policy", "set", "cluster-1", "vm-1", "--pinned").stdout == said


def test_only_an_absent_policy_counts_as_none(api: FakeApi) -> None:
    api.on(f"GET {VMS}/vm-1/policy", problem(503, "Unavailable", "It is locked."))
    done = hostler("vm", "policy", "set", "cluster-1", "vm-1", "--pinned")
    assert (done.exit_code, done.stderr) == (1, "hostler: It is locked.\n")
    assert [request.method for request in api.requests] == ["GET"]


@pytest.mark.parametrize("options", [(), ("--tag", "ssd", "--no-tags")])
def test_a_policy_that_says_nothing_or_both(api: FakeApi, options: tuple[str, ...]) -> None:
    done = hostler("vm", "policy", "set", "cluster-1", "vm-1", *options)
    assert done.exit_code == 2
    assert "--no-tags" in done.stderr
    assert api.requests == []


def test_clear_a_policy(api: FakeApi) -> None:
    api.on(f"DELETE {VMS}/vm%201/policy", Answer(204))
    done = hostler("vm", "policy", "clear", "cluster-1", "vm 1")
    assert done.exit_code == 0, done.output
    assert done.stdout == "vm 1 moves to any host that can run it.\n"


def test_list_groups(api: FakeApi) -> None:
    api.on(f"GET {GROUPS}", items(PAIR))
    header, row = hostler("affinity", "list", "cluster-1").stdout.splitlines()
    assert header.split() == ["NAME", "KIND", "MEMBERS"]
    assert row.split() == ["db", "anti-affinity", "db-1,", "db-2"]


@pytest.mark.parametrize(
    ("kind", "place"),
    [(AffinityKind.AFFINITY, "one host"), (AffinityKind.ANTI_AFFINITY, "a different host each")],
)
def test_set_a_group(api: FakeApi, kind: AffinityKind, place: str) -> None:
    route = f"PUT {GROUPS}/db"
    api.on(route, ok(PAIR.model_copy(update={"kind": kind})))
    done = hostler("affinity", "set", "cluster-1", "db", "--kind", kind, "db-1", "db-2")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"Evacuations move db-1, db-2 to {place}.\n"
    assert api.bodies(route) == [{"kind": kind, "members": ["db-1", "db-2"]}]


def test_a_group_that_is_refused(api: FakeApi) -> None:
    api.on(f"PUT {GROUPS}/db", problem(409, "Conflict", "db-1, db-2 would belong on one host."))
    done = hostler("affinity", "set", "cluster-1", "db", "--kind", "affinity", "db-1", "db-2")
    assert (done.exit_code, done.stderr) == (1, "hostler: db-1, db-2 would belong on one host.\n")


def test_a_group_without_kind_or_members(api: FakeApi) -> None:
    for arguments in (("db-1", "db-2"), ("--kind", "affinity"), ("--kind", "near", "db-1")):
        assert hostler("affinity", "set", "cluster-1", "db", *arguments).exit_code == 2
    assert api.requests == []


def test_delete_a_group(api: FakeApi) -> None:
    api.on(f"DELETE {GROUPS}/db", Answer(204))
    done = hostler("affinity", "delete", "cluster-1", "db")
    assert (done.exit_code, done.stdout) == (0, "The group db is deleted.\n")


def test_json_is_what_the_api_gave(api: FakeApi) -> None:
    newer = {**POLICY.model_dump(mode="json"), "a field of a later version": [1]}
    api.on(f"GET {VMS}", ok({"items": [newer]}))
    api.on(f"GET {VMS}/vm-1/policy", ok(newer))
    api.on(f"GET {GROUPS}", items(PAIR))
    show = hostler("vm", "policy", "show", "cluster-1", "vm-1", "--json")
    assert json.loads(show.stdout) == newer
    assert json.loads(hostler("vm", "policy", "list", "cluster-1", "--json").stdout) == [newer]
    groups = json.loads(hostler("affinity", "list", "cluster-1", "--json").stdout)
    assert groups == [PAIR.model_dump(mode="json")]
