"""How every command fails, and where it finds the API and the token."""

import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from contracts.hosts import Zone
from contracts.states import AllocationState
from tests.cli.conftest import (
    TOKEN,
    UNAVAILABLE,
    Answer,
    FakeApi,
    hostler,
    items,
    ok,
    problem,
    run,
)
from tests.ports import free_port

ZONES = items(Zone(name="zone-1", allocation_state=AllocationState.ENABLED))


def assert_fails(done: subprocess.CompletedProcess[str], code: int, *said: str) -> None:
    """One line on stderr that says `said`, nothing on stdout."""
    assert done.returncode == code, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("hostler: ")
    for text in said:
        assert text in line
    assert TOKEN not in line


def test_unknown_host(api: FakeApi) -> None:
    api.on(
        "POST /v1/hosts/kvm-9/maintenance",
        problem(404, "NotFound", "There is no host kvm-9. `hostler host list` shows them."),
    )
    done = run("maintenance", "enter", "kvm-9")
    assert_fails(done, 1, "There is no host kvm-9. `hostler host list` shows them.")


def test_a_maintenance_that_runs_already(api: FakeApi) -> None:
    detail = "kvm-1 is held by maintenance/kvm-1 (maintenance: new RAM)."
    api.on(
        "POST /v1/hosts/kvm-1/maintenance",
        problem(409, "LeaseHeld", detail, operation="/v1/operations/maintenance/kvm-1"),
    )
    assert_fails(run("maintenance", "enter", "kvm-1"), 1, detail)


def test_empty_name_is_refused_before_anything_is_sent(api: FakeApi) -> None:
    done = run("maintenance", "enter", "")
    assert_fails(done, 2, "The input of HostMaintenance is not valid: host: must not be empty.")
    assert api.requests == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("host", "show", ""),
        ("host", "show", "../zones"),
        ("zone", "enable", "a/b"),
        ("maintenance", "status", "a?b"),
        ("maintenance", "resolve", "kvm-1", "", "retry"),
        ("operation", "show", "maintenance", ""),
    ],
)
def test_a_name_that_is_none_is_wrong_usage(api: FakeApi, arguments: tuple[str, ...]) -> None:
    done = hostler(*arguments)
    assert done.exit_code == 2
    assert "Error: Invalid value for" in done.stderr
    assert api.requests == []


def test_what_the_api_calls_invalid_is_wrong_usage(api: FakeApi) -> None:
    detail = "The input of Zone is not valid: name: must not be empty."
    api.on("POST /v1/zones", problem(422, "InvalidInput", detail, errors=[]))
    assert_fails(run("zone", "create", ""), 2, detail)


def test_wrong_token(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTLER_TOKEN", "wrong-canary")
    done = run("host", "list")
    assert_fails(done, 1, "The token is not known.")
    assert "wrong-canary" not in done.stderr


def test_the_api_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("HOSTLER_API_HOST", "127.0.0.1")
    monkeypatch.setenv("HOSTLER_API_PORT", str(port))
    monkeypatch.setenv("HOSTLER_TOKEN", TOKEN)
    done = run("host", "list")
    assert_fails(
        done,
        1,
        f"The API at http://127.0.0.1:{port} does not answer",
        "Connection refused",
        "`hostler up`",
        "HOSTLER_API_URL",
    )


def test_an_api_that_says_unavailable(api: FakeApi) -> None:
    api.on("GET /v1/hosts?limit=1000", UNAVAILABLE)
    assert_fails(run("host", "list"), 1, "Temporal does not answer.")


def test_unknown_option(api: FakeApi) -> None:
    done = run("maintenance", "enter", "kvm-1", "--force")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "Error: No such option: --force"
    assert done.stdout == ""
    assert api.requests == []


def test_unknown_command() -> None:
    done = run("maintenence", "enter", "kvm-1")
    assert done.returncode == 2
    assert "No such command 'maintenence'" in done.stderr.splitlines()[-1]


def test_a_detail_of_many_lines_becomes_one(api: FakeApi) -> None:
    detail = "kvm-1 can't be evacuated:\nvm-1: no room\nvm-2: local disk\nRemove these blockers."
    api.on("DELETE /v1/hosts/kvm-1/maintenance", problem(409, "EvacuationImpossible", detail))
    done = run("maintenance", "leave", "kvm-1")
    assert_fails(
        done,
        1,
        "kvm-1 can't be evacuated: vm-1: no room; vm-2: local disk; Remove these blockers.",
    )


@pytest.mark.parametrize(
    "answer",
    [
        Answer(502, "<html>Bad Gateway</html>", "text/html"),
        Answer(500, {"detail": ["of", "another", "program"]}),
        Answer(307, ""),
        Answer(200, "<html>Welcome</html>", "text/html"),
        Answer(200, [1, 2]),
        Answer(200, {"items": [{"name": "zone-1", "colour": "red"}]}),
    ],
)
def test_something_else_answers(api: FakeApi, answer: Answer) -> None:
    api.on("GET /v1/zones?limit=1000", answer)
    assert_fails(run("zone", "list"), 1, api.url, "Check HOSTLER_API_URL")


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8480", "ftp://x", "http://", "http://me:canary-pw@127.0.0.1", "http://x:y"],
)
def test_a_url_that_is_none(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("HOSTLER_TOKEN", TOKEN)
    monkeypatch.setenv("HOSTLER_API_URL", url or " ")
    done = run("zone", "list")
    assert_fails(done, 2, "HOSTLER_API_URL is not a URL")
    assert "canary-pw" not in done.stderr


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTLER_API_PORT", "none")
    assert_fails(run("zone", "list"), 2, "HOSTLER_API_PORT")


def test_no_token(api: FakeApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HOSTLER_TOKEN")
    done = run("zone", "list")
    assert_fails(done, 1, "There is no token", str(tmp_path / "home/admin-token"), "HOSTLER_TOKEN")
    assert api.requests == []


@pytest.mark.parametrize("token", ["two words", "b\u00e9b\u00e9-canary", "a\nb"])
def test_a_token_that_is_none(api: FakeApi, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("HOSTLER_TOKEN", token)
    done = run("zone", "list")
    assert_fails(done, 1, "What is in HOSTLER_TOKEN is not a token.")
    assert "canary" not in done.stderr
    assert api.requests == []


def test_the_home_has_the_token_and_the_settings_have_the_address(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HOSTLER_TOKEN")
    monkeypatch.delenv("HOSTLER_API_URL")
    monkeypatch.setenv("HOSTLER_API_PORT", api.url.rpartition(":")[2])
    (tmp_path / "home").mkdir()
    (tmp_path / "home/admin-token").write_text(f"{TOKEN}\n")
    api.on("GET /v1/zones?limit=1000", ZONES)
    assert hostler("zone", "list").exit_code == 0


def test_this_machine_needs_no_proxy(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed.getsockname()[1]}")
    api.on("GET /v1/zones?limit=1000", ZONES)
    assert run("zone", "list").returncode == 0


def test_a_url_with_a_path(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTLER_API_URL", f"{api.url}/hostler/")
    api.on("GET /hostler/v1/zones?limit=1000", ZONES)
    assert hostler("zone", "list").exit_code == 0


def test_parts_of_paths_are_quoted(api: FakeApi) -> None:
    route = "POST /v1/hosts/kvm-1/maintenance/vms/a%20b%3F%2F..%23%25"
    api.on(route, Answer(204))
    done = hostler("maintenance", "resolve", "kvm-1", "a b?/..#%", "retry")
    assert done.exit_code == 0
    assert api.bodies(route) == [{"action": "retry"}]


def test_text_of_the_api_can_not_steer_the_terminal(api: FakeApi) -> None:
    api.on("GET /v1/hosts/kvm-1", problem(404, "NotFound", "gone\x1b[2J [red]now[/red]"))
    done = hostler("host", "show", "kvm-1")
    assert done.stderr == "hostler: gone\N{REPLACEMENT CHARACTER}[2J [red]now[/red]\n"


def test_help_loads_neither_drivers_nor_temporal() -> None:
    heavy = "{'libvirt', 'asyncssh', 'temporalio', 'sqlalchemy', 'fastapi', 'workers.processes'}"
    loaded = f"import sys, cli.main; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_ok_is_silent_on_stderr(api: FakeApi) -> None:
    api.on(
        "GET /v1/zones/zone-1", ok(Zone(name="zone-1", allocation_state=AllocationState.ENABLED))
    )
    done = run("zone", "show", "zone-1")
    assert (done.returncode, done.stderr) == (0, "")


def test_it_tells_its_version() -> None:
    done = hostler("--version")
    assert (done.exit_code, done.output) == (0, f"hostler {version('hostler')}\n")
