"""Passwords of hosts that are SSH servers, each with an /etc/shadow of its own; libvirt is
simulated, all else is real."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import asyncssh
import pytest

from tests.e2e.system import Process
from tests.seed import seed_of_the_day
from tests.simulation.accounts import POINTS
from tests.simulation.ssh_hosts import SshHost
from tests.simulation.ssh_system import CLUSTER, SshSystem

pytestmark = pytest.mark.timeout(900)

OLD = "simulated"
HOSTS = 3
# 128 characters, with all that shells, chpasswd and PAM might take for something else.
ODD = "".join(["'\"\\ $:`#!~*?&|;<>(){}[]%@=+,.^ äöüß€日本 -n \\n $(id) ", "x" * 90])[:128]


class Rotation:
    """The system, and hosts that were added to it."""

    def __init__(
        self,
        simulation: SshSystem,
        hosts: Sequence[SshHost],
        worker: Process,
        deaths: Path,
        options: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.simulation = simulation
        self.system = simulation.system
        self.hosts = hosts
        self._worker = worker
        self._deaths = deaths
        self._options = options

    async def rotate(self, *options: str, password: str | None = None) -> Any:
        """`hostler passwords rotate --watch`."""
        if password is not None:
            path = self.simulation.directory / "new"
            path.write_text(password + "\n")
            options = (*options, "--password-file", str(path))
        return await self.system.hostler("passwords", "rotate", CLUSTER, "--watch", *options)

    def kill_at(self, death: str) -> None:
        """The next worker that comes there is killed: see tests.simulation.accounts."""
        (self._deaths / death).touch()

    def end_deaths(self) -> set[str]:
        """Nobody is killed from now on; those that nobody came to."""
        missed = {path.name for path in self._deaths.iterdir()}
        for name in missed:
            (self._deaths / name).unlink()
        return missed

    async def keep_alive(self, work: asyncio.Task[Any]) -> int:
        """A new worker for each that dies, until `work` has ended; how many died."""
        died = 0
        while not work.done():
            if self._worker.poll() is not None:
                died += 1
                self._worker = await self.simulation.worker(
                    SIMULATION_DEATHS=str(self._deaths), **self._options
                )
            await asyncio.sleep(0.2)
        return died

    def directory(self, host: SshHost) -> Path:
        return self.simulation.directory / "hosts" / host.name

    def refuse(self, host: SshHost) -> Callable[[], None]:
        """PAM there refuses every new password, as a rule of its own would; what ends that."""
        rule = self.directory(host) / "etc" / "pam.d" / "chpasswd"
        rule.parent.mkdir(exist_ok=True)
        rule.write_text("password required pam_deny.so\n")

        def end() -> None:
            rule.write_text(Path("/etc/pam.d/chpasswd").read_text())

        return end

    def prepare_refusals(self) -> None:
        """For `refuse` after PAM was asked there: a file that comes below an overlay later than it
        was looked for is not seen."""
        for host in self.hosts:
            self.refuse(host)()

    async def status(self) -> Any:
        return (
            await self.system.request("GET", f"/v1/clusters/{CLUSTER}/password-rotation")
        ).json()

    async def takes(self, host: SshHost, password: str) -> bool:
        """From outside: whether a login gets in with it."""
        return await takes(host, password)

    async def all_take(self, password: str, *, but: Sequence[str] = ()) -> bool:
        """All of them take it, and refuse what is not it."""
        taken = [await takes(host, password) for host in self.hosts if host.name not in but]
        return all(taken)

    def shadow(self, host: SshHost) -> Path:
        return self.directory(host) / "etc" / "shadow"

    def hash_of(self, host: SshHost) -> str:
        return self.shadow(host).read_text().split(":")[1]


async def takes(host: SshHost, password: str) -> bool:
    try:
        connection = await asyncssh.connect(
            host.address,
            host.port,
            username="root",
            password=password,
            known_hosts=None,
            client_keys=None,
            preferred_auth=["password"],
            config=None,
        )
    except asyncssh.PermissionDenied:
        return False
    connection.abort()
    return True


@pytest.fixture
async def rotation(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Rotation]:
    """Three hosts, added by their password, with Hostler's own key on each."""
    record = bool(request.config.getoption("--record-histories"))
    simulation = SshSystem(tmp_path, hosts=HOSTS, record_histories=record, forked=True)
    hosts = await simulation.start_hosts()
    await simulation.up()
    (tmp_path / "deaths").mkdir()
    worker = await simulation.worker(SIMULATION_DEATHS=str(tmp_path / "deaths"))
    said = await simulation.system.hostler("host", "import", str(simulation.write_list(hosts)))
    assert said.status == 0, said
    yield Rotation(simulation, hosts, worker, tmp_path / "deaths")
    simulation.system.stop()


async def test_a_random_password_then_odd_ones(rotation: Rotation) -> None:
    system = rotation.system
    said = await rotation.rotate("--reason", "quarterly")
    assert said.status == 0, said.stdout + said.stderr
    assert f"{HOSTS} hosts of {CLUSTER} have a new password" in said.stdout
    assert not any([await rotation.takes(host, OLD) for host in rotation.hosts])
    assert all(rotation.hash_of(host).startswith("$y$") for host in rotation.hosts)
    await system.record(f"rotation/{CLUSTER}", "password_rotation")

    assert len(ODD) == 128
    said = await rotation.rotate(password=ODD)
    assert said.status == 0, said.stdout + said.stderr
    assert await rotation.all_take(ODD)

    verified = await system.hostler("passwords", "verify", CLUSTER)
    assert verified.status == 0, verified
    assert f"{HOSTS} hosts of {CLUSTER} were looked at: all agree." in verified.stdout
    await system.record(f"password-verification/{CLUSTER}", "password_verification")


async def test_a_host_that_refuses_has_all_put_back(rotation: Rotation) -> None:
    rotation.refuse(rotation.hosts[1])
    said = await rotation.rotate(password="new-and-refused")
    assert said.status == 1
    assert "have the password that they had before" in said.stderr
    assert f"{rotation.hosts[1].name}: " in said.stderr
    assert await rotation.all_take(OLD)
    assert not any([await rotation.takes(host, "new-and-refused") for host in rotation.hosts])
    await rotation.system.record(f"rotation/{CLUSTER}", "password_rotation_put_back")


async def test_a_host_that_refuses_holds_the_change(rotation: Rotation) -> None:
    end_refusal = rotation.refuse(rotation.hosts[1])
    system, name = rotation.system, rotation.hosts[1].name
    said = await rotation.rotate("--on-failure", "hold", password="new-and-held")
    assert said.status == 1
    assert "waits" in said.stderr
    assert f"hostler passwords skip-host {CLUSTER} {name} --reason" in said.stdout
    held = {one["host"]: (one["state"], one["held"]) for one in (await rotation.status())["hosts"]}
    assert held.pop(name) == ("failed", "former")
    assert set(held.values()) == {("proven", "new")}
    assert await rotation.takes(rotation.hosts[1], OLD)
    assert await rotation.all_take("new-and-held", but=[name])

    other = await system.hostler("passwords", "skip-host", CLUSTER, "ssh-1", "--reason", "no")
    assert (other.status, "has not failed" in other.stderr) == (1, True)
    end_refusal()
    assert (await system.hostler("passwords", "retry", CLUSTER)).status == 0
    said = await system.hostler("passwords", "status", CLUSTER, "--watch")
    assert said.status == 0, said
    assert await rotation.all_take("new-and-held")
    await system.record(f"rotation/{CLUSTER}", "password_rotation_held")


async def test_a_host_that_is_skipped_is_brought_up_to_date_later(rotation: Rotation) -> None:
    end_refusal = rotation.refuse(rotation.hosts[1])
    system, name = rotation.system, rotation.hosts[1].name
    await rotation.rotate("--on-failure", "hold", password="new-but-not-there")
    skipped = await system.hostler(
        "passwords", "skip-host", CLUSTER, name, "--reason", "its disk is full"
    )
    assert skipped.status == 0, skipped
    assert (await system.hostler("passwords", "status", CLUSTER, "--watch")).status == 0
    assert await rotation.takes(rotation.hosts[1], OLD)
    verified = await system.hostler("passwords", "verify", CLUSTER)
    assert (verified.status, f"{name}" in verified.stdout) == (1, True), verified
    assert any("its disk is full" in line for line in await system.events(f"host/{name}"))
    end_refusal()
    while not await rotation.takes(rotation.hosts[1], "new-but-not-there"):
        await system.temporal("schedule", "trigger", "--schedule-id", "host-check")
        await asyncio.sleep(3)
    assert (await system.hostler("passwords", "verify", CLUSTER)).status == 0
    await system.record("housekeeping", "housekeeping_passwords")


async def test_one_host_alone_where_hosts_may_differ(rotation: Rotation) -> None:
    one, *others = rotation.hosts
    only = ("--host", one.name)
    refused = await rotation.rotate(*only, password="its-own")
    assert refused.status == 1
    assert "password.hosts.may.differ" in refused.stderr
    await rotation.system.set("password.hosts.may.differ", "true")
    rotation.prepare_refusals()
    end_refusal = rotation.refuse(one)
    put_back = await rotation.rotate(*only, password="its-own")
    assert put_back.status == 1
    assert await rotation.all_take(OLD)
    end_refusal()
    said = await rotation.rotate(*only, password="its-own")
    assert said.status == 0, said.stdout + said.stderr
    assert await rotation.takes(one, "its-own")
    assert not await rotation.takes(one, OLD)
    for other in others:
        assert await rotation.takes(other, OLD)
        assert not await rotation.takes(other, "its-own")
    said = await rotation.rotate(password="for-all")
    assert said.status == 0, said.stdout + said.stderr
    assert await rotation.all_take("for-all")


async def test_a_cable_that_is_mended_in_time(rotation: Rotation) -> None:
    cut = rotation.hosts[1]
    (rotation.directory(cut) / "cut-after-set").touch()
    work = asyncio.create_task(rotation.rotate(password="new-after-all"))
    while not (rotation.directory(cut) / "cut").exists():
        await asyncio.sleep(0.1)
    await asyncio.sleep(4)
    (rotation.directory(cut) / "cut").unlink()
    assert (await work).status == 0
    assert await rotation.all_take("new-after-all")
    assert not await rotation.takes(cut, OLD)


def deaths(request: pytest.FixtureRequest) -> list[tuple[str, str]]:
    """All points on all hosts with `--matrix`; else one point per host, by the day."""
    names = [f"ssh-{number}" for number in range(1, HOSTS + 1)]
    if request.config.getoption("--matrix"):
        return [(name, point) for name in names for point in POINTS]
    chance = random.Random(seed_of_the_day())  # noqa: S311 - no secret comes of it
    return [(name, chance.choice(POINTS)) for name in names]


@pytest.mark.some_a_day("ends", ["promoted", "put back"])
async def test_workers_killed_at_each_step_on_each_host(
    rotation: Rotation, request: pytest.FixtureRequest, ends: str
) -> None:
    """In each case all hosts end with one password that Hostler knows."""
    places, before = deaths(request), OLD if ends == "promoted" else "had-before"
    if ends == "put back":
        # The last one refuses: the others get back what they had, and workers die on the way.
        rotation.prepare_refusals()
        assert (await rotation.rotate(password=before)).status == 0
        rotation.refuse(rotation.hosts[-1])
        places = [(name, point) for name, point in places if name != rotation.hosts[-1].name]
    for host, point in places:
        rotation.kill_at(f"{host}.{point}")
    work = asyncio.create_task(rotation.rotate(password="survives-everything"))
    died = await rotation.keep_alive(work)
    said = await work
    assert died > 0
    expected, other = "survives-everything", before
    if ends == "put back":
        expected, other = other, expected
    assert said.status == (0 if ends == "promoted" else 1), said.stdout + said.stderr
    assert await rotation.all_take(expected)
    assert not any([await rotation.takes(host, other) for host in rotation.hosts])
    verified = await rotation.system.hostler("passwords", "verify", CLUSTER)
    assert verified.status == 0, verified
