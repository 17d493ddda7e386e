"""Certificate authorities: their chains, the ids of their keys, their revocation lists."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlmodel import col, func, select, update
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from contracts.certificates import Authority, AuthorityOrigin, CrlFacts, RevocationReason
from contracts.errors import Conflict, NotFound
from inventory.database import Database
from inventory.events import add_event
from inventory.models import CertificateAuthorityRow, CertificateRow, now
from inventory.upsert import insert_if_absent


@dataclass(frozen=True)
class NewAuthority:
    """What is stored of one; `chain` is PEM, the issuing certificate first, and all else but the
    key's id and `origin` is of that."""

    provider: str
    origin: AuthorityOrigin
    subject: str
    sha256: str
    not_before: datetime
    not_after: datetime
    chain: tuple[str, ...]
    key_secret_id: str | None = None


@dataclass(frozen=True)
class KeyedAuthority:
    """An authority, and the id of its private key."""

    authority: Authority
    key_secret_id: str | None


@dataclass(frozen=True)
class Revoked:
    """A certificate that a revocation list has to name."""

    serial: str
    at: datetime
    reason: RevocationReason


@dataclass(frozen=True)
class CrlDraft:
    """The number that a list was begun with, and all that it has to name."""

    number: int
    revoked: tuple[Revoked, ...]


@dataclass(frozen=True)
class NewCrl:
    """A signed list. `number`: in decimal digits."""

    der: bytes
    number: str
    this_update: datetime
    next_update: datetime
    entries: int


class Authorities:
    """Stores and reads them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, provider: str, issuer: str | None = None) -> KeyedAuthority | None:
        """The one by which the provider issues, or the newest of that issuing certificate (PEM);
        None if there is none."""
        async with self._database.reading() as session:
            if issuer is None:
                row = await newest_authority(session, provider)
            else:
                rows = await session.exec(_of(provider))
                row = next((one for one in rows if one.chain[0] == issuer), None)
        return _keyed(row) if row is not None else None

    async def get(self, provider: str, generation: int | None = None) -> Authority:
        """The one by which it issues, or that generation, without the key. Raises NotFound."""
        if generation is not None:
            async with self._database.reading() as session:
                return _authority(await _row(session, provider, generation))
        found = await self.find(provider)
        if found is None:
            raise NotFound(
                f"The provider {provider!r} has no certificate authority yet.",
                remedy="Have it made with `hostler ca create`, or import your own with `hostler "
                "ca import`.",
            )
        return found.authority

    async def live(self) -> list[Authority]:
        """Whose revocation lists are needed, by provider and generation: those that issue, and
        those that have issued what is not expired."""
        unexpired = select(CertificateRow.provider, CertificateRow.generation).where(
            col(CertificateRow.not_after) > now()
        )
        newest = select(
            CertificateAuthorityRow.provider, func.max(CertificateAuthorityRow.generation)
        ).group_by(col(CertificateAuthorityRow.provider))
        async with self._database.reading() as session:
            needed = {
                *(await session.exec(unexpired.distinct())),
                *(await session.exec(newest)),
            }
            rows = await session.exec(
                select(CertificateAuthorityRow).order_by(
                    col(CertificateAuthorityRow.provider), col(CertificateAuthorityRow.generation)
                )
            )
            return [_authority(row) for row in rows if (row.provider, row.generation) in needed]

    async def add(
        self, new: NewAuthority, *, after: int, unused: bool, operation: str
    ) -> KeyedAuthority:
        """Store it as the generation that follows `after` (0: as the first one).

        If that generation is there already, another process was first: the result is what is
        there. `unused`: no certificate may have been issued by its predecessor; raises Conflict,
        also if Hostler has the key of the predecessor and not of this one.

        Numbers of revocation lists go on from its predecessor's: the issuer may be the same.
        """
        async with self._database.writing() as session:
            predecessor = await newest_authority(session, new.provider, lock=True)
            if predecessor is not None and predecessor.generation == after:
                if predecessor.key_secret_id is not None and new.key_secret_id is None:
                    raise Conflict(f"The CA {predecessor.subject} can't be replaced without a key.")
                if unused:
                    await _require_unused(session, predecessor)
            row = CertificateAuthorityRow(
                provider=new.provider,
                generation=after + 1,
                origin=new.origin,
                subject=new.subject,
                sha256=new.sha256,
                not_before=new.not_before,
                not_after=new.not_after,
                chain=list(new.chain),
                key_secret_id=new.key_secret_id,
                crl_counter=predecessor.crl_counter if predecessor is not None else 0,
            )
            if await insert_if_absent(session, row):
                add_event(
                    session,
                    f"ca.{new.origin}",
                    f"ca/{new.provider}",
                    f"generation {after + 1}: {new.subject}, SHA-256 {new.sha256}",
                    operation=operation,
                    actor=operation,
                )
            there = await session.get(CertificateAuthorityRow, (new.provider, after + 1))
        if there is None:
            raise AssertionError("a row that is there was not found")
        return _keyed(there)

    # --- revocation lists -----------------------------------------------------------------------

    async def begin_crl(self, provider: str, generation: int, *, kept: timedelta) -> CrlDraft:
        """A number that no list had before, and what that list has to name: all that was revoked
        until now, those that expired longer than `kept` ago left out.

        Of two lists, the one with the higher number names all that the other one does.
        """
        of_authority = (
            col(CertificateAuthorityRow.provider) == provider,
            col(CertificateAuthorityRow.generation) == generation,
        )
        async with self._database.writing() as session:
            # It comes first: the next number waits for the end of this transaction.
            await session.exec(
                update(CertificateAuthorityRow)
                .where(*of_authority)
                .values(crl_counter=CertificateAuthorityRow.crl_counter + 1)
            )
            number = (
                await session.exec(select(CertificateAuthorityRow.crl_counter).where(*of_authority))
            ).one()
            rows = await session.exec(
                select(CertificateRow)
                .where(
                    col(CertificateRow.provider) == provider,
                    col(CertificateRow.generation) == generation,
                    col(CertificateRow.revoked_at).is_not(None),
                    col(CertificateRow.not_after) > now() - kept,
                )
                .order_by(col(CertificateRow.revoked_at), col(CertificateRow.serial))
            )
            return CrlDraft(
                number=number,
                revoked=tuple(
                    Revoked(
                        serial=row.serial,
                        at=row.revoked_at,
                        reason=RevocationReason(row.revocation_reason),
                    )
                    for row in rows
                    if row.revoked_at is not None and row.revocation_reason is not None
                ),
            )

    async def store_crl(
        self, provider: str, generation: int, crl: NewCrl, *, operation: str
    ) -> CrlFacts:
        """Keep it, unless a newer one is kept; the facts of the one that is. Raises NotFound.

        Hostler's own lists are in the order of their numbers: clocks of workers differ. An external
        CA that was restored from a backup starts again from a lower one, which must not be the end
        of its revocations: there, time counts.
        """
        async with self._database.writing() as session:
            row = await _row(session, provider, generation, lock=True)
            kept = _crl(row)
            if kept is None:
                newer = True
            elif row.key_secret_id is None:
                newer = (crl.this_update, int(crl.number)) > (kept.this_update, kept.number)
            else:
                newer = int(crl.number) > kept.number
            if kept is not None and newer and int(crl.number) < kept.number:
                add_event(
                    session,
                    "ca.crl_number_went_back",
                    f"ca/{provider}",
                    f"from {kept.number} to {crl.number}: was the CA restored from a backup? What "
                    "it revoked or signed since is not known there",
                    operation=operation,
                    actor=operation,
                )
            if newer:
                row.crl, row.crl_number, row.crl_entries = crl.der, crl.number, crl.entries
                row.crl_this_update, row.crl_next_update = crl.this_update, crl.next_update
                session.add(row)
                add_event(
                    session,
                    "ca.crl",
                    f"ca/{provider}",
                    f"generation {generation}: number {crl.number}, {crl.entries} revoked, "
                    f"until {crl.next_update:%Y-%m-%d %H:%M} UTC",
                    operation=operation,
                    actor=operation,
                )
                kept = _crl(row)
        if kept is None:
            raise AssertionError("a list that was stored is not there")
        return kept

    async def crl_numbers(self) -> dict[str, int]:
        """Of the newest lists that are needed, by authority ("root/1"): who has these, has all."""
        return {
            f"{one.provider}/{one.generation}": one.crl.number
            for one in await self.live()
            if one.crl is not None
        }

    async def crl(self, provider: str, generation: int) -> bytes:
        """The newest list of that authority, in DER. Raises NotFound."""
        async with self._database.reading() as session:
            row = await _row(session, provider, generation)
        if row.crl is None:
            raise NotFound(
                f"Generation {generation} of {provider!r} has no revocation list yet.",
                remedy="It is made with the CA, and at each revocation.",
            )
        return row.crl


def _of(provider: str) -> SelectOfScalar[CertificateAuthorityRow]:
    """The newest first."""
    return (
        select(CertificateAuthorityRow)
        .where(col(CertificateAuthorityRow.provider) == provider)
        .order_by(col(CertificateAuthorityRow.generation).desc())
    )


async def _row(
    session: AsyncSession, provider: str, generation: int, *, lock: bool = False
) -> CertificateAuthorityRow:
    row = await session.get(
        CertificateAuthorityRow, (provider, generation), with_for_update=lock or None
    )
    if row is None:
        raise NotFound(f"The provider {provider!r} has no CA of generation {generation}.")
    return row


async def newest_authority(
    session: AsyncSession, provider: str, *, lock: bool = False
) -> CertificateAuthorityRow | None:
    """The row by which the provider issues; `lock`: nobody adds a newer one meanwhile."""
    query = _of(provider).limit(1)
    if not lock:
        return (await session.exec(query)).first()
    while True:
        row = (await session.exec(query.with_for_update())).first()
        # Whoever held the lock may have added a newer one, which that statement does not see.
        newest = select(func.max(CertificateAuthorityRow.generation)).where(
            col(CertificateAuthorityRow.provider) == provider
        )
        if row is None or row.generation == (await session.exec(newest)).one():
            return row


async def _require_unused(session: AsyncSession, row: CertificateAuthorityRow) -> None:
    issued = (
        await session.exec(
            select(func.count())
            .select_from(CertificateRow)
            .where(
                col(CertificateRow.provider) == row.provider,
                col(CertificateRow.generation) == row.generation,
            )
        )
    ).one()
    if issued:
        raise Conflict(
            f"The CA {row.subject} has issued {issued} certificates: nobody who trusts it alone "
            "would trust another one.",
            remedy="A CA in use is replaced by a rollover, which has hosts trust both meanwhile.",
        )


def _keyed(row: CertificateAuthorityRow) -> KeyedAuthority:
    return KeyedAuthority(authority=_authority(row), key_secret_id=row.key_secret_id)


def _authority(row: CertificateAuthorityRow) -> Authority:
    return Authority(
        provider=row.provider,
        generation=row.generation,
        origin=AuthorityOrigin(row.origin),
        subject=row.subject,
        not_before=row.not_before,
        not_after=row.not_after,
        sha256=row.sha256,
        chain=tuple(row.chain),
        crl=_crl(row),
    )


def _crl(row: CertificateAuthorityRow) -> CrlFacts | None:
    if row.crl_number is None or row.crl_this_update is None or row.crl_next_update is None:
        return None
    return CrlFacts(
        number=int(row.crl_number),
        this_update=row.crl_this_update,
        next_update=row.crl_next_update,
        revoked=row.crl_entries,
    )
