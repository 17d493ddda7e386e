"""What Temporal keeps of an operation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client

_CONTINUED = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW


@dataclass(frozen=True)
class Run:
    """One run of a chain: how many events, how many bytes, and the events."""

    run_id: str
    size_bytes: int
    events: tuple[HistoryEvent, ...]

    def during(self, activity: str) -> int:
        """How many events there are from that activity's first begin to its last end."""
        scheduled = {
            event.event_id
            for event in self.events
            if event.activity_task_scheduled_event_attributes.activity_type.name == activity
        }
        ended = [
            event.event_id
            for event in self.events
            if event.activity_task_completed_event_attributes.scheduled_event_id in scheduled
        ]
        return max(ended) - min(scheduled) + 1 if ended else 0


async def runs_of(client: Client, workflow_id: str) -> list[Run]:
    """The runs of the newest chain under that id, the first one first."""
    newest = await client.get_workflow_handle(workflow_id).describe()
    run_id = newest.raw_info.first_run_id
    runs = []
    while run_id:
        handle = client.get_workflow_handle(workflow_id, run_id=run_id)
        description: Any = await handle.describe()
        events = tuple((await handle.fetch_history()).events)
        size = description.raw_description.workflow_execution_info.history_size_bytes
        runs.append(Run(run_id, size, events))
        run_id = (
            events[-1].workflow_execution_continued_as_new_event_attributes.new_execution_run_id
            if events[-1].event_type == _CONTINUED
            else ""
        )
    return runs


def stored_bytes(home: Path) -> int:
    """What the dev server's database takes, its write-ahead log included."""
    return sum(path.stat().st_size for path in home.glob("temporal.db*"))
