"""The lab itself, called as people call it. Whatever happens to it here, it is up at the end."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LAB = ROOT / "deploy/lab/lab"
STATE = ROOT / "deploy/lab/.state"
HOSTS = ("kvm-1", "kvm-2", "kvm-3")
AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")


def lab(
    *arguments: str, stdin: str = "", before: tuple[str, ...] = (), program: Path = LAB
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, program, *arguments], input=stdin, capture_output=True, text=True, check=False
    )


def good(*arguments: str, stdin: str = "") -> str:
    done = lab(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit 1 with the reason in one line, and nothing on standard output."""
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("lab: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def status() -> dict[str, Any]:
    report: dict[str, Any] = json.loads(good("status", "--json"))
    return report


def each(field: str) -> dict[str, Any]:
    """One field of the status, by host."""
    return {row["name"]: row[field] for row in status()["hosts"]}


def last_ticks() -> dict[str, int]:
    return {row["name"]: row["last_tick"] for row in status()["guests"]}


@pytest.fixture(scope="module", autouse=True)
def running_lab() -> Iterator[None]:
    good("up")
    yield
    good("up")


def test_status_as_json() -> None:
    report = status()
    assert set(report) == {"hosts", "guests"}
    assert [row["name"] for row in report["hosts"]][:3] == list(HOSTS)
    for number, row in enumerate(report["hosts"], start=11):
        state = STATE / "hosts" / row["name"]
        assert row == {
            "name": row["name"],
            "address": f"198.18.0.{number}",
            "state": "running",
            "boot_id": good("exec", row["name"], "cat", "/proc/sys/kernel/random/boot_id").strip(),
            "host_key_sha256": row["host_key_sha256"],
            "password_file": str(state / "password"),
            "bmc": {
                "address": f"198.18.1.{number}",
                "port": 623,
                "user": f"{row['name']}-admin",
                "password_file": str(STATE / "bmc" / row["name"] / "password"),
                "guid": row["bmc"]["guid"],
            },
        }
        public = "/etc/ssh/ssh_host_ed25519_key.pub"
        assert (
            row["host_key_sha256"]
            == good("exec", row["name"], "ssh-keygen", "-lf", public).split()[1]
        )
    guests = {row["name"]: row for row in report["guests"]}
    assert {"vm-1", "vm-2", "vm-3"} <= set(guests)
    for name, row in guests.items():
        assert set(row) == {"name", "hosts", "last_tick"}
        if name in ("vm-1", "vm-2", "vm-3"):
            assert len(row["hosts"]) == 1
            active = good("exec", row["hosts"][0], "virsh", "-q", "list", "--name")
            assert name in active.split()
            assert f"tick {row['last_tick']}" in (STATE / f"consoles/{name}.log").read_text()


def test_status_for_people_tells_the_same() -> None:
    text = good("status")
    for row in status()["hosts"]:
        assert f"{row['name']}  {row['address']}  running" in text
        assert row["boot_id"] in text
        assert row["host_key_sha256"] in text
        assert f"BMC {row['bmc']['address']}  user {row['bmc']['user']}" in text
    assert "vm-1  " in text


def test_every_host_has_a_password_and_an_identity_of_its_own() -> None:
    files = {host: Path(path) for host, path in each("password_file").items()}
    passwords = {host: path.read_text().strip() for host, path in files.items()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.values()} == {0o600}
    read = ("cat", "/etc/machine-id", "/etc/libvirt/libvirtd.conf")
    keys, machines, shadows = [], [], []
    for host in HOSTS:
        assert len(passwords[host]) >= 20
        keys.append(good("exec", host, "cat", "/etc/ssh/ssh_host_ed25519_key"))
        machine_id, *conf = good("exec", host, *read).splitlines()
        machines += [machine_id, *(line for line in conf if line.startswith("host_uuid"))]
        shadows.append(
            good("exec", host, "sed", "-n", "s/^root:\\([^:]*\\).*/\\1/p", "/etc/shadow")
        )
    assert len(set(passwords.values())) == len(files)
    assert len(set(keys)) == len(set(shadows)) == len(HOSTS)
    assert len(set(machines)) == 2 * len(HOSTS)


def test_exec_passes_words_input_output_and_status() -> None:
    words = ["", "a b", "$(id)", "'", '"', "\\", "*", "-n", "--", "ü"]
    assert good("exec", "kvm-2", "--", "printf", "%s|", *words) == "".join(f"{w}|" for w in words)
    done = lab("exec", "kvm-2", "--", "sh", "-c", "cat; echo no >&2; exit 7", stdin="in\nput")
    assert (done.returncode, done.stdout, done.stderr) == (7, "in\nput", "no\n")
    assert good("exec", "kvm-2", "--", "hostname") == "kvm-2\n"
    assert lab("exec", "kvm-2", "--", "no-such-command").returncode not in (0, 1, 2)


def test_exec_inherits_nothing_of_its_callers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTLER_CANARY", "secret-1618")
    assert "secret-1618" not in good("exec", "kvm-2", "--", "env")


def test_up_again_reuses_what_is_there() -> None:
    before, ticks = status()["hosts"], last_ticks()
    assert good("up") == ""  # what it tells goes to standard error
    assert status()["hosts"] == before
    after = last_ticks()
    assert all(after[guest] >= ticks[guest] for guest in ("vm-1", "vm-2", "vm-3"))


def test_a_reboot_is_a_new_boot_of_the_same_host() -> None:
    before, keys, passwords = each("boot_id"), each("host_key_sha256"), passwords_now()
    good("exec", "kvm-3", "--", "touch", "/root/marker")
    good("reboot", "kvm-3")
    after = each("boot_id")
    assert after["kvm-3"] is not None
    assert changed(before, after) == ["kvm-3"]
    assert (each("host_key_sha256"), passwords_now()) == (keys, passwords)
    good("exec", "kvm-3", "--", "rm", "/root/marker")
    good("exec", "kvm-3", "--", "virsh", "-q", "-c", "qemu:///system", "list")


def test_up_repairs_a_host_that_lost_its_power() -> None:
    before, keys, passwords = each("boot_id"), each("host_key_sha256"), passwords_now()
    good("kill", "kvm-3")
    assert each("state")["kvm-3"] == "stopped"
    assert each("boot_id")["kvm-3"] is None
    refused(lab("exec", "kvm-3", "--", "true"), "kvm-3 does not run", "lab up")
    refused(lab("reboot", "kvm-3"), "kvm-3 does not run", "lab up")
    refused(lab("kill", "kvm-3"), "kvm-3 does not run")
    with pytest.raises(OSError, match=r"timed out|No route to host"):
        socket.create_connection(("198.18.0.13", 22), timeout=10)
    good("up")
    after = each("boot_id")
    assert after["kvm-3"] is not None
    assert changed(before, after) == ["kvm-3"]
    assert (each("host_key_sha256"), passwords_now()) == (keys, passwords)


def test_a_rebuilt_host_is_the_same_machine_with_nothing_of_its_past() -> None:
    machine = ("exec", "kvm-3", "--", "virsh", "-q", "-c", "qemu:///system", "capabilities")
    keys, passwords, uuid = (
        each("host_key_sha256"),
        passwords_now(),
        good(*machine).split("uuid>")[1],
    )
    good("exec", "kvm-3", "--", "touch", "/etc/marker")
    good("rebuild", "kvm-3")
    assert lab("exec", "kvm-3", "--", "ls", "/etc/marker").returncode != 0
    assert changed(keys, each("host_key_sha256")) == ["kvm-3"]
    assert changed(passwords, passwords_now()) == ["kvm-3"]
    assert good(*machine).split("uuid>")[1] == uuid


def test_up_repairs_a_host_without_its_supervisor() -> None:
    before = each("boot_id")
    record = json.loads(Path("/run/hostler-lab/hosts/kvm-3/supervisor").read_text())
    os.kill(record["pid"], signal.SIGKILL)
    good("up")
    assert changed(before, each("boot_id")) == ["kvm-3"]
    good("reboot", "kvm-3")


def test_up_mends_a_cut_cable() -> None:
    before = each("boot_id")
    good("cut", "kvm-3")
    connect = ("exec", "kvm-2", "--", "timeout", "2", "bash", "-c", "</dev/tcp/198.18.0.13/22")
    assert lab(*connect).returncode != 0
    good("up")
    good(*connect)
    assert each("boot_id") == before


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("no-such-command",),
        ("up", "--hosts", "0"),
        ("up", "--hosts", "100"),
        ("up", "--hosts", "many"),
        ("up", "--guests", "-1"),
        ("up", "kvm-1"),
        ("exec",),
        ("exec", "kvm-1"),
        ("exec", "kvm-1", "--"),
        ("reboot",),
        ("guest",),
        ("guest", "start"),
    ],
)
def test_wrong_usage_is_told_with_status_2(arguments: tuple[str, ...]) -> None:
    done = lab(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: lab")


@pytest.mark.parametrize("host", ["kvm-0", "kvm-100", "kvm-01", "../kvm-1", ""])
def test_a_name_that_is_no_hosts(host: str) -> None:
    for arguments in (
        ("exec", host, "--", "true"),
        ("cut", host),
        ("guest", "start", "x", "--on", host),
    ):
        refused(lab(*arguments), "kvm-1 to kvm-99")


def test_a_host_that_was_never_made() -> None:
    refused(lab("exec", "kvm-77", "--", "true"), "no host kvm-77", "lab up")


@pytest.mark.parametrize("command", ["up", "down", "status"])
def test_it_says_that_it_needs_root(command: str) -> None:
    before = each("boot_id")
    refused(lab(command, before=AS_NOBODY), "must run as root")
    assert each("boot_id") == before


@pytest.mark.parametrize(
    ("hidden", "words"), [("/etc", "needs Debian 12"), ("/dev/net", "needs /dev/net/tun")]
)
def test_it_says_what_a_machine_lacks(hidden: str, words: str) -> None:
    hide = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {hidden}; exec "$0" "$@"')
    refused(lab("up", before=hide), words)


def test_the_lab_of_another_checkout_is_left_alone(tmp_path: Path) -> None:
    before = each("boot_id")
    other = tmp_path / "deploy/lab"
    shutil.copytree(LAB.parent, other, ignore=shutil.ignore_patterns(".state"))
    for arguments in (("up",), ("status",), ("exec", "kvm-1", "--", "true"), ("kill", "kvm-3")):
        refused(lab(*arguments, program=other / "lab"), f"belongs to {ROOT}", f"{LAB} down")
    done = lab("down", program=other / "lab")
    assert (done.returncode, done.stdout) == (0, "")
    assert f"the lab of {ROOT} is left alone" in done.stderr
    assert not (other / ".state").exists()
    assert each("boot_id") == before


def test_a_host_that_runs_is_taken_away() -> None:
    good("up", "--hosts", "4")
    assert [found for kind in remains().values() for found in kind if "kvm-4" in found]
    good("remove", "kvm-4")
    assert [found for kind in remains().values() for found in kind if "kvm-4" in found] == []


def test_a_guest_has_memory_that_migrates_whole() -> None:
    """Of no multiple of 256 KiB: see hostlerlab/guests.py."""
    (host,) = next(row["hosts"] for row in status()["guests"] if row["name"] == "vm-1")
    show = ("virsh", "-q", "qemu-monitor-command", "--hmp", "vm-1", "info ramblock")
    (block,) = [line for line in good("exec", host, *show).splitlines() if "odd.ram" in line]
    used = int(block.split()[4], 16)
    assert used > 96 << 20
    assert used % (256 << 10)


def test_a_guest_writes_its_ticks_to_its_disk() -> None:
    disk = "/var/lib/libvirt/images/lab-disk.raw"
    good("guest", "start", "lab-disk", "--on", "kvm-2", "--disk-local")
    try:
        first = good("exec", "kvm-2", "head", "-c", "32", disk)
        assert first.startswith("tick ")
        while good("exec", "kvm-2", "head", "-c", "32", disk) == first:
            pass
    finally:
        good("guest", "remove", "lab-disk")
    assert lab("exec", "kvm-2", "ls", disk).returncode != 0


def test_down_leaves_nothing_and_up_makes_other_hosts() -> None:
    keys, passwords = each("host_key_sha256"), passwords_now()
    good("guest", "start", "lab-down", "--on", "kvm-2", "--disk-local")
    good("kill", "kvm-3")  # what is half dead is cleared away as well
    assert all(remains().values())
    assert good("down") == ""
    assert not any(remains().values())
    assert status() == {"hosts": [], "guests": []}
    refused(lab("exec", "kvm-1", "--", "true"), "no host kvm-1", "lab up")
    good("down")
    assert not any(remains().values())
    good("up")
    assert changed(keys, each("host_key_sha256")) == list(HOSTS)
    assert changed(passwords, passwords_now()) == list(HOSTS)


def passwords_now() -> dict[str, str]:
    return {host: Path(path).read_text() for host, path in each("password_file").items()}


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [host for host in after if after[host] != before[host]]


def remains() -> dict[str, list[str]]:
    """Everything on this machine that belongs to the lab, by kind. Mounts: those of this mount
    namespace; one that a stranger made for itself meanwhile (a simulated host, say) has copies."""
    processes = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            groups = (process / "cgroup").read_text()
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        if words == [""]:  # it has ended, and process 1 takes its time to notice
            continue
        if "/hostler-lab/" in groups or {
            "_supervise",
            "_bmc",
            "/run/hostler-lab/bmc/lan.conf",
        } & set(words):
            processes.append(f"{process.name} {' '.join(words)}")
    namespaces = Path("/run/netns")
    found = {
        "processes": processes,
        "mounts": [m for m in Path("/proc/self/mountinfo").read_text().splitlines() if _ours(m)],
        "links": [
            p.name
            for p in Path("/sys/class/net").iterdir()
            if p.name.startswith(("hostler", "hl-"))
        ],
        "namespaces": [p.name for p in namespaces.glob("hostler-*")],
        "groups": [str(p) for p in Path("/sys/fs/cgroup").glob("**/hostler-lab")],
        "files in /run": [
            str(p)
            for pattern in ("hostler-lab*", "systemd/nspawn/*/kvm-*", "systemd/nspawn/locks/*")
            for p in Path("/run").glob(pattern)
        ],
        "state": [str(STATE)] if STATE.exists() else [],
    }
    if namespaces.is_dir() and not any(namespaces.iterdir()):
        found["namespaces"].append(str(namespaces))  # it was made for ours
    return found


def _ours(mount: str) -> bool:
    return "hostler-kvm-" in mount or "/hostler-lab/" in mount or str(STATE) in mount
