"""Revocation lists on their way to hosts: who gets them when, and what is written down."""

import dataclasses
from collections.abc import Collection
from datetime import timedelta

import pytest
from cryptography.x509 import load_der_x509_crl
from sqlmodel import col, select
from temporalio.testing import ActivityEnvironment

from activities.crl_delivery import CrlDeliveryActivities
from activities.directory import HostDirectory
from activities.leases import LeaseActivities
from contracts.certificate_upkeep import CrlDelivery, DeliverCrlsInput
from contracts.certificates import PublishCrlInput, RevocationReason, RevokeCertificatesInput
from contracts.errors import LeaseHeld
from contracts.leases import LeaseScope, Owner
from contracts.states import HostStatus, ResourceState
from inventory import Inventory
from inventory.models import CertificateUpkeepRow, HostRow
from tests.authorities.certified_host import CertifiedHost
from tests.authorities.conftest import root
from tests.authorities.issuing import activities, issue

OWNER = Owner(workflow_id="revocation/x", first_run_id="run-1")
OTHER = Owner(workflow_id="provisioning/kvm-1", first_run_id="run-2")
NUMBERS = {"root/1": 1}


class Running:
    """Which operations still run: all of them."""

    async def runs(self, owner: Owner) -> bool:
        return True


@pytest.fixture
def machine() -> CertifiedHost:
    return CertifiedHost()


@pytest.fixture
async def delivery(inventory: Inventory, machine: CertifiedHost) -> CrlDeliveryActivities:
    """kvm-1 and kvm-2 have certificates; there is one list, which neither has."""
    signing = activities(inventory)
    for host in ("kvm-1", "kvm-2"):
        await issue(signing, f"provisioning/{host}/host", host=host)
        await inventory.certificates.install(
            host, [f"provisioning/{host}/host"], operation="test", actor="test"
        )
    leases = LeaseActivities(inventory, Running())  # type: ignore[arg-type] # all that is asked
    return CrlDeliveryActivities(inventory, HostDirectory(inventory), machine, leases)


async def deliver(delivery: CrlDeliveryActivities, *hosts: str, attempt: int = 1) -> CrlDelivery:
    environment = ActivityEnvironment()
    environment.info = dataclasses.replace(environment.info, attempt=attempt)
    done: CrlDelivery = await environment.run(
        delivery.deliver_crls, DeliverCrlsInput(hosts=hosts, owner=OWNER)
    )
    return done


async def without(delivery: CrlDeliveryActivities) -> tuple[Collection[str], dict[str, str]]:
    """Who is to get them now, and who not now."""
    found = await delivery.list_hosts_without_crls()
    return found.hosts, dict(found.not_now)


async def revoke(inventory: Inventory, serial: str) -> None:
    signing = activities(inventory)
    await signing.revoke_certificates(
        RevokeCertificatesInput(
            serial=serial, reason=RevocationReason.SUPERSEDED, operation="revocation/x"
        )
    )
    await signing.publish_crl(PublishCrlInput(provider="root", generation=1, operation="x"))


async def change(inventory: Inventory, host: str, **values: object) -> None:
    async with inventory.database.writing() as session:
        row = (await session.exec(select(HostRow).where(col(HostRow.name) == host))).one()
        for name, value in values.items():
            setattr(row, name, value)
        session.add(row)


async def test_who_has_the_newest_list_needs_none(
    inventory: Inventory, delivery: CrlDeliveryActivities, machine: CertifiedHost
) -> None:
    assert await without(delivery) == (("kvm-1", "kvm-2"), {})
    assert await deliver(delivery, "kvm-1", "kvm-2") == CrlDelivery(delivered=("kvm-1", "kvm-2"))
    assert await without(delivery) == ((), {})
    (one, _) = await inventory.certificate_upkeep.crls(NUMBERS)
    assert (one.host, one.lists, one.current, one.problem) == ("kvm-1", NUMBERS, True, "")
    assert await inventory.leases.find("kvm-1", LeaseScope.TRUST) is None

    await revoke(inventory, (await inventory.certificates.list(host="kvm-2"))[0].serial)
    assert await without(delivery) == (("kvm-1", "kvm-2"), {})
    await deliver(delivery, "kvm-1")
    assert await without(delivery) == (("kvm-2",), {})
    assert machine.crls["kvm-1"] != machine.crls["kvm-2"]
    der = await inventory.authorities.crl("root", 1)
    assert len(load_der_x509_crl(der)) == 1
    told = await inventory.events.list(subject="host/kvm-1", kind="certificate.crl_delivered")
    assert [event.message for event in told] == ["root/1: number 2", "root/1: number 1"]


async def test_who_was_away_gets_them_when_it_is_back(
    inventory: Inventory, delivery: CrlDeliveryActivities, machine: CertifiedHost
) -> None:
    await inventory.hosts.set_status("kvm-1", HostStatus.DOWN, actor="test", reason="power cut")
    assert await without(delivery) == (("kvm-2",), {"kvm-1": "it is Down"})
    await inventory.hosts.set_status("kvm-1", HostStatus.UP, actor="test", reason="back")
    assert await without(delivery) == (("kvm-1", "kvm-2"), {})

    machine.silent.add("kvm-1")
    silent = {"kvm-1": "kvm-1 does not answer."}
    for _ in range(2):
        assert await deliver(delivery, "kvm-1") == CrlDelivery(missing=silent)
    told = await inventory.events.list(subject="host/kvm-1", kind="certificate.crl_not_delivered")
    assert len(told) == 1
    # The very same list again comes later, or when it was away again; a newer one at once.
    assert await without(delivery) == (("kvm-2",), silent)
    await inventory.hosts.set_status("kvm-1", HostStatus.DOWN, actor="test", reason="again")
    await inventory.hosts.set_status("kvm-1", HostStatus.UP, actor="test", reason="back")
    assert await without(delivery) == (("kvm-1", "kvm-2"), {})
    await deliver(delivery, "kvm-1")
    assert await without(delivery) == (("kvm-2",), silent)
    async with inventory.database.writing() as session:
        row = await session.get_one(CertificateUpkeepRow, "kvm-1")
        assert row.crls_tried_at is not None
        row.crls_tried_at -= timedelta(minutes=11)
        session.add(row)
    assert await without(delivery) == (("kvm-1", "kvm-2"), {})
    await deliver(delivery, "kvm-1")
    await revoke(inventory, (await inventory.certificates.list(host="kvm-2"))[0].serial)
    assert (await without(delivery))[0] == ("kvm-1", "kvm-2")

    machine.silent.clear()
    assert await deliver(delivery, "kvm-1") == CrlDelivery(delivered=("kvm-1",))
    (one, _) = await inventory.certificate_upkeep.crls({"root/1": 2})
    assert (one.current, one.problem, one.tried_at) == (True, "", None)


async def test_one_that_another_operation_works_on_is_left_to_it(
    inventory: Inventory, delivery: CrlDeliveryActivities, machine: CertifiedHost
) -> None:
    await inventory.leases.acquire("kvm-1", LeaseScope.TRUST, OTHER, "certificates")
    done = await deliver(delivery, "kvm-1", "kvm-2")
    assert (done.delivered, [*done.missing]) == (("kvm-2",), ["kvm-1"])
    assert "another operation" in done.missing["kvm-1"]
    assert [*machine.crls] == ["kvm-2"]
    # It is tried again with the next round.
    assert await without(delivery) == (("kvm-1",), {})
    with pytest.raises(LeaseHeld):
        await inventory.leases.acquire("kvm-1", LeaseScope.TRUST, OWNER, "x")


async def test_the_host_can_tell_a_later_attempt_from_one_that_was_given_up(
    inventory: Inventory, delivery: CrlDeliveryActivities, machine: CertifiedHost
) -> None:
    # The first one's worker was killed: the lease is still there.
    await inventory.leases.acquire("kvm-1", LeaseScope.TRUST, OWNER, "revocation lists")
    await deliver(delivery, "kvm-1", attempt=1)
    await inventory.leases.acquire("kvm-1", LeaseScope.TRUST, OWNER, "revocation lists")
    await deliver(delivery, "kvm-1", attempt=2)
    first, second = machine.crl_epochs
    assert second > first + 2


@pytest.mark.parametrize("state", [ResourceState.CREATING, ResourceState.REMOVED])
async def test_what_is_no_host_gets_none(
    inventory: Inventory, delivery: CrlDeliveryActivities, state: ResourceState
) -> None:
    await change(inventory, "kvm-1", resource_state=state)
    assert await without(delivery) == (("kvm-2",), {})
    assert await deliver(delivery, "kvm-9") == CrlDelivery()


async def test_certificates_of_an_earlier_host_of_its_name_do_not_count(
    inventory: Inventory, delivery: CrlDeliveryActivities
) -> None:
    (one,) = await inventory.certificates.list(host="kvm-1")
    assert one.installed_at is not None
    await change(inventory, "kvm-1", created_at=one.installed_at + timedelta(seconds=1))
    assert await without(delivery) == (("kvm-2",), {})


async def test_one_that_is_being_reinstalled_waits(
    inventory: Inventory, delivery: CrlDeliveryActivities
) -> None:
    await change(inventory, "kvm-1", host_key_line="@revoked ssh-ed25519 AAAA")
    assert await without(delivery) == (("kvm-2",), {"kvm-1": "it is being re-installed"})


async def another_ca(inventory: Inventory) -> None:
    """It is to issue next."""
    await (await root(inventory)).make_next(1)


async def test_who_is_to_trust_another_ca_is_told_under_its_lease(
    inventory: Inventory, delivery: CrlDeliveryActivities, machine: CertifiedHost
) -> None:
    await deliver(delivery, "kvm-1", "kvm-2")
    assert await without(delivery) == ((), {})
    assert await inventory.trust.of_host("kvm-1") == ("root/1",)
    first = machine.trusts["kvm-1"]
    machine.steps.clear()
    await deliver(delivery, "kvm-1")
    assert machine.steps == ["crl"]  # it trusts what it is to

    await another_ca(inventory)
    assert await without(delivery) == (("kvm-1", "kvm-2"), {})
    await inventory.leases.acquire("kvm-2", LeaseScope.TRUST, OTHER, "certificates")
    done = await deliver(delivery, "kvm-1", "kvm-2")
    assert (done.delivered, [*done.missing]) == (("kvm-1",), ["kvm-2"])
    assert await inventory.trust.of_host("kvm-1") == ("root/1", "root/2")
    assert await inventory.trust.of_host("kvm-2") == ("root/1",)
    libvirt, _ = machine.trusts["kvm-1"]
    assert libvirt.startswith(first[0])
    assert libvirt.count("BEGIN CERTIFICATE") == 2
    told = await inventory.events.list(subject="host/kvm-1", kind="certificate.trust_changed")
    assert [event.message for event in told] == ["it trusts root/1, root/2", "it trusts root/1"]


async def test_what_a_host_does_not_take_is_noted_and_it_gets_its_lists(
    inventory: Inventory, delivery: CrlDeliveryActivities, machine: CertifiedHost
) -> None:
    await deliver(delivery, "kvm-1", "kvm-2")
    await another_ca(inventory)
    machine.fails_at = "trust"
    machine.crls.clear()
    done = await deliver(delivery, "kvm-1")
    assert "No space left" in done.missing["kvm-1"]
    assert [*machine.crls] == ["kvm-1"]
    assert await inventory.trust.of_host("kvm-1") == ("root/1",)
    due, not_now = await without(delivery)
    assert (due, [*not_now]) == (("kvm-2",), ["kvm-1"])
    (event,) = await inventory.events.list(kind="certificate.trust_not_changed")
    assert event.subject == "host/kvm-1"
    machine.fails_at = None
    assert (await deliver(delivery, "kvm-1")).delivered == ("kvm-1",)
    assert (await without(delivery))[0] == ("kvm-2",)
