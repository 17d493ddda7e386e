import json
import signal
from pathlib import Path
from typing import Any

import pytest

from contracts.addition import HostAdditionResult, HostAdditionStatus
from contracts.host_checks import HostSighting
from contracts.host_status import Seen
from contracts.hosts import HostUsage
from contracts.operations import Operation, OperationKind
from contracts.preflight import Finding, Findings
from contracts.preflight_rules import error, warning
from contracts.states import HostStatus, Phase, ResourceState, TlsState
from tests.cli.answers import operation
from tests.cli.conftest import (
    NOT_FOUND,
    Answer,
    FakeApi,
    Terminal,
    hostler,
    items,
    ok,
    problem,
    process,
)
from tests.samples import FACTS, FINGERPRINT, WHEN, host

SECRET = "canary-password-91ab"
ADD = ("host", "add", "kvm-1", "--cluster", "cluster-1", "--address", "198.18.0.11")
POST = "POST /v1/hosts"
LOOK = "GET /v1/operations/addition/kvm-1"
KEY = "POST /v1/hosts/kvm-1/host-key"
CHECK = "POST /v1/hosts/kvm-1/check"


def addition(status: str = "RUNNING", details: Any = None, error: str | None = None) -> Operation:
    return operation(status, OperationKind.ADDITION, details=details, error=error)


def running(phase: Phase, message: str, key: str | None = None) -> Answer:
    return ok(
        addition(
            details=HostAdditionStatus(
                name="kvm-1", phase=phase, message=message, host_key_sha256=key
            )
        )
    )


ADDED = ok(
    addition(
        "COMPLETED",
        HostAdditionResult(
            name="kvm-1",
            resource_state=ResourceState.ENABLED,
            host_key_sha256=FINGERPRINT,
            facts=FACTS,
        ),
    )
)
CONNECTING = running(Phase.CONNECTING, "Connects to 198.18.0.11 port 22")
QUESTION = running(
    Phase.QUESTION, f"The host shows the key {FINGERPRINT}: is it the right one?", FINGERPRINT
)
INSTALLING = running(Phase.INSTALLING, "Installs the fence and proves that it holds", FINGERPRINT)


@pytest.fixture
def password_file(tmp_path: Path) -> str:
    path = tmp_path / "password"
    path.write_text(f"{SECRET}\n")
    return str(path)


def test_add_tells_each_phase_once(api: FakeApi, password_file: str) -> None:
    api.on(POST, Answer(202, addition()))
    api.on(LOOK, ok(addition()), CONNECTING, CONNECTING, INSTALLING, INSTALLING, ADDED)
    done = hostler(*ADD, "--password-file", password_file, "--accept-host-key", FINGERPRINT)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "kvm-1: Connecting: Connects to 198.18.0.11 port 22",
        "kvm-1: Installing: Installs the fence and proves that it holds",
        "kvm-1 is Enabled.",
    ]
    assert done.stderr == ""
    assert api.bodies(POST) == [
        {
            "name": "kvm-1",
            "cluster": "cluster-1",
            "address": "198.18.0.11",
            "ssh_port": 22,
            "user": "root",
            "password": SECRET,
            "host_key_sha256": FINGERPRINT,
            "enabled": True,
            "reserved_memory_mib": 0,
            "dry_run": False,
            "returning": False,
            "install_packages": False,
        }
    ]


def test_add_sends_every_option(api: FakeApi, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("-----BEGIN KEY-----\nabc\n-----END KEY-----\n")
    api.on(POST, Answer(202, addition()))
    done = hostler(
        *ADD,
        *("--ssh-port", "2222", "--user", "admin", "--private-key-file", str(key), "--disabled"),
        *("--capacity-memory-mib", "512", "--capacity-cpus", "2", "--reserved-memory-mib", "64"),
        *("--returning", "--install-packages", "--no-wait"),
    )
    assert done.exit_code == 0, done.output
    assert "hostler operation show addition kvm-1" in done.stdout
    (body,) = api.bodies(POST)
    assert body == {
        "name": "kvm-1",
        "cluster": "cluster-1",
        "address": "198.18.0.11",
        "ssh_port": 2222,
        "user": "admin",
        "private_key": key.read_text(),
        "enabled": False,
        "capacity_memory_mib": 512,
        "capacity_cpus": 2,
        "reserved_memory_mib": 64,
        "dry_run": False,
        "returning": True,
        "install_packages": True,
    }
    assert len(api.requests) == 1


def test_the_password_comes_from_stdin(api: FakeApi) -> None:
    api.on(POST, Answer(202, addition()))
    done = hostler(*ADD, "--password-file", "-", "--no-wait", stdin=f"{SECRET} \r\n")
    assert done.exit_code == 0, done.output
    assert api.bodies(POST)[0]["password"] == f"{SECRET} "
    assert SECRET not in done.output


def test_without_a_terminal_the_question_names_the_command(
    api: FakeApi, password_file: str
) -> None:
    api.on(POST, Answer(202, addition()))
    api.on(LOOK, CONNECTING, QUESTION, QUESTION, INSTALLING, ADDED)
    done = hostler(*ADD, "--password-file", password_file)
    assert done.exit_code == 0, done.output
    assert done.stdout.count(f"hostler host accept-key kvm-1 {FINGERPRINT}\n") == 1
    assert api.bodies(KEY) == []


def test_on_a_terminal_password_and_key_are_asked_for(api: FakeApi) -> None:
    api.on(POST, Answer(202, addition()))
    api.on(LOOK, CONNECTING, QUESTION, INSTALLING, ADDED)
    api.on(KEY, Answer(204))
    terminal = Terminal(*ADD)
    terminal.until("Password of root@198.18.0.11: ")
    terminal.type(f"{SECRET}\n")
    terminal.until(f"Is {FINGERPRINT} the host's own key? [y/N]: ")
    terminal.type("y\n")
    assert terminal.end() == 0, terminal.shown
    assert "kvm-1 is Enabled." in terminal.shown
    assert SECRET not in terminal.shown
    assert api.bodies(POST)[0]["password"] == SECRET
    assert api.bodies(KEY) == [{"fingerprint": FINGERPRINT}]


def test_a_key_that_is_not_the_hosts_ends_the_addition(api: FakeApi, password_file: str) -> None:
    api.on(POST, Answer(202, addition()))
    api.on(LOOK, QUESTION)
    cancel = "DELETE /v1/operations/addition/kvm-1"
    api.on(cancel, Answer(202, addition()))
    terminal = Terminal(*ADD, "--password-file", password_file)
    terminal.until("[y/N]: ")
    terminal.type("\n")
    assert terminal.end() == 1
    assert "hostler: The host key was not accepted: kvm-1 is not added." in terminal.shown
    assert api.bodies(cancel) == [None]
    assert api.bodies(KEY) == []


def test_ctrl_c_at_the_question_leaves_it_open(api: FakeApi, password_file: str) -> None:
    api.on(POST, Answer(202, addition()))
    api.on(LOOK, QUESTION)
    terminal = Terminal(*ADD, "--password-file", password_file)
    terminal.until("[y/N]: ")
    terminal.interrupt()
    assert terminal.end() == 130
    assert "The addition of kvm-1 goes on: hostler operation show addition kvm-1" in terminal.shown


def test_ctrl_c_while_waiting(api: FakeApi, password_file: str) -> None:
    api.on(POST, Answer(202, addition()))
    api.on(LOOK, CONNECTING)
    started = process(*ADD, "--password-file", password_file)
    assert started.stdout
    assert started.stdout.readline().startswith("kvm-1: Connecting")
    started.send_signal(signal.SIGINT)
    _, err = started.communicate()
    assert started.returncode == 130
    assert err == "The addition of kvm-1 goes on: hostler operation show addition kvm-1\n"


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (
            addition("FAILED", error="Login as root on 198.18.0.11 was refused."),
            "hostler: Login as root on 198.18.0.11 was refused.\n",
        ),
        (addition("TERMINATED"), "hostler: The addition of kvm-1 was terminated.\n"),
    ],
)
def test_an_addition_that_fails(
    api: FakeApi, password_file: str, ended: Operation, said: str
) -> None:
    api.on(POST, Answer(202, addition()))
    api.on(LOOK, CONNECTING, ok(ended))
    done = hostler(*ADD, "--password-file", password_file)
    assert done.exit_code == 1
    assert done.stderr == said


EMULATES = warning("no-kvm", "It has no /dev/kvm.", "Turn it on.")
SKEWED = error("clock-skew", "Its clock is 3600 s ahead.", "Set it.")


def test_an_addition_that_is_refused_tells_every_finding(api: FakeApi, password_file: str) -> None:
    refusal = Findings(findings=(EMULATES, SKEWED), remains=("Packages stay.",))
    ended = addition("FAILED", refusal, error="kvm-1 can't be added (...)").model_copy(
        update={"error_type": "PreflightFailed"}
    )
    api.on(POST, Answer(202, addition()))
    api.on(LOOK, CONNECTING, ok(ended))
    done = hostler(*ADD, "--password-file", password_file)
    assert done.exit_code == 1
    assert done.stdout.splitlines()[1:] == [
        "error [clock-skew] Its clock is 3600 s ahead. Set it.",
        "warning [no-kvm] It has no /dev/kvm. Turn it on.",
    ]
    assert (
        done.stderr
        == "hostler: kvm-1 is not added: clock-skew (1 error, 1 warning). Packages stay.\n"
    )


@pytest.mark.parametrize(
    ("findings", "tls", "status", "out", "err"),
    [
        ((), TlsState.NONE, 0, "kvm-1 can be added: 0 errors, 0 warnings.", ""),
        ((EMULATES,), TlsState.NONE, 0, "kvm-1 can be added: 0 errors, 1 warning.", ""),
        (
            (),
            TlsState.SECURED,
            0,
            "kvm-1 can be added: 0 errors, 0 warnings. It gets certificates and is secured before "
            "it is put into service.",
            "",
        ),
        (
            (EMULATES, SKEWED),
            TlsState.READY,
            1,
            "warning [no-kvm] It has no /dev/kvm. Turn it on.",
            "hostler: kvm-1 can't be added like this: clock-skew (1 error, 1 warning).\n",
        ),
    ],
)
def test_a_dry_run(
    api: FakeApi,
    password_file: str,
    findings: tuple[Finding, ...],
    tls: TlsState,
    status: int,
    out: str,
    err: str,
) -> None:
    result = HostAdditionResult(name="kvm-1", findings=findings, tls=tls)
    api.on(POST, Answer(202, addition()))
    api.on(LOOK, CONNECTING, ok(addition("COMPLETED", result)))
    done = hostler(*ADD, "--password-file", password_file, "--dry-run")
    assert (done.exit_code, done.stderr) == (status, err)
    lines = done.stdout.splitlines()
    assert lines[-1] == out
    assert [line.split("]")[0] for line in lines if "[" in line] == [
        f"{finding.severity} [{finding.code}"
        for finding in sorted(findings, key=lambda one: one.severity)
    ]
    assert api.bodies(POST)[0]["dry_run"] is True


def test_warnings_are_told_when_a_host_was_added(api: FakeApi, password_file: str) -> None:
    added = HostAdditionResult(
        name="kvm-1",
        resource_state=ResourceState.ENABLED,
        host_key_sha256=FINGERPRINT,
        facts=FACTS,
        findings=(EMULATES,),
    )
    api.on(POST, Answer(202, addition()))
    api.on(LOOK, ok(addition("COMPLETED", added)))
    done = hostler(*ADD, "--password-file", password_file)
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "warning [no-kvm] It has no /dev/kvm. Turn it on.",
        "kvm-1 is Enabled.",
    ]


def test_a_taken_name(api: FakeApi, password_file: str) -> None:
    api.on(POST, problem(409, "AlreadyExists", "There is a host kvm-1 already."))
    done = hostler(*ADD, "--password-file", password_file)
    assert (done.exit_code, done.stderr) == (1, "hostler: There is a host kvm-1 already.\n")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "There is no password and no key for root@198.18.0.11."),
        (("--password-file", "/nonexistent"), "--password-file /nonexistent can't be read"),
        (("--private-key-file", "/"), "--private-key-file / can't be read"),
        (("--password-file", "/dev/null"), "--password-file /dev/null is empty."),
        (("--password-file", "a", "--private-key-file", "b"), "not both"),
    ],
)
def test_no_usable_credential(api: FakeApi, more: tuple[str, ...], said: str) -> None:
    done = hostler(*ADD, *more)
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert api.requests == []


def test_a_credential_that_is_no_text_is_not_shown(api: FakeApi, tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_bytes(SECRET.encode() + b"\xff")
    done = hostler(*ADD, "--password-file", str(path))
    assert done.exit_code == 2
    assert done.stderr == f"hostler: --password-file {path} is no text in UTF-8.\n"


def test_no_option_takes_a_secret(api: FakeApi) -> None:
    for option in ("--password", "--private-key", "--token"):
        done = hostler(*ADD, option, SECRET)
        assert done.exit_code == 2
        assert f"No such option: {option}" in done.stderr
        assert SECRET not in done.output


def test_accept_key(api: FakeApi) -> None:
    api.on(KEY, Answer(204))
    done = hostler("host", "accept-key", "kvm-1", FINGERPRINT)
    assert done.exit_code == 0
    assert api.bodies(KEY) == [{"fingerprint": FINGERPRINT}]


def test_accept_key_without_an_addition(api: FakeApi) -> None:
    api.on(KEY, NOT_FOUND)
    done = hostler("host", "accept-key", "kvm-1", FINGERPRINT)
    assert (done.exit_code, done.stderr) == (1, "hostler: There is no such thing.\n")


def test_list(api: FakeApi) -> None:
    api.on("GET /v1/hosts?cluster=cluster-1&limit=1000", items(host()))
    done = hostler("host", "list", "--cluster", "cluster-1")
    assert done.exit_code == 0, done.output
    _, row = done.stdout.splitlines()
    assert row.split() == ["kvm-1", "cluster-1", "198.18.0.11", "Enabled", "Up", "2", "512"]


def test_list_is_filtered_and_fetches_all_pages(api: FakeApi) -> None:
    query = "zone=zone-1&pod=pod-1&resource_state=Enabled&status=Up&tag=ssd&limit=1000"
    api.on(f"GET /v1/hosts?{query}", ok({"items": [host()], "next": "kvm-1"}))
    api.on(f"GET /v1/hosts?{query}&after=kvm-1", ok({"items": [host()], "next": None}))
    filters = ("--zone", "zone-1", "--pod", "pod-1", "--resource-state", "Enabled")
    done = hostler("host", "list", *filters, "--status", "Up", "--tag", "ssd")
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == 3


def test_list_says_what_runs_there_and_why_one_is_not_up(api: FakeApi) -> None:
    usage = HostUsage(vms=3, memory_used_mib=288, cpus_used=3, at=WHEN)
    lost = host("kvm-2", status=HostStatus.DISCONNECTED, status_reason="no answer to Hostler")
    api.on("GET /v1/hosts?limit=1000", items(host(usage=usage, status_reason="added"), lost))
    head, up, away = hostler("host", "list").stdout.splitlines()
    assert head.split()[-6:] == ["POWER", "FENCED", "FOR", "WHY", "NOT", "UP"]
    assert up.split()[-4:] == ["Up", "2", "512", "3"]
    assert away.endswith("no answer to Hostler")


def test_list_json(api: FakeApi) -> None:
    api.on("GET /v1/hosts?limit=1000", items(host()))
    assert json.loads(hostler("host", "list", "--json").stdout) == [host().model_dump(mode="json")]


def test_show(api: FakeApi) -> None:
    api.on("GET /v1/hosts/kvm-1", ok(host()))
    assert json.loads(hostler("host", "show", "kvm-1", "--json").stdout)["name"] == "kvm-1"
    shown = hostler("host", "show", "kvm-1").stdout
    assert f"host key sha256      {FINGERPRINT}\n" in shown
    assert "libvirt version      9.0.0\n" in shown
    assert "2026-11-24 09:30:00 UTC" in shown


def test_show_has_what_was_seen_last(api: FakeApi) -> None:
    usage = HostUsage(vms=3, memory_used_mib=288, cpus_used=4, at=WHEN)
    seen = host(usage=usage, status_reason="it answers again", checked_at=WHEN)
    api.on("GET /v1/hosts/kvm-1", ok(seen))
    shown = hostler("host", "show", "kvm-1").stdout
    for field, value in (
        ("status reason", "it answers again"),
        ("checked at", "2026-11-24 09:30:00 UTC"),
        ("vms", "3"),
        ("memory used mib", "288"),
        ("cpus used", "4"),
    ):
        assert f"{field:19}  {value}\n" in shown


def sighting(seen: Seen, status: HostStatus, usage: HostUsage | None, problem: str) -> HostSighting:
    return HostSighting(
        host="kvm-1",
        seen=seen,
        problem=problem,
        status=status,
        status_reason="added",
        missed_checks=0,
        checked_at=WHEN,
        usage=usage,
    )


def test_check_of_a_host_that_answers(api: FakeApi) -> None:
    usage = HostUsage(vms=3, memory_used_mib=288, cpus_used=4, at=WHEN)
    api.on(CHECK, ok(sighting(Seen.ANSWERED, HostStatus.UP, usage, "")))
    done = hostler("host", "check", "kvm-1")
    assert done.exit_code == 0, done.output
    assert done.stdout == "kvm-1 answers and is Up: vms 3, memory used mib 288, cpus used 4.\n"
    assert json.loads(hostler("host", "check", "kvm-1", "--json").stdout)["seen"] == "answered"


def test_check_of_one_that_does_not(api: FakeApi) -> None:
    api.on(CHECK, ok(sighting(Seen.UNREACHABLE, HostStatus.UP, None, "it timed out")))
    done = hostler("host", "check", "kvm-1")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "hostler: kvm-1: unreachable: it timed out. Its status is Up.\n"
