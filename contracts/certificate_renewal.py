"""Renewal of hosts' certificates before they expire: when it is due, and what a round does."""

from datetime import datetime, timedelta
from zlib import crc32

from pydantic import Field

from contracts.base import Contract, Name

CERTIFICATE_RENEWAL = "CertificateRenewal"
CERTIFICATE_RENEWAL_SCHEDULE = "certificate-renewal"


class CertificateRenewalInput(Contract):
    """One round of the schedule."""


class Lifetime(Contract):
    """From when until when the first of a host's certificates to expire is valid."""

    host: Name
    serial: str
    not_before: datetime
    not_after: datetime

    def alert_at(self, period: timedelta) -> datetime:
        """When somebody is told that it expires, if nothing renews it: so long before its end, but
        not before half of its life is over."""
        return self.not_after - self._window(period)

    def renew_at(self, period: timedelta) -> datetime:
        """When it is renewed: by chance in the first half of that time, always the same for this
        certificate. Hosts that got theirs together part."""
        chance = crc32(f"{self.host} {self.serial}".encode()) / 0xFFFFFFFF
        return self.alert_at(period) + self._window(period) / 2 * chance

    def _window(self, period: timedelta) -> timedelta:
        return min(period, (self.not_after - self.not_before) / 2)


class PlanRenewalsInput(Contract):
    """A round's first step."""

    operation: str


class ClusterRenewals(Contract):
    """Hosts whose certificates are renewed now, those that expire first to begin with; so many
    `at_a_time`."""

    cluster: Name
    at_a_time: int = Field(ge=1)
    hosts: tuple[Lifetime, ...]


class RenewalPlan(Contract):
    """What a round finds. `every_s`: between two rounds; `patience_s`: how long a host keeps its
    place."""

    every_s: int = Field(ge=1)
    patience_s: int = Field(default=1_800, ge=1)
    clusters: tuple[ClusterRenewals, ...] = ()


class NoteRenewalInput(Contract):
    """How a host's renewal has ended; `problem`: why it did not succeed."""

    host: Name
    problem: str
    operation: str


class ReturnedHosts(Contract):
    """Hosts that are back, and whose certificates are due."""

    hosts: tuple[Name, ...]


class CertificateRenewalResult(Contract):
    """Hosts that go by new certificates, and those that do not, with why."""

    renewed: tuple[str, ...]
    failed: dict[str, str]
