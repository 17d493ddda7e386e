"""The steps of signing and revoking, and what they leave in the audit trail."""

import asyncio
import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from pydantic import ValidationError
from sqlmodel import select

from contracts.certificates import (
    AuthorityOrigin,
    CertificateRole,
    CertificateState,
    IssueCertificateInput,
    PlanUpkeepInput,
    PublishCrlInput,
    RevocationReason,
    RevokeCertificatesInput,
    SetUpAuthorityInput,
)
from contracts.errors import Conflict, Failed, InvalidInput, NotFound, Unavailable
from drivers.authorities.profiles import Issuer, host_certificate, revocation_list
from drivers.authorities.protocols import (
    CertificateAuthority,
    CertificateOrder,
    CrlOrder,
    ProviderContext,
    ProviderFactory,
)
from drivers.authorities.root import RootAuthority
from drivers.authorities.x509 import read_certificate
from inventory import Inventory
from inventory.authorities import NewAuthority
from inventory.models import CertificateAuthorityRow
from tests.authorities.issuing import activities, issue
from tests.authorities.samples import KEYS, ca, csr, key_pem
from tests.samples import FACTS

ELSEWHERE = ca("elsewhere")
ROUND = PlanUpkeepInput(operation="ca-upkeep")


def publish(generation: int = 1, provider: str = "root") -> PublishCrlInput:
    return PublishCrlInput(provider=provider, generation=generation, operation="ca-upkeep")


async def events(inventory: Inventory, subject: str = "host/kvm-1") -> list[tuple[str, str]]:
    """Kind and message of those about certificates, the newest first."""
    found = await inventory.events.list(subject=subject)
    return [(one.kind, one.message) for one in found if one.kind.startswith("certificate.")]


async def test_the_names_are_those_of_the_inventory(inventory: Inventory) -> None:
    result = await issue(activities(inventory), requester="token:anna")
    one = result.certificate
    assert one.dns_names == ("kvm-1",)
    # 198.18.0.12, which kvm-1 says that it has, too, is kvm-2's.
    assert one.ip_addresses == ("198.18.0.11", "198.18.1.11")
    unit = await inventory.certificates.unit("kvm-1")
    assert one.subject == f"O=Hostler,OU={unit},CN=kvm-1"
    assert await inventory.certificates.get(one.serial) == one
    shared, event = await inventory.events.list(subject="host/kvm-1", operation="signing/kvm-1")
    assert (event.kind, event.actor) == ("certificate.issued", "token:anna")
    assert one.serial in event.message
    assert shared.message == "left out, others have it: 198.18.0.12 (kvm-2)"


async def test_what_is_asked_for_beyond_is_refused_with_an_event(inventory: Inventory) -> None:
    with pytest.raises(InvalidInput, match=r"not know of kvm-1: CN=evil, DNS:evil\.x"):
        await issue(
            activities(inventory),
            csr=csr(subject=[(NameOID.COMMON_NAME, "evil")], dns=["kvm-1", "evil.x"]),
        )
    ((kind, message),) = await events(inventory)
    assert kind == "certificate.refused"
    assert "DNS:evil.x" in message
    assert await inventory.certificates.list() == []


async def test_or_left_out_with_an_event(inventory: Inventory) -> None:
    await inventory.settings.set("ca.framework.csr.extra", "drop", actor="test")
    result = await issue(activities(inventory), csr=csr(dns=["evil.x"], ips=["10.0.0.1"]))
    assert result.certificate.dns_names == ("kvm-1",)
    assert "10.0.0.1" not in result.certificate.ip_addresses
    _, dropped, issued = await events(inventory)
    assert dropped == (
        "certificate.names_dropped",
        "asked for beyond the inventory and left out: DNS:evil.x, IP:10.0.0.1",
    )
    assert issued[0] == "certificate.issued"


async def test_a_step_that_is_done_again_gives_the_same(inventory: Inventory) -> None:
    certificates = activities(inventory)
    assert await issue(certificates) == await issue(certificates)
    assert len(await inventory.certificates.list()) == 1
    both = await asyncio.gather(issue(certificates, request="r"), issue(certificates, request="r"))
    assert both[0] == both[1]


async def test_a_host_that_is_not_there_gets_none(inventory: Inventory) -> None:
    with pytest.raises(NotFound, match="kvm-9"):
        await issue(activities(inventory), host="kvm-9")


async def test_the_key_of_the_ca_is_certified_for_nobody(inventory: Inventory) -> None:
    certificates, own = activities(inventory), ca("own", key=KEYS["P-384"])
    secret = await inventory.secrets.store("ca_key", key_pem(own.key), actor="test")
    setup = SetUpAuthorityInput(key_secret=secret, chain=own.pem, operation="ca-setup/root")
    authority = await certificates.set_up_authority(setup)
    assert authority.chain == (own.pem,)
    await certificates.discard_imported_key(setup)
    await certificates.discard_imported_key(setup)
    with pytest.raises(NotFound):
        await inventory.secrets.reveal(secret)
    with pytest.raises(InvalidInput, match="the key of the CA itself"):
        await issue(certificates, csr=csr(KEYS["P-384"]))


async def test_a_key_that_others_may_have_is_certified_no_more(inventory: Inventory) -> None:
    certificates = activities(inventory)
    one = (await issue(certificates)).certificate
    await certificates.revoke_certificates(
        RevokeCertificatesInput(
            serial=one.serial, reason=RevocationReason.KEY_COMPROMISE, operation="r"
        )
    )
    with pytest.raises(InvalidInput, match="others may have the key"):
        await issue(certificates, request="again", host="kvm-2")
    assert (await issue(certificates, request="new", csr=csr(KEYS["P-384"]))).certificate


async def test_all_valid_ones_of_a_host_are_revoked(inventory: Inventory) -> None:
    certificates = activities(inventory)
    for request, host in (("1", "kvm-1"), ("2", "kvm-1"), ("3", "kvm-2")):
        await issue(certificates, request=request, host=host)
    revocation = RevokeCertificatesInput(host="kvm-1", operation="revocation/kvm-1", requester="a")
    first = await certificates.revoke_certificates(revocation)
    assert first == await certificates.revoke_certificates(revocation)
    assert len(first.serials) == 2
    assert [kind for kind, _ in await events(inventory)].count("certificate.revoked") == 2
    left = [one.host for one in await inventory.certificates.list() if one.revoked_at is None]
    assert left == ["kvm-2"]
    none = await certificates.revoke_certificates(
        RevokeCertificatesInput(host="kvm-9", operation="revocation/kvm-9")
    )
    assert (none.serials, none.generations) == ((), ())


async def test_certificates_are_revoked_where_they_were_issued(inventory: Inventory) -> None:
    """Another provider has been chosen since."""
    certificates = activities(inventory)
    one = (await issue(certificates)).certificate
    await inventory.settings.set("ca.framework.provider.plugin", "vault", actor="test")
    revoked = await certificates.revoke_certificates(
        RevokeCertificatesInput(serial=one.serial, operation="r")
    )
    assert revoked.generations == (1,)
    facts = await certificates.publish_crl(publish())
    assert facts.revoked == 1


async def test_a_provider_that_is_not_installed_is_told(inventory: Inventory) -> None:
    await inventory.settings.set("ca.framework.provider.plugin", "acme", actor="test")
    with pytest.raises(Conflict, match=r"no CA provider 'acme'; installed are root, vault"):
        await issue(activities(inventory))


async def test_lists_are_due_when_half_of_their_time_is_over(inventory: Inventory) -> None:
    certificates = activities(inventory)
    assert (await certificates.plan_upkeep(ROUND)).due == ()
    await certificates.set_up_authority(SetUpAuthorityInput(operation="ca-setup/root"))
    await inventory.settings.set("ca.framework.background.task.delay", 60, actor="test")
    plan = await certificates.plan_upkeep(ROUND)
    assert (plan.due, plan.every_s) == ((publish(),), 60)
    facts = await certificates.publish_crl(publish())
    assert facts.next_update - facts.this_update == timedelta(days=7, minutes=5)
    assert facts.this_update < datetime.now(UTC) - timedelta(minutes=4)
    assert (await certificates.plan_upkeep(ROUND)).due == ()


class Foreign:
    """A package's provider: RootAuthority with something wrong."""

    def __init__(self, context: ProviderContext) -> None:
        self._root = RootAuthority(context)
        self.revoked: list[str] = []

    async def chain(self) -> tuple[str, ...]:
        return await self._root.chain()

    async def issue(self, order: CertificateOrder) -> str:
        raise NotImplementedError

    async def revoke(self, serial: str, reason: RevocationReason) -> None:
        self.revoked.append(serial)

    async def crl(self, issuer: str) -> bytes:
        return await self._root.crl(issuer)


class OtherKey(Foreign):
    async def issue(self, order: CertificateOrder) -> str:
        return await self._root.issue(
            CertificateOrder(csr(KEYS["P-384"]), order.names, order.role, order.validity)
        )


class OtherName(Foreign):
    async def issue(self, order: CertificateOrder) -> str:
        names = order.names.model_copy(update={"common_name": "kvm-2"})
        return await self._root.issue(
            CertificateOrder(order.csr, names, order.role, order.validity)
        )


class OtherAddress(Foreign):
    async def issue(self, order: CertificateOrder) -> str:
        names = order.names.model_copy(update={"ip_addresses": ("198.18.0.12",)})
        return await self._root.issue(
            CertificateOrder(order.csr, names, order.role, order.validity)
        )


class OtherRole(Foreign):
    async def issue(self, order: CertificateOrder) -> str:
        role = CertificateRole.CLIENT
        return await self._root.issue(
            CertificateOrder(order.csr, order.names, role, order.validity)
        )


class Lasting(Foreign):
    async def issue(self, order: CertificateOrder) -> str:
        return await self._root.issue(dataclasses.replace(order, validity=timedelta(days=3650)))


class OtherIssuer(Foreign):
    """It has the name of the CA, and another key."""

    async def chain(self) -> tuple[str, ...]:
        return (ELSEWHERE.pem,)

    async def crl(self, issuer: str) -> bytes:
        own = Issuer(ELSEWHERE.certificate, ELSEWHERE.key, hashes.SHA256())
        return revocation_list(own, CrlOrder(1, ()), timedelta(days=7))

    async def issue(self, order: CertificateOrder) -> str:
        other = ca("elsewhere")
        issuer = Issuer(other.certificate, other.key, hashes.SHA256())
        return host_certificate(issuer, order, None).public_bytes(Encoding.PEM).decode()


class Garbage(Foreign):
    async def issue(self, order: CertificateOrder) -> str:
        return "nonsense"


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (OtherKey, "its key is not that of the request"),
        (OtherName, "its subject is O=Hostler,OU=cluster-[0-9a-f]{16},CN=kvm-2"),
        (OtherAddress, r"its names are kvm-1, 198\.18\.0\.12"),
        (OtherRole, "not good for all that the role host needs"),
        (Lasting, "it is valid until 2"),
        (OtherIssuer, "signed by another CA"),
        (Garbage, "no certificate that can be read"),
    ],
)
async def test_what_a_provider_answers_is_checked_and_revoked(
    inventory: Inventory, kind: type[Foreign], says: str
) -> None:
    made: list[Foreign] = []

    def find(_name: str) -> ProviderFactory:
        def make(context: ProviderContext) -> CertificateAuthority:
            made.append(kind(context))
            return made[-1]

        return make

    with pytest.raises(Failed, match=says):
        await issue(activities(inventory, find))
    assert await inventory.certificates.list() == []
    assert len(made[-1].revoked) == (0 if kind is Garbage else 1)


async def test_a_replacement_in_the_middle_has_it_issued_again(inventory: Inventory) -> None:
    """The operator imports a CA while the first certificate is being signed by the former one."""
    own = ca("own")

    class Slow(RootAuthority):
        async def issue(self, order: CertificateOrder) -> str:
            pem = await super().issue(order)
            await super().import_authority(key_pem(own.key), own.pem)
            return pem

    certificates = activities(inventory, lambda _: Slow)
    with pytest.raises(Unavailable, match="has just been replaced"):
        await issue(certificates)
    result = await issue(activities(inventory))
    assert result.chain == (own.pem,)
    assert result.certificate.not_after > datetime.now(UTC)


async def test_an_import_beside_a_look_at_the_chain_is_not_undone(inventory: Inventory) -> None:
    own = ca("own")

    class Overtaken(RootAuthority):
        """While its answer is on its way, the operator imports a CA."""

        async def chain(self) -> tuple[str, ...]:
            found = await super().chain()
            await super().import_authority(key_pem(own.key), own.pem)
            return found

    certificates = activities(inventory, lambda _: Overtaken)
    assert (await issue(certificates)).chain == (own.pem,)
    authority = await inventory.authorities.get("root")
    assert (authority.generation, authority.origin) == (2, AuthorityOrigin.IMPORTED)
    assert (await activities(inventory).publish_crl(publish(2))).revoked == 0


async def test_two_that_note_another_ca_at_once_do_not_take_turns(inventory: Inventory) -> None:
    first, second = ca("first"), ca("second")

    class Moving(Foreign):
        """Whoever is slower has the older answer."""

        async def chain(self) -> tuple[str, ...]:
            await inventory.authorities.add(
                new("root", second.pem), after=0, unused=False, operation="other"
            )
            return (first.pem,)

    with pytest.raises(Unavailable, match="has just been replaced"):
        await issue(activities(inventory, lambda _: Moving))
    assert (await inventory.authorities.get("root")).chain == (second.pem,)


def new(provider: str, pem: str) -> NewAuthority:
    facts = read_certificate(pem)
    return NewAuthority(
        provider=provider,
        origin=AuthorityOrigin.EXTERNAL,
        subject=facts.subject,
        sha256=facts.sha256,
        not_before=facts.not_before,
        not_after=facts.not_after,
        chain=(pem,),
    )


async def test_the_same_ca_in_other_words_is_the_same(inventory: Inventory) -> None:
    certificates, own = activities(inventory), ca("own")
    for chain in (own.pem, own.pem.replace("\n", "\r\n"), f"Subject: x\n{own.pem}\n\n"):
        secret = await inventory.secrets.store("ca_key", key_pem(own.key), actor="test")
        authority = await certificates.set_up_authority(
            SetUpAuthorityInput(key_secret=secret, chain=chain, operation="ca-setup/root")
        )
        assert authority.generation == 1


async def test_an_address_that_others_report_is_in_nobodys_certificate(
    inventory: Inventory,
) -> None:
    """A host that was broken into says that it has kvm-2's."""
    stolen = ("198.18.1.11", "198.18.1.12")
    await inventory.hosts.set_facts(
        "kvm-1", FACTS.model_copy(update={"uuid": "uuid-1", "addresses": stolen})
    )
    result = await issue(activities(inventory))
    assert result.certificate.ip_addresses == ("198.18.0.11", "198.18.1.11")
    (event,) = await inventory.events.list(kind="certificate.address_shared")
    assert "198.18.1.12 (kvm-2)" in event.message


async def test_all_certificates_of_a_stolen_key_are_revoked(inventory: Inventory) -> None:
    certificates = activities(inventory)
    server = (await issue(certificates, request="1", role="server")).certificate
    client = (await issue(certificates, request="2", role="client", host="kvm-2")).certificate
    other = (await issue(certificates, request="3", csr=csr(KEYS["P-384"]))).certificate
    for reason in (RevocationReason.SUPERSEDED, RevocationReason.KEY_COMPROMISE):
        await certificates.revoke_certificates(
            RevokeCertificatesInput(serial=server.serial, reason=reason, operation="r")
        )
    left = [one.serial for one in await inventory.certificates.list(state=CertificateState.VALID)]
    assert left == [other.serial]
    found = await inventory.certificates.get(client.serial)
    assert found.revocation_reason is RevocationReason.KEY_COMPROMISE
    with pytest.raises(InvalidInput, match="others may have the key"):
        await issue(certificates, request="4")


async def test_what_is_revoked_and_in_no_list_is_due(inventory: Inventory) -> None:
    """Whatever ended the revocation between its steps."""
    certificates = activities(inventory)
    one = (await issue(certificates)).certificate
    assert (await certificates.plan_upkeep(ROUND)).due == ()
    await certificates.revoke_certificates(
        RevokeCertificatesInput(serial=one.serial, operation="r")
    )
    assert (await certificates.plan_upkeep(ROUND)).due == (publish(),)
    assert (await certificates.publish_crl(publish())).revoked == 1
    assert (await certificates.plan_upkeep(ROUND)).due == ()


async def test_a_list_is_made_before_the_round_after_next_is_too_late(
    inventory: Inventory,
) -> None:
    certificates = activities(inventory)
    await inventory.settings.set("ca.framework.crl.validity.period", 1, actor="test")
    await issue(certificates)
    assert (await certificates.plan_upkeep(ROUND)).due == ()
    await inventory.settings.set("ca.framework.background.task.delay", 43_200, actor="test")
    assert (await certificates.plan_upkeep(ROUND)).due == (publish(),)


async def test_that_a_list_has_ended_is_told_once(inventory: Inventory) -> None:
    certificates = activities(inventory)
    await issue(certificates)
    async with inventory.database.writing() as session:
        row = (await session.exec(select(CertificateAuthorityRow))).one()
        row.crl_next_update = datetime.now(UTC) - timedelta(hours=1)
        session.add(row)
    for _ in range(2):
        assert (await certificates.plan_upkeep(ROUND)).due == (publish(),)
    (event,) = await inventory.events.list(kind="ca.crl_ended")
    assert "number 1 ended" in event.message


class NoChain(Foreign):
    async def chain(self) -> tuple[str, ...]:
        return ()


class NoAnchor(Foreign):
    async def chain(self) -> tuple[str, ...]:
        return (ca("middle", ELSEWHERE).pem,)


class Broken(Foreign):
    async def issue(self, order: CertificateOrder) -> str:
        raise KeyError("csr")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (NoChain, "has no certificate"),
        (NoAnchor, "CN=middle is not signed by CN=middle"),
        (Broken, "The CA provider root answered what Hostler does not understand: KeyError"),
    ],
)
async def test_what_a_package_does_wrong_is_final(
    inventory: Inventory, kind: type[Foreign], says: str
) -> None:
    with pytest.raises(Failed, match=says):
        await issue(activities(inventory, lambda _: kind))


async def test_a_wrong_certificate_is_made_once_even_if_it_cant_be_taken_back(
    inventory: Inventory,
) -> None:
    class Stubborn(OtherName):
        async def revoke(self, serial: str, reason: RevocationReason) -> None:
            raise Unavailable("It is away.")

    with pytest.raises(Failed, match=r"could not be revoked: It is away\."):
        await issue(activities(inventory, lambda _: Stubborn))


@pytest.mark.parametrize("text", [csr() + key_pem(KEYS["P-256"]), key_pem(KEYS["P-256"])])
def test_a_key_gets_into_no_order(text: str) -> None:
    """What is in a workflow's input stays in its history."""
    for kind, field in (
        (IssueCertificateInput, "csr"),
        (SetUpAuthorityInput, "chain"),
    ):
        values = {"host": "kvm-1", "request": "r", "operation": "o", "key_secret": "k", field: text}
        given = {name: value for name, value in values.items() if name in kind.model_fields}
        with pytest.raises(ValidationError, match="has a private key, which is not kept"):
            kind.model_validate(given)


def test_of_a_text_only_the_pem_is_kept() -> None:
    own = ca("own")
    one = IssueCertificateInput(
        csr=f"Certificate Request:\n    secret\n{csr()}", host="kvm-1", request="r", operation="o"
    )
    assert one.csr.startswith("-----BEGIN CERTIFICATE REQUEST-----\n")
    assert "secret" not in one.csr
    setup = SetUpAuthorityInput(
        key_secret="k", chain=f"secret\n{own.pem}\nsecret\n{own.pem}", operation="o"
    )
    assert setup.chain == own.pem * 2
