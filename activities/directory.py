"""From a host's name to how to reach it: the one place where a credential is decrypted."""

from drivers.protocols import HostAccess
from inventory import Inventory
from inventory.hosts import Login
from inventory.secrets import Credential


class HostDirectory:
    """Looks up addresses, pinned host keys and credentials."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory

    async def access(self, name: str) -> HostAccess:
        """How to reach the host `name`. Raises NotFound, Failed (secret not readable)."""
        login = await self._inventory.hosts.login(name)
        return await self._with(name, login, login.secret_id)

    async def access_by_password(self, name: str) -> HostAccess:
        """The same with the password beside Hostler's own key, where one is known: it lets us in
        while the key comes or goes."""
        login = await self._inventory.hosts.login(name)
        password = (await self._inventory.own_keys.find(name)).password
        return await self._with(name, login, password or login.secret_id)

    async def _with(self, name: str, login: Login, secret_id: str) -> HostAccess:
        return host_access(
            name,
            address=login.address,
            port=login.port,
            user=login.user,
            host_key=login.host_key_line,
            credential=await self._inventory.secrets.reveal(secret_id),
        )


def host_access(
    name: str, *, address: str, port: int, user: str, host_key: str, credential: Credential
) -> HostAccess:
    """With the credential as what it is."""
    return HostAccess(
        name=name,
        address=address,
        port=port,
        user=user,
        host_key=host_key,
        password=credential.plaintext if credential.kind == "password" else None,
        private_key=credential.plaintext if credential.kind == "private_key" else None,
    )
