"""The API's own TLS: real handshakes, with certificates of all kinds."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from fastapi import FastAPI, Request

from cli.client import connect
from contracts.certificates import CertificateNames, CertificateRole
from contracts.errors import InvalidInput, Unavailable
from contracts.settings import CA_ALLOW_EXPIRED
from drivers.authorities.profiles import Issuer, host_certificate, new_request
from drivers.authorities.protocols import CertificateOrder
from drivers.authorities.x509 import read_certificate
from inventory import Inventory, SecretBox
from tests.authorities.samples import Ca, ca, write
from tests.databases import sqlite_database
from tests.ports import free_port
from workers import api_tls
from workers.api_tls import ApiTls, following
from workers.home import listen
from workers.parts import running_api

CLIENTS, SERVERS = ca("clients"), ca("servers")
# Certificates begin five minutes ago.
EXPIRED = timedelta(minutes=4)


def certified(
    directory: Path,
    name: str,
    by: Ca,
    role: CertificateRole = CertificateRole.CLIENT,
    validity: timedelta = timedelta(days=1),
    key_size: int = 256,
) -> tuple[Path, Path]:
    """Files with a certificate and its key."""
    key, request = new_request(key_size, name)
    names = CertificateNames(common_name=name, ip_addresses=("127.0.0.1",))
    issuer = Issuer(by.certificate, by.key, hashes.SHA256())
    certificate = host_certificate(issuer, CertificateOrder(request, names, role, validity), None)
    pem = certificate.public_bytes(Encoding.PEM)
    return write(directory / f"{name}.pem", pem), write(directory / f"{name}-key.pem", key)


class Site:
    """A server that speaks TLS by what is in `directory`, and asks for certificates of CLIENTS."""

    def __init__(self, directory: Path, inventory: Inventory) -> None:
        self.directory = directory
        self.port = free_port()
        self.anchor = write(directory / "servers.pem", SERVERS.pem)
        self.own = certified(directory, "api", SERVERS, CertificateRole.SERVER)
        clients = write(directory / "clients.pem", CLIENTS.pem)
        self.tls = ApiTls(*self.own, clients, inventory)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    async def serve(self, stack: AsyncExitStack) -> None:
        await self.tls.begin()
        app = FastAPI()

        @app.get("/v1/scheme")
        async def scheme(request: Request) -> str:
            return request.url.scheme

        listener = stack.enter_context(listen("127.0.0.1", self.port, "the API", "x"))
        await stack.enter_async_context(running_api(app, listener, self.tls.context))
        await stack.enter_async_context(following(self.tls))

    async def lets_in(self, client: tuple[Path, Path] | None) -> bool:
        context = ssl.create_default_context(cafile=self.anchor)
        if client is not None:
            context.load_cert_chain(*client)
        async with httpx.AsyncClient(verify=context, trust_env=False) as http:
            try:
                answer = await http.get(f"{self.url}/v1/scheme")
            except httpx.TransportError:
                return False
        assert answer.json() == "https"
        return True

    async def shown(self) -> str:
        """The serial of the certificate that it shows."""
        return read_certificate(await self._pem()).serial

    async def key(self) -> PublicKeyTypes:
        """Its public key."""
        return x509.load_pem_x509_certificate((await self._pem()).encode()).public_key()

    async def _pem(self) -> str:
        return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", self.port))


@pytest.fixture
async def inventory(tmp_path: Path) -> AsyncIterator[Inventory]:
    database = sqlite_database(tmp_path)
    yield Inventory(database, SecretBox(SecretBox.new_key()))
    await database.close()


@pytest.fixture
async def site(
    inventory: Inventory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    monkeypatch.setattr(api_tls, "_LOOK_EVERY_S", 0.05)
    site = Site(tmp_path, inventory)
    async with AsyncExitStack() as stack:
        await site.serve(stack)
        yield site


async def test_the_setting_says_what_an_expired_client_gets(
    site: Site, inventory: Inventory, tmp_path: Path
) -> None:
    good = certified(tmp_path, "good", CLIENTS)
    expired = certified(tmp_path, "expired", CLIENTS, validity=EXPIRED)
    strangers = (None, certified(tmp_path, "stranger", SERVERS), site.own)
    for allowed in (False, True, False):
        await inventory.settings.set(CA_ALLOW_EXPIRED.name, allowed, actor="test")
        while await site.lets_in(expired) is not allowed:
            await asyncio.sleep(0.05)
        assert await site.lets_in(good)
        assert [await site.lets_in(one) for one in strangers] == [False] * 3


async def test_a_new_certificate_is_shown_and_a_wrong_one_is_not_taken(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = await site.shown()
    certified(tmp_path, "api", SERVERS, CertificateRole.SERVER)
    while await site.shown() == before:
        await asyncio.sleep(0.05)
    renewed = await site.shown()
    good = certified(tmp_path, "good", CLIENTS)
    (tmp_path / "other").mkdir()
    other = certified(tmp_path / "other", "api", SERVERS, CertificateRole.SERVER)
    for wrong in ("nothing of the kind", other[0].read_text()):  # the latter is for another key
        caplog.clear()
        write(site.own[0], wrong)
        while "goes on with what it has" not in caplog.text:
            await asyncio.sleep(0.05)
        assert str(site.own[0]) in caplog.text
        assert await site.shown() == renewed
        assert await site.lets_in(good)
    # And goes by the pair once it is whole.
    write(site.own[1], other[1].read_text())
    while await site.shown() == renewed:
        await asyncio.sleep(0.05)
    assert await site.shown() == read_certificate(other[0].read_text()).serial


async def test_a_key_of_another_kind_and_other_cas_take_their_place(
    site: Site, tmp_path: Path
) -> None:
    good, stranger = certified(tmp_path, "good", CLIENTS), certified(tmp_path, "x", SERVERS)
    assert [await site.lets_in(one) for one in (good, stranger)] == [True, False]
    certified(tmp_path, "api", SERVERS, CertificateRole.SERVER, key_size=2048)
    while isinstance(await site.key(), ec.EllipticCurvePublicKey):
        await asyncio.sleep(0.05)
    write(tmp_path / "clients.pem", SERVERS.pem)
    while not await site.lets_in(stranger):
        await asyncio.sleep(0.05)
    assert not await site.lets_in(good)


@pytest.mark.parametrize("broken", ["api.pem", "api-key.pem", "clients.pem"])
async def test_files_that_can_t_be_used_end_the_start(
    inventory: Inventory, tmp_path: Path, broken: str
) -> None:
    site = Site(tmp_path, inventory)
    write(tmp_path / broken, "nothing of the kind")
    with pytest.raises(InvalidInput, match=broken) as caught:
        await site.tls.begin()
    assert "HOSTLER_API_TLS_CERT_FILE" in str(caught.value.remedy)


async def test_the_command_line_shows_and_trusts_what_the_environment_says(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = certified(tmp_path, "good", CLIENTS)
    monkeypatch.setenv("HOSTLER_API_URL", site.url)
    monkeypatch.setenv("HOSTLER_TOKEN", "x")

    def scheme() -> object:
        with connect() as api:
            return api.get("scheme")

    async def refused(kind: type[Exception], says: str) -> None:
        with pytest.raises(kind, match=says):
            await asyncio.to_thread(scheme)

    with pytest.raises(Unavailable) as caught:
        await asyncio.to_thread(scheme)
    assert "HOSTLER_API_CA_FILE" in str(caught.value.remedy)
    monkeypatch.setenv("HOSTLER_API_CA_FILE", str(tmp_path / "none.pem"))
    await refused(InvalidInput, r"HOSTLER_API_CA_FILE.*none\.pem")
    monkeypatch.setenv("HOSTLER_API_CA_FILE", str(site.anchor))
    with pytest.raises(Unavailable) as caught:
        await asyncio.to_thread(scheme)
    assert "HOSTLER_API_CLIENT_CERT_FILE" in str(caught.value.remedy)
    monkeypatch.setenv("HOSTLER_API_CLIENT_CERT_FILE", str(certificate))
    await refused(InvalidInput, "go together")
    monkeypatch.setenv("HOSTLER_API_CLIENT_KEY_FILE", str(site.own[1]))
    await refused(InvalidInput, "HOSTLER_API_CLIENT_KEY_FILE can't be used")
    monkeypatch.setenv("HOSTLER_API_CLIENT_KEY_FILE", str(key))
    assert await asyncio.to_thread(scheme) == "https"
