"""Operations: one workflow run on a subject, as API and CLI show it."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from contracts.base import Contract

DEFAULT_TASK_QUEUE = "hostler"


class OperationKind(StrEnum):
    """The first part of an operation's workflow id."""

    MAINTENANCE = "maintenance"
    ADDITION = "addition"
    RETURN = "return"
    CLUSTER_MAINTENANCE = "cluster-maintenance"


WORKFLOW_TYPES: dict[OperationKind, str] = {
    OperationKind.MAINTENANCE: "HostMaintenance",
    OperationKind.ADDITION: "HostAddition",
    OperationKind.RETURN: "VmReturn",
    OperationKind.CLUSTER_MAINTENANCE: "ClusterMaintenance",
}

# What is done to a cluster; the subject of all others is a host.
CLUSTER_KINDS = frozenset({OperationKind.CLUSTER_MAINTENANCE})
HOST_KINDS = tuple(kind for kind in OperationKind if kind not in CLUSTER_KINDS)


def workflow_id(kind: OperationKind, subject: str) -> str:
    """The workflow id that the API and the CLI use for an operation."""
    return f"{kind}/{subject}"


class Operation(Contract):
    """An operation as Temporal reports it.

    Attributes:
        status: Temporal's word for it: RUNNING, COMPLETED, FAILED, CANCELED, TERMINATED, TIMED_OUT.
        details: the workflow's own `status` answer while it runs, its result afterwards.
        error: why it failed, in one line.
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
