"""`hostler host import`: what it reads, what it shows, how it ends."""

import base64
import hashlib
import hmac
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli import host_import
from cli.host_import import read_file
from cli.known_hosts import KnownHosts
from contracts.errors import InvalidInput
from contracts.host_import import (
    HostImportResult,
    HostImportView,
    ImportedHost,
    ImportState,
    RunningAddition,
)
from contracts.operations import OperationKind
from contracts.preflight import Finding, Severity
from contracts.states import Phase
from tests.cli.answers import operation
from tests.cli.conftest import (
    NOT_FOUND,
    UNAVAILABLE,
    Answer,
    FakeApi,
    Terminal,
    hostler,
    ok,
    problem,
)
from tests.samples import FINGERPRINT, WHEN

SECRET = "pw-5b1e"
POST, VIEW, SHOW = (
    "POST /v1/imports",
    "GET /v1/imports/rack-7",
    "GET /v1/operations/import/rack-7",
)
KIND = OperationKind.IMPORT
BLOB = b"\x00\x00\x00\x0bssh-ed25519" + b"k" * 36
KEY = base64.b64encode(BLOB).decode()
KEY_PRINT = "SHA256:" + base64.b64encode(hashlib.sha256(BLOB).digest()).decode().rstrip("=")

ADDED = ImportedHost(host="kvm-1", state=ImportState.ADDED)
PRESENT = ImportedHost(host="kvm-2", state=ImportState.PRESENT)
FAILED = ImportedHost(host="kvm-3", state=ImportState.FAILED, error="no route")


def started(status: str = "RUNNING", *hosts: ImportedHost, error: str | None = None) -> Any:
    result = HostImportResult(name="rack-7", hosts=hosts) if hosts else None
    return operation(status, KIND, "rack-7", result, error)


def view(*failed: ImportedHost, **more: Any) -> Answer:
    counts = {ImportState.WAITING: 1, ImportState.ADDING: 1, ImportState.ADDED: 1}
    if failed:
        counts[ImportState.FAILED] = len(failed)
    return ok(
        HostImportView(
            **{
                "name": "rack-7",
                "message": "",
                "since": WHEN,
                "parallel": 2,
                "total": 3 + len(failed),
                "counts": counts,
                "adding": ("kvm-2",),
                "failed": failed,
                "additions": (RunningAddition(host="kvm-2", phase=Phase.INSTALLING),),
                "workflow_id": "import/rack-7",
                "run_id": "0198-run",
                **more,
            }
        )
    )


@pytest.fixture
def hosts_file(tmp_path: Path) -> Path:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "root").write_text(f"{SECRET}\n")
    (tmp_path / "key").write_text("-----BEGIN KEY-----\nabc\n-----END KEY-----\n")
    path = tmp_path / "rack-7.yaml"
    path.write_text(
        "defaults:\n"
        "  cluster: cluster-1\n"
        "  password_file: secrets/root\n"
        "hosts:\n"
        "  - {name: kvm-1, address: 198.18.0.11, host_key_sha256: '" + FINGERPRINT + "'}\n"
        "  - name: kvm-2\n"
        "    address: 198.18.0.12\n"
        "    ssh_port: 2222\n"
        "    enabled: false\n"
        "    private_key_file: key\n"
    )
    return path


def test_the_file_is_sent_and_everything_reported(api: FakeApi, hosts_file: Path) -> None:
    api.on(POST, Answer(202, started()))
    api.on(VIEW, view(), view(FAILED), view(FAILED), NOT_FOUND)
    api.on(SHOW, ok(started("COMPLETED", ADDED, PRESENT, FAILED)))
    done = hostler("host", "import", str(hosts_file), "--parallel", "2")
    assert done.exit_code == 1
    assert done.stdout.splitlines() == [
        "The import rack-7 of 2 hosts has started.",
        "rack-7: 1 of 3 hosts: 1 waiting, 1 adding, 1 added",
        "rack-7: 2 of 4 hosts: 1 waiting, 1 adding, 1 added, 1 failed",
        "kvm-3: failed: no route",
        "HOST   RESULT         REASON  ",
        "kvm-1  added                  ",
        "kvm-2  there already          ",
        "kvm-3  failed         no route",
        "3 hosts: 1 added, 1 there already, 1 failed.",
    ]
    assert done.stderr == (
        "hostler: 1 of 3 hosts were not added. Remove the causes, and import the same file again: "
        "it adds what is left.\n"
    )
    assert api.bodies(POST) == [
        {
            "name": "rack-7",
            "parallel": 2,
            "defaults": {"cluster": "cluster-1", "password": SECRET},
            "hosts": [
                {"name": "kvm-1", "address": "198.18.0.11", "host_key_sha256": FINGERPRINT},
                {
                    "name": "kvm-2",
                    "address": "198.18.0.12",
                    "ssh_port": 2222,
                    "enabled": False,
                    "private_key": "-----BEGIN KEY-----\nabc\n-----END KEY-----\n",
                },
            ],
        }
    ]


def test_all_went_well(api: FakeApi, hosts_file: Path) -> None:
    api.on(POST, Answer(202, started()))
    api.on(VIEW, NOT_FOUND)
    api.on(SHOW, ok(started("COMPLETED", ADDED, PRESENT)))
    done = hostler("host", "import", str(hosts_file))
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.endswith("2 hosts: 1 added, 1 there already.\n")
    assert api.bodies(POST)[0]["parallel"] == 20


def test_one_that_runs_already_is_watched(api: FakeApi, hosts_file: Path) -> None:
    link = "/v1/operations/import/rack-7"
    held = problem(409, "LeaseHeld", "It runs.", details={"operation": link}, operation=link)
    api.on(POST, held)
    api.on(VIEW, view(), UNAVAILABLE, NOT_FOUND)
    api.on(SHOW, ok(started()), ok(started("COMPLETED", ADDED)))
    done = hostler("host", "import", str(hosts_file))
    assert done.exit_code == 0, done.output
    assert "The import rack-7 runs already; what the file says now plays no part" in done.stdout
    assert "1 hosts: 1 added." in done.stdout


def test_another_conflict_is_an_error(api: FakeApi, hosts_file: Path) -> None:
    api.on(POST, problem(409, "Conflict", "Something else."))
    done = hostler("host", "import", str(hosts_file))
    assert (done.exit_code, done.stderr) == (1, "hostler: Something else.\n")


def test_what_the_api_refuses_is_usage(api: FakeApi, hosts_file: Path) -> None:
    api.on(POST, problem(422, "InvalidInput", "The input is not valid: hosts[1].name: missing."))
    done = hostler("host", "import", str(hosts_file))
    assert done.exit_code == 2
    assert "hosts[1].name" in done.stderr
    assert SECRET not in done.output


def test_one_that_was_cancelled(api: FakeApi, hosts_file: Path) -> None:
    api.on(POST, Answer(202, started()))
    api.on(VIEW, NOT_FOUND)
    api.on(SHOW, ok(started("CANCELED")))
    done = hostler("host", "import", str(hosts_file))
    assert done.exit_code == 1
    assert done.stderr == "hostler: The import of rack-7 was cancelled.\n"


def test_without_waiting_and_under_another_name(api: FakeApi, hosts_file: Path) -> None:
    api.on(POST, Answer(202, started()))
    done = hostler("host", "import", str(hosts_file), "--name", "monday", "--no-wait")
    assert done.exit_code == 0, done.output
    assert "hostler operation show import monday" in done.stdout
    assert api.bodies(POST)[0]["name"] == "monday"
    assert len(api.requests) == 1


def test_a_dry_run_reports_every_finding(api: FakeApi, hosts_file: Path) -> None:
    finding = Finding(
        code="clock-skew", severity=Severity.ERROR, found="Its clock is off.", remedy="Set it."
    )
    broken = ImportedHost(
        host="kvm-1", state=ImportState.FAILED, error="Its clock is off.", findings=(finding,)
    )
    fine = ImportedHost(host="kvm-2", state=ImportState.ADDABLE)
    api.on(POST, Answer(202, started()))
    api.on("GET /v1/imports/rack-7-dry-run", NOT_FOUND)
    api.on(f"{SHOW}-dry-run", ok(started("COMPLETED", broken, fine)))
    done = hostler("host", "import", str(hosts_file), "--dry-run")
    (body,) = api.bodies(POST)
    assert body["name"] == "rack-7-dry-run"
    assert [host["dry_run"] for host in body["hosts"]] == [True, True]
    assert "kvm-2  can be added" in done.stdout
    assert "kvm-1: error [clock-skew] Its clock is off. Set it." in done.stdout
    assert done.stderr == "hostler: 1 of 2 hosts can't be added like this.\n"
    assert done.exit_code == 1


def test_what_the_file_says_of_a_host_turns_no_dry_run_into_an_addition(
    api: FakeApi, hosts_file: Path
) -> None:
    hosts_file.write_text(hosts_file.read_text() + "    dry_run: false\n")
    api.on(POST, Answer(202, started()))
    hostler("host", "import", str(hosts_file), "--dry-run", "--no-wait")
    assert [host["dry_run"] for host in api.bodies(POST)[0]["hosts"]] == [True, True]
    hostler("host", "import", str(hosts_file), "--no-wait")
    assert "dry_run" not in api.bodies(POST)[1]["hosts"][0]


def test_a_key_that_waits_to_be_accepted_is_told_once_with_its_command(
    api: FakeApi, hosts_file: Path
) -> None:
    command = f"hostler host accept-key kvm-2 {FINGERPRINT}"
    asking = RunningAddition(
        host="kvm-2", phase=Phase.QUESTION, host_key_sha256=FINGERPRINT, command=command
    )
    api.on(POST, Answer(202, started()))
    api.on(VIEW, view(), view(additions=(asking,)), view(additions=(asking,)), NOT_FOUND)
    api.on(SHOW, ok(started("COMPLETED", ADDED)))
    done = hostler("host", "import", str(hosts_file))
    assert done.stdout.count(f"kvm-2 shows the key {FINGERPRINT}.") == 1
    assert done.stdout.count(command) == 1


def test_on_a_terminal_there_is_one_view(api: FakeApi, hosts_file: Path) -> None:
    api.on(POST, Answer(202, started()))
    api.on(VIEW, *[view()] * 3, view(FAILED), NOT_FOUND)
    api.on(SHOW, ok(started("COMPLETED", ADDED, FAILED)))
    terminal = Terminal("host", "import", str(hosts_file))
    terminal.until("1 of 3 hosts: 1 waiting, 1 adding, 1 added")
    terminal.until("Installing")
    assert terminal.end() == 1
    assert "kvm-3: failed: no route" in terminal.shown
    assert "2 hosts: 1 added, 1 failed." in terminal.shown


def test_ctrl_c_ends_the_command_alone(api: FakeApi, hosts_file: Path) -> None:
    api.on(POST, Answer(202, started()))
    api.on(VIEW, view())
    terminal = Terminal("host", "import", str(hosts_file))
    terminal.until("1 of 3 hosts")
    terminal.interrupt()
    assert terminal.end() == 130
    assert "The import rack-7 goes on: hostler operation show import rack-7" in terminal.shown


def test_rows_of_a_small_terminal_are_not_exceeded() -> None:
    bars = host_import._Bars  # noqa: SLF001 - the rows are seen from inside alone
    from rich.progress import Progress

    progress = Progress(console=Console(width=80, height=10, file=open(os.devnull, "w")))  # noqa: SIM115, PTH123
    shown = bars(progress)
    many = tuple(RunningAddition(host=f"kvm-{number}") for number in range(50))
    answer = view(additions=many).body
    assert isinstance(answer, HostImportView)
    shown.show(answer)
    assert len(progress.tasks) == 1 + 10 - host_import._ROWS_KEPT  # noqa: SLF001
    shown.show(answer.model_copy(update={"additions": many[2:4]}))
    assert [task.description for task in progress.tasks] == ["rack-7", "kvm-2", "kvm-3"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("hosts: [", "line 1 is no YAML: "),
        ("- a\n", "lists no hosts"),
        ("hosts: 5", "hosts must be a list"),
        ("hosts: [a]", "hosts must be a list of hosts"),
        ("defaults: []\nhosts: []", None),
        ("defaults: [a]\nhosts: []", "defaults must be fields"),
        ("host: []", "there is no such field: host"),
        ("hosts: [{password: canary}]", "hosts[0].password: a list of hosts is no place for it"),
        ("defaults: {private_key: canary}\nhosts: []", "name that as private_key_file"),
        ("hosts: [{}, {password_file: nowhere}]", "hosts[1].password_file: nowhere can't be read"),
        ("hosts: [{password_file: 5}]", "hosts[0].password_file must be the name of a file"),
        ("known_hosts: nowhere\nhosts: []", "known_hosts: nowhere can't be read"),
        ("hosts: [!!python/object:os.system {}]", "is no YAML"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, text: str, says: str | None) -> None:
    path = tmp_path / "hosts.yaml"
    path.write_text(text)
    if says is None:
        assert read_file(path) == {"defaults": {}, "hosts": []}
        return
    with pytest.raises(InvalidInput) as caught:
        read_file(path)
    assert says in str(caught.value)
    assert "canary" not in str(caught.value)


def test_what_is_no_text_is_not_shown(tmp_path: Path, hosts_file: Path) -> None:
    (tmp_path / "secrets" / "root").write_bytes(b"canary\xff")
    with pytest.raises(InvalidInput) as caught:
        read_file(hosts_file)
    assert "no text in UTF-8" in str(caught.value)
    assert "canary" not in str(caught.value)


def test_what_looks_like_a_date_is_text(tmp_path: Path) -> None:
    path = tmp_path / "hosts.yaml"
    path.write_text("hosts: [{name: 2026-11-25}]")
    assert read_file(path)["hosts"] == [{"name": "2026-11-25"}]


def test_fingerprints_come_from_known_hosts(tmp_path: Path, hosts_file: Path) -> None:
    salt = b"s" * 20
    hashed = hmac.digest(salt, b"[198.18.0.12]:2222", "sha1")
    (tmp_path / "known").write_text(
        "# a comment\n"
        "198.18.0.11 ssh-ed25519 AAAAother\n"
        f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(hashed).decode()} "
        f"ssh-ed25519 {KEY} root@kvm-2\n"
    )
    hosts_file.write_text("known_hosts: known\n" + hosts_file.read_text())
    first, second = read_file(hosts_file)["hosts"]
    assert first["host_key_sha256"] == FINGERPRINT  # its own comes first
    assert second["host_key_sha256"] == KEY_PRINT


@pytest.mark.parametrize(
    ("line", "names", "port", "found"),
    [
        ("kvm-1,198.18.0.1 ssh-ed25519 {key}", ["198.18.0.1"], 22, True),
        ("kvm-1,198.18.0.1 ssh-ed25519 {key}", ["198.18.0.9", "kvm-1"], 22, True),
        ("kvm-1 ssh-ed25519 {key}", ["kvm-1"], 2222, False),
        ("[kvm-1]:2222 ssh-ed25519 {key} comment", ["kvm-1"], 2222, True),
        ("* ssh-ed25519 {key}", ["kvm-1"], 22, False),
        ("@revoked kvm-1 ssh-ed25519 {key}", ["kvm-1"], 22, False),
        ("@cert-authority kvm-1 ssh-ed25519 {key}", ["kvm-1"], 22, False),
        ("kvm-1 ssh-dss {key}", ["kvm-1"], 22, False),
        ("kvm-1 ssh-ed25519 n?t-base64", ["kvm-1"], 22, False),
        ("|1|broken ssh-ed25519 {key}", ["kvm-1"], 22, False),
        ("kvm-1 ssh-ed25519", ["kvm-1"], 22, False),
        (
            "kvm-1 ssh-rsa AAAA\nkvm-1 ssh-ed25519 {key}\nkvm-1 ecdsa-sha2-nistp256 AAAA",
            ["kvm-1"],
            22,
            True,
        ),
    ],
)
def test_the_key_that_a_host_shows(line: str, names: list[str], port: int, found: bool) -> None:
    known = KnownHosts(line.format(key=KEY) + "\n")
    assert known.fingerprint(names, port) == (KEY_PRINT if found else None)
