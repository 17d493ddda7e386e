"""The audit trail."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.authentication import VIEWER
from api.dependencies import TheInventory
from api.requests import EventPage, EventQuery

router = APIRouter(prefix="/v1/events", tags=["events"], dependencies=[VIEWER])


@router.get("")
async def list_events(query: Annotated[EventQuery, Query()], inventory: TheInventory) -> EventPage:
    """The events that match, newest first."""
    # One more than asked for tells whether any is left.
    found = await inventory.events.list(**{**dict(query), "limit": query.limit + 1})
    items = found[: query.limit]
    return EventPage(items=items, next=items[-1].id if len(found) > len(items) else None)
