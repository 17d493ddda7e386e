"""What the paths work with, by the types that they ask for."""

from typing import Annotated

from fastapi import Depends, Path, Request

from api.operations import Operations
from contracts.base import Name
from inventory import Inventory


async def _inventory(request: Request) -> Inventory:
    inventory: Inventory = request.app.state.inventory
    return inventory


async def _operations(request: Request) -> Operations:
    operations: Operations = request.app.state.operations
    return operations


TheInventory = Annotated[Inventory, Depends(_inventory)]
TheOperations = Annotated[Operations, Depends(_operations)]
NameInPath = Annotated[Name, Path()]
