"""Hosts that are being re-installed: what is withdrawn from the old installation, what the new one
gets.

How far it is stands in the line of its host key (inventory/host_keys.py): revoked, then that of the
new installation, then that of the host again.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sqlalchemy.exc import IntegrityError
from sqlmodel import col, delete, update
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.errors import AlreadyExists, Conflict, NotFound
from contracts.evacuation import HostEnvironment
from contracts.hosts import Host, HostFacts
from contracts.leases import LeaseRef
from contracts.states import HostStatus, ResourceState, TlsState
from inventory.database import Database
from inventory.events import add_event
from inventory.host_keys import in_reinstallation, is_revoked, key_of, new, revoked
from inventory.hosts import Hosts, change_state, host_row, secret_ids_of
from inventory.leases import verify_lease
from inventory.models import (
    CertificateRow,
    CertificateUpkeepRow,
    HostPasswordRow,
    HostRow,
    MaintenanceTicketRow,
    PasswordAttemptRow,
    SecretVersionRow,
    now,
)
from inventory.secrets import unclaimed

_AWAY = "is being re-installed"


@dataclass(frozen=True)
class FormerTrust:
    """See contracts.reinstallation.Trust."""

    former_sha256: str | None
    pinned_sha256: str | None
    secret_id: str
    environment: HostEnvironment | None
    tls_again: TlsState


class Reinstallations:
    """Every method may be called many times, and raises LeaseLost, NotFound."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def withdraw(
        self, lease: LeaseRef, *, reason: str, environment: HostEnvironment | None = None
    ) -> FormerTrust:
        """Revoke the pinned host key: the point of no return. `environment`, what the host offers
        to VMs as far as that is known, is kept until it is back. Of a host whose re-installation
        has begun before, only what is known. Raises Conflict unless it is in `Maintenance`."""
        async with self._changing(lease) as (session, row):
            if not in_reinstallation(row.host_key_line):
                if row.resource_state != ResourceState.MAINTENANCE:
                    raise Conflict(f"{row.name} is {row.resource_state}: it is not re-installed.")
                row.host_key_line, row.tls_again = revoked(row.host_key_line), row.tls
                row.environment = (
                    environment.model_dump(mode="json") if environment is not None else None
                )
                _tell(
                    session,
                    lease,
                    "host.trust_withdrawn",
                    f"the host key {row.host_key_sha256} is accepted no more: {reason}",
                )
                _note_away(session, lease, row)
                session.add(row)
            begun = is_revoked(row.host_key_line)
            return FormerTrust(
                former_sha256=row.host_key_sha256 if begun else None,
                pinned_sha256=None if begun else row.host_key_sha256,
                secret_id=row.password_secret_id or row.secret_id,
                environment=HostEnvironment.model_validate(row.environment)
                if row.environment is not None
                else None,
                tls_again=TlsState(row.tls_again or row.tls),
            )

    async def settle_credential(self, lease: LeaseRef, secret_id: str | None) -> str:
        """What logs in from now on: `secret_id`, or the password that is kept beside the key; with
        neither, what does already. All else that the host had is deleted. Raises Conflict if it is
        not being re-installed."""
        async with self._changing(lease) as (session, row):
            _require_begun(row)
            chosen = secret_id or row.password_secret_id or row.secret_id
            if secret_id is not None and await session.get(SecretVersionRow, secret_id) is None:
                raise NotFound(
                    f"There is no secret {secret_id!r} any more.",
                    remedy="One that no host took over is deleted after a day: give it again.",
                )
            # The BMC's stay: it is the same one.
            former = await secret_ids_of(session, row) - {chosen}
            for table in (HostPasswordRow, PasswordAttemptRow):
                await session.exec(delete(table).where(col(table.host) == row.name))
            row.secret_id, row.password_secret_id, row.staged_key_id = chosen, None, None
            session.add(row)
            await session.flush()
            await session.exec(
                delete(SecretVersionRow).where(col(SecretVersionRow.id).in_(former), unclaimed())
            )
            return chosen

    async def pin(self, lease: LeaseRef, *, host_key_line: str, host_key_sha256: str) -> None:
        """The host is known by this key from now on. Its new installation was told nothing of its
        closing yet, and has no certificates. Raises Conflict if it is not being re-installed."""
        async with self._changing(lease) as (session, row):
            if row.host_key_line == new(host_key_line):
                return
            _require_begun(row)
            before = row.host_key_sha256
            row.host_key_line, row.host_key_sha256 = new(host_key_line), host_key_sha256
            row.closed, row.updated_at = None, now()
            if row.tls != TlsState.NONE:
                _tell(
                    session,
                    lease,
                    "host.tls_changed",
                    f"{row.tls} -> {TlsState.NONE}: the new installation has no certificates",
                )
                row.tls = TlsState.NONE
            session.add(row)
            await session.exec(
                update(CertificateRow)
                .where(col(CertificateRow.host) == row.name)
                .values(installed_at=None)
            )
            await session.exec(
                delete(CertificateUpkeepRow).where(col(CertificateUpkeepRow.host) == row.name)
            )
            _tell(
                session, lease, "host.trusted", f"the host key {before} -> {host_key_sha256}: new"
            )

    async def complete(self, lease: LeaseRef, facts: HostFacts, *, step: str, reason: str) -> Host:
        """Back in service as before its maintenance, `Up`, with the facts of its new installation
        and without a place in the queue for maintenance: all or nothing. Idempotent by step.

        Raises AlreadyExists if another host has its UUID, Conflict.
        """
        operation = lease.owner.workflow_id
        try:
            async with self._changing(lease) as (session, row):
                if (row.state_operation, row.state_step) != (operation, step):
                    _take_facts(session, lease, row, facts)
                    _note_up(session, lease, row)
                    row.host_key_line = key_of(row.host_key_line)
                    row.environment = row.tls_again = None
                    target = row.state_before_maintenance or ResourceState.ENABLED
                    session.add(row)
                    await session.flush()
                    await session.exec(
                        delete(MaintenanceTicketRow).where(
                            col(MaintenanceTicketRow.host) == lease.host
                        )
                    )
                    if not await change_state(
                        session,
                        lease.host,
                        expected=frozenset({ResourceState.MAINTENANCE}),
                        target=ResourceState(target),
                        operation=operation,
                        step=step,
                        actor=operation,
                        reason=reason,
                    ):
                        raise Conflict(f"The state of {lease.host} has just changed.")
        except IntegrityError as error:
            raise AlreadyExists(
                f"Another host has the libvirt UUID {facts.uuid} of {lease.host}.",
                remedy="Set host_uuid in its /etc/libvirt/libvirtd.conf and restart libvirtd.",
            ) from error.orig
        return await Hosts(self._database).get(lease.host)

    @asynccontextmanager
    async def _changing(self, lease: LeaseRef) -> AsyncIterator[tuple[AsyncSession, HostRow]]:
        async with self._database.writing() as session:
            await verify_lease(session, lease, hold=True)
            yield session, await host_row(session, lease.host)


def _require_begun(row: HostRow) -> None:
    if not in_reinstallation(row.host_key_line):
        raise Conflict(f"{row.name} is not being re-installed.")


def _note_away(session: AsyncSession, lease: LeaseRef, row: HostRow) -> None:
    """Nobody looks at it while it is re-installed; one that is Down stays so."""
    row.updated_at = now()
    if row.status in (HostStatus.DOWN, HostStatus.DISCONNECTED):
        row.status_reason = _AWAY
        return
    before, row.status, row.status_reason = row.status, HostStatus.DISCONNECTED, _AWAY
    row.status_since, row.missed_checks = row.updated_at, 0
    _tell(session, lease, "host.status", f"{before} -> {row.status}: {_AWAY}")


def _note_up(session: AsyncSession, lease: LeaseRef, row: HostRow) -> None:
    row.missed_checks = 0
    if row.status == HostStatus.UP:
        return
    before, row.status, row.status_reason = row.status, HostStatus.UP, "was re-installed"
    row.status_since = row.updated_at = now()
    _tell(session, lease, "host.status", f"{before} -> {row.status}: {row.status_reason}")


def _take_facts(session: AsyncSession, lease: LeaseRef, row: HostRow, facts: HostFacts) -> None:
    if row.uuid not in (None, facts.uuid):
        _tell(
            session, lease, "host.uuid", f"its libvirt has another UUID: {row.uuid} -> {facts.uuid}"
        )
    row.uuid, row.facts = facts.uuid, facts.model_dump(mode="json")
    _tell(
        session,
        lease,
        "host.facts",
        f"re-installed: {facts.operating_system}, libvirt {facts.libvirt_version}, "
        f"QEMU {facts.qemu_version}",
    )


def _tell(session: AsyncSession, lease: LeaseRef, kind: str, message: str) -> None:
    operation = lease.owner.workflow_id
    add_event(session, kind, f"host/{lease.host}", message, operation=operation, actor=operation)
