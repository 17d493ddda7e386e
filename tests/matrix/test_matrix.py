"""Whatever is killed or cut at whichever step of a maintenance: it goes on, and no VM suffers.

With `--matrix`, all cells, at most one on a maintenance's way in and one after, and
docs/fault-matrix.md is written. Without, a cell of every other row, by a seed (MATRIX_SEED, or the
day), all in one maintenance.
"""

import asyncio
import itertools
import random
from collections.abc import Iterator

import pytest

from tests.lab import Lab
from tests.matrix import report
from tests.matrix.bench import Benches
from tests.matrix.cells import CELLS, Cell, Maintenance
from tests.matrix.steps import STEPS, Stage
from tests.seed import seed_of_the_day

pytestmark = pytest.mark.timeout(1200)

Records = dict[str, report.Record]

_KEPT = "hostler/fault-matrix"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.config.getoption("--matrix"):
        chains = [("+".join(cell.key for cell in chain), chain) for chain in _all()]
    else:
        seed = seed_of_the_day()
        chains = [(f"seed-{seed}", _chosen(random.Random(seed)))]  # noqa: S311 - no secret comes of it
    metafunc.parametrize("cells", [chain for _, chain in chains], ids=[name for name, _ in chains])


def _all() -> list[list[Cell]]:
    """What comes after the way in shares its maintenance with a cell of its own column, unless it
    would be unclear with which of the two faults a VM was lost."""
    entering = [[cell] for cell in CELLS if cell.step.stage is Stage.ENTERING]
    alone = []
    for cell in CELLS:
        if cell.step.stage is Stage.ENTERING:
            continue
        free = (chain for chain in entering if len(chain) == 1 and chain[0].fault is cell.fault)
        if cell.fault.kills_destination:
            alone.append([cell])
        else:
            next(free).append(cell)
    return entering + alone


def _chosen(numbers: random.Random) -> list[Cell]:
    """A cell of every other row, each column as often as any other.

    Not of neighbours: the recovery from a fault may outlast the next step.
    """
    columns = sorted({cell.fault.key for cell in CELLS})
    numbers.shuffle(columns)
    chain = []
    for step, wanted in zip(
        STEPS[numbers.randrange(2) :: 2], itertools.cycle(columns), strict=False
    ):
        possible = {cell.fault.key: cell for cell in CELLS if cell.step is step}
        chain.append(possible.get(wanted) or possible["worker-before"])
    return chain


@pytest.fixture(scope="module")
def records(request: pytest.FixtureRequest) -> Iterator[Records]:
    """Of the cells, also from earlier runs; with --matrix they become the document."""
    cache = request.config.cache
    assert cache is not None
    kept: Records = cache.get(_KEPT, {})
    yield kept
    if request.config.getoption("--matrix"):
        cache.set(_KEPT, kept)
        report.write(kept)


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Benches]:
    """Not on the fixture `lab`: a bench repairs the lab as it needs it."""
    benches = Benches(Lab(), tmp_path_factory.mktemp("matrix"))
    yield benches
    benches.discard()
    asyncio.run(benches.clean_up())


async def test_the_host_comes_out_and_back_and_no_vm_suffers(
    benches: Benches, records: Records, cells: list[Cell], request: pytest.FixtureRequest
) -> None:
    brief = not request.config.getoption("--matrix")
    try:
        course = await Maintenance(await benches.bench(), cells, brief=brief).run()
        assert not course.problems, "; ".join(course.problems)
    except BaseException as error:
        benches.discard()
        for cell in cells:
            records[cell.key] = report.record_of_failure(error)
        raise
    for cell in cells:
        records[cell.key] = report.record_of(cell, course)
