"""Reading what others have signed: requests, certificates, chains, revocation lists."""

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from contracts.certificates import CertificateNames, CertificateRole, certificates_in
from contracts.errors import Failed, InvalidInput

# What the library raises for bytes that it can't read, each on another occasion.
UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
# NIST SP 800-131A rev. 2: 112 bits of security and more.
_MIN_RSA_BITS = 2048
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_MAX_SERIAL_BITS = 159  # RFC 5280, 4.1.2.2: 20 octets, and positive

ORGANIZATION = "Hostler"
EXTENDED_KEY_USAGES = {
    CertificateRole.HOST: (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
    CertificateRole.SERVER: (ExtendedKeyUsageOID.SERVER_AUTH,),
    CertificateRole.CLIENT: (ExtendedKeyUsageOID.CLIENT_AUTH,),
    CertificateRole.QEMU: (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
    CertificateRole.CONTROLLER: (ExtendedKeyUsageOID.CLIENT_AUTH,),
}


@dataclass(frozen=True)
class CsrFacts:
    """What a signing request asks for.

    Attributes:
        subject: type ("CN", or its OID) and value of each attribute.
        other_names: names that are neither DNS nor IP, in words ("URI http://x").
        extended_key_usages: OIDs.
        extensions: others that it asks for and that give rights, in words.
        key_sha256: of the SubjectPublicKeyInfo in DER.
        pem: the request as the library writes it, without what was around it.
    """

    subject: tuple[tuple[str, str], ...]
    dns_names: tuple[str, ...]
    ip_addresses: tuple[str, ...]
    other_names: tuple[str, ...]
    extended_key_usages: tuple[str, ...]
    extensions: tuple[str, ...]
    key_sha256: str
    pem: str


@dataclass(frozen=True)
class CertificateFacts:
    """What a certificate says, in the forms that the inventory keeps: `serial` and the digests
    hexadecimal, `subject` in the order of the certificate, `attributes` the same in its parts."""

    serial: str
    subject: str
    attributes: tuple[tuple[str, str], ...]
    dns_names: tuple[str, ...]
    ip_addresses: tuple[str, ...]
    other_names: tuple[str, ...]
    extended_key_usages: tuple[str, ...]
    signs: bool
    is_ca: bool
    key_sha256: str
    sha256: str
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True)
class CrlReading:
    """What a revocation list says."""

    number: int
    this_update: datetime
    next_update: datetime
    serials: tuple[str, ...]


def read_csr(pem: str) -> CsrFacts:
    """Read and check a PKCS #10 request (RFC 2986). Raises InvalidInput if it is none, is not
    signed by its own key, or has a key that is too weak."""
    csr = load_csr(pem)
    try:
        signed, key = csr.is_signature_valid, csr.public_key()
        extensions = [*csr.extensions]
        dns, ips, others = _names(extension.value for extension in extensions)
        facts = CsrFacts(
            subject=_attributes(csr.subject),
            dns_names=dns,
            ip_addresses=ips,
            other_names=others,
            extended_key_usages=_usages(extension.value for extension in extensions),
            extensions=tuple(words for e in extensions if (words := _right(e)) is not None),
            key_sha256=key_sha256(key),
            pem=csr.public_bytes(Encoding.PEM).decode(),
        )
    except UNREADABLE as error:
        raise InvalidInput(f"The signing request can't be read: {error}.") from error
    if not signed:
        raise InvalidInput("The signing request is not signed by the key that it is for.")
    require_strong(key)
    return facts


def load_csr(pem: str) -> x509.CertificateSigningRequest:
    """Raises InvalidInput."""
    try:
        return x509.load_pem_x509_csr(pem.encode())
    except UNREADABLE:
        raise InvalidInput(
            "This is no signing request (PKCS #10 in PEM).",
            remedy="`openssl req -new -key KEY` makes one; the private key stays where it is.",
        ) from None


def read_certificate(pem: str) -> CertificateFacts:
    """Raises Failed if it is none, or says what no certificate of ours may say."""
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        extensions = [e.value for e in certificate.extensions]
        dns, ips, others = _names(extensions)
        usages = [e for e in extensions if isinstance(e, x509.KeyUsage)]
        return CertificateFacts(
            serial=f"{certificate.serial_number:x}",
            subject=in_order(certificate.subject),
            attributes=_attributes(certificate.subject),
            dns_names=dns,
            ip_addresses=ips,
            other_names=others,
            extended_key_usages=_usages(extensions),
            signs=all(e.digital_signature for e in usages),
            is_ca=any(e.ca for e in extensions if isinstance(e, x509.BasicConstraints))
            or any(e.key_cert_sign for e in usages),
            key_sha256=key_sha256(certificate.public_key()),
            sha256=hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest(),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        )
    except UNREADABLE as error:
        raise Failed(f"The CA's answer is no certificate that can be read: {error}.") from error


def differences(
    found: CertificateFacts,
    names: CertificateNames,
    role: CertificateRole,
    key: str,
    until: datetime,
) -> tuple[str, ...]:
    """In what a certificate is not what was ordered, in words; `key`: digest of the request's;
    `until`: how long it may be valid. An external CA may give it more usages and less time."""
    subject = (("O", ORGANIZATION), ("OU", names.unit), ("CN", names.common_name))
    wanted_usages = {usage.dotted_string for usage in EXTENDED_KEY_USAGES[role]}
    checks = (
        (found.key_sha256 == key, "its key is not that of the request"),
        (not found.is_ca, "it is a CA's"),
        (found.signs, "its key usage is not good for signatures"),
        (
            found.attributes == tuple(one for one in subject if one[1] is not None),
            f"its subject is {found.subject}",
        ),
        (found.not_after <= until, f"it is valid until {found.not_after:%Y-%m-%d %H:%M} UTC"),
        (
            0 < int(found.serial, 16).bit_length() <= _MAX_SERIAL_BITS,
            f"its serial number {found.serial} has more than 20 octets",
        ),
        (
            ({*found.dns_names}, {*found.ip_addresses}, found.other_names)
            == ({*names.dns_names}, {*names.ip_addresses}, ()),
            "its names are "
            + (", ".join((*found.dns_names, *found.ip_addresses, *found.other_names)) or "none"),
        ),
        (
            {*found.extended_key_usages} >= wanted_usages,
            f"it is not good for all that the role {role} needs",
        ),
    )
    return tuple(words for fine, words in checks if not fine)


def is_signed_by(pem: str, issuer: str) -> bool:
    """Whether the certificate names `issuer` (both PEM) and has its signature."""
    try:
        x509.load_pem_x509_certificate(pem.encode()).verify_directly_issued_by(
            x509.load_pem_x509_certificate(issuer.encode())
        )
    except (*UNREADABLE, TypeError, InvalidSignature):
        return False
    return True


def split_chain(text: str) -> tuple[str, ...]:
    """The certificates of a PEM file, one text each, as the library writes them: the same chain is
    always the same texts. What is between them is left out. Raises InvalidInput."""
    try:
        return tuple(
            x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.PEM).decode()
            for pem in certificates_in(text)
        )
    except UNREADABLE as error:
        raise InvalidInput(f"The chain has what is no certificate: {error}.") from error


def require_anchored(chain: Sequence[str]) -> None:
    """Raises Failed unless each certificate (PEM) is signed by the next one, and the last one by
    itself."""
    if not chain:
        raise Failed("The CA has no certificate.")
    for pem, issuer in itertools.pairwise((*chain, chain[-1])):
        if not is_signed_by(pem, issuer):
            raise Failed(
                f"The chain of the CA is broken: {read_certificate(pem).subject} is not signed by "
                f"{read_certificate(issuer).subject}.",
                remedy="Have it give its chain up to a self-signed root: hosts trust that one.",
            )


def read_crl(der: bytes, issuer: str) -> CrlReading:
    """Raises Failed if it is no revocation list that `issuer` (PEM) has signed."""
    try:
        crl = x509.load_der_x509_crl(der)
        key = x509.load_pem_x509_certificate(issuer.encode()).public_key()
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        valid = _signs(crl, key)
        end = crl.next_update_utc
        serials = tuple(f"{entry.serial_number:x}" for entry in crl)
    except UNREADABLE as error:
        raise Failed(f"The revocation list of the CA can't be read: {error}.") from error
    if not valid or end is None:
        raise Failed("The revocation list is not signed by the CA, or has no end.")
    return CrlReading(
        number=number, this_update=crl.last_update_utc, next_update=end, serials=serials
    )


def require_strong(key: object) -> None:
    """Raises InvalidInput for a key that is too weak, or of a kind that TLS stacks do not take."""
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _MIN_RSA_BITS:
        problem = f"RSA of {key.key_size} bits"
    elif isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name not in _CURVES:
        problem = f"the curve {key.curve.name}"
    elif isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        return
    else:
        problem = f"a key of the kind {_kind(key)}"
    raise InvalidInput(
        f"The key is {problem}, which is not taken.",
        remedy=f"Take EC with P-256, P-384 or P-521, Ed25519, or RSA of {_MIN_RSA_BITS} bits and "
        "more.",
    )


def key_sha256(key: PublicKeyTypes) -> str:
    """Of its SubjectPublicKeyInfo in DER, hexadecimal."""
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def in_order(name: x509.Name) -> str:
    """RFC 4514's form in the order of the certificate, as libvirt and GnuTLS compare it."""
    return ",".join(rdn.rfc4514_string() for rdn in name.rdns)


def _signs(crl: x509.CertificateRevocationList, key: object) -> bool:
    if not isinstance(
        key,
        rsa.RSAPublicKey
        | ec.EllipticCurvePublicKey
        | ed25519.Ed25519PublicKey
        | ed448.Ed448PublicKey
        | dsa.DSAPublicKey,
    ):
        return False
    try:
        return crl.is_signature_valid(key)
    except InvalidSignature:
        return False


def _attributes(name: x509.Name) -> tuple[tuple[str, str], ...]:
    """Type ("CN", or its OID) and value of each."""
    return tuple((a.rfc4514_attribute_name, str(a.value)) for a in name)


def _usages(extensions: Iterable[x509.ExtensionType]) -> tuple[str, ...]:
    return tuple(
        usage.dotted_string
        for extension in extensions
        if isinstance(extension, x509.ExtendedKeyUsage)
        for usage in extension
    )


def _names(
    extensions: Iterable[x509.ExtensionType],
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Alternative names: DNS, IP addresses, others in words."""
    dns, ips, others = [], [], []
    for name in (
        name
        for extension in extensions
        if isinstance(extension, x509.SubjectAlternativeName)
        for name in extension
    ):
        if isinstance(name, x509.DNSName):
            dns.append(name.value)
        elif isinstance(name, x509.IPAddress):
            ips.append(str(name.value))
        else:
            kind = type(name).__name__
            others.append(f"{kind} {getattr(name, 'value', '')}".strip())
    return tuple(dns), tuple(ips), tuple(others)


def _right(extension: x509.Extension[x509.ExtensionType]) -> str | None:
    """An extension that asks for more than every certificate of ours has, in words."""
    value = extension.value
    if isinstance(
        value, x509.SubjectAlternativeName | x509.ExtendedKeyUsage | x509.SubjectKeyIdentifier
    ):
        return None
    if isinstance(value, x509.BasicConstraints):
        return "basicConstraints CA:TRUE" if value.ca else None
    if isinstance(value, x509.KeyUsage):
        wanted = [
            word
            for word in ("content_commitment", "key_cert_sign", "crl_sign")
            if getattr(value, word)
        ]
        return f"keyUsage {', '.join(wanted)}" if wanted else None
    return f"extension {extension.oid.dotted_string}"


def _kind(key: object) -> str:
    return type(key).__name__.removesuffix("PublicKey").lstrip("_")
