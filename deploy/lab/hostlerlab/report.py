"""What runs where."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from . import bmc, guests, machine, paths
from .host import Host, known_hosts
from .shell import LabError


@dataclass(frozen=True)
class Report:
    """Rows of hosts and guests; `unclear`: what hosts do not tell, a line each."""

    hosts: list[dict[str, Any]]
    guests: list[dict[str, Any]]
    unclear: list[str]


def report() -> Report:
    """As it is now."""
    # The remains of a dead lab of another checkout are not reported as this one's.
    hosts = known_hosts() if machine.owner() in (None, paths.CHECKOUT) else []
    unclear = []

    def names(host: Host) -> set[str]:
        """A host that hangs must not hang the status of the others."""
        if not host.running():
            return set()
        try:
            return set(host.virsh("list", "--name", timeout=10).split())
        except LabError as error:
            unclear.append(str(error))
            return set()

    with ThreadPoolExecutor(max(1, len(hosts))) as pool:
        active = dict(zip((h.name for h in hosts), pool.map(names, hosts), strict=True))
    seen = {name for each in active.values() for name in each}
    if paths.CONSOLES.is_dir():
        seen |= {log.stem for log in paths.CONSOLES.glob("*.log")}
    return Report(
        hosts=[host_row(host) for host in hosts],
        guests=[
            {
                "name": name,
                "hosts": [host.name for host in hosts if name in active[host.name]],
                "last_tick": guests.last_tick(name),
            }
            for name in sorted(seen, key=lambda name: (len(name), name))
        ],
        unclear=unclear,
    )


def host_row(host: Host) -> dict[str, Any]:
    """What a report says of a host."""
    return {
        "name": host.name,
        "address": host.address,
        "state": "running" if host.running() else "stopped",
        "boot_id": host.boot_id(),
        "host_key_sha256": host.host_key_fingerprint(),
        "password_file": str(host.password_file),
        "bmc": _bmc_row(host),
    }


def _bmc_row(host: Host) -> dict[str, str | int | None] | None:
    """How to reach a host's BMC; None before the end of the first `up`."""
    its = bmc.Bmc.load(host.name)
    if its is None:
        return None
    return {
        "address": its.address,
        "port": bmc.PORT,
        "user": its.user,
        "password_file": str(its.password_file),
        "guid": host.machine_uuid(),
    }
