"""The settings that need no restart."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query

from api.authentication import VIEWER, Admin, actor
from api.dependencies import NameInPath, TheInventory
from api.problems import document_problem
from api.requests import Items, SettingQuery, SettingRequest
from contracts.settings import SettingValue

router = APIRouter(prefix="/v1/settings", tags=["settings"], dependencies=[VIEWER])

Place = Annotated[SettingQuery, Query()]
_UNKNOWN_PLACE: dict[int | str, dict[str, Any]] = {404: document_problem(HTTPStatus.NOT_FOUND)}


@router.get("", responses=_UNKNOWN_PLACE)
async def list_settings(query: Place, inventory: TheInventory) -> Items[SettingValue]:
    """All settings by name, as they are in force globally, in a zone or in a cluster."""
    return Items(items=await inventory.settings.explain_all(**dict(query)))


@router.get("/{name}")
async def get_setting(name: NameInPath, query: Place, inventory: TheInventory) -> SettingValue:
    """One setting, as it is in force globally, in a zone or in a cluster."""
    return await inventory.settings.explain(name, **dict(query))


@router.put("/{name}")
async def set_setting(
    name: NameInPath,
    query: Place,
    request: SettingRequest,
    caller: Admin,
    inventory: TheInventory,
) -> SettingValue:
    """Set it globally, for a zone or for a cluster; no effect if it is so already."""
    return await inventory.settings.set(name, request.value, **dict(query), actor=actor(caller))


@router.delete("/{name}")
async def unset_setting(
    name: NameInPath, query: Place, caller: Admin, inventory: TheInventory
) -> SettingValue:
    """Back to what is inherited; answers what is in force now."""
    return await inventory.settings.unset(name, **dict(query), actor=actor(caller))
