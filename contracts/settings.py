"""Settings that operators change while Hostler runs: one typed entry each.

Stored per scope, resolved cluster > zone > global > default. Each takes effect at its next use, or
with the next operation (`Effect`); no process needs a restart. What only a start can change is in
`workers/settings.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_network
from string import ascii_letters, digits
from typing import Annotated, Any, Generic, Literal, TypeVar, cast

from pydantic import (
    BeforeValidator,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from contracts.base import Contract
from contracts.certificates import ExtraNames
from contracts.errors import Conflict
from contracts.oobm import IPMITOOL_INTERFACES, IPMITOOL_RETRIES
from contracts.passwords import MOST_CHARACTERS
from contracts.validation import say_error

T = TypeVar("T")


def _no_boolean(value: object) -> object:
    """Python takes True for 1; who sends it means something else."""
    if isinstance(value, bool):
        raise PydanticCustomError("no_boolean", "must not be a boolean")
    return value


def _network(value: object) -> object:
    """A lone address would be the network of one host, a number that of an address."""
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    if not isinstance(value, str) or "/" not in value:
        raise PydanticCustomError("network", "must be a network in CIDR notation")
    try:
        return ip_network(value)
    except ValueError as error:
        raise PydanticCustomError("network", "{reason}", {"reason": str(error)}) from None


Network = Annotated[
    IPv4Network | IPv6Network,
    BeforeValidator(_network),
    WithJsonSchema({"type": "string", "examples": ["198.18.0.0/24"]}),
]
Directory = Annotated[
    str,
    StringConstraints(pattern=r"^/[^\x00]*$", max_length=4096),
    Field(examples=["/srv/vms"]),
]
LONGEST_BMC_ANSWER_S = 60
# With less, the history of a round over thousands would grow long.
SMALLEST_SHARD = 500
DistinguishedName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z]+=[^\x00-\x1f]+$", strip_whitespace=True, max_length=255),
    Field(examples=["CN=Hostler CA,O=Hostler"]),
]
Url = Annotated[
    str,
    StringConstraints(pattern=r"^https?://[!-~]+$", max_length=2048),
    Field(examples=["http://ca.example.net:8480/v1/ca"]),
]
PluginName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=63)
]
MountPath = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$", max_length=255),
    Field(examples=["pki"]),
]
Days = Annotated[int, Field(ge=1, le=3_650), BeforeValidator(_no_boolean)]
Count = Annotated[int, Field(ge=1, le=10_000), BeforeValidator(_no_boolean)]
Seconds = Annotated[int, Field(ge=1, le=30 * 86_400), BeforeValidator(_no_boolean)]


class SettingScope(StrEnum):
    """Where a setting may be set; a narrower one wins."""

    GLOBAL = "global"
    ZONE = "zone"
    CLUSTER = "cluster"


class Effect(StrEnum):
    """When a changed value is gone by. A restart is never needed."""

    AT_ONCE = "at once"
    """At its next use, by operations that run too."""
    NEXT_OPERATION = "next operation"
    """By operations that start later: each takes the value along from its beginning."""


@dataclass(frozen=True)
class Setting(Generic[T]):
    """One setting. `kind` is what a value is validated against (lax: "5" is 5)."""

    name: str
    kind: Any
    default: T
    description: str
    unit: str | None = None
    scopes: frozenset[SettingScope] = frozenset(SettingScope)
    effect: Effect = Effect.AT_ONCE

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.kind)

    @cached_property
    def type(self) -> str:
        """What a value that is not null is in JSON schema: integer, array, ..."""
        schema = self._adapter.json_schema()
        return str(schema.get("anyOf", [schema])[0]["type"])

    @cached_property
    def possible(self) -> str:
        """Which values are possible, in words: "integer from 1 to 64 or null"."""
        return _words(self._adapter.json_schema())

    def parse(self, value: object) -> T:
        """Raises pydantic's ValidationError."""
        return cast(T, self._adapter.validate_python(value))

    def dump(self, value: T) -> Any:
        """As JSON holds it."""
        return self._adapter.dump_python(value, mode="json")

    def problem(self, error: ValidationError) -> str:
        """What is wrong with the value that `parse` has refused, and what is possible."""
        said = "; ".join(
            f"entry {entry['loc'][0]}: {say_error(entry)}" if entry["loc"] else say_error(entry)
            for entry in error.errors()
        )
        return f"{said}; possible: {self.possible}"


def _words(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_words(alternative) for alternative in schema["anyOf"])
    words = str(schema["type"])
    if "enum" in schema:
        return f"{words}: {', '.join(map(str, schema['enum']))}"
    if "items" in schema:
        words += f" of {_words(schema['items'])}"
    if "minimum" in schema:
        words += f" from {schema['minimum']} to {schema['maximum']}"
    if "examples" in schema:
        words += f" like {schema['examples'][0]}"
    return words


class ResolvedSettings:
    """Values in force at one place: `resolved[MIGRATION_BANDWIDTH]`.

    A stored value that this version does not take raises Conflict when it is used, and only then:
    the default in its place might be what the operator has ruled out.
    """

    def __init__(self, stored: Mapping[str, object]) -> None:
        self._stored = stored

    def __getitem__(self, setting: Setting[T]) -> T:
        if setting.name not in self._stored:
            return setting.default
        try:
            return setting.parse(self._stored[setting.name])
        except ValidationError as error:
            raise Conflict(
                f"The stored setting {setting.name} is not valid: {setting.problem(error)}.",
                remedy="Set it again with `hostler setting set`, or unset it.",
            ) from None


def contradiction(changed: Setting[Any], resolved: ResolvedSettings) -> str | None:
    """With what the changed setting can't be in force together, in words."""
    for less, more in _LESS_THAN:
        if changed not in (less, more):
            continue
        try:
            low, high = resolved[less], resolved[more]
        except Conflict:
            # The other one is refused wherever it is used, until it is set again.
            continue
        if low >= high:
            return f"{less.name} ({low}) must be less than {more.name} ({high})"
    return None


class SettingValue(Contract):
    """A setting as API and CLI show it.

    Attributes:
        type: in words of JSON schema: integer, number, boolean, string, array.
        possible: the values that it takes, in words.
        value: what is in force at the place that was asked for.
        effect: when a change is gone by.
        origin: where that comes from: "default", "global", "zone NAME" or "cluster NAME".
        problem: why the stored value can't be used; operations that need it fail until it is set
            again.
    """

    name: str
    type: str
    possible: str
    value: Any
    default: Any
    unit: str | None
    description: str
    scopes: tuple[SettingScope, ...]
    effect: Effect
    origin: str
    problem: str | None = None
    updated_at: datetime | None = None
    updated_by: str | None = None


CPU_OVERPROVISIONING = Setting[float](
    "cpu.overprovisioning.factor",
    Annotated[float, Field(ge=1, le=64), BeforeValidator(_no_boolean)],
    4.0,
    "Virtual CPUs that fit on one CPU of a host that has no bound of its own.",
)
MAINTENANCE_HOSTS_OUT_MAX = Setting[int](
    "maintenance.hosts.out.max",
    Count,
    1,
    "Hosts of a cluster that may be out of service at a time; the next one queues.",
)
MAINTENANCE_QUEUE_TIMEOUT = Setting[int](
    "maintenance.queue.timeout",
    Seconds,
    86_400,
    "How long a maintenance waits for its turn, and for room, before it is refused.",
    "s",
    effect=Effect.NEXT_OPERATION,
)
MAINTENANCE_UNREACHABLE_TIMEOUT = Setting[int](
    "maintenance.unreachable.timeout",
    Seconds,
    120,
    "Until a host or a database that does not answer puts a maintenance in an error state. It goes "
    "on by itself when there is an answer.",
    "s",
    effect=Effect.NEXT_OPERATION,
)
MAINTENANCE_RETRY_INTERVAL = Setting[int](
    "maintenance.retry.interval",
    Seconds,
    600,
    "Until a VM that could not be moved is tried again unasked, if nothing has changed before.",
    "s",
    effect=Effect.NEXT_OPERATION,
)
MAINTENANCE_QUESTION_REMINDER = Setting[int](
    "maintenance.question.reminder",
    Seconds,
    86_400,
    "Between two events that say that a question still waits for an operator.",
    "s",
    effect=Effect.NEXT_OPERATION,
)
MAINTENANCE_ARRIVALS_TIMEOUT = Setting[int](
    "maintenance.arrivals.timeout",
    Seconds,
    3_600,
    "How long VMs that are on their way to the host are waited for at a time.",
    "s",
    effect=Effect.NEXT_OPERATION,
)
MAINTENANCE_LEAVE_TIMEOUT = Setting[int](
    "maintenance.leave.timeout",
    Seconds,
    180,
    "How long a host has to answer when it is to go back into service.",
    "s",
    effect=Effect.NEXT_OPERATION,
)
MIGRATION_PARALLEL_MAX = Setting[int](
    "migration.parallel.max",
    Annotated[int, Field(ge=1, le=64), BeforeValidator(_no_boolean)],
    2,
    "Live migrations at a time from or to one host.",
)
MIGRATION_BANDWIDTH = Setting[int | None](
    "migration.bandwidth",
    Annotated[int, Field(ge=1, le=1_000_000), BeforeValidator(_no_boolean)] | None,
    None,
    "Upper bound of one live migration; none: libvirt's own.",
    "MiB/s",
)
MIGRATION_NETWORK = Setting[Network | None](
    "migration.network",
    Network | None,
    None,
    "Network (CIDR) in which each host has the address that migrations go to; none: the address "
    "that Hostler reaches it by.",
)
MIGRATION_CONVERGENCE_TIMEOUT = Setting[int](
    "migration.convergence.timeout",
    Seconds,
    300,
    "Budget of a live migration per GiB of memory (at least one) beyond its first pass; then it "
    "escalates.",
    "s",
)
MIGRATION_AUTO_CONVERGE = Setting[bool](
    "migration.auto.converge",
    bool,
    True,
    "Whether a migration that does not converge is tried again with the guest's CPUs slowed down.",
    effect=Effect.NEXT_OPERATION,
)
MIGRATION_FOREIGN_TIMEOUT = Setting[int](
    "migration.foreign.timeout",
    Seconds,
    3_600,
    "How long a migration that somebody else has started is waited for.",
    "s",
)
VM_SHUTDOWN_TIMEOUT = Setting[int](
    "vm.shutdown.timeout",
    Seconds,
    120,
    "How long a guest has to power off when it was asked to.",
    "s",
    effect=Effect.NEXT_OPERATION,
)
STORAGE_SHARED_PATHS = Setting[tuple[Directory, ...]](
    "storage.shared.paths",
    tuple[Directory, ...],
    (),
    "Directories that all hosts of the cluster share: disks below them need not be copied. libvirt "
    "is then told not to doubt it, so a wrong entry corrupts disks.",
    scopes=frozenset({SettingScope.CLUSTER}),
)
HOOK_TIMEOUT = Setting[int](
    "hook.timeout",
    Seconds,
    1_800,
    "How long a maintenance hook may run, unless it says otherwise.",
    "s",
    effect=Effect.NEXT_OPERATION,
)
HOST_REBOOT_TIMEOUT = Setting[int](
    "host.reboot.timeout",
    Seconds,
    900,
    "How long a host has to come back from a reboot.",
    "s",
    effect=Effect.NEXT_OPERATION,
)
HOST_CLOCK_SKEW_MAX = Setting[int](
    "host.clock.skew.max",
    Annotated[int, Field(ge=1, le=86_400), BeforeValidator(_no_boolean)],
    10,
    "How far the clock of a host that is added may be off Hostler's.",
    "s",
)
HOST_DISK_FREE_MIN = Setting[int](
    "host.disk.free.min",
    Annotated[int, Field(ge=1, le=1_000_000_000), BeforeValidator(_no_boolean)],
    64,
    "Room that a host that is added must have for /etc, /var/lib and the login's home each.",
    "MiB",
)

HOST_CHECK_INTERVAL = Setting[int](
    "host.check.interval",
    Annotated[int, Field(ge=10, le=3_600), BeforeValidator(_no_boolean)],
    60,
    "Between two rounds in which every host is looked at; each round sets it for the next.",
    "s",
    scopes=frozenset({SettingScope.GLOBAL}),
)
HOST_CHECK_TIMEOUT = Setting[int](
    "host.check.timeout",
    Annotated[int, Field(ge=1, le=300), BeforeValidator(_no_boolean)],
    15,
    "How long a host has to answer when it is looked at: libvirt first, then SSH.",
    "s",
    scopes=frozenset({SettingScope.GLOBAL}),
)
HOST_CHECK_BATCH = Setting[int](
    "host.check.batch",
    Annotated[int, Field(ge=10, le=2_000), BeforeValidator(_no_boolean)],
    200,
    "Hosts per step of a round.",
    scopes=frozenset({SettingScope.GLOBAL}),
)
HOST_CHECK_CONCURRENCY = Setting[int](
    "host.check.concurrency",
    Annotated[int, Field(ge=1, le=500), BeforeValidator(_no_boolean)],
    50,
    "Hosts of a step that are looked at at a time; beside them as many that missed their last "
    "check.",
    scopes=frozenset({SettingScope.GLOBAL}),
)
HOST_CHECK_MISSED_MAX = Setting[int](
    "host.check.missed.max",
    Annotated[int, Field(ge=2, le=100), BeforeValidator(_no_boolean)],
    3,
    "Checks in a row that a host misses until other hosts of its cluster are asked for it: if they "
    "can't reach it either, it is Down.",
    scopes=frozenset({SettingScope.GLOBAL}),
)

HOST_REINSTALLATION_TIMEOUT = Setting[int](
    "host.reinstallation.timeout",
    Seconds,
    86_400,
    "How long a host that is being re-installed is waited for between two events that say that it "
    "is still not back.",
    "s",
)

OOBM_ACTION_TIMEOUT = Setting[int](
    "outofbandmanagement.action.timeout",
    Annotated[int, Field(ge=5, le=3_600), BeforeValidator(_no_boolean)],
    60,
    "How long a command to a BMC has until the power is as it should be; a host has to shut down "
    "within it.",
    "s",
    effect=Effect.NEXT_OPERATION,
)
OOBM_SYNC_INTERVAL = Setting[int](
    "outofbandmanagement.sync.interval",
    Annotated[int, Field(ge=5, le=3_600), BeforeValidator(_no_boolean)],
    30,
    "Between two rounds in which all BMCs are asked; each round sets it for the next. A power "
    "state that three rounds did not confirm is stale.",
    "s",
    scopes=frozenset({SettingScope.GLOBAL}),
)
OOBM_SYNC_POOLSIZE = Setting[int](
    "outofbandmanagement.sync.poolsize",
    Annotated[int, Field(ge=1, le=500), BeforeValidator(_no_boolean)],
    50,
    "BMCs of a shard that are asked at a time. A round takes at most BMCs in a shard x timeout / "
    "poolsize; those that are known to be silent take none of it.",
    scopes=frozenset({SettingScope.GLOBAL}),
)
OOBM_SYNC_SHARD_SIZE = Setting[int](
    "outofbandmanagement.sync.shard.size",
    Annotated[int, Field(ge=SMALLEST_SHARD, le=2_000), BeforeValidator(_no_boolean)],
    500,
    "BMCs per step of a round. Steps go beside each other, on as many workers as there are.",
    scopes=frozenset({SettingScope.GLOBAL}),
)
OOBM_SYNC_TIMEOUT = Setting[int](
    "outofbandmanagement.sync.timeout",
    Annotated[int, Field(ge=1, le=LONGEST_BMC_ANSWER_S), BeforeValidator(_no_boolean)],
    10,
    "How long a BMC has to answer when it is only asked; less than the interval.",
    "s",
    scopes=frozenset({SettingScope.GLOBAL}),
)
OOBM_IPMITOOL_INTERFACE = Setting[str](
    "outofbandmanagement.ipmitool.interface",
    Annotated[
        str,
        StringConstraints(pattern=f"^({'|'.join(IPMITOOL_INTERFACES)})$"),
        Field(examples=[*IPMITOOL_INTERFACES]),
    ],
    "lanplus",
    "Of the driver ipmitool: the program's own name for how it speaks with BMCs.",
)
OOBM_IPMITOOL_PATH = Setting[str](
    "outofbandmanagement.ipmitool.path",
    Annotated[
        str,
        StringConstraints(pattern=r"^/[^\x00]+$", max_length=4096),
        Field(examples=["/usr/bin/ipmitool"]),
    ],
    "/usr/bin/ipmitool",
    "Of the driver ipmitool: where the program is on the machines that run workers.",
)
OOBM_IPMITOOL_RETRIES = Setting[int](
    "outofbandmanagement.ipmitool.retries",
    Annotated[
        int,
        Field(ge=IPMITOOL_RETRIES[0], le=IPMITOOL_RETRIES[-1]),
        BeforeValidator(_no_boolean),
    ],
    1,
    "Of the driver ipmitool: how often the program sends a packet again that was not answered.",
)

PASSWORD_LENGTH = Setting[int](
    "password.length",
    Annotated[int, Field(ge=12, le=MOST_CHARACTERS), BeforeValidator(_no_boolean)],
    32,
    "Characters of a random password of a cluster's hosts.",
)
PASSWORD_CHARACTERS = Setting[str](
    "password.characters",
    Annotated[
        str,
        StringConstraints(pattern=r"^[\x21-\x7e]+$", min_length=16, max_length=200),
        Field(examples=["abcdefghjkmnpqrstuvwxyz23456789"]),
    ],
    ascii_letters + digits + "-_.~+=@%^,:/",
    "What random passwords are made of: at least one of each kind that is among these (small and "
    "capital letters, digits, others).",
)
PASSWORD_ROTATION_CONCURRENCY = Setting[int](
    "password.rotation.concurrency",
    Annotated[int, Field(ge=1, le=500), BeforeValidator(_no_boolean)],
    50,
    "Hosts of a cluster whose password is changed, or looked at, at a time.",
    effect=Effect.NEXT_OPERATION,
)
PASSWORD_ROTATION_ON_FAILURE = Setting[str](
    "password.rotation.on.failure",
    Annotated[
        str,
        StringConstraints(pattern=r"^(revert|hold)$"),
        Field(examples=["revert", "hold"]),
    ],
    "revert",
    "What becomes of a change of passwords that fails on a host: all hosts get back what they had, "
    "or it waits for an operator.",
    effect=Effect.NEXT_OPERATION,
)
PASSWORD_UNREACHABLE_TIMEOUT = Setting[int](
    "password.unreachable.timeout",
    Seconds,
    120,
    "How long a host that does not answer is waited for in the middle of its change of passwords.",
    "s",
)
OPERATION_START_TIMEOUT = Setting[int](
    "operation.start.timeout",
    Annotated[int, Field(ge=60, le=86_400), BeforeValidator(_no_boolean)],
    900,
    "How long a request that the API has taken may be started, should the API have died before it "
    "did; then it expires, and nothing is changed.",
    "s",
    scopes=frozenset({SettingScope.GLOBAL}),
)
PASSWORD_ATTEMPT_INTERVAL = Setting[int](
    "password.attempt.interval",
    Annotated[int, Field(ge=0, le=600), BeforeValidator(_no_boolean)],
    3,
    "Between a login that a host has refused and the next one there.",
    "s",
)
PASSWORD_REFUSED_MAX = Setting[int](
    "password.refused.max",
    Annotated[int, Field(ge=1, le=100), BeforeValidator(_no_boolean)],
    2,
    "Logins in a row that a host may refuse: less than what locks an account there (pam_faillock: "
    "3).",
)
PASSWORD_REFUSED_INTERVAL = Setting[int](
    "password.refused.interval",
    Seconds,
    900,
    "How long a refused login counts on hosts (pam_faillock: fail_interval).",
    "s",
)
PASSWORD_OF_NEW_HOSTS = Setting[bool](
    "password.of.new.hosts",
    bool,
    True,
    "Whether hosts that are new to a cluster, or re-installed, get its current password.",
)
PASSWORD_HOSTS_MAY_DIFFER = Setting[bool](
    "password.hosts.may.differ",
    bool,
    False,
    "Whether a single host of a cluster may have a password of its own.",
)
PASSWORD_VERIFICATION_INTERVAL = Setting[int](
    "password.verification.interval",
    Annotated[int, Field(ge=600, le=30 * 86_400), BeforeValidator(_no_boolean)],
    86_400,
    "Between two looks whether all hosts have the password of their cluster.",
    "s",
    scopes=frozenset({SettingScope.GLOBAL}),
)

_ONLY_GLOBAL = frozenset({SettingScope.GLOBAL})

CA_PROVIDER = Setting[str](
    "ca.framework.provider.plugin",
    PluginName,
    "root",
    "Plugin that issues certificates: root (Hostler's own CA), vault (OpenBao's or Vault's PKI "
    "API), or one that was installed beside Hostler.",
    scopes=_ONLY_GLOBAL,
)
CA_KEY_SIZE = Setting[int](
    "ca.framework.cert.keysize",
    Annotated[Literal[256, 384, 521, 2048, 3072, 4096], BeforeValidator(_no_boolean)],
    256,
    "Size of new keys: 256, 384 and 521 are elliptic curves (NIST's P-256, ...), larger ones RSA.",
    "bit",
    scopes=_ONLY_GLOBAL,
)
CA_SIGNATURE_ALGORITHM = Setting[str | None](
    "ca.framework.cert.signature.algorithm",
    Literal[
        "SHA256withECDSA",
        "SHA384withECDSA",
        "SHA512withECDSA",
        "SHA256withRSA",
        "SHA384withRSA",
        "SHA512withRSA",
    ]
    | None,
    None,
    "Hash by which the root CA signs, none being SHA256; the kind of signature is its key's.",
    scopes=_ONLY_GLOBAL,
)
CA_VALIDITY = Setting[int](
    "ca.framework.cert.validity.period",
    Days,
    365,
    "How long a new certificate is valid.",
    "d",
    scopes=_ONLY_GLOBAL,
)
CA_AUTOMATIC_RENEWAL = Setting[bool](
    "ca.framework.cert.automatic.renewal",
    bool,
    True,
    "Whether certificates of hosts are renewed before they expire; if not, there is an event a "
    "day.",
)
CA_EXPIRY_ALERT_PERIOD = Setting[int](
    "ca.framework.cert.expiry.alert.period",
    Days,
    15,
    "How long before their end certificates are renewed, each at a moment of its own in the first "
    "half of that time, or told of; never before half of their life is over.",
    "d",
)
CA_RENEWAL_CONCURRENCY = Setting[int](
    "ca.framework.cert.renewal.concurrency",
    Annotated[int, Field(ge=1, le=100), BeforeValidator(_no_boolean)],
    2,
    "Hosts of a cluster whose certificates are renewed at a time.",
)
CA_EXTRA_NAMES = Setting[ExtraNames](
    "ca.framework.csr.extra",
    ExtraNames,
    ExtraNames.REFUSE,
    "What becomes of a signing request that asks for names or rights beyond the inventory's.",
    scopes=_ONLY_GLOBAL,
)
CA_CRL_VALIDITY = Setting[int](
    "ca.framework.crl.validity.period",
    Annotated[int, Field(ge=1, le=365), BeforeValidator(_no_boolean)],
    7,
    "How long a revocation list of the root CA is valid; a new one is made when half of it is "
    "over, and at each revocation.",
    "d",
    scopes=_ONLY_GLOBAL,
)
CA_CRL_DELIVERY_CONCURRENCY = Setting[int](
    "ca.framework.crl.delivery.concurrency",
    Annotated[int, Field(ge=1, le=500), BeforeValidator(_no_boolean)],
    20,
    "Hosts that get a new revocation list at a time.",
    scopes=_ONLY_GLOBAL,
)
CA_CRL_URL = Setting[Url | None](
    "ca.framework.crl.url",
    Url | None,
    None,
    "Where new certificates of the root CA say that its revocation list is: a URL that leads to "
    "/v1/ca of the API, to which root/GENERATION/crl is added; none: they do not say.",
    scopes=_ONLY_GLOBAL,
)
CA_TASK_DELAY = Setting[int](
    "ca.framework.background.task.delay",
    Annotated[int, Field(ge=10, le=43_200), BeforeValidator(_no_boolean)],
    3_600,
    "Between two rounds that look after the CAs, whose revocation lists have to be made anew, and "
    "between two that look for certificates that expire.",
    "s",
    scopes=_ONLY_GLOBAL,
)
CA_ROOT_ISSUER_DN = Setting[str](
    "ca.plugin.root.issuer.dn",
    DistinguishedName,
    "CN=Hostler CA,O=Hostler",
    "Subject of the root CA (RFC 4514), and the beginning of that of the CAs of QEMUs; each is "
    "made once, with what is set by then.",
    scopes=_ONLY_GLOBAL,
)
CA_CLUSTER_PARALLEL = Setting[int](
    "ca.framework.cluster.parallel",
    Annotated[int, Field(ge=1, le=50), BeforeValidator(_no_boolean)],
    4,
    "Hosts of a cluster that get certificates, or are secured, at a time.",
    effect=Effect.NEXT_OPERATION,
)
CA_CLUSTER_WAIT = Setting[int](
    "ca.framework.cluster.wait",
    Seconds,
    600,
    "How long the securing of a cluster waits for a host on which another operation changes "
    "certificates or passwords.",
    "s",
    effect=Effect.NEXT_OPERATION,
)
CA_ROOT_AUTH_STRICTNESS = Setting[bool](
    "ca.plugin.root.auth.strictness",
    bool,
    False,
    "Whether only secured hosts are put into service. It can be turned on once all are secured. A "
    "secured host never takes or gives a VM otherwise than by TLS, whatever is set here.",
    scopes=_ONLY_GLOBAL,
)
CA_ALLOW_EXPIRED = Setting[bool](
    "ca.plugin.root.allow.expired.cert",
    bool,
    False,
    "Whether the API lets in a client whose certificate, or its CA's, has expired or is not valid "
    "yet, where it asks for one (HOSTLER_API_TLS_CLIENT_CA_FILE); its token counts as ever. "
    "libvirt and QEMU refuse such, always.",
    scopes=_ONLY_GLOBAL,
)
LIBVIRT_TRANSPORT = Setting[str](
    "libvirt.transport",
    Literal["ssh", "tls"],
    "ssh",
    "How Hostler reaches libvirt on secured hosts: at its socket, through SSH, or by TLS, with "
    "Hostler's own certificate; where that fails, at its socket, with an event.",
)
CA_VAULT_MOUNT = Setting[str](
    "ca.plugin.vault.mount",
    MountPath,
    "pki",
    "Path of its PKI secrets engine.",
    scopes=_ONLY_GLOBAL,
)
CA_VAULT_ROLE = Setting[str](
    "ca.plugin.vault.role",
    PluginName,
    "hostler",
    "Role of that engine by which what has no unit is signed; for each unit, there is ROLE-UNIT.",
    scopes=_ONLY_GLOBAL,
)

_LESS_THAN: tuple[tuple[Setting[int], Setting[int]], ...] = (
    (OOBM_SYNC_TIMEOUT, OOBM_SYNC_INTERVAL),
)

SETTINGS: Mapping[str, Setting[Any]] = {
    setting.name: setting
    for setting in sorted(
        (value for value in list(globals().values()) if isinstance(value, Setting)),
        key=lambda setting: setting.name,
    )
}

# Names that people know from elsewhere for what is no setting here: a pair of key and certificate
# that is set one by one is at some moment a wrong pair, and settings are shown.
NO_SETTINGS: Mapping[str, str] = {
    "ca.plugin.root.private.key": "Give it with `hostler ca import`; it is stored encrypted.",
    "ca.plugin.root.public.key": "It is in the certificate that `hostler ca show` shows.",
    "ca.plugin.root.ca.certificate": "See `hostler ca show`; give it with `hostler ca import`.",
}
