"""The rows: the steps of a maintenance of kvm-1, in the order in which it takes them."""

from dataclasses import dataclass
from enum import Enum, auto

from contracts.states import ResourceState
from tests.matrix.failpoints import Place


class Stage(Enum):
    """When in a maintenance a step is."""

    ENTERING = auto()
    READY = auto()
    LEAVING = auto()


@dataclass(frozen=True)
class Step:
    """One row.

    Attributes:
        key: in the ids of tests.
        title: in the document.
        place: the activity; None for what is no single call, and is recognized by what is seen.
        copying: it is reached when every guest has a part of its memory over; guests move slowly.
    """

    key: str
    title: str
    stage: Stage
    place: Place | None = None
    copying: bool = False


def _becomes(target: ResourceState) -> Place:
    return Place("change_host_state", {"target": target})


STEPS = (
    Step("acquire_lease", "takes the lease", Stage.ENTERING, Place("acquire_lease")),
    Step("get_host", "reads the host", Stage.ENTERING, Place("get_host")),
    Step("read_settings", "reads the settings", Stage.ENTERING, Place("read_settings")),
    Step("take_ticket", "takes its turn", Stage.ENTERING, Place("take_ticket")),
    Step("survey_host", "looks at VMs and destinations", Stage.ENTERING, Place("survey_host")),
    Step(
        "begin_evacuation",
        "becomes PrepareForMaintenance, room set aside",
        Stage.ENTERING,
        Place("begin_evacuation"),
    ),
    Step("put_up_fence", "puts up the fence", Stage.ENTERING, Place("put_up_fence")),
    Step("record_event", "writes that VMs leave", Stage.ENTERING, Place("record_event")),
    Step("list_remaining_vms", "asks which VMs run", Stage.ENTERING, Place("list_remaining_vms")),
    Step("migrate_vm", "migrates a VM", Stage.ENTERING, Place("migrate_vm")),
    Step("copying", "in the middle of three migrations", Stage.ENTERING, copying=True),
    Step(
        "becomes_maintenance",
        "becomes Maintenance",
        Stage.ENTERING,
        _becomes(ResourceState.MAINTENANCE),
    ),
    Step("ready", "is ready, and waits", Stage.READY),
    Step("check_host", "checks the host", Stage.LEAVING, Place("check_host")),
    Step("take_down_fence", "takes down the fence", Stage.LEAVING, Place("take_down_fence")),
    Step("becomes_enabled", "becomes Enabled", Stage.LEAVING, _becomes(ResourceState.ENABLED)),
    Step("release_lease", "releases the lease", Stage.LEAVING, Place("release_lease")),
)
