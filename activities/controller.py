"""Hostler's own certificate, by which hosts' libvirtd lets it in."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from activities.certificate_policy import CONTROLLER_NAMES
from activities.certificates import CertificateActivities
from contracts.certificates import CertificateRole, IssueCertificateInput
from contracts.secrets import TLS_KEY
from contracts.settings import CA_KEY_SIZE
from drivers.protocols import ClientCertificate
from inventory import Inventory

# Of its life, after which it is replaced.
_LAST_PART = 1 / 3


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
        found = await self._inventory.certificates.newest_of_hostler()
        if found is not None:
            one, secret = found
            left = (one.not_after - datetime.now(UTC)) / (one.not_after - one.not_before)
            authority = await self._inventory.authorities.get(one.provider, one.generation)
            if left > _LAST_PART:
                key = await self._inventory.secrets.reveal(secret)
                return _with_chain(one.pem, authority.chain, key.plaintext)
        return await self._make(operation)

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


def _with_chain(pem: str, chain: tuple[str, ...], key: str) -> ClientCertificate:
    """The root is what the other side has."""
    return ClientCertificate(certificate=pem + "".join(chain[:-1]), key=key)
