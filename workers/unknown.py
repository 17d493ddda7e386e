"""The workflow that answers for every type that Hostler does not have."""

from collections.abc import Sequence

from temporalio import workflow
from temporalio.common import RawValue

with workflow.unsafe.imports_passed_through():
    from contracts.errors import NotFound
    from contracts.operations import WORKFLOW_TYPES
    from workers.converter import application_error


@workflow.defn(dynamic=True)
class UnknownWorkflow:
    """Fails at once; without it, a mistyped type would be retried for ever."""

    @workflow.run
    async def run(self, _inputs: Sequence[RawValue]) -> None:
        """Name the types there are."""
        known = sorted(set(WORKFLOW_TYPES.values()))
        raise application_error(
            NotFound(
                f"There is no workflow type {workflow.info().workflow_type!r}.",
                remedy=f"Start one of: {', '.join(known)}.",
                details={"known": known},
            )
        )
