import json

from contracts.hosts import Event
from contracts.operations import OperationKind
from contracts.states import Phase
from tests.cli.answers import operation, view
from tests.cli.conftest import Answer, FakeApi, hostler, items, ok
from tests.samples import WHEN

FAILED = operation("FAILED", error="kvm-1 can't be evacuated:\nvm-1: no room")


def test_list(api: FakeApi) -> None:
    api.on("GET /v1/operations", items(operation(), FAILED))
    header, running, failed = hostler("operation", "list").stdout.splitlines()
    assert header.split()[:3] == ["KIND", "SUBJECT", "STATUS"]
    assert running.split()[:3] == ["maintenance", "kvm-1", "RUNNING"]
    assert failed.rstrip().endswith("kvm-1 can't be evacuated: vm-1: no room")


def test_list_of_a_kind(api: FakeApi) -> None:
    added = operation("COMPLETED", OperationKind.ADDITION)
    api.on("GET /v1/operations?kind=addition", items(added))
    done = hostler("operation", "list", "--kind", "addition", "--json")
    assert json.loads(done.stdout) == [added.model_dump(mode="json")]


def test_an_unknown_kind(api: FakeApi) -> None:
    done = hostler("operation", "show", "demolition", "kvm-1")
    assert done.exit_code == 2
    assert "'maintenance', 'addition'" in done.stderr
    assert api.requests == []


def test_show(api: FakeApi) -> None:
    running = operation(details=view(Phase.EVACUATING, "3 VMs to move"))
    api.on("GET /v1/operations/maintenance/kvm-1", ok(running))
    shown = hostler("operation", "show", "maintenance", "kvm-1").stdout
    assert "RUNNING" in shown
    assert "3 VMs to move" in shown
    done = hostler("operation", "show", "maintenance", "kvm-1", "--json")
    assert json.loads(done.stdout) == running.model_dump(mode="json")


def test_cancel(api: FakeApi) -> None:
    route = "DELETE /v1/operations/maintenance/kvm-1"
    api.on(route, Answer(202, operation()))
    done = hostler("operation", "cancel", "maintenance", "kvm-1")
    assert done.exit_code == 0
    assert "hostler operation show maintenance kvm-1" in done.stdout
    assert len(api.bodies(route)) == 1


def test_events(api: FakeApi) -> None:
    event = Event(
        id=7,
        at=WHEN,
        kind="resource_state",
        subject="host/kvm-1",
        message="Enabled -> PrepareForMaintenance: new RAM",
        operation="maintenance/kvm-1",
        actor="token:admin",
    )
    api.on("GET /v1/events?subject=host%2Fkvm-1&limit=5", items(event))
    arguments = ("event", "list", "--subject", "host/kvm-1", "--limit", "5")
    _, row = hostler(*arguments).stdout.splitlines()
    assert row.startswith("7   2026-11-24 09:30:00 UTC")
    assert "Enabled -> PrepareForMaintenance: new RAM" in row
    shown = json.loads(hostler(*arguments, "--json").stdout)
    assert shown == [event.model_dump(mode="json")]


def test_events_that_are_sought(api: FakeApi) -> None:
    api.on(
        "GET /v1/events?kind=host.state&operation=maintenance%2Fkvm-1&actor=token%3Aolga"
        "&since=2026-11-24T08%3A00%3A00Z&until=2026-11-25T00%3A00%3A00%2B01%3A00&before=9",
        items(),
    )
    done = hostler(
        *("event", "list", "--kind", "host.state", "--operation", "maintenance/kvm-1"),
        *("--actor", "token:olga", "--since", "2026-11-24T08:00:00Z"),
        *("--until", "2026-11-25T00:00:00+01:00", "--before", "9"),
    )
    assert done.exit_code == 0


def test_an_operation_under_a_workflow_id_of_its_own(api: FakeApi) -> None:
    api.on("GET /v1/operations/maintenance/my%2Fown%20id", ok(operation()))
    assert hostler("operation", "show", "maintenance", "my/own id").exit_code == 0
