"""Bodies and queries that only the API knows, and the form of its lists."""

from typing import Annotated, Any, Generic, TypeVar

from pydantic import (
    ConfigDict,
    Field,
    IPvAnyAddress,
    SecretStr,
    StrictBool,
    StrictInt,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from contracts.addition import Fingerprint, Port, UserName
from contracts.base import Contract, Name, Reason, VmName
from contracts.cluster_maintenance import ClusterMaintenanceChoices
from contracts.evacuation import AffinityKind
from contracts.maintenance import OnBlocker, VmAction
from contracts.operations import OperationKind
from contracts.states import AllocationState, HostStatus, ResourceState

T = TypeVar("T")

_MAX_LIMIT = 1000

Limit = Annotated[int, Field(ge=1, le=_MAX_LIMIT)]
# What events and workflow ids are made of; a database refuses the NUL that JSON allows.
SearchText = Annotated[
    str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f]*$")
]
Password = Annotated[SecretStr, Field(min_length=1, max_length=1024)]
PrivateKey = Annotated[SecretStr, Field(min_length=1, max_length=65536)]
Tags = Annotated[frozenset[Name], Field(max_length=100)]


class Items(Contract, Generic[T]):
    """A list."""

    items: list[T]


class Health(Contract):
    """The API can do its work."""

    status: str = "ok"


class ZoneRequest(Contract):
    """A new zone."""

    name: Name


class PodRequest(Contract):
    """A new pod of `zone`."""

    name: Name
    zone: Name


class ClusterRequest(Contract):
    """A new cluster of `pod`."""

    name: Name
    pod: Name


class AllocationRequest(Contract):
    """Whether a zone, pod or cluster is to take new VMs."""

    allocation_state: AllocationState


class HostAdditionRequest(Contract):
    """HostAdditionInput with the credential itself in the place of a stored one's id.

    Exactly one of `password` and `private_key` (OpenSSH's PEM, without passphrase).
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    name: Name
    cluster: Name
    address: IPvAnyAddress
    ssh_port: Port = 22
    user: UserName = "root"
    password: Password | None = None
    private_key: PrivateKey | None = None
    host_key_sha256: Fingerprint | None = None
    enabled: StrictBool = True
    capacity_memory_mib: Annotated[StrictInt, Field(ge=1)] | None = None
    capacity_cpus: Annotated[StrictInt, Field(ge=1)] | None = None
    reserved_memory_mib: Annotated[StrictInt, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_credential(self) -> "HostAdditionRequest":
        if (self.password is None) == (self.private_key is None):
            raise PydanticCustomError(
                "one_credential", "exactly one of password and private_key is required"
            )
        return self

    def credential(self) -> tuple[str, str]:
        """Its kind and itself."""
        if self.password is not None:
            return "password", self.password.get_secret_value()
        if self.private_key is not None:
            return "private_key", self.private_key.get_secret_value()
        raise AssertionError("the validator lets no request through without a credential")


class HostMaintenanceRequest(Contract):
    """HostMaintenanceInput for the host that the path names."""

    reason: Reason = ""
    dry_run: StrictBool = False
    on_blocker: OnBlocker = OnBlocker.REFUSE
    max_parallel: Annotated[StrictInt, Field(ge=1, le=64)] | None = None
    return_vms: StrictBool = False
    queue: StrictBool = True
    host_is_down: StrictBool = False


class LeaveQuery(Contract):
    """LeaveInput for the maintenance of the host that the path names."""

    return_vms: bool | None = None
    force: bool = False


class ClusterMaintenanceRequest(ClusterMaintenanceChoices):
    """ClusterMaintenanceInput for the cluster that the path names."""


class HostTagsRequest(Contract):
    """All tags that a host is to have."""

    tags: Tags


class VmPolicyRequest(Contract):
    """VmPolicy of the VM that the path names."""

    pinned: StrictBool = False
    reason: Reason = ""
    tags: Tags = frozenset()


class AffinityGroupRequest(Contract):
    """AffinityGroup of the name in the path."""

    kind: AffinityKind
    members: Annotated[frozenset[VmName], Field(max_length=1000)]


class ResolveVmRequest(Contract):
    """ResolveVmInput for the VM that the path names."""

    action: VmAction


class SettingRequest(Contract):
    """The value of a setting: what it may be, each setting says itself."""

    value: Any


class SettingQuery(Contract):
    """Where a setting is asked about or changed; globally without both."""

    cluster: Name | None = None
    zone: Name | None = None


class PodQuery(Contract):
    """Which pods to list."""

    zone: Name | None = None


class ClusterQuery(Contract):
    """Which clusters to list."""

    zone: Name | None = None
    pod: Name | None = None


class HostQuery(Contract):
    """Which hosts to list."""

    cluster: Name | None = None
    zone: Name | None = None
    pod: Name | None = None
    resource_state: ResourceState | None = None
    status: HostStatus | None = None


class OperationQuery(Contract):
    """Which operations to list; `status` is Temporal's word, as in an Operation."""

    kind: OperationKind | None = None
    status: (
        Annotated[
            str,
            StringConstraints(pattern="^(RUNNING|COMPLETED|FAILED|CANCELED|TERMINATED|TIMED_OUT)$"),
        ]
        | None
    ) = None
    limit: Limit = 100


class EventQuery(Contract):
    """Which events to list; `before`: only older ones than the event of that id."""

    subject: SearchText | None = None
    operation: SearchText | None = None
    limit: Limit = 100
    before: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = None
