"""What is stored for a host, as far as that may be told: everything but what is secret."""

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.errors import NotFound
from contracts.secrets import SecretState, StoredSecret
from inventory.cluster_passwords import candidates
from inventory.database import Database
from inventory.models import (
    HostPasswordRow,
    HostRow,
    OobmRow,
    PasswordAttemptRow,
    RemovedHostRow,
    SecretVersionRow,
)
from inventory.secret_box import key_id_of


class StoredSecrets:
    """Reads without a master key."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_host(self, host: str) -> list[StoredSecret]:
        """What logs in first; then the passwords of each of its accounts, as in
        ClusterPasswords.candidates; then those of its BMC. Raises NotFound."""
        async with self._database.reading() as session:
            row = (await session.exec(select(HostRow).where(col(HostRow.name) == host))).first()
            if row is None:
                raise NotFound(f"There is no host {host!r}.")
            found = {
                secret.id: secret
                for secret in [
                    await _stored(session, row.secret_id, SecretState.CURRENT, account=row.user),
                    await _stored(session, row.staged_key_id, SecretState.STAGED, account=row.user),
                    *await _passwords(session, row),
                    *await _of_bmc(session, row),
                ]
                if secret is not None
            }
        return list(found.values())

    async def of_removed(self, tombstone: int) -> list[StoredSecret]:
        """What is kept to clean a removed host. Raises NotFound."""
        async with self._database.reading() as session:
            row = await session.get(RemovedHostRow, tombstone)
            if row is None:
                raise NotFound(
                    f"There is no removed host {tombstone}.",
                    remedy="See `hostler host removed` for those there are.",
                )
            kept = await _stored(session, row.secret_id, SecretState.CURRENT, account=row.user)
        return [kept] if kept is not None else []


async def _passwords(session: AsyncSession, row: HostRow) -> list[StoredSecret | None]:
    accounts = {row.user}
    for table in (HostPasswordRow, PasswordAttemptRow):
        accounts |= {*await session.exec(select(table.account).where(col(table.host) == row.name))}
    return [
        await _stored(
            session,
            one.id,
            one.state,
            account=account,
            version=one.version,
            hosts=(row.name,) if one.state is SecretState.CURRENT else (),
            attempted_on=(row.name,) if one.attempted else (),
        )
        for account in sorted(accounts, key=lambda account: (account != row.user, account))
        for one in await candidates(session, row, account)
    ]


async def _of_bmc(session: AsyncSession, row: HostRow) -> list[StoredSecret | None]:
    bmc = await session.get(OobmRow, row.name)
    if bmc is None:
        return []
    return [
        await _stored(session, bmc.secret_id, SecretState.CURRENT, account=bmc.user),
        await _stored(session, bmc.staged_secret_id, SecretState.STAGED, account=bmc.user),
    ]


async def _stored(
    session: AsyncSession,
    secret_id: str | None,
    state: SecretState,
    *,
    account: str,
    version: int | None = None,
    hosts: tuple[str, ...] = (),
    attempted_on: tuple[str, ...] = (),
) -> StoredSecret | None:
    if secret_id is None:
        return None
    row = await session.get_one(SecretVersionRow, secret_id)
    return StoredSecret(
        id=row.id,
        kind=row.kind,
        state=state,
        key_id=key_id_of(row.ciphertext),
        created_at=row.created_at,
        account=account,
        version=version,
        hosts=hosts,
        attempted_on=attempted_on,
    )
