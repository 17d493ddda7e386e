"""libvirt by TLS instead of its socket, and back to that when TLS is broken."""

import dataclasses
from collections.abc import AsyncIterator

import pytest

from contracts.errors import HostlerError
from drivers.errors import CallTimedOut, HostUnreachable
from drivers.libvirt import LibvirtHypervisor
from drivers.protocols import HostAccess, MigrationOptions, TlsLogin
from drivers.ssh import AsyncSshShell
from drivers.tls import ScriptCertificates
from tests.authorities.samples import ca
from tests.drivers.conftest import DESTINATION, SOURCE
from tests.drivers.test_migration import assert_runs_only_at
from tests.drivers.test_tls import AUTHORITY, client_certificate, provision
from tests.lab import Lab

LOGIN = TlsLogin(client_certificate(), AUTHORITY.pem)


@pytest.fixture
async def certified(
    lab: Lab, shell: AsyncSshShell, source: HostAccess, destination: HostAccess
) -> AsyncIterator[None]:
    """Both hosts have certificates."""
    for host in (source, destination):
        await lab.make_bare(host.name)
        await provision(ScriptCertificates(shell), host, "set-1", 2)
    yield
    for host in (source, destination):
        await lab.make_bare(host.name)


def by_tls_alone(host: HostAccess, login: TlsLogin = LOGIN) -> HostAccess:
    """SSH leads nowhere."""
    return dataclasses.replace(host, tls=login, port=1)


@pytest.mark.usefixtures("certified")
async def test_all_is_done_by_tls(
    hypervisor: LibvirtHypervisor, source: HostAccess, destination: HostAccess, vm: str, lab: Lab
) -> None:
    here, there = by_tls_alone(source), by_tls_alone(destination)
    assert "drv-vm" in [one.name for one in await hypervisor.list_vms(here)]
    for tls in (True, False):
        options = MigrationOptions(there.address, tls=tls)
        await hypervisor.migrate(here, there, vm, options, print)
        await assert_runs_only_at(lab, there.name)
        here, there = there, here


@pytest.mark.usefixtures("certified")
async def test_a_broken_one_is_told_and_the_socket_does_it(
    shell: AsyncSshShell, source: HostAccess, vm: str, lab: Lab
) -> None:
    told: list[tuple[str, HostlerError]] = []

    async def tell(host: str, error: HostlerError) -> None:
        told.append((host, error))

    hypervisor = LibvirtHypervisor(shell, on_broken_tls=tell)
    nobody = TlsLogin(client_certificate("somebody"), AUTHORITY.pem)
    stranger = TlsLogin(client_certificate(), ca("other").pem)
    for login, why in ((nobody, "does not let Hostler in"), (stranger, "not kvm-2 by the CA's")):
        access = dataclasses.replace(source, tls=login)
        assert vm in [one.uuid for one in await hypervisor.list_vms(access)]
        host, error = told.pop()
        assert (host, why in error.message) == (SOURCE, True), error
        with pytest.raises(HostUnreachable):
            await hypervisor.list_vms(by_tls_alone(source, login))
    await lab.exec(SOURCE, "systemctl", "stop", "libvirtd-tls.socket", "libvirtd.service")
    access = dataclasses.replace(source, tls=LOGIN)
    assert [one.uuid for one in await hypervisor.list_vms(access)] == [vm]
    assert "does not answer at" in told.pop()[1].message
    assert told == []
    await hypervisor.close()


@pytest.mark.usefixtures("certified")
async def test_one_that_hangs_is_given_up(
    impatient: LibvirtHypervisor, destination: HostAccess, lab: Lab
) -> None:
    access = by_tls_alone(destination)
    await impatient.list_vms(access)
    kill = ("systemctl", "kill", "--kill-who=main", "libvirtd", "--signal")
    await lab.exec(DESTINATION, *kill, "STOP")
    try:
        with pytest.raises((CallTimedOut, HostUnreachable)):
            await impatient.list_vms(access)
    finally:
        await lab.exec(DESTINATION, *kill, "CONT")
    await impatient.list_vms(access)
