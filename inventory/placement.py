"""Placement: host tags, VM policies and affinity groups, the operators' rules for evacuations.

They are read when an evacuation is planned; to change them moves no VM by itself.
"""

from collections.abc import Collection, Iterable
from typing import NoReturn

from sqlalchemy import ColumnElement
from sqlmodel import col, delete, select
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.errors import Conflict, NotFound
from contracts.evacuation import AffinityGroup, AffinityKind, VmPolicy
from contracts.validation import invalid_input
from inventory.database import Database
from inventory.events import add_event
from inventory.hosts import host_row
from inventory.models import (
    AffinityGroupRow,
    AffinityMemberRow,
    HostTagRow,
    VmPolicyRow,
    now,
)
from inventory.topology import cluster_row

_FEWEST_MEMBERS = 2


class Placement:
    """Reads and changes them. VMs are known by name, so a rule may be there before its VM is, and
    goes with the VM to any host of the cluster."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def set_host_tags(self, host: str, tags: Collection[str], *, actor: str) -> None:
        """Give the host exactly these tags: a VM whose policy asks for tags is only sent to a host
        that has all of them. Raises NotFound."""
        wanted = frozenset(tags)
        async with self._database.writing() as session:
            row = await host_row(session, host)
            tags_of_host = col(HostTagRow.host) == host
            current = frozenset(await session.exec(select(HostTagRow.tag).where(tags_of_host)))
            if current == wanted:
                return
            await session.exec(delete(HostTagRow).where(tags_of_host))
            session.add_all(HostTagRow(host=host, tag=tag) for tag in wanted)
            row.updated_at = now()
            session.add(row)
            message = f"{_listed(current)} -> {_listed(wanted)}"
            add_event(session, "host.tags", f"host/{host}", message, actor=actor)

    async def policy(self, cluster: str, vm: str) -> VmPolicy:
        """What was decided about the VM. Raises NotFound: there is no such cluster, or nothing was
        decided, and an evacuation may send the VM to any host that can run it."""
        async with self._database.reading() as session:
            await cluster_row(session, cluster)
            return _policy(await _policy_row(session, cluster, vm))

    async def policies(self, cluster: str, vms: Collection[str] | None = None) -> list[VmPolicy]:
        """Of all VMs of the cluster that have one, or of those among `vms`, by name. Raises
        NotFound."""
        query = (
            select(VmPolicyRow)
            .where(col(VmPolicyRow.cluster) == cluster)
            .order_by(col(VmPolicyRow.vm))
        )
        if vms is not None:
            query = query.where(col(VmPolicyRow.vm).in_(vms))
        async with self._database.reading() as session:
            await cluster_row(session, cluster)
            return [_policy(row) for row in await session.exec(query)]

    async def set_policy(self, cluster: str, policy: VmPolicy, *, actor: str) -> None:
        """Replace what was decided about the VM: `pinned` makes it a blocker of every evacuation of
        its host, `tags` narrow down its destinations. Raises NotFound."""
        async with self._database.writing() as session:
            await _lock_cluster(session, cluster)
            row = await session.get(VmPolicyRow, (cluster, policy.vm))
            if row is not None and _policy(row) == policy:
                return
            values = {**policy.model_dump(), "tags": sorted(policy.tags)}
            row = row or VmPolicyRow(cluster=cluster, vm=policy.vm)
            session.add(row.sqlmodel_update(values))
            add_event(
                session, "vm.policy", _vm_subject(cluster, policy.vm), _told(policy), actor=actor
            )

    async def delete_policy(self, cluster: str, vm: str, *, actor: str) -> None:
        """Let evacuations send the VM to any host that can run it. Raises NotFound."""
        async with self._database.writing() as session:
            await _lock_cluster(session, cluster)
            await session.delete(await _policy_row(session, cluster, vm))
            add_event(
                session, "vm.policy_deleted", _vm_subject(cluster, vm), "deleted", actor=actor
            )

    async def group(self, cluster: str, name: str) -> AffinityGroup:
        """Raises NotFound."""
        async with self._database.reading() as session:
            await cluster_row(session, cluster)
            return _find_group(await _groups(session, cluster), cluster, name)

    async def groups(self, cluster: str, vms: Collection[str] | None = None) -> list[AffinityGroup]:
        """All of the cluster, or those with a member among `vms`, by name. Raises NotFound."""
        async with self._database.reading() as session:
            await cluster_row(session, cluster)
            groups = await _groups(session, cluster)
        return [group for group in groups if vms is None or not group.members.isdisjoint(vms)]

    async def set_group(self, cluster: str, group: AffinityGroup, *, actor: str) -> None:
        """Create or replace a group: evacuations send the members of an affinity group to one host,
        those of an anti-affinity group to a different host each.

        Raises InvalidInput (a group of one says nothing), Conflict (with the cluster's other
        groups, two VMs would belong both together and apart), NotFound.
        """
        _check_members(group)
        async with self._database.writing() as session:
            await _lock_cluster(session, cluster)
            groups = await _groups(session, cluster)
            if group in groups:
                return
            _check_contradictions([one for one in groups if one.name != group.name] + [group])
            await session.exec(delete(AffinityMemberRow).where(*_members_of(cluster, group.name)))
            await session.merge(AffinityGroupRow(cluster=cluster, name=group.name, kind=group.kind))
            # A member refers to its group, which the session knows nothing of.
            await session.flush()
            session.add_all(
                AffinityMemberRow(cluster=cluster, affinity_group=group.name, vm=vm)
                for vm in group.members
            )
            add_event(
                session,
                "affinity_group.changed",
                _group_subject(cluster, group.name),
                f"{group.kind}: {_listed(group.members)}",
                actor=actor,
            )

    async def delete_group(self, cluster: str, name: str, *, actor: str) -> None:
        """Let evacuations send its members wherever their other rules allow. Raises NotFound."""
        async with self._database.writing() as session:
            await _lock_cluster(session, cluster)
            _find_group(await _groups(session, cluster), cluster, name)
            await session.exec(delete(AffinityMemberRow).where(*_members_of(cluster, name)))
            await session.exec(
                delete(AffinityGroupRow).where(
                    col(AffinityGroupRow.cluster) == cluster, col(AffinityGroupRow.name) == name
                )
            )
            add_event(
                session,
                "affinity_group.deleted",
                _group_subject(cluster, name),
                "deleted",
                actor=actor,
            )


async def _lock_cluster(session: AsyncSession, name: str) -> None:
    """One change at a time per cluster, so that none is checked against what another replaces.
    Raises NotFound."""
    await cluster_row(session, name, lock=True)


async def _policy_row(session: AsyncSession, cluster: str, vm: str) -> VmPolicyRow:
    """Raises NotFound."""
    row = await session.get(VmPolicyRow, (cluster, vm))
    return row or _missing(
        f"The VM {vm!r} of {cluster} has no policy.",
        f"See `hostler vm policy list {cluster}` for those that have one.",
    )


async def _groups(session: AsyncSession, cluster: str) -> list[AffinityGroup]:
    query = (
        select(AffinityGroupRow, AffinityMemberRow.vm)
        .join(AffinityMemberRow)
        .where(col(AffinityGroupRow.cluster) == cluster)
        .order_by(col(AffinityGroupRow.name))
    )
    kinds: dict[str, AffinityKind] = {}
    members: dict[str, set[str]] = {}
    for row, vm in await session.exec(query):
        kinds[row.name] = AffinityKind(row.kind)
        members.setdefault(row.name, set()).add(vm)
    return [
        AffinityGroup(name=name, kind=kind, members=frozenset(members[name]))
        for name, kind in kinds.items()
    ]


def _find_group(groups: Iterable[AffinityGroup], cluster: str, name: str) -> AffinityGroup:
    """Raises NotFound."""
    found = [group for group in groups if group.name == name]
    return (
        found[0]
        if found
        else _missing(
            f"There is no affinity group {name!r} in {cluster}.",
            f"See `hostler affinity list {cluster}` for those there are.",
        )
    )


def _missing(message: str, remedy: str) -> NoReturn:
    raise NotFound(message, remedy=remedy)


def _check_members(group: AffinityGroup) -> None:
    if len(group.members) < _FEWEST_MEMBERS:
        problem = {
            "loc": ("members",),
            "type": "too_short",
            "msg": f"must name at least {_FEWEST_MEMBERS} VMs",
        }
        raise invalid_input("AffinityGroup", [problem])


def _check_contradictions(groups: Collection[AffinityGroup]) -> None:
    """Raises Conflict if two VMs would belong both together and apart."""
    affinity = [group for group in groups if group.kind is AffinityKind.AFFINITY]
    bundles = [(frozenset({group.name}), group.members) for group in affinity]
    for apart in groups:
        if apart.kind is AffinityKind.AFFINITY:
            continue
        # Single groups first: an error that names two groups is easier to act on.
        for names, together in (*bundles, *_joined(bundles)):
            both = sorted(together & apart.members)
            if len(both) >= _FEWEST_MEMBERS:
                raise Conflict(
                    f"{_listed(both)} would belong on one host, by affinity ({_listed(names)}), "
                    f"and on different ones, by anti-affinity ({apart.name}).",
                    remedy="Take VMs out of one of these groups, or delete it, first.",
                    details={"groups": sorted({*names, apart.name}), "vms": both},
                )


_Bundle = tuple[frozenset[str], frozenset[str]]


def _joined(bundles: Iterable[_Bundle]) -> list[_Bundle]:
    """Names of groups and the VMs that these keep on one host: groups that share a VM share it."""
    joined: list[_Bundle] = []
    for names, members in bundles:
        others = []
        for other in joined:
            if other[1].isdisjoint(members):
                others.append(other)
            else:
                names, members = names | other[0], members | other[1]
        joined = [*others, (names, members)]
    return joined


def _members_of(cluster: str, group: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return (
        col(AffinityMemberRow.cluster) == cluster,
        col(AffinityMemberRow.affinity_group) == group,
    )


def _policy(row: VmPolicyRow) -> VmPolicy:
    return VmPolicy(vm=row.vm, pinned=row.pinned, reason=row.reason, tags=frozenset(row.tags))


def _told(policy: VmPolicy) -> str:
    """The policy as a line of the audit trail."""
    rules = "pinned" if policy.pinned else "not pinned"
    rules += f"; tags: {_listed(policy.tags)}"
    return f"{rules}; {policy.reason}" if policy.reason else rules


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _vm_subject(cluster: str, vm: str) -> str:
    return f"vm/{cluster}/{vm}"


def _group_subject(cluster: str, name: str) -> str:
    return f"affinity_group/{cluster}/{name}"
