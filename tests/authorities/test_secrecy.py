"""The key of a CA, made or imported, is nowhere but encrypted in the inventory."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.authorities.samples import KEYS, ca, csr, key_pem, write
from tests.e2e.secrecy import (
    authority_key,
    forms,
    inventory_of,
    key_forms,
    texts_of,
    watching,
    where_found,
)
from tests.e2e.system import System
from tests.postgres import dump


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str | None:
    """Of the inventory's database; None: the embedded one."""
    if request.param == "sqlite":
        return None
    server: str = request.getfixturevalue("postgresql_server")
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS secrecy")
        connection.execute("CREATE DATABASE secrecy")
    return f"{server}/secrecy"


@pytest.fixture
def system(tmp_path: Path, url: str | None) -> Iterator[System]:
    system = System(tmp_path / "system", database_url=url)
    yield system
    system.stop()


async def _start(system: System, url: str | None) -> None:
    """All of it, as talkative as it gets."""
    if url is None:
        await system.up(HOSTLER_LOG_LEVEL="debug")
        return
    await system.temporal_server()
    await system.done("db", "upgrade")
    await system.done("key", "create")
    token = await system.done("token", "create", "admin", "--role", "admin")
    (system.home / "admin-token").write_text(token)
    await system.api()
    await system.worker(HOSTLER_LOG_LEVEL="debug")


async def test_the_key_of_a_ca_is_nowhere_but_encrypted(
    system: System, url: str | None, tmp_path: Path
) -> None:
    own = ca("own")
    imported = key_pem(own.key)
    key = write(tmp_path / "own.key", imported)
    chain = write(tmp_path / "own.pem", own.pem)
    request = write(tmp_path / "request.pem", csr(KEYS["P-256"]))
    with watching(key_forms(imported)) as watch:
        await _start(system, url)
        await system.done("ca", "create")
        async with inventory_of(system, url) as inventory:
            made = await authority_key(inventory)
        await system.done("ca", "import", "--key-file", str(key), "--chain-file", str(chain))
        await system.done("cert", "sign", "--role", "controller", "--csr-file", str(request))
        (signed,) = await system.shown("cert", "list")
        await system.done("cert", "revoke", signed["serial"])
        said = [await system.done(*words) for words in (("ca", "show"), ("ca", "chain"))]
        async with inventory_of(system, url) as inventory:
            assert await authority_key(inventory) == imported
    assert watch.samples > 20
    assert watch.found == set()

    master_key = (system.home / "master-key").read_text()
    texts = await texts_of(system, "/v1/ca", "/v1/certificates", "/v1/events?limit=1000")
    texts["commands"] = "".join(said).encode()
    if url is not None:
        texts["dump"] = dump(url)
    # What is told of the CA is there, so the silence means something.
    kept = texts["dump"] if url is not None else texts[str(system.home / "inventory.db")]
    assert b"CN=own" in kept
    assert {"history of ca-setup/root", f"history of revocation/{signed['serial']}"} <= set(texts)
    assert any(b"RunActivity:issue_certificate" in text for text in texts.values())
    secrets = [key_forms(made), key_forms(imported), forms(master_key), forms("PRIVATE KEY-----")]
    assert where_found(texts, secrets) == set()
    # And they would be found.
    assert where_found({"file": key.read_bytes()}, [key_forms(imported)]) == {("file", 0)}
