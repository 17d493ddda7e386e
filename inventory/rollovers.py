"""Rollovers of certificate authorities: how far they are, and the steps that can't be taken back.

    next -> current      when all hosts trust it
    current -> retiring  at the same moment
    retiring -> leaving  when all hosts have certificates of the current one
    leaving -> withdrawn when no host trusts it any more

"All hosts" are those that go by certificates of the provider, or are about to, also while they are
being added, but for those that were left out. These are worked on while they are there, and not
waited for.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.certificates import (
    AuthorityState,
    is_qemu_authority,
    qemu_authority,
    unit_of,
)
from contracts.errors import Conflict, NotFound
from contracts.leases import LeaseScope
from contracts.rollover import RolloverProgress, RolloverStage, WaitingHost
from contracts.states import ResourceState
from inventory.authorities import issuing_authority
from inventory.certificate_upkeep import (
    absence,
    is_in_force,
    is_or_becomes_host,
    is_time,
    of_certified,
)
from inventory.certificates import event_subject
from inventory.database import Database
from inventory.events import add_event
from inventory.expiring_certificates import RENEWAL_AGAIN_AFTER
from inventory.models import (
    CertificateAuthorityRow,
    CertificateRow,
    CertificateUpkeepRow,
    ClusterRow,
    HostRow,
    LeaseRow,
    RolloverOmissionRow,
    now,
)
from inventory.trust import Issuer, issuers_of
from inventory.upsert import insert_if_absent

# More of them are left to the next look: the history of a round stays short.
_MOST_DUE = 50
_MOST_LISTED = 50
# A host that could not be told which CAs to trust is tried again after that, or when it was away.
_AGAIN_AFTER = timedelta(minutes=5)


@dataclass(frozen=True)
class _Authorities:
    """Those of one provider."""

    provider: str
    current: CertificateAuthorityRow
    rows: Sequence[CertificateAuthorityRow]

    def those(self, state: AuthorityState) -> list[CertificateAuthorityRow]:
        return [row for row in self.rows if row.state == state]

    @property
    def stage(self) -> RolloverStage:
        if self.those(AuthorityState.NEXT):
            return RolloverStage.TRUST
        if self.those(AuthorityState.RETIRING):
            return RolloverStage.CERTIFICATES
        if self.those(AuthorityState.LEAVING):
            return RolloverStage.WITHDRAWAL
        return RolloverStage.NONE

    @property
    def to(self) -> CertificateAuthorityRow:
        """The one that hosts are being brought to."""
        following = self.those(AuthorityState.NEXT)
        return following[0] if following else self.current


@dataclass(frozen=True)
class _Certified:
    """A host that goes by certificates, or is about to.

    Attributes:
        issuers: who has issued those that it goes by; `revoked`: that all of these are revoked, and
            none are on their way (`in_hand`).
    """

    row: HostRow
    upkeep: CertificateUpkeepRow | None
    issuers: frozenset[Issuer]
    in_hand: bool
    revoked: bool = False


class Rollovers:
    """Reads and writes them. All methods raise NotFound for a provider without a CA."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def progress(self, provider: str, *, busy: Collection[str] = ()) -> RolloverProgress:
        """Where the provider's rollover stands. Of those that are due, the `busy` come last."""
        async with self._database.reading() as session:
            known = await _authorities(session, provider)
            hosts = await _certified(session, known)
            left_out = await _left_out(session, known)
            clusters = await _clusters(session)
            cluster = await _cluster_of(session, provider)
            unmanaged = await _unmanaged(session, known)
        lacks, stage = _lacking(known), known.stage
        total = [host for host in hosts if _is_of(host, known)]
        lacking = [host for host in hosts if lacks(host)]
        due: list[_Certified] = []
        besides: list[_Certified] = []
        waiting: list[WaitingHost] = []
        omitted: list[WaitingHost] = []
        for host in lacking:
            name, why = host.row.name, _why_not_now(host, known)
            if (reason := _why_left_out(host, left_out)) is not None:
                omitted.append(WaitingHost(host=name, reason=reason))
                if why is None and not (host.revoked and _gets_certificates(host, known)):
                    besides.append(host)
            elif why is not None:
                waiting.append(WaitingHost(host=name, reason=why))
            else:
                due.append(host)
        behind = [host.row.name for host in hosts if _is_behind(host, known)]
        first = _in_turn(due, besides, busy)[:_MOST_DUE]
        return RolloverProgress(
            provider=provider,
            cluster=cluster,
            current=known.current.generation,
            newest=max(row.generation for row in known.rows),
            to=known.to.generation if stage is not RolloverStage.NONE else None,
            stage=stage,
            total=len(total),
            done=sum(not lacks(host) for host in total),
            due={host.row.name: clusters[host.row.cluster_id] for host in first},
            to_certify=tuple(host.row.name for host in first if _gets_certificates(host, known)),
            due_count=len(due),
            waiting=tuple(waiting[:_MOST_LISTED]),
            waiting_count=len(waiting),
            left_out=tuple(omitted[:_MOST_LISTED]),
            left_out_count=len(omitted),
            unmanaged=unmanaged,
            behind=tuple(behind[:_MOST_LISTED]),
            behind_count=len(behind),
        )

    async def require_can_be_left_out(self, host: str) -> None:
        """Raises NotFound."""
        async with self._database.reading() as session:
            await _require_host(session, host)

    async def leave_out(
        self, provider: str, host: str, reason: str, *, operation: str, actor: str
    ) -> None:
        """The rollover does not wait for it. May be called many times. Raises NotFound; Conflict
        without a rollover."""
        async with self._database.writing() as session:
            known = await _authorities(session, provider)
            if known.stage is RolloverStage.NONE:
                raise Conflict(f"The CA of {provider} is not being replaced.")
            await _require_host(session, host)
            row = RolloverOmissionRow(
                provider=provider, generation=known.to.generation, host=host, reason=reason
            )
            if await insert_if_absent(session, row):
                add_event(
                    session,
                    "ca.rollover_left_out",
                    event_subject(host),
                    f"the rollover of {provider} to generation {known.to.generation} does not "
                    f"wait for it: {reason}",
                    operation=operation,
                    actor=actor,
                )

    async def begin_issuing(self, provider: str, *, operation: str) -> bool:
        """The next authority issues from now on, unless a host does not trust it; whether it does.
        No effect if it does already."""
        async with self._database.writing() as session:
            await issuing_authority(session, provider, lock=True)
            known = await _authorities(session, provider)
            if known.stage is not RolloverStage.TRUST:
                return True
            if await self._is_held_up(session, known):
                return False
            former, new = known.current, known.to
            former.state, new.state = AuthorityState.RETIRING, AuthorityState.CURRENT
            session.add_all((former, new))
            _tell(session, "ca.issuer_changed", new, "issues from now on", operation)
            return True

    async def withdraw(self, provider: str, *, operation: str) -> bool:
        """The former authority is to be trusted no more, unless a host has certificates of it;
        whether that is so. No effect if it is so already."""
        return await self._advance(
            provider,
            RolloverStage.CERTIFICATES,
            AuthorityState.RETIRING,
            AuthorityState.LEAVING,
            "is to be trusted no more",
            operation,
        )

    async def end(self, provider: str, *, operation: str) -> bool:
        """The former authority is gone, unless a host still trusts it; whether that is so. No
        effect if it is so already."""
        return await self._advance(
            provider,
            RolloverStage.WITHDRAWAL,
            AuthorityState.LEAVING,
            AuthorityState.WITHDRAWN,
            "is trusted by no host any more",
            operation,
        )

    async def drop_next(self, provider: str, *, operation: str) -> bool:
        """The next authority does not come, unless it issues already; whether the newest one is
        such a one, also if it was dropped before. Hosts trust it no more once they are told."""
        async with self._database.writing() as session:
            await issuing_authority(session, provider, lock=True)
            known = await _authorities(session, provider)
            if known.stage is not RolloverStage.TRUST:
                newest = max(known.rows, key=lambda row: row.generation)
                return newest.state == AuthorityState.WITHDRAWN
            dropped = known.to
            dropped.state = AuthorityState.WITHDRAWN
            session.add(dropped)
            _tell(session, "ca.next_dropped", dropped, "does not come", operation)
            return True

    async def _advance(
        self,
        provider: str,
        stage: RolloverStage,
        state: AuthorityState,
        following: AuthorityState,
        said: str,
        operation: str,
    ) -> bool:
        async with self._database.writing() as session:
            await issuing_authority(session, provider, lock=True)
            known = await _authorities(session, provider)
            if known.stage is not stage:
                return True
            if await self._is_held_up(session, known):
                return False
            for row in known.those(state):
                row.state = following
                session.add(row)
                _tell(session, f"ca.{following}", row, said, operation)
            return True

    async def _is_held_up(self, session: AsyncSession, known: _Authorities) -> bool:
        """Whether a host that is not left out is not through the stage."""
        left_out, lacks = await _left_out(session, known), _lacking(known)
        return any(
            lacks(host) and _why_left_out(host, left_out) is None
            for host in await _certified(session, known)
        )


async def _authorities(session: AsyncSession, provider: str) -> _Authorities:
    """The newest first. Raises NotFound."""
    query = (
        select(CertificateAuthorityRow)
        .where(col(CertificateAuthorityRow.provider) == provider)
        .order_by(col(CertificateAuthorityRow.generation).desc())
        .execution_options(populate_existing=True)
    )
    rows = [*await session.exec(query)]
    current = next((row for row in rows if row.state == AuthorityState.CURRENT), None)
    if current is None:
        raise NotFound(
            f"The provider {provider!r} has no certificate authority yet.",
            remedy="It is made with the first certificates in its cluster: see `hostler cert "
            "provision`."
            if is_qemu_authority(provider)
            else "Have it made with `hostler ca create`.",
        )
    return _Authorities(provider, current, rows)


async def _certified(session: AsyncSession, known: _Authorities) -> list[_Certified]:
    """Hosts that go by certificates of the provider, or are about to go by some of a former
    authority, by name."""
    # In this order, as statements of their own: on PostgreSQL, each one sees what was committed
    # before it began (READ COMMITTED). A provisioning that ends between them is found by both; the
    # other way around, by none.
    in_hand = await _in_hand(session, known)
    issuers = await issuers_of(session)
    valid = await _with_valid_ones(session)
    found = [
        _Certified(
            row,
            upkeep,
            frozenset(issuers.get(row.name, ())),
            row.name in in_hand,
            revoked=row.name not in valid | in_hand,
        )
        for row, upkeep in await session.exec(of_certified(added=True))
        if any(provider == known.provider for provider, _ in issuers.get(row.name, ()))
    ]
    others = in_hand - {one.row.name for one in found}
    if others:
        query = select(HostRow).where(is_or_becomes_host(), col(HostRow.name).in_(others))
        found += [_Certified(row, None, frozenset(), True) for row in await session.exec(query)]
    return sorted(found, key=lambda one: one.row.name)


async def _in_hand(session: AsyncSession, known: _Authorities) -> set[str]:
    """Hosts whose lease is held by a run that has certificates of a former authority which it may
    have them go by yet: a provisioning, or who has it provide the host in their own lease."""
    query = (
        select(CertificateRow.host)
        .join(
            LeaseRow,
            (col(LeaseRow.host) == col(CertificateRow.host))
            # Of that very run: certificates of earlier ones were replaced.
            & (col(CertificateRow.request).contains(col(LeaseRow.first_run_id))),
        )
        .where(
            col(LeaseRow.scope) == LeaseScope.TRUST,
            col(CertificateRow.provider) == known.provider,
            col(CertificateRow.generation) != known.current.generation,
            col(CertificateRow.installed_at).is_(None),
            col(CertificateRow.revoked_at).is_(None),
            col(CertificateRow.not_after) > now(),
        )
        .distinct()
    )
    return {host for host in await session.exec(query) if host is not None}


async def _with_valid_ones(session: AsyncSession) -> set[str]:
    """Hosts that go by a certificate that is not revoked."""
    query = (
        select(HostRow.name)
        .join(CertificateRow, is_in_force())
        .where(col(CertificateRow.revoked_at).is_(None))
        .distinct()
    )
    return {*(await session.exec(query))}


async def _require_host(session: AsyncSession, host: str) -> None:
    """Raises NotFound unless it is a host, or is being added."""
    query = select(HostRow.id).where(col(HostRow.name) == host, is_or_becomes_host())
    if (await session.exec(query)).first() is None:
        raise NotFound(
            f"There is no host {host!r} that certificates are issued for.",
            remedy="See `hostler host list`.",
        )


async def _left_out(session: AsyncSession, known: _Authorities) -> dict[str, str]:
    query = (
        select(RolloverOmissionRow.host, RolloverOmissionRow.reason)
        .join(HostRow, col(HostRow.name) == col(RolloverOmissionRow.host))
        .where(
            col(RolloverOmissionRow.provider) == known.provider,
            col(RolloverOmissionRow.generation) == known.to.generation,
            col(RolloverOmissionRow.at) > col(HostRow.created_at),
        )
    )
    return dict((await session.exec(query)).all())


async def _clusters(session: AsyncSession) -> Mapping[int | None, str]:
    return {row.id: row.name for row in await session.exec(select(ClusterRow))}


async def _cluster_of(session: AsyncSession, provider: str) -> str | None:
    """Whose QEMUs it certifies, if it is such a provider."""
    query = select(ClusterRow.name, ClusterRow.certificate_id)
    return next(
        (
            name
            for name, certificate_id in await session.exec(query)
            if qemu_authority(unit_of(certificate_id)) == provider
        ),
        None,
    )


async def _unmanaged(session: AsyncSession, known: _Authorities) -> int:
    """Valid certificates of what is to go that were signed for others to install."""
    goes = [row.generation for row in known.rows if row.generation != known.to.generation]
    query = (
        select(func.count())
        .select_from(CertificateRow)
        .where(
            col(CertificateRow.provider) == known.provider,
            col(CertificateRow.generation).in_(goes),
            col(CertificateRow.issued_by).startswith("signing/"),
            col(CertificateRow.revoked_at).is_(None),
            col(CertificateRow.not_after) > now(),
        )
    )
    return (await session.exec(query)).one()


def _is_of(host: _Certified, known: _Authorities) -> bool:
    return any(provider == known.provider for provider, _ in host.issuers)


def _lacking(known: _Authorities) -> Callable[[_Certified], bool]:
    """Whether a host is not through the stage."""
    stage, to = known.stage, known.to.generation
    leaving = {f"{row.provider}/{row.generation}" for row in known.those(AuthorityState.LEAVING)}

    def lacks(host: _Certified) -> bool:
        trusts = host.upkeep.trusts if host.upkeep is not None else []
        if stage is RolloverStage.TRUST:
            return _is_of(host, known) and f"{known.provider}/{to}" not in trusts
        if stage is RolloverStage.CERTIFICATES:
            return host.in_hand or any(
                provider == known.provider and generation != to
                for provider, generation in host.issuers
            )
        return stage is RolloverStage.WITHDRAWAL and bool(leaving & {*trusts})

    return lacks


def _in_turn(
    due: Sequence[_Certified], besides: Sequence[_Certified], busy: Collection[str]
) -> list[_Certified]:
    """Those that are waited for first, and of each cluster one after the other: so many of a
    cluster at a time are worked on. Who was busy is no hindrance to who was not."""
    places: Counter[tuple[bool, bool, int]] = Counter()
    keyed = []
    for later, hosts in ((False, due), (True, besides)):
        for host in hosts:
            group = host.row.name in busy, later, host.row.cluster_id
            keyed.append(((*group[:2], places[group], host.row.name), host))
            places[group] += 1
    return [host for _, host in sorted(keyed, key=lambda one: one[0])]


def _gets_certificates(host: _Certified, known: _Authorities) -> bool:
    """Of a host that is not through the stage: whether new certificates bring it on. In the last
    stage, they do where it still goes by some of what is leaving: its own issuer it has to trust.
    """
    if known.stage is not RolloverStage.WITHDRAWAL:
        return known.stage is RolloverStage.CERTIFICATES
    leaving = {(row.provider, row.generation) for row in known.those(AuthorityState.LEAVING)}
    return not leaving.isdisjoint(host.issuers)


def _is_behind(host: _Certified, known: _Authorities) -> bool:
    """Whether a rollover has ended without it."""
    gone = known.those(AuthorityState.WITHDRAWN)
    if known.stage is not RolloverStage.NONE:
        return False
    trusts = host.upkeep.trusts if host.upkeep is not None else []
    names = {f"{row.provider}/{row.generation}" for row in gone}
    issuers = {(row.provider, row.generation) for row in gone}
    return not (names.isdisjoint(trusts) and issuers.isdisjoint(host.issuers))


def _why_left_out(host: _Certified, left_out: Mapping[str, str]) -> str | None:
    """None: it is waited for."""
    name = host.row.name
    if name in left_out:
        return left_out[name]
    # Whoever has revoked them decides what comes in their place.
    return f"its certificates are revoked: hostler cert provision {name}" if host.revoked else None


def _why_not_now(host: _Certified, known: _Authorities) -> str | None:
    """Of a host that is not through the stage; None: it can be worked on."""
    if host.row.resource_state == ResourceState.CREATING:
        return "it is being added"
    away = absence(host.row)
    if away is not None:
        return away
    upkeep = host.upkeep
    if upkeep is None:
        return None
    if not _gets_certificates(host, known):
        if is_time(upkeep.trusts_tried_at, host.row.status_since, _AGAIN_AFTER):
            return None
        return upkeep.trusts_problem
    if is_time(upkeep.renewal_tried_at, host.row.status_since, RENEWAL_AGAIN_AFTER):
        return None
    hours = RENEWAL_AGAIN_AFTER.total_seconds() / 3600
    return (
        f"{upkeep.renewal_problem.rstrip('.')}. It is tried again {hours:.0f} hours after that, "
        f"when it was away, or at once by: hostler cert provision {host.row.name}"
    )


def _tell(
    session: AsyncSession, kind: str, row: CertificateAuthorityRow, said: str, operation: str
) -> None:
    add_event(
        session,
        kind,
        f"ca/{row.provider}",
        f"generation {row.generation}, {row.subject}, {said}",
        operation=operation,
        actor=operation,
    )
