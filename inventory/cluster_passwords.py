"""Passwords that an account has on all hosts of a cluster, in versions, and which host has which.

staged -> current -> previous -> retired; a staged one that comes to nothing is retired at once. The
ciphertext of a version is kept while a host may have it: from `attempt` on, until `record`.
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from sqlalchemy import ColumnElement
from sqlmodel import col, delete, select, update
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.errors import Conflict, NotFound
from contracts.leases import LeaseRef
from contracts.secrets import HostPassword, SecretState, StoredSecret
from inventory.database import Database
from inventory.events import add_event
from inventory.group_commit import GroupCommit
from inventory.hosts import host_row
from inventory.leases import lost_leases, verify_lease
from inventory.models import (
    ClusterPasswordRow,
    ClusterRow,
    HostPasswordRow,
    HostRow,
    PasswordAttemptRow,
    SecretVersionRow,
    now,
)
from inventory.secret_box import SecretBox, key_id_of
from inventory.secrets import add_secret, unclaimed
from inventory.topology import cluster_row
from inventory.upsert import insert_or_replace_all

_KIND = "password"
_MOST_NAMED = 10
_AT_A_TIME = 500  # of names or ids in one statement


@dataclass(frozen=True)
class Candidate:
    """A password that an account of a host may have. `state`: from the host's point of view, so
    `current` is the one that was proven there. `version`: of the cluster's. `attempted`: since."""

    id: str
    state: SecretState
    version: int | None
    attempted: bool


@dataclass(frozen=True)
class Known:
    """What is stored of an account of a host: `holding` and `candidates` of ClusterPasswords."""

    holding: HostPassword
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class _Change:
    """The account's password on the lease's host, begun or proven."""

    secret_id: str
    account: str
    lease: LeaseRef


class ClusterPasswords:
    """What each step of a change of passwords writes: `stage` or `adopt`, per host `attempt` before
    it is touched and `record` after a login has proven it, `promote` when all are. Every method
    raises NotFound.

    A staged version belongs to the `operation` that staged or adopted it, its workflow's id and
    first run: nobody else promotes, replaces or abandons it, but by `takeover_from`, once that
    operation is closed.
    """

    def __init__(self, database: Database, box: SecretBox) -> None:
        self._database = database
        self._box = box
        self._attempts = GroupCommit(self._attempt_all)
        self._records = GroupCommit(self._record_all)

    async def stage(
        self,
        cluster: str,
        plaintext: str,
        *,
        account: str,
        actor: str,
        operation: str | None = None,
        takeover_from: str | None = None,
        secret_id: str | None = None,
    ) -> int:
        """Store the next version, encrypted; its number. Idempotent by `operation`: a repetition
        stores nothing, and gives the first one's number. A staged one that no host may have is
        retired. `secret_id`: the secret's, not in use yet. Raises Conflict if hosts may have the
        staged one, or another operation has it (`operation` in the details); MasterKeyMissing."""

        async def work() -> int:
            async with self._database.writing() as session:
                return await stage(
                    session,
                    self._box,
                    cluster,
                    plaintext,
                    account=account,
                    actor=actor,
                    operation=operation,
                    takeover_from=takeover_from,
                    secret_id=secret_id,
                )

        return await self._box.reloading(work)

    async def adopt(
        self, cluster: str, *, account: str, operation: str, takeover_from: str | None = None
    ) -> int:
        """The staged version is this operation's from now on; its number. May be called many times:
        once it is promoted or retired, too. Raises Conflict if another operation has it
        (`operation` in the details), NotFound if there is none."""
        async with self._database.writing() as session:
            place = await cluster_row(session, cluster, lock=True)
            rows = await _versions(session, place, account)
            for row in rows:
                if row.operation == operation:
                    return row.version
            staged = _in_state(rows, SecretState.STAGED)
            if staged is None:
                raise NotFound(f"No password of {account} is staged for {cluster}.")
            _require_free(staged, operation, takeover_from)
            staged.operation = operation
            session.add(staged)
            _tell(
                session,
                place,
                account,
                f"version {staged.version} is what the hosts are to get",
                operation,
                operation=operation,
            )
            return staged.version

    async def versions(self, cluster: str, *, account: str | None = None) -> list[StoredSecret]:
        """All of the cluster, the newest first, each with the hosts that have it; of `account`, if
        given."""
        async with self._database.reading() as session:
            place = await cluster_row(session, cluster)
            rows = await _versions(session, place, account)
            ids = [row.secret_id for row in rows if row.secret_id is not None]
            secrets = select(SecretVersionRow).where(col(SecretVersionRow.id).in_(ids))
            key_ids = {row.id: key_id_of(row.ciphertext) for row in await session.exec(secrets)}
            hosts: dict[str, list[str]] = {}
            holders = select(HostPasswordRow.secret_id, HostPasswordRow.host).where(
                col(HostPasswordRow.secret_id).in_(ids)
            )
            for secret_id, host in await session.exec(holders):
                hosts.setdefault(secret_id, []).append(host)
            maybe: dict[str, list[str]] = {}
            attempts = select(PasswordAttemptRow.secret_id, PasswordAttemptRow.host).where(
                col(PasswordAttemptRow.secret_id).in_(ids)
            )
            for secret_id, host in await session.exec(attempts):
                maybe.setdefault(secret_id, []).append(host)
        return [
            StoredSecret(
                id=row.secret_id,
                kind=_KIND,
                state=SecretState(row.state),
                key_id=key_ids.get(row.secret_id or ""),
                created_at=row.created_at,
                account=row.account,
                version=row.version,
                hosts=tuple(sorted(hosts.get(row.secret_id or "", ()))),
                attempted_on=tuple(sorted(maybe.get(row.secret_id or "", ()))),
                operation=row.operation,
            )
            for row in rows
        ]

    async def holdings(self, cluster: str, *, account: str) -> list[HostPassword]:
        """Of each host of the cluster, by name, which password the account has there."""
        async with self._database.reading() as session:
            place = await cluster_row(session, cluster)
            rows = await _versions(session, place, account)
            held = await _held(session, account, _in(place))
        return [_holding(one, rows) for one in held]

    async def candidates(self, host: str, *, account: str) -> list[str]:
        """Ids of the passwords that the account may have on the host, the likeliest first: those
        that were attempted there since the last proof, the latest first; the staged one, what was
        proven there last, the current one, what was there before that, and previous ones."""
        known = await self.known([host], account=account)
        if host not in known:
            raise NotFound(f"There is no host {host!r}.")
        return list(known[host].candidates)

    async def known(self, hosts: Collection[str], *, account: str) -> dict[str, Known]:
        """`holding` and `candidates` of those of these hosts that are there, as they were at one
        moment; some hundreds at most."""
        async with self._database.reading() as session:
            held = await _held(session, account, col(HostRow.name).in_(hosts))
            versions = {}
            for cluster_id in {one.host.cluster_id for one in held}:
                place = await session.get_one(ClusterRow, cluster_id)
                versions[cluster_id] = await _versions(session, place, account)
        found = {}
        for one in held:
            rows = versions[one.host.cluster_id]
            ids = tuple(candidate.id for candidate in _candidates(one, rows))
            found[one.host.name] = Known(_holding(one, rows), ids)
        return found

    async def attempt(self, secret_id: str, *, account: str, lease: LeaseRef) -> None:
        """To be committed before the account's password on the lease's host is set to that one,
        forward or back: the host may have it from now on, beside those that it may have already.
        May be called many times. Raises LeaseLost."""
        await self._attempts.do(_Change(secret_id, account, lease))

    async def _attempt_all(self, changes: Sequence[_Change]) -> Sequence[Exception | None]:
        async with self._database.writing() as session:
            lost = await lost_leases(session, [one.lease for one in changes], hold=True)
            # Held against those who drop versions; other hosts' attempts go beside these.
            places = (
                select(HostRow.name)
                .join(ClusterRow)
                .where(col(HostRow.name).in_({one.lease.host for one in changes}))
                .with_for_update(read=True, of=ClusterRow)
            )
            there = {*await session.exec(places)}
            stored = await _stored(session, changes)
            problems = [
                problem or _missing(one, there, stored)
                for one, problem in zip(changes, lost, strict=True)
            ]
            await insert_or_replace_all(
                session,
                [
                    PasswordAttemptRow(
                        host=one.lease.host, account=one.account, secret_id=one.secret_id
                    )
                    # By host, as all who lock several: each row holds its host's.
                    for one, problem in sorted(
                        zip(changes, problems, strict=True), key=lambda pair: pair[0].lease.host
                    )
                    if problem is None
                ],
            )
        return problems

    async def record(self, secret_id: str, *, account: str, lease: LeaseRef) -> None:
        """A login has proven that the account has that password on the lease's host, and so none
        of those that were attempted: it is what Hostler logs in with there from now on, if it does
        with a password, and the one before is kept. May be called many times. Raises LeaseLost."""
        await self._records.do(_Change(secret_id, account, lease))

    async def _record_all(self, changes: Sequence[_Change]) -> Sequence[Exception | None]:
        async with self._database.writing() as session:
            lost = await lost_leases(session, [one.lease for one in changes], hold=True)
            names = {one.lease.host for one in changes}
            query = select(HostRow.name).where(col(HostRow.name).in_(names))
            query = query.order_by(col(HostRow.name)).with_for_update()
            there = {*await session.exec(query)}
            stored = await _stored(session, changes)
            problems = [
                problem or _missing(one, there, stored)
                for one, problem in zip(changes, lost, strict=True)
            ]
            for account in {one.account for one in changes}:
                proven = {
                    one.lease.host: one.secret_id
                    for one, problem in zip(changes, problems, strict=True)
                    if problem is None and one.account == account
                }
                await _record(session, account, proven)
        return problems

    async def promote(
        self,
        cluster: str,
        version: int,
        *,
        account: str,
        leases: Sequence[LeaseRef],
        left_out: Mapping[str, str] = MappingProxyType({}),
        operation: str,
    ) -> None:
        """The staged version is the current one from now on, for the whole cluster: all or nothing.

        Takes the leases of all its hosts but those that are `left_out` (host: reason), which stay
        stale. The version before becomes previous; older ones that no host may have are retired,
        and what hosts had before is deleted. May be called many times. Raises Conflict, naming the
        hosts that have not proven it, or may have got another one since; LeaseLost.
        """
        async with self._database.writing() as session:
            for lost in await lost_leases(session, leases, hold=True):
                if lost is not None:
                    raise lost
            place = await cluster_row(session, cluster, lock=True)
            rows = await _versions(session, place, account)
            row = _numbered(rows, version, cluster)
            if row.state == SecretState.CURRENT:
                return
            if row.state != SecretState.STAGED:
                raise Conflict(f"Version {version} of the password of {cluster} is {row.state}.")
            _require_free(row, operation, None)
            held = await _held(session, account, _in(place))
            leased = {lease.host for lease in leases}
            lacking = [
                one.host.name
                for one in held
                if one.host.name not in left_out
                and (one.secret_id != row.secret_id or one.attempted or one.host.name not in leased)
            ]
            if lacking:
                raise Conflict(
                    f"Version {version} of the password of {cluster} is not proven on "
                    f"{_named(lacking)}.",
                    details={"hosts": lacking},
                )
            current = _in_state(rows, SecretState.CURRENT)
            if current is not None:
                _change(session, current, SecretState.PREVIOUS)
            _change(session, row, SecretState.CURRENT)
            await _forget_former(session, held, row)
            await _retire_previous(session, held, rows, but=current)
            stale = f"; not on {_named(sorted(left_out))}" if left_out else ""
            message = f"version {version} is current{stale}"
            _tell(session, place, account, message, operation, operation=operation)
            names = {one.host.name for one in held}
            _tell_stale(session, account, version, names, left_out, operation, "became current")

    async def abandon(
        self,
        cluster: str,
        version: int,
        *,
        account: str,
        reason: str,
        actor: str,
        left_out: Mapping[str, str] = MappingProxyType({}),
        operation: str | None = None,
        takeover_from: str | None = None,
    ) -> None:
        """Retire a staged version that came to nothing; while hosts may have it that are `left_out`
        (host: reason), it is kept as a previous one. May be called many times. Raises Conflict if
        others may have it, if another operation has it (`operation` in the details), or if it was
        current."""
        async with self._database.writing() as session:
            place = await cluster_row(session, cluster, lock=True)
            row = _numbered(await _versions(session, place, account), version, cluster)
            if row.abandoned:
                return
            if row.state != SecretState.STAGED:
                raise Conflict(f"Version {version} of the password of {cluster} is {row.state}.")
            _require_free(row, operation, takeover_from)
            kept_for = await _require_unused(session, row, left_out)
            row.abandoned = True
            if kept_for:
                _change(session, row, SecretState.PREVIOUS)
            else:
                await _retire(session, [row])
            _tell(session, place, account, f"version {version} is abandoned: {reason}", actor)
            _tell_stale(session, account, version, kept_for, left_out, actor, "was abandoned")

    async def settle(self, secret_id: str, *, account: str, lease: LeaseRef) -> None:
        """The lease's host has that password and keeps it: what it had before is deleted. May be
        called many times. Raises Conflict if another one was proven there last, LeaseLost."""
        async with self._database.writing() as session:
            await verify_lease(session, lease, hold=True)
            row = await host_row(session, lease.host)
            (held,) = await _held(session, account, col(HostRow.name) == row.name)
            if held.proven is None or held.secret_id != secret_id or held.attempted:
                raise Conflict(f"{row.name} was not proven to have that password.")
            former_id, held.proven.former_secret_id = held.former_id, None
            session.add(held.proven)
            await session.flush()
            if former_id is not None:
                await _discard(session, {former_id})

    async def find(
        self, cluster: str, state: SecretState, *, account: str
    ) -> tuple[int, str] | None:
        """Number and id of the version that is `staged`, or `current`; None if there is none."""
        async with self._database.reading() as session:
            place = await cluster_row(session, cluster)
            row = _in_state(await _versions(session, place, account), state)
        return (row.version, row.secret_id) if row is not None and row.secret_id else None

    async def holding(self, host: str, *, account: str) -> HostPassword:
        """The same as `holdings` of one host."""
        async with self._database.reading() as session:
            held = await _held(session, account, col(HostRow.name) == host)
            if not held:
                raise NotFound(f"There is no host {host!r}.")
            place = await session.get_one(ClusterRow, held[0].host.cluster_id)
            return _holding(held[0], await _versions(session, place, account))

    async def retire_previous(self, cluster: str, *, account: str, actor: str) -> list[int]:
        """Delete the previous versions that no host may have; their numbers."""
        async with self._database.writing() as session:
            place = await cluster_row(session, cluster, lock=True)
            rows = await _versions(session, place, account)
            held = await _held(session, account, _in(place))
            retired = await _retire_previous(session, held, rows, but=None)
            for number in retired:
                _tell(session, place, account, f"version {number} is retired", actor)
            return retired


async def stage(
    session: AsyncSession,
    box: SecretBox,
    cluster: str,
    plaintext: str,
    *,
    account: str,
    actor: str,
    operation: str | None = None,
    takeover_from: str | None = None,
    secret_id: str | None = None,
) -> int:
    """See ClusterPasswords.stage."""
    place = await cluster_row(session, cluster, lock=True)
    rows = await _versions(session, place, account)
    for row in rows:
        if operation is not None and row.operation == operation:
            return row.version
    staged = _in_state(rows, SecretState.STAGED)
    if staged is not None:
        _require_free(staged, operation, takeover_from)
        await _require_unused(session, staged)
        staged.abandoned = True
        await _retire(session, [staged])
    number = max((row.version for row in rows), default=0) + 1
    stored = secret_id or str(uuid.uuid4())
    await add_secret(session, box, stored, _KIND, plaintext, actor=actor)
    session.add(
        ClusterPasswordRow(
            cluster_id=place.id or 0,
            account=account,
            version=number,
            state=SecretState.STAGED,
            operation=operation,
            secret_id=stored,
        )
    )
    _tell(session, place, account, f"version {number} is staged", actor)
    return number


async def drop_staged(session: AsyncSession, secret_id: str) -> None:
    """Retire the staged version with that secret, if no operation has it: no host was told it."""
    query = select(ClusterPasswordRow).where(
        col(ClusterPasswordRow.secret_id) == secret_id,
        col(ClusterPasswordRow.state) == SecretState.STAGED,
        col(ClusterPasswordRow.operation).is_(None),
    )
    row = (await session.exec(query.with_for_update())).first()
    if row is not None:
        row.abandoned = True
        await _retire(session, [row])


async def _versions(
    session: AsyncSession, place: ClusterRow, account: str | None
) -> Sequence[ClusterPasswordRow]:
    """The newest first."""
    query = (
        select(ClusterPasswordRow)
        .where(col(ClusterPasswordRow.cluster_id) == place.id)
        .order_by(col(ClusterPasswordRow.account), col(ClusterPasswordRow.version).desc())
    )
    if account is not None:
        query = query.where(col(ClusterPasswordRow.account) == account)
    return (await session.exec(query)).all()


async def candidates(session: AsyncSession, row: HostRow, account: str) -> list[Candidate]:
    """See ClusterPasswords.candidates."""
    (one,) = await _held(session, account, col(HostRow.name) == row.name)
    place = await session.get_one(ClusterRow, row.cluster_id)
    return _candidates(one, await _versions(session, place, account))


def _candidates(one: "_Held", versions: Sequence[ClusterPasswordRow]) -> list[Candidate]:
    numbers = {version.secret_id: version.version for version in versions}
    of_state: dict[str, list[str | None]] = {state: [] for state in SecretState}
    for version in versions:
        of_state[version.state].append(version.secret_id)
    likely: dict[str | None, SecretState] = {}
    for state, ids in (
        (SecretState.STAGED, [*one.attempted, *of_state[SecretState.STAGED]]),
        (SecretState.CURRENT, [one.secret_id]),
        # Of the cluster, not of this host.
        (SecretState.STAGED, of_state[SecretState.CURRENT]),
        (SecretState.PREVIOUS, [one.former_id, *of_state[SecretState.PREVIOUS]]),
    ):
        for secret_id in ids:
            likely.setdefault(secret_id, state)
    likely.pop(None, None)
    if one.secret_id is not None:
        likely[one.secret_id] = SecretState.CURRENT
    return [
        Candidate(secret_id, state, numbers.get(secret_id), secret_id in one.attempted)
        for secret_id, state in likely.items()
        if secret_id is not None
    ]


@dataclass(frozen=True)
class _Held:
    """A host, what was proven of the account there, the password that it has, and those that were
    attempted since, the latest first. That it has: the proven one, or the one that Hostler knows
    for its login. `by_password`: it is what Hostler logs in with."""

    host: HostRow
    by_password: bool
    proven: HostPasswordRow | None
    secret_id: str | None
    attempted: tuple[str, ...]

    @property
    def former_id(self) -> str | None:
        return self.proven.former_secret_id if self.proven is not None else None


async def _held(session: AsyncSession, account: str, which: ColumnElement[bool]) -> Sequence[_Held]:
    """Of each of these hosts, by name."""
    hosts = (await session.exec(select(HostRow).where(which).order_by(col(HostRow.name)))).all()
    names = [host.name for host in hosts]
    of_host = {
        row.host: row
        for start in range(0, len(names), _AT_A_TIME)
        for row in await session.exec(
            select(HostPasswordRow).where(
                col(HostPasswordRow.host).in_(names[start : start + _AT_A_TIME]),
                col(HostPasswordRow.account) == account,
            )
        )
    }
    by_password = set(
        await session.exec(
            select(HostRow.name)
            .join(SecretVersionRow, col(SecretVersionRow.id) == col(HostRow.secret_id))
            .where(which, col(SecretVersionRow.kind) == _KIND)
        )
    )
    attempted: dict[str, list[str]] = {}
    attempts = (
        select(PasswordAttemptRow.host, PasswordAttemptRow.secret_id)
        .where(
            col(PasswordAttemptRow.account) == account,
            col(PasswordAttemptRow.host).in_(select(HostRow.name).where(which)),
        )
        .order_by(col(PasswordAttemptRow.at).desc())
    )
    for name, attempt in await session.exec(attempts):
        attempted.setdefault(name, []).append(attempt)
    held = []
    for host in hosts:
        proven = of_host.get(host.name)
        secret_id = proven.secret_id if proven is not None else None
        if proven is None and account == host.user:
            secret_id = host.secret_id if host.name in by_password else host.password_secret_id
        attempts_here = tuple(attempted.get(host.name, ()))
        held.append(_Held(host, host.name in by_password, proven, secret_id, attempts_here))
    return held


def _holding(one: _Held, rows: Sequence[ClusterPasswordRow]) -> HostPassword:
    numbers = {row.secret_id: row.version for row in rows if row.secret_id is not None}
    current = _in_state(rows, SecretState.CURRENT)
    # Of a cluster that has none yet, each host is, with a password of its own.
    wanted = current.secret_id if current is not None else None
    return HostPassword(
        host=one.host.name,
        secret=one.secret_id,
        version=numbers.get(one.secret_id or ""),
        former=one.former_id,
        attempted=one.attempted,
        stale=one.secret_id != wanted,
    )


def _in(place: ClusterRow) -> ColumnElement[bool]:
    return col(HostRow.cluster_id) == place.id


def _in_state(rows: Sequence[ClusterPasswordRow], state: SecretState) -> ClusterPasswordRow | None:
    return next((row for row in rows if row.state == state), None)


def _numbered(rows: Sequence[ClusterPasswordRow], version: int, cluster: str) -> ClusterPasswordRow:
    row = next((row for row in rows if row.version == version), None)
    if row is None:
        raise NotFound(f"There is no version {version} of the password of {cluster}.")
    return row


def _change(session: AsyncSession, row: ClusterPasswordRow, state: SecretState) -> None:
    row.state, row.changed_at = state, now()
    session.add(row)


def _require_free(
    row: ClusterPasswordRow, operation: str | None, takeover_from: str | None
) -> None:
    """Raises Conflict if the staged version is another operation's."""
    if row.operation not in (None, operation, takeover_from):
        raise Conflict(
            f"Version {row.version} of the password belongs to {row.operation}.",
            remedy="Let that change of passwords end first.",
            details={"operation": row.operation},
        )


async def _require_unused(
    session: AsyncSession,
    row: ClusterPasswordRow,
    left_out: Collection[str] = (),
) -> set[str]:
    """The hosts that have the staged version, or may. Raises Conflict if another one than those
    that are left out does."""
    names: set[str] = set()
    for table in (HostPasswordRow, PasswordAttemptRow):
        names |= {
            *await session.exec(select(table.host).where(col(table.secret_id) == row.secret_id))
        }
    if others := sorted(names - {*left_out}):
        raise Conflict(
            f"Version {row.version} of the password is on {_named(others)} already, or may be.",
            remedy="Find out by a login, or let that change of passwords end first.",
            details={"hosts": others},
        )
    return names


async def _stored(session: AsyncSession, changes: Sequence[_Change]) -> set[str]:
    """Ids of the passwords that are to be there, and are."""
    ids = {one.secret_id for one in changes}
    return {
        *await session.exec(select(SecretVersionRow.id).where(col(SecretVersionRow.id).in_(ids)))
    }


def _missing(change: _Change, hosts: Collection[str], stored: Collection[str]) -> NotFound | None:
    host = change.lease.host
    if host not in hosts:
        return NotFound(f"There is no host {host!r}.")
    if change.secret_id not in stored:
        return NotFound(f"There is no secret {change.secret_id!r}.")
    return None


async def _record(session: AsyncSession, account: str, secret_ids: Mapping[str, str]) -> None:
    """Hosts that are there have proven these passwords."""
    for held in await _held(session, account, col(HostRow.name).in_(secret_ids)):
        row, secret_id = held.host, secret_ids[held.host.name]
        proven = held.proven or HostPasswordRow(host=row.name, account=account, secret_id=secret_id)
        if held.secret_id != secret_id:
            proven.former_secret_id = held.secret_id
        proven.secret_id, proven.proven_at = secret_id, now()
        session.add(proven)
        if account == row.user:
            _log_in_with(session, held, secret_id)
    await session.exec(
        delete(PasswordAttemptRow).where(
            col(PasswordAttemptRow.host).in_(secret_ids),
            col(PasswordAttemptRow.account) == account,
        )
    )


async def _retire(session: AsyncSession, rows: Sequence[ClusterPasswordRow]) -> None:
    """Delete their ciphertexts, as far as no tombstone needs them."""
    secret_ids = {row.secret_id for row in rows if row.secret_id is not None}
    for row in rows:
        row.secret_id = None
        _change(session, row, SecretState.RETIRED)
    await session.flush()
    await session.exec(
        update(HostPasswordRow)
        .where(col(HostPasswordRow.former_secret_id).in_(secret_ids))
        .values(former_secret_id=None)
    )
    await _discard(session, secret_ids)


async def _retire_previous(
    session: AsyncSession,
    held: Sequence[_Held],
    rows: Sequence[ClusterPasswordRow],
    *,
    but: ClusterPasswordRow | None,
) -> list[int]:
    """Those that no host may have, or may have to be put back to; their numbers."""
    staged = _in_state(rows, SecretState.STAGED)
    in_use = {secret_id for one in held for secret_id in (one.secret_id, *one.attempted)}
    if staged is not None:
        in_use |= {one.former_id for one in held if one.secret_id == staged.secret_id}
    unused = [
        row
        for row in rows
        if row.state == SecretState.PREVIOUS and row.secret_id not in in_use and row is not but
    ]
    await _retire(session, unused)
    return [row.version for row in unused]


async def _forget_former(
    session: AsyncSession, held: Sequence[_Held], row: ClusterPasswordRow
) -> None:
    """On hosts that have `row`, what they had before is of no use any more."""
    former_ids = set()
    for one in held:
        if one.proven is not None and one.secret_id == row.secret_id and one.former_id is not None:
            former_ids.add(one.former_id)
            one.proven.former_secret_id = None
            session.add(one.proven)
    await session.flush()
    await _discard(session, former_ids)


def _log_in_with(session: AsyncSession, held: _Held, secret_id: str) -> None:
    row = held.host
    if held.by_password:
        row.secret_id = secret_id
    else:
        row.password_secret_id = secret_id
    row.updated_at = now()
    session.add(row)


async def _discard(session: AsyncSession, secret_ids: Collection[str]) -> None:
    ids = sorted(secret_ids)
    for start in range(0, len(ids), _AT_A_TIME):
        some = ids[start : start + _AT_A_TIME]
        await session.exec(
            delete(SecretVersionRow).where(col(SecretVersionRow.id).in_(some), unclaimed())
        )


def _named(hosts: Sequence[str]) -> str:
    more = f" and {len(hosts) - _MOST_NAMED} more" if len(hosts) > _MOST_NAMED else ""
    return f"{', '.join(hosts[:_MOST_NAMED])}{more}"


def _tell_stale(
    session: AsyncSession,
    account: str,
    version: int,
    hosts: Collection[str],
    left_out: Mapping[str, str],
    actor: str,
    what: str,
) -> None:
    for host in sorted({*hosts} & {*left_out}):
        add_event(
            session,
            "host.password_stale",
            f"host/{host}",
            f"was left out when version {version} of the password of {account} {what}: "
            f"{left_out[host]}",
            actor=actor,
        )


def _tell(
    session: AsyncSession,
    place: ClusterRow,
    account: str,
    message: str,
    actor: str,
    *,
    operation: str | None = None,
) -> None:
    add_event(
        session,
        "cluster.password",
        f"cluster/{place.name}",
        f"password of {account}: {message}",
        operation=operation,
        actor=actor,
    )
