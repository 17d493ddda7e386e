"""The provider that the settings choose, and where those with a key of their own keep it."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta

from activities.execution import surprises_of
from contracts.certificates import Authority, AuthorityOrigin, is_qemu_authority
from contracts.errors import Failed, HostlerError, Unavailable
from contracts.secrets import CA_KEY
from contracts.settings import CA_PROVIDER, ResolvedSettings
from drivers.authorities.protocols import (
    CertificateAuthority,
    CrlOrder,
    ExternalAccess,
    ProviderContext,
    Providers,
    RevokedSerial,
    StoredAuthority,
)
from drivers.authorities.x509 import read_certificate, require_anchored, split_chain
from inventory import Inventory
from inventory.authorities import KeyedAuthority, NewAuthority

# Also where another one is chosen: whoever may sign by that could make a CA that signs for all.
_OWN = "root"


@dataclass(frozen=True)
class Provider:
    """One of them as it is now."""

    name: str
    ca: CertificateAuthority
    settings: ResolvedSettings

    def surprises(self) -> AbstractContextManager[None]:
        """Around its calls: it may be anybody's package."""
        return surprises_of(f"The CA provider {self.name}")


class Directory:
    """Finds providers, and knows which authority each of them issues with."""

    def __init__(self, inventory: Inventory, providers: Providers, access: ExternalAccess) -> None:
        self._inventory = inventory
        self._providers = providers
        self._access = access

    async def chosen(self, operation: str) -> Provider:
        """The one that issues. Raises Conflict if it is not installed."""
        settings = await self._inventory.settings.resolve()
        name = settings[CA_PROVIDER]
        return self._provider(name, name, settings, operation)

    async def named(self, name: str, operation: str) -> Provider:
        """That one, also if another one issues by now; or the one of a cluster's QEMUs. Raises
        Conflict if it is not installed."""
        plugin = _OWN if is_qemu_authority(name) else name
        return self._provider(name, plugin, await self._inventory.settings.resolve(), operation)

    async def authority(self, provider: Provider, operation: str) -> Authority:
        """What it issues with now: made if need be, and noted if it has changed. Raises Unavailable
        if another process has noted something else meanwhile."""
        known = await self._inventory.authorities.find(provider.name)
        with provider.surprises():
            given = await provider.ca.chain()
            chain = split_chain("".join(given))
            require_anchored(chain)
        stored = await self._inventory.authorities.find(provider.name)
        # One with a key has stored what it is by itself, maybe something newer since.
        if stored is not None and (
            stored.key_secret_id is not None or stored.authority.chain == chain
        ):
            return stored.authority
        noted = await self._inventory.authorities.add(
            _new(provider.name, chain, AuthorityOrigin.EXTERNAL, None),
            after=known.authority.generation if known is not None else 0,
            unused=False,
            operation=operation,
        )
        if noted.authority.chain != chain:
            raise Unavailable(f"The CA of {provider.name} has just been replaced.")
        return noted.authority

    def _provider(
        self, name: str, plugin: str, settings: ResolvedSettings, operation: str
    ) -> Provider:
        store = InventoryStore(self._inventory, name, operation)
        context = ProviderContext(name, settings, store, self._access)
        return Provider(name, self._providers(plugin)(context), settings)


class InventoryStore:
    """AuthorityStore of one provider: its key is encrypted as every secret is."""

    def __init__(self, inventory: Inventory, provider: str, operation: str) -> None:
        self._inventory = inventory
        self._provider = provider
        self._operation = operation

    async def find(self, issuer: str | None = None) -> StoredAuthority | None:
        """The newest, or that of this issuing certificate, with its key decrypted."""
        found = await self._inventory.authorities.find(self._provider, issuer)
        return await self._read(found) if found is not None else None

    async def add(
        self, chain: tuple[str, ...], key: str, origin: AuthorityOrigin, *, after: int
    ) -> StoredAuthority:
        """The key first, then what refers to it: a key that nothing refers to goes again."""

        async def add(secret: str) -> KeyedAuthority:
            new = _new(self._provider, chain, origin, secret)
            return await self._inventory.authorities.add(
                new, after=after, unused=True, operation=self._operation
            )

        return await self._keep(key, add)

    async def add_next(
        self, chain: tuple[str, ...], key: str, origin: AuthorityOrigin, *, after: int
    ) -> StoredAuthority:
        """The same as what is to issue next."""

        async def add(secret: str) -> KeyedAuthority:
            new = _new(self._provider, chain, origin, secret)
            return await self._inventory.authorities.add_next(
                new, after=after, operation=self._operation
            )

        return await self._keep(key, add)

    async def begin_crl(self, generation: int, *, kept: timedelta) -> CrlOrder:
        """From the inventory's certificates of that generation."""
        draft = await self._inventory.authorities.begin_crl(self._provider, generation, kept=kept)
        return CrlOrder(
            number=draft.number,
            revoked=tuple(
                RevokedSerial(serial=one.serial, at=one.at, reason=one.reason)
                for one in draft.revoked
            ),
        )

    async def _keep(
        self, key: str, add: Callable[[str], Awaitable[KeyedAuthority]]
    ) -> StoredAuthority:
        """What `add` gives for the id of the stored key."""
        secret = await self._inventory.secrets.store(CA_KEY, key, actor=self._operation)
        try:
            stored = await add(secret)
        except HostlerError:
            await self._inventory.secrets.discard(secret)
            raise
        if stored.key_secret_id != secret:
            await self._inventory.secrets.discard(secret)
        return await self._read(stored)

    async def _read(self, stored: KeyedAuthority) -> StoredAuthority:
        if stored.key_secret_id is None:
            raise Failed(f"The CA of {self._provider} has no key in the inventory.")
        credential = await self._inventory.secrets.reveal(stored.key_secret_id)
        return StoredAuthority(
            generation=stored.authority.generation,
            chain=stored.authority.chain,
            key=credential.plaintext,
        )


def _new(
    provider: str, chain: tuple[str, ...], origin: AuthorityOrigin, key_secret_id: str | None
) -> NewAuthority:
    issuing = read_certificate(chain[0])
    return NewAuthority(
        provider=provider,
        origin=origin,
        subject=issuing.subject,
        sha256=issuing.sha256,
        not_before=issuing.not_before,
        not_after=issuing.not_after,
        chain=chain,
        key_secret_id=key_secret_id,
    )
