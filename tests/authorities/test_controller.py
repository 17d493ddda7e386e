"""Hostler's own certificate: made when it is needed, and by whom it is used."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from activities.controller import ControllerCertificates, LibvirtByTls
from activities.directory import HostDirectory
from contracts.certificates import Certificate, CertificateRole, certificates_in
from contracts.errors import Conflict
from contracts.leases import LeaseRef, LeaseScope, Owner
from contracts.settings import LIBVIRT_TRANSPORT
from contracts.states import TlsState
from drivers.authorities.profiles import new_request
from drivers.errors import HostUnreachable
from inventory import Inventory
from tests.authorities.issuing import activities, issue

HOST = "kvm-1"


@pytest.fixture
def own(inventory: Inventory) -> ControllerCertificates:
    return ControllerCertificates(inventory, activities(inventory), new_request)


@pytest.fixture
def by_tls(inventory: Inventory, own: ControllerCertificates) -> LibvirtByTls:
    return LibvirtByTls(inventory, own)


async def secure(inventory: Inventory) -> None:
    owner = Owner(workflow_id="cluster-certificates/cluster-1", first_run_id="run-1")
    held = await inventory.leases.acquire(HOST, LeaseScope.TRUST, owner, "test")
    lease = LeaseRef(host=HOST, scope=held.scope, owner=owner, epoch=held.epoch)
    for tls in (TlsState.READY, TlsState.SECURED, TlsState.READY):
        await inventory.hosts.set_tls(
            HOST, tls, reason="test", operation="test", actor="test", lease=lease
        )
    # New certificates leave it secured.
    assert (await inventory.hosts.get(HOST)).tls is TlsState.SECURED


async def count(inventory: Inventory) -> int:
    found = await inventory.certificates.list()
    return sum(one.role is CertificateRole.CONTROLLER for one in found)


async def test_it_is_made_once_and_its_key_shown_to_nobody(
    inventory: Inventory, own: ControllerCertificates
) -> None:
    assert await own.find() is None
    first = await own.current("test")
    assert await own.current("test") == await own.find() == first
    assert await count(inventory) == 1
    found = await inventory.certificates.newest_of_hostler()
    assert found is not None
    one, secret = found
    assert certificates_in(first.certificate)[0] == one.pem
    assert (await inventory.secrets.reveal(secret)).plaintext == first.key
    with pytest.raises(Conflict, match="Hostler's own certificate"):
        await inventory.secrets.disclose(secret, reason="curious", actor="anna")
    # It is in use: no cleaning takes it.
    await inventory.secrets.discard(secret)
    assert await own.current("test") == first
    assert first.key not in repr(first)


async def test_it_is_made_anew_in_the_last_third_of_its_life(
    inventory: Inventory, own: ControllerCertificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    await own.current("test")
    end = datetime.now(UTC)
    newest = inventory.certificates.newest_of_hostler

    async def ending() -> tuple[Certificate, str] | None:
        if (found := await newest()) is None:
            return None
        dates = {"not_before": end - timedelta(days=100), "not_after": end}
        return found[0].model_copy(update=dates), found[1]

    monkeypatch.setattr(inventory.certificates, "newest_of_hostler", ending)
    for days_left, made_anew in ((40, False), (30, True)):
        end = datetime.now(UTC) + timedelta(days=days_left)
        before = await count(inventory)
        await own.current(f"test-{days_left}")
        assert (await count(inventory) > before) is made_anew


async def test_an_operators_one_without_a_key_is_not_it(
    inventory: Inventory, own: ControllerCertificates
) -> None:
    role = CertificateRole.CONTROLLER
    theirs = (await issue(activities(inventory), host=None, role=role)).certificate
    assert await inventory.certificates.newest_of_hostler() is None
    assert theirs.pem not in (await own.current("test")).certificate
    assert await count(inventory) == 2


async def test_who_is_reached_by_tls(inventory: Inventory, by_tls: LibvirtByTls) -> None:
    directory = HostDirectory(inventory, by_tls.login)
    assert (await directory.access(HOST)).tls is None
    await inventory.settings.set(LIBVIRT_TRANSPORT.name, "tls", actor="test")
    assert (await directory.access(HOST)).tls is None
    await secure(inventory)
    logins = await asyncio.gather(*(directory.access(HOST) for _ in range(5)))
    assert await count(inventory) == 1
    (login,) = {access.tls for access in logins}
    assert login is not None
    assert login.authorities == (await inventory.authorities.live())[0].chain[0]
    assert login.client.key not in repr(logins)
    await inventory.settings.set(LIBVIRT_TRANSPORT.name, "ssh", cluster="cluster-1", actor="test")
    assert (await directory.access(HOST)).tls is None


async def test_a_broken_one_is_told_once_an_hour(
    inventory: Inventory, by_tls: LibvirtByTls
) -> None:
    for _ in range(3):
        await by_tls.tell_broken(HOST, HostUnreachable("kvm-1 does not answer."))
    (event,) = await inventory.events.list(subject=f"host/{HOST}", kind="host.tls_broken")
    assert "by its socket instead: kvm-1 does not answer." in event.message
