"""What the paths work with, by the types that they ask for."""

from typing import Annotated, Protocol

from fastapi import Depends, Path, Request

from api.operations import Operations
from contracts.base import Name
from inventory import Inventory
from inventory.oobm import BmcLogin


class BmcChecker(Protocol):
    """Knows the drivers of BMCs."""

    async def check(self, login: BmcLogin, password: str | None) -> None:
        """Look at the form of a configuration; no password: the one that is stored. Raises
        InvalidInput, which names the field."""


async def _bmcs(request: Request) -> BmcChecker:
    bmcs: BmcChecker = request.app.state.bmcs
    return bmcs


async def _inventory(request: Request) -> Inventory:
    inventory: Inventory = request.app.state.inventory
    return inventory


async def _operations(request: Request) -> Operations:
    operations: Operations = request.app.state.operations
    return operations


TheBmcs = Annotated[BmcChecker, Depends(_bmcs)]
TheInventory = Annotated[Inventory, Depends(_inventory)]
TheOperations = Annotated[Operations, Depends(_operations)]
NameInPath = Annotated[Name, Path()]
