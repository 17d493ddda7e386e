"""What refers to a zone or cluster by its name: it follows a new name, and goes when that goes.

Most refer by id. These are keyed by the name, three of them by foreign keys that can't be deferred.
"""

import json
from typing import Any, NamedTuple

from sqlmodel import SQLModel, col, delete, select, update
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.leases import Owner
from contracts.settings import SettingScope
from inventory.events import add_event
from inventory.models import (
    AffinityGroupRow,
    AffinityMemberRow,
    ClusterPasswordRow,
    ClusterRow,
    HostRow,
    LeaseRow,
    MaintenanceTicketRow,
    PodRow,
    SettingRow,
    VmPolicyRow,
    ZoneRow,
)

Place = ZoneRow | PodRow | ClusterRow

# By foreign keys: each table before those that it refers to.
_OF_CLUSTER: tuple[type[AffinityMemberRow | AffinityGroupRow | VmPolicyRow], ...] = (
    AffinityMemberRow,
    AffinityGroupRow,
    VmPolicyRow,
)


class ClusterHolder(NamedTuple):
    """An operation that works on a host of a cluster, and may carry the cluster's name with it."""

    host: str
    owner: Owner


async def cluster_holders(session: AsyncSession, cluster: ClusterRow) -> list[ClusterHolder]:
    """Who holds a lease of one of its hosts or a ticket of its queue, whether it still runs or
    not."""
    leases = (
        select(LeaseRow.host, LeaseRow.workflow_id, LeaseRow.first_run_id)
        .join(HostRow, col(HostRow.name) == col(LeaseRow.host))
        .where(col(HostRow.cluster_id) == cluster.id, col(LeaseRow.workflow_id).is_not(None))
    )
    tickets = select(
        MaintenanceTicketRow.host,
        MaintenanceTicketRow.workflow_id,
        MaintenanceTicketRow.first_run_id,
    ).where(col(MaintenanceTicketRow.cluster) == cluster.name)
    found = {
        ClusterHolder(host, Owner(workflow_id=workflow_id or "", first_run_id=first_run_id or ""))
        for rows in (await session.exec(leases), await session.exec(tickets))
        for host, workflow_id, first_run_id in rows
    }
    return sorted(found, key=lambda holder: (holder.host, holder.owner.workflow_id))


async def rename(session: AsyncSession, place: Place, name: str) -> None:
    """Give `place` that name, and to all that refers to the former one."""
    former = place.name
    # A foreign key lets no parent be renamed under its children: they are taken out meanwhile.
    taken = await _take_out(session, former) if isinstance(place, ClusterRow) else {}
    place.name = name
    session.add(place)
    await session.flush()
    for table, rows in reversed(taken.items()):
        session.add_all(table(**{**values, "cluster": name}) for values in rows)
        await session.flush()
    if isinstance(place, ClusterRow):
        await session.exec(
            update(MaintenanceTicketRow)
            .where(col(MaintenanceTicketRow.cluster) == former)
            .values(cluster=name)
        )
    if not isinstance(place, PodRow):
        await session.exec(
            update(SettingRow).where(*_settings_of(place, former)).values(scope_name=name)
        )


async def delete_references(session: AsyncSession, place: Place, actor: str) -> None:
    """Delete what refers to `place`, with an event for each setting that it had."""
    if isinstance(place, PodRow):
        return
    if isinstance(place, ClusterRow):
        await _take_out(session, place.name)
        # Their secrets are unclaimed then, but for those of tombstones.
        await session.exec(
            delete(ClusterPasswordRow).where(col(ClusterPasswordRow.cluster_id) == place.id)
        )
        await session.exec(
            delete(MaintenanceTicketRow).where(col(MaintenanceTicketRow.cluster) == place.name)
        )
    for row in await session.exec(select(SettingRow).where(*_settings_of(place, place.name))):
        value = json.dumps(row.value, ensure_ascii=False)
        message = f"{row.scope} {row.scope_name}: {value} -> deleted with it"
        add_event(session, "setting.changed", f"setting/{row.name}", message, actor=actor)
        await session.delete(row)


async def _take_out(
    session: AsyncSession, cluster: str
) -> dict[type[SQLModel], list[dict[str, Any]]]:
    """Delete the rows that refer to the cluster by foreign keys. What was in them, per table, in
    the order in which they had to go."""
    taken: dict[type[SQLModel], list[dict[str, Any]]] = {}
    for table in _OF_CLUSTER:
        of_cluster = col(table.cluster) == cluster
        rows = await session.exec(select(table).where(of_cluster))
        taken[table] = [row.model_dump() for row in rows]
        await session.exec(delete(table).where(of_cluster))
    return taken


def _settings_of(place: ZoneRow | ClusterRow, name: str) -> tuple[Any, Any]:
    scope = SettingScope.ZONE if isinstance(place, ZoneRow) else SettingScope.CLUSTER
    return col(SettingRow.scope) == scope, col(SettingRow.scope_name) == name
