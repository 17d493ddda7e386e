"""Hosts: what is known of them, and the one place where their states change."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from sqlalchemy import ColumnElement, func
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, delete, select, update
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.errors import AlreadyExists, Conflict, NotFound
from contracts.hosts import Host, HostFacts, HostUsage
from contracts.leases import LeaseRef
from contracts.settings import CA_ROOT_AUTH_STRICTNESS, SettingScope
from contracts.states import (
    HOST_STATUS_TRANSITIONS,
    HostStatus,
    ResourceState,
    TlsState,
    may_change_to,
)
from inventory.closings import untold
from inventory.database import Database
from inventory.events import add_change, add_event
from inventory.host_keys import in_reinstallation
from inventory.leases import verify_lease
from inventory.models import (
    CertificateUpkeepRow,
    ClusterRow,
    HostPasswordRow,
    HostRow,
    HostTagRow,
    OobmRow,
    PasswordAttemptRow,
    PasswordCheckRow,
    PodRow,
    RolloverOmissionRow,
    SecretVersionRow,
    SettingRow,
    ZoneRow,
    now,
)
from inventory.oobm import host_power, secrets_of, switches_of
from inventory.pages import page
from inventory.secrets import unclaimed
from inventory.topology import cluster_row

_IN_SERVICE = (ResourceState.ENABLED, ResourceState.DISABLED)
_WRITERS_RACING = 5


@dataclass(frozen=True)
class Login:
    """What reaching a host takes, but for the secret itself."""

    address: str
    port: int
    user: str
    host_key_line: str
    secret_id: str
    password_secret_id: str | None = None


class Hosts:
    """Reads and changes host rows. A state is written by compare-and-set against its transition
    table, with its event in the same transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, name: str) -> Host:
        """Raises NotFound."""
        host = await self.find(name)
        return host if host is not None else _missing(name)

    async def find(self, name: str) -> Host | None:
        """The host, or None."""
        found = await select_hosts(self._database, col(HostRow.name) == name)
        return found[0] if found else None

    async def find_at(self, address: str, ssh_port: int) -> Host | None:
        """The host that is there, or None."""
        found = await select_hosts(
            self._database,
            col(HostRow.address) == address,
            col(HostRow.ssh_port) == ssh_port,
        )
        return found[0] if found else None

    async def find_by_uuid(self, uuid: str) -> Host | None:
        """The host with that libvirt UUID, or None."""
        found = await select_hosts(self._database, col(HostRow.uuid) == uuid)
        return found[0] if found else None

    async def among(self, names: Collection[str]) -> Sequence[Host]:
        """Those of that name, by name; some hundreds at most."""
        return await select_hosts(self._database, col(HostRow.name).in_(names))

    async def count(self) -> int:
        """How many hosts there are."""
        async with self._database.reading() as session:
            return (await session.exec(select(func.count()).select_from(HostRow))).one()

    async def list(
        self,
        *,
        cluster: str | None = None,
        pod: str | None = None,
        zone: str | None = None,
        resource_state: ResourceState | None = None,
        status: HostStatus | None = None,
        tag: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> list[Host]:
        """Those that match all that is given, by name: at most `limit` of them, whose names come
        after `after`."""
        wanted = (
            (ClusterRow.name, cluster),
            (PodRow.name, pod),
            (ZoneRow.name, zone),
            (HostRow.resource_state, resource_state),
            (HostRow.status, status),
        )
        conditions = [col(column) == value for column, value in wanted if value is not None]
        if tag is not None:
            tagged = select(HostTagRow.host).where(col(HostTagRow.tag) == tag)
            conditions.append(col(HostRow.name).in_(tagged))
        return await select_hosts(self._database, *conditions, limit=limit, after=after)

    async def untold(self) -> Sequence[str]:
        """Those that are `Up` and are not known to have been told what is wanted now: to refuse VMs
        that were not there before, or to let them in. By name."""
        return await untold(self._database)

    async def login(self, name: str) -> "Login":
        """How to log in. Raises NotFound."""
        return _login(await self._row(name))

    async def logins(self, names: Collection[str]) -> dict[str, "Login"]:
        """The same of those hosts that are there; some hundreds at most."""
        query = select(HostRow).where(col(HostRow.name).in_(names))
        async with self._database.reading() as session:
            return {row.name: _login(row) for row in await session.exec(query)}

    async def register(
        self,
        *,
        name: str,
        cluster: str,
        address: str,
        ssh_port: int,
        user: str,
        secret_id: str,
        host_key_line: str,
        host_key_sha256: str,
        capacity_memory_mib: int | None,
        capacity_cpus: int | None,
        reserved_memory_mib: int,
        operation: str,
        actor: str,
        lease: LeaseRef | None = None,
    ) -> Host:
        """Write the row of a new host, `Creating`, while `lease` is held.

        One that is `Creating` already was left by an addition that ended: it gets the new values,
        and keeps a key of Hostler's that was staged, or is in use beside this very credential.
        Raises AlreadyExists (name, or address and port), Conflict (that addition was of another
        machine, on which something may be left), NotFound (cluster, secret), LeaseLost.
        """
        try:
            async with self._writing(lease) as session:
                if await session.get(SecretVersionRow, secret_id) is None:
                    raise NotFound(f"There is no secret {secret_id!r}.")
                row = await _find_row(session, name)
                if row is not None and row.resource_state != ResourceState.CREATING:
                    raise AlreadyExists(
                        f"There is a host {name!r} already.", remedy="Choose another name."
                    )
                if row is not None:
                    _require_same_machine(row, address, ssh_port, host_key_sha256)
                values: dict[str, Any] = {
                    "cluster_id": (await cluster_row(session, cluster, hold=True)).id,
                    "address": address,
                    "ssh_port": ssh_port,
                    "user": user,
                    "host_key_line": host_key_line,
                    "host_key_sha256": host_key_sha256,
                    "capacity_memory_mib": capacity_memory_mib,
                    "capacity_cpus": capacity_cpus,
                    "reserved_memory_mib": reserved_memory_mib,
                    "state_operation": operation,
                    "state_step": "register",
                }
                if row is None or row.password_secret_id != secret_id:
                    values |= {"secret_id": secret_id, "password_secret_id": None}
                session.add(row.sqlmodel_update(values) if row else HostRow(name=name, **values))
                await session.flush()
                add_change(
                    session,
                    "host.state",
                    _subject(name),
                    before=None,
                    after=ResourceState.CREATING,
                    reason=f"at {address} port {ssh_port}",
                    operation=operation,
                    actor=actor,
                )
        except IntegrityError as error:
            raise AlreadyExists(
                f"There is a host at {address} port {ssh_port} already.",
                remedy="See `hostler host list` for its name.",
            ) from error.orig
        return await self.get(name)

    async def forget(
        self, name: str, *, operation: str, actor: str, lease: LeaseRef | None = None
    ) -> None:
        """Delete a host that is `Creating`, with its tags and secrets; any other is left alone.
        Raises LeaseLost."""
        async with self._writing(lease) as session:
            row = await _find_row(session, name, lock=True)
            if row is None or row.resource_state != ResourceState.CREATING:
                return
            secret_ids = await secret_ids_of(session, row)
            await session.exec(delete(HostTagRow).where(col(HostTagRow.host) == name))
            for table in (
                HostPasswordRow,
                PasswordAttemptRow,
                PasswordCheckRow,
                CertificateUpkeepRow,
                RolloverOmissionRow,
            ):
                await session.exec(delete(table).where(col(table.host) == name))
            bmc = await session.get(OobmRow, name)
            if bmc is not None:
                await session.delete(bmc)
                await session.flush()
            await session.delete(row)
            await session.flush()
            await session.exec(
                delete(SecretVersionRow).where(
                    col(SecretVersionRow.id).in_(secret_ids), unclaimed()
                )
            )
            add_event(
                session,
                "host.forgotten",
                _subject(name),
                "its addition did not succeed",
                operation=operation,
                actor=actor,
            )

    async def change_state(
        self,
        name: str,
        *,
        expected: frozenset[ResourceState],
        target: ResourceState,
        operation: str,
        step: str,
        actor: str,
        reason: str,
        lease: LeaseRef | None = None,
    ) -> Host:
        """Make the resource state `target` if it is one of `expected` and the table allows it.

        Idempotent by (operation, step). A host that is `target` already, if that is expected, stays
        so and gets the event alone. Raises Conflict, NotFound, LeaseLost.
        """
        for _ in range(_WRITERS_RACING):
            async with self._writing(lease) as session:
                if await change_state(
                    session,
                    name,
                    expected=expected,
                    target=target,
                    operation=operation,
                    step=step,
                    actor=actor,
                    reason=reason,
                ):
                    break
        else:
            raise Conflict(f"The state of {name} keeps changing.", remedy="Try again.")
        return await self.get(name)

    async def set_status(
        self,
        name: str,
        status: HostStatus,
        *,
        actor: str,
        reason: str,
        operation: str | None = None,
        lease: LeaseRef | None = None,
    ) -> Host:
        """Record what is seen of the host; no effect if it is so already. Raises Conflict (not in
        the transition table), NotFound, LeaseLost."""
        async with self._writing(lease) as session:
            row = await host_row(session, name)
            current = HostStatus(row.status)
            if current is not status:
                if status not in HOST_STATUS_TRANSITIONS[current]:
                    raise Conflict(f"{name} is {current} and can't become {status}.")
                row.status, row.status_reason = status, reason
                row.status_since = row.updated_at = now()
                if status is HostStatus.UP:
                    # What it missed before is over: its next miss is a first one.
                    row.missed_checks = 0
                session.add(row)
                add_change(
                    session,
                    "host.status",
                    _subject(name),
                    before=current,
                    after=status,
                    reason=reason,
                    operation=operation,
                    actor=actor,
                )
        return await self.get(name)

    async def set_facts(
        self, name: str, facts: HostFacts, *, lease: LeaseRef | None = None
    ) -> None:
        """Record what the host says of itself. Raises AlreadyExists if another one has its UUID,
        LeaseLost."""
        try:
            async with self._writing(lease) as session:
                await session.exec(
                    update(HostRow)
                    .where(col(HostRow.name) == name)
                    .values(uuid=facts.uuid, facts=facts.model_dump(mode="json"), updated_at=now())
                )
        except IntegrityError as error:
            raise AlreadyExists(
                f"Another host has the libvirt UUID {facts.uuid} of {name}.",
                remedy="Is it the same machine? If it was cloned, set host_uuid in its "
                "/etc/libvirt/libvirtd.conf and restart libvirtd.",
            ) from error.orig

    async def want_fence(
        self, name: str, fence: str | None, generation: int, *, lease: LeaseRef | None = None
    ) -> None:
        """Record which fence the host is to have; a lower generation than the recorded one has no
        effect: its operation was taken over. Raises LeaseLost."""
        async with self._writing(lease) as session:
            await session.exec(
                update(HostRow)
                .where(col(HostRow.name) == name, col(HostRow.fence_generation) <= generation)
                .values(fence=fence, fence_generation=generation, updated_at=now())
            )

    async def set_tls(
        self, name: str, tls: TlsState, *, reason: str, operation: str, actor: str, lease: LeaseRef
    ) -> None:
        """Record how its libvirt goes by TLS; a secured one that has got new certificates stays so.
        May be called many times. Raises NotFound, LeaseLost."""
        async with self._writing(lease) as session:
            row = await host_row(session, name)
            before = TlsState(row.tls)
            if tls is before or (tls is TlsState.READY and before is TlsState.SECURED):
                return
            row.tls, row.updated_at = tls, now()
            session.add(row)
            add_event(
                session,
                "host.tls_changed",
                f"host/{name}",
                f"{before} -> {tls}: {reason}",
                operation=operation,
                actor=actor,
            )

    @asynccontextmanager
    async def _writing(self, lease: LeaseRef | None) -> AsyncIterator[AsyncSession]:
        """A transaction during which `lease`, if given, is and stays held."""
        async with self._database.writing() as session:
            if lease is not None:
                await verify_lease(session, lease, hold=True)
            yield session

    async def _row(self, name: str) -> HostRow:
        async with self._database.reading() as session:
            return await _find_row(session, name) or _missing(name)


async def change_state(
    session: AsyncSession,
    name: str,
    *,
    expected: frozenset[ResourceState],
    target: ResourceState,
    operation: str,
    step: str,
    actor: str,
    reason: str,
) -> bool:
    """The same as a part of a transaction. False: somebody else has just changed it."""
    row = await _find_row(session, name) or _missing(name)
    if (row.state_operation, row.state_step) == (operation, step):
        return True
    current = ResourceState(row.resource_state)
    _check_transition(name, current, expected, target)
    await _require_secured(session, row, current, target)
    written = await session.exec(
        update(HostRow)
        .where(
            col(HostRow.name) == name,
            col(HostRow.resource_state) == current,
            col(HostRow.state_operation) == row.state_operation,
            col(HostRow.state_step) == row.state_step,
        )
        .values(
            resource_state=target,
            state_operation=operation,
            state_step=step,
            state_before_maintenance=_before_maintenance(row, current, target),
            updated_at=now(),
        )
    )
    if written.rowcount == 0:
        return False
    add_change(
        session,
        "host.state",
        _subject(name),
        before=current,
        after=target,
        reason=reason,
        operation=operation,
        actor=actor,
    )
    return True


async def select_hosts(
    database: Database,
    *conditions: ColumnElement[bool],
    limit: int | None = None,
    after: str | None = None,
) -> list[Host]:
    """Those for which all conditions hold, by name: `limit` at the most, behind `after`."""
    query = (
        select(HostRow, ClusterRow, PodRow.name, ZoneRow)
        .join(ClusterRow, col(ClusterRow.id) == col(HostRow.cluster_id))
        .join(PodRow, col(PodRow.id) == col(ClusterRow.pod_id))
        .join(ZoneRow, col(ZoneRow.id) == col(PodRow.zone_id))
        .where(*conditions)
    )
    async with database.reading() as session:
        found = (await session.exec(page(query, HostRow.name, limit=limit, after=after))).all()
        names = [row.name for row, *_ in found]
        tags, bmcs = await _tags(session, names), await _bmcs(session, names)
    return [
        _host(*rows, bmc=bmcs.get(rows[0].name), tags=frozenset(tags[rows[0].name]))
        for rows in found
    ]


def _login(row: HostRow) -> "Login":
    return Login(
        address=row.address,
        port=row.ssh_port,
        user=row.user,
        host_key_line=row.host_key_line,
        secret_id=row.secret_id,
        password_secret_id=row.password_secret_id,
    )


async def host_row(session: AsyncSession, name: str) -> HostRow:
    """The row, locked until the transaction ends. Raises NotFound."""
    return await _find_row(session, name, lock=True) or _missing(name)


async def secret_ids_of(session: AsyncSession, row: HostRow) -> set[str]:
    """Ids of all that is stored for the host: its login, its passwords, those of its BMC."""
    ids = {row.secret_id, row.staged_key_id, row.password_secret_id}
    passwords = select(HostPasswordRow).where(col(HostPasswordRow.host) == row.name)
    for password in await session.exec(passwords):
        ids |= {password.secret_id, password.former_secret_id}
    attempts = select(PasswordAttemptRow.secret_id).where(col(PasswordAttemptRow.host) == row.name)
    ids |= {*await session.exec(attempts)}
    bmc = await session.get(OobmRow, row.name)
    own = {secret_id for secret_id in ids if secret_id is not None}
    return own | (secrets_of(bmc) if bmc is not None else set())


async def _find_row(session: AsyncSession, name: str, *, lock: bool = False) -> HostRow | None:
    query = select(HostRow).where(col(HostRow.name) == name)
    return (await session.exec(query.with_for_update() if lock else query)).first()


async def _tags(session: AsyncSession, hosts: Sequence[str]) -> Mapping[str, set[str]]:
    tags: dict[str, set[str]] = {host: set() for host in hosts}
    for row in await session.exec(select(HostTagRow).where(col(HostTagRow.host).in_(hosts))):
        tags[row.host].add(row.tag)
    return tags


async def _bmcs(session: AsyncSession, hosts: Sequence[str]) -> Mapping[str, OobmRow]:
    rows = await session.exec(select(OobmRow).where(col(OobmRow.host).in_(hosts)))
    return {row.host: row for row in rows}


def _require_same_machine(row: HostRow, address: str, port: int, host_key_sha256: str) -> None:
    if (row.address, row.ssh_port, row.host_key_sha256) != (address, port, host_key_sha256):
        raise Conflict(
            f"An addition of {row.name} at {row.address} port {row.ssh_port}, host key "
            f"{row.host_key_sha256}, was left half-way.",
            remedy="Add that one again, and cancel: nothing stays on it then. If it is lost: "
            f"hostler host remove {row.name} --forced --reason ...",
        )


def _missing(name: str) -> NoReturn:
    raise NotFound(
        f"There is no host {name!r}.", remedy="See `hostler host list` for those there are."
    )


async def _require_secured(
    session: AsyncSession, row: HostRow, current: ResourceState, target: ResourceState
) -> None:
    """Raises Conflict where only secured hosts are put into service. One that comes back from a
    maintenance was in service before."""
    if target is not ResourceState.ENABLED or row.tls == TlsState.SECURED:
        return
    if current not in (ResourceState.CREATING, ResourceState.DISABLED):
        return
    query = select(SettingRow.value).where(
        col(SettingRow.name) == CA_ROOT_AUTH_STRICTNESS.name,
        col(SettingRow.scope) == SettingScope.GLOBAL,
    )
    if (await session.exec(query)).first() is True:
        raise Conflict(
            f"{row.name} is not secured, and {CA_ROOT_AUTH_STRICTNESS.name} lets no such host into "
            "service.",
            remedy="hostler cert secure CLUSTER, then enable it.",
        )


def _check_transition(
    name: str,
    current: ResourceState,
    expected: frozenset[ResourceState],
    target: ResourceState,
) -> None:
    if current not in expected:
        raise Conflict(
            f"{name} is {current}; only from {', '.join(sorted(expected))} can it become {target}."
        )
    if current is not target and not may_change_to(current, target):
        raise Conflict(f"{name} is {current} and can't become {target}.")


def _before_maintenance(row: HostRow, current: ResourceState, target: ResourceState) -> str | None:
    """What leaving the maintenance gives back: remembered on the way in, forgotten on the way
    out."""
    if target in _IN_SERVICE:
        return None
    return current if current in _IN_SERVICE else row.state_before_maintenance


def _subject(name: str) -> str:
    return f"host/{name}"


def _host(
    row: HostRow,
    cluster: ClusterRow,
    pod: str,
    zone: ZoneRow,
    *,
    bmc: OobmRow | None,
    tags: frozenset[str],
) -> Host:
    return Host(
        name=row.name,
        zone=zone.name,
        pod=pod,
        cluster=cluster.name,
        address=row.address,
        ssh_port=row.ssh_port,
        user=row.user,
        host_key_sha256=row.host_key_sha256,
        being_reinstalled=in_reinstallation(row.host_key_line),
        resource_state=ResourceState(row.resource_state),
        state_before_maintenance=(
            ResourceState(row.state_before_maintenance) if row.state_before_maintenance else None
        ),
        status=HostStatus(row.status),
        status_reason=row.status_reason,
        status_since=row.status_since,
        checked_at=row.checked_at,
        missed_checks=row.missed_checks,
        read_at=row.read_at,
        peers_reach=row.peers_reach,
        closed=row.closed,
        usage=HostUsage.model_validate(row.usage) if row.usage is not None else None,
        power=(host_power(bmc, switches_of(bmc, cluster, zone)) if bmc is not None else None),
        fence=row.fence,
        fence_generation=row.fence_generation,
        facts=HostFacts.model_validate(row.facts) if row.facts is not None else None,
        capacity_memory_mib=row.capacity_memory_mib,
        capacity_cpus=row.capacity_cpus,
        reserved_memory_mib=row.reserved_memory_mib,
        tags=tags,
        secured=TlsState(row.tls) is TlsState.SECURED,
        tls=TlsState(row.tls),
        tls_again=TlsState(row.tls_again) if row.tls_again is not None else None,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
