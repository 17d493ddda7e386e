"""The operator's settings: what is in force where, and every change of it."""

import json
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from sqlalchemy import tuple_
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.errors import Conflict, InvalidInput
from contracts.settings import (
    CA_ROOT_AUTH_STRICTNESS,
    NO_SETTINGS,
    SETTINGS,
    ResolvedSettings,
    Setting,
    SettingScope,
    SettingValue,
    contradiction,
)
from contracts.states import ResourceState, TlsState
from contracts.validation import invalid_input
from inventory.database import Database
from inventory.events import add_event
from inventory.models import HostRow, PodRow, SettingRow, ZoneRow
from inventory.topology import cluster_row, zone_row
from inventory.upsert import insert_or_replace

_DEFAULT = "default"
_MOST_NAMED = 50
_NOT_IN_SERVICE = (ResourceState.CREATING, ResourceState.DISABLED, ResourceState.ERROR)


class UnknownSetting(InvalidInput):
    """There is no setting of that name."""

    http_status = 404


@dataclass(frozen=True)
class _Place:
    """Where a setting may be set. `name` is "" for the global scope."""

    scope: SettingScope
    name: str = ""

    def __str__(self) -> str:
        return f"{self.scope} {self.name}".rstrip()


class OperatorSettings:
    """Resolves, explains and changes them; `contracts.settings` says which there are.

    Each method is about a cluster, a zone or, with neither, all that has no setting of its own.
    Each raises NotFound for a cluster or zone that is not there, InvalidInput if both are given.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def resolve(
        self, cluster: str | None = None, zone: str | None = None
    ) -> ResolvedSettings:
        """What is in force there: the cluster's, else its zone's, else the global one."""
        return ResolvedSettings(
            {row.name: row.value for row in await self._read(cluster=cluster, zone=zone)}
        )

    async def explain_all(
        self, *, cluster: str | None = None, zone: str | None = None
    ) -> list[SettingValue]:
        """All settings by name, with where their values come from."""
        rows = {row.name: row for row in await self._read(cluster=cluster, zone=zone)}
        return [_explain(setting, rows.get(name)) for name, setting in SETTINGS.items()]

    async def explain(
        self, name: str, *, cluster: str | None = None, zone: str | None = None
    ) -> SettingValue:
        """One setting. Raises UnknownSetting."""
        setting = _known(name)
        rows = await self._read(name, cluster=cluster, zone=zone)
        return _explain(setting, rows[-1] if rows else None)

    async def set(
        self,
        name: str,
        value: object,
        *,
        cluster: str | None = None,
        zone: str | None = None,
        actor: str,
    ) -> SettingValue:
        """Set it there; no effect if it is so already.

        Raises UnknownSetting, InvalidInput (the value, or a scope that the setting does not have);
        Conflict, if hosts are not as it asks for.
        """
        setting = _known(name)
        new = _validated(setting, value)
        async with self._database.writing() as session:
            places = await _places(session, cluster, zone, hold=True)
            place = places[-1]
            _check_scope(setting, place)
            rows = await _rows(session, places, name, lock=True)
            if not (_is_of(rows, place) and rows[-1].value == new):
                row = SettingRow(
                    scope=place.scope, scope_name=place.name, name=name, value=new, updated_by=actor
                )
                if setting is CA_ROOT_AUTH_STRICTNESS and new:
                    await _require_all_secured(session)
                await insert_or_replace(session, row)
                await _require_consistent(session, places, setting)
                change = f"{_say(setting, rows, place)} -> {_json(new)}"
                _add_event(session, name, place, change, actor)
        return await self.explain(name, cluster=cluster, zone=zone)

    async def unset(
        self, name: str, *, cluster: str | None = None, zone: str | None = None, actor: str
    ) -> SettingValue:
        """Back to what is inherited there; no effect if it is so already.

        Raises UnknownSetting, InvalidInput (a scope that the setting does not have).
        """
        setting = _known(name)
        async with self._database.writing() as session:
            places = await _places(session, cluster, zone, hold=True)
            place = places[-1]
            _check_scope(setting, place)
            rows = await _rows(session, places, name, lock=True)
            if _is_of(rows, place):
                await session.delete(rows[-1])
                await _require_consistent(session, places, setting)
                change = f"{_say(setting, rows, place)} -> {_say(setting, rows[:-1], place)}"
                _add_event(session, name, place, change, actor)
        return await self.explain(name, cluster=cluster, zone=zone)

    async def _read(
        self, name: str | None = None, *, cluster: str | None, zone: str | None
    ) -> list[SettingRow]:
        async with self._database.reading() as session:
            return await _rows(session, await _places(session, cluster, zone), name)


def _known(name: str) -> Setting[Any]:
    if name in SETTINGS:
        return SETTINGS[name]
    if name in NO_SETTINGS:
        raise UnknownSetting(f"{name} is not a setting.", remedy=NO_SETTINGS[name])
    alike = get_close_matches(name, SETTINGS, n=3)
    guess = f"Is {' or '.join(alike)} meant? " if alike else ""
    raise UnknownSetting(
        f"There is no setting {name!r}.",
        remedy=f"{guess}See `hostler setting list` for those there are.",
    )


def _validated(setting: Setting[Any], value: object) -> Any:
    """As it is stored. Raises InvalidInput."""
    try:
        return setting.dump(setting.parse(value))
    except ValidationError as error:
        problem = {"loc": ("value",), "type": "setting", "msg": setting.problem(error)}
        raise invalid_input(f"setting {setting.name}", [problem]) from None


def _check_scope(setting: Setting[Any], place: _Place) -> None:
    if place.scope in setting.scopes:
        return
    scopes = " or ".join(_scopes(setting))
    raise InvalidInput(
        f"The setting {setting.name} can't be set at the scope {place.scope}, only at {scopes}.",
        remedy=f"Name a {scopes}.",
    )


async def _places(
    session: AsyncSession, cluster: str | None, zone: str | None, *, hold: bool = False
) -> list[_Place]:
    """The place that is asked about and those that it inherits from, the widest first; `hold`: it
    stays, under that name, until the transaction ends."""
    if cluster is not None and zone is not None:
        problem = {"loc": ("zone",), "type": "exclusive", "msg": "not together with cluster"}
        raise invalid_input("Setting", [problem])
    places = [_Place(SettingScope.GLOBAL)]
    if zone is not None:
        places.append(_Place(SettingScope.ZONE, (await zone_row(session, zone, hold=hold)).name))
    if cluster is not None:
        pod_id = (await cluster_row(session, cluster, hold=hold)).pod_id
        query = select(ZoneRow.name).join(PodRow).where(col(PodRow.id) == pod_id)
        places.append(_Place(SettingScope.ZONE, (await session.exec(query)).one()))
        places.append(_Place(SettingScope.CLUSTER, cluster))
    return places


async def _rows(
    session: AsyncSession, places: list[_Place], name: str | None = None, *, lock: bool = False
) -> list[SettingRow]:
    """What is stored at `places`, in their order; of one setting, or of all."""
    query = select(SettingRow).where(
        tuple_(col(SettingRow.scope), col(SettingRow.scope_name)).in_(
            [(place.scope, place.name) for place in places]
        )
    )
    if name is not None:
        query = query.where(col(SettingRow.name) == name)
    if lock:
        query = query.with_for_update()
    # Another version may have had other settings, and other scopes for them.
    rows = [
        row
        for row in await session.exec(query)
        if row.name in SETTINGS and row.scope in SETTINGS[row.name].scopes
    ]
    return sorted(rows, key=lambda row: places.index(_place(row)))


async def _require_all_secured(session: AsyncSession) -> None:
    """Raises Conflict, which lists the hosts that are not."""
    query = (
        select(HostRow.name)
        .where(
            col(HostRow.tls) != TlsState.SECURED,
            col(HostRow.resource_state).not_in(_NOT_IN_SERVICE),
        )
        .order_by(col(HostRow.name))
    )
    names = (await session.exec(query)).all()
    if names:
        more = len(names) - _MOST_NAMED
        raise Conflict(
            f"{len(names)} hosts in service are not secured: {', '.join(names[:_MOST_NAMED])}"
            f"{f' and {more} more' if more > 0 else ''}.",
            remedy="hostler cert secure CLUSTER, for each cluster of theirs.",
            details={"hosts": list(names[:_MOST_NAMED])},
        )


async def _require_consistent(
    session: AsyncSession, places: list[_Place], changed: Setting[Any]
) -> None:
    await session.flush()
    rows = await _rows(session, places)
    problem = contradiction(changed, ResolvedSettings({row.name: row.value for row in rows}))
    if problem is not None:
        raise InvalidInput(
            f"The input of {changed.name} is not valid: value: {problem}.",
            remedy="Set the other one first.",
            details={"fields": [{"field": "value", "message": problem}]},
        )


def _place(row: SettingRow) -> _Place:
    return _Place(SettingScope(row.scope), row.scope_name)


def _is_of(rows: list[SettingRow], place: _Place) -> bool:
    """Whether what is in force was set at `place` itself."""
    return bool(rows) and _place(rows[-1]) == place


def _explain(setting: Setting[Any], row: SettingRow | None) -> SettingValue:
    value, problem = setting.dump(setting.default), None
    if row is not None:
        try:
            value = setting.dump(setting.parse(row.value))
        except ValidationError as error:
            value, problem = row.value, setting.problem(error)
    return SettingValue(
        name=setting.name,
        type=setting.type,
        possible=setting.possible,
        value=value,
        default=setting.dump(setting.default),
        unit=setting.unit,
        description=setting.description,
        scopes=_scopes(setting),
        effect=setting.effect,
        origin=str(_place(row)) if row else _DEFAULT,
        problem=problem,
        updated_at=row.updated_at if row else None,
        updated_by=row.updated_by if row else None,
    )


def _scopes(setting: Setting[Any]) -> tuple[SettingScope, ...]:
    return tuple(scope for scope in SettingScope if scope in setting.scopes)


def _say(setting: Setting[Any], rows: list[SettingRow], place: _Place) -> str:
    """The value in force, and where it comes from if that is not `place`."""
    if not rows:
        return f"{_json(setting.dump(setting.default))} ({_DEFAULT})"
    value = _json(rows[-1].value)
    return value if _is_of(rows, place) else f"{value} ({_place(rows[-1])})"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _add_event(session: AsyncSession, name: str, place: _Place, change: str, actor: str) -> None:
    add_event(session, "setting.changed", f"setting/{name}", f"{place}: {change}", actor=actor)
