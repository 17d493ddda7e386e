"""Certificates that were issued, and what the inventory knows of hosts that belongs into them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, String, cast, or_
from sqlmodel import col, select

from contracts.certificates import (
    AuthorityState,
    Certificate,
    CertificateRole,
    CertificateState,
    RevocationReason,
    check_reason,
    unit_of,
)
from contracts.errors import Conflict, NotFound, Unavailable
from inventory.authorities import issuing_authority
from inventory.database import Database
from inventory.events import add_event
from inventory.models import (
    CertificateAuthorityRow,
    CertificateRow,
    ClusterRow,
    HostRow,
    now,
)
from inventory.upsert import insert_if_absent


@dataclass(frozen=True)
class NewCertificate:
    """What is stored of a certificate.

    Attributes:
        request: of the step that asked for it.
        notices: kind and message of events about it.
        key_secret: id of its stored private key, if Hostler has that.
    """

    request: str
    provider: str
    generation: int
    serial: str
    host: str | None
    role: CertificateRole
    subject: str
    dns_names: tuple[str, ...]
    ip_addresses: tuple[str, ...]
    key_sha256: str
    not_before: datetime
    not_after: datetime
    issued_by: str
    pem: str
    notices: tuple[tuple[str, str], ...] = ()
    key_secret: str | None = None


class Certificates:
    """Records, lists and revokes them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, new: NewCertificate, *, actor: str) -> Certificate:
        """Store it, with its event; if the same step has stored one before, that one counts.

        Raises Unavailable if the provider has got another authority meanwhile: nobody was given
        the certificate, and a new one is issued by the new authority.
        """
        async with self._database.writing() as session:
            authority = await issuing_authority(session, new.provider, lock=True)
            if authority is None or authority.generation != new.generation:
                raise Unavailable(f"The CA of {new.provider} has just been replaced.")
            row = CertificateRow(
                request=new.request,
                provider=new.provider,
                generation=new.generation,
                serial=new.serial,
                host=new.host,
                role=new.role,
                subject=new.subject,
                dns_names=list(new.dns_names),
                ip_addresses=list(new.ip_addresses),
                key_sha256=new.key_sha256,
                not_before=new.not_before,
                not_after=new.not_after,
                issued_by=new.issued_by,
                pem=new.pem,
                key_secret_id=new.key_secret,
            )
            if await insert_if_absent(session, row):
                subject, names = event_subject(new.host), (*new.dns_names, *new.ip_addresses)
                add_event(
                    session,
                    "certificate.issued",
                    subject,
                    f"{new.role} certificate {new.serial} for {', '.join(names) or new.subject}, "
                    f"until {new.not_after:%Y-%m-%d %H:%M} UTC",
                    operation=new.issued_by,
                    actor=actor,
                )
                for kind, message in new.notices:
                    add_event(session, kind, subject, message, operation=new.issued_by, actor=actor)
            there = await session.get(CertificateRow, new.request)
        if there is None:
            raise Conflict(f"{new.provider} has issued another certificate of serial {new.serial}.")
        return _certificate(there)

    async def find_request(self, request: str) -> Certificate | None:
        """What the step has stored before, or None."""
        async with self._database.reading() as session:
            row = await session.get(CertificateRow, request)
        return _certificate(row) if row is not None else None

    async def newest_of_hostler(self) -> tuple[Certificate, str] | None:
        """The one that Hostler connects to hosts with, and that ends last, with the id of its key;
        None if there is no valid one of a CA that issues."""
        query = (
            select(CertificateRow)
            .join(CertificateAuthorityRow, is_issuer())
            .where(
                col(CertificateAuthorityRow.state) == AuthorityState.CURRENT,
                col(CertificateRow.role) == CertificateRole.CONTROLLER,
                col(CertificateRow.key_secret_id).is_not(None),
                *_in_state(CertificateState.VALID),
            )
            .order_by(col(CertificateRow.not_after).desc())
            .limit(1)
        )
        async with self._database.reading() as session:
            row = (await session.exec(query)).first()
        if row is None or row.key_secret_id is None:
            return None
        return _certificate(row), row.key_secret_id

    async def get(self, serial: str) -> Certificate:
        """Raises NotFound; Conflict if two authorities have given the same serial."""
        found = await self._select(col(CertificateRow.serial) == serial)
        if not found:
            raise NotFound(
                f"No certificate with the serial {serial} was issued.",
                remedy="See `hostler cert list` for those that were.",
            )
        if len(found) > 1:
            raise Conflict(
                f"{len(found)} certificates of different CAs have the serial {serial}.",
                remedy=f"Name the host: {', '.join(sorted({one.host or '-' for one in found}))}.",
            )
        return found[0]

    async def of_keys(self, keys: Collection[str]) -> list[Certificate]:
        """All that were issued for these keys (`key_sha256`)."""
        return [*await self._select(col(CertificateRow.key_sha256).in_(keys))]

    async def list(
        self,
        *,
        host: str | None = None,
        state: CertificateState | None = None,
        expires_before: datetime | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> list[Certificate]:
        """Those that match all that is given, by serial: at most `limit`, behind `after`."""
        conditions = _in_state(state) if state is not None else []
        if host is not None:
            conditions.append(col(CertificateRow.host) == host)
        if expires_before is not None:
            conditions.append(col(CertificateRow.not_after) < expires_before)
        if after is not None:
            conditions.append(col(CertificateRow.serial) > after)
        return [*await self._select(*conditions, limit=limit)]

    async def revoke(
        self,
        certificate: Certificate,
        reason: RevocationReason,
        *,
        operation: str,
        actor: str,
    ) -> None:
        """Write that it is revoked; no effect if it is, unless others have its key as it turns out.
        Raises NotFound; Conflict if it is revoked for another reason."""
        async with self._database.writing() as session:
            query = select(CertificateRow).where(
                col(CertificateRow.provider) == certificate.provider,
                col(CertificateRow.generation) == certificate.generation,
                col(CertificateRow.serial) == certificate.serial,
            )
            row = (await session.exec(query.with_for_update())).first()
            if row is None:
                raise NotFound(f"There is no certificate {certificate.serial}.")
            check_reason(_certificate(row), reason)
            if row.revoked_at is not None and reason in (
                row.revocation_reason,
                RevocationReason.UNSPECIFIED,
            ):
                return
            row.revoked_at, row.revocation_reason = row.revoked_at or now(), reason
            session.add(row)
            add_event(
                session,
                "certificate.revoked",
                event_subject(row.host),
                f"{row.role} certificate {row.serial}: {reason}",
                operation=operation,
                actor=actor,
            )

    async def install(
        self, host: str, requests: Collection[str], *, operation: str, actor: str
    ) -> None:
        """Write that the host goes by those, and by no others. May be called many times."""
        query = select(CertificateRow).where(col(CertificateRow.host) == host)
        async with self._database.writing() as session:
            rows = {row.request: row for row in await session.exec(query.with_for_update())}
            new = [rows[request] for request in requests]
            if all(row.installed_at is not None for row in new):
                return
            for row in rows.values():
                row.installed_at = now() if row in new else None
                session.add(row)
            add_event(
                session,
                "certificate.installed",
                event_subject(host),
                ", ".join(f"{row.role} {row.serial}" for row in new),
                operation=operation,
                actor=actor,
            )

    async def is_compromised(self, key_sha256: str) -> bool:
        """Whether a certificate of that key was revoked because others may have the key."""
        found = await self._select(
            col(CertificateRow.key_sha256) == key_sha256,
            col(CertificateRow.revocation_reason) == RevocationReason.KEY_COMPROMISE,
            limit=1,
        )
        return bool(found)

    async def to_list(self, provider: str, generation: int) -> set[str]:
        """Serials that a revocation list of that authority has to name by now."""
        found = await self._select(
            col(CertificateRow.provider) == provider,
            col(CertificateRow.generation) == generation,
            col(CertificateRow.revoked_at).is_not(None),
            col(CertificateRow.not_after) > now(),
        )
        return {one.serial for one in found}

    async def claims(self, host: str, addresses: Collection[str]) -> dict[str, str]:
        """By address, another host than `host` that is reached there, or reports to have it.

        Args:
            addresses: as `ip_address` writes them.
        """
        # The database only looks for the text: facts of ten thousand hosts stay where they are.
        facts = cast(col(HostRow.facts), String)
        query = select(HostRow).where(
            col(HostRow.name) != host,
            or_(
                col(HostRow.address).in_(addresses),
                *(facts.contains(f'"{address}"', autoescape=True) for address in addresses),
            ),
        )
        found: dict[str, str] = {}
        async with self._database.reading() as session:
            for row in await session.exec(query):
                reported = (row.facts or {}).get("addresses", ())
                found |= {
                    one: row.name for one in addresses if one == row.address or one in reported
                }
        return found

    async def unit(self, host: str) -> str:
        """The organizational unit of the host's cluster. Raises NotFound."""
        query = (
            select(ClusterRow.certificate_id)
            .join(HostRow, col(HostRow.cluster_id) == col(ClusterRow.id))
            .where(col(HostRow.name) == host)
        )
        async with self._database.reading() as session:
            found = (await session.exec(query)).first()
        if found is None:
            raise NotFound(f"There is no host {host!r}.")
        return unit_of(found)

    async def unit_of_cluster(self, cluster: str) -> str:
        """The organizational unit of a cluster. Raises NotFound."""
        query = select(ClusterRow.certificate_id).where(col(ClusterRow.name) == cluster)
        async with self._database.reading() as session:
            found = (await session.exec(query)).first()
        if found is None:
            raise NotFound(f"There is no cluster {cluster!r}.")
        return unit_of(found)

    async def _select(
        self, *conditions: ColumnElement[bool], limit: int | None = None
    ) -> Sequence[Certificate]:
        query = (
            select(CertificateRow)
            .where(*conditions)
            .order_by(col(CertificateRow.serial), col(CertificateRow.request))
            .limit(limit)
        )
        async with self._database.reading() as session:
            return [_certificate(row) for row in await session.exec(query)]


def is_issuer() -> ColumnElement[bool]:
    """Of an authority's row and a certificate's: whether that one has issued it."""
    return (col(CertificateAuthorityRow.provider) == col(CertificateRow.provider)) & (
        col(CertificateAuthorityRow.generation) == col(CertificateRow.generation)
    )


def event_subject(host: str | None) -> str:
    """Of what concerns a certificate: its host, or Hostler itself."""
    return f"host/{host}" if host is not None else "ca/controller"


def _in_state(state: CertificateState) -> list[ColumnElement[bool]]:
    revoked = col(CertificateRow.revoked_at).is_not(None)
    expired = col(CertificateRow.not_after) < now()
    if state is CertificateState.REVOKED:
        return [revoked]
    return [~revoked, expired if state is CertificateState.EXPIRED else ~expired]


def _certificate(row: CertificateRow) -> Certificate:
    return Certificate(
        serial=row.serial,
        provider=row.provider,
        generation=row.generation,
        host=row.host,
        role=CertificateRole(row.role),
        subject=row.subject,
        dns_names=tuple(row.dns_names),
        ip_addresses=tuple(row.ip_addresses),
        key_sha256=row.key_sha256,
        not_before=row.not_before,
        not_after=row.not_after,
        issued_at=row.issued_at,
        issued_by=row.issued_by,
        revoked_at=row.revoked_at,
        revocation_reason=(
            RevocationReason(row.revocation_reason) if row.revocation_reason else None
        ),
        installed_at=row.installed_at,
        pem=row.pem,
    )
