"""Hostler's own certificate, by which hosts' libvirtd lets it in."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

from activities.certificate_policy import CONTROLLER_NAMES
from activities.certificates import CertificateActivities
from contracts.certificates import Authority, CertificateRole, IssueCertificateInput
from contracts.errors import HostlerError
from contracts.secrets import TLS_KEY
from contracts.settings import CA_KEY_SIZE, LIBVIRT_TRANSPORT
from contracts.states import TlsState
from drivers.protocols import ClientCertificate, TlsLogin
from inventory import Inventory

# Of its life, after which it is replaced.
_LAST_PART = 1 / 3
_LOOKED_AT_EVERY_S = 300.0
_TOLD_EVERY_S = 3600.0
_ACTOR = "libvirt.transport"


class ControllerCertificates:
    """Made when it is asked for, and made anew in the last third of its life. Two workers may make
    two at the same time: both are good.

    Args:
        new_request: makes a key of that size and a signing request for that name, both in PEM.
    """

    def __init__(
        self,
        inventory: Inventory,
        certificates: CertificateActivities,
        new_request: Callable[[int, str], tuple[str, str]],
    ) -> None:
        self._inventory = inventory
        self._certificates = certificates
        self._new_request = new_request

    async def current(self, operation: str) -> ClientCertificate:
        """Raises Unavailable, Failed (the CA), SecretUnreadable."""
        return await self.find(_LAST_PART) or await self._make(operation)

    async def find(self, least_left: float = 0.0) -> ClientCertificate | None:
        """The one that there is, with more than that part of its life left. Raises
        SecretUnreadable."""
        found = await self._inventory.certificates.newest_of_hostler()
        if found is None:
            return None
        one, secret = found
        left = (one.not_after - datetime.now(UTC)) / (one.not_after - one.not_before)
        if left <= least_left:
            return None
        authority = await self._inventory.authorities.get(one.provider, one.generation)
        key = await self._inventory.secrets.reveal(secret)
        return _with_chain(one.pem, authority.chain, key.plaintext)

    async def _make(self, operation: str) -> ClientCertificate:
        size = (await self._inventory.settings.resolve())[CA_KEY_SIZE]
        key, csr = await asyncio.to_thread(self._new_request, size, CONTROLLER_NAMES.common_name)
        # First, and claimed by the certificate: of one that never comes, it goes again.
        secret = await self._inventory.secrets.store(TLS_KEY, key, actor=operation)
        issued = await self._certificates.issue(
            IssueCertificateInput(
                csr=csr,
                role=CertificateRole.CONTROLLER,
                request=f"{operation}/{secret}",
                operation=operation,
            ),
            key_secret=secret,
        )
        return _with_chain(issued.certificate.pem, issued.chain, key)


class LibvirtByTls:
    """Which hosts' libvirt is reached by TLS (`libvirt.transport`), and what is told when that is
    broken."""

    def __init__(self, inventory: Inventory, own: ControllerCertificates) -> None:
        self._inventory = inventory
        self._own = own
        self._making = asyncio.Lock()
        self._made: tuple[float, TlsLogin] | None = None
        self._made_by: Sequence[Authority] = ()
        self._told: dict[str, float] = {}

    async def login(self, host: str) -> TlsLogin | None:
        """None: by its socket. Raises NotFound."""
        known = await self._inventory.hosts.get(host)
        if known.tls is not TlsState.SECURED:
            return None
        settings = await self._inventory.settings.resolve(cluster=known.cluster)
        if settings[LIBVIRT_TRANSPORT] != "tls":
            return None
        try:
            async with self._making:
                return await self._login()
        except HostlerError as error:
            await self.tell_broken(host, error)
            return None

    async def tell_broken(self, host: str, error: HostlerError) -> None:
        """With an event, not too often."""
        told = self._told.get(host)
        if told is not None and time.monotonic() - told < _TOLD_EVERY_S:
            return
        self._told[host] = time.monotonic()
        await self._inventory.events.record(
            "host.tls_broken",
            f"host/{host}",
            f"its libvirt is reached by its socket instead: {error}",
            actor=_ACTOR,
        )

    async def _login(self) -> TlsLogin:
        # During a rollover, hosts come to show certificates of another CA from one moment to the
        # next: that one is trusted before.
        authorities = [
            one.model_copy(update={"crl": None})
            for one in await self._inventory.authorities.trusted()
        ]
        fresh = self._made is not None and time.monotonic() - self._made[0] < _LOOKED_AT_EVERY_S
        if self._made is not None and fresh and authorities == self._made_by:
            return self._made[1]
        client = await self._own.current(_ACTOR)
        # The first CA of all may have been made for that.
        login = TlsLogin(client, trusted(await self._inventory.authorities.trusted()))
        self._made, self._made_by = (time.monotonic(), login), authorities
        return login


def trusted(authorities: Iterable[Authority]) -> str:
    """All of their certificates, each once."""
    return "".join({pem: None for authority in authorities for pem in authority.chain})


def _with_chain(pem: str, chain: tuple[str, ...], key: str) -> ClientCertificate:
    """The root is what the other side has."""
    return ClientCertificate(certificate=pem + "".join(chain[:-1]), key=key)
