"""What expires: whose renewal is due, who is told, and how near the next end is."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from temporalio import activity

from contracts.certificate_renewal import (
    ClusterRenewals,
    Lifetime,
    NoteRenewalInput,
    PlanRenewalsInput,
    RenewalPlan,
    ReturnedHosts,
)
from contracts.certificates import Authority
from contracts.settings import (
    CA_AUTOMATIC_RENEWAL,
    CA_EXPIRY_ALERT_PERIOD,
    CA_RENEWAL_CONCURRENCY,
    CA_TASK_DELAY,
    CA_VALIDITY,
    ResolvedSettings,
)
from inventory import Inventory
from inventory.certificates import event_subject
from inventory.expiring_certificates import RENEWAL_AGAIN_AFTER, ExpiringHost

_EXPIRING = "certificate.expiring"
# More of them are left to the next round: the history of one stays short.
_MOST_PER_ROUND = 300


class RenewalActivities:
    """Reads the inventory; events are all that it writes, but for how a renewal has ended."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory

    @activity.defn(name="plan_renewals")
    async def plan_renewals(self, request: PlanRenewalsInput) -> RenewalPlan:
        """Which hosts are renewed now. Tells, once a day, of what expires and is not renewed by
        itself, or can't be now."""
        hosts = await self._inventory.expiring_certificates.hosts()
        settings = await self._settings(hosts)
        now = datetime.now(UTC)
        alerts = {
            event_subject(one.lifetime.host): said
            for one in hosts
            if (said := _alert(one, settings[one.cluster], now))
        }
        await self._inventory.events.record_once_a_day(
            _EXPIRING, alerts, operation=request.operation
        )
        overall = await self._inventory.settings.resolve()
        await self._tell_of_files(overall, now, request.operation)
        authorities = await self._inventory.authorities.live()
        await self._tell_of_authorities(authorities, overall, now, request.operation)
        self._measure(hosts, authorities)
        due = [one for one in hosts if _is_due(one, settings[one.cluster], now)][:_MOST_PER_ROUND]
        return RenewalPlan(
            every_s=overall[CA_TASK_DELAY],
            clusters=tuple(
                ClusterRenewals(
                    cluster=cluster,
                    at_a_time=settings[cluster][CA_RENEWAL_CONCURRENCY],
                    hosts=tuple(one.lifetime for one in due if one.cluster == cluster),
                )
                for cluster in sorted({one.cluster for one in due})
            ),
        )

    @activity.defn(name="list_returned_for_renewal")
    async def list_returned_for_renewal(self) -> ReturnedHosts:
        """Hosts that have come back since the last round began, and are due."""
        now = datetime.now(UTC)
        every = timedelta(seconds=(await self._inventory.settings.resolve())[CA_TASK_DELAY])
        hosts = await self._inventory.expiring_certificates.hosts(back_since=now - every)
        settings = await self._settings(hosts)
        return ReturnedHosts(
            hosts=tuple(
                one.lifetime.host for one in hosts if _is_due(one, settings[one.cluster], now)
            )[:_MOST_PER_ROUND]
        )

    @activity.defn(name="note_renewal")
    async def note_renewal(self, request: NoteRenewalInput) -> None:
        """Write how a host's renewal has ended; tell of one that did not succeed, once a day."""
        expiring = self._inventory.expiring_certificates
        await expiring.note_renewal(request.host, request.problem)
        if request.problem:
            said = f"its certificates could not be renewed: {request.problem}"
            await self._inventory.events.record_once_a_day(
                _EXPIRING, {event_subject(request.host): said}, operation=request.operation
            )

    # --- who is told ----------------------------------------------------------------------------

    async def _tell_of_files(
        self, settings: ResolvedSettings, now: datetime, operation: str
    ) -> None:
        period = timedelta(days=settings[CA_EXPIRY_ALERT_PERIOD])
        alerts: dict[str, str] = {}
        for one in await self._inventory.expiring_certificates.files():
            lifetime = Lifetime(
                host=one.host or "hostler",
                serial=one.serial,
                not_before=one.not_before,
                not_after=one.not_after,
            )
            if lifetime.alert_at(period) <= now:
                alerts.setdefault(
                    event_subject(one.host),
                    f"its {one.role} certificate {one.serial}, which others have installed, ends "
                    f"at {_time(one.not_after)}: hostler cert sign",
                )
        await self._inventory.events.record_once_a_day(
            "certificate.file_expiring", alerts, operation=operation
        )

    async def _tell_of_authorities(
        self,
        authorities: Sequence[Authority],
        settings: ResolvedSettings,
        now: datetime,
        operation: str,
    ) -> None:
        """From when on its end cuts the life of new certificates short."""
        validity = timedelta(days=settings[CA_VALIDITY])
        newest = {one.provider: one for one in authorities}
        alerts = {
            f"ca/{one.provider}": f"generation {one.generation}, {one.subject}, ends at "
            f"{_time(one.not_after)}: no certificate lives longer"
            for one in newest.values()
            if one.not_after < now + validity
        }
        await self._inventory.events.record_once_a_day("ca.expiring", alerts, operation=operation)

    def _measure(self, hosts: Iterable[ExpiringHost], authorities: Iterable[Authority]) -> None:
        gauge = activity.metric_meter().create_gauge_float(
            # A time, not an age, which would stand still between the rounds, and without them.
            "hostler_certificate_expiry_timestamp_seconds",
            "When the first of these expires, in Unix time",
            "s",
        )
        ends: dict[tuple[str, str], datetime] = {}
        for host in hosts:  # in the order of their ends
            ends.setdefault(("host", host.cluster), host.lifetime.not_after)
        for one in authorities:
            ends["ca", f"{one.provider}/{one.generation}"] = one.not_after
            if one.crl is not None:
                ends["crl", f"{one.provider}/{one.generation}"] = one.crl.next_update
        for (kind, of), end in ends.items():
            gauge.set(end.timestamp(), {"kind": kind, "of": of})

    async def _settings(self, hosts: Iterable[ExpiringHost]) -> dict[str, ResolvedSettings]:
        return {
            cluster: await self._inventory.settings.resolve(cluster=cluster)
            for cluster in sorted({one.cluster for one in hosts})
        }


def _is_due(one: ExpiringHost, settings: ResolvedSettings, now: datetime) -> bool:
    if one.away is not None or not settings[CA_AUTOMATIC_RENEWAL]:
        return False
    period = timedelta(days=settings[CA_EXPIRY_ALERT_PERIOD])
    if not one.distrusted and one.lifetime.renew_at(period) > now:
        return False
    if one.tried_at is None or one.tried_at < now - RENEWAL_AGAIN_AFTER:
        return True
    return one.up_since is not None and one.tried_at < one.up_since


def _alert(one: ExpiringHost, settings: ResolvedSettings, now: datetime) -> str:
    """What somebody has to know, or nothing: it will be renewed by itself."""
    lifetime = one.lifetime
    if one.distrusted:
        said = "no other host trusts the CA of its certificates any more"
    elif lifetime.alert_at(timedelta(days=settings[CA_EXPIRY_ALERT_PERIOD])) > now:
        return ""
    else:
        ends = "end" if lifetime.not_after > now else "have ended"
        said = f"its certificates {ends} at {_time(lifetime.not_after)}"
    if not settings[CA_AUTOMATIC_RENEWAL]:
        return (
            f"{said}; {CA_AUTOMATIC_RENEWAL.name} is off in {one.cluster}: "
            f"hostler cert provision {lifetime.host}"
        )
    if one.away is not None:
        return f"{said}; {one.away}, and gets new ones when it is back"
    if one.problem:
        return f"{said}; they could not be renewed: {one.problem}"
    return ""


def _time(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"
