"""The provider `vault` on a real OpenBao."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.certificates import (
    AuthorityOrigin,
    CertificateRole,
    PublishCrlInput,
    RevocationReason,
    RevokeCertificatesInput,
    SetUpAuthorityInput,
)
from contracts.errors import Conflict, Failed, Unavailable
from drivers.authorities.protocols import ExternalAccess
from drivers.authorities.x509 import read_crl
from inventory import Inventory
from tests.authorities.bao import Bao, bao, octets
from tests.authorities.issuing import activities, issue
from tests.authorities.samples import KEYS, ca, csr, key_pem, lint, openssl, write


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    with bao(tmp_path_factory.mktemp("bao")) as server:
        yield server


@pytest.fixture
async def vault(inventory: Inventory, unit: str, server: Bao) -> Inventory:
    """The inventory whose settings choose the provider, which has roles for its cluster."""
    await inventory.settings.set("ca.framework.provider.plugin", "vault", actor="test")
    server.serve_unit(unit)
    return inventory


@pytest.fixture
async def unit(inventory: Inventory) -> str:
    """Of kvm-1's cluster."""
    return await inventory.certificates.unit("kvm-1")


@pytest.fixture
def access(server: Bao) -> ExternalAccess:
    return ExternalAccess(server.url, server.token_file, server.ca_file)


@pytest.mark.parametrize("kind", KEYS)
async def test_it_signs_what_the_inventory_says(
    vault: Inventory, access: ExternalAccess, server: Bao, unit: str, tmp_path: Path, kind: str
) -> None:
    result = await issue(activities(vault, access=access), csr=csr(KEYS[kind]))
    one = result.certificate
    assert one.subject == f"O=Hostler,OU={unit},CN=kvm-1"
    assert one.dns_names == ("kvm-1",)
    assert one.ip_addresses == ("198.18.0.11", "198.18.1.11")
    issuing, top = result.chain
    leaf = write(tmp_path / "leaf.pem", one.pem)
    verified = openssl(
        *("verify", "-purpose", "sslserver", "-verify_hostname", "kvm-1"),
        *("-CAfile", str(write(tmp_path / "top.pem", top))),
        *("-untrusted", str(issuer := write(tmp_path / "issuing.pem", issuing)), str(leaf)),
    )
    assert verified.returncode == 0, verified.stderr
    assert lint("lint_pkix_signer_signee_cert_chain", issuer, leaf) == []
    assert server.read(f"pki/cert/{octets(one.serial)}")["certificate"].strip() == one.pem.strip()
    authority = await vault.authorities.get("vault")
    assert (authority.origin, authority.chain) == (AuthorityOrigin.EXTERNAL, result.chain)


async def test_what_libvirt_holds_is_of_the_server_and_what_qemu_holds_of_hostler(
    vault: Inventory, access: ExternalAccess, unit: str
) -> None:
    """The token may not make a CA that only the cluster's QEMUs would have certificates of."""
    certificates = activities(vault, access=access)
    libvirt = (await issue(certificates)).certificate
    assert (libvirt.provider, libvirt.subject) == ("vault", f"O=Hostler,OU={unit},CN=kvm-1")
    qemu = await issue(certificates, "signing/qemu", role=CertificateRole.QEMU)
    assert (qemu.certificate.provider, len(qemu.chain)) == (f"{unit}-qemu", 1)
    assert qemu.certificate.subject == f"O=Hostler,OU={unit}-qemu,CN=kvm-1"
    assert not {*qemu.chain} & {*(await vault.authorities.get("vault")).chain}


async def test_the_controllers_certificate_names_no_host(
    vault: Inventory, access: ExternalAccess
) -> None:
    result = await issue(
        activities(vault, access=access), host=None, role=CertificateRole.CONTROLLER
    )
    one = result.certificate
    assert (one.host, one.subject) == (None, "O=Hostler,CN=hostler controller")
    assert (one.dns_names, one.ip_addresses) == ((), ())


async def test_what_is_revoked_is_in_the_list_of_the_server(
    vault: Inventory, access: ExternalAccess
) -> None:
    certificates = activities(vault, access=access)
    one = (await issue(certificates)).certificate
    revocation = RevokeCertificatesInput(
        serial=one.serial, reason=RevocationReason.SUPERSEDED, operation="revocation/x"
    )
    publish = PublishCrlInput(provider="vault", generation=one.generation, operation="revocation/x")
    before = await certificates.publish_crl(publish)
    for _ in range(2):
        revoked = await certificates.revoke_certificates(revocation)
        assert (revoked.serials, revoked.generations) == ((one.serial,), (one.generation,))
        after = await certificates.publish_crl(publish)
        assert after.number > before.number
        assert after.revoked == before.revoked + 1
    chain = (await vault.authorities.get("vault")).chain
    assert (
        one.serial
        in read_crl(await vault.authorities.crl("vault", one.generation), chain[0]).serials
    )
    with pytest.raises(Failed, match="not signed by the CA"):
        read_crl(await vault.authorities.crl("vault", one.generation), chain[1])


async def test_a_revocation_that_broke_off_before_it_was_recorded_goes_on(
    vault: Inventory, access: ExternalAccess, server: Bao
) -> None:
    certificates = activities(vault, access=access)
    one = (await issue(certificates)).certificate
    server.write("pki/revoke", serial_number=octets(one.serial))
    await certificates.revoke_certificates(
        RevokeCertificatesInput(serial=one.serial, operation="revocation/x")
    )
    assert (await vault.certificates.get(one.serial)).revoked_at is not None


async def test_names_that_a_role_takes_from_the_request_are_noticed_and_revoked(
    vault: Inventory, access: ExternalAccess, server: Bao, unit: str
) -> None:
    await vault.settings.set("ca.plugin.vault.role", "csr", actor="test")
    server.serve_unit(unit, "csr", use_csr_sans=True)
    await vault.settings.set("ca.framework.csr.extra", "drop", actor="test")
    known = set(server_serials(server))
    with pytest.raises(Failed, match=r"something else than was ordered: its names are evil\.x"):
        await issue(activities(vault, access=access), csr=csr(dns=["evil.x"]))
    assert await vault.certificates.list() == []
    (serial,) = set(server_serials(server)) - known
    assert server.read(f"pki/cert/{serial}")["revocation_time"] > 0


def server_serials(server: Bao) -> list[str]:
    response = server._client().request("LIST", "/v1/pki/certs")  # noqa: SLF001 - its own test
    serials: list[str] = response.json()["data"]["keys"]
    return serials


async def test_another_issuer_is_a_new_generation(
    vault: Inventory, access: ExternalAccess, server: Bao
) -> None:
    certificates = activities(vault, access=access)
    first = await issue(certificates, request="1")
    server.new_issuer()
    second = await issue(certificates, request="2")
    assert second.chain[0] != first.chain[0]
    assert second.chain[1] == first.chain[1]
    assert second.certificate.generation == first.certificate.generation + 1
    # A step that is done again gives what it gave, with the chain of that time.
    assert await issue(certificates, request="1") == first
    # What the former issuer has signed is listed by that one.
    await certificates.revoke_certificates(
        RevokeCertificatesInput(serial=first.certificate.serial, operation="x")
    )
    for result, listed in ((first, True), (second, False)):
        one = result.certificate
        publish = PublishCrlInput(provider="vault", generation=one.generation, operation="x")
        await certificates.publish_crl(publish)
        reading = read_crl(await vault.authorities.crl("vault", one.generation), result.chain[0])
        assert (first.certificate.serial in reading.serials) == listed


async def test_a_list_that_does_not_name_what_is_revoked_is_asked_for_again(
    vault: Inventory, access: ExternalAccess, server: Bao
) -> None:
    """As it is where the server makes its lists at certain times only."""
    certificates = activities(vault, access=access)
    one = (await issue(certificates)).certificate
    server.write("pki/config/crl", auto_rebuild=True)
    try:
        await certificates.revoke_certificates(
            RevokeCertificatesInput(serial=one.serial, operation="x")
        )
        publish = PublishCrlInput(provider="vault", generation=one.generation, operation="x")
        with pytest.raises(Unavailable, match=f"does not name {one.serial}, which is revoked"):
            await certificates.publish_crl(publish)
        server.read("pki/crl/rotate")
        await certificates.publish_crl(publish)
    finally:
        server.write("pki/config/crl", auto_rebuild=False)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ou": "cluster-2"}, "its subject is O=Hostler,OU=cluster-2,CN=kvm-1"),
        ({"ou": ""}, "its subject is O=Hostler,CN=kvm-1"),
        ({"organization": "Other"}, "its subject is O=Other,OU=cluster-"),
        ({"key_usage": ["KeyAgreement"]}, "not good for signatures"),
    ],
)
async def test_a_role_that_says_something_else_is_noticed(
    vault: Inventory,
    access: ExternalAccess,
    server: Bao,
    unit: str,
    change: dict[str, object],
    says: str,
) -> None:
    """By an allow-list of names, another cluster's unit is that cluster's host."""
    await vault.settings.set("ca.plugin.vault.role", "other", actor="test")
    server.serve_unit(unit, "other", **change)
    with pytest.raises(Failed, match=says):
        await issue(activities(vault, access=access))
    assert await vault.certificates.list() == []


async def test_a_certificate_that_ends_soon_is_told(
    vault: Inventory, access: ExternalAccess, server: Bao, unit: str
) -> None:
    await vault.settings.set("ca.plugin.vault.role", "short", actor="test")
    server.serve_unit(unit, "short", max_ttl="1h")
    await issue(activities(vault, access=access))
    (event,) = await vault.events.list(kind="certificate.short")
    assert "UTC only, not for 365 days" in event.message


async def test_a_role_that_refuses_is_told(
    vault: Inventory, access: ExternalAccess, server: Bao, unit: str
) -> None:
    await vault.settings.set("ca.plugin.vault.role", "nobody", actor="test")
    server.serve_unit(unit, "nobody", allow_any_name=False)
    role = f"nobody-{unit}"
    with pytest.raises(Failed, match=rf"refuses issuer/default/sign/{role}: .*not allowed by this"):
        await issue(activities(vault, access=access))


async def test_the_role_that_a_cluster_lacks_is_named(
    vault: Inventory, access: ExternalAccess, unit: str
) -> None:
    await vault.settings.set("ca.plugin.vault.role", "none", actor="test")
    with pytest.raises(Failed, match="unknown role") as caught:
        await issue(activities(vault, access=access))
    assert f"the role none-{unit} (it says ou={unit})" in str(caught.value)
    assert await vault.certificates.list() == []


async def test_a_token_that_is_wrong_is_told_and_not_shown(
    vault: Inventory, access: ExternalAccess, tmp_path: Path
) -> None:
    token = write(tmp_path / "token", "canary-token")
    wrong = dataclasses.replace(access, token_file=token)
    with pytest.raises(Failed, match="permission denied") as caught:
        await issue(activities(vault, access=wrong))
    assert "canary" not in str(caught.value)
    for text in ("canary\ntoken", "canary-\u00e4", ""):
        write(token, text)
        with pytest.raises(Failed, match="what is there is no token") as caught:
            await issue(activities(vault, access=wrong))
        assert "canary" not in str(caught.value)
    token.unlink()
    with pytest.raises(Failed, match="No such file"):
        await issue(activities(vault, access=wrong))


async def test_a_server_that_is_not_trusted_gets_no_token(
    vault: Inventory, access: ExternalAccess, tmp_path: Path
) -> None:
    other = write(tmp_path / "other.pem", ca("other").pem)
    with pytest.raises(Unavailable, match="certificate verify failed"):
        await issue(activities(vault, access=dataclasses.replace(access, trust_file=other)))
    with pytest.raises(Unavailable, match="certificate verify failed"):
        await issue(activities(vault, access=dataclasses.replace(access, trust_file=None)))
    nowhere = dataclasses.replace(access, trust_file=tmp_path / "nowhere")
    with pytest.raises(Failed, match="can't be used to trust"):
        await issue(activities(vault, access=nowhere))


@pytest.mark.parametrize(
    ("field", "says"), [("url", "HOSTLER_CA_URL"), ("token_file", "HOSTLER_CA_TOKEN_FILE")]
)
async def test_what_is_not_said_is_named(
    vault: Inventory, access: ExternalAccess, field: str, says: str
) -> None:
    fields = {field: None}
    with pytest.raises(Conflict, match=says):
        await issue(activities(vault, access=dataclasses.replace(access, **fields)))


async def test_it_takes_no_key_of_an_operators(vault: Inventory, access: ExternalAccess) -> None:
    own = ca("own")
    secret = await vault.secrets.store("ca_key", key_pem(own.key), actor="test")
    with pytest.raises(Conflict, match="takes no key"):
        await activities(vault, access=access).set_up_authority(
            SetUpAuthorityInput(key_secret=secret, chain=own.pem, operation="ca-setup/vault")
        )


async def test_one_that_is_sealed_or_away_is_waited_for(
    vault: Inventory, unit: str, tmp_path: Path
) -> None:
    with bao(tmp_path) as other:
        access = ExternalAccess(other.url, other.token_file, other.ca_file)
        other.serve_unit(unit)
        other.write("sys/seal")
        with pytest.raises(Unavailable, match="sealed"):
            await issue(activities(vault, access=access))
    with pytest.raises(Unavailable, match="does not answer"):
        await issue(activities(vault, access=access))
