"""Against a real OpenBao server, over TLS, with a token that may use one key."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from contracts.errors import Failed, Unavailable
from drivers.transit import WRAPPED_PREFIX, TransitKeyService
from tests.openbao import OpenBao

SECRET = "canary-9c1e-ключ"


def service(server: OpenBao, **different: Any) -> TransitKeyService:
    options: dict[str, Any] = {
        "url": server.url,
        "mount": "transit",
        "key": "hostler",
        "token_file": server.token_file,
        "ca_file": server.ca_file,
        **different,
    }
    return TransitKeyService(options.pop("url"), **options)


async def test_what_is_wrapped_comes_back(key_service: OpenBao) -> None:
    wrapped = await service(key_service).wrap(SECRET)
    assert wrapped.startswith(WRAPPED_PREFIX)
    assert len(wrapped.split()) == 1
    assert SECRET not in wrapped
    assert base64.b64encode(SECRET.encode()).decode() not in wrapped
    assert await service(key_service).unwrap(wrapped) == SECRET


async def test_the_service_may_change_its_key(key_service: OpenBao) -> None:
    before = await service(key_service).wrap(SECRET)
    key_service.ask("POST", "transit/keys/hostler/rotate")
    after = await service(key_service).wrap(SECRET)
    assert before.split(":")[1] != after.split(":")[1]
    for wrapped in (before, after):
        assert await service(key_service).unwrap(wrapped) == SECRET


async def test_what_the_key_made_for_others_is_refused(key_service: OpenBao) -> None:
    plaintext = base64.b64encode(SECRET.encode()).decode()
    foreign = key_service.ask("POST", "transit/encrypt/hostler", plaintext=plaintext)
    with pytest.raises(Failed, match="can't decrypt"):
        await service(key_service).unwrap(foreign["data"]["ciphertext"])


async def test_what_was_changed_is_refused(key_service: OpenBao) -> None:
    wrapped = await service(key_service).wrap(SECRET)
    changed = wrapped[:-6] + ("AAAA" if wrapped[-6:-2] != "AAAA" else "BBBB") + wrapped[-2:]
    with pytest.raises(Failed, match="can't decrypt"):
        await service(key_service).unwrap(changed)


async def test_another_key_needs_its_own_policy(key_service: OpenBao) -> None:
    with pytest.raises(Failed, match=r"refuses the token in .* policy that allows to encrypt"):
        await service(key_service, key="another").wrap(SECRET)


@pytest.mark.parametrize("token", ["wrong", "hvs.CAESIJ"])
async def test_a_token_that_is_not_valid_is_named_by_its_file(
    key_service: OpenBao, tmp_path: Path, token: str
) -> None:
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text(token)
    with pytest.raises(Failed, match="refuses the token in") as caught:
        await service(key_service, token_file=file).wrap(SECRET)
    assert token not in str(caught.value).replace(str(file), "")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"two words", b"\xff", b"new\nline"])
async def test_what_is_no_token_is_not_sent(
    key_service: OpenBao, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_bytes(content)
    with pytest.raises(Failed, match="is no token"):
        await service(key_service, token_file=file).wrap(SECRET)
    with pytest.raises(Failed, match="can't be read: No such file"):
        await service(key_service, token_file=tmp_path / "none").wrap(SECRET)


async def test_a_token_that_others_may_read_is_not_sent(
    key_service: OpenBao, tmp_path: Path
) -> None:
    """Together with a backup of the wrapped key it is the key."""
    file = tmp_path / "token"
    file.write_bytes(key_service.token_file.read_bytes())
    for mode in (0o644, 0o640):
        file.chmod(mode)
        with pytest.raises(Failed, match=f"token in {file} is not private: its mode is 0{mode:o}"):
            await service(key_service, token_file=file).wrap(SECRET)
    file.chmod(0o600)
    assert await service(key_service, token_file=file).wrap(SECRET)


async def test_a_new_token_takes_effect_at_once(key_service: OpenBao, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text("expired")
    one = service(key_service, token_file=file)
    with pytest.raises(Failed):
        await one.wrap(SECRET)
    file.write_bytes(key_service.token_file.read_bytes())
    assert await one.unwrap(await one.wrap(SECRET)) == SECRET


async def test_a_service_of_another_ca_gets_no_token(key_service: OpenBao) -> None:
    with pytest.raises(Unavailable, match=r"does not answer .*certificate verify failed"):
        await service(key_service, ca_file=None).wrap(SECRET)


async def test_a_file_without_certificates_is_named(key_service: OpenBao) -> None:
    with pytest.raises(Failed, match="has no CA certificates"):
        await service(key_service, ca_file=key_service.token_file).wrap(SECRET)


async def test_a_mount_that_is_not_there_is_named(key_service: OpenBao) -> None:
    # A token that may not even ask gets the same answer for a mount that is there.
    with pytest.raises(Failed, match=r"HOSTLER_KEY_SERVICE_MOUNT|refuses the token"):
        await service(key_service, mount="elsewhere").wrap(SECRET)


async def test_a_service_that_is_away_may_come_back(key_service: OpenBao) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        await service(key_service, url="https://127.0.0.1:1").wrap(SECRET)


async def test_a_sealed_service_is_told_from_a_broken_one(key_service: OpenBao) -> None:
    key_service.ask("PUT", "sys/seal")
    try:
        with pytest.raises(Unavailable, match=r"503: Vault is sealed\)\. Is it sealed\? Unseal"):
            await service(key_service).wrap(SECRET)
    finally:
        key_service.stop()
        key_service.start()


@dataclass
class Played:
    """A server that answers as it is told."""

    url: str = ""
    status: int = 200
    body: bytes = b"{}"
    paths: list[str] = field(default_factory=list)


@pytest.fixture
def played() -> Iterator[Played]:
    play = Played()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            play.paths.append(self.path)
            self.send_response(play.status)
            self.end_headers()
            self.wfile.write(play.body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            """The tests' output is not the place."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        play.url = f"http://127.0.0.1:{server.server_port}"
        yield play
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "error", "says"),
    [
        (502, b"<html>", Unavailable, "502: Bad Gateway"),
        (404, b'{"errors":["no handler for route"]}', Failed, "HOSTLER_KEY_SERVICE_MOUNT"),
        (200, b"<html>", Failed, "not the transit engine's"),
        (200, b"[]", Failed, "not the transit engine's"),
        (200, b'{"data":{"ciphertext":5}}', Failed, "not the transit engine's"),
        (200, b'{"data":null}', Failed, "not the transit engine's"),
    ],
)
async def test_every_other_answer_has_its_error(
    key_service: OpenBao, played: Played, status: int, body: bytes, error: type, says: str
) -> None:
    played.status, played.body = status, body
    with pytest.raises(error, match=says):
        await service(key_service, url=played.url + "/", ca_file=None).wrap(SECRET)
    assert played.paths == ["/v1/transit/encrypt/hostler"]


async def test_a_secret_that_is_none_is_not_shown(key_service: OpenBao, played: Played) -> None:
    played.body = b'{"data":{"plaintext":"/w=="}}'
    with pytest.raises(Failed, match="not the transit engine's"):
        await service(key_service, url=played.url, ca_file=None).unwrap("vault:v1:x")
