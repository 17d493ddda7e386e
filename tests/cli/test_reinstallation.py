"""`hostler host reinstall` and `answer-reinstallation`."""

from pathlib import Path
from typing import Any

from contracts.operations import Operation, OperationKind
from contracts.preflight_rules import error
from contracts.reinstallation import (
    HostReinstallationResult,
    HostReinstallationStatus,
    ReinstallationOutcome,
)
from contracts.removal import EffectKind, RemovalEffect
from contracts.states import Phase, ResourceState
from tests.cli.answers import operation
from tests.cli.conftest import Answer, FakeApi, hostler, ok, problem
from tests.samples import FINGERPRINT

POST = "POST /v1/hosts/kvm-1/reinstallation"
ANSWER = "POST /v1/hosts/kvm-1/reinstallation/answer"
LOOK = "GET /v1/operations/reinstallation/kvm-1"
EFFECTS = (
    RemovalEffect(kind=EffectKind.HOST, message="kvm-1 is waited for"),
    RemovalEffect(kind=EffectKind.INVENTORY, message="kvm-1 keeps its name"),
)


def state(status: str = "RUNNING", details: Any = None, error: str | None = None) -> Operation:
    return operation(status, OperationKind.REINSTALLATION, details=details, error=error)


def running(phase: Phase, message: str, *commands: str, **more: Any) -> Answer:
    status = HostReinstallationStatus(
        host="kvm-1", phase=phase, reason="", message=message, commands=commands, **more
    )
    return ok(state(details=status))


def ended(**more: Any) -> Answer:
    values = {"outcome": ReinstallationOutcome.REINSTALLED, **more}
    return ok(state("COMPLETED", HostReinstallationResult(host="kvm-1", effects=EFFECTS, **values)))


BACK = ended(resource_state=ResourceState.ENABLED, host_key_sha256=FINGERPRINT, lost_vms=("vm-9",))


def test_reinstall_waits_and_tells_each_step(api: FakeApi) -> None:
    api.on(POST, Answer(202, state()))
    waiting = running(Phase.REINSTALLING, "Waits for kvm-1", "hostler host answer-reinstallation")
    finding = error("login-refused", "It refuses the login.", "Give another credential.")
    question = running(Phase.QUESTION, "can't be provisioned", "look again", findings=(finding,))
    api.on(LOOK, waiting, waiting, question, BACK)
    done = hostler("host", "reinstall", "kvm-1")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "kvm-1: Reinstalling: Waits for kvm-1",
        "hostler host answer-reinstallation",
        "kvm-1: Question: can't be provisioned",
        str(finding),
        "look again",
        "VMs lost with the old installation: vm-9",
        f"kvm-1 is Enabled, with the host key {FINGERPRINT}.",
    ]


def test_every_option_is_sent(api: FakeApi, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("of the new installation\n")
    api.on(POST, Answer(202, state()))
    done = hostler(
        *("host", "reinstall", "kvm-1", "--reason", "disk", "--after-maintenance", "--lose-vms"),
        *("--accept-host-key", FINGERPRINT, "--password-file", str(password)),
        *("--command", "sh -c 'efibootmgr -n 3; shutdown -r +1'", "--install-packages"),
        *("--return-vms", "--on-blocker", "shutdown", "--max-parallel", "3", "--no-queue"),
        *("--network-boot", "--no-wait"),
    )
    assert done.exit_code == 0, done.output
    assert "hostler operation show reinstallation kvm-1" in done.stdout
    assert api.bodies(POST) == [
        {
            "reason": "disk",
            "after_maintenance": True,
            "host_is_down": False,
            "lose_vms": True,
            "host_key_sha256": FINGERPRINT,
            "command": ["sh", "-c", "efibootmgr -n 3; shutdown -r +1"],
            "network_boot": True,
            "install_packages": True,
            "return_vms": True,
            "dry_run": False,
            "on_blocker": "shutdown",
            "max_parallel": 3,
            "queue": False,
            "password": "of the new installation",
        }
    ]


def test_a_dry_run_lists_the_effects(api: FakeApi) -> None:
    api.on(POST, Answer(202, state()))
    api.on(LOOK, ended(outcome=ReinstallationOutcome.PLANNED))
    done = hostler("host", "reinstall", "kvm-1", "--host-is-down", "--dry-run")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["ON", "EFFECT"],
        ["host", "kvm-1", "is", "waited", "for"],
        ["inventory", "kvm-1", "keeps", "its", "name"],
        ["Nothing", "was", "changed", "on", "kvm-1."],
    ]
    assert api.bodies(POST)[0]["host_is_down"] is True


def test_a_refusal_is_told(api: FakeApi) -> None:
    api.on(POST, problem(409, "Conflict", "maintenance/kvm-1 is not ready (Evacuating)."))
    done = hostler("host", "reinstall", "kvm-1")
    assert done.exit_code == 1
    assert "maintenance/kvm-1 is not ready" in done.stderr


def test_one_that_failed_says_why(api: FakeApi) -> None:
    api.on(POST, Answer(202, state()))
    api.on(LOOK, ok(state("FAILED", error="VMs run on kvm-1: vm-1.")))
    done = hostler("host", "reinstall", "kvm-1")
    assert done.exit_code == 1
    assert "VMs run on kvm-1: vm-1." in done.stderr


def test_a_command_that_is_no_command(api: FakeApi) -> None:
    done = hostler("host", "reinstall", "kvm-1", "--command", "sh -c 'open")
    assert done.exit_code == 2
    assert "--command can't be read" in done.stderr
    assert api.requests == []


def test_answers_are_sent(api: FakeApi, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("PEM\n")
    api.on(ANSWER, Answer(204))
    done = hostler("host", "answer-reinstallation", "kvm-1")
    assert done.exit_code == 0, done.output
    done = hostler(
        *("host", "answer-reinstallation", "kvm-1", "--accept-host-key", FINGERPRINT),
        *("--private-key-file", str(key), "--install-packages", "--skip-command", "--force"),
        "--skip-network-boot",
    )
    assert done.exit_code == 0, done.output
    choices = ("install_packages", "skip_command", "skip_network_boot", "force")
    nothing = dict.fromkeys(choices, False)
    assert api.bodies(ANSWER) == [
        nothing,
        {
            "host_key_sha256": FINGERPRINT,
            "install_packages": True,
            "skip_command": True,
            "skip_network_boot": True,
            "force": True,
            "private_key": "PEM\n",
        },
    ]
