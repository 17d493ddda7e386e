"""Out-of-band management: how hosts' BMCs are reached, where it is enabled, and their passwords."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from sqlalchemy import ColumnElement, and_, or_
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, delete, func, select, update
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.errors import AlreadyExists, Conflict, NotFound
from contracts.leases import LeaseRef, LeaseScope
from contracts.oobm import (
    DEFAULT_CIPHER_SUITE,
    DEFAULT_DRIVER,
    HostPower,
    Oobm,
    OobmSwitch,
    PowerProblem,
    endpoint,
)
from contracts.power import BmcPrivilege, PowerState
from contracts.states import ResourceState
from inventory.database import Database
from inventory.events import add_event
from inventory.leases import verify_lease
from inventory.models import (
    ClusterRow,
    HostRow,
    LeaseRow,
    OobmRow,
    PodRow,
    PowerCommandRow,
    SecretVersionRow,
    ZoneRow,
    now,
)
from inventory.secrets import unclaimed
from inventory.topology import cluster_row, zone_row

# What is known no more once a BMC is reached otherwise, or was not asked for a while.
_FORGOTTEN: Mapping[str, Any] = {
    "power_state": PowerState.UNKNOWN,
    "power_since": None,
    "problem": PowerProblem.NOT_ASKED,
    "reason": "",
    "observed_at": None,
    "fresh_until": None,
    "failures": 0,
    "retry_at": None,
}
# Those that change how the BMC is reached; the switch does not.
_CONNECTION = (
    *("driver", "address", "port", "user"),
    *("privilege", "cipher_suite", "certificate"),
)


@dataclass(frozen=True)
class Switches:
    """Where out-of-band management is enabled, of one host."""

    cluster: str
    zone: str
    host_enabled: bool
    cluster_enabled: bool
    zone_enabled: bool

    @property
    def disabled_by(self) -> tuple[str, ...]:
        """All that keep it from being in force."""
        switches = (
            ("host", self.host_enabled),
            (f"cluster {self.cluster}", self.cluster_enabled),
            (f"zone {self.zone}", self.zone_enabled),
        )
        return tuple(name for name, enabled in switches if not enabled)


@dataclass(frozen=True)
class BmcLogin:
    """What reaching a BMC takes, but for the passwords themselves. `answers`: it did when it was
    last asked, by this configuration. `disabled_by`: as in HostPower."""

    host: str
    cluster: str
    generation: int
    driver: str
    address: str
    port: int | None
    user: str
    privilege: BmcPrivilege
    cipher_suite: int | None
    certificate: str | None
    guid: str | None
    secret_id: str
    staged_secret_id: str | None
    answers: bool = False
    disabled_by: tuple[str, ...] = ()


class OobmConfigurations:
    """Reads and changes them. A change of how a BMC is reached forgets what was seen of it before,
    and whatever it is left alone for."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, host: str) -> Oobm | None:
        """The host's, or None."""
        async with self._database.reading() as session:
            found = (await session.exec(_with_switches(col(OobmRow.host) == host))).first()
            return oobm(*found) if found is not None else None

    async def get(self, host: str) -> Oobm:
        """Raises NotFound."""
        return await self.find(host) or _not_configured(host)

    async def login(self, host: str) -> BmcLogin:
        """How to log in to the host's BMC. Raises NotFound."""
        async with self._database.reading() as session:
            found = (await session.exec(_with_switches(col(OobmRow.host) == host))).first()
            return login_of(*found) if found is not None else _not_configured(host)

    async def require(self, hosts: Sequence[str], option: str) -> None:
        """Raises Conflict, which names the field `option` that needs it, unless all of these hosts
        have out-of-band management, enabled."""
        query = _with_switches(col(OobmRow.host).in_(hosts))
        async with self._database.reading() as session:
            found = {
                row.host: switches_of(row, cluster, zone).disabled_by
                for row, cluster, zone in await session.exec(query)
            }
        without = [host for host in hosts if host not in found]
        if without:
            raise Conflict(
                f"{option}: power is switched by out-of-band management, and there is none of "
                f"{', '.join(without)}.",
                remedy=f"Configure it with `hostler oobm configure {without[0]}`, or ask without "
                f"{option}.",
            )
        disabled = [f"of {host} (by {', '.join(found[host])})" for host in hosts if found[host]]
        if disabled:
            raise Conflict(
                f"{option}: power is switched by out-of-band management, and it is disabled: "
                f"{', '.join(disabled)}.",
                remedy="Enable it, for example with `hostler oobm enable HOST`, or ask without "
                f"{option}.",
            )

    async def configure(
        self,
        host: str,
        values: Mapping[str, Any],
        *,
        secret_id: str | None,
        replace: bool,
        actor: str,
    ) -> Oobm:
        """Set `values` (fields of OobmRow: `enabled` and what says how the BMC is reached) and, if
        given, the password. `replace`: what is not given gets its default; otherwise it stays.

        Raises NotFound (the host; without `replace`, its configuration), AlreadyExists (it is
        another host's BMC), Conflict (a change of its password is under way).
        """
        try:
            await self._configure(host, values, secret_id, replace, actor)
        except IntegrityError as error:
            raise AlreadyExists(
                f"Somebody else has configured the BMC of {host}, or at the same address, at this "
                "very moment.",
                remedy="Look what is configured there: hostler host list",
            ) from error.orig
        return await self.get(host)

    async def _configure(
        self,
        host: str,
        values: Mapping[str, Any],
        secret_id: str | None,
        replace: bool,
        actor: str,
    ) -> None:
        async with self._database.writing() as session:
            held = await _power_is_held(session, host)
            row = await _row(session, host, lock=True)
            if row is None:
                if not replace or secret_id is None:
                    await _require_host(session, host)
                    _not_configured(host)
                await _require_host(session, host)
                row = OobmRow(host=host, secret_id=secret_id, endpoint="", **values)
                row.endpoint = endpoint(row.driver, row.address, row.port)
                await _require_own(session, row)
                session.add(row)
                told = "configured"
            else:
                told = await _change(session, row, values, secret_id, replace=replace, held=held)
            if told:
                add_event(session, "oobm.configured", f"host/{host}", told, actor=actor)

    async def forget(self, host: str, *, actor: str) -> None:
        """Delete the host's configuration with its passwords. Raises NotFound, Conflict."""
        async with self._database.writing() as session:
            row = await _row(session, host, lock=True) or _not_configured(host)
            _require_settled(row)
            secret_ids = secrets_of(row)
            await session.delete(row)
            await session.exec(delete(PowerCommandRow).where(col(PowerCommandRow.host) == host))
            await session.flush()
            await _discard(session, secret_ids)
            add_event(session, "oobm.configured", f"host/{host}", "deleted", actor=actor)

    # --- switches -------------------------------------------------------------------------------

    async def cluster_switch(self, name: str) -> OobmSwitch:
        """Raises NotFound."""
        async with self._database.reading() as session:
            row = await cluster_row(session, name)
            return await _switch(session, row, col(HostRow.cluster_id) == row.id)

    async def zone_switch(self, name: str) -> OobmSwitch:
        """Raises NotFound."""
        async with self._database.reading() as session:
            row = await zone_row(session, name)
            return await _switch(session, row, _in_zone(row))

    async def set_cluster_switch(self, name: str, enabled: bool, *, actor: str) -> OobmSwitch:
        """No effect if it is so already. Raises NotFound."""
        async with self._database.writing() as session:
            row = await cluster_row(session, name, lock=True)
            await _set_switch(session, row, col(HostRow.cluster_id) == row.id, enabled, actor)
        return await self.cluster_switch(name)

    async def set_zone_switch(self, name: str, enabled: bool, *, actor: str) -> OobmSwitch:
        """No effect if it is so already. Raises NotFound."""
        async with self._database.writing() as session:
            row = await zone_row(session, name, lock=True)
            await _set_switch(session, row, _in_zone(row), enabled, actor)
        return await self.zone_switch(name)

    # --- another password -----------------------------------------------------------------------

    async def stage_password(self, host: str, secret_id: str, *, lease: LeaseRef) -> str:
        """Keep a new password beside the one that counts, unless one is there that was never
        proven; the id of the one that is to be proven. Raises NotFound, LeaseLost."""
        async with self._changing(host, lease) as (session, row):
            if row.staged_secret_id is None:
                row.staged_secret_id = secret_id
                # A look that goes by the old one alone may be refused from now on.
                row.generation += 1
                session.add(row)
            return row.staged_secret_id

    async def promote_password(self, host: str, *, lease: LeaseRef) -> None:
        """From now on the new password counts; the old one is deleted. No effect if there is none.
        Raises NotFound, LeaseLost."""
        async with self._changing(host, lease) as (session, row):
            if row.staged_secret_id is not None:
                await _promote(session, row, lease.owner.workflow_id)

    async def promote_found_password(self, host: str, staged: str, *, actor: str) -> bool:
        """The same without a lease, for whoever has logged in with the new password. Whether it was
        done: not if it is another one by now, or an operation works on the BMC. Raises NotFound."""
        async with self._database.writing() as session:
            held = await _power_is_held(session, host)
            row = await _row(session, host, lock=True) or _not_configured(host)
            if row.staged_secret_id != staged or held:
                return False
            await _promote(session, row, actor)
            return True

    async def drop_password(self, host: str, reason: str, *, lease: LeaseRef) -> None:
        """The BMC still takes the old password: the new one is deleted. No effect if there is none.
        Raises NotFound, LeaseLost."""
        async with self._changing(host, lease) as (session, row):
            staged, row.staged_secret_id = row.staged_secret_id, None
            if staged is None:
                return
            session.add(row)
            await session.flush()
            await _discard(session, {staged})
            message = f"the BMC keeps its old password: {reason}"
            _tell_password(session, host, message, lease.owner.workflow_id)

    @asynccontextmanager
    async def _changing(
        self, host: str, lease: LeaseRef
    ) -> AsyncIterator[tuple[AsyncSession, OobmRow]]:
        async with self._database.writing() as session:
            await verify_lease(session, lease, hold=True)
            yield session, await _row(session, host, lock=True) or _not_configured(host)


# --- rows ---------------------------------------------------------------------------------------


def in_force() -> ColumnElement[bool]:
    """Of rows joined by `with_places`: out-of-band management is enabled everywhere, and the host
    is not on its way out."""
    return and_(
        col(HostRow.resource_state) != ResourceState.REMOVED,
        col(OobmRow.enabled).is_(True),
        col(ClusterRow.oobm_enabled).is_(True),
        col(ZoneRow.oobm_enabled).is_(True),
    )


def not_changing() -> ColumnElement[bool]:
    """Of OobmRow: no operation gives the BMC another password, which counts the logins that are
    refused meanwhile."""
    held = select(LeaseRow.host).where(
        col(LeaseRow.host) == col(OobmRow.host),
        col(LeaseRow.scope) == LeaseScope.POWER,
        col(LeaseRow.workflow_id).is_not(None),
    )
    return or_(col(OobmRow.staged_secret_id).is_(None), ~held.exists())


def with_places(query: Any) -> Any:
    """`query`, which selects from OobmRow, joined with the host and what it is in."""
    return (
        query.join(HostRow, col(HostRow.name) == col(OobmRow.host))
        .join(ClusterRow, col(ClusterRow.id) == col(HostRow.cluster_id))
        .join(PodRow, col(PodRow.id) == col(ClusterRow.pod_id))
        .join(ZoneRow, col(ZoneRow.id) == col(PodRow.zone_id))
    )


def host_power(row: OobmRow, switches: Switches) -> HostPower:
    """What is shown of it."""
    disabled_by = switches.disabled_by
    if disabled_by:
        return HostPower(state=PowerState.DISABLED, disabled_by=disabled_by)
    state = PowerState(row.power_state)
    known = state in (PowerState.ON, PowerState.OFF)
    return HostPower(
        state=state,
        since=row.power_since,
        observed_at=row.observed_at,
        stale=known and (row.fresh_until is None or row.fresh_until < now()),
        problem=PowerProblem(row.problem) if row.problem is not None else None,
        reason=row.reason,
        failures=row.failures,
        next_try_at=row.retry_at,
    )


def oobm(row: OobmRow, cluster: ClusterRow, zone: ZoneRow) -> Oobm:
    """The row as a model."""
    return Oobm(
        host=row.host,
        enabled=row.enabled,
        driver=row.driver,
        address=row.address,
        port=row.port,
        user=row.user,
        privilege=BmcPrivilege(row.privilege),
        cipher_suite=row.cipher_suite,
        certificate=row.certificate,
        guid=row.guid,
        password_changing=row.staged_secret_id is not None,
        power=host_power(row, switches_of(row, cluster, zone)),
        updated_at=row.updated_at,
    )


def login_of(row: OobmRow, cluster: ClusterRow, zone: ZoneRow) -> BmcLogin:
    """The row as what reaching its BMC takes."""
    return BmcLogin(
        host=row.host,
        cluster=cluster.name,
        generation=row.generation,
        driver=row.driver,
        address=row.address,
        port=row.port,
        user=row.user,
        privilege=BmcPrivilege(row.privilege),
        cipher_suite=row.cipher_suite,
        certificate=row.certificate,
        guid=row.guid,
        secret_id=row.secret_id,
        staged_secret_id=row.staged_secret_id,
        answers=row.power_state != PowerState.UNKNOWN,
        disabled_by=switches_of(row, cluster, zone).disabled_by,
    )


def unconfigured(host: str, cluster: str) -> BmcLogin:
    """What a configuration has that says nothing."""
    return BmcLogin(
        host=host,
        cluster=cluster,
        generation=0,
        driver=DEFAULT_DRIVER,
        address="",
        port=None,
        user="",
        privilege=BmcPrivilege.ADMINISTRATOR,
        cipher_suite=DEFAULT_CIPHER_SUITE,
        certificate=None,
        guid=None,
        secret_id="",
        staged_secret_id=None,
    )


def switches_of(row: OobmRow, cluster: ClusterRow, zone: ZoneRow) -> Switches:
    """Where it is enabled."""
    return Switches(
        cluster=cluster.name,
        zone=zone.name,
        host_enabled=row.enabled,
        cluster_enabled=cluster.oobm_enabled,
        zone_enabled=zone.oobm_enabled,
    )


def secrets_of(row: OobmRow) -> set[str]:
    """Ids of its passwords."""
    ids = (row.secret_id, row.staged_secret_id)
    return {secret_id for secret_id in ids if secret_id is not None}


def _with_switches(*conditions: ColumnElement[bool]) -> Any:
    return with_places(select(OobmRow, ClusterRow, ZoneRow)).where(*conditions)


async def _row(session: AsyncSession, host: str, *, lock: bool = False) -> OobmRow | None:
    query = select(OobmRow).where(col(OobmRow.host) == host)
    return (await session.exec(query.with_for_update() if lock else query)).first()


async def _require_host(session: AsyncSession, host: str) -> None:
    query = select(HostRow.id).where(col(HostRow.name) == host)
    if (await session.exec(query.with_for_update(read=True, key_share=True))).first() is None:
        raise NotFound(
            f"There is no host {host!r}.", remedy="See `hostler host list` for those there are."
        )


async def _require_own(session: AsyncSession, row: OobmRow) -> None:
    """Raises AlreadyExists: whoever switches one of two hosts must not switch the other one."""
    query = select(OobmRow.host).where(
        col(OobmRow.host) != row.host, col(OobmRow.endpoint) == row.endpoint
    )
    with session.no_autoflush:
        other = (await session.exec(query.limit(1))).first()
    if other is not None:
        raise AlreadyExists(
            f"The BMC at {row.address} is that of {other}.",
            remedy=f"Give the address of the BMC of {row.host}; see `hostler oobm show {other}`.",
        )


async def _power_is_held(session: AsyncSession, host: str) -> bool:
    """Whether an operation works on the host's BMC; none begins before the transaction has ended.
    Before the row is locked, as by those operations."""
    query = select(LeaseRow.workflow_id).where(
        col(LeaseRow.host) == host, col(LeaseRow.scope) == LeaseScope.POWER
    )
    return (await session.exec(query.with_for_update(read=True))).first() is not None


def _not_configured(host: str) -> NoReturn:
    raise NotFound(
        f"{host} has no out-of-band management.",
        remedy=f"Configure it with `hostler oobm configure {host}`.",
    )


def _require_settled(row: OobmRow) -> None:
    """While two passwords are stored, only the operation that has stored the second one knows what
    to make of them."""
    if row.staged_secret_id is not None:
        raise Conflict(
            f"The password of the BMC of {row.host} is being changed, and which one it takes is "
            "not proven yet.",
            remedy=f"Let that end, or begin it again: hostler oobm change-password {row.host}",
        )


async def _change(
    session: AsyncSession,
    row: OobmRow,
    values: Mapping[str, Any],
    secret_id: str | None,
    *,
    replace: bool,
    held: bool,
) -> str:
    """What was changed, in words; "" if nothing was. `held`: an operation works on the BMC."""
    wanted = dict(values)
    if replace:
        wanted = {
            name: OobmRow.model_fields[name].get_default()
            for name in (*_CONNECTION, "enabled")
            if not OobmRow.model_fields[name].is_required()
        } | wanted
    changes = {name: value for name, value in wanted.items() if getattr(row, name) != value}
    told = [
        "another certificate"
        if name == "certificate"
        else f"{name.replace('_', ' ')} {_say(getattr(row, name))} -> {_say(value)}"
        for name, value in changes.items()
    ]
    former: set[str] = set()
    if secret_id is not None:
        told.append("another password")
    if secret_id is not None or any(name in changes for name in _CONNECTION):
        # A password that nobody could prove is settled by whoever says which one is right, but not
        # while the BMC may be taking it.
        if secret_id is None or held:
            _require_settled(row)
        if secret_id is not None:
            former = secrets_of(row)
            changes |= {"secret_id": secret_id, "staged_secret_id": None}
        changes |= {**_FORGOTTEN, "generation": row.generation + 1, "guid": None}
    elif changes.get("enabled"):
        changes |= _FORGOTTEN
    if not changes:
        return ""
    row.sqlmodel_update({**changes, "updated_at": now()})
    row.endpoint = endpoint(row.driver, row.address, row.port)
    await _require_own(session, row)
    session.add(row)
    await session.flush()
    await _discard(session, former)
    return ", ".join(told)


def _say(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


async def _discard(session: AsyncSession, secret_ids: set[str]) -> None:
    """Those that nobody else refers to."""
    await session.exec(
        delete(SecretVersionRow).where(col(SecretVersionRow.id).in_(secret_ids), unclaimed())
    )


async def _promote(session: AsyncSession, row: OobmRow, operation: str) -> None:
    former, row.secret_id = row.secret_id, row.staged_secret_id or row.secret_id
    row.staged_secret_id = None
    # It may have refused the former one meanwhile, and may refuse a look that still goes by it.
    row.generation += 1
    row.failures, row.retry_at, row.updated_at = 0, None, now()
    session.add(row)
    await session.flush()
    await _discard(session, {former})
    _tell_password(session, row.host, "the BMC has a new password", operation)


def _tell_password(session: AsyncSession, host: str, message: str, operation: str) -> None:
    add_event(
        session,
        "oobm.password",
        f"host/{host}",
        message,
        operation=operation,
        actor=operation,
    )


# --- switches of zones and clusters -------------------------------------------------------------


def _in_zone(zone: ZoneRow) -> ColumnElement[bool]:
    pods = select(PodRow.id).where(col(PodRow.zone_id) == zone.id)
    clusters = select(ClusterRow.id).where(col(ClusterRow.pod_id).in_(pods))
    return col(HostRow.cluster_id).in_(clusters)


def _below(hosts: ColumnElement[bool]) -> ColumnElement[bool]:
    return col(OobmRow.host).in_(select(HostRow.name).where(hosts))


async def _switch(
    session: AsyncSession, row: ClusterRow | ZoneRow, hosts: ColumnElement[bool]
) -> OobmSwitch:
    query = select(func.count()).select_from(OobmRow).where(_below(hosts))
    return OobmSwitch(
        name=row.name, enabled=row.oobm_enabled, hosts=(await session.exec(query)).one()
    )


async def _set_switch(
    session: AsyncSession,
    row: ClusterRow | ZoneRow,
    hosts: ColumnElement[bool],
    enabled: bool,
    actor: str,
) -> None:
    if row.oobm_enabled == enabled:
        return
    row.oobm_enabled = enabled
    session.add(row)
    if enabled:
        await session.exec(update(OobmRow).where(_below(hosts)).values(**_FORGOTTEN))
    kind = str(row.__tablename__)
    add_event(
        session,
        f"{kind}.oobm",
        f"{kind}/{row.name}",
        f"out-of-band management is {'enabled' if enabled else 'disabled'}",
        actor=actor,
    )
