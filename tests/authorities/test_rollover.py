"""What issues, and what is trusted, while one CA takes the place of another."""

import pytest
from cryptography import x509
from sqlmodel import col, select

from activities.authorities import Directory
from activities.controller import ControllerCertificates, LibvirtByTls
from activities.crl_delivery import newest_crls
from activities.rollover import RolloverActivities
from contracts.certificates import (
    AuthorityState,
    CertificateRole,
    PublishCrlInput,
    certificates_in,
)
from contracts.errors import Conflict, Unavailable
from contracts.rollover import NoteRolloverInput
from contracts.settings import LIBVIRT_TRANSPORT
from contracts.states import TlsState
from drivers.authorities.profiles import new_request
from drivers.authorities.protocols import (
    CertificateAuthority,
    CertificateOrder,
    ExternalAccess,
    ProviderContext,
    ProviderFactory,
)
from drivers.authorities.providers import provider
from drivers.authorities.root import RootAuthority
from drivers.authorities.x509 import is_signed_by, read_certificate
from inventory import Inventory
from inventory.models import HostRow
from tests.authorities.conftest import root
from tests.authorities.issuing import activities, issue
from tests.authorities.samples import ca, key_pem

OPERATION = "rollover/root"


class Overtaken(RootAuthority):
    """The next CA comes to issue between the decision to issue and the signature."""

    inventory: Inventory

    async def issue(self, order: CertificateOrder) -> str:
        await self.inventory.rollovers.begin_issuing("root", operation=OPERATION)
        return await super().issue(order)


def overtaken(inventory: Inventory) -> ProviderFactory:
    def make(context: ProviderContext) -> CertificateAuthority:
        authority = Overtaken(context)
        authority.inventory = inventory
        return authority

    return make


@pytest.fixture
async def begun(inventory: Inventory) -> Inventory:
    """With a CA that issues, and one that is to issue next."""
    provider = await root(inventory)
    await provider.chain()
    await provider.make_next(1)
    return inventory


async def test_the_next_one_has_a_name_and_a_key_of_its_own(begun: Inventory) -> None:
    second, first = await begun.authorities.of("root")
    assert (first.state, second.state) == (AuthorityState.CURRENT, AuthorityState.NEXT)
    assert "OU=generation 2" in second.subject
    assert second.subject != first.subject
    keys = {read_certificate(one.chain[0]).key_sha256 for one in (first, second)}
    assert len(keys) == 2
    assert is_signed_by(second.chain[0], second.chain[0])
    # Made once, and issues nothing yet.
    await (await root(begun)).make_next(1)
    assert len(await begun.authorities.of("root")) == 2
    assert (await issue(activities(begun))).certificate.generation == 1
    own = ca("own")
    with pytest.raises(Conflict, match="rollover"):
        await (await root(begun)).import_authority(key_pem(own.key), own.pem)


async def test_a_host_without_new_certificates_is_told_of_once_a_day(begun: Inventory) -> None:
    access = ExternalAccess()
    own = ControllerCertificates(begun, activities(begun), new_request)
    rollover = RolloverActivities(begun, Directory(begun, provider, access), own)
    for problem in ("No space left.", "No space left.", ""):
        await rollover.note_rollover(
            NoteRolloverInput(host="kvm-1", problem=problem, operation=OPERATION)
        )
    (event,) = await begun.events.list(kind="ca.rollover_host_failed")
    assert event.message == "it has no certificates of the new CA: No space left."


async def test_both_have_a_list_that_hosts_get(begun: Inventory) -> None:
    signing = activities(begun)
    for generation in (1, 2):
        await signing.publish_crl(
            PublishCrlInput(provider="root", generation=generation, operation=OPERATION)
        )
    assert {*await begun.authorities.crl_numbers()} == {"root/1", "root/2"}
    text = await newest_crls(begun, await begun.certificates.unit("kvm-1"))
    lists = [f"{one}-----END X509 CRL-----\n" for one in text.split("-----END X509 CRL-----\n")]
    issuers = {x509.load_pem_x509_crl(one.encode()).issuer.rfc4514_string() for one in lists[:-1]}
    assert len(issuers) == 2


async def test_what_was_signed_by_another_ca_than_was_decided_is_signed_again(
    begun: Inventory,
) -> None:
    signing = activities(begun, lambda _: overtaken(begun))
    with pytest.raises(Unavailable, match="just been replaced"):
        await issue(signing)
    assert await begun.certificates.list() == []
    issued = await issue(signing)
    assert issued.certificate.generation == 2
    assert is_signed_by(issued.certificate.pem, issued.chain[0])


async def test_hostler_trusts_both_at_once_and_shows_the_new_one(begun: Inventory) -> None:
    """Also where it has looked a moment ago."""
    certificates = activities(begun)
    own = ControllerCertificates(begun, certificates, new_request)
    by_tls = LibvirtByTls(begun, own)
    await begun.settings.set(LIBVIRT_TRANSPORT.name, "tls", actor="test")
    async with begun.database.writing() as session:
        row = (await session.exec(select(HostRow).where(col(HostRow.name) == "kvm-1"))).one()
        row.tls = TlsState.SECURED
        session.add(row)

    async def login() -> tuple[int, str]:
        """How many CAs are trusted, and what is shown."""
        found = await by_tls.login("kvm-1")
        assert found is not None
        return len(certificates_in(found.authorities)), found.client.certificate

    count, before = await login()
    assert (count, await login()) == (2, (2, before))
    await begun.rollovers.begin_issuing("root", operation=OPERATION)
    count, after = await login()
    assert (count, after == before) == (2, False)
    second, first = await begun.authorities.of("root")
    assert is_signed_by(after, second.chain[0])
    assert is_signed_by(before, first.chain[0])
    await begun.rollovers.withdraw("root", operation=OPERATION)
    assert await login() == (1, after)
    own_ones = [
        one for one in await begun.certificates.list() if one.role is CertificateRole.CONTROLLER
    ]
    assert sorted(one.generation for one in own_ones) == [1, 2]
