"""Keys and signing requests as hosts and operators make them, and what independent programs say of
what was signed."""

import csv
import io
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey

KEYS: dict[str, Key] = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "RSA 2048": rsa.generate_private_key(65537, 2048),
}


def csr(
    key: Key | dsa.DSAPrivateKey | None = None,
    *,
    subject: Sequence[tuple[x509.ObjectIdentifier, str]] = (),
    dns: Sequence[str] = (),
    ips: Sequence[str] = (),
    names: Sequence[x509.GeneralName] = (),
    extensions: Sequence[x509.ExtensionType] = (),
) -> str:
    """A signing request (PEM) that asks for all that is given."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(oid, value) for oid, value in subject])
    )
    alternatives = [
        *(x509.DNSName(name) for name in dns),
        *(x509.IPAddress(ip_address(address)) for address in ips),
        *names,
    ]
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    private = key or KEYS["P-256"]
    algorithm = None if isinstance(private, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(private, algorithm).public_bytes(Encoding.PEM).decode()


def key_pem(key: Key, passphrase: bytes | None = None) -> str:
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption).decode()


def key_usage(**usages: bool) -> x509.KeyUsage:
    """With these bits, and no others."""
    bits = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
        *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**(dict.fromkeys(bits, False) | usages))


@dataclass(frozen=True)
class Ca:
    """A certificate that was made elsewhere, and its key."""

    certificate: x509.Certificate
    key: Key

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()


def ca(
    name: str,
    issuer: Ca | None = None,
    *,
    key: Key | None = None,
    is_ca: bool = True,
    path_length: int | None = None,
    days: int = 100,
    may_list: bool = True,
) -> Ca:
    """Signed by `issuer`, else by itself; `days` of validity, from half of them ago if negative."""
    private = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    begin, end = sorted((now - timedelta(days=1), now + timedelta(days=days)))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=path_length), critical=True)
        .add_extension(key_usage(key_cert_sign=is_ca, crl_sign=may_list), critical=True)
        # Not as RFC 5280 suggests: who issues by this one has to say the same.
        .add_extension(x509.SubjectKeyIdentifier(name.encode().ljust(20)[:20]), critical=False)
        .sign(issuer.key if issuer else private, hashes.SHA256())
    )
    return Ca(certificate, private)


def lint(program: str, *files: Path, options: Sequence[str] = ()) -> list[str]:
    """Codes of what pkilint finds worse than a notice."""
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name(program)),
            "lint",
            *options,
            "-s",
            "WARNING",
            "-f",
            "CSV",
            *map(str, files),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == done.returncode, done.stdout
    return [row["code"] for row in rows]


def openssl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def contents(directory: Path) -> bytes:
    """Of all files in it."""
    return b"".join(path.read_bytes() for path in directory.iterdir())
