"""Which certificates are renewed when, and who is told of those that are not."""

import zlib
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
from sqlmodel import col, select
from temporalio.common import MetricMeter
from temporalio.testing import ActivityEnvironment

from activities.controller import ControllerCertificates
from activities.renewal import RenewalActivities
from contracts.certificate_renewal import (
    Lifetime,
    NoteRenewalInput,
    PlanRenewalsInput,
    RenewalPlan,
)
from contracts.certificates import CertificateRole, RevocationReason, RevokeCertificatesInput
from contracts.states import HostStatus
from drivers.authorities.profiles import new_request
from inventory import Inventory
from inventory.models import (
    CertificateAuthorityRow,
    CertificateRow,
    CertificateUpkeepRow,
    EventRow,
    HostRow,
)
from tests.activities.test_power_sync import Measured
from tests.authorities.issuing import activities, issue
from tests.authorities.samples import KEYS, csr

AUTOMATIC = "ca.framework.cert.automatic.renewal"
PERIOD = "ca.framework.cert.expiry.alert.period"
ROUND = "certificate-renewal-2026"
YEAR = timedelta(days=365)


@pytest.fixture
async def renewal(inventory: Inventory) -> RenewalActivities:
    """kvm-1 and kvm-2 go by certificates of a year, from today on."""
    for host in ("kvm-1", "kvm-2"):
        await provision(inventory, host)
    return RenewalActivities(inventory)


async def provision(inventory: Inventory, host: str, run: str = "1") -> None:
    requests = [f"provisioning/{host}/{run}/{role}" for role in ("host", "qemu")]
    for request, role in zip(requests, (CertificateRole.HOST, CertificateRole.QEMU), strict=True):
        await issue(activities(inventory), request, host=host, role=role)
    await inventory.certificates.install(host, requests, operation="test", actor="test")


async def expire(
    inventory: Inventory, host: str | None, ends_in: timedelta, life: timedelta = YEAR
) -> None:
    """All of its certificates end then, after having lived so long."""
    async with inventory.database.writing() as session:
        query = select(CertificateRow).where(
            col(CertificateRow.host) == host
            if host is not None
            else col(CertificateRow.host).is_(None)
        )
        for row in await session.exec(query):
            row.not_after = datetime.now(UTC) + ends_in
            row.not_before = row.not_after - life
            session.add(row)


async def plan(renewal: RenewalActivities, measured: Measured | None = None) -> RenewalPlan:
    environment = ActivityEnvironment()
    environment.metric_meter = cast(MetricMeter, measured or Measured())
    found: RenewalPlan = await environment.run(
        renewal.plan_renewals, PlanRenewalsInput(operation=ROUND)
    )
    return found


async def due(renewal: RenewalActivities) -> list[str]:
    return [one.host for cluster in (await plan(renewal)).clusters for one in cluster.hosts]


async def told(inventory: Inventory, kind: str = "certificate.expiring") -> list[tuple[str, str]]:
    events = await inventory.events.list(kind=kind)
    return [(event.subject, event.message) for event in reversed(events)]


async def a_day_passes(inventory: Inventory) -> None:
    """Since the last event."""
    async with inventory.database.writing() as session:
        for row in await session.exec(select(EventRow)):
            row.at = row.at - timedelta(days=1)
            session.add(row)


# --- when -----------------------------------------------------------------------------------------


def lifetime(host: str, days: float = 365) -> Lifetime:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    return Lifetime(
        host=host, serial="7f", not_before=begin, not_after=begin + timedelta(days=days)
    )


def test_hosts_that_got_theirs_together_part() -> None:
    period = timedelta(days=16)
    moments = {lifetime(f"kvm-{number}").renew_at(period) for number in range(1000)}
    first = lifetime("kvm-1").not_after - period
    assert lifetime("kvm-1").alert_at(period) == first
    assert first <= min(moments)
    assert max(moments) <= first + period / 2
    # No day of the eight has more than twice its share.
    days = [(moment - first) // timedelta(days=1) for moment in moments]
    assert len(moments) > 990
    assert max(days.count(day) for day in range(8)) < 250
    assert lifetime("kvm-1").renew_at(period) == lifetime("kvm-1").renew_at(period)


def test_none_is_renewed_before_half_of_its_life_is_over() -> None:
    """Else those of ten days would be renewed in each round."""
    one = lifetime("kvm-1", days=10)
    half = one.not_before + timedelta(days=5)
    assert one.alert_at(timedelta(days=15)) == half
    assert half <= one.renew_at(timedelta(days=15)) <= half + timedelta(days=2.5)


# --- what is due ----------------------------------------------------------------------------------


async def test_what_lives_on_is_left_alone(
    inventory: Inventory, renewal: RenewalActivities
) -> None:
    found = await plan(renewal)
    assert found == RenewalPlan(every_s=3600, clusters=())
    assert await told(inventory) == []


async def test_what_expires_first_comes_first(
    inventory: Inventory, renewal: RenewalActivities
) -> None:
    await inventory.settings.set("ca.framework.cert.renewal.concurrency", 5, actor="test")
    await expire(inventory, "kvm-1", timedelta(days=5))
    await expire(inventory, "kvm-2", timedelta(days=4))
    (cluster,) = (await plan(renewal)).clusters
    assert (cluster.cluster, cluster.at_a_time) == ("cluster-1", 5)
    assert [one.host for one in cluster.hosts] == ["kvm-2", "kvm-1"]
    # They are renewed by themselves: nobody has to know.
    assert await told(inventory) == []
    await provision(inventory, "kvm-2", run="2")
    assert await due(renewal) == ["kvm-1"]


async def test_it_waits_for_its_own_moment(
    inventory: Inventory, renewal: RenewalActivities
) -> None:
    """Somewhere in the first half of the time before its end."""
    for host in ("kvm-1", "kvm-2"):
        (serial,) = {
            one.serial
            for one in await inventory.certificates.list(host=host)
            if one.role is CertificateRole.HOST
        }
        await inventory.certificates.revoke(
            next(
                one
                for one in await inventory.certificates.list(host=host)
                if one.role is CertificateRole.QEMU
            ),
            RevocationReason.SUPERSEDED,
            operation="test",
            actor="test",
        )
        chance = zlib.crc32(f"{host} {serial}".encode()) / 0xFFFFFFFF
        moment = timedelta(days=15) - timedelta(days=7.5) * chance
        await expire(inventory, host, moment + timedelta(minutes=1))
        assert host not in await due(renewal)
        await expire(inventory, host, moment - timedelta(minutes=1))
        assert host in await due(renewal)


async def test_a_host_in_maintenance_is_renewed(
    inventory: Inventory, renewal: RenewalActivities
) -> None:
    async with inventory.database.writing() as session:
        row = (await session.exec(select(HostRow).where(col(HostRow.name) == "kvm-1"))).one()
        row.resource_state = "Maintenance"
        session.add(row)
    await expire(inventory, "kvm-1", timedelta(days=1))
    assert await due(renewal) == ["kvm-1"]


async def test_what_was_revoked_is_not_renewed(
    inventory: Inventory, renewal: RenewalActivities
) -> None:
    await activities(inventory).revoke_certificates(
        RevokeCertificatesInput(
            host="kvm-1", reason=RevocationReason.PRIVILEGE_WITHDRAWN, operation="test"
        )
    )
    await expire(inventory, "kvm-1", timedelta(days=1))
    assert await due(renewal) == []
    assert await told(inventory) == []


# --- who is told ----------------------------------------------------------------------------------


async def test_where_it_is_off_there_is_an_event_a_day(
    inventory: Inventory, renewal: RenewalActivities
) -> None:
    await inventory.settings.set(AUTOMATIC, False, cluster="cluster-1", actor="test")
    await expire(inventory, "kvm-1", timedelta(days=14))
    for _ in range(3):
        assert await due(renewal) == []
    ((subject, message),) = await told(inventory)
    assert subject == "host/kvm-1"
    assert f"{AUTOMATIC} is off in cluster-1: hostler cert provision kvm-1" in message
    await a_day_passes(inventory)
    await expire(inventory, "kvm-1", -timedelta(hours=1))
    for _ in range(2):
        await plan(renewal)
    (_, second) = await told(inventory)
    assert "its certificates have ended at" in second[1]


async def test_one_that_is_away_is_told_of_early_and_renewed_when_it_is_back(
    inventory: Inventory, renewal: RenewalActivities
) -> None:
    await inventory.settings.set(PERIOD, 20, cluster="cluster-1", actor="test")
    # Before any moment at which it would be renewed.
    await expire(inventory, "kvm-1", timedelta(days=19, hours=23))
    await inventory.hosts.set_status("kvm-1", HostStatus.DOWN, actor="test", reason="power cut")
    assert await due(renewal) == []
    ((_, message),) = await told(inventory)
    assert "it is Down, and gets new ones when it is back" in message
    await expire(inventory, "kvm-1", timedelta(days=3))
    assert await due(renewal) == []
    assert (await renewal.list_returned_for_renewal()).hosts == ()
    await inventory.hosts.set_status("kvm-1", HostStatus.UP, actor="test", reason="back")
    assert (await renewal.list_returned_for_renewal()).hosts == ("kvm-1",)
    assert await due(renewal) == ["kvm-1"]
    await provision(inventory, "kvm-1", run="2")
    assert (await renewal.list_returned_for_renewal()).hosts == ()


async def test_one_whose_renewal_fails_is_told_of_and_tried_again_later(
    inventory: Inventory, renewal: RenewalActivities
) -> None:
    await expire(inventory, "kvm-1", timedelta(days=3))
    assert await due(renewal) == ["kvm-1"]
    note = NoteRenewalInput(host="kvm-1", problem="No space left.", operation=ROUND)
    await renewal.note_renewal(note)
    assert await due(renewal) == []
    assert await told(inventory) == [
        ("host/kvm-1", "its certificates could not be renewed: No space left.")
    ]
    await inventory.hosts.set_status("kvm-1", HostStatus.DOWN, actor="test", reason="power cut")
    await inventory.hosts.set_status("kvm-1", HostStatus.UP, actor="test", reason="back")
    assert await due(renewal) == ["kvm-1"]
    await renewal.note_renewal(note)
    assert await due(renewal) == []
    async with inventory.database.writing() as session:
        row = await session.get_one(CertificateUpkeepRow, "kvm-1")
        assert row.renewal_tried_at is not None
        row.renewal_tried_at -= timedelta(hours=6, minutes=1)
        session.add(row)
    assert await due(renewal) == ["kvm-1"]
    await renewal.note_renewal(note.model_copy(update={"problem": ""}))
    async with inventory.database.reading() as session:
        row = await session.get_one(CertificateUpkeepRow, "kvm-1")
    assert (row.renewal_tried_at, row.renewal_problem) == (None, "")


async def test_what_others_have_installed_is_told_of(
    inventory: Inventory, renewal: RenewalActivities
) -> None:
    signing = activities(inventory)
    controller = {"host": None, "role": CertificateRole.CONTROLLER}
    await issue(signing, "signing/c/1", **controller, csr=csr(KEYS["P-384"]))
    await expire(inventory, None, timedelta(days=2))
    await plan(renewal)
    ((subject, message),) = await told(inventory, "certificate.file_expiring")
    assert subject == "ca/controller"
    assert "which others have installed, ends at" in message
    # Once there is a newer one, that is what counts.
    await a_day_passes(inventory)
    await issue(signing, "signing/c/2", **controller, csr=csr(KEYS["P-384"]))
    await plan(renewal)
    assert len(await told(inventory, "certificate.file_expiring")) == 1


async def test_hostlers_own_certificate_which_it_makes_anew_is_not_told_of(
    inventory: Inventory, renewal: RenewalActivities
) -> None:
    await ControllerCertificates(inventory, activities(inventory), new_request).current("test")
    await expire(inventory, None, timedelta(days=2))
    await plan(renewal)
    assert await told(inventory, "certificate.file_expiring") == []


async def test_a_ca_that_cuts_lives_short_is_told_of(
    inventory: Inventory, renewal: RenewalActivities
) -> None:
    async with inventory.database.writing() as session:
        row = await session.get_one(CertificateAuthorityRow, ("root", 1))
        row.not_after = datetime.now(UTC) + timedelta(days=400)
        session.add(row)
    await plan(renewal)
    assert await told(inventory, "ca.expiring") == []
    await inventory.settings.set("ca.framework.cert.validity.period", 401, actor="test")
    await plan(renewal)
    ((subject, message),) = await told(inventory, "ca.expiring")
    assert (subject, "no certificate lives longer" in message) == ("ca/root", True)


async def test_the_nearest_end_is_measured(
    inventory: Inventory, renewal: RenewalActivities
) -> None:
    measured = Measured()
    await expire(inventory, "kvm-2", timedelta(days=40))
    await plan(renewal, measured)
    name = "hostler_certificate_expiry_timestamp_seconds"
    nearest = datetime.now(UTC) + timedelta(days=40)
    authority = await inventory.authorities.get("root")
    assert authority.crl is not None
    assert abs(measured.values[name, "host,cluster-1"] - nearest.timestamp()) < 60
    assert measured.values[name, "ca,root/1"] == authority.not_after.timestamp()
    assert measured.values[name, "crl,root/1"] == authority.crl.next_update.timestamp()
