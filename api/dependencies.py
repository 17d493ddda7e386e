"""What the paths work with, by the types that they ask for."""

from ipaddress import ip_address
from typing import Annotated, Protocol

from fastapi import Depends, Path, Request

from api.operations import Operations
from contracts.base import Name
from contracts.errors import Refused
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


async def _require_private_way(request: Request) -> None:
    """A password is not read off a network by others: TLS, or this machine itself (where what ends
    the TLS may run). Raises Refused."""
    client = request.client.host if request.client is not None else ""
    if request.url.scheme == "https":
        return
    try:
        if ip_address(client).is_loopback:
            return
    except ValueError:
        pass
    raise Refused(
        f"Passwords go over TLS or within this machine alone, not from or to {client} in clear.",
        remedy="Use the machine that the API runs on, or put a server in front that speaks TLS.",
    )


PRIVATE_WAY = Depends(_require_private_way)
TheBmcs = Annotated[BmcChecker, Depends(_bmcs)]
TheInventory = Annotated[Inventory, Depends(_inventory)]
TheOperations = Annotated[Operations, Depends(_operations)]
NameInPath = Annotated[Name, Path()]
