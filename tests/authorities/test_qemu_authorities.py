"""The CA of a cluster's QEMUs: they trust no other one, and nobody else has certificates of it."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from activities.authorities import Directory
from contracts.certificates import (
    AuthorityState,
    CertificateRole,
    PublishCrlInput,
    RevokeCertificatesInput,
    qemu_authority,
)
from contracts.errors import Conflict, NotFound
from contracts.leases import LeaseScope, Owner
from contracts.settings import CA_CRL_URL, CA_PROVIDER
from drivers.authorities.protocols import ExternalAccess, ImportsAuthority, SucceedsAuthority
from drivers.authorities.providers import provider
from drivers.authorities.x509 import is_signed_by, read_crl
from inventory import Inventory
from inventory.models import CertificateAuthorityRow, CertificateRow, now
from tests.authorities.issuing import activities, issue
from tests.authorities.samples import ca, key_pem, lint, openssl, write
from tests.inventory.conftest import into_service, ref, register

ROLES = (CertificateRole.HOST, CertificateRole.QEMU)
OPERATION = "provisioning/kvm-1"
OWNER = Owner(workflow_id="revocation/x", first_run_id="run-1")


@pytest.fixture
async def clusters(inventory: Inventory) -> Inventory:
    """kvm-1 and kvm-2 are in cluster-1, kvm-3 is alone in cluster-2; all have certificates."""
    await inventory.topology.create_cluster("cluster-2", "pod-1", actor="test")
    await register(inventory, 3, cluster="cluster-2")
    await into_service(inventory, 3)
    for host in ("kvm-1", "kvm-2", "kvm-3"):
        requests = [f"provisioning/{host}/{role}" for role in ROLES]
        for request, role in zip(requests, ROLES, strict=True):
            await issue(activities(inventory), request, host=host, role=role)
        await inventory.certificates.install(host, requests, operation="test", actor="test")
    return inventory


async def named(inventory: Inventory, cluster: str) -> str:
    return qemu_authority(await inventory.certificates.unit_of_cluster(cluster))


async def test_each_cluster_has_one_that_nobody_else_trusts(
    clusters: Inventory, tmp_path: Path
) -> None:
    first, second = [await named(clusters, f"cluster-{number}") for number in (1, 2)]
    anchors = {}
    for host, authority in (("kvm-1", first), ("kvm-2", first), ("kvm-3", second)):
        wanted = await clusters.trust.wanted(host)
        assert wanted.libvirt.names == ("root/1",)
        assert wanted.qemu.names == (f"{authority}/1",)
        assert wanted.qemu.pem.count("BEGIN CERTIFICATE") == 1
        anchors[host] = wanted.qemu.pem
        for one in await clusters.certificates.list(host=host):
            of_qemu = one.role is CertificateRole.QEMU
            assert is_signed_by(one.pem, wanted.qemu.pem) is of_qemu
            assert is_signed_by(one.pem, wanted.libvirt.pem) is not of_qemu
    assert anchors["kvm-1"] == anchors["kvm-2"] != anchors["kvm-3"]

    # By another program's word, too.
    (qemu,) = [
        one
        for one in await clusters.certificates.list(host="kvm-3")
        if one.role is CertificateRole.QEMU
    ]
    leaf = write(tmp_path / "leaf.pem", qemu.pem)
    for host, takes_it in (("kvm-3", True), ("kvm-1", False)):
        anchor = write(tmp_path / f"{host}.pem", anchors[host])
        verified = openssl("verify", "-purpose", "sslclient", "-CAfile", str(anchor), str(leaf))
        assert (verified.returncode == 0) is takes_it
    anchor = tmp_path / "kvm-3.pem"
    assert lint("lint_pkix_cert", anchor) == []
    assert lint("lint_pkix_signer_signee_cert_chain", anchor, leaf) == []
    basic = x509.load_pem_x509_certificate(anchor.read_bytes()).extensions
    assert basic.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


async def test_it_is_made_once(inventory: Inventory) -> None:
    """Also by several at once."""
    certificates = activities(inventory)
    await asyncio.gather(
        *(
            issue(certificates, f"signing/{n}", host=f"kvm-{n}", role=CertificateRole.QEMU)
            for n in (1, 2)
        )
    )
    (one,) = await inventory.authorities.of(await named(inventory, "cluster-1"))
    assert (one.generation, one.state) == (1, AuthorityState.CURRENT)
    # It is none that `hostler ca` is about without a cluster.
    with pytest.raises(NotFound, match="no certificate authority yet"):
        await inventory.authorities.get("root")


async def test_its_revocations_are_its_clusters_alone(clusters: Inventory) -> None:
    authority = await named(clusters, "cluster-2")
    (qemu,) = [
        one
        for one in await clusters.certificates.list(host="kvm-3")
        if one.role is CertificateRole.QEMU
    ]
    certificates = activities(clusters)
    before = await clusters.authorities.crl_numbers()
    done = await certificates.revoke_certificates(
        RevokeCertificatesInput(serial=qemu.serial, operation="revocation/x")
    )
    assert done.generations == (1,)
    assert (
        await certificates.find_issuers(
            RevokeCertificatesInput(serial=qemu.serial, operation="revocation/x")
        )
    ).providers == (authority,)
    await certificates.publish_crl(
        PublishCrlInput(provider=authority, generation=1, operation="revocation/x")
    )
    (chain,) = (await clusters.authorities.get(authority)).chain
    assert read_crl(await clusters.authorities.crl(authority, 1), chain).serials == (qemu.serial,)
    after = await clusters.authorities.crl_numbers()
    assert {name for name in after if after[name] != before[name]} == {f"{authority}/1"}
    for cluster in (1, 2):
        unit = await clusters.certificates.unit_of_cluster(f"cluster-{cluster}")
        of_qemu = await named(clusters, f"cluster-{cluster}")
        assert {*await clusters.authorities.crl_numbers(unit)} == {"root/1", f"{of_qemu}/1"}
    crls = {one.host: one.lists for one in await clusters.certificate_upkeep.crls(after)}
    assert {*crls} == {"kvm-1", "kvm-2", "kvm-3"}
    for host in crls:
        lease = await clusters.leases.acquire(host, LeaseScope.TRUST, OWNER, "lists")
        unit = await clusters.certificates.unit(host)
        numbers = (before if host == "kvm-3" else after).items()
        mine = {*await clusters.authorities.crl_numbers(unit)}
        await clusters.certificate_upkeep.note_crls(
            {name: number for name, number in numbers if name in mine}, lease=ref(lease)
        )
    due, _ = await clusters.certificate_upkeep.without_crls(after, again_after=timedelta(hours=1))
    assert due == ["kvm-3"]


async def test_no_operator_s_own_takes_its_place(clusters: Inventory) -> None:
    directory = Directory(clusters, provider, ExternalAccess())
    found = await directory.named(await named(clusters, "cluster-1"), OPERATION)
    assert isinstance(found.ca, ImportsAuthority)
    assert isinstance(found.ca, SucceedsAuthority)
    own = ca("own")
    with pytest.raises(Conflict, match="made by Hostler"):
        await found.ca.import_authority(key_pem(own.key), own.pem)
    with pytest.raises(Conflict, match="made by Hostler"):
        await found.ca.import_next(key_pem(own.key), own.pem, 1)


async def test_its_successor_is_trusted_by_its_cluster_s_qemus_alone(clusters: Inventory) -> None:
    authority = await named(clusters, "cluster-1")
    found = await Directory(clusters, provider, ExternalAccess()).named(authority, OPERATION)
    assert isinstance(found.ca, SucceedsAuthority)
    await found.ca.make_next(1)
    for host in ("kvm-1", "kvm-2"):
        wanted = await clusters.trust.wanted(host)
        assert (wanted.libvirt.names, len(wanted.qemu.names)) == (("root/1",), 2)
        assert wanted.qemu.names == (f"{authority}/1", f"{authority}/2")
    assert len((await clusters.trust.wanted("kvm-3")).names) == 2
    progress = await clusters.rollovers.progress(authority)
    assert (progress.cluster, progress.total) == ("cluster-1", 2)
    assert progress.command("pause") == "hostler ca rollover pause --cluster cluster-1"
    assert (await clusters.rollovers.progress("root")).total == 3
    # It has a list that is kept up before it issues anything.
    assert f"{authority}/2" in {one.name for one in await clusters.authorities.live()}


async def test_its_certificates_say_where_its_list_is(inventory: Inventory) -> None:
    url = "http://ca.example.net:8480/v1/ca"
    await inventory.settings.set(CA_CRL_URL.name, url, actor="test")
    one = (await issue(activities(inventory), role=CertificateRole.QEMU)).certificate
    extensions = x509.load_pem_x509_certificate(one.pem.encode()).extensions
    (point,) = extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert point.full_name is not None
    authority = await named(inventory, "cluster-1")
    assert [name.value for name in point.full_name] == [f"{url}/{authority}/1/crl"]


async def test_nobody_knows_a_libvirtd_by_it(clusters: Inventory) -> None:
    """Whoever breaks out of a VM has a certificate of it with the host's name and address."""
    assert [one.name for one in await clusters.authorities.trusted()] == ["root/1"]
    authority = await named(clusters, "cluster-1")
    assert [one.name for one in await clusters.authorities.trusted(authority)] == [f"{authority}/1"]
    # Nor does it sign for libvirt, whatever is set.
    await clusters.settings.set(CA_PROVIDER.name, authority, actor="test")
    with pytest.raises(Conflict, match="There is no CA provider"):
        await issue(activities(clusters), "signing/host")


async def test_a_list_that_has_ended_is_made_anew_before_the_next_certificate(
    inventory: Inventory,
) -> None:
    certificates = activities(inventory)
    await issue(certificates, "signing/1", role=CertificateRole.QEMU)
    authority = await named(inventory, "cluster-1")
    async with inventory.database.writing() as session:
        row = await session.get(CertificateAuthorityRow, (authority, 1))
        assert row is not None
        row.crl_next_update = now()
        session.add(row)
    await issue(certificates, "signing/2", role=CertificateRole.QEMU)
    crl = (await inventory.authorities.get(authority)).crl
    assert crl is not None
    assert (crl.number, crl.next_update > now()) == (2, True)


async def test_those_of_clusters_that_have_gone_are_kept_up_no_more(inventory: Inventory) -> None:
    certificates = activities(inventory)
    await issue(certificates, "signing/1", role=CertificateRole.QEMU)
    authority = await named(inventory, "cluster-1")
    assert [one.provider for one in await inventory.authorities.live()] == [authority]
    async with inventory.database.writing() as session:
        row = await session.get(CertificateRow, "signing/1")
        assert row is not None
        row.not_after = now()
        session.add(row)
    assert await inventory.authorities.live() == []
