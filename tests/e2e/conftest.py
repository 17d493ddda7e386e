"""The lab with Hostler on it: hosts kvm-1 to kvm-3 added, guests vm-1 to vm-3 on kvm-1."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from tests.e2e.killing import choices_of_moments
from tests.e2e.prepared import Prepared
from tests.e2e.system import System
from tests.lab import Lab

HOSTS = ("kvm-1", "kvm-2", "kvm-3")
GUESTS = ("vm-1", "vm-2", "vm-3")
HOME = "kvm-1"
_DATABASE = "hostler"
_ORIGINAL = "hostler_with_hosts"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """For tests that kill a worker at each step: at which, and when."""
    if "moments" in metafunc.fixturenames:
        everything = bool(metafunc.config.getoption("--matrix"))
        choices = choices_of_moments(all_of_them=everything)
        metafunc.parametrize("moments", choices.values(), ids=list(choices))


async def together(*calls: Coroutine[Any, Any, object]) -> None:
    """All of them at once, each to its end also if another fails: a command that is cancelled with
    its test holds up the event loop's end for ever."""
    for ended in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(ended, BaseException):
            raise ended


@pytest.fixture(scope="session")
def definitions() -> dict[str, str]:
    """Each guest as this run has started it: what `_seen` gave."""
    return {}


@pytest_asyncio.fixture
async def guests(lab: Lab, definitions: dict[str, str]) -> tuple[str, ...]:
    """As if just started, all on kvm-1, no others in the lab, and no trace of Hostler on the hosts.
    Those that nobody has touched run on: to boot takes an emulated machine longest."""
    await together(*(lab.make_bare(host) for host in HOSTS))
    at_home = {guest["name"]: guest["hosts"] == [HOME] for guest in (await lab.status())["guests"]}
    untouched = {
        guest
        for guest in GUESTS
        if at_home.get(guest) and await _seen(lab, guest) == definitions.get(guest)
    }
    missing = set(GUESTS) - untouched
    await together(*(lab.remove_guest(guest) for guest in {*at_home, *GUESTS} - untouched))
    await together(*(lab.start_guest(guest, on=HOME) for guest in missing))
    for guest in missing:
        definitions[guest] = await _seen(lab, guest)
    return GUESTS


async def _seen(lab: Lab, guest: str) -> str:
    """What a test may change of a guest, and can be seen on its first host: its id is new with each
    start."""
    looks = ("domid", "dumpxml --inactive", "dumpxml --migratable", "domstate", "snapshot-list")
    script = "; ".join(f"virsh -c qemu:///system {look} {guest}" for look in looks)
    return (await lab.exec(HOME, "sh", "-c", script, check=False)).stdout


@pytest.fixture
def installations(
    tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., System]]:
    """Makes systems, and ends what they have started."""
    numbers = itertools.count(1)
    systems: list[System] = []

    def make(*, database_url: str | None = None) -> System:
        record = bool(request.config.getoption("--record-histories"))
        directory = tmp_path / f"system-{next(numbers)}"
        system = System(directory, database_url=database_url, record_histories=record, forked=True)
        systems.append(system)
        return system

    yield make
    for system in systems:
        system.stop()


@pytest_asyncio.fixture
async def embedded(installations: Callable[..., System], guests: tuple[str, ...]) -> System:
    """A System on SQLite, not running yet; its hosts are clean and unknown."""
    return installations()


@pytest_asyncio.fixture
async def populated(embedded: System, lab: Lab, embedded_original: Prepared) -> System:
    """A System on SQLite, not running yet; the hosts of the lab were added."""
    await embedded_original.give(embedded, lab)
    return embedded


@pytest_asyncio.fixture
async def split(
    installations: Callable[..., System],
    postgresql_server: str,
    guests: tuple[str, ...],
) -> System:
    """A System on PostgreSQL whose Temporal and API run, each in a process of its own; its hosts
    are clean and unknown."""
    _create_database(postgresql_server, _DATABASE)
    system = installations(database_url=f"{postgresql_server}/{_DATABASE}")
    await _start_split(system)
    return system


@pytest_asyncio.fixture
async def populated_split(
    installations: Callable[..., System],
    postgresql_server: str,
    guests: tuple[str, ...],
    lab: Lab,
    split_original: Prepared,
) -> System:
    """The same, to which the hosts of the lab were added."""
    system = installations(database_url=f"{postgresql_server}/{_DATABASE}")
    await split_original.give(system, lab)
    _create_database(postgresql_server, _DATABASE, template=_ORIGINAL)
    await system.temporal_server()
    await system.api()
    return system


@pytest.fixture(scope="session")
def embedded_original(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    async def make(directory: Path) -> System:
        system = System(directory, forked=True)
        with ExitStack() as at_the_end:
            at_the_end.callback(system.stop)
            await system.up()
            await add_hosts(system, lab)
        return system

    return Prepared(tmp_path_factory.mktemp("embedded"), make)


@pytest.fixture(scope="session")
def split_original(
    lab: Lab, postgresql_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Prepared:
    async def make(directory: Path) -> System:
        _create_database(postgresql_server, _ORIGINAL)
        system = System(directory, database_url=f"{postgresql_server}/{_ORIGINAL}", forked=True)
        with ExitStack() as at_the_end:
            at_the_end.callback(system.stop)
            await _start_split(system)
            await system.worker()
            await add_hosts(system, lab)
        return system

    return Prepared(tmp_path_factory.mktemp("split"), make)


async def _start_split(system: System) -> None:
    """All but a worker, on a database that is empty."""
    await system.temporal_server()
    await system.done("db", "upgrade")
    await system.done("key", "create")
    token = await system.done("token", "create", "admin", "--role", "admin")
    (system.home / "admin-token").write_text(token)
    await system.api()


def _create_database(server: str, name: str, template: str = "template1") -> None:
    """Anew."""
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name}")
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")


async def add_topology(system: System, *, enabled: bool = True) -> None:
    """zone-1, pod-1 and cluster-1, the latter enabled or as it is made. A worker has to run."""
    places = (
        ("zones", {"name": "zone-1"}),
        ("pods", {"name": "pod-1", "zone": "zone-1"}),
        ("clusters", {"name": "cluster-1", "pod": "pod-1"}),
    )
    for kind, place in places:
        answer = await system.request("POST", f"/v1/{kind}", json=place)
        assert answer.status_code == 201, answer.text
    for kind, place in places:
        if enabled or kind != "clusters":
            path = f"/v1/{kind}/{place['name']}"
            await system.ended(
                await system.request("PATCH", path, json={"allocation_state": "Enabled"})
            )


async def add_hosts(system: System, lab: Lab, *, enabled: bool = True) -> None:
    """All hosts of the lab, as an operator adds them, into a cluster that is enabled or not."""
    await add_topology(system, enabled=enabled)
    rows = (await lab.status())["hosts"]
    await together(*(add_host(system, row) for row in rows))


async def add_host(
    system: System, row: dict[str, str], *more: str, cluster: str = "cluster-1"
) -> None:
    """One host of `lab status`."""
    await system.done(
        *("host", "add", row["name"], "--cluster", cluster, "--address", row["address"]),
        *("--password-file", row["password_file"], "--accept-host-key", row["host_key_sha256"]),
        # Every lab host reports all of the machine's memory.
        *("--capacity-memory-mib", "512", *more),
    )


async def enable_bmcs(system: System, lab: Lab) -> None:
    """Hostler may switch the power of every host of the lab."""
    bmcs = {row["name"]: row["bmc"] for row in (await lab.status())["hosts"]}
    await together(
        *(
            system.done(
                *("oobm", "configure", host, "--address", bmc["address"]),
                *("--port", str(bmc["port"]), "--user", bmc["user"]),
                *("--password-file", bmc["password_file"], "--enable"),
            )
            for host, bmc in bmcs.items()
        )
    )


async def slow_down(system: System) -> None:
    """A guest takes about 20 seconds to move: long enough to kill things in the middle."""
    await system.set("migration.bandwidth", "5")
    await system.set("migration.parallel.max", "3")


async def speed_up(system: System) -> None:
    """Migrations that begin from now on are as fast as they can be."""
    await system.unset("migration.bandwidth")
