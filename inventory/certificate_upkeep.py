"""What hosts have beside their certificates: revocation lists."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement
from sqlalchemy.orm import defer
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import Select

from contracts.certificate_upkeep import HostCrls
from contracts.certificates import concerns, unit_of
from contracts.leases import LeaseRef
from contracts.states import HostStatus, ResourceState
from inventory.certificates import event_subject
from inventory.database import Database
from inventory.events import add_event
from inventory.host_keys import in_reinstallation
from inventory.leases import verify_lease
from inventory.models import CertificateRow, CertificateUpkeepRow, ClusterRow, HostRow, now
from inventory.pages import page
from inventory.upsert import insert_if_absent

# An addition or a removal is at work there, or there is nobody to ask.
_NOBODYS = (ResourceState.CREATING, ResourceState.ERROR, ResourceState.REMOVED)

# Of ten thousand hosts.
HOST_IN_SHORT = (
    defer(HostRow.facts),  # type: ignore[arg-type] # a column at run time
    defer(HostRow.usage),  # type: ignore[arg-type] # a column at run time
    defer(HostRow.environment),  # type: ignore[arg-type] # a column at run time
)

Lists = Mapping[str, int]
"""Numbers of revocation lists, by authority ("root/1"); a host has those that concern it."""


class CertificateUpkeep:
    """Reads and writes it. A host that is not there (any more) has none."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def crls(
        self, newest: Lists, *, limit: int | None = None, after: str | None = None
    ) -> list[HostCrls]:
        """Which lists each host has to whom Hostler has given certificates, by name: at most
        `limit`, of names that come after `after`."""
        query = page(of_certified(), HostRow.name, limit=limit, after=after)
        async with self._database.reading() as session:
            lists = await _by_cluster(session, newest)
            return [
                _crls(host.name, upkeep, lists[host.cluster_id])
                for host, upkeep in await session.exec(query)
            ]

    async def without_crls(
        self, newest: Lists, *, again_after: timedelta
    ) -> tuple[list[str], dict[str, str]]:
        """Hosts that do not have these lists, by name. First those that are to get them now; then
        the others, with why not: they are not `Up`, or were to get the very same ones lately, in
        vain. Who was away since is no such."""
        due: list[str] = []
        not_now: dict[str, str] = {}
        query = of_certified().order_by(col(HostRow.name))
        async with self._database.reading() as session:
            lists = await _by_cluster(session, newest)
            for host, upkeep in await session.exec(query):
                wanted = lists[host.cluster_id]
                if _has(upkeep, wanted):
                    continue
                away = absence(host)
                if away is not None:
                    not_now[host.name] = away
                elif _is_due(upkeep, wanted, host.status_since, again_after):
                    due.append(host.name)
                else:
                    not_now[host.name] = upkeep.crls_problem if upkeep is not None else ""
        return due, not_now

    async def note_crls(self, lists: Lists, *, lease: LeaseRef) -> None:
        """The host goes by these lists. Raises LeaseLost."""
        async with self._database.writing() as session:
            await verify_lease(session, lease, hold=True)
            row = await upkeep_of(session, lease.host)
            if row is None:
                return
            if row.crls != dict(lists):
                add_event(
                    session,
                    "certificate.crl_delivered",
                    event_subject(lease.host),
                    ", ".join(f"{one}: number {number}" for one, number in sorted(lists.items())),
                    operation=lease.owner.workflow_id,
                    actor=lease.owner.workflow_id,
                )
            row.crls, row.crls_at = dict(lists), now()
            row.crls_tried, row.crls_tried_at, row.crls_problem = {}, None, ""
            session.add(row)

    async def note_crls_missing(
        self, host: str, lists: Lists, problem: str, *, operation: str
    ) -> None:
        """It was to get these lists, in vain; an event says so unless it was so before."""
        async with self._database.writing() as session:
            row = await upkeep_of(session, host)
            if row is None:
                return
            if not row.crls_problem:
                add_event(
                    session,
                    "certificate.crl_not_delivered",
                    event_subject(host),
                    problem,
                    operation=operation,
                    actor=operation,
                )
            row.crls_tried, row.crls_tried_at = dict(lists), now()
            row.crls_problem = problem
            session.add(row)


def may_be_asked() -> ColumnElement[bool]:
    """Of a host's row: whether it is a host."""
    return col(HostRow.resource_state).not_in(_NOBODYS)


def is_or_becomes_host() -> ColumnElement[bool]:
    """Of a host's row: whether it is a host, or an addition makes it one."""
    return may_be_asked() | (col(HostRow.resource_state) == ResourceState.CREATING)


def is_time(tried: datetime | None, back: datetime | None, again_after: timedelta) -> bool:
    """Whether what did not succeed on a host is tried again: after a while, or when it was away
    since. `back`: since when it is there."""
    return tried is None or tried < now() - again_after or (back is not None and tried < back)


def absence(host: HostRow) -> str | None:
    """Why it can't be reached; None: it is there."""
    if in_reinstallation(host.host_key_line):
        return "it is being re-installed"
    return None if host.status == HostStatus.UP else f"it is {host.status}"


def is_in_force() -> ColumnElement[bool]:
    """Of a certificate's row and a host's: whether that host goes by it, as Hostler has put it
    there. One of an earlier host of its name does not count."""
    return (col(CertificateRow.host) == col(HostRow.name)) & (
        col(CertificateRow.installed_at) > col(HostRow.created_at)
    )


def of_certified(*, added: bool = False) -> Select[HostRow, CertificateUpkeepRow]:
    """Hosts that go by certificates of Hostler's; `added`: also those that are just being added."""
    return (
        select(HostRow, CertificateUpkeepRow)
        .outerjoin(CertificateUpkeepRow, col(CertificateUpkeepRow.host) == col(HostRow.name))
        .where(
            is_or_becomes_host() if added else may_be_asked(),
            select(CertificateRow.request).where(is_in_force()).correlate(HostRow).exists(),
        )
        .options(*HOST_IN_SHORT)
    )


async def upkeep_of(session: AsyncSession, host: str) -> CertificateUpkeepRow | None:
    """The host's row, made if there is none; None without the host."""
    known = select(HostRow.id).where(col(HostRow.name) == host)
    if (await session.exec(known)).first() is None:
        return None
    await insert_if_absent(session, CertificateUpkeepRow(host=host))
    query = select(CertificateUpkeepRow).where(col(CertificateUpkeepRow.host) == host)
    return (await session.exec(query.with_for_update())).one()


async def _by_cluster(session: AsyncSession, newest: Lists) -> dict[int | None, Lists]:
    """Those that concern the hosts of each cluster, by the id of its row."""
    units = await session.exec(select(ClusterRow.id, ClusterRow.certificate_id))
    return {
        cluster: {
            name: number
            for name, number in newest.items()
            if concerns(name.rpartition("/")[0], unit_of(certificate_id))
        }
        for cluster, certificate_id in units
    }


def _has(row: CertificateUpkeepRow | None, newest: Lists) -> bool:
    """An external CA that was restored from a backup may have gone back to a lower number."""
    has = row.crls if row is not None else {}
    return all(has.get(authority) == number for authority, number in newest.items())


def _is_due(
    row: CertificateUpkeepRow | None, newest: Lists, back: datetime | None, again_after: timedelta
) -> bool:
    if row is None or row.crls_tried != dict(newest):
        return True
    return is_time(row.crls_tried_at, back, again_after)


def _crls(host: str, row: CertificateUpkeepRow | None, newest: Lists) -> HostCrls:
    if row is None:
        return HostCrls(host=host, lists={}, current=not newest)
    return HostCrls(
        host=host,
        lists=row.crls,
        current=_has(row, newest),
        delivered_at=row.crls_at,
        tried_at=row.crls_tried_at,
        problem=row.crls_problem,
    )
