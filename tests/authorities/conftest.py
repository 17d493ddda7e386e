"""A real inventory with hosts, and providers on it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from activities.authorities import InventoryStore
from contracts.states import AllocationState
from drivers.authorities.protocols import ExternalAccess, ProviderContext
from drivers.authorities.root import RootAuthority
from inventory import Inventory, SecretBox
from tests.databases import sqlite_database
from tests.inventory.conftest import enabled
from tests.samples import FACTS

OPERATION = "signing/kvm-1"


@asynccontextmanager
async def prepared_inventory(tmp_path: Path) -> AsyncIterator[Inventory]:
    """With kvm-1 and kvm-2 in cluster-1; migrations go by 198.18.1.0/24, where they have
    addresses, and kvm-1 says that it has kvm-2's, too."""
    database = sqlite_database(tmp_path)
    inventory = Inventory(database, SecretBox(SecretBox.new_key()))
    await inventory.topology.create_zone("zone-1", actor="test")
    await inventory.topology.create_pod("pod-1", "zone-1", actor="test")
    await inventory.topology.create_cluster("cluster-1", "pod-1", actor="test")
    await inventory.topology.set_zone_state("zone-1", AllocationState.ENABLED, actor="test")
    await inventory.settings.set("migration.network", "198.18.0.0/15", zone="zone-1", actor="test")
    for number in (1, 2):
        await enabled(inventory, number)
        addresses = ("10.9.9.9", "198.18.0.12", f"198.18.1.{10 + number}", "2001:db8::1")
        await inventory.hosts.set_facts(
            f"kvm-{number}",
            FACTS.model_copy(update={"uuid": f"uuid-{number}", "addresses": addresses}),
        )
    yield inventory
    await database.close()


@pytest.fixture
async def inventory(tmp_path: Path) -> AsyncIterator[Inventory]:
    async with prepared_inventory(tmp_path) as inventory:
        yield inventory


async def root(inventory: Inventory, **settings: object) -> RootAuthority:
    """The root provider, after these settings (dots as underscores) were set."""
    for name, value in settings.items():
        await inventory.settings.set(name.replace("_", "."), value, actor="test")
    return RootAuthority(
        ProviderContext(
            "root",
            await inventory.settings.resolve(),
            InventoryStore(inventory, "root", OPERATION),
            ExternalAccess(),
        )
    )
