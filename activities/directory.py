"""From a host's name to how to reach it: the one place where a credential is decrypted."""

from drivers.protocols import HostAccess
from inventory import Inventory


class HostDirectory:
    """Looks up addresses, pinned host keys and credentials."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory

    async def access(self, name: str) -> HostAccess:
        """How to reach the host `name`. Raises NotFound, Failed (secret not readable)."""
        login = await self._inventory.hosts.login(name)
        credential = await self._inventory.secrets.reveal(login.secret_id)
        return HostAccess(
            name=name,
            address=login.address,
            port=login.port,
            user=login.user,
            host_key=login.host_key_line,
            password=credential.plaintext if credential.kind == "password" else None,
            private_key=credential.plaintext if credential.kind == "private_key" else None,
        )
