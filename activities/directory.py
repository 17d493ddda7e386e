"""From a host's name to how to reach it: the one place where a credential is decrypted."""

from drivers.protocols import HostAccess
from inventory import Inventory


class HostDirectory:
    """Looks up addresses, pinned host keys and credentials."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory

    async def access(self, name: str) -> HostAccess:
        """How to reach the host `name`. Raises NotFound, Failed (secret not readable)."""
        host = await self._inventory.hosts.get(name)
        credential = await self._inventory.secrets.reveal(
            await self._inventory.hosts.secret_id(name)
        )
        return HostAccess(
            name=host.name,
            address=host.address,
            port=host.ssh_port,
            user=host.user,
            host_key=await self._inventory.hosts.host_key_line(name),
            password=credential.plaintext if credential.kind == "password" else None,
            private_key=credential.plaintext if credential.kind == "private_key" else None,
        )
