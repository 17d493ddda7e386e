"""What Hostler's own CA signs: certificates and revocation lists as RFC 5280 profiles them."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from contracts.certificates import RevocationReason
from drivers.authorities.protocols import CertificateOrder, CrlOrder
from drivers.authorities.x509 import EXTENDED_KEY_USAGES, ORGANIZATION, load_csr

AuthorityKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
Hash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512

# Clocks of hosts differ: what was signed just now must not lie in a host's future.
_BACKDATED = timedelta(minutes=5)
_CURVES: dict[int, type[ec.EllipticCurve]] = {
    256: ec.SECP256R1,
    384: ec.SECP384R1,
    521: ec.SECP521R1,
}
_RSA_EXPONENT = 65537
_HASHES: dict[str, type[Hash]] = {
    "SHA256": hashes.SHA256,
    "SHA384": hashes.SHA384,
    "SHA512": hashes.SHA512,
}


@dataclass(frozen=True)
class Issuer:
    """Who signs, and with which hash (None: the kind of key has its own)."""

    certificate: x509.Certificate
    key: AuthorityKey
    algorithm: Hash | None


def new_key(size: int) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    """A private key: an elliptic curve of `size` bits if there is one, else RSA."""
    if size in _CURVES:
        return ec.generate_private_key(_CURVES[size]())
    return rsa.generate_private_key(_RSA_EXPONENT, size)


def new_request(size: int, common_name: str) -> tuple[str, str]:
    """A new key (PKCS #8, unencrypted) and a request that asks for nothing but that name, in
    PEM."""
    key = new_key(size)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode(),
    )


def algorithm_of(key: AuthorityKey, setting: str | None) -> Hash | None:
    """The hash of `setting` ("SHA256withRSA"). How it signs with that is the key's: a setting that
    is of another kind must not keep revocation lists from being made."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return None
    return _HASHES[setting.partition("with")[0]]() if setting is not None else hashes.SHA256()


def root_certificate(
    key: AuthorityKey,
    subject: x509.Name,
    algorithm: Hash | None,
    validity: timedelta,
    *,
    path_length: int | None = None,
) -> x509.Certificate:
    """Self-signed, with a random serial; `path_length`: of CAs that may come below it."""
    begin = _now() - _BACKDATED
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + validity)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .sign(key, algorithm)
    )


def host_certificate(
    issuer: Issuer, order: CertificateOrder, crl_url: str | None
) -> x509.Certificate:
    """A certificate of one host, or of Hostler; it does not outlive its issuer's."""
    key = load_csr(order.csr).public_key()
    begin = _now() - _BACKDATED
    names = order.names
    builder = (
        x509.CertificateBuilder()
        .subject_name(_subject(order))
        .issuer_name(issuer.certificate.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(begin, issuer.certificate.not_valid_before_utc))
        .not_valid_after(min(begin + order.validity, issuer.certificate.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(EXTENDED_KEY_USAGES[order.role]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(_authority_identifier(issuer.certificate), critical=False)
    )
    if isinstance(key, rsa.RSAPublicKey):
        usage = _key_usage(digital_signature=True, key_encipherment=True)
        builder = builder.add_extension(usage, critical=True)
    else:
        # libvirt refuses a critical one without keyEncipherment ("usage does not permit key
        # encipherment"), which RFC 8813 forbids for these keys.
        builder = builder.add_extension(_key_usage(digital_signature=True), critical=False)
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names.dns_names]
    alternatives += [x509.IPAddress(ip_address(address)) for address in names.ip_addresses]
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    if crl_url is not None:
        location = x509.UniformResourceIdentifier(crl_url)
        point = x509.DistributionPoint([location], None, None, None)
        builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
    return builder.sign(issuer.key, issuer.algorithm)


def revocation_list(issuer: Issuer, order: CrlOrder, validity: timedelta) -> bytes:
    """A full list, in DER."""
    now = _now()
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(now - _BACKDATED)
        .next_update(now + validity)
        .add_extension(_authority_identifier(issuer.certificate), critical=False)
        .add_extension(x509.CRLNumber(order.number), critical=False)
    )
    for revoked in order.revoked:
        entry = (
            x509.RevokedCertificateBuilder()
            .serial_number(int(revoked.serial, 16))
            .revocation_date(revoked.at)
        )
        # RFC 5280, 5.3.1: no reason is said by leaving it out.
        if revoked.reason is not RevocationReason.UNSPECIFIED:
            reason = x509.CRLReason(x509.ReasonFlags(revoked.reason.value))
            entry = entry.add_extension(reason, critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(issuer.key, issuer.algorithm).public_bytes(Encoding.DER)


def _subject(order: CertificateOrder) -> x509.Name:
    parts = [(NameOID.ORGANIZATION_NAME, ORGANIZATION)]
    if order.names.unit is not None:
        parts.append((NameOID.ORGANIZATIONAL_UNIT_NAME, order.names.unit))
    parts.append((NameOID.COMMON_NAME, order.names.common_name))
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])


def _authority_identifier(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """By the identifier that the issuer's certificate has, not by one that is computed anew: an
    imported CA may have made its own in another way."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        identifier = x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())
    else:
        identifier = found.value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _key_usage(**set_: bool) -> x509.KeyUsage:
    usages = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(**(usages | set_))


def _now() -> datetime:
    """To the second, as X.509 has it."""
    return datetime.now(UTC).replace(microsecond=0)
