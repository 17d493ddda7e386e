"""From a host's name to how to reach it: the one place where a credential is decrypted."""

import dataclasses
from collections.abc import Awaitable, Callable, Collection

from contracts.errors import Failed
from contracts.hosts import RemovedHost
from drivers.protocols import HostAccess, TlsLogin
from inventory import Inventory
from inventory.host_keys import is_revoked, key_of
from inventory.hosts import Login
from inventory.secrets import Credential


class TrustWithdrawn(Failed):
    """Its re-installation has begun: nobody logs in where a new installation is to answer."""


async def _no_tls(_: str) -> TlsLogin | None:
    return None


class HostDirectory:
    """Looks up addresses, pinned host keys and credentials.

    Args:
        tls_login: how the libvirt of a host is reached by TLS, if it is.
    """

    def __init__(
        self, inventory: Inventory, tls_login: Callable[[str], Awaitable[TlsLogin | None]] = _no_tls
    ) -> None:
        self._inventory = inventory
        self._tls_login = tls_login

    async def access(self, name: str) -> HostAccess:
        """How to reach the host `name`. Raises NotFound, TrustWithdrawn, Failed (secret not
        readable)."""
        login = await self._inventory.hosts.login(name)
        access = await self._access(name, login, login.secret_id)
        return dataclasses.replace(access, tls=await self._tls_login(name))

    async def access_to_all(self, names: Collection[str]) -> dict[str, HostAccess]:
        """The same of many hosts, some hundreds at most, without those that `access` says no to."""
        logins = await self._inventory.hosts.logins(names)
        credentials = await self._inventory.secrets.reveal_all(
            {login.secret_id for login in logins.values()}
        )
        return {
            name: _access(name, login, credentials[login.secret_id])
            for name, login in logins.items()
            if login.secret_id in credentials and not is_revoked(login.host_key_line)
        }

    async def access_by_password(self, name: str) -> HostAccess | None:
        """The same with the password that is kept beside Hostler's own key, which lets us in while
        the key comes or goes; None if there is none."""
        login = await self._inventory.hosts.login(name)
        if login.password_secret_id is None or login.password_secret_id == login.secret_id:
            return None
        return await self._access(name, login, login.password_secret_id)

    async def access_to_former(self, name: str) -> HostAccess:
        """How to reach the old installation of a host whose trust was withdrawn."""
        login = await self._inventory.hosts.login(name)
        former = dataclasses.replace(login, host_key_line=key_of(login.host_key_line))
        return await self._access(name, former, login.secret_id)

    async def access_to_removed(self, removed: RemovedHost) -> HostAccess:
        """How to reach a removed host that is not clean yet; its name says that it is one. Raises
        NotFound, Failed."""
        login = await self._inventory.removed_hosts.login(removed.id)
        return await self._access(
            f"{removed.name} (removed host {removed.id})", login, login.secret_id
        )

    async def _access(self, name: str, login: Login, secret_id: str) -> HostAccess:
        if is_revoked(login.host_key_line):
            raise TrustWithdrawn(
                f"{name} is being re-installed: what answers at its address is not trusted.",
                remedy=f"See `hostler operation show reinstallation {name}`; if it has ended, "
                f"start it again: hostler host reinstall {name}",
            )
        return _access(name, login, await self._inventory.secrets.reveal(secret_id))


def _access(name: str, login: Login, credential: Credential) -> HostAccess:
    return host_access(
        name,
        address=login.address,
        port=login.port,
        user=login.user,
        host_key=login.host_key_line,
        credential=credential,
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
        private_key=None if credential.kind == "password" else credential.plaintext,
        own_key=credential.kind == "own_key",
    )
