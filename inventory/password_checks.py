"""What was seen of passwords on hosts, and which logins were refused there."""

from collections.abc import Sequence
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
from inventory.upsert import insert_if_absent

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
        async with self._database.writing() as session:
            row = await _locked(session, report.host, report.account)
            if row is None:
                return
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

    async def note_tried(self, host: str, account: str) -> None:
        """It was to be brought up to date just now, which did not succeed."""
        async with self._database.writing() as session:
            row = await _locked(session, host, account)
            if row is not None:
                row.tried_at = now()
                session.add(row)

    async def refusals(self, host: str, account: str) -> Refusals:
        """Those since the last login that succeeded."""
        async with self._database.reading() as session:
            row = await session.get(PasswordCheckRow, (host, account))
        return Refusals(row.refused, row.refused_at) if row is not None else Refusals()

    async def count_refusal(self, host: str, account: str) -> None:
        """One more."""
        async with self._database.writing() as session:
            row = await _locked(session, host, account)
            if row is not None:
                row.refused, row.refused_at = row.refused + 1, now()
                session.add(row)

    async def forget_refusals(self, host: str, account: str) -> None:
        """A login has succeeded, or so much time has passed that the host has forgotten them."""
        async with self._database.writing() as session:
            row = await _locked(session, host, account)
            if row is not None and row.refused:
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


async def _locked(session: AsyncSession, host: str, account: str) -> PasswordCheckRow | None:
    """The row, made if there is none; None without the host."""
    known = select(HostRow.id).where(col(HostRow.name) == host)
    if (await session.exec(known)).first() is None:
        return None
    await insert_if_absent(session, PasswordCheckRow(host=host, account=account))
    query = select(PasswordCheckRow).where(
        col(PasswordCheckRow.host) == host, col(PasswordCheckRow.account) == account
    )
    return (await session.exec(query.with_for_update())).one()


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
