"""The tables. Names are unique; ids are for references alone."""

import time
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKeyConstraint,
    UniqueConstraint,
)
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel

from contracts.access import Role
from contracts.certificates import AuthorityOrigin, AuthorityState
from contracts.leases import LeaseScope
from contracts.oobm import DEFAULT_CIPHER_SUITE, DEFAULT_DRIVER, PowerProblem
from contracts.operations import AcceptedState
from contracts.passwords import PasswordState
from contracts.power import BmcPrivilege, PowerState
from contracts.states import AllocationState, HostStatus, ResourceState, TlsState
from contracts.vms import MigrationState


def now() -> datetime:
    """The present, in UTC."""
    return datetime.now(UTC)


def first_generation() -> int:
    """Microseconds since 1970: no configuration begins where one that was deleted has ended."""
    return time.time_ns() // 1000


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC. SQLite stores no time zone, so it is put back when read."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Naive values are UTC: nothing else is ever written."""
        return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)


class ZoneRow(SQLModel, table=True):
    """A data centre."""

    __tablename__ = "zone"

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    allocation_state: str = AllocationState.DISABLED
    oobm_enabled: bool = True


class PodRow(SQLModel, table=True):
    """A part of a zone."""

    __tablename__ = "pod"

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    zone_id: int = Field(foreign_key="zone.id", index=True)
    allocation_state: str = AllocationState.DISABLED


class ClusterRow(SQLModel, table=True):
    """Hosts between which VMs can live-migrate. `certificate_id`: what its hosts' certificates call
    it; no later cluster gets it, as it may get a name, or on SQLite the id of a row."""

    __tablename__ = "cluster"

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    pod_id: int = Field(foreign_key="pod.id", index=True)
    allocation_state: str = AllocationState.DISABLED
    oobm_enabled: bool = True
    certificate_id: str = Field(default_factory=lambda: token_hex(8))


class KeyringRow(SQLModel, table=True):
    """The one row that says which master key encrypts. `known`: ids of all that ever did: what
    names another one is damaged. `given_up`: ids of keys that are lost."""

    __tablename__ = "keyring"

    id: int = Field(default=1, primary_key=True)
    key_id: str
    known: list[str] = Field(default_factory=list, sa_type=JSON)
    given_up: list[str] = Field(default_factory=list, sa_type=JSON)
    since: datetime = Field(sa_type=UtcDateTime, default_factory=now)


class SecretVersionRow(SQLModel, table=True):
    """One version of a credential. `ciphertext` names its master key: inventory/secret_box.py."""

    __tablename__ = "secret_version"

    id: str = Field(primary_key=True)
    kind: str
    ciphertext: bytes
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=now)


class ClusterPasswordRow(SQLModel, table=True):
    """A version of the password that an account has on all hosts of a cluster. `operation`: whose
    it is while it is staged. `abandoned`: it never became current. `secret_id`: None once it is
    retired."""

    __tablename__ = "cluster_password"
    __table_args__ = (UniqueConstraint("cluster_id", "account", "operation"),)

    cluster_id: int = Field(primary_key=True, foreign_key="cluster.id")
    account: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    state: str
    operation: str | None = None
    abandoned: bool = False
    secret_id: str | None = Field(default=None, foreign_key="secret_version.id")
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=now)
    changed_at: datetime = Field(sa_type=UtcDateTime, default_factory=now)


class HostPasswordRow(SQLModel, table=True):
    """Which password of an account a host has: proven by a login, at `proven_at`.
    `former_secret_id`: the one before, until the new one is promoted."""

    __tablename__ = "host_password"

    host: str = Field(primary_key=True, foreign_key="host.name")
    account: str = Field(primary_key=True)
    secret_id: str = Field(foreign_key="secret_version.id", index=True)
    former_secret_id: str | None = Field(default=None, foreign_key="secret_version.id")
    proven_at: datetime = Field(sa_type=UtcDateTime, default_factory=now)


class PasswordAttemptRow(SQLModel, table=True):
    """A password that somebody began to give to an account of a host: it may have it, until a login
    has proven which one it has. Committed before the host is told."""

    __tablename__ = "password_attempt"

    host: str = Field(primary_key=True, foreign_key="host.name")
    account: str = Field(primary_key=True)
    secret_id: str = Field(primary_key=True, foreign_key="secret_version.id")
    at: datetime = Field(sa_type=UtcDateTime, default_factory=now)


class PasswordCheckRow(SQLModel, table=True):
    """What was last seen of a password of an account on a host, as HostPasswordReport.

    `proof`: what proves a login there. `tried_at`: when it was last to be brought up to date, in
    vain. `refused`: logins in a row that the host has refused, the last one at `refused_at`: so
    many may be tried until it locks the account.
    """

    __tablename__ = "password_check"

    host: str = Field(primary_key=True, foreign_key="host.name")
    account: str = Field(primary_key=True)
    state: str = PasswordState.UNKNOWN
    version: int | None = None
    proof: str | None = None
    reason: str = ""
    checked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    tried_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    refused: int = 0
    refused_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class HostRow(SQLModel, table=True):
    """A hypervisor host.

    `state_operation` and `state_step` say which step wrote the resource state: a repetition of that
    step finds its work done. `secret_id` is the credential that logs in; `staged_key_id` a key of
    Hostler's own that is not proven yet; `password_secret_id` the password of `user`, where it is
    known beside a key. `missed_checks`: checks in a row that the host did not answer. `closed`: its
    own fence lets no new VM start, as far as Hostler has told it; None: nobody knows what it was
    told last. `read_at`: when it was last read in full. `peers_reach`: whether other hosts of its
    cluster reached its SSH port while it was Up; None: none of them was able to tell.
    `environment`, `tls_again`: what it offered to VMs, and its `tls`, before the re-installation
    that it is in.
    """

    __tablename__ = "host"
    __table_args__ = (UniqueConstraint("address", "ssh_port"),)

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    cluster_id: int = Field(foreign_key="cluster.id", index=True)
    address: str
    ssh_port: int
    user: str
    secret_id: str = Field(foreign_key="secret_version.id")
    staged_key_id: str | None = Field(default=None, foreign_key="secret_version.id")
    password_secret_id: str | None = Field(default=None, foreign_key="secret_version.id")
    host_key_line: str
    host_key_sha256: str
    uuid: str | None = Field(default=None, unique=True)
    facts: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    usage: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    resource_state: str = ResourceState.CREATING
    state_operation: str
    state_step: str
    state_before_maintenance: str | None = None
    status: str = HostStatus.DISCONNECTED
    status_reason: str = ""
    status_since: datetime | None = Field(default=None, sa_type=UtcDateTime)
    checked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    missed_checks: int = 0
    read_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    peers_reach: bool | None = None
    closed: bool | None = None
    fence: str | None = None
    fence_generation: int = 0
    capacity_memory_mib: int | None = None
    capacity_cpus: int | None = None
    reserved_memory_mib: int = 0
    tls: str = TlsState.NONE
    tls_again: str | None = None
    environment: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=now)
    updated_at: datetime = Field(sa_type=UtcDateTime, default_factory=now)


class OobmRow(SQLModel, table=True):
    """How a host's BMC is reached, and what it last said.

    `enabled`: the host's own switch; those of its cluster and zone count as well. `generation`:
    rises with each change of how it is reached, or of its password, so that what was seen by a
    former configuration, also by one that was deleted, is not taken for the present one.
    `endpoint`: what no other host's has. `staged_secret_id`: a new password that is not proven yet.
    `guid`: of the BMC, from its first answer on. `observed_at`: when it was last asked; the state
    is stale after `fresh_until`. `failures`: in a row; while there are any, it is not asked with
    the others, and not before `retry_at`.
    """

    __tablename__ = "oobm"

    host: str = Field(primary_key=True, foreign_key="host.name")
    enabled: bool = False
    generation: int = Field(sa_type=BigInteger, default_factory=first_generation)
    driver: str = DEFAULT_DRIVER
    address: str
    port: int | None = None
    endpoint: str = Field(unique=True)
    user: str
    privilege: str = BmcPrivilege.ADMINISTRATOR
    cipher_suite: int | None = DEFAULT_CIPHER_SUITE
    certificate: str | None = None
    secret_id: str = Field(foreign_key="secret_version.id")
    staged_secret_id: str | None = Field(default=None, foreign_key="secret_version.id")
    guid: str | None = None
    power_state: str = PowerState.UNKNOWN
    power_since: datetime | None = Field(default=None, sa_type=UtcDateTime)
    problem: str | None = PowerProblem.NOT_ASKED
    reason: str = ""
    observed_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    fresh_until: datetime | None = Field(default=None, sa_type=UtcDateTime)
    failures: int = 0
    retry_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    updated_at: datetime = Field(sa_type=UtcDateTime, default_factory=now)


class PowerCommandRow(SQLModel, table=True):
    """A command to a BMC, committed before it is sent: whoever finds it here does not send it
    again.

    `operation`: workflow id and first run id. `boot_id`: of the host, before the command. `until`:
    what is seen later is not its work, even if nobody has written down its end.
    `accepted_at`: when the BMC had said that it does it. `problem`: why it has not, or that an
    attempt at sending it was taken over by the next one. `outcome`: a CommandOutcome, once that is
    known.
    """

    __tablename__ = "power_command"

    operation: str = Field(primary_key=True)
    action: str = Field(primary_key=True)
    host: str = Field(index=True)
    boot_id: str | None = None
    sent_at: datetime = Field(sa_type=UtcDateTime, default_factory=now)
    until: datetime = Field(sa_type=UtcDateTime)
    accepted_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    problem: str = ""
    outcome: str | None = None
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class PowerRoundRow(SQLModel, table=True):
    """A sweep over all BMCs, as PowerRound. `counts`: of PowerCount."""

    __tablename__ = "power_round"

    started_at: datetime = Field(sa_type=UtcDateTime, primary_key=True)
    ended_at: datetime = Field(sa_type=UtcDateTime)
    asked: int
    answered: int
    waiting: int
    changed: int
    oldest_observed_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    counts: list[dict[str, Any]] = Field(sa_type=JSON)


class RemovedHostRow(SQLModel, table=True):
    """A tombstone: a machine that was removed, by what it is known by.

    `secret_id`: kept until the host's own side is clean (`cleaned_at`), which has to wait when the
    host did not answer, or nobody is to clean it any more (`settled_at`). `tried_at`: when that was
    last tried in vain. `vms`: names of those that were last seen there.
    """

    __tablename__ = "removed_host"

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(index=True)
    cluster: str
    address: str
    ssh_port: int
    user: str
    secret_id: str | None = Field(default=None, foreign_key="secret_version.id")
    host_key_line: str
    host_key_sha256: str = Field(index=True)
    uuid: str | None = Field(default=None, index=True)
    forced: bool = False
    reason: str = ""
    vms: list[str] = Field(default_factory=list, sa_type=JSON)
    operation: str
    removed_at: datetime = Field(sa_type=UtcDateTime, default_factory=now)
    cleaned_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    settled_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    tried_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    cleaning_problem: str = ""


class EventRow(SQLModel, table=True):
    """One line of the audit trail; never changed, never deleted. `from_state`, `to_state` and
    `reason`: of a change of state."""

    __tablename__ = "event"

    id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(sa_type=UtcDateTime, default_factory=now)
    kind: str
    subject: str = Field(index=True)
    message: str
    from_state: str | None = None
    to_state: str | None = None
    reason: str | None = None
    operation: str | None = Field(default=None, index=True)
    actor: str


class OperationRow(SQLModel, table=True):
    """A request for an operation: see inventory/accepted_operations.py. `request`: the workflow's
    input, in which secrets are ids. `digest_secret_id`: of all that was asked, encrypted; with a
    key alone."""

    __tablename__ = "operation"
    __table_args__ = (UniqueConstraint("caller", "idempotency_key"),)

    id: str = Field(primary_key=True)
    kind: str
    subject: str
    request: dict[str, Any] = Field(sa_type=JSON)
    caller: str
    idempotency_key: str | None = None
    digest_secret_id: str | None = Field(default=None, foreign_key="secret_version.id")
    state: str = AcceptedState.ACCEPTED
    run_id: str | None = None
    reason: str = ""
    accepted_at: datetime = Field(sa_type=UtcDateTime, default_factory=now)


class LeaseRow(SQLModel, table=True):
    """Who holds (host, scope). The row outlives its holders and the host: `epoch` never falls.

    `predecessor_*`: whom the present holder took it over from, so that a repeated acquire says the
    same as the first.
    """

    __tablename__ = "lease"

    host: str = Field(primary_key=True)
    scope: str = Field(primary_key=True, default=LeaseScope.PLACEMENT)
    epoch: int = 0
    workflow_id: str | None = None
    first_run_id: str | None = None
    purpose: str = ""
    predecessor_workflow_id: str | None = None
    predecessor_first_run_id: str | None = None
    acquired_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class ReservationRow(SQLModel, table=True):
    """Memory and CPUs of a destination, set aside for one VM; while `migrating`, also a slot at
    both ends.

    Owned by the lease (`lease_host`, `epoch`) of the operation that moves the VM: of its source
    while that is emptied, of its destination when it comes back.
    """

    __tablename__ = "reservation"
    __table_args__ = (UniqueConstraint("destination", "vm_uuid"),)

    id: int | None = Field(default=None, primary_key=True)
    destination: str = Field(foreign_key="host.name")
    source: str = Field(foreign_key="host.name", index=True)
    lease_host: str
    epoch: int
    migrating: bool = True
    vm_uuid: str
    vm: str
    memory_mib: int
    vcpus: int
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=now)


class VmMigrationRow(SQLModel, table=True):
    """The latest migration of one VM in one operation."""

    __tablename__ = "vm_migration"

    operation: str = Field(primary_key=True)
    vm: str = Field(primary_key=True)
    source: str
    destination: str
    tls: bool = False
    state: str = MigrationState.MIGRATING
    percent: int = 0
    rate_mib_s: float = 0
    remaining_mib: float = 0
    dirty_rate_mib_s: float = 0
    iteration: int = 0
    throttle_percent: int = 0
    expected_end_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    attempt: int
    error: str | None = None
    started_at: datetime = Field(sa_type=UtcDateTime, default_factory=now)
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class SettingRow(SQLModel, table=True):
    """A setting that was set, at one scope. `scope_name` is "" for the global scope."""

    __tablename__ = "setting"

    scope: str = Field(primary_key=True)
    scope_name: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    value: Any = Field(sa_type=JSON)
    updated_at: datetime = Field(sa_type=UtcDateTime, default_factory=now)
    updated_by: str


class HostTagRow(SQLModel, table=True):
    """A property of a host that VMs may ask for."""

    __tablename__ = "host_tag"

    host: str = Field(primary_key=True, foreign_key="host.name")
    tag: str = Field(primary_key=True)


class VmPolicyRow(SQLModel, table=True):
    """What an operator has decided about a VM of a cluster, by its name."""

    __tablename__ = "vm_policy"

    cluster: str = Field(primary_key=True, foreign_key="cluster.name")
    vm: str = Field(primary_key=True)
    pinned: bool = False
    reason: str = ""
    tags: list[str] = Field(default_factory=list, sa_type=JSON)


class AffinityGroupRow(SQLModel, table=True):
    """VMs of a cluster that belong on one host, or on different ones."""

    __tablename__ = "affinity_group"

    cluster: str = Field(primary_key=True, foreign_key="cluster.name")
    name: str = Field(primary_key=True)
    kind: str


class AffinityMemberRow(SQLModel, table=True):
    """A VM in an affinity group, by its name."""

    __tablename__ = "affinity_member"
    __table_args__ = (
        ForeignKeyConstraint(
            ["cluster", "affinity_group"], ["affinity_group.cluster", "affinity_group.name"]
        ),
    )

    cluster: str = Field(primary_key=True)
    affinity_group: str = Field(primary_key=True)
    vm: str = Field(primary_key=True)


class MaintenanceTicketRow(SQLModel, table=True):
    """A host's place in its cluster's queue for maintenance: first come, first served by `id`."""

    __tablename__ = "maintenance_ticket"

    id: int | None = Field(default=None, primary_key=True)
    cluster: str = Field(index=True)
    host: str = Field(unique=True)
    workflow_id: str
    first_run_id: str
    granted: bool = False
    queued_at: datetime = Field(sa_type=UtcDateTime, default_factory=now)


class HookRunRow(SQLModel, table=True):
    """One run of a maintenance hook on a host. `output`: the end of what it printed; `problem`: why
    it has no exit status."""

    __tablename__ = "hook_run"

    operation: str = Field(primary_key=True)
    host: str = Field(primary_key=True)
    stage: str = Field(primary_key=True)
    attempt: int = Field(primary_key=True)
    command: list[str] = Field(sa_type=JSON)
    exit_status: int | None = None
    problem: str | None = None
    output: str = ""
    started_at: datetime = Field(sa_type=UtcDateTime, default_factory=now)
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class ApiTokenRow(SQLModel, table=True):
    """A token for the API. Only its hash is stored: tokens are random, so a plain one suffices."""

    __tablename__ = "api_token"

    name: str = Field(primary_key=True)
    sha256: str = Field(unique=True)
    role: str = Role.VIEWER
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=now)


class CertificateAuthorityRow(SQLModel, table=True):
    """An issuing certificate of a provider, with its chain; of its generations, the one in the
    `state` `current` issues.

    `chain`: PEM, the issuing certificate first. `key_secret_id`: its private key, None if Hostler
    has it not. `crl_counter`: the highest number that a list was begun with. `crl*`: the newest
    list (DER) that was stored, its number (of up to 20 octets, so in decimal digits), its times,
    and how many entries it has.
    """

    __tablename__ = "certificate_authority"

    provider: str = Field(primary_key=True)
    generation: int = Field(primary_key=True)
    state: str = AuthorityState.CURRENT
    origin: str = AuthorityOrigin.GENERATED
    subject: str
    sha256: str
    not_before: datetime = Field(sa_type=UtcDateTime)
    not_after: datetime = Field(sa_type=UtcDateTime)
    chain: list[str] = Field(sa_type=JSON)
    key_secret_id: str | None = Field(default=None, foreign_key="secret_version.id")
    crl_counter: int = 0
    crl: bytes | None = None
    crl_number: str | None = None
    crl_this_update: datetime | None = Field(default=None, sa_type=UtcDateTime)
    crl_next_update: datetime | None = Field(default=None, sa_type=UtcDateTime)
    crl_entries: int = 0
    created_at: datetime = Field(sa_type=UtcDateTime, default_factory=now)


class CertificateRow(SQLModel, table=True):
    """A certificate that was issued; it outlives its host, whose name it has.

    `request` is that of the step that asked for it: a repetition finds it. `serial`: hexadecimal,
    in small letters. `key_sha256`: of its SubjectPublicKeyInfo. `key_secret_id`: its private key,
    where Hostler itself has that.
    """

    __tablename__ = "certificate"
    __table_args__ = (
        UniqueConstraint("provider", "generation", "serial"),
        ForeignKeyConstraint(
            ["provider", "generation"],
            ["certificate_authority.provider", "certificate_authority.generation"],
        ),
    )

    request: str = Field(primary_key=True)
    provider: str
    generation: int
    serial: str = Field(index=True)
    host: str | None = Field(default=None, index=True)
    role: str
    subject: str
    dns_names: list[str] = Field(sa_type=JSON)
    ip_addresses: list[str] = Field(sa_type=JSON)
    key_sha256: str = Field(index=True)
    not_before: datetime = Field(sa_type=UtcDateTime)
    not_after: datetime = Field(sa_type=UtcDateTime, index=True)
    issued_at: datetime = Field(sa_type=UtcDateTime, default_factory=now)
    issued_by: str
    revoked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    revocation_reason: str | None = None
    installed_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    key_secret_id: str | None = Field(default=None, foreign_key="secret_version.id")
    pem: str


class CertificateUpkeepRow(SQLModel, table=True):
    """What a host has beside its certificates, and what is done for them by itself.

    `crls`: numbers of the revocation lists that it goes by, by authority ("root/1"), got at
    `crls_at`. `crls_tried`: those that it was last to get in vain, at `crls_tried_at`.
    `trusts`: the authorities that it trusts ("root/1"), got at `trusts_at`; `trusts_tried`: as
    `crls_tried`. `renewal_tried_at`, `renewal_problem`: of the last renewal, if that did not
    succeed.
    """

    __tablename__ = "certificate_upkeep"

    host: str = Field(primary_key=True, foreign_key="host.name")
    crls: dict[str, int] = Field(default_factory=dict, sa_type=JSON)
    crls_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    crls_tried: dict[str, int] = Field(default_factory=dict, sa_type=JSON)
    crls_tried_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    crls_problem: str = ""
    trusts: list[str] = Field(default_factory=list, sa_type=JSON)
    trusts_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    trusts_tried: list[str] = Field(default_factory=list, sa_type=JSON)
    trusts_tried_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    trusts_problem: str = ""
    renewal_tried_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    renewal_problem: str = ""


class RolloverOmissionRow(SQLModel, table=True):
    """A host that the rollover to an authority does not wait for, and why. One of an earlier host
    of its name does not count."""

    __tablename__ = "rollover_omission"
    __table_args__ = (
        ForeignKeyConstraint(
            ["provider", "generation"],
            ["certificate_authority.provider", "certificate_authority.generation"],
        ),
    )

    provider: str = Field(primary_key=True)
    generation: int = Field(primary_key=True)
    host: str = Field(primary_key=True, foreign_key="host.name")
    reason: str
    at: datetime = Field(sa_type=UtcDateTime, default_factory=now)
