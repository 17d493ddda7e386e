"""The audit trail."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.authentication import VIEWER
from api.dependencies import TheInventory
from api.requests import EventQuery, Items
from contracts.hosts import Event

router = APIRouter(prefix="/v1/events", tags=["events"], dependencies=[VIEWER])


@router.get("")
async def list_events(
    query: Annotated[EventQuery, Query()], inventory: TheInventory
) -> Items[Event]:
    """The events that match, newest first."""
    return Items(items=await inventory.events.list(**dict(query)))
