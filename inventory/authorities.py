"""Certificate authorities: their chains, the ids of their keys, their revocation lists."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlmodel import col, func, select, update
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from contracts.certificates import (
    Authority,
    AuthorityOrigin,
    AuthorityState,
    CrlFacts,
    RevocationReason,
    concerns,
    is_qemu_authority,
)
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
                row = await issuing_authority(session, provider)
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
                remedy="It is made with the first certificates in its cluster: see `hostler cert "
                "provision`."
                if is_qemu_authority(provider)
                else "Have it made with `hostler ca create`, or import your own with `hostler ca "
                "import`.",
            )
        return found.authority

    async def of(self, provider: str) -> list[Authority]:
        """All that it ever had, the newest first."""
        async with self._database.reading() as session:
            return [_authority(row) for row in await session.exec(_of(provider))]

    async def providers(self) -> list[str]:
        """Those that have, or had, any, by name; without those of QEMUs."""
        provider = col(CertificateAuthorityRow.provider)
        async with self._database.reading() as session:
            found = await session.exec(select(provider).distinct().order_by(provider))
            return [name for name in found if not is_qemu_authority(name)]

    async def live(self) -> list[Authority]:
        """Whose revocation lists are needed, by provider and generation: those that issue, or are
        to, and those that have issued what is not expired. Of QEMU's that issue, the latter alone:
        their clusters may have gone."""
        async with self._database.reading() as session:
            issued = await _unexpired(session)
            return [
                _authority(row)
                for row in await session.exec(_all())
                if (row.provider, row.generation) in issued
                or row.state == AuthorityState.NEXT
                or (row.state == AuthorityState.CURRENT and not is_qemu_authority(row.provider))
            ]

    async def trusted(self, provider: str | None = None) -> list[Authority]:
        """Those that hosts are to trust who go by certificates of the same provider, by provider
        and generation: of that one, or of all by whose certificates a libvirtd is known, which
        those of QEMUs are not."""
        async with self._database.reading() as session:
            return [
                _authority(row)
                for row in await trusted_authorities(session)
                if row.provider == provider
                or (provider is None and not is_qemu_authority(row.provider))
            ]

    async def add(
        self, new: NewAuthority, *, after: int, unused: bool, operation: str
    ) -> KeyedAuthority:
        """Store it as what issues after the generation `after` (0: as the first one).

        If that one does not issue any more, another process was first: the result is what does.
        `unused`: no certificate may have been issued by its predecessor; raises Conflict, also if
        Hostler has the key of the predecessor and not of this one, and during a rollover.

        Numbers of revocation lists go on from its predecessor's: the issuer may be the same.
        """
        async with self._database.writing() as session:
            predecessor = await issuing_authority(session, new.provider, lock=True)
            if predecessor is not None and predecessor.generation != after:
                return _keyed(predecessor)
            generation = 1
            if predecessor is not None:
                if predecessor.key_secret_id is not None and new.key_secret_id is None:
                    raise Conflict(f"The CA {predecessor.subject} can't be replaced without a key.")
                issued = await _issued(session, predecessor)
                if unused and issued:
                    raise Conflict(
                        f"The CA {predecessor.subject} has issued {issued} certificates: nobody "
                        "who trusts it alone would trust another one.",
                        remedy="A CA in use is replaced by a rollover, which has hosts trust both "
                        "meanwhile: `hostler ca rollover`.",
                    )
                rows = [*await session.exec(_of(new.provider))]
                newest = rows[0]
                if newest.state == AuthorityState.NEXT:
                    raise Conflict(
                        f"The CA {predecessor.subject} is being replaced by {newest.subject}.",
                        remedy="See `hostler ca rollover status`.",
                    )
                if unused and (former := _retired(rows)):
                    raise Conflict(
                        f"The CA {former[0].subject} is being replaced by {predecessor.subject}.",
                        remedy="Bring that to its end first: hostler ca rollover.",
                    )
                generation = newest.generation + 1
                # Who goes by its certificates trusts it until these are replaced.
                predecessor.state = AuthorityState.RETIRING if issued else AuthorityState.WITHDRAWN
                session.add(predecessor)
            row = _new_row(new, generation, AuthorityState.CURRENT, predecessor)
            if await insert_if_absent(session, row):
                _tell_of(session, row, f"ca.{new.origin}", operation)
            there = await session.get(CertificateAuthorityRow, (new.provider, generation))
        if there is None:
            raise AssertionError("a row that is there was not found")
        return _keyed(there)

    async def add_next(self, new: NewAuthority, *, after: int, operation: str) -> KeyedAuthority:
        """Store it as the one that is to issue next; `after`: the newest generation that was known.

        If there is a next one already, another process was first: the result is that. Raises
        Conflict if another one of the same name is known, and if something else has changed. The
        same one may come again that was dropped before it has issued anything.
        """
        async with self._database.writing() as session:
            current = await issuing_authority(session, new.provider, lock=True)
            rows = [*await session.exec(_of(new.provider))]
            if current is None:
                raise Conflict(
                    f"The provider {new.provider!r} has no CA that could be replaced.",
                    remedy="Have it made with `hostler ca create`.",
                )
            if rows[0].state == AuthorityState.NEXT:
                return _keyed(rows[0])
            if rows[0].generation != after or _retired(rows):
                raise Conflict(f"The CA of {new.provider} has just been replaced.")
            if current.key_secret_id is not None and new.key_secret_id is None:
                raise Conflict(f"The CA {current.subject} can't be replaced without a key.")
            same_name = col(CertificateAuthorityRow.subject) == new.subject
            namesakes = (await session.exec(select(CertificateAuthorityRow).where(same_name))).all()
            if not all([await _was_dropped(session, one, new) for one in namesakes]):
                # GnuTLS keeps one revocation list for each name.
                raise Conflict(
                    f"{new.subject} is, or was, in use: hosts could not tell its revocation lists "
                    "from those of the other one.",
                    remedy="Give the next CA a name of its own.",
                )
            row = _new_row(new, after + 1, AuthorityState.NEXT, current)
            # Of an issuer that was dropped, hosts may have lists yet.
            row.crl_counter = max(one.crl_counter for one in (current, *namesakes))
            session.add(row)
            await session.flush()
            _tell_of(session, row, "ca.next", operation)
            return _keyed(row)

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

    async def crl_numbers(self, unit: str | None = None) -> dict[str, int]:
        """Of the newest lists that are needed, by authority ("root/1"): who has those that concern
        it, has all. `unit`: only those that concern hosts of that one."""
        return {
            one.name: one.crl.number
            for one in await self.live()
            if one.crl is not None and (unit is None or concerns(one.provider, unit))
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


async def issuing_authority(
    session: AsyncSession, provider: str, *, lock: bool = False
) -> CertificateAuthorityRow | None:
    """The row by which the provider issues; `lock`: it goes on to until the transaction ends."""
    query = _of(provider).where(col(CertificateAuthorityRow.state) == AuthorityState.CURRENT)
    if not lock:
        return (await session.exec(query)).first()
    while True:
        row = (await session.exec(query.with_for_update())).first()
        # Whoever held the lock may have had another one issue, which that statement does not see.
        if row is not None or (await session.exec(query)).first() is None:
            return row


async def trusted_authorities(session: AsyncSession) -> list[CertificateAuthorityRow]:
    """Of all providers, those that hosts are to trust, by provider and generation."""
    issued = await _unexpired(session)
    return [
        row
        for row in await session.exec(_all())
        if row.state in (AuthorityState.NEXT, AuthorityState.CURRENT)
        or (row.state == AuthorityState.RETIRING and (row.provider, row.generation) in issued)
    ]


def _all() -> SelectOfScalar[CertificateAuthorityRow]:
    return select(CertificateAuthorityRow).order_by(
        col(CertificateAuthorityRow.provider), col(CertificateAuthorityRow.generation)
    )


async def _unexpired(session: AsyncSession) -> set[tuple[str, int]]:
    """Provider and generation of those that have issued what is not expired."""
    query = (
        select(CertificateRow.provider, CertificateRow.generation)
        .where(col(CertificateRow.not_after) > now())
        .distinct()
    )
    return {*(await session.exec(query))}


async def _issued(session: AsyncSession, row: CertificateAuthorityRow) -> int:
    """How many certificates it has issued."""
    query = (
        select(func.count())
        .select_from(CertificateRow)
        .where(
            col(CertificateRow.provider) == row.provider,
            col(CertificateRow.generation) == row.generation,
        )
    )
    return (await session.exec(query)).one()


async def _was_dropped(
    session: AsyncSession, row: CertificateAuthorityRow, new: NewAuthority
) -> bool:
    """Whether the row is that one, from a rollover that was cancelled before it issued anything."""
    return (
        (row.provider, row.state, tuple(row.chain))
        == (new.provider, AuthorityState.WITHDRAWN, new.chain)
    ) and not await _issued(session, row)


def _retired(rows: Iterable[CertificateAuthorityRow]) -> list[CertificateAuthorityRow]:
    """Former ones that have not been taken off all hosts yet."""
    return [row for row in rows if row.state in (AuthorityState.RETIRING, AuthorityState.LEAVING)]


def _new_row(
    new: NewAuthority,
    generation: int,
    state: AuthorityState,
    predecessor: CertificateAuthorityRow | None,
) -> CertificateAuthorityRow:
    return CertificateAuthorityRow(
        provider=new.provider,
        generation=generation,
        state=state,
        origin=new.origin,
        subject=new.subject,
        sha256=new.sha256,
        not_before=new.not_before,
        not_after=new.not_after,
        chain=list(new.chain),
        key_secret_id=new.key_secret_id,
        crl_counter=predecessor.crl_counter if predecessor is not None else 0,
    )


def _tell_of(
    session: AsyncSession, row: CertificateAuthorityRow, kind: str, operation: str
) -> None:
    add_event(
        session,
        kind,
        f"ca/{row.provider}",
        f"generation {row.generation}: {row.subject}, SHA-256 {row.sha256}",
        operation=operation,
        actor=operation,
    )


def _keyed(row: CertificateAuthorityRow) -> KeyedAuthority:
    return KeyedAuthority(authority=_authority(row), key_secret_id=row.key_secret_id)


def _authority(row: CertificateAuthorityRow) -> Authority:
    return Authority(
        provider=row.provider,
        generation=row.generation,
        state=AuthorityState(row.state),
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
