"""What the API answers, in the shape of contracts/."""

from typing import Any

from contracts.evacuation import Blocker, BlockerKind, EvacuationPlan, Move
from contracts.maintenance import MaintenanceView, VmStatus
from contracts.operations import Operation, OperationKind
from contracts.states import Phase
from contracts.vms import MigrationState, VmMigration
from tests.samples import WHEN


def operation(
    status: str = "RUNNING",
    kind: OperationKind = OperationKind.MAINTENANCE,
    subject: str = "kvm-1",
    details: Any = None,
    error: str | None = None,
) -> Operation:
    return Operation(
        kind=kind,
        subject=subject,
        workflow_id=f"{kind}/{subject}",
        run_id="0198-run",
        status=status,
        started_at=WHEN,
        closed_at=None if status == "RUNNING" else WHEN,
        details=None if details is None else details.model_dump(mode="json"),
        error=error,
        error_type=None if error is None else "Failed",
    )


def vm(name: str, state: MigrationState, **more: Any) -> VmStatus:
    return VmStatus(vm=name, uuid=f"uuid-of-{name}", state=state, **more)


def view(phase: Phase, message: str, *vms: VmStatus, **more: Any) -> MaintenanceView:
    return MaintenanceView(
        **{
            "host": "kvm-1",
            "phase": phase,
            "reason": "new RAM",
            "message": message,
            "since": WHEN,
            "plan": None,
            "vms": vms,
            "workflow_id": "maintenance/kvm-1",
            "run_id": "0198-run",
            "migrations": (),
            **more,
        }
    )


def migration(name: str, percent: int) -> VmMigration:
    return VmMigration(
        operation="maintenance/kvm-1",
        vm=name,
        source="kvm-1",
        destination="kvm-2",
        state=MigrationState.MIGRATING,
        percent=percent,
        rate_mib_s=12.34,
        remaining_mib=60,
        attempt=1,
        error=None,
        started_at=WHEN,
        finished_at=None,
    )


PLAN = EvacuationPlan(
    host="kvm-1",
    moves=(Move(vm="vm-1", uuid="uuid-of-vm-1", destination="kvm-2", memory_mib=64, vcpus=1),),
    blockers=(
        Blocker(
            vm="vm-2",
            kind=BlockerKind.NO_DESTINATION,
            message="no host can take it",
            candidates={"kvm-2": "32 MiB free, 64 needed", "kvm-3": "is Disabled"},
        ),
    ),
)
