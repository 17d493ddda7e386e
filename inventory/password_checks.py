"""What was seen of passwords on hosts, and which logins were refused there."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.passwords import HostPasswordReport, PasswordState, Proof
from contracts.secrets import SecretState
from contracts.states import HostStatus, ResourceState
from inventory.database import Database
from inventory.events import add_change
from inventory.host_keys import being_reinstalled
from inventory.models import (
    ClusterPasswordRow,
    ClusterRow,
    HostRow,
    PasswordCheckRow,
    now,
)
from inventory.topology import cluster_row
from inventory.upsert import insert_all_if_absent

# An addition or a removal is at work there, or there is nobody to ask.
_NOBODYS = (ResourceState.CREATING, ResourceState.ERROR, ResourceState.REMOVED)
_AT_A_TIME = 500  # of names in one statement


@dataclass(frozen=True)
class Refusals:
    """Logins in a row that a host has refused to an account."""

    number: int = 0
    last_at: datetime | None = None


class PasswordChecks:
    """Reads and writes them. A host that is not there (any more) has none."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_hosts(self, hosts: Sequence[str], account: str) -> dict[str, HostPasswordReport]:
        """The latest of each that has one."""
        found = {}
        async with self._database.reading() as session:
            for start in range(0, len(hosts), _AT_A_TIME):
                query = select(PasswordCheckRow).where(
                    col(PasswordCheckRow.host).in_(hosts[start : start + _AT_A_TIME]),
                    col(PasswordCheckRow.account) == account,
                )
                for row in await session.exec(query):
                    found[row.host] = _report(row)
        return found

    async def note(self, report: HostPasswordReport, *, operation: str) -> None:
        """What was seen now. An event says so where hosts stop agreeing, or agree again."""
        await self.note_all([report], operation=operation)

    async def note_all(self, reports: Sequence[HostPasswordReport], *, operation: str) -> None:
        """The same of many hosts: all or none."""
        async with self._database.writing() as session:
            for account in {report.account for report in reports}:
                seen = {report.host: report for report in reports if report.account == account}
                for row in await _locked(session, seen, account):
                    _note(session, row, seen[row.host], operation)

    async def note_tried(self, host: str, account: str) -> None:
        """It was to be brought up to date just now, which did not succeed."""
        async with self._database.writing() as session:
            for row in await _locked(session, [host], account):
                row.tried_at = now()
                session.add(row)

    async def refusals(self, host: str, account: str) -> Refusals:
        """Those since the last login that succeeded."""
        async with self._database.reading() as session:
            row = await session.get(PasswordCheckRow, (host, account))
        return Refusals(row.refused, row.refused_at) if row is not None else Refusals()

    async def count_refusal(self, host: str, account: str, *, times: int = 1) -> None:
        """So many more."""
        async with self._database.writing() as session:
            for row in await _locked(session, [host], account):
                row.refused, row.refused_at = row.refused + times, now()
                session.add(row)

    async def forget_refusals(self, host: str, account: str) -> None:
        """A login has succeeded, or so much time has passed that the host has forgotten them."""
        async with self._database.writing() as session:
            for row in await _locked(session, [host], account):
                row.refused, row.refused_at = 0, None
                session.add(row)

    async def clusters(self, account: str) -> list[str]:
        """Those that have a current password of the account, by name."""
        query = (
            select(ClusterRow.name)
            .join(ClusterPasswordRow, col(ClusterPasswordRow.cluster_id) == col(ClusterRow.id))
            .where(
                col(ClusterPasswordRow.account) == account,
                col(ClusterPasswordRow.state) == SecretState.CURRENT,
            )
            .order_by(col(ClusterRow.name))
        )
        async with self._database.reading() as session:
            return list(await session.exec(query))

    async def accounts(self) -> list[str]:
        """Those of which any cluster has a current password."""
        query = (
            select(ClusterPasswordRow.account)
            .where(col(ClusterPasswordRow.state) == SecretState.CURRENT)
            .distinct()
            .order_by(col(ClusterPasswordRow.account))
        )
        async with self._database.reading() as session:
            return list(await session.exec(query))

    async def in_service(self, cluster: str) -> list[str]:
        """Hosts of the cluster that may be asked, by name: whatever their status."""
        async with self._database.reading() as session:
            place = await cluster_row(session, cluster)
            query = (
                select(HostRow.name)
                .where(
                    col(HostRow.cluster_id) == place.id,
                    col(HostRow.resource_state).not_in(_NOBODYS),
                    ~being_reinstalled(),
                )
                .order_by(col(HostRow.name))
            )
            return list(await session.exec(query))

    async def due(self, hosts: Sequence[str], account: str, *, again_after: timedelta) -> list[str]:
        """Those of `hosts` that are `Up`, may be asked, and were not tried lately; since they came
        back, if they were away."""
        names: list[str] = []
        async with self._database.reading() as session:
            for start in range(0, len(hosts), _AT_A_TIME):
                rows = await session.exec(
                    select(HostRow, PasswordCheckRow)
                    .outerjoin(
                        PasswordCheckRow,
                        (col(PasswordCheckRow.host) == col(HostRow.name))
                        & (col(PasswordCheckRow.account) == account),
                    )
                    .where(
                        col(HostRow.name).in_(hosts[start : start + _AT_A_TIME]),
                        col(HostRow.status) == HostStatus.UP,
                        col(HostRow.resource_state).not_in(_NOBODYS),
                        ~being_reinstalled(),
                    )
                )
                for host, check in rows:
                    tried = check.tried_at if check is not None else None
                    back = host.status_since
                    if (
                        tried is None
                        or tried < now() - again_after
                        or (back is not None and tried < back)
                    ):
                        names.append(host.name)
        return sorted(names)


async def _locked(
    session: AsyncSession, hosts: Collection[str], account: str
) -> list[PasswordCheckRow]:
    """The row of each host that is there, made if there is none, by host."""
    names, rows = sorted(hosts), list[PasswordCheckRow]()
    for start in range(0, len(names), _AT_A_TIME):
        some = names[start : start + _AT_A_TIME]
        known = select(HostRow.name).where(col(HostRow.name).in_(some)).order_by(col(HostRow.name))
        await insert_all_if_absent(
            session,
            [PasswordCheckRow(host=host, account=account) for host in await session.exec(known)],
        )
        query = (
            select(PasswordCheckRow)
            .where(col(PasswordCheckRow.host).in_(some), col(PasswordCheckRow.account) == account)
            .order_by(col(PasswordCheckRow.host))
        )
        rows += (await session.exec(query.with_for_update())).all()
    return rows


def _note(
    session: AsyncSession, row: PasswordCheckRow, report: HostPasswordReport, operation: str
) -> None:
    before = PasswordState(row.state)
    row.state, row.version, row.reason = report.state, report.version, report.reason
    row.checked_at = now()
    if report.proof is not None:
        row.proof = report.proof
    if report.state is PasswordState.AGREES:
        row.tried_at = None
    session.add(row)
    # Of one that was never looked at nothing has changed if all is well.
    if before is not report.state and not (
        before is PasswordState.UNKNOWN and report.state is PasswordState.AGREES
    ):
        add_change(
            session,
            "host.password",
            f"host/{report.host}",
            before=before,
            after=report.state,
            reason=f"password of {report.account}"
            + (f": {report.reason}" if report.reason else ""),
            operation=operation,
            actor=operation,
        )


def _report(row: PasswordCheckRow) -> HostPasswordReport:
    return HostPasswordReport(
        host=row.host,
        account=row.account,
        state=PasswordState(row.state),
        version=row.version,
        proof=Proof(row.proof) if row.proof is not None else None,
        reason=row.reason,
        checked_at=row.checked_at,
    )
