"""Whoever is killed at whichever step of a change of passwords, on whichever host: it ends with all
hosts on one password that Hostler knows.

With `--matrix`, all cells, and docs/password-matrix.md is written, again after each change. Without
it, some of them, by a seed (MATRIX_SEED, or the day).
"""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from tests.postgres import PostgresqlServer, postgresql_server
from tests.seed import seed_of_the_day
from tests.simulation import rotation_matrix
from tests.simulation.commit_cutter import CommitCutter, CutAt
from tests.simulation.rotation_matrix import (
    HOSTS,
    NOTICED_WITHIN_S,
    REFUSES,
    ROWS,
    Cell,
    Ends,
    Record,
    Records,
    Row,
)
from tests.simulation.ssh_system import CLUSTER, SshSystem
from tests.simulation.test_password_rotation import Rotation

pytestmark = [pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

_KEPT = "hostler/password-matrix"
_CHOSEN = {Ends.PROMOTED: 1, Ends.PUT_BACK: 1}
_AWAY_S = 1.0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    rows = list(ROWS)
    if not metafunc.config.getoption("--matrix"):
        chance = random.Random(seed_of_the_day())  # noqa: S311 - no secret comes of it
        rows = [chance.choice([row for row in ROWS if row.is_of_database])]
        for ends, number in _CHOSEN.items():
            others = [row for row in ROWS if row.ends is ends and not row.is_of_database]
            rows += chance.sample(others, number)
    metafunc.parametrize("row", rows, ids=[row.key for row in rows])


class Bench:
    """A system on PostgreSQL with three hosts, for one change after another."""

    def __init__(
        self, rotation: Rotation, cutter: CommitCutter, database: PostgresqlServer
    ) -> None:
        self.rotation = rotation
        self.cutter = cutter
        self.database = database
        self.current = ""
        self._numbers = itertools.count(1)

    def next_password(self) -> str:
        return f"password-number-{next(self._numbers)}"

    async def begin(self) -> None:
        """The cluster gets its first password."""
        self.rotation.prepare_refusals()
        self.current = self.next_password()
        said = await self.rotation.rotate(password=self.current)
        assert said.status == 0, said


class Benches:
    """One at a time; one on which something went wrong is not used again."""

    def __init__(self, new_directory: Callable[[], Path]) -> None:
        self._new_directory = new_directory
        self._bench: Bench | None = None
        self._stack = AsyncExitStack()

    async def bench(self) -> Bench:
        if self._bench is None:
            self._bench = await self._build(self._new_directory())
            await self._bench.begin()
        return self._bench

    async def discard(self) -> None:
        self._bench = None
        await self._stack.aclose()

    async def _build(self, directory: Path) -> Bench:
        server = self._stack.enter_context(postgresql_server())
        with psycopg.connect(f"{server.url}/postgres", autocommit=True) as connection:
            connection.execute("CREATE DATABASE hostler")
        cutter = CommitCutter(server.port, server.kill)
        await self._stack.enter_async_context(cutter.serving())
        url = server.url.replace(str(server.port), str(cutter.port))
        simulation = SshSystem(
            directory, hosts=len(HOSTS), database_url=f"{url}/hostler", forked=True
        )
        # The way to the database is in this process, and is needed for that.
        self._stack.push_async_callback(asyncio.to_thread, simulation.system.stop)
        hosts = await simulation.start_hosts()
        await simulation.up()
        deaths = self._new_directory()
        options = {"SIMULATION_NOTICED_S": str(NOTICED_WITHIN_S)}
        worker = await simulation.worker(SIMULATION_DEATHS=str(deaths), **options)
        listed = str(simulation.write_list(hosts))
        said = await simulation.system.hostler("host", "import", listed)
        assert said.status == 0, said
        return Bench(Rotation(simulation, hosts, worker, deaths, options), cutter, server)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def benches(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Benches]:
    benches = Benches(lambda: tmp_path_factory.mktemp("rotation"))
    yield benches
    await benches.discard()


@pytest.fixture(scope="module")
def records(request: pytest.FixtureRequest) -> Records:
    """Of the cells, also from earlier runs; with --matrix they become the document."""
    cache = request.config.cache
    assert cache is not None

    def keep(records: dict[str, Record]) -> None:
        if request.config.getoption("--matrix"):
            cache.set(_KEPT, records)
            rotation_matrix.write(records)

    return Records(cache.get(_KEPT, {}), keep)


async def test_all_hosts_end_on_one_password_that_hostler_knows(
    benches: Benches, records: Records, row: Row
) -> None:
    left = set(row.cells)
    while left:
        try:
            seconds, met, note = await run(await benches.bench(), left)
        except BaseException as error:
            if not isinstance(error, (KeyboardInterrupt, asyncio.CancelledError)):
                (first, *_) = str(error).splitlines() or [type(error).__name__]
                records.add(left, f"**FAILED**: {first[:200]}")
            await benches.discard()
            raise
        deaths = "1 death" if len(met) == 1 else f"{len(met)} deaths"
        records.add(met, f"{row.ends}, {seconds:.0f} s, {deaths}{note}")
        left -= met


async def run(bench: Bench, cells: Collection[Cell]) -> tuple[float, set[Cell], str]:
    """One change, with the deaths of cells of a row; the seconds that it took, in which of them
    somebody has died, and what else there is to say."""
    rotation, new, old = bench.rotation, bench.next_password(), bench.current
    (ends,) = {cell.ends for cell in cells}
    refuses = next(one for one in rotation.hosts if one.name == REFUSES)
    end_refusal = rotation.refuse(refuses) if ends is Ends.PUT_BACK else None
    began = time.monotonic()
    if any(isinstance(cell.death, CutAt) for cell in cells):
        said, met, note = await _with_dying_database(bench, cells, new)
    else:
        note = ""
        said, met = await _with_dying_workers(bench, cells, new)
    seconds = time.monotonic() - began
    if end_refusal is not None:
        end_refusal()
    promoted = ends is Ends.PROMOTED
    assert said.status == (0 if promoted else 1), said.stdout + said.stderr
    if promoted:
        bench.current = new
    else:
        assert "have the password that they had before" in said.stderr
    assert await rotation.all_take(bench.current)
    other = old if promoted else new
    assert not any([await rotation.takes(host, other) for host in rotation.hosts])
    shown = await rotation.system.hostler(
        "secret", "show", "--cluster", CLUSTER, "--reason", "the matrix"
    )
    assert (shown.status, shown.stdout.strip()) == (0, bench.current), shown.stderr
    verified = await rotation.system.hostler("passwords", "verify", CLUSTER)
    assert verified.status == 0, verified
    return seconds, met, note


async def _with_dying_workers(
    bench: Bench, cells: Collection[Cell], new: str
) -> tuple[Any, set[Cell]]:
    rotation = bench.rotation
    for cell in cells:
        rotation.kill_at(cell.death)
    work = asyncio.create_task(rotation.rotate(password=new))
    died = await rotation.keep_alive(work)
    missed = rotation.end_deaths()
    met = {cell for cell in cells if cell.death not in missed}
    assert 0 < died == len(met), f"{died} deaths; met: {sorted(cell.key for cell in met)}"
    return await work, met


async def _with_dying_database(
    bench: Bench, cells: Collection[Cell], new: str
) -> tuple[Any, set[Cell], str]:
    (cell,) = cells
    before = _current_version(bench)
    bench.cutter.arm(b"is current", CutAt(cell.death))
    work = asyncio.create_task(bench.rotation.rotate(password=new))
    cut = asyncio.create_task(bench.cutter.cut.wait())
    await asyncio.wait({work, cut}, return_when=asyncio.FIRST_COMPLETED)
    assert cut.done(), await work
    try:
        await asyncio.sleep(_AWAY_S)
    finally:
        await asyncio.to_thread(bench.database.start)
    committed = _current_version(bench) != before
    bench.cutter.reopen()
    if cell.death != CutAt.UNDER_WAY:
        assert committed is (cell.death == CutAt.AFTER)
    return await work, {cell}, f"; it {'was' if committed else 'was not'} committed"


def _current_version(bench: Bench) -> int:
    """By the database itself."""
    with psycopg.connect(f"{bench.database.url}/hostler") as connection:
        rows = connection.execute("SELECT version FROM cluster_password WHERE state = 'current'")
        ((version,),) = rows.fetchall()
    return int(version)
