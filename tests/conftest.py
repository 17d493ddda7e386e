"""What is real and made once: the lab, and a PostgreSQL server."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab
from tests.openbao import OpenBao, openbao
from tests.postgres import postgresql
from tests.seed import seed_of_the_day


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record-histories",
        action="store_true",
        help="write the histories of end-to-end runs to tests/histories",
    )
    parser.addoption(
        "--matrix",
        action="store_true",
        help="run all cells of the fault matrix, and write docs/fault-matrix.md",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """For tests with `some_a_day`: which."""
    for marker in metafunc.definition.iter_markers("some_a_day"):
        names, values = marker.args
        if not metafunc.config.getoption("--matrix"):
            chance = random.Random(f"{seed_of_the_day()} {metafunc.definition.nodeid}")  # noqa: S311 - no secret
            values = chance.sample([*values], marker.kwargs.get("number", 1))
        metafunc.parametrize(names, values)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what works on the lab, by its fixture, or as one of those that start and stop it."""
    starts_it = {Path(__file__).parent / "deploy", Path(__file__).parent / "matrix"}
    for item in items:
        if "lab" in getattr(item, "fixturenames", ()) or item.path.parent in starts_it:
            item.add_marker("lab")


@pytest.fixture(scope="session")
def lab() -> Lab:
    """Up, or repaired."""
    lab = Lab()
    asyncio.run(lab.up())
    return lab


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL of its superuser, without a database name."""
    with postgresql() as url:
        yield url


@pytest.fixture(scope="session")
def key_service() -> Iterator[OpenBao]:
    """A test that changes it puts it back."""
    with openbao() as server:
        yield server
