"""The API's own TLS: the certificate that it shows, and whom it lets in by theirs."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from contracts.errors import HostlerError, InvalidInput
from contracts.settings import CA_ALLOW_EXPIRED
from inventory import Inventory
from workers.parts import Part
from workers.settings import Settings

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 5.0
# OpenSSL's X509_V_FLAG_NO_CHECK_TIME, for which Python has no name.
_AT_ANY_TIME = 0x200000


class ApiTls:
    """Keeps `context` as the files and the setting `ca.plugin.root.allow.expired.cert` say; what
    is connected stays so.

    Args:
        certificate, key: PEM, with the chain below the root.
        client_ca: CAs (PEM), of one of which a client has to show a certificate; None: nobody has
            to show any.
    """

    def __init__(
        self, certificate: Path, key: Path, client_ca: Path | None, inventory: Inventory
    ) -> None:
        self._certificate, self._key = certificate, key
        self._client_ca = client_ca
        self._inventory = inventory
        self._seen: tuple[int, ...] = ()
        self.context = self._loaded = self._new_context()
        # A pair that does not fit would take the former key out of the context that it is loaded
        # into: each handshake goes by the last one into which all was loaded.
        self.context.sni_callback = self._go_by_what_was_loaded

    async def begin(self) -> None:
        """Raises InvalidInput for files that can't be used, Unavailable (the inventory)."""
        self._load()
        await self._follow_setting()

    async def follow(self) -> None:
        """Goes by what has changed, from now on. Files that can't be used are not, which the log
        says."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                self._load()
            except InvalidInput as error:
                logger.warning("the API's TLS goes on with what it has: %s", error)
            try:
                await self._follow_setting()
            except HostlerError as error:
                logger.warning("the API's TLS goes on as it is: %s", error)

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            # Who resumes a session would not be looked at again.
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.num_tickets = 0
        return context

    def _go_by_what_was_loaded(self, connection: ssl.SSLSocket | ssl.SSLObject, *_: object) -> None:
        connection.context = self._loaded

    def _load(self) -> None:
        """What could not be used is tried again once it has changed."""
        files = [file for file in (self._certificate, self._key, self._client_ca) if file]
        try:
            seen = tuple(file.stat().st_mtime_ns for file in files)
            if seen == self._seen:
                return
            self._seen = seen
            context = self._new_context()
            # A key with a passphrase would be asked for.
            context.load_cert_chain(self._certificate, self._key, password=lambda: "")
            if self._client_ca is not None:
                context.load_verify_locations(self._client_ca)
        except (OSError, ValueError) as error:
            raise InvalidInput(
                f"The API can't speak TLS with {', '.join(map(str, files))}: {error}.",
                remedy="Correct the files, or HOSTLER_API_TLS_CERT_FILE and its neighbours: PEM, "
                "the key without a passphrase, and readable for Hostler.",
            ) from error
        self._loaded = context

    async def _follow_setting(self) -> None:
        if (await self._inventory.settings.resolve())[CA_ALLOW_EXPIRED]:
            self.context.verify_flags |= _AT_ANY_TIME
        else:
            self.context.verify_flags &= ~_AT_ANY_TIME


async def api_tls(settings: Settings, inventory: Inventory) -> ApiTls | None:
    """As the environment says; None: the API speaks plain HTTP. Raises as `begin` does."""
    if settings.api_tls_cert_file is None or settings.api_tls_key_file is None:
        return None
    tls = ApiTls(
        settings.api_tls_cert_file,
        settings.api_tls_key_file,
        settings.api_tls_client_ca_file,
        inventory,
    )
    await tls.begin()
    return tls


@asynccontextmanager
async def following(tls: ApiTls) -> AsyncIterator[Part]:
    """Follow what changes during the block."""
    task: asyncio.Task[object] = asyncio.create_task(tls.follow(), name="api-tls")
    try:
        yield Part("The API's TLS", task)
    finally:
        task.cancel()
        await asyncio.wait([task])
