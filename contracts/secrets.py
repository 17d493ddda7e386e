"""Stored credentials, as far as they may be told: everything but what is secret."""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from contracts.base import Contract, Name

CA_KEY = "ca_key"
"""The kind of a secret that is an authority's private key."""

TLS_KEY = "tls_key"
"""The same of Hostler's own certificate."""


class SecretState(StrEnum):
    """Where a version of a credential is in its life."""

    STAGED = "staged"
    """Stored, and not in use yet: nothing was proven with it, or not on all hosts."""

    CURRENT = "current"
    """In use."""

    PREVIOUS = "previous"
    """Was in use before, and is kept: a host may have it still."""

    RETIRED = "retired"
    """Its ciphertext is deleted; what is left is its number."""


class StoredSecret(Contract):
    """One stored credential of a host or of a cluster.

    Attributes:
        id: None once it is retired.
        kind: "password", "private_key", "own_key" (made by Hostler).
        state: None if nothing refers to it.
        key_id: the master key that it is encrypted with.
        account: whose it is on the host or hosts, or on the BMC.
        version: of a cluster's password.
        hosts: those that are known to have a cluster's password.
        attempted_on: those that may have it: somebody began to give it to them, and no login has
            proven since which one they have.
        operation: of a cluster's password: whose it is, or was while it was staged.
    """

    id: str | None
    kind: str
    state: SecretState | None
    key_id: str | None
    created_at: datetime
    account: str | None = None
    version: int | None = None
    hosts: tuple[Name, ...] = ()
    attempted_on: tuple[Name, ...] = ()
    operation: str | None = None


class DisclosedSecret(Contract):
    """A credential in clear: for the eyes of an admin, never for a workflow or a log."""

    id: str
    kind: str
    plaintext: str = Field(repr=False)


class HostPassword(Contract):
    """Which password of its account a host has, as far as that was ever proven.

    Attributes:
        secret: id of it; None: none is known.
        version: of the cluster's password; None: it is the host's own.
        former: id of the one that it had before, until the new one is promoted.
        attempted: ids of those that somebody began to give it since, the latest first: it may have
            any of them.
        stale: it is not the cluster's current one, or the cluster has none yet.
    """

    host: Name
    secret: str | None
    version: int | None
    former: str | None
    stale: bool
    attempted: tuple[str, ...] = ()


class MasterKeyUse(Contract):
    """How far a master key is needed.

    Attributes:
        secrets: credentials that are encrypted with it.
        loaded: this process has it.
        encrypts: new credentials are encrypted with it.
        given_up: somebody has said that it is lost.
    """

    key_id: str
    secrets: int
    loaded: bool
    encrypts: bool
    given_up: bool

    @property
    def may_go(self) -> bool:
        """Nothing in the inventory needs it. Backups of the inventory may."""
        return not self.encrypts and not self.secrets


class Rekeyed(Contract):
    """`rekeyed`: how many were encrypted anew, with `key_id`; `unreadable`: ids of those that could
    not be, and were left as they are."""

    key_id: str
    rekeyed: int
    unreadable: tuple[str, ...]
