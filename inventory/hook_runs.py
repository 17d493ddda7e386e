"""What maintenance hooks have printed on the hosts, and how they ended."""

from sqlalchemy.orm import defer
from sqlmodel import col, select, update

from contracts.cluster_maintenance import HookOutcome, HookRun, Stage
from inventory.database import Database
from inventory.events import add_event
from inventory.models import HookRunRow, now
from inventory.upsert import insert_if_absent


class HookRuns:
    """One row per operation, host, stage and attempt; `operation` is "workflow id#first run id"."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def start(
        self, operation: str, host: str, stage: Stage, attempt: int, command: tuple[str, ...]
    ) -> None:
        """The hook begins; no effect if that is known."""
        async with self._database.writing() as session:
            await insert_if_absent(
                session,
                HookRunRow(
                    operation=operation,
                    host=host,
                    stage=stage,
                    attempt=attempt,
                    command=list(command),
                ),
            )

    async def finish(self, operation: str, host: str, outcome: HookOutcome, output: str) -> None:
        """How it ended, with its event. Once that is written, it stays."""
        # PostgreSQL stores no NUL in a text.
        values: dict[str, object] = {
            "exit_status": outcome.exit_status,
            "problem": outcome.problem,
            "output": output.replace("\0", "\N{REPLACEMENT CHARACTER}"),
            "finished_at": now(),
        }
        async with self._database.writing() as session:
            written = await session.exec(
                update(HookRunRow)
                .where(
                    col(HookRunRow.operation) == operation,
                    col(HookRunRow.host) == host,
                    col(HookRunRow.stage) == outcome.stage,
                    col(HookRunRow.attempt) == outcome.attempt,
                    col(HookRunRow.finished_at).is_(None),
                )
                .values(**values)
            )
            if written.rowcount:
                workflow = operation.rpartition("#")[0]
                add_event(
                    session,
                    "hook.ended",
                    f"host/{host}",
                    f"hook {outcome.stage}, attempt {outcome.attempt}: "
                    + (outcome.problem or f"status {outcome.exit_status}"),
                    operation=workflow,
                    actor=workflow,
                )

    async def of_host(self, operation: str, host: str) -> list[HookRun]:
        """Those of one host in the order of their start, with the end of what they printed."""
        query = (
            select(HookRunRow)
            .where(col(HookRunRow.operation) == operation, col(HookRunRow.host) == host)
            .order_by(col(HookRunRow.started_at), col(HookRunRow.attempt))
        )
        async with self._database.reading() as session:
            return [HookRun(**row.model_dump()) for row in await session.exec(query)]

    async def list(self, operation: str) -> list[HookRun]:
        """All of an operation in the order of their start, without what they printed."""
        query = (
            select(HookRunRow)
            .where(col(HookRunRow.operation) == operation)
            .order_by(col(HookRunRow.started_at), col(HookRunRow.host))
        )
        # What hundreds of hosts have printed does not go through the memory of a list.
        query = query.options(defer(HookRunRow.output))  # type: ignore[arg-type] # a column at run time
        async with self._database.reading() as session:
            return [
                HookRun(**row.model_dump(exclude={"output"}), output=None)
                for row in await session.exec(query)
            ]
