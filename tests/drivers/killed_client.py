"""A client of a migration, to be killed: `python -m tests.drivers.killed_client`, JSON on stdin."""

import asyncio
import json
import sys

from drivers.libvirt import LibvirtHypervisor
from drivers.protocols import HostAccess, MigrationOptions, MigrationProgress
from drivers.ssh import AsyncSshShell


async def main() -> None:
    """Migrate, with a line on stdout for each progress seen."""
    order = json.load(sys.stdin)
    source, destination = HostAccess(**order["source"]), HostAccess(**order["destination"])
    hypervisor = LibvirtHypervisor(AsyncSshShell())

    def tell(progress: MigrationProgress) -> None:
        sys.stdout.write(f"{progress.percent}\n")
        sys.stdout.flush()

    options = MigrationOptions(destination.address, bandwidth_mib_s=1, tls=order.get("tls", False))
    await hypervisor.migrate(source, destination, order["uuid"], options, tell)


if __name__ == "__main__":
    asyncio.run(main())
