"""`hostler up` as a person runs it: a real process, real ports, a real home."""

import asyncio
import base64
import itertools
import json
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from contracts.certificates import CertificateRole
from inventory import SecretBox
from inventory.secret_box import key_id
from tests import forked
from tests.authorities.samples import write
from tests.forked import Said
from tests.openbao import OpenBao
from tests.ports import free_port
from tests.workers.test_api_tls import CLIENTS, SERVERS, certified
from workers.settings import Settings
from workers.stores import open_inventory

ROOT = Path(__file__).parents[2]


@dataclass
class Machine:
    """A home and three free ports, and the processes started on them."""

    home: Path
    temporal_port: int
    ui_port: int
    api_port: int
    started: list[subprocess.Popen[str]]

    def environment(self, **more: str) -> dict[str, str]:
        return {
            **os.environ,
            "HOSTLER_HOME": str(self.home),
            "HOSTLER_TEMPORAL_ADDRESS": f"127.0.0.1:{self.temporal_port}",
            "HOSTLER_TEMPORAL_UI_PORT": str(self.ui_port),
            "HOSTLER_API_PORT": str(self.api_port),
            **more,
        }

    def start(
        self, *arguments: str, within: Sequence[str] = (), **more: str
    ) -> subprocess.Popen[str]:
        """`within`: a command that runs it."""
        process = subprocess.Popen(
            [*within, sys.executable, "-m", "cli.main", *arguments],
            cwd=ROOT,
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=(self.home.parent / "stderr").open("a"),
            text=True,
        )
        self.started.append(process)
        return process

    def up(self, *within: str) -> subprocess.Popen[str]:
        """Start `hostler up` and read what it says until it is ready."""
        process = self.start("up", within=within)
        lines = self.said(process, "Admin token")
        assert any("Hostler is ready." in line for line in lines), (lines, self.stderr())
        return process

    def said(self, process: subprocess.Popen[str], last: str) -> list[str]:
        assert process.stdout
        lines = []
        for line in process.stdout:
            lines.append(line)
            if last in line:
                break
        return lines

    def run(self, *arguments: str, **more: str) -> Said:
        """A command that ends by itself."""
        return asyncio.run(
            forked.command(
                "hostler", *arguments, directory=ROOT, environment=self.environment(**more)
            )
        )

    def stderr(self) -> str:
        return (self.home.parent / "stderr").read_text()

    def processes(self) -> dict[int, str]:
        """Command lines of all processes that name the home: those of Temporal."""
        found = {}
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(self.home) in command:
                found[int(directory.name)] = command
        return found

    def listening(self) -> list[int]:
        ports = (self.temporal_port, self.ui_port, self.api_port)
        with ExitStack() as stack:
            probes = [stack.enter_context(socket.socket()) for _ in ports]
            return [
                port
                for probe, port in zip(probes, ports, strict=True)
                if probe.connect_ex(("127.0.0.1", port)) == 0
            ]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "home", free_port(), free_port(), free_port(), started=[])
    yield machine
    for process in machine.started:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
    eventually(lambda: not machine.processes())


def eventually(condition: Callable[[], bool]) -> None:
    """pytest's time-out is the bound."""
    while not condition():
        time.sleep(0.05)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_up_serves_until_it_is_told_to_stop(machine: Machine) -> None:
    process = machine.up("prlimit", "--nofile=1024:8192")
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    assert re.search(r"Max open files +8192 +8192 ", limits)
    assert machine.listening() == [machine.temporal_port, machine.ui_port, machine.api_port]

    token_file = machine.home / "admin-token"
    token = token_file.read_text().strip()
    assert mode(machine.home) == 0o700
    assert mode(token_file) == mode(machine.home / "master-key") == 0o600
    api = f"http://127.0.0.1:{machine.api_port}"
    assert httpx.get(f"{api}/openapi.json").status_code == 200
    assert httpx.get(f"{api}/v1/hosts").status_code in (401, 403)
    allowed = httpx.get(f"{api}/v1/hosts", headers={"Authorization": f"Bearer {token}"})
    assert allowed.status_code == 200

    second = machine.run("up")
    assert second.status == 1
    assert f"already runs on {machine.home} (process {process.pid})" in second.stderr
    assert len(second.stderr.splitlines()) == 1
    assert process.poll() is None

    commands = machine.processes()
    assert commands, "Temporal's dev server runs"
    for secret in (token, (machine.home / "master-key").read_text().strip()):
        assert not [command for command in commands.values() if secret in command]
        assert secret not in machine.stderr()

    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    assert machine.processes() == {}
    assert machine.listening() == []

    again = machine.up()
    assert token_file.read_text().strip() == token
    again.send_signal(signal.SIGINT)
    assert again.wait() == 0
    assert machine.processes() == {}


def test_up_works_again_after_it_was_killed(machine: Machine) -> None:
    process = machine.up()
    token = (machine.home / "admin-token").read_text()
    process.kill()
    process.wait()
    again = machine.up()
    assert (machine.home / "admin-token").read_text() == token
    assert len(machine.processes()) == 1, "the killed one's Temporal is gone"
    again.send_signal(signal.SIGTERM)
    assert again.wait() == 0


def test_up_can_be_stopped_while_it_starts(machine: Machine) -> None:
    process = machine.start("up")
    eventually(lambda: bool(machine.processes()))
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    assert machine.processes() == {}


def test_a_lost_master_key_is_not_replaced(machine: Machine) -> None:
    machine.up().send_signal(signal.SIGTERM)
    machine.started[0].wait()
    key = machine.home / "master-key"
    key.unlink()
    done = machine.run("up")
    assert done.status == 1
    assert f"hostler: The master key {key} is missing" in done.stderr
    assert not key.exists()
    assert machine.processes() == {}


def test_a_lost_part_ends_the_whole(machine: Machine) -> None:
    process = machine.up()
    (temporal,) = machine.processes()
    os.kill(temporal, signal.SIGKILL)
    assert process.wait() == 1
    assert "hostler: Temporal's dev server ended: status -9" in machine.stderr()
    assert machine.listening() == []


@pytest.mark.parametrize(
    ("port", "says"),
    [
        ("temporal_port", "for Temporal, is taken"),
        ("ui_port", "for Temporal's UI, is taken"),
        ("api_port", "for the API, is taken"),
    ],
)
def test_a_taken_port_is_named(machine: Machine, port: str, says: str) -> None:
    number = getattr(machine, port)
    with socket.create_server(("127.0.0.1", number)):
        done = machine.run("up")
    assert done.status == 1
    assert re.fullmatch(rf"hostler: Port {number} at 127\.0\.0\.1, {says}.*\n", done.stderr)
    assert machine.processes() == {}


@pytest.mark.parametrize("command", ["up", "worker", "api"])
def test_a_wrong_setting_is_named_at_start(machine: Machine, command: str) -> None:
    done = machine.run(command, HOSTLER_LOG_LEVEL="loud", HOSTLER_HOEM="/tmp")  # noqa: S108
    assert done.status == 2
    assert "HOSTLER_HOEM: there is no such setting (is HOSTLER_HOME meant?)" in done.stderr
    assert "HOSTLER_LOG_LEVEL: " in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not machine.home.exists()


@pytest.mark.parametrize("command", ["worker", "api"])
def test_a_database_that_is_not_there_is_named(machine: Machine, command: str) -> None:
    done = machine.run(command)
    assert done.status == 1
    assert "hostler db upgrade" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["worker", "api"])
def test_a_temporal_that_is_away_is_named(machine: Machine, command: str) -> None:
    machine.up().send_signal(signal.SIGTERM)
    machine.started[0].wait()
    done = machine.run(command)
    assert done.status == 1
    assert f"Temporal at 127.0.0.1:{machine.temporal_port} does not answer: " in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_worker_and_api_run_on_their_own(machine: Machine, tmp_path: Path) -> None:
    """On another home's Temporal, with their own database and key."""
    machine.up()
    port = str(free_port())
    own = {"HOSTLER_API_PORT": port}
    token = machine.run("token", "create", "someone", "--role", "viewer", **own)
    assert token.status == 0, token.stderr
    worker = machine.start("worker", **own)
    assert machine.said(worker, "Worker on queue hostler")
    api = machine.start("api", **own)
    assert machine.said(api, f"API at http://127.0.0.1:{port}")
    headers = {"Authorization": f"Bearer {token.stdout.strip()}"}
    assert httpx.get(f"http://127.0.0.1:{port}/v1/hosts", headers=headers).status_code == 200
    for process in (worker, api):
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0, machine.stderr()


def test_the_api_speaks_tls(machine: Machine, tmp_path: Path) -> None:
    certificate, key = certified(tmp_path, "api", SERVERS, CertificateRole.SERVER)
    own, own_key = certified(tmp_path, "someone", CLIENTS)
    process = machine.start(
        "up",
        HOSTLER_API_TLS_CERT_FILE=str(certificate),
        HOSTLER_API_TLS_KEY_FILE=str(key),
        HOSTLER_API_TLS_CLIENT_CA_FILE=str(write(tmp_path / "clients.pem", CLIENTS.pem)),
    )
    url = f"https://127.0.0.1:{machine.api_port}"
    assert any(url in line for line in machine.said(process, "Admin token")), machine.stderr()
    shows = {
        "HOSTLER_API_URL": url,
        "HOSTLER_API_CA_FILE": str(write(tmp_path / "servers.pem", SERVERS.pem)),
        "HOSTLER_API_CLIENT_CERT_FILE": str(own),
        "HOSTLER_API_CLIENT_KEY_FILE": str(own_key),
    }
    listed = machine.run("zone", "list", **shows)
    assert (listed.status, listed.stderr) == (0, "")
    shows |= {"HOSTLER_API_CLIENT_CERT_FILE": "", "HOSTLER_API_CLIENT_KEY_FILE": ""}
    refused = machine.run("zone", "list", **shows)
    assert (refused.status, "HOSTLER_API_CLIENT_CERT_FILE" in refused.stderr) == (1, True)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0


def test_db_upgrade_may_be_repeated(machine: Machine) -> None:
    for _ in range(2):
        done = machine.run("db", "upgrade")
        assert (done.status, done.stderr) == (0, "")
        assert done.stdout == "The database is up to date.\n"


def test_a_wrong_role_is_refused(machine: Machine) -> None:
    done = machine.run("token", "create", "someone", "--role", "king")
    assert done.status == 2
    assert "king" in done.stderr


def test_a_home_that_was_there_is_private_all_the_same(machine: Machine) -> None:
    machine.home.mkdir(mode=0o755)
    process = machine.up()
    names = {path.name for path in machine.home.iterdir()}
    assert {"inventory.db", "temporal.db", "temporal.log"} <= names
    for path in machine.home.iterdir():
        assert mode(path) & 0o077 == 0, path
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0


def test_a_key_that_can_not_be_written_is_named(machine: Machine) -> None:
    done = machine.run("key", "create", HOSTLER_MASTER_KEY_FILE="/proc/master-key")
    assert done.status == 1
    assert "hostler: /proc/master-key can't be written: " in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_lost_key_is_not_replaced_where_no_token_tells(machine: Machine) -> None:
    assert machine.run("key", "create").status == 0
    assert machine.run("db", "upgrade").status == 0
    assert machine.run("token", "create", "someone").status == 0
    (machine.home / "master-key").unlink()
    done = machine.run("key", "create")
    assert done.status == 1
    assert "Put it back from your backup" in done.stderr
    assert not (machine.home / "master-key").exists()


def store(machine: Machine, *plaintexts: str) -> list[str]:
    """Ids of new passwords, stored with the keys of its home."""

    async def work() -> list[str]:
        async with open_inventory(Settings(home=machine.home)) as inventory:
            credentials = [("password", plaintext) for plaintext in plaintexts]
            return await inventory.secrets.store_all(credentials, actor="test")

    return asyncio.run(work())


def reveal(machine: Machine, secret: str) -> str:
    async def work() -> str:
        async with open_inventory(Settings(home=machine.home)) as inventory:
            return (await inventory.secrets.reveal(secret)).plaintext

    return asyncio.run(work())


def test_up_says_at_each_start_what_the_master_key_means(machine: Machine) -> None:
    for _ in range(2):
        process = machine.start("up")
        lines = "".join(machine.said(process, "Admin token"))
        assert f"Master key   {machine.home / 'master-key'}\n" in lines
        assert "who loses it loses every stored credential" in lines
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


@pytest.mark.parametrize("command", [("up",), ("worker",), ("api",), ("token", "create", "x")])
def test_a_wrong_key_is_named_at_start_and_nothing_is_overwritten(
    machine: Machine, command: tuple[str, ...]
) -> None:
    assert machine.run("db", "upgrade").status == 0
    assert machine.run("key", "create").status == 0
    (secret,) = store(machine, "canary-51f0")
    file = machine.home / "master-key"
    right, wrong = file.read_text(), SecretBox.new_key()
    file.write_text(wrong)
    with sqlite3.connect(machine.home / "inventory.db") as database:
        before = "\n".join(database.iterdump())
    done = machine.run(*command)
    assert done.status == 1
    assert len(done.stderr.splitlines()) == 1
    for named in ("A master key is missing: 1 stored", key_id(right.strip()), key_id(wrong)):
        assert named in done.stderr
    with sqlite3.connect(machine.home / "inventory.db") as database:
        assert "\n".join(database.iterdump()) == before
        assert "canary-51f0" not in before
    assert file.read_text() == wrong
    file.write_text(right)
    assert reveal(machine, secret) == "canary-51f0"


def test_a_key_that_others_may_read_ends_the_start(machine: Machine) -> None:
    machine.up().send_signal(signal.SIGTERM)
    machine.started[0].wait()
    (machine.home / "master-key").chmod(0o640)
    done = machine.run("up")
    assert done.status == 1
    assert "is not private: its mode is 0640" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_key_is_changed_while_up_runs_and_the_old_one_goes(machine: Machine) -> None:
    process = machine.up()
    file = machine.home / "master-key"
    old = key_id(file.read_text().strip())
    (secret,) = store(machine, "canary-51f0")
    added = machine.run("key", "add")
    new = key_id(file.read_text().split()[0])
    assert new in added.stdout
    refused = machine.run("key", "remove", old)
    assert refused.status == 1
    assert f"The master key {old} is needed: 1 stored credentials take it" in refused.stderr
    assert "hostler secret rekey" in refused.stderr
    rows = machine.run("key", "list").stdout.splitlines()[1:]
    assert [row.split() for row in rows] == [
        [old, "1", "yes", "encrypts", "new", "credentials"],
        [new, "0", "yes", "none:", "it", "may", "go"],
    ]
    done = machine.run("secret", "rekey")
    assert done.status == 0, done.stderr
    assert done.stdout.splitlines()[-2].startswith("1 done, 0 to do")
    listed = {
        use["key_id"]: (use["secrets"], use["encrypts"], use["may_go"])
        for use in json.loads(machine.run("key", "list", "--json").stdout)
    }
    assert listed == {new: (1, True, False), old: (0, False, True)}
    removed = machine.run("key", "remove", old)
    assert removed.status == 0, removed.stderr
    assert "Keep a copy" in removed.stdout
    assert [key_id(word) for word in file.read_text().split()] == [new]
    # The process that was started with the old one alone knows the new one now.
    token = (machine.home / "admin-token").read_text().strip()
    shown = httpx.post(
        f"http://127.0.0.1:{machine.api_port}/v1/secrets/{secret}/disclosure",
        headers={"Authorization": f"Bearer {token}"},
        json={"reason": "test"},
    )
    assert shown.json()["plaintext"] == "canary-51f0"
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    assert "canary-51f0" not in machine.stderr()


def test_a_change_of_the_key_is_killed_under_load_and_no_login_fails(machine: Machine) -> None:
    """All are real processes; `up` has the old key alone when it begins."""
    process = machine.up()
    file = machine.home / "master-key"
    old = key_id(file.read_text().strip())
    plain = [f"canary-51f0-{number}" for number in range(800)]
    secrets = dict(zip(store(machine, *plain), plain, strict=True))
    token = (machine.home / "admin-token").read_text().strip()
    stop = threading.Event()

    def show_over_and_over(number: int) -> int:
        shown = 0
        with httpx.Client(
            base_url=f"http://127.0.0.1:{machine.api_port}/v1/secrets",
            headers={"Authorization": f"Bearer {token}"},
        ) as api:
            mine = itertools.cycle(list(secrets)[number::7])
            while not stop.is_set():
                secret = next(mine)
                answer = api.post(f"/{secret}/disclosure", json={"reason": "test"}, timeout=60)
                assert answer.status_code == 200, answer.text
                assert answer.json()["plaintext"] == secrets[secret]
                shown += 1
        return shown

    hidden = [b"canary-51f0", file.read_text().strip().encode()]

    def look_at_processes() -> int:
        looks = 0
        while not stop.is_set():
            for of in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    assert not any(word in of.read_bytes() for word in hidden), of
            looks += 1
        return looks

    with ThreadPoolExecutor(7) as threads:
        load = [threads.submit(show_over_and_over, number) for number in range(6)]
        load.append(threads.submit(look_at_processes))
        try:
            assert machine.run("key", "add").status == 0
            for least in (100, 300):
                rekey = machine.start("secret", "rekey")
                assert rekey.stdout is not None
                done, left = 0, 800
                while done < least:
                    line = rekey.stdout.readline()
                    done, left = (int(word) for word in re.findall(r"\d+", line))
                assert left > 0
                rekey.kill()
                rekey.wait()
                refused = machine.run("key", "remove", old)
                assert f"The master key {old} is needed" in refused.stderr
            last = machine.run("secret", "rekey")
            assert last.status == 0, last.stderr
            removed = machine.run("key", "remove", old)
            assert removed.status == 0, removed.stderr
        finally:
            stop.set()
        assert all(one.result() > 0 for one in load)
    (use,) = json.loads(machine.run("key", "list", "--json").stdout)
    assert (use["secrets"], use["encrypts"]) == (800, True)
    assert use["key_id"] != old
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0


def test_what_was_shown_is_in_the_answer_and_nowhere_else(machine: Machine) -> None:
    canary = "canary-5b1e-very-secret-indeed"
    verbose = {"HOSTLER_LOG_LEVEL": "debug", "OTEL_TRACES_EXPORTER": "console"}
    process = machine.start("up", **verbose)
    machine.said(process, "Admin token")
    (secret,) = store(machine, canary)
    token = (machine.home / "admin-token").read_text().strip()
    shown = httpx.post(
        f"http://127.0.0.1:{machine.api_port}/v1/secrets/{secret}/disclosure",
        headers={"Authorization": f"Bearer {token}"},
        json={"reason": "test"},
    )
    assert shown.json()["plaintext"] == canary
    assert "canary" not in "".join(machine.processes().values())
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    said = process.stdout.read() + machine.stderr()
    assert process.wait() == 0
    # The traces are there, so their silence means something.
    assert f"/v1/secrets/{secret}/disclosure" in said
    key = (machine.home / "master-key").read_text().strip()
    texts = [said.encode(), *(path.read_bytes() for path in machine.home.iterdir())]
    for hidden in (canary, key):
        inner = base64.b64encode(hidden.encode())[:-4]
        for form in (hidden.encode(), inner, hidden.encode().hex().encode()):
            found = sum(form in text for text in texts)
            assert found == (1 if form == key.encode() else 0), form


def test_a_lost_key_is_given_up_on_purpose_alone(machine: Machine) -> None:
    assert machine.run("db", "upgrade").status == 0
    assert machine.run("key", "create").status == 0
    store(machine, "one", "other")
    file = machine.home / "master-key"
    old = key_id(file.read_text().strip())
    file.unlink()
    assert machine.run("key", "create").status == 1
    assert machine.run("key", "add").status == 0
    refused = machine.run("token", "create", "someone")
    assert refused.status == 1
    assert f"hostler key give-up {old} --reason" in refused.stderr
    done = machine.run("key", "give-up", old, "--reason", "the disk died")
    assert (done.status, done.stdout) == (
        0,
        f"The master key {old} is given up, and 2 credentials with it.\n",
    )
    assert machine.run("token", "create", "someone").status == 0
    assert "given up: these credentials are lost" in machine.run("key", "list").stdout
    failed = machine.run("secret", "rekey")
    assert failed.status == 1
    assert "2 can't be read and stayed as they are" in failed.stderr


def test_keys_of_the_environment(machine: Machine) -> None:
    assert machine.run("db", "upgrade").status == 0
    one, other = SecretBox.new_key(), SecretBox.new_key()
    own = {"HOSTLER_MASTER_KEYS": f"{one} {other}"}
    assert machine.run("token", "create", "someone", **own).status == 0
    assert machine.run("key", "create", **own).status == 0
    assert not (machine.home / "master-key").exists()
    rows = machine.run("key", "list", **own).stdout.splitlines()[1:]
    assert [row.split()[0] for row in rows] == [key_id(one), key_id(other)]
    for change in (("key", "add"), ("key", "remove", key_id(other))):
        refused = machine.run(*change, **own)
        assert refused.status == 1
        assert "The master keys come from HOSTLER_MASTER_KEYS" in refused.stderr
    wrong = machine.run("token", "create", "x", HOSTLER_MASTER_KEYS="c2hvcnQ=")
    assert wrong.status == 1
    assert "not 32 bytes in base64" in wrong.stderr
    assert "c2hvcnQ=" not in wrong.stderr


def test_from_a_file_to_a_key_service(machine: Machine, key_service: OpenBao) -> None:
    assert machine.run("db", "upgrade").status == 0
    assert machine.run("key", "create").status == 0
    (secret,) = store(machine, "canary-51f0")
    file = machine.home / "master-key"
    old = key_id(file.read_text().strip())
    own = {
        "HOSTLER_KEY_SERVICE_URL": key_service.url,
        "HOSTLER_KEY_SERVICE_TOKEN_FILE": str(key_service.token_file),
        "HOSTLER_KEY_SERVICE_CA_FILE": str(key_service.ca_file),
    }
    for command in (("key", "add"), ("secret", "rekey"), ("key", "remove", old)):
        done = machine.run(*command, **own)
        assert done.status == 0, done.stderr
    (wrapped,) = file.read_text().split()
    assert wrapped.startswith("vault:")
    process = machine.start("up", **own)
    lines = "".join(machine.said(process, "Admin token"))
    assert f"{file}, wrapped by {key_service.url}\n" in lines
    token = (machine.home / "admin-token").read_text().strip()
    shown = httpx.post(
        f"http://127.0.0.1:{machine.api_port}/v1/secrets/{secret}/disclosure",
        headers={"Authorization": f"Bearer {token}"},
        json={"reason": "test"},
    )
    assert shown.json()["plaintext"] == "canary-51f0"
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    away = machine.run(
        "token", "create", "x", **{**own, "HOSTLER_KEY_SERVICE_URL": "https://[::1]:1"}
    )
    assert away.status == 1
    assert "The key service at https://[::1]:1 does not answer" in away.stderr
    assert len(away.stderr.splitlines()) == 1


def test_a_new_installation_makes_its_own_key_once(machine: Machine) -> None:
    assert machine.run("db", "upgrade").status == 0
    refused = machine.run("token", "create", "someone")
    assert refused.status == 1
    assert "hostler key create" in refused.stderr
    made = machine.run("key", "create")
    assert "Back it up" in made.stdout
    key = (machine.home / "master-key").read_text()
    assert key not in made.stdout
    assert machine.run("key", "create").status == 0
    assert (machine.home / "master-key").read_text() == key
    assert machine.run("token", "create", "someone", "--role", "admin").stdout.strip()
