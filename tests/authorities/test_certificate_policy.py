"""Names are the inventory's; what a signing request asks for beyond is found, whatever it is."""

import base64
import textwrap

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import example, given
from hypothesis import strategies as st

from activities.certificate_policy import CONTROLLER_NAMES, beyond, names_of
from contracts.certificates import CertificateNames, CertificateRole
from contracts.errors import Conflict, InvalidInput
from contracts.settings import MIGRATION_NETWORK, Network
from drivers.authorities.x509 import read_csr
from tests.authorities.samples import KEYS, csr, key_usage
from tests.samples import FACTS, host

NAMES = CertificateNames(
    common_name="kvm-1",
    unit="cluster-id-1",
    dns_names=("kvm-1",),
    ip_addresses=("198.18.0.11", "2001:db8::11"),
)
SAN = x509.SubjectAlternativeName.oid
ADDRESSES = ("198.18.0.12", "198.18.1.11", "198.18.1.12", "2001:db8::11")


def network(text: str) -> Network:
    parsed = MIGRATION_NETWORK.parse(text)
    assert parsed is not None
    return parsed


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        (None, ("198.18.0.11",)),
        ("198.18.1.0/24", ("198.18.0.11", "198.18.1.11")),
        ("2001:db8::/64", ("198.18.0.11", "2001:db8::11")),
        # Hostler reaches another host at 198.18.0.12; 198.18.1.12 is reported by two.
        ("198.18.0.0/15", ("198.18.0.11", "198.18.1.11")),
    ],
)
def test_every_address_of_control_and_migration_is_in(
    text: str | None, addresses: tuple[str, ...]
) -> None:
    one = host(facts=FACTS.model_copy(update={"addresses": ADDRESSES}))
    claims = {"198.18.0.12": "kvm-2", "198.18.1.12": "kvm-2"}
    names = names_of(one, "cluster-1f", network(text) if text else None, claims)
    assert names.ip_addresses == addresses
    assert (names.common_name, names.dns_names, names.unit) == ("kvm-1", ("kvm-1",), "cluster-1f")


def test_a_host_that_has_told_nothing_has_its_control_address() -> None:
    names = names_of(host(facts=None), "cluster-1f", network("198.18.0.0/15"), {})
    assert names.ip_addresses == ("198.18.0.11",)


@pytest.mark.parametrize(
    ("addresses", "says"),
    [
        (None, "it reports none there"),
        (("10.0.0.1",), "it reports none there"),
        (("198.18.1.12",), "198.18.1.12, which kvm-2 has, too"),
    ],
)
def test_one_without_an_address_for_migrations_is_refused(
    addresses: tuple[str, ...] | None, says: str
) -> None:
    """Its certificate would be of no use to them."""
    facts = FACTS.model_copy(update={"addresses": addresses}) if addresses else None
    with pytest.raises(Conflict, match=says):
        names_of(
            host(facts=facts), "cluster-1f", network("198.18.1.0/24"), {"198.18.1.12": "kvm-2"}
        )


@pytest.mark.parametrize(
    ("name", "dns_names"),
    [
        ("kvm-1", ("kvm-1",)),
        ("Kvm1.example.net", ("Kvm1.example.net",)),
        ("kvm_1", ()),
        ("kvm..1", ()),
        ("kvm-.x", ()),
        ("198.18.0.12", ()),
    ],
)
def test_a_name_that_dns_does_not_allow_is_in_the_subject_alone(
    name: str, dns_names: tuple[str, ...]
) -> None:
    names = names_of(host(name), "cluster-1f", None, {})
    assert (names.common_name, names.dns_names) == (name, dns_names)


@pytest.mark.parametrize(
    "pem",
    [
        csr(),
        csr(subject=[(NameOID.COMMON_NAME, "kvm-1")]),
        csr(
            subject=[
                (NameOID.ORGANIZATION_NAME, "Hostler"),
                (NameOID.ORGANIZATIONAL_UNIT_NAME, "cluster-id-1"),
            ],
            dns=["KVM-1"],
            ips=["2001:db8:0::11"],
            extensions=[
                x509.BasicConstraints(ca=False, path_length=None),
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
                key_usage(digital_signature=True, key_encipherment=True),
            ],
        ),
    ],
)
def test_what_the_certificate_has_may_be_asked_for(pem: str) -> None:
    assert beyond(read_csr(pem), NAMES, CertificateRole.HOST) == ()


@pytest.mark.parametrize(
    ("pem", "words"),
    [
        (csr(subject=[(NameOID.COMMON_NAME, "kvm-2")]), "CN=kvm-2"),
        (csr(subject=[(NameOID.ORGANIZATION_NAME, "Evil")]), "O=Evil"),
        (csr(subject=[(NameOID.ORGANIZATIONAL_UNIT_NAME, "cluster-id-2")]), "OU=cluster-id-2"),
        (csr(subject=[(NameOID.EMAIL_ADDRESS, "a@b.c")]), "1.2.840.113549.1.9.1=a@b.c"),
        (csr(dns=["kvm-1", "kvm-2"]), "DNS:kvm-2"),
        (csr(dns=["*"]), "DNS:*"),
        (csr(ips=["198.18.0.12"]), "IP:198.18.0.12"),
        (csr(names=[x509.RFC822Name("a@b.c")]), "RFC822Name a@b.c"),
        (csr(names=[x509.UniformResourceIdentifier("x:y")]), "UniformResourceIdentifier x:y"),
        (
            csr(extensions=[x509.BasicConstraints(ca=True, path_length=None)]),
            "basicConstraints CA:TRUE",
        ),
        (
            csr(extensions=[key_usage(key_cert_sign=True, crl_sign=True)]),
            "keyUsage key_cert_sign, crl_sign",
        ),
        (
            csr(extensions=[x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])]),
            "usage 1.3.6.1.5.5.7.3.3",
        ),
        (csr(extensions=[x509.InhibitAnyPolicy(0)]), "extension 2.5.29.54"),
        (
            csr(extensions=[x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"x")]),
            "extension 1.2.3",
        ),
    ],
)
def test_what_it_has_not_is_found(pem: str, words: str) -> None:
    assert beyond(read_csr(pem), NAMES, CertificateRole.HOST) == (words,)


def test_a_client_is_no_server() -> None:
    asked = read_csr(csr(extensions=[x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])]))
    assert beyond(asked, NAMES, CertificateRole.CLIENT) == ("usage 1.3.6.1.5.5.7.3.1",)


def test_a_host_can_not_pass_for_hostler() -> None:
    asked = read_csr(csr(subject=[(NameOID.COMMON_NAME, CONTROLLER_NAMES.common_name)]))
    assert beyond(asked, NAMES, CertificateRole.HOST) == ("CN=hostler controller",)
    assert beyond(asked, CONTROLLER_NAMES, CertificateRole.CONTROLLER) == ()


def test_what_a_stranger_has_sent_is_shown_printable_and_short() -> None:
    many = [(NameOID.ORGANIZATIONAL_UNIT_NAME, f"unit {number}") for number in range(30)]
    odd = [(NameOID.COMMON_NAME, "a\x00\x1b[2Jb")]
    long = [(NameOID.COMMON_NAME, "x" * 64)] * 4
    found = beyond(read_csr(csr(subject=[*odd, *many])), NAMES, CertificateRole.HOST)
    assert found[0] == "CN=a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[2Jb"
    assert (len(found), found[-1]) == (21, "11 more")
    (uri,) = beyond(
        read_csr(csr(names=[x509.UniformResourceIdentifier("x" * 5000)])),
        NAMES,
        CertificateRole.HOST,
    )
    assert len(uri) < 250
    assert len(beyond(read_csr(csr(subject=long)), NAMES, CertificateRole.HOST)) == 4


_LABELS = st.from_regex(r"[a-z0-9]{1,8}(\.[a-z0-9]{1,8})?", fullmatch=True)


@given(st.lists(_LABELS, max_size=4), st.lists(st.ip_addresses().map(str), max_size=4))
def test_no_name_gets_in_unseen(names: list[str], addresses: list[str]) -> None:
    found = beyond(read_csr(csr(dns=names, ips=addresses)), NAMES, CertificateRole.HOST)
    foreign = {f"DNS:{name}" for name in names if name not in NAMES.dns_names}
    foreign |= {f"IP:{one}" for one in addresses if one not in NAMES.ip_addresses}
    assert set(found) == foreign


@pytest.mark.parametrize(
    ("pem", "says"),
    [
        ("", "no signing request"),
        (csr().replace("A", "B", 1), "signing request"),
        (csr(rsa.generate_private_key(65537, 1024)), "RSA of 1024 bits"),  # noqa: S505 - refused
        (csr(ec.generate_private_key(ec.SECP256K1())), "the curve secp256k1"),
        (csr(dsa.generate_private_key(2048)), "of the kind DSA"),
        # An x400Address, which the library knows no class for.
        (csr(extensions=[x509.UnrecognizedExtension(SAN, b"\x30\x02\xa3\x00")]), "can't be read"),
    ],
)
def test_what_is_no_request_of_a_good_key_is_refused(pem: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        read_csr(pem)


def test_a_request_that_was_not_signed_by_its_key_is_refused() -> None:
    """Its subject was changed after it was signed: the bytes before the signature are others."""
    request = x509.load_pem_x509_csr(csr(subject=[(NameOID.COMMON_NAME, "kvm-1")]).encode())
    der = request.public_bytes(Encoding.DER).replace(b"kvm-1", b"kvm-2")
    forged = x509.load_der_x509_csr(der).public_bytes(Encoding.PEM).decode()
    with pytest.raises(InvalidInput, match="not signed by the key"):
        read_csr(forged)


def _tlv(tag: int, body: bytes) -> bytes:
    """An element in DER."""
    size = len(body)
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    head = bytes([size]) if size < 128 else bytes([0x80 | len(octets)]) + octets
    return bytes([tag]) + head + body


_ODD = csr(
    subject=[(NameOID.COMMON_NAME, "kvm-1")],
    dns=["kvm-1"],
    ips=["198.18.0.11"],
    extensions=[key_usage(digital_signature=True)],
)


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
@example([(-1, 0xFF)])
def test_whatever_is_sent_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    """Any bytes, signed properly: what can't be read must not be tried for ever."""
    request = x509.load_pem_x509_csr(_ODD.encode())
    body = bytearray(request.tbs_certrequest_bytes)
    for at, value in changes:
        # -1: in the subject, whose text is then no UTF-8.
        body[at % len(body) if at >= 0 else body.index(b"kvm-1")] = value
    key = KEYS["P-256"]
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = key.sign(bytes(body), ec.ECDSA(hashes.SHA256()))
    algorithm = _tlv(0x30, _tlv(0x06, bytes.fromhex("2a8648ce3d040302")))
    der = _tlv(0x30, bytes(body) + algorithm + _tlv(0x03, b"\x00" + signature))
    text = "\n".join(textwrap.wrap(base64.b64encode(der).decode(), 64))
    pem = f"-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n"
    try:
        found = beyond(read_csr(pem), NAMES, CertificateRole.HOST)
    except InvalidInput:
        return
    assert all(words.isprintable() for words in found)
