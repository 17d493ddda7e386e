"""What expires, as the inventory knows it, and what was done about it."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy.orm import defer
from sqlmodel import col, select

from contracts.certificate_renewal import Lifetime
from contracts.certificates import AuthorityState, CertificateRole
from contracts.states import HostStatus
from inventory.certificate_upkeep import (
    HOST_IN_SHORT,
    absence,
    is_in_force,
    may_be_asked,
    upkeep_of,
)
from inventory.database import Database
from inventory.models import (
    CertificateAuthorityRow,
    CertificateRow,
    CertificateUpkeepRow,
    ClusterRow,
    HostRow,
    now,
)

# A host that has got no new certificates is tried again after that, or when it was away meanwhile:
# of each attempt, two certificates are revoked again.
RENEWAL_AGAIN_AFTER = timedelta(hours=6)

_WITHOUT_PEM = defer(CertificateRow.pem)  # type: ignore[arg-type] # a column at run time
# Authorities that hosts are to trust no more.
_DISTRUSTED = select(CertificateAuthorityRow.provider, CertificateAuthorityRow.generation).where(
    col(CertificateAuthorityRow.state).in_((AuthorityState.LEAVING, AuthorityState.WITHDRAWN))
)


@dataclass(frozen=True)
class ExpiringHost:
    """A host that goes by certificates of Hostler's, and how its last renewal went.

    Attributes:
        distrusted: hosts trust the CA no more that has issued them.
        away: why it can't be reached; None: it is there.
        up_since: when it came back, if it is there.
        tried_at: of the last renewal, if that did not succeed, and why (`problem`).
    """

    lifetime: Lifetime
    cluster: str
    distrusted: bool
    away: str | None
    up_since: datetime | None
    tried_at: datetime | None
    problem: str


@dataclass(frozen=True)
class ExpiringFile:
    """A certificate that somebody else has put somewhere; `host`: None for the role controller."""

    host: str | None
    role: CertificateRole
    serial: str
    not_before: datetime
    not_after: datetime


class ExpiringCertificates:
    """Reads it, and notes renewals."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def hosts(self, *, back_since: datetime | None = None) -> list[ExpiringHost]:
        """All hosts that go by certificates of Hostler's that are not revoked, or those that came
        back since: those that expire first to begin with."""
        query = (
            select(HostRow, ClusterRow.name, CertificateRow, CertificateUpkeepRow)
            .join(ClusterRow, col(ClusterRow.id) == col(HostRow.cluster_id))
            .join(CertificateRow, is_in_force())
            .outerjoin(CertificateUpkeepRow, col(CertificateUpkeepRow.host) == col(HostRow.name))
            .where(may_be_asked(), col(CertificateRow.revoked_at).is_(None))
            .order_by(col(CertificateRow.not_after), col(HostRow.name))
            .options(*HOST_IN_SHORT, _WITHOUT_PEM)
        )
        if back_since is not None:
            query = query.where(
                col(HostRow.status) == HostStatus.UP, col(HostRow.status_since) > back_since
            )
        found: dict[str, ExpiringHost] = {}
        async with self._database.reading() as session:
            gone = {*(await session.exec(_DISTRUSTED))}
            for host, cluster, certificate, upkeep in await session.exec(query):
                if host.name not in found:
                    found[host.name] = _expiring(host, cluster, certificate, upkeep)
                if (certificate.provider, certificate.generation) in gone:
                    found[host.name] = replace(found[host.name], distrusted=True)
        return list(found.values())

    async def files(self) -> list[ExpiringFile]:
        """Certificates that were signed for others to install, and are the newest ones for their
        host, which is there, and role; those that expire first to begin with. Not those that
        Hostler connects to hosts with: it has newer ones made itself."""
        query = (
            select(CertificateRow)
            .outerjoin(HostRow, col(HostRow.name) == col(CertificateRow.host))
            .where(
                col(CertificateRow.revoked_at).is_(None),
                col(CertificateRow.key_secret_id).is_(None),
                col(CertificateRow.not_after) > now(),
                col(CertificateRow.host).is_(None)
                | (col(CertificateRow.issued_at) > col(HostRow.created_at)),
            )
            .order_by(col(CertificateRow.issued_at).desc())
            .options(_WITHOUT_PEM)
        )
        newest: dict[tuple[str | None, str], CertificateRow] = {}
        async with self._database.reading() as session:
            for row in await session.exec(query):
                newest.setdefault((row.host, row.role), row)
        found = [
            ExpiringFile(
                host=row.host,
                role=CertificateRole(row.role),
                serial=row.serial,
                not_before=row.not_before,
                not_after=row.not_after,
            )
            for row in newest.values()
            if row.installed_at is None
        ]
        return sorted(found, key=lambda one: (one.not_after, one.serial))

    async def note_renewal(self, host: str, problem: str) -> None:
        """How the last one has ended; no effect if the host is gone."""
        async with self._database.writing() as session:
            row = await upkeep_of(session, host)
            if row is not None:
                row.renewal_tried_at = now() if problem else None
                row.renewal_problem = problem
                session.add(row)


def _expiring(
    host: HostRow,
    cluster: str,
    first: CertificateRow,
    upkeep: CertificateUpkeepRow | None,
) -> ExpiringHost:
    is_up = host.status == HostStatus.UP
    return ExpiringHost(
        lifetime=Lifetime(
            host=host.name,
            serial=first.serial,
            not_before=first.not_before,
            not_after=first.not_after,
        ),
        cluster=cluster,
        distrusted=False,
        away=absence(host),
        up_since=host.status_since if is_up else None,
        tried_at=upkeep.renewal_tried_at if upkeep is not None else None,
        problem=upkeep.renewal_problem if upkeep is not None else "",
    )
