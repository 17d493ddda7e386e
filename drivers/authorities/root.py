"""Hostler's own certificate authorities: the provider `root`, a key pair that was made once, or an
operator's; and those of the clusters' QEMUs, which are always made here."""

import asyncio
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from contracts.certificates import AuthorityOrigin, RevocationReason, is_qemu_authority
from contracts.errors import Conflict, Failed, InvalidInput
from contracts.settings import (
    CA_CRL_URL,
    CA_CRL_VALIDITY,
    CA_KEY_SIZE,
    CA_ROOT_ISSUER_DN,
    CA_SIGNATURE_ALGORITHM,
)
from drivers.authorities.profiles import (
    AuthorityKey,
    Issuer,
    algorithm_of,
    host_certificate,
    new_key,
    revocation_list,
    root_certificate,
)
from drivers.authorities.protocols import CertificateOrder, ProviderContext, StoredAuthority
from drivers.authorities.x509 import (
    UNREADABLE,
    is_signed_by,
    key_sha256,
    require_strong,
    split_chain,
)

_ROOT_VALIDITY = timedelta(days=30 * 365)


class RootAuthority:
    """CertificateAuthority, ImportsAuthority, SucceedsAuthority. The store has all that is kept."""

    def __init__(self, context: ProviderContext) -> None:
        self._provider = context.name
        self._settings = context.settings
        self._store = context.store

    async def chain(self) -> tuple[str, ...]:
        """The stored one; else a new key pair and its self-signed certificate, made once."""
        return (await self._stored()).chain

    async def issue(self, order: CertificateOrder) -> str:
        """Signed with the stored key."""
        stored = await self._stored()
        url = self._settings[CA_CRL_URL]
        if url is not None:
            url = f"{url.rstrip('/')}/{self._provider}/{stored.generation}/crl"
        certificate = host_certificate(self._issuer(stored), order, url)
        return certificate.public_bytes(Encoding.PEM).decode()

    async def revoke(self, serial: str, reason: RevocationReason) -> None:
        """Nothing beyond what the inventory knows: the next list is made from that."""

    async def crl(self, issuer: str) -> bytes:
        """A new one, of all that the inventory has as revoked."""
        stored = await self._store.find(issuer)
        if stored is None:
            raise Failed(f"The CA of {self._provider} has no key for such a certificate.")
        validity = timedelta(days=self._settings[CA_CRL_VALIDITY])
        # RFC 5280, 3.3: an entry stays for one more list after its certificate has expired.
        order = await self._store.begin_crl(stored.generation, kept=validity)
        return revocation_list(self._issuer(stored), order, validity)

    async def import_authority(self, key: str, chain: str) -> None:
        """Take the operator's own in the place of one that has issued nothing."""
        self._require_taker()
        private, certificates = _read_key(key), split_chain(chain)
        _check_chain(private, certificates)
        stored = await self._store.find()
        if stored is not None and stored.chain == certificates:
            return
        await self._add(
            certificates, private, AuthorityOrigin.IMPORTED, stored.generation if stored else 0
        )

    async def make_next(self, after: int) -> str:
        """A new key pair and its self-signed certificate, of a name of its own."""
        pem, key = await self._make(f"generation {after + 1}")
        stored = await self._store.add_next(
            (pem,), _pem(key), AuthorityOrigin.GENERATED, after=after
        )
        return stored.chain[0]

    async def import_next(self, key: str, chain: str, after: int) -> str:
        """The operator's own."""
        self._require_taker()
        private, certificates = _read_key(key), split_chain(chain)
        _check_chain(private, certificates)
        stored = await self._store.add_next(
            certificates, _pem(private), AuthorityOrigin.IMPORTED, after=after
        )
        if stored.chain != certificates:
            raise Conflict(
                "Another CA is to be the next one.",
                remedy="See `hostler ca rollover status`; a rollover that is cancelled before its "
                "CA issues drops that one.",
            )
        return stored.chain[0]

    async def _stored(self) -> StoredAuthority:
        found = await self._store.find()
        if found is not None:
            return found
        pem, key = await self._make()
        return await self._add((pem,), key, AuthorityOrigin.GENERATED, 0)

    def _require_taker(self) -> None:
        """Raises Conflict."""
        if is_qemu_authority(self._provider):
            raise Conflict(
                f"The CA {self._provider} is made by Hostler: with an operator's own as their "
                "anchor, QEMUs would trust all that it has ever signed."
            )

    async def _make(self, *units: str) -> tuple[str, AuthorityKey]:
        """A self-signed certificate in PEM, and its key; `units` follow the name."""
        of_qemu = is_qemu_authority(self._provider)
        if of_qemu:
            units = (self._provider, *units)
        name = x509.Name(
            [
                *_name(self._settings[CA_ROOT_ISSUER_DN]),
                *(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit) for unit in units),
            ]
        )
        # RSA takes seconds.
        key = await asyncio.to_thread(new_key, self._settings[CA_KEY_SIZE])
        algorithm = algorithm_of(key, self._settings[CA_SIGNATURE_ALGORITHM])
        certificate = root_certificate(
            key, name, algorithm, _ROOT_VALIDITY, path_length=0 if of_qemu else None
        )
        return certificate.public_bytes(Encoding.PEM).decode(), key

    async def _add(
        self, chain: tuple[str, ...], key: AuthorityKey, origin: AuthorityOrigin, after: int
    ) -> StoredAuthority:
        stored = await self._store.add(chain, _pem(key), origin, after=after)
        if origin is AuthorityOrigin.IMPORTED and stored.chain != chain:
            raise Conflict("Another CA was made or imported at the same time; that one counts.")
        return stored

    def _issuer(self, stored: StoredAuthority) -> Issuer:
        certificate = x509.load_pem_x509_certificate(stored.chain[0].encode())
        if certificate.not_valid_after_utc < datetime.now(UTC):
            raise Failed(
                f"The CA of {self._provider} has expired at "
                f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC.",
                remedy="Have another one take its place: hostler ca rollover, with --cluster for "
                "that of a cluster's QEMUs.",
            )
        key = _read_key(stored.key)
        return Issuer(certificate, key, algorithm_of(key, self._settings[CA_SIGNATURE_ALGORITHM]))


def _pem(key: AuthorityKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _name(text: str) -> x509.Name:
    """RFC 4514 has the last part of a name first. Raises Conflict."""
    try:
        return x509.Name.from_rfc4514_string(text)
    except ValueError as error:
        raise Conflict(
            f"The setting {CA_ROOT_ISSUER_DN.name} is no distinguished name: {error}.",
            remedy=f"Set it to one like {CA_ROOT_ISSUER_DN.default!r}.",
        ) from error


def _read_key(pem: str) -> AuthorityKey:
    """Raises InvalidInput, which never shows what it was given."""
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except TypeError:
        raise InvalidInput(
            "The private key is encrypted.", remedy="`openssl pkey -in KEY` decrypts it."
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidInput("This is no private key in PEM.") from None
    if not isinstance(
        key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
    ):
        raise InvalidInput("The private key is of a kind that can't sign certificates here.")
    require_strong(key.public_key())
    return key


def _check_chain(key: AuthorityKey, chain: tuple[str, ...]) -> None:
    """Raises InvalidInput, which says what is wrong with it."""
    try:
        certificates = [x509.load_pem_x509_certificate(pem.encode()) for pem in chain]
        _check_certificates(key, certificates)
    except UNREADABLE as error:
        raise InvalidInput(f"The chain has what can't be read: {error}.") from error
    for number, (pem, certificate) in enumerate(zip(chain, certificates, strict=True)):
        issuer = min(number + 1, len(chain) - 1)
        if not is_signed_by(pem, chain[issuer]):
            name = certificate.subject.rfc4514_string()
            raise InvalidInput(
                f"{name} is not signed by {certificates[issuer].subject.rfc4514_string()}, which "
                "follows it."
                if issuer != number
                else f"The last of the chain, {name}, is not self-signed: hosts need a root."
            )


def _check_certificates(key: AuthorityKey, chain: list[x509.Certificate]) -> None:
    if not chain:
        raise InvalidInput("The chain has no certificate in PEM.")
    if key_sha256(chain[0].public_key()) != key_sha256(key.public_key()):
        raise InvalidInput(
            "The private key is not that of the chain's first certificate.",
            remedy="Put the certificate that is to sign first, the root last.",
        )
    now = datetime.now(UTC)
    for number, certificate in enumerate(chain):
        name = certificate.subject.rfc4514_string()
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise InvalidInput(f"{name} is not valid now.")
        _require_ca(certificate, name, below=number)


def _require_ca(certificate: x509.Certificate, name: str, *, below: int) -> None:
    """`below`: how many CAs of the chain it has below it."""
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        basic = x509.BasicConstraints(ca=False, path_length=None)
    if not basic.ca or (basic.path_length is not None and basic.path_length < below):
        raise InvalidInput(f"{name} is no CA, or none that may have {below} more below it.")
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not usage.key_cert_sign or (below == 0 and not usage.crl_sign):
        raise InvalidInput(f"{name} may not sign certificates and revocation lists.")
