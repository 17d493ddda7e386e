"""Certificates for whoever comes to a QEMU of cluster-1, all for the same key."""

from pathlib import Path

from tests.authorities.samples import KEYS, csr, key_pem, write
from tests.e2e.secrecy import inventory_of
from tests.e2e.system import System
from tests.inventory.conftest import register


class QemuClients:
    """`prepare` it first; then kvm-4 is a host of another cluster.

    Attributes:
        anchor: the CA of cluster-1's QEMUs.
        key: of all certificates.
    """

    def __init__(self, system: System, folder: Path) -> None:
        self._system = system
        self._folder = folder
        self.anchor = folder / "ca.pem"
        self.key = write(folder / "key.pem", key_pem(KEYS["P-256"]))
        self._request = write(folder / "request.pem", csr(KEYS["P-256"]))

    async def prepare(self) -> None:
        """QEMUs of cluster-1 have certificates by now."""
        await self._system.done("cluster", "create", "cluster-2", "--pod", "pod-1")
        async with inventory_of(self._system) as inventory:
            await register(inventory, 4, cluster="cluster-2")
        chain = ("ca", "chain", "--cluster", "cluster-1")
        await self._system.done(*chain, "--out", str(self.anchor))

    async def signed(self, host: str, role: str, name: str = "") -> Path:
        """A file with a certificate, as Hostler signs it for that host; `name`: of another one."""
        asked = ("cert", "sign", host, "--role", role, "--csr-file", str(self._request))
        pem = await self._system.done(*asked)
        return write(self._folder / f"{host}-{role}{name}.pem", pem)
