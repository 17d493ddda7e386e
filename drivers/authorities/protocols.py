"""What a provider of certificates has to do, and what it may do beyond.

    CertificateAuthority    issue, revoke, chain, CRL: every provider
    ImportsAuthority        takes an operator's own key and chain
    SucceedsAuthority       gets another key of its own, beside the one by which it issues

A provider is an entry point of the group `hostler.ca_providers`: a `ProviderFactory` under the name
that `ca.framework.provider.plugin` chooses it by. It is made anew for each step, with the settings
in force. Names and rights of a certificate are decided before a provider is asked, and what it
answers is checked against them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol, runtime_checkable

from contracts.certificates import (
    AuthorityOrigin,
    CertificateNames,
    CertificateRole,
    RevocationReason,
)
from contracts.settings import ResolvedSettings

ENTRY_POINTS = "hostler.ca_providers"


@dataclass(frozen=True)
class CertificateOrder:
    """What a certificate is to say. `csr` (PKCS #10 in PEM) is there for its public key alone: its
    signature was checked, and its names and extensions do not count."""

    csr: str
    names: CertificateNames
    role: CertificateRole
    validity: timedelta


@dataclass(frozen=True)
class StoredAuthority:
    """What a provider has stored: PEM certificates, the issuing one first, and its private key
    (PKCS #8 in PEM)."""

    generation: int
    chain: tuple[str, ...]
    key: str = field(repr=False)


@dataclass(frozen=True)
class RevokedSerial:
    """An entry of a revocation list; `serial` is hexadecimal."""

    serial: str
    at: datetime
    reason: RevocationReason


@dataclass(frozen=True)
class CrlOrder:
    """What a revocation list has to say; each has a number that is higher than all before."""

    number: int
    revoked: tuple[RevokedSerial, ...]


class AuthorityStore(Protocol):
    """Where a provider that has a key of its own keeps it. Every method may raise Unavailable."""

    async def find(self, issuer: str | None = None) -> StoredAuthority | None:
        """The newest, or the one of this issuing certificate (PEM); None if there is none. Raises
        SecretUnreadable."""

    async def add(
        self, chain: tuple[str, ...], key: str, origin: AuthorityOrigin, *, after: int
    ) -> StoredAuthority:
        """Store it as the generation that follows `after` (0: as the first). Of several processes
        that do so at once, one wins, and all get what that one has stored. Raises Conflict if
        certificates were issued by its predecessor."""

    async def add_next(
        self, chain: tuple[str, ...], key: str, origin: AuthorityOrigin, *, after: int
    ) -> StoredAuthority:
        """Store it as the one that is to issue next, beside the one that does. If there is such a
        one, that is the result. `after`: the newest generation that is known. Raises Conflict."""

    async def begin_crl(self, generation: int, *, kept: timedelta) -> CrlOrder:
        """All that is revoked by now, those that expired longer than `kept` ago left out, and a
        number for the list."""


class CertificateAuthority(Protocol):
    """Every method raises Unavailable when a system does not answer, Failed when it refuses."""

    async def chain(self) -> tuple[str, ...]:
        """Certificates in PEM: the issuing one first, the trust anchor last. A provider with a key
        of its own makes both when it is first asked."""

    async def issue(self, order: CertificateOrder) -> str:
        """A certificate in PEM, signed by the first of the chain."""

    async def revoke(self, serial: str, reason: RevocationReason) -> None:
        """Take it back; no effect if it is revoked. The inventory is told afterwards."""

    async def crl(self, issuer: str) -> bytes:
        """The newest revocation list (DER) of an issuing certificate (PEM) that is, or was, the
        first of the chain."""


@runtime_checkable
class ImportsAuthority(Protocol):
    """A provider that can work with an operator's own key."""

    async def import_authority(self, key: str, chain: str) -> None:
        """Issue with this private key (PEM) from now on. `chain`: PEM, the certificate of that key
        first, a self-signed one last. No effect if it is so already. Raises InvalidInput; Conflict
        if certificates were issued with another one."""


@runtime_checkable
class SucceedsAuthority(Protocol):
    """A provider whose authority can be followed by another one, while it still issues."""

    async def make_next(self, after: int) -> str:
        """Make it; `after`: the newest generation that is known. If there is a next one, this has
        no effect. The issuing certificate (PEM) of the next one. Raises Conflict."""

    async def import_next(self, key: str, chain: str, after: int) -> str:
        """The same with an operator's own, as `import_authority` has it. Raises InvalidInput;
        Conflict if there is another next one."""


@dataclass(frozen=True)
class ExternalAccess:
    """How this worker reaches an external CA, as its environment says (HOSTLER_CA_*).

    It is no setting: who may change settings could have a worker send any of its files anywhere.

    Attributes:
        url: None: it is not said.
        token_file: with what the worker shows there.
        trust_file: CA (PEM) of its HTTPS; None: those that the machine trusts.
    """

    url: str | None = None
    token_file: Path | None = None
    trust_file: Path | None = None


@dataclass(frozen=True)
class ProviderContext:
    """What a provider works with: its name in the inventory, the settings in force, its store, and
    its way out."""

    name: str
    settings: ResolvedSettings
    store: AuthorityStore
    access: ExternalAccess


ProviderFactory = Callable[[ProviderContext], CertificateAuthority]
Providers = Callable[[str], ProviderFactory]
