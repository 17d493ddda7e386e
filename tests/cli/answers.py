"""What the API answers, in the shape of contracts/."""

from datetime import UTC, datetime
from typing import Any

from contracts.evacuation import Blocker, BlockerKind, EvacuationPlan, Move
from contracts.hosts import Host, HostFacts
from contracts.maintenance import MaintenanceView, VmStatus
from contracts.operations import Operation, OperationKind
from contracts.states import HostStatus, Phase, ResourceState
from contracts.vms import MigrationState, VmMigration

WHEN = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)
FINGERPRINT = "SHA256:" + "A" * 43
FACTS = HostFacts(
    uuid="5ab1f0c4-0000-4000-8000-000000000001",
    architecture="x86_64",
    cpu_model="EPYC",
    cpus=2,
    memory_mib=512,
    libvirt_version="9.0.0",
    qemu_version="7.2.19",
    operating_system="Debian GNU/Linux 12",
)


def host(name: str = "kvm-1", state: ResourceState = ResourceState.ENABLED) -> Host:
    return Host(
        name=name,
        zone="zone-1",
        pod="pod-1",
        cluster="cluster-1",
        address="198.18.0.11",
        user="root",
        host_key_sha256=FINGERPRINT,
        resource_state=state,
        state_before_maintenance=None,
        status=HostStatus.UP,
        fence=None,
        fence_generation=1,
        facts=FACTS,
        capacity_memory_mib=None,
        capacity_cpus=None,
        reserved_memory_mib=0,
        created_at=WHEN,
        updated_at=WHEN,
    )


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
