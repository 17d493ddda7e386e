"""Bodies and queries that only the API knows, and the form of its lists."""

from enum import StrEnum
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import (
    AwareDatetime,
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
from contracts.certificates import (
    Certificate,
    CertificateRole,
    CertificatesPem,
    CertificateState,
    RequestPem,
    RevocationReason,
    Serial,
    check_host_of_role,
)
from contracts.cluster_maintenance import ClusterMaintenanceChoices
from contracts.evacuation import AffinityKind
from contracts.host_import import MAX_HOSTS, Parallel
from contracts.hosts import Event
from contracts.maintenance import OnBlocker, VmAction, check_power_off
from contracts.oobm import (
    DEFAULT_CIPHER_SUITE,
    DEFAULT_DRIVER,
    BmcAddress,
    BmcCertificate,
    BmcUser,
    CipherSuite,
)
from contracts.operations import OperationKind
from contracts.passwords import DEFAULT_ACCOUNT, OnFailure
from contracts.power import BmcPrivilege
from contracts.power_actions import PowerChoices
from contracts.reinstallation import ReinstallationChoices
from contracts.removal import check_choices
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


class Page(Items[T]):
    """A part of a list that is sorted by name. `next`: the `after` of the part that follows, None
    at the end."""

    next: Name | None = None


class EventPage(Items[Event]):
    """A part of the audit trail, the newest event first. `next`: the `before` of the part that
    follows, None at the end."""

    next: int | None = None


class PageQuery(Contract):
    """Which part of a list that is sorted by name: at most `limit` entries, of names that come
    after `after`."""

    limit: Limit = 100
    after: Name | None = None


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


class PlaceRequest(Contract):
    """What is to change of a zone, pod or cluster: either its name, or whether its hosts take new
    VMs; `reason` goes with the latter."""

    name: Name | None = None
    allocation_state: AllocationState | None = None
    reason: Reason = ""

    @model_validator(mode="after")
    def _one_change(self) -> "PlaceRequest":
        if (self.name is None) == (self.allocation_state is None):
            raise PydanticCustomError(
                "one_change", "exactly one of name and allocation_state is required"
            )
        return self


class HostAllocationRequest(Contract):
    """Whether a host is to take new VMs: `Enabled` or `Disabled`. Other states have operations of
    their own."""

    resource_state: Literal[ResourceState.ENABLED, ResourceState.DISABLED]
    reason: Reason = ""


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
    dry_run: StrictBool = False
    returning: StrictBool = False
    install_packages: StrictBool = False

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


class HostImportRequest(Contract):
    """Many hosts: each as in HostAdditionRequest, once `defaults` has filled in what it lacks.

    Attributes:
        name: of the import; None: one is made up.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    name: Name | None = None
    parallel: Parallel = 20
    defaults: dict[str, Any] = Field(default_factory=dict)
    hosts: Annotated[list[Any], Field(min_length=1, max_length=MAX_HOSTS)]


class HostMaintenanceRequest(Contract):
    """HostMaintenanceInput for the host that the path names."""

    reason: Reason = ""
    dry_run: StrictBool = False
    on_blocker: OnBlocker = OnBlocker.REFUSE
    max_parallel: Annotated[StrictInt, Field(ge=1, le=64)] | None = None
    return_vms: StrictBool = False
    queue: StrictBool = True
    host_is_down: StrictBool = False
    power_off_when_ready: StrictBool = False
    fall_back_to_off: StrictBool = False

    @model_validator(mode="after")
    def _check(self) -> "HostMaintenanceRequest":
        check_power_off(self)
        return self


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


class ZoneQuery(PageQuery):
    """Which zones to list."""

    allocation_state: AllocationState | None = None


class PodQuery(PageQuery):
    """Which pods to list."""

    zone: Name | None = None
    allocation_state: AllocationState | None = None


class ClusterQuery(PageQuery):
    """Which clusters to list."""

    zone: Name | None = None
    pod: Name | None = None
    allocation_state: AllocationState | None = None


class HostQuery(PageQuery):
    """Which hosts to list."""

    cluster: Name | None = None
    zone: Name | None = None
    pod: Name | None = None
    resource_state: ResourceState | None = None
    status: HostStatus | None = None
    tag: Name | None = None


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


class RemovalQuery(Contract):
    """HostRemovalInput for the host that the path names."""

    reason: Reason = ""
    after_maintenance: bool = False
    forced: bool = False
    leave_vms: bool = False
    dry_run: bool = False
    on_blocker: OnBlocker = OnBlocker.REFUSE
    max_parallel: Annotated[int, Field(ge=1, le=64)] | None = None
    queue: bool = True
    power_off: bool = False
    fall_back_to_off: bool = False

    @model_validator(mode="after")
    def _check(self) -> "RemovalQuery":
        check_choices(self)
        return self


class SettleRemovedRequest(Contract):
    """Why a removed host is not cleaned any more."""

    reason: Annotated[Reason, StringConstraints(strip_whitespace=True, min_length=1)]


class DisclosureRequest(Contract):
    """Why a credential has to be seen."""

    reason: Annotated[Reason, StringConstraints(strip_whitespace=True, min_length=1)]


class OptionalCredential(Contract):
    """At most one of `password` and `private_key` (OpenSSH's PEM, without passphrase)."""

    model_config = ConfigDict(hide_input_in_errors=True)

    password: Password | None = None
    private_key: PrivateKey | None = None

    @model_validator(mode="after")
    def _one_credential(self) -> "OptionalCredential":
        if self.password is not None and self.private_key is not None:
            raise PydanticCustomError(
                "one_credential", "only one of password and private_key can be given"
            )
        return self

    def credential(self) -> tuple[str, str] | None:
        """Its kind and itself."""
        if self.password is not None:
            return "password", self.password.get_secret_value()
        if self.private_key is not None:
            return "private_key", self.private_key.get_secret_value()
        return None


class HostReinstallationRequest(OptionalCredential, ReinstallationChoices):
    """HostReinstallationInput for the host that the path names, with the credential itself."""


class AnswerReinstallationRequest(OptionalCredential):
    """AnswerReinstallationInput for the host that the path names, with the credential itself."""

    host_key_sha256: Fingerprint | None = None
    install_packages: StrictBool = False
    skip_command: StrictBool = False
    skip_network_boot: StrictBool = False
    force: StrictBool = False


BmcPort = Annotated[StrictInt, Field(ge=1, le=65_535)]


class OobmRequest(Contract):
    """How a host's BMC is reached. `port`, `cipher_suite`: None: the driver chooses. `certificate`:
    in PEM, for Redfish: one that has signed the BMC's, or is it."""

    model_config = ConfigDict(hide_input_in_errors=True)

    enabled: StrictBool = False
    driver: Name = DEFAULT_DRIVER
    address: BmcAddress
    port: BmcPort | None = None
    user: BmcUser
    password: Password
    privilege: BmcPrivilege = BmcPrivilege.ADMINISTRATOR
    cipher_suite: CipherSuite | None = DEFAULT_CIPHER_SUITE
    certificate: BmcCertificate | None = None


class OobmChangeRequest(Contract):
    """What is to change of how a host's BMC is reached; what is left out stays."""

    model_config = ConfigDict(hide_input_in_errors=True)

    enabled: StrictBool | None = None
    driver: Name | None = None
    address: BmcAddress | None = None
    port: BmcPort | None = None
    user: BmcUser | None = None
    password: Password | None = None
    privilege: BmcPrivilege | None = None
    cipher_suite: CipherSuite | None = None
    certificate: BmcCertificate | None = None

    @model_validator(mode="after")
    def _check(self) -> "OobmChangeRequest":
        given = self.model_fields_set
        if not given:
            raise PydanticCustomError("no_change", "there is nothing to change")
        for name in ("enabled", "driver", "address", "user", "password", "privilege"):
            if name in given and getattr(self, name) is None:
                raise PydanticCustomError("no_null", "{name} must not be null", {"name": name})
        return self


class BmcTestRequest(Contract):
    """What a look at a BMC takes in the place of what is configured."""

    model_config = ConfigDict(hide_input_in_errors=True)

    driver: Name | None = None
    address: BmcAddress | None = None
    port: BmcPort | None = None
    user: BmcUser | None = None
    password: Password | None = None
    privilege: BmcPrivilege | None = None
    cipher_suite: CipherSuite | None = None
    certificate: BmcCertificate | None = None


class BmcPasswordRequest(Contract):
    """BmcPasswordChangeInput with the password itself; None: a random one."""

    model_config = ConfigDict(hide_input_in_errors=True)

    password: Password | None = None
    reason: Reason = ""


class OobmSwitchRequest(Contract):
    """Whether out-of-band management is enabled for a zone or cluster."""

    enabled: StrictBool


class PowerRequest(PowerChoices):
    """PowerActionInput for the host that the path names."""


class RoundsQuery(Contract):
    """How many of the latest rounds to tell."""

    rounds: Annotated[int, Field(ge=0, le=100)] = 10


class CertificateRequest(Contract):
    """CertificateSigningInput, but for who asks."""

    model_config = ConfigDict(hide_input_in_errors=True)

    csr: RequestPem
    host: Name | None = None
    role: CertificateRole = CertificateRole.HOST

    @model_validator(mode="after")
    def _host_of_role(self) -> "CertificateRequest":
        check_host_of_role(self.role, self.host)
        return self


class CertificateQuery(Contract):
    """Which certificates to list: at most `limit`, of serials that come after `after`."""

    host: Name | None = None
    state: CertificateState | None = None
    expires_before: AwareDatetime | None = None
    limit: Limit = 100
    after: Serial | None = None


class CertificatePage(Items[Certificate]):
    """A part of a list by serial. `next`: the `after` of the part that follows."""

    next: str | None = None


class ProvisioningRequest(Contract):
    """Why a host gets certificates."""

    reason: Reason = ""


class RevocationRequest(Contract):
    """Why certificates are revoked."""

    reason: RevocationReason = RevocationReason.UNSPECIFIED


class CrlFormat(StrEnum):
    """How a revocation list is encoded."""

    DER = "der"
    PEM = "pem"


class AuthorityRequest(Contract):
    """An operator's own CA: its private key (PEM, without passphrase) and its chain (PEM, the
    certificate of that key first, a self-signed one last); neither, to have one made."""

    model_config = ConfigDict(hide_input_in_errors=True)

    private_key: PrivateKey | None = None
    chain: CertificatesPem | None = None

    @model_validator(mode="after")
    def _both_or_none(self) -> "AuthorityRequest":
        if (self.private_key is None) != (self.chain is None):
            raise PydanticCustomError("both", "private_key and chain go together")
        return self


class RolloverRequest(AuthorityRequest):
    """The CA that is to take the place of the present one: an operator's own, or one to be made.

    Attributes:
        leave_out: hosts that are not waited for.
        dry_run: only look what there is to do.
    """

    leave_out: tuple[Name, ...] = ()
    reason: Reason = ""
    dry_run: bool = False

    @model_validator(mode="after")
    def _dry_without_key(self) -> "RolloverRequest":
        if self.dry_run and self.chain is not None:
            raise PydanticCustomError("dry_run", "a dry run takes no CA")
        return self


class EventQuery(Contract):
    """Which events to list; `since`, `until`: when they were written, with a time zone; `before`:
    only older ones than the event of that id."""

    subject: SearchText | None = None
    kind: SearchText | None = None
    operation: SearchText | None = None
    actor: SearchText | None = None
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    limit: Limit = 100
    before: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = None


class PasswordRotationRequest(Contract):
    """A change of the passwords of a cluster's hosts. `password`: the new one, stored before the
    change starts; without it, the one that is staged, or a random one. The rest as in
    PasswordRotationInput."""

    password: Password | None = None
    account: UserName = DEFAULT_ACCOUNT
    host: Name | None = None
    leave_out: tuple[Name, ...] = ()
    reason: Reason = ""
    on_failure: OnFailure | None = None
    accept_unknown: StrictBool = False


class StagePasswordRequest(Contract):
    """A new password of the account on all hosts of a cluster, to be set by the next change."""

    password: Password
    account: UserName = DEFAULT_ACCOUNT
