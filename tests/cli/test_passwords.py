from pathlib import Path
from typing import Any

import pytest

from contracts.operations import OperationKind
from contracts.passwords import (
    Held,
    HostPasswordReport,
    HostRotation,
    HostWork,
    PasswordRotationResult,
    PasswordRotationView,
    PasswordState,
    PasswordVerificationResult,
    Proof,
    StagedVersion,
)
from contracts.states import Phase
from tests.cli.answers import operation
from tests.cli.conftest import NOT_FOUND, Answer, FakeApi, Terminal, hostler, items, ok
from tests.samples import WHEN

PATH = "/v1/clusters/cluster-1/password-rotation"
START, VIEW = f"POST {PATH}", f"GET {PATH}"
STAGE = "POST /v1/clusters/cluster-1/passwords/staged"
REPORTS = "GET /v1/clusters/cluster-1/passwords?account=root"
VERIFY = "POST /v1/clusters/cluster-1/passwords/verification"
OPERATION = "GET /v1/operations/rotation/cluster-1"
CANARY = "canary-99 '\"\\$:"
PROVEN = HostRotation(host="kvm-1", state=HostWork.PROVEN, held=Held.NEW, proof=Proof.SSH)
FAILED = HostRotation(host="kvm-2", state=HostWork.FAILED, reason="pam_deny")
COMMANDS = ("hostler passwords retry cluster-1",)


def view(phase: Phase, *hosts: HostRotation, **more: Any) -> PasswordRotationView:
    return PasswordRotationView(
        **{
            "cluster": "cluster-1",
            "account": "root",
            "phase": phase,
            "reason": "quarterly",
            "message": "Sets the new password",
            "since": WHEN,
            "hosts": hosts,
            "workflow_id": "rotation/cluster-1",
            "run_id": "0198-run",
            **more,
        }
    )


def rotation(status: str, details: Any = None, error: str | None = None) -> Any:
    return operation(status, OperationKind.ROTATION, "cluster-1", details, error)


@pytest.fixture
def password_file(tmp_path: Path) -> str:
    path = tmp_path / "password"
    path.write_text(CANARY + "\n")
    return str(path)


def test_a_change_is_started_with_the_password_of_a_file(api: FakeApi, password_file: str) -> None:
    api.on(START, Answer(202, rotation("RUNNING")))
    done = hostler(
        *("passwords", "rotate", "cluster-1", "--password-file", password_file),
        *("--leave-out", "kvm-3", "--on-failure", "hold", "--reason", "quarterly"),
    )
    assert done.exit_code == 0, done.output
    assert api.bodies(START) == [
        {
            "account": "root",
            "leave_out": ["kvm-3"],
            "accept_unknown": False,
            "reason": "quarterly",
            "password": CANARY,
            "on_failure": "hold",
        }
    ]
    assert CANARY not in done.output
    assert "hostler passwords status cluster-1 --watch" in done.stdout


def test_watch_tells_each_host_and_the_end(api: FakeApi) -> None:
    api.on(START, Answer(202, rotation("RUNNING")))
    api.on(VIEW, ok(view(Phase.CHANGING, PROVEN)), NOT_FOUND)
    result = PasswordRotationResult(
        cluster="cluster-1",
        account="root",
        promoted=True,
        version=3,
        hosts=(PROVEN, HostRotation(host="kvm-3", state=HostWork.LEFT_OUT, reason="Down")),
    )
    api.on(OPERATION, ok(rotation("COMPLETED", result)))
    done = hostler("passwords", "rotate", "cluster-1", "--watch")
    assert done.exit_code == 0, done.output
    assert "kvm-1: proven (ssh)" in done.stdout
    assert "1 hosts of cluster-1 have a new password, proven on each; not on kvm-3." in done.stdout


def test_watch_ends_at_a_question_with_the_way_on(api: FakeApi) -> None:
    waiting = view(Phase.QUESTION, PROVEN, FAILED, message="kvm-2: pam_deny", commands=COMMANDS)
    api.on(VIEW, ok(waiting))
    done = hostler("passwords", "status", "cluster-1", "--watch")
    assert done.exit_code == 1
    assert "kvm-2: failed, has former: pam_deny" in done.stdout
    assert f"Run: {COMMANDS[0]}" in done.stdout
    assert "waits: kvm-2: pam_deny" in done.stderr


def test_one_that_was_put_back_has_failed(api: FakeApi) -> None:
    api.on(VIEW, NOT_FOUND)
    api.on(OPERATION, ok(rotation("FAILED", error="All hosts have the password that they had.")))
    done = hostler("passwords", "status", "cluster-1", "--watch")
    assert (done.exit_code, done.stderr) == (
        1,
        "hostler: All hosts have the password that they had.\n",
    )


def test_status_without_a_change_tells_what_each_host_has(api: FakeApi) -> None:
    api.on(VIEW, NOT_FOUND)
    report = HostPasswordReport(
        host="kvm-1", account="root", state=PasswordState.AGREES, version=3, proof=Proof.PAM
    )
    api.on(REPORTS, items(report))
    done = hostler("passwords", "status", "cluster-1")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[1].split()[:5] == ["kvm-1", "root", "agrees", "3", "pam"]


def test_verify_fails_where_hosts_differ(api: FakeApi) -> None:
    agrees = PasswordVerificationResult(counts={PasswordState.AGREES: 3}, hosts=())
    api.on(VERIFY, ok(agrees))
    done = hostler("passwords", "verify", "cluster-1")
    assert (done.exit_code, "all agree" in done.stdout) == (0, True)
    differs = HostPasswordReport(
        host="kvm-2", account="root", state=PasswordState.DIFFERS, reason="somebody else"
    )
    counts = {PasswordState.AGREES: 2, PasswordState.DIFFERS: 1}
    api.on(VERIFY, ok(PasswordVerificationResult(counts=counts, hosts=(differs,))))
    done = hostler("passwords", "verify", "cluster-1")
    assert done.exit_code == 1
    assert "kvm-2" in done.stdout
    assert "2 agrees, 1 differs" in done.stderr


def test_verify_does_not_say_that_all_agree_where_there_is_nothing_to_agree_on(
    api: FakeApi,
) -> None:
    api.on(VERIFY, ok(PasswordVerificationResult(counts={}, hosts=())))
    done = hostler("passwords", "verify", "cluster-1")
    assert (done.exit_code, "agree" in done.stdout) == (1, False)
    assert "cluster-1 has no current password" in done.stderr
    assert "hostler passwords rotate cluster-1" in done.stderr
    empty = PasswordVerificationResult(counts={}, hosts=(), accounts=("root",))
    api.on(VERIFY, ok(empty))
    done = hostler("passwords", "verify", "cluster-1")
    assert (done.exit_code, "0 hosts of cluster-1 were looked at" in done.stdout) == (0, True)


@pytest.mark.parametrize(
    ("words", "route", "body"),
    [
        (["retry", "cluster-1"], f"POST {PATH}/retry", {}),
        (["revert", "cluster-1"], f"POST {PATH}/revert", {}),
        (
            ["skip-host", "cluster-1", "kvm-2", "--reason", "dead"],
            f"POST {PATH}/skip-host",
            {"host": "kvm-2", "reason": "dead"},
        ),
    ],
)
def test_a_question_is_answered(
    api: FakeApi, words: list[str], route: str, body: dict[str, str]
) -> None:
    api.on(route, Answer(204, None))
    done = hostler("passwords", *words)
    assert done.exit_code == 0, done.output
    assert api.bodies(route) == [body]


def test_a_host_is_skipped_with_a_reason_alone(api: FakeApi) -> None:
    assert hostler("passwords", "skip-host", "cluster-1", "kvm-2").exit_code == 2


def test_a_password_is_staged_from_a_file(api: FakeApi, password_file: str) -> None:
    api.on(STAGE, Answer(201, StagedVersion(cluster="cluster-1", account="root", version=4)))
    done = hostler("secret", "stage", "cluster-1", "--password-file", password_file)
    assert done.exit_code == 0, done.output
    assert api.bodies(STAGE) == [{"account": "root", "password": CANARY}]
    assert CANARY not in done.output
    assert "hostler passwords rotate cluster-1" in done.stdout


def test_a_password_is_asked_for_twice_and_never_shown(api: FakeApi) -> None:
    api.on(STAGE, Answer(201, StagedVersion(cluster="cluster-1", account="root", version=4)))
    terminal = Terminal("secret", "stage", "cluster-1")
    terminal.until("New password of root on all hosts of cluster-1: ")
    terminal.type("typed-in-secret\n")
    terminal.until("Repeat for confirmation: ")
    terminal.type("typed-in-secret\n")
    assert terminal.end() == 0
    assert "typed-in-secret" not in terminal.shown
    assert api.bodies(STAGE) == [{"account": "root", "password": "typed-in-secret"}]


def test_one_that_can_not_be_set_is_refused_here(api: FakeApi, tmp_path: Path) -> None:
    path = tmp_path / "two-lines"
    path.write_text("one\ntwo\n")
    done = hostler("secret", "stage", "cluster-1", "--password-file", str(path))
    assert (done.exit_code, "line breaks" in done.stderr) == (2, True)
    assert "one\ntwo" not in done.output
    assert api.bodies(STAGE) == []
