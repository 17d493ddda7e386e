"""Hostler's own CA, judged by programs that know nothing of it."""

import dataclasses
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from sqlmodel import select

from contracts.certificates import (
    AuthorityOrigin,
    CertificateNames,
    CertificateRole,
    RevocationReason,
    RevokeCertificatesInput,
)
from contracts.errors import Conflict, InvalidInput
from drivers.authorities.protocols import CertificateOrder
from drivers.authorities.x509 import read_certificate
from inventory import Inventory
from inventory.models import SecretVersionRow
from tests.authorities.conftest import root
from tests.authorities.issuing import activities, issue
from tests.authorities.samples import (
    KEYS,
    Ca,
    Key,
    ca,
    contents,
    csr,
    key_pem,
    lint,
    openssl,
    write,
)
from tests.authorities.test_issuing import publish

WEAK = rsa.generate_private_key(65537, 1024)  # noqa: S505 - to be refused
TOP = ca("top", path_length=0)
NAMES = CertificateNames(
    common_name="kvm-1.example.net",
    unit="cluster-id-1",
    dns_names=("kvm-1.example.net",),
    ip_addresses=("198.18.0.11", "2001:db8::11"),
)
URL = "http://ca.example.net:8480/v1/ca"
# RFC 5280 would have the key usage of these critical; libvirt then refuses them, since they are not
# good for key encipherment, which RFC 8813 forbids. See docs/decisions/0030-certificates.md.
NOT_CRITICAL = "pkix.key_usage_extension_not_critical"
# pkilint wants a dot in each name; RFC 1034, which RFC 5280 refers to, does not.
NO_DOT = "pkix.invalid_domain_name_syntax"


def order(key: Key, role: CertificateRole = CertificateRole.HOST) -> CertificateOrder:
    return CertificateOrder(
        csr=csr(key, dns=["evil.example"]),
        names=NAMES,
        role=role,
        validity=timedelta(days=365),
    )


@pytest.mark.parametrize("size", [256, 384, 2048])
@pytest.mark.parametrize("kind", KEYS)
async def test_what_it_signs_is_as_the_standards_ask(
    inventory: Inventory, tmp_path: Path, size: int, kind: str
) -> None:
    authority = await root(inventory, ca_framework_cert_keysize=size, ca_framework_crl_url=URL)
    (anchor,) = await authority.chain()
    root_file = write(tmp_path / "root.pem", anchor)
    leaf_file = write(tmp_path / "leaf.pem", await authority.issue(order(KEYS[kind])))
    assert lint("lint_pkix_cert", root_file) == []
    expected = [] if kind.startswith("RSA") else [NOT_CRITICAL]
    assert lint("lint_pkix_cert", leaf_file) == expected
    assert lint("lint_pkix_signer_signee_cert_chain", root_file, leaf_file) == []
    for purpose in ("sslserver", "sslclient"):
        verified = openssl(
            *(
                "verify",
                "-x509_strict",
                "-purpose",
                purpose,
                "-verify_hostname",
                "kvm-1.example.net",
            ),
            *("-CAfile", str(root_file), str(leaf_file)),
        )
        assert verified.returncode == 0, verified.stderr
    text = openssl("x509", "-in", str(leaf_file), "-noout", "-text").stdout
    for says in (
        "DNS:kvm-1.example.net, IP Address:198.18.0.11, IP Address:2001:DB8:0:0:0:0:0:11",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "X509v3 Authority Key Identifier",
        "X509v3 Subject Key Identifier",
        f"URI:{URL}/root/1/crl",
        "CA:FALSE",
    ):
        assert says in text
    assert "evil" not in text


async def test_a_name_of_one_part_and_none_at_all(inventory: Inventory, tmp_path: Path) -> None:
    authority = await root(inventory)
    short = NAMES.model_copy(update={"dns_names": ("kvm-1",)})
    bare = CertificateNames(common_name="hostler controller")
    for names, expected in ((short, {NOT_CRITICAL, NO_DOT}), (bare, {NOT_CRITICAL})):
        one = dataclasses.replace(order(KEYS["P-256"]), names=names)
        leaf = write(tmp_path / "leaf.pem", await authority.issue(one))
        assert set(lint("lint_pkix_cert", leaf)) == expected


async def test_a_certificate_has_a_random_serial_and_its_time(inventory: Inventory) -> None:
    authority = await root(inventory)
    issued = [read_certificate(await authority.issue(order(KEYS["P-256"]))) for _ in range(20)]
    assert len({one.serial for one in issued}) == 20
    for one in issued:
        assert 2**100 < int(one.serial, 16) < 2**159  # 20 octets, and positive
        assert one.not_after - one.not_before == timedelta(days=365)
        assert one.not_before < datetime.now(UTC)
        assert one.subject == "O=Hostler,OU=cluster-id-1,CN=kvm-1.example.net"


@pytest.mark.parametrize(
    ("role", "usages"),
    [
        (CertificateRole.HOST, {"serverAuth", "clientAuth"}),
        (CertificateRole.SERVER, {"serverAuth"}),
        (CertificateRole.CLIENT, {"clientAuth"}),
        (CertificateRole.CONTROLLER, {"clientAuth"}),
    ],
)
async def test_each_role_has_its_rights(
    inventory: Inventory, role: CertificateRole, usages: set[str]
) -> None:
    pem = await (await root(inventory)).issue(order(KEYS["P-256"], role))
    certificate = x509.load_pem_x509_certificate(pem.encode())
    found = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {usage._name for usage in found} == usages  # noqa: SLF001 - its only name


async def test_no_certificate_outlives_the_ca(inventory: Inventory) -> None:
    short = ca("short-lived", days=10)
    authority = await root(inventory)
    await authority.import_authority(key_pem(short.key), short.pem)
    issued = read_certificate(await authority.issue(order(KEYS["P-256"])))
    assert issued.not_after == short.certificate.not_valid_after_utc


@pytest.mark.parametrize(
    ("size", "setting", "algorithm"),
    [
        (256, None, "ecdsa-with-SHA256"),
        (256, "SHA384withECDSA", "ecdsa-with-SHA384"),
        (2048, None, "sha256WithRSAEncryption"),
        (2048, "SHA512withRSA", "sha512WithRSAEncryption"),
    ],
)
async def test_it_signs_as_the_settings_say(
    inventory: Inventory, tmp_path: Path, size: int, setting: str | None, algorithm: str
) -> None:
    authority = await root(
        inventory,
        ca_framework_cert_keysize=size,
        ca_framework_cert_signature_algorithm=setting,
        ca_framework_cert_validity_period=30,
        ca_plugin_root_issuer_dn="CN=Test CA,OU=Nowhere,O=Example",
    )
    for pem in (*await authority.chain(), await authority.issue(order(KEYS["P-256"]))):
        text = openssl("x509", "-in", str(write(tmp_path / "one.pem", pem)), "-text").stdout
        assert f"Signature Algorithm: {algorithm}" in text
        assert "Issuer: O = Example, OU = Nowhere, CN = Test CA" in text


async def test_a_setting_for_another_kind_of_key_is_no_end_of_signing(
    inventory: Inventory, tmp_path: Path
) -> None:
    """Of lists, too: hosts would come to have none that is valid."""
    authority = await root(inventory)
    (anchor,) = await authority.chain()
    authority = await root(inventory, ca_framework_cert_signature_algorithm="SHA512withRSA")
    leaf = write(tmp_path / "leaf.pem", await authority.issue(order(KEYS["P-256"])))
    crl = write(tmp_path / "crl.der", await authority.crl(anchor))
    for command in (("x509", "-in", str(leaf)), ("crl", "-inform", "DER", "-in", str(crl))):
        text = openssl(*command, "-noout", "-text").stdout
        assert "Signature Algorithm: ecdsa-with-SHA512" in text


async def test_a_name_that_is_none_is_named(inventory: Inventory) -> None:
    with pytest.raises(Conflict, match=r"ca\.plugin\.root\.issuer\.dn is no distinguished name"):
        await (await root(inventory, ca_plugin_root_issuer_dn="CN=a,b")).chain()


async def test_the_list_of_what_is_revoked_is_as_the_standards_ask(
    inventory: Inventory, tmp_path: Path
) -> None:
    certificates = activities(inventory)
    issued = [
        (await issue(certificates, request=name, csr=csr(key))).certificate
        for name, key in list(KEYS.items())[:3]
    ]
    reasons = (RevocationReason.KEY_COMPROMISE, RevocationReason.UNSPECIFIED)
    for one, reason in zip(issued, reasons, strict=False):
        await certificates.revoke_certificates(
            RevokeCertificatesInput(serial=one.serial, reason=reason, operation="revocation/x")
        )
    facts = await certificates.publish_crl(publish())
    assert (facts.number, facts.revoked) == (2, 2)
    der = write(tmp_path / "crl.der", await inventory.authorities.crl("root", 1))
    assert lint("lint_crl", der, options=["-t", "CRL", "-p", "PKIX"]) == []
    text = openssl("crl", "-in", str(der), "-inform", "DER", "-noout", "-text").stdout
    assert text.count("Serial Number:") == 2
    assert text.count("Key Compromise") == text.count("Reason Code") == 1
    authority = await inventory.authorities.get("root")
    bundle = write(tmp_path / "root.pem", authority.chain[0])
    crl_pem = openssl("crl", "-in", str(der), "-inform", "DER").stdout
    listed = write(tmp_path / "crl.pem", crl_pem)
    for one, status in zip(issued, (2, 2, 0), strict=True):
        verified = openssl(
            *("verify", "-crl_check", "-CAfile", str(bundle), "-CRLfile", str(listed)),
            str(write(tmp_path / "leaf.pem", one.pem)),
        )
        assert verified.returncode == status, verified.stderr
        assert ("certificate revoked" in verified.stderr) == (status != 0)
    assert (await certificates.publish_crl(publish())).number == 3


class TestImport:
    """An operator's own CA."""

    async def test_an_intermediate_one_signs_from_then_on(
        self, inventory: Inventory, tmp_path: Path
    ) -> None:
        top = ca("top", key=KEYS["RSA 2048"])
        middle = ca("middle", top, path_length=0)
        authority = await root(inventory)
        for _ in range(2):
            await authority.import_authority(key_pem(middle.key), f"x\n{middle.pem}\n{top.pem}")
        assert await authority.chain() == (middle.pem, top.pem)
        leaf = write(tmp_path / "leaf.pem", await authority.issue(order(KEYS["P-256"])))
        issuer = write(tmp_path / "middle.pem", middle.pem)
        verified = openssl(
            *("verify", "-CAfile", str(write(tmp_path / "top.pem", top.pem))),
            *("-untrusted", str(issuer), str(leaf)),
        )
        assert verified.returncode == 0, verified.stderr
        assert lint("lint_pkix_signer_signee_cert_chain", issuer, leaf) == []
        stored = await inventory.authorities.get("root")
        assert (stored.origin, stored.generation) == (AuthorityOrigin.IMPORTED, 1)
        assert len(await inventory.events.list(subject="ca/root")) == 1

    async def test_it_takes_the_place_of_one_that_has_issued_nothing(
        self, inventory: Inventory
    ) -> None:
        authority, own = await root(inventory), ca("own")
        await authority.chain()
        await authority.import_authority(key_pem(own.key), own.pem)
        assert await authority.chain() == (own.pem,)
        assert (await inventory.authorities.get("root")).generation == 2

    async def test_one_in_use_stays(self, inventory: Inventory) -> None:
        certificates, own = activities(inventory), ca("own")
        chain = (await issue(certificates)).chain
        authority = await root(inventory)
        with pytest.raises(Conflict, match="has issued 1 certificates"):
            await authority.import_authority(key_pem(own.key), own.pem)
        assert await authority.chain() == chain
        assert await secrets_of(inventory) == {"ca_key": 1, "password": 2}

    @pytest.mark.parametrize(
        ("says", "key", "chain"),
        [
            ("no private key in PEM", "", None),
            ("is encrypted", key_pem(KEYS["P-384"], b"secret"), None),
            ("RSA of 1024 bits", key_pem(WEAK), None),
            ("no certificate in PEM", key_pem(KEYS["P-256"]), ()),
            ("not that of the chain's first", key_pem(KEYS["P-256"]), (ca("other"),)),
            ("no CA", None, (ca("leaf", key=KEYS["P-256"], is_ca=False),)),
            ("not valid now", None, (ca("old", key=KEYS["P-256"], days=-3),)),
            ("revocation lists", None, (ca("mute", key=KEYS["P-256"], may_list=False),)),
            (
                "none that may have 1 more",
                None,
                (ca("b", TOP, key=KEYS["P-256"]), TOP),
            ),
            (
                "not signed by CN=other",
                None,
                (ca("b", ca("top"), key=KEYS["P-256"]), ca("other")),
            ),
            ("not self-signed", None, (ca("b", ca("top"), key=KEYS["P-256"]),)),
        ],
    )
    async def test_what_is_wrong_is_said_and_nothing_stored(
        self, inventory: Inventory, says: str, key: str | None, chain: tuple[Ca, ...] | None
    ) -> None:
        given = chain if chain is not None else (ca("own", key=KEYS["P-384"]),)
        with pytest.raises(InvalidInput, match=says) as caught:
            await (await root(inventory)).import_authority(
                key if key is not None else key_pem(KEYS["P-256"]),
                "".join(one.pem for one in given),
            )
        assert "PRIVATE" not in str(caught.value)
        assert await inventory.authorities.find("root") is None


async def test_the_private_key_is_nowhere_in_clear(inventory: Inventory, tmp_path: Path) -> None:
    own = ca("own")
    authority = await root(inventory)
    await authority.import_authority(key_pem(own.key), own.pem)
    await authority.issue(order(KEYS["P-256"]))
    await inventory.database.close()
    body = "".join(key_pem(own.key).splitlines()[1:-1])
    content = contents(tmp_path)
    assert own.certificate.subject.rfc4514_string().encode() in content
    assert b"PRIVATE KEY" not in content
    assert body[10:60].encode() not in content


async def secrets_of(inventory: Inventory) -> dict[str, int]:
    """How many there are of each kind."""
    async with inventory.database.reading() as session:
        return dict(Counter(await session.exec(select(SecretVersionRow.kind))))
