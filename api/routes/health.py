"""Whether the API can do its work."""

import asyncio

from fastapi import APIRouter

from api.dependencies import TheInventory, TheOperations
from api.requests import Health

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz(inventory: TheInventory, operations: TheOperations) -> Health:
    """Database and Temporal answer. Needs no token."""
    await asyncio.gather(inventory.database.ping(), operations.ping())
    return Health()
