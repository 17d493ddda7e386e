"""Requests for operations, stored before the operation is started: with the secret that they bring,
in one transaction.

accepted -> started, by whoever took the request, or by a round of checks if that process has died;
         -> expired, if that was too late.
"""

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlmodel import col, delete, select
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.access import Principal
from contracts.errors import Conflict, InvalidInput, NotFound
from contracts.operations import AcceptedOperation, AcceptedState, OperationKind, workflow_id
from contracts.passwords import PasswordRotationInput
from inventory.cluster_passwords import drop_staged, stage
from inventory.database import Database
from inventory.events import add_event
from inventory.models import OperationRow, SecretVersionRow, now
from inventory.secret_box import SecretBox
from inventory.secrets import add_secret, open_secret, unclaimed
from inventory.topology import cluster_row
from inventory.upsert import insert_if_absent

_PASSWORD = "password"  # noqa: S105 - a kind
# Of a request that may hold a password: as a plain hash it would let weak ones be guessed.
_DIGEST = "request_digest"
_KEY = "Idempotency-Key"
_KEPT_FOR = timedelta(days=1)


@dataclass(frozen=True)
class Repeatable:
    """What tells a repeated request from another one: the caller's key, and all that was asked."""

    key: str
    body: str


class AcceptedOperations:
    """Those of a day. A request with a key has the same answer for so long."""

    def __init__(self, database: Database, box: SecretBox) -> None:
        self._database = database
        self._box = box

    async def repeated(self, caller: Principal, what: Repeatable) -> AcceptedOperation | None:
        """What came of the same request before; None if there was none. Raises InvalidInput if the
        key was of another one."""

        async def work() -> AcceptedOperation | None:
            query = select(OperationRow).where(
                col(OperationRow.caller) == caller.name,
                col(OperationRow.idempotency_key) == what.key,
            )
            async with self._database.reading() as session:
                row = (await session.exec(query)).first()
                if row is None:
                    return None
                stored = await open_secret(session, self._box, str(row.digest_secret_id))
            if stored != _digest(what.body):
                message = "was the key of another request; a new one needs a key of its own"
                raise InvalidInput(
                    f"{_KEY} {what.key!r} {message}.",
                    remedy="Nothing was changed.",
                    details={"fields": [{"field": _KEY, "message": message}]},
                )
            return _accepted(row)

        return await self._box.reloading(work)

    async def accept_rotation(
        self,
        asked: PasswordRotationInput,
        password: str | None,
        *,
        caller: Principal,
        actor: str,
        what: Repeatable | None = None,
        takeover_from: str | None = None,
    ) -> AcceptedOperation:
        """Store the request, and the password that it brings: for the cluster as its staged
        version, for a single host by itself. `takeover_from`: as for ClusterPasswords.stage.
        Raises NotFound, Conflict, MasterKeyMissing."""

        async def work() -> AcceptedOperation:
            async with self._database.writing() as session:
                await cluster_row(session, asked.cluster, lock=True)
                await _forget_old(session)
                secret_id = str(uuid.uuid4()) if password is not None else None
                operation_id = str(uuid.uuid4())
                request = asked.model_copy(update={"secret": secret_id, "accepted": operation_id})
                row = OperationRow(
                    id=operation_id,
                    kind=OperationKind.ROTATION,
                    subject=asked.cluster,
                    request=request.model_dump(mode="json"),
                    caller=caller.name,
                    idempotency_key=what.key if what is not None else None,
                    digest_secret_id=await self._add_digest(session, what, actor),
                )
                if not await insert_if_absent(session, row):
                    raise Conflict(f"Another request with the same {_KEY} was taken just now.")
                if password is not None and secret_id is not None:
                    await self._add_password(
                        session, request, password, secret_id, actor, takeover_from
                    )
                add_event(
                    session,
                    "password_rotation.requested",
                    f"cluster/{asked.cluster}",
                    f"password of {asked.account}: {asked.reason or 'no reason given'}",
                    operation=workflow_id(OperationKind.ROTATION, asked.cluster),
                    actor=actor,
                )
                return _accepted(row)

        return await self._box.reloading(work)

    async def overdue(self, age: timedelta) -> Sequence[AcceptedOperation]:
        """Those that were taken that long ago, and are not known to have started; the oldest
        first."""
        query = (
            select(OperationRow)
            .where(
                col(OperationRow.state) == AcceptedState.ACCEPTED,
                col(OperationRow.accepted_at) <= now() - age,
            )
            .order_by(col(OperationRow.accepted_at))
        )
        async with self._database.reading() as session:
            return [_accepted(row) for row in await session.exec(query)]

    async def begin(self, operation_id: str, run_id: str) -> None:
        """It is started, as the chain of runs that begins with that one. May be called many times.
        Raises Conflict if it has expired or is another run's, NotFound."""
        async with self._database.writing() as session:
            row = await _row(session, operation_id)
            if row is None:
                raise NotFound(f"No request {operation_id!r} was taken, or it was withdrawn.")
            if row.state == AcceptedState.EXPIRED:
                raise Conflict(f"The request {operation_id} has expired: {row.reason}")
            if row.run_id not in (None, run_id):
                raise Conflict(f"The request {operation_id} was started before: run {row.run_id}.")
            row.state, row.run_id = AcceptedState.STARTED, run_id
            session.add(row)

    async def withdraw(self, operation_id: str) -> None:
        """It was refused: nothing is kept of it but a password that was staged. No effect if it has
        started."""
        async with self._database.writing() as session:
            row = await _row(session, operation_id)
            if row is None or row.state != AcceptedState.ACCEPTED:
                return
            asked = PasswordRotationInput.model_validate(row.request)
            await session.delete(row)
            await session.flush()
            unused = {row.digest_secret_id, asked.secret}
            await _discard(session, [secret for secret in unused if secret is not None])

    async def expire(self, operation_id: str, reason: str) -> None:
        """It does not start any more, and the password that it brought is deleted. No effect if it
        has started."""
        async with self._database.writing() as session:
            row = await _row(session, operation_id)
            if row is None or row.state != AcceptedState.ACCEPTED:
                return
            row.state, row.reason = AcceptedState.EXPIRED, reason
            session.add(row)
            asked = PasswordRotationInput.model_validate(row.request)
            if asked.secret is not None:
                await drop_staged(session, asked.secret)
                await _discard(session, [asked.secret])
            operation = workflow_id(OperationKind(row.kind), row.subject)
            add_event(
                session,
                "password_rotation.expired",
                f"cluster/{row.subject}",
                f"password of {asked.account}: it was not started, and nothing was changed: "
                f"{reason}",
                operation=operation,
                actor=operation,
            )

    async def _add_digest(
        self, session: AsyncSession, what: Repeatable | None, actor: str
    ) -> str | None:
        if what is None:
            return None
        secret_id = str(uuid.uuid4())
        digest = _digest(what.body)
        await add_secret(session, self._box, secret_id, _DIGEST, digest, actor=actor)
        return secret_id

    async def _add_password(
        self,
        session: AsyncSession,
        asked: PasswordRotationInput,
        password: str,
        secret_id: str,
        actor: str,
        takeover_from: str | None,
    ) -> None:
        if asked.host is not None:
            await add_secret(session, self._box, secret_id, _PASSWORD, password, actor=actor)
            return
        await stage(
            session,
            self._box,
            asked.cluster,
            password,
            account=asked.account,
            actor=actor,
            secret_id=secret_id,
            takeover_from=takeover_from,
        )


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


async def _row(session: AsyncSession, operation_id: str) -> OperationRow | None:
    query = select(OperationRow).where(col(OperationRow.id) == operation_id)
    return (await session.exec(query.with_for_update())).first()


async def _forget_old(session: AsyncSession) -> None:
    query = select(OperationRow).where(
        col(OperationRow.accepted_at) < now() - _KEPT_FOR,
        col(OperationRow.state) != AcceptedState.ACCEPTED,
    )
    rows = (await session.exec(query)).all()
    for row in rows:
        await session.delete(row)
    await session.flush()
    await _discard(session, [row.digest_secret_id for row in rows if row.digest_secret_id])


async def _discard(session: AsyncSession, secret_ids: Sequence[str]) -> None:
    for secret_id in secret_ids:
        await session.exec(
            delete(SecretVersionRow).where(col(SecretVersionRow.id) == secret_id, unclaimed())
        )


def _accepted(row: OperationRow) -> AcceptedOperation:
    return AcceptedOperation(
        id=row.id,
        kind=OperationKind(row.kind),
        subject=row.subject,
        request=row.request,
        caller=row.caller,
        state=AcceptedState(row.state),
        run_id=row.run_id,
        reason=row.reason,
        accepted_at=row.accepted_at,
    )
