"""HostImport: what starts it, what it shows, what it reports."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    StrictInt,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from contracts.addition import HostAdditionInput
from contracts.base import Contract, Name
from contracts.leases import Owner
from contracts.preflight import Finding
from contracts.states import Phase

MAX_HOSTS = 10_000
# Temporal takes 2 MiB; a run that continues as new carries what has ended along.
_MAX_INPUT_BYTES = 1700 * 1024
_OWN_FIELDS = frozenset({"name", "address", "secret"})
_CREDENTIALS = frozenset({"password", "private_key"})

Parallel = Annotated[StrictInt, Field(ge=1, le=100)]


class ImportState(StrEnum):
    """How a host of an import stands."""

    WAITING = "waiting"
    ADDING = "adding"
    CHECKING = "being looked at"
    """A dry run, as is the next one."""
    ADDABLE = "can be added"
    ADDED = "added"
    PRESENT = "there already"
    FAILED = "failed"


ENDED_STATES = frozenset(
    {ImportState.ADDABLE, ImportState.ADDED, ImportState.PRESENT, ImportState.FAILED}
)


class ImportedHost(Contract):
    """A host of an import. `error`: why it was not, or can't be, added; `findings`: all that a dry
    run has found."""

    host: Name
    state: ImportState
    error: str | None = None
    findings: tuple[Finding, ...] = ()


class CarriedImport(Contract):
    """What a run leaves to the next one.

    Attributes:
        ended: by position in the list that the import began with; `hosts` has the others.
        adding: additions that run, by host.
    """

    since: datetime
    ended: dict[int, ImportedHost]
    adding: dict[Name, Owner]


class HostImportInput(Contract):
    """Add many hosts, `parallel` at a time, each by a HostAddition of its own; those with `dry_run`
    are only looked at.

    As JSON, `defaults` beside `hosts` has the fields that all hosts share but for those that say
    otherwise: ten thousand hosts fit in one input.

    Attributes:
        continued: Hostler's own field, of a run that continues as new.
    """

    name: Name
    hosts: Annotated[tuple[HostAdditionInput, ...], Field(min_length=1, max_length=MAX_HOSTS)]
    parallel: Parallel = 20
    continued: CarriedImport | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in_defaults(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or "defaults" not in given:
            return given
        defaults, hosts = given["defaults"], given.get("hosts")
        if not isinstance(defaults, Mapping) or not isinstance(hosts, list | tuple):
            return given
        return {
            **{field: value for field, value in given.items() if field != "defaults"},
            "hosts": [with_defaults(defaults, host) for host in hosts],
        }

    @model_validator(mode="after")
    def _check_list(self) -> "HostImportInput":
        names: set[str] = set()
        for host in self.hosts:
            if host.name in names:
                raise PydanticCustomError(
                    "given_twice", "the host {name} is given twice", {"name": host.name}
                )
            names.add(host.name)
        if self.continued is None and len(self.model_dump_json()) > _MAX_INPUT_BYTES:
            raise PydanticCustomError(
                "too_large",
                "the hosts take more than {most} bytes: make several imports of them",
                {"most": _MAX_INPUT_BYTES},
            )
        return self

    @model_serializer(mode="wrap")
    def _in_short(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What all hosts share is written once, and what is the default anyway not at all."""
        hosts = [host.model_dump(mode="json", exclude_defaults=True) for host in self.hosts]
        shared = {
            field: value
            for field, value in hosts[0].items()
            if field not in _OWN_FIELDS and all(host.get(field) == value for host in hosts)
        }
        short = [
            {field: value for field, value in host.items() if field not in shared} for host in hosts
        ]
        return {**serialize(self), "defaults": shared, "hosts": short}


class HostImportResult(Contract):
    """What a completed HostImport answers: its report, in the order of the input."""

    name: Name
    hosts: tuple[ImportedHost, ...]


class HostImportStatus(Contract):
    """What the `status` query answers.

    Attributes:
        counts: hosts by state.
        adding: hosts whose addition runs.
        failed: the first of those that failed, with reasons.
        clusters: those of hosts that are not done yet, by name.
    """

    name: Name
    message: str
    since: datetime
    parallel: int
    total: int
    counts: dict[ImportState, int]
    adding: tuple[Name, ...]
    failed: tuple[ImportedHost, ...]
    commands: tuple[str, ...] = ()
    clusters: tuple[Name, ...] = ()


class RunningAddition(Contract):
    """An addition that is under way.

    Attributes:
        phase: None: it has not said yet.
        host_key_sha256: the key that waits to be accepted, with the command that does so.
    """

    host: Name
    phase: Phase | None = None
    host_key_sha256: str | None = None
    command: str | None = None


class HostImportView(HostImportStatus):
    """A running import as API and CLI show it."""

    additions: tuple[RunningAddition, ...]
    workflow_id: str
    run_id: str


class FindHostsInput(Contract):
    """Which of these hosts are in the inventory?"""

    hosts: tuple[HostAdditionInput, ...]


class FindHostsResult(Contract):
    """By host.

    Attributes:
        present: those that are there exactly as asked.
        different: those that are there otherwise, and how.
    """

    present: frozenset[Name] = frozenset()
    different: dict[Name, str] = Field(default_factory=dict)


class AwaitAdditionsInput(Contract):
    """Additions that somebody else has started, by host; None: whichever runs for it."""

    additions: dict[Name, Owner | None]


class AwaitAdditionsResult(Contract):
    """Those that have ended, by host: None if well, else why not."""

    ended: dict[Name, str | None]


class DiscardSecretsInput(Contract):
    """Ids of secret versions that no host is going to need."""

    secrets: tuple[str, ...]


def with_defaults(defaults: Mapping[str, Any], host: Any) -> Any:
    """The host's fields with the defaults of those that it does not have. Its own credential
    replaces one of the other kind, too."""
    if not isinstance(host, Mapping):
        return host
    if _CREDENTIALS & host.keys():
        defaults = {field: value for field, value in defaults.items() if field not in _CREDENTIALS}
    return {**defaults, **host}
