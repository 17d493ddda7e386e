"""Which certificate authorities each host trusts, and which ones it is to."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.certificates import CertificateRole
from contracts.leases import LeaseRef
from inventory.authorities import trusted_authorities
from inventory.certificate_upkeep import absence, is_in_force, is_time, of_certified, upkeep_of
from inventory.certificates import event_subject
from inventory.database import Database
from inventory.events import add_event
from inventory.leases import verify_lease
from inventory.models import (
    CertificateAuthorityRow,
    CertificateRow,
    CertificateUpkeepRow,
    HostRow,
    now,
)

Issuer = tuple[str, int]
"""Provider and generation."""


@dataclass(frozen=True)
class Anchors:
    """Authorities that are trusted: their names ("root/1"), sorted, and their chains in PEM."""

    names: tuple[str, ...]
    pem: str


@dataclass(frozen=True)
class HostAnchors:
    """Those that a host trusts: its libvirt, and its QEMU."""

    libvirt: Anchors
    qemu: Anchors

    @property
    def names(self) -> tuple[str, ...]:
        """Of all of them, sorted."""
        return tuple(sorted({*self.libvirt.names, *self.qemu.names}))


class Trust:
    """Reads and writes it.

    libvirt and QEMU of a host each trust all authorities of the provider that has issued their
    certificate which issue, are to, or have issued what is in use; and always their own issuer:
    without that, they would not go by their own certificate.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def wanted(self, host: str) -> HostAnchors:
        """Those that it is to trust by the certificates that it goes by; none without any."""
        query = (
            select(CertificateRow.role, CertificateRow.provider, CertificateRow.generation)
            .join(HostRow, col(HostRow.name) == col(CertificateRow.host))
            .where(is_in_force(), col(HostRow.name) == host)
            .distinct()
        )
        libvirt: list[Issuer] = []
        qemu: list[Issuer] = []
        async with self._database.reading() as session:
            for role, provider, generation in await session.exec(query):
                part = qemu if role == CertificateRole.QEMU else libvirt
                part.append((provider, generation))
            return HostAnchors(await _anchors(session, libvirt), await _anchors(session, qemu))

    async def of_issuer(self, issuer: Issuer) -> Anchors:
        """Those that whoever gets a certificate of it is to trust."""
        async with self._database.reading() as session:
            return await _anchors(session, [issuer])

    async def of_issuers(self, libvirt: Issuer, qemu: Issuer) -> HostAnchors:
        """Those that a host is to trust that gets certificates of these."""
        return HostAnchors(await self.of_issuer(libvirt), await self.of_issuer(qemu))

    async def without(self, *, again_after: timedelta) -> tuple[list[str], dict[str, str]]:
        """Hosts that do not trust just what they are to, by name. First those that can be told
        now; then the others, with why not."""
        due: list[str] = []
        not_now: dict[str, str] = {}
        async with self._database.reading() as session:
            trusted, issuers = await trusted_authorities(session), await issuers_of(session)
            for host, upkeep in await session.exec(of_certified().order_by(col(HostRow.name))):
                wanted = _names(trusted, issuers.get(host.name, ()))
                if upkeep is not None and tuple(upkeep.trusts) == wanted:
                    continue
                away = absence(host)
                if away is not None:
                    not_now[host.name] = away
                elif may_be_told(upkeep, host, wanted, again_after):
                    due.append(host.name)
                else:
                    not_now[host.name] = upkeep.trusts_problem if upkeep is not None else ""
        return due, not_now

    async def of_host(self, host: str) -> tuple[str, ...]:
        """Those that it trusts, as was proven last."""
        async with self._database.reading() as session:
            row = await session.get(CertificateUpkeepRow, host)
        return tuple(row.trusts) if row is not None else ()

    async def note(self, names: Sequence[str], *, lease: LeaseRef) -> None:
        """The host trusts these. Raises LeaseLost."""
        async with self._database.writing() as session:
            await verify_lease(session, lease, hold=True)
            row = await upkeep_of(session, lease.host)
            if row is None:
                return
            if row.trusts != list(names):
                add_event(
                    session,
                    "certificate.trust_changed",
                    event_subject(lease.host),
                    f"it trusts {', '.join(names)}",
                    operation=lease.owner.workflow_id,
                    actor=lease.owner.workflow_id,
                )
            row.trusts, row.trusts_at = list(names), now()
            row.trusts_tried, row.trusts_tried_at, row.trusts_problem = [], None, ""
            session.add(row)

    async def note_missing(
        self, host: str, names: Sequence[str], problem: str, *, operation: str
    ) -> None:
        """It was to trust these, in vain; an event says so unless it was so before."""
        async with self._database.writing() as session:
            row = await upkeep_of(session, host)
            if row is None:
                return
            if not row.trusts_problem:
                add_event(
                    session,
                    "certificate.trust_not_changed",
                    event_subject(host),
                    problem,
                    operation=operation,
                    actor=operation,
                )
            row.trusts_tried, row.trusts_tried_at = list(names), now()
            row.trusts_problem = problem
            session.add(row)


async def issuers_of(session: AsyncSession) -> dict[str, set[Issuer]]:
    """By host, who has issued the certificates that it goes by."""
    query = (
        select(HostRow.name, CertificateRow.provider, CertificateRow.generation)
        .join(CertificateRow, is_in_force())
        .distinct()
    )
    found: dict[str, set[Issuer]] = {}
    for host, provider, generation in await session.exec(query):
        found.setdefault(host, set()).add((provider, generation))
    return found


def may_be_told(
    upkeep: CertificateUpkeepRow | None,
    host: HostRow,
    wanted: Sequence[str],
    again_after: timedelta,
) -> bool:
    """Of a host that is there: whether it is tried now, after what did not succeed."""
    if upkeep is None or upkeep.trusts_tried != list(wanted):
        return True
    return is_time(upkeep.trusts_tried_at, host.status_since, again_after)


async def _anchors(session: AsyncSession, issuers: Collection[Issuer]) -> Anchors:
    if not issuers:
        return Anchors((), "")
    names = _names(await trusted_authorities(session), issuers)
    rows = await session.exec(select(CertificateAuthorityRow))
    chains = {_name(row.provider, row.generation): row.chain for row in rows}
    # Two generations may have a root in common.
    pems = dict.fromkeys(pem for name in names for pem in chains[name])
    return Anchors(names, "".join(pems))


def _names(
    trusted: Iterable[CertificateAuthorityRow], issuers: Collection[Issuer]
) -> tuple[str, ...]:
    providers = {provider for provider, _ in issuers}
    found = {(row.provider, row.generation) for row in trusted if row.provider in providers}
    return tuple(sorted(_name(*one) for one in found | {*issuers}))


def _name(provider: str, generation: int) -> str:
    return f"{provider}/{generation}"
