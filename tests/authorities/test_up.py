"""`hostler up` as a person runs it, with its own CA and with a real external one."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.authorities.bao import Bao, bao
from tests.authorities.samples import KEYS, ca, csr, key_pem, openssl, write
from tests.e2e.system import System


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Bao]:
    (tmp_path / "bao").mkdir()
    with bao(tmp_path / "bao") as server:
        yield server


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    system = System(tmp_path)
    yield system
    system.stop()


async def test_a_ca_survives_its_process_and_another_one_takes_over(
    system: System, server: Bao, tmp_path: Path
) -> None:
    access = {
        "HOSTLER_CA_URL": server.url,
        "HOSTLER_CA_TOKEN_FILE": str(server.token_file),
        "HOSTLER_CA_TRUST_FILE": str(server.ca_file),
    }
    request = write(tmp_path / "request.pem", csr(KEYS["P-256"]))
    sign = ("cert", "sign", "--role", "controller", "--csr-file", str(request), "--out")
    anchor, leaf = tmp_path / "ca.pem", tmp_path / "leaf.pem"
    own = ca("own")
    key = write(tmp_path / "own.key", key_pem(own.key))
    chain = write(tmp_path / "own.pem", own.pem)

    imported = ("ca", "import", "--key-file", str(key), "--chain-file", str(chain))

    first = await system.up(**access)
    await system.done(*imported)
    system.kill(first)
    await system.up(**access)
    # Nothing is changed, and this time all of it is traced: what is killed exports no spans.
    await system.done(*imported)
    await system.done(*sign, str(leaf))
    await system.done("ca", "chain", "--out", str(anchor))
    assert anchor.read_text() == own.pem
    verified = openssl("verify", "-CAfile", str(anchor), str(leaf))
    assert verified.returncode == 0, verified.stderr

    await system.done("setting", "set", "ca.framework.provider.plugin", "vault")
    await system.done(*sign, str(leaf))
    await system.done("ca", "chain", "--out", str(anchor))
    verified = openssl("verify", "-CAfile", str(anchor), str(leaf))
    assert verified.returncode == 0, verified.stderr
    listed = await system.shown("cert", "list")
    assert {one["provider"] for one in listed} == {"root", "vault"}

    # Neither key nor token is in a log, a trace, Temporal's database or the inventory's.
    system.stop()
    body = "".join(key.read_text().splitlines()[1:-1])[20:60]
    token = server.token_file.read_text().strip()
    for directory in (system.home, system.logs):
        for path in sorted(path for path in directory.rglob("*") if path.is_file()):
            content = path.read_bytes()
            for secret in (body, "BEGIN PRIVATE KEY", token):
                assert secret.encode() not in content, path
    assert any("AuthoritySetup" in path.read_text() for path in system.logs.iterdir())


async def test_a_signing_waits_for_an_external_ca_and_is_done_once(
    system: System, server: Bao, tmp_path: Path
) -> None:
    await system.up(
        HOSTLER_CA_URL=server.url,
        HOSTLER_CA_TOKEN_FILE=str(server.token_file),
        HOSTLER_CA_TRUST_FILE=str(server.ca_file),
    )
    await system.done("setting", "set", "ca.framework.provider.plugin", "vault")
    request = write(tmp_path / "request.pem", csr(KEYS["P-256"]))
    server.signal(signal.SIGSTOP)
    signing = asyncio.create_task(
        system.hostler("cert", "sign", "--role", "controller", "--csr-file", str(request))
    )
    await system.until_running("signing/hostler controller", "issue_certificate")
    server.signal(signal.SIGCONT)
    said = await signing
    assert said.status == 0, said.stderr
    (one,) = await system.shown("cert", "list")
    assert said.stdout.startswith(one["pem"])
