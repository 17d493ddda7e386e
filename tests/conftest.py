"""What is real and made once: the lab, and a PostgreSQL server."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.lab import Lab
from tests.openbao import OpenBao, openbao
from tests.postgres import postgresql


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
