"""Operations: one workflow run on a subject, as API and CLI show it."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from contracts.allocation import AllocationLevel
from contracts.base import Contract
from contracts.leases import LeaseScope

DEFAULT_TASK_QUEUE = "hostler"


class OperationKind(StrEnum):
    """The first part of an operation's workflow id."""

    MAINTENANCE = "maintenance"
    ADDITION = "addition"
    RETURN = "return"
    CLUSTER_MAINTENANCE = "cluster-maintenance"
    IMPORT = "import"
    HOST_ALLOCATION = "host-allocation"
    CLUSTER_ALLOCATION = "cluster-allocation"
    POD_ALLOCATION = "pod-allocation"
    ZONE_ALLOCATION = "zone-allocation"
    REMOVAL = "removal"
    REINSTALLATION = "reinstallation"
    POWER = "power"
    BMC_PASSWORD = "bmc-password"  # noqa: S105 - the name of an operation
    ROTATION = "rotation"
    PROVISIONING = "provisioning"
    CLUSTER_CERTIFICATES = "cluster-certificates"
    SIGNING = "signing"
    REVOCATION = "revocation"
    CA_SETUP = "ca-setup"
    ROLLOVER = "rollover"


WORKFLOW_TYPES: dict[OperationKind, str] = {
    OperationKind.MAINTENANCE: "HostMaintenance",
    OperationKind.ADDITION: "HostAddition",
    OperationKind.RETURN: "VmReturn",
    OperationKind.CLUSTER_MAINTENANCE: "ClusterMaintenance",
    OperationKind.HOST_ALLOCATION: "AllocationState",
    OperationKind.CLUSTER_ALLOCATION: "AllocationState",
    OperationKind.POD_ALLOCATION: "AllocationState",
    OperationKind.ZONE_ALLOCATION: "AllocationState",
    OperationKind.IMPORT: "HostImport",
    OperationKind.REMOVAL: "HostRemoval",
    OperationKind.REINSTALLATION: "HostReinstallation",
    OperationKind.POWER: "PowerAction",
    OperationKind.BMC_PASSWORD: "BmcPasswordChange",
    OperationKind.ROTATION: "PasswordRotation",
    OperationKind.PROVISIONING: "CertificateProvisioning",
    OperationKind.CLUSTER_CERTIFICATES: "ClusterCertificates",
    OperationKind.SIGNING: "CertificateSigning",
    OperationKind.REVOCATION: "CertificateRevocation",
    OperationKind.CA_SETUP: "AuthoritySetup",
    OperationKind.ROLLOVER: "AuthorityRollover",
}

ALLOCATION_KINDS = {
    AllocationLevel.HOST: OperationKind.HOST_ALLOCATION,
    AllocationLevel.CLUSTER: OperationKind.CLUSTER_ALLOCATION,
    AllocationLevel.POD: OperationKind.POD_ALLOCATION,
    AllocationLevel.ZONE: OperationKind.ZONE_ALLOCATION,
}

# What is done to a cluster, pod or zone; an import has a name of its own; what concerns
# certificates and their authority holds no host. The subject of all others is a host.
SUBJECTS = {
    OperationKind.CLUSTER_MAINTENANCE: "cluster",
    OperationKind.ROTATION: "cluster",
    OperationKind.CLUSTER_CERTIFICATES: "cluster",
    OperationKind.IMPORT: "import",
    OperationKind.SIGNING: "certificate",
    OperationKind.REVOCATION: "certificate",
    OperationKind.CA_SETUP: "ca",
    OperationKind.ROLLOVER: "ca",
} | {kind: level.value for level, kind in ALLOCATION_KINDS.items()}
# What works on a host's BMC: its power, and the BMC's password. It goes beside all others.
POWER_KINDS = (OperationKind.POWER, OperationKind.BMC_PASSWORD)
# What changes a host's certificates; VMs stay where they are.
TRUST_KINDS = (OperationKind.PROVISIONING,)
# What holds a host's lease: one at a time on each.
HOST_KINDS = tuple(
    kind
    for kind in OperationKind
    if kind not in SUBJECTS and kind not in (*POWER_KINDS, *TRUST_KINDS)
)


def lease_scope(kind: OperationKind) -> LeaseScope:
    """Which of a host's leases an operation of that kind holds."""
    if kind in TRUST_KINDS:
        return LeaseScope.TRUST
    return LeaseScope.POWER if kind in POWER_KINDS else LeaseScope.PLACEMENT


def workflow_id(kind: OperationKind, subject: str) -> str:
    """The workflow id that the API and the CLI use for an operation."""
    return f"{kind}/{subject}"


def kinds_of(workflow_type: str) -> tuple[OperationKind, ...]:
    """All kinds that are run by workflows of that type."""
    return tuple(kind for kind, known in WORKFLOW_TYPES.items() if known == workflow_type)


def kind_of(workflow_type: str, workflow: str) -> OperationKind | None:
    """The kind of a workflow by its type and, where several share that, by the usual form of its
    id; None: these do not say."""
    kinds = kinds_of(workflow_type)
    if len(kinds) == 1:
        return kinds[0]
    return next((kind for kind in kinds if workflow.startswith(workflow_id(kind, ""))), None)


# What Temporal keeps beside a workflow that the API has started: who asked, and for which request.
CALLER_MEMO = "requested_by"
ACCEPTED_MEMO = "accepted"


class AcceptedState(StrEnum):
    """Where a request stands that was stored before its operation was started."""

    ACCEPTED = "accepted"
    STARTED = "started"
    EXPIRED = "expired"


class AcceptedOperation(Contract):
    """A request for an operation, as it was stored.

    Attributes:
        request: the workflow's input.
        caller: name of the token that asked.
        run_id: first run of the workflow that was started for it.
        reason: why it has expired.
    """

    id: str
    kind: OperationKind
    subject: str
    request: dict[str, Any]
    caller: str
    state: AcceptedState
    run_id: str | None
    reason: str
    accepted_at: datetime


class Operation(Contract):
    """An operation as Temporal reports it.

    Attributes:
        status: Temporal's word for it: RUNNING, COMPLETED, FAILED, CANCELED, TERMINATED, TIMED_OUT.
        details: the workflow's own `status` answer while it runs, its result afterwards.
        error: why it failed, in one line.
        warnings: what whoever has just started it should know.
    """

    kind: OperationKind
    subject: str
    workflow_id: str
    run_id: str
    status: str
    started_at: datetime
    closed_at: datetime | None = None
    details: dict[str, Any] | None = None
    error: str | None = None
    error_type: str | None = None
    warnings: tuple[str, ...] = ()
