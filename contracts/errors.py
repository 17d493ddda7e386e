"""The error tree of Hostler.

    HostlerError
    ├── InvalidInput            the caller must change the request
    ├── NotFound                no such zone, pod, cluster, host, operation, secret
    ├── AlreadyExists           a name, address or identity is taken
    ├── Conflict                the subject is not in a state that allows this
    │   ├── LeaseHeld           another operation holds the host; names the holder
    │   ├── LeaseLost           this operation was taken over by another one
    │   └── EvacuationImpossible  the plan has blockers or VMs without a destination
    ├── Refused                 token missing, wrong, or its role not sufficient
    ├── Unavailable             a system did not answer; trying again may help
    └── Failed                  a system answered with an error
        ├── OutcomeUnknown      a command may have had its effect or not, and is not sent again
        └── PowerUnchanged      a BMC took a command, and nothing came of it

Drivers and the inventory derive from these. An error has a stable `type` (its class name, which is
what Temporal stores as the ApplicationError's type), says whether trying again can help, and may
carry a `remedy`: what the operator does about it, in one sentence.
"""

from collections.abc import Mapping
from typing import ClassVar


class HostlerError(Exception):
    """Base of every error that Hostler raises on purpose.

    Args:
        message: what is wrong, in one sentence that names the field or the subject.
        remedy: what the operator can do about it.
        details: JSON-serializable facts for programs (never a secret).
    """

    retryable: ClassVar[bool] = False
    http_status: ClassVar[int] = 500

    def __init__(
        self,
        message: str,
        *,
        remedy: str | None = None,
        details: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.details = dict(details or {})

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}" if self.remedy else self.message

    @property
    def type(self) -> str:
        """The stable name of this kind of error."""
        return type(self).__name__


class InvalidInput(HostlerError):
    """The request itself is wrong; `details["fields"]` lists the fields."""

    http_status = 422


class NotFound(HostlerError):
    """The named thing is not in the inventory."""

    http_status = 404


class AlreadyExists(HostlerError):
    """Another row has this name, address or identity."""

    http_status = 409


class Conflict(HostlerError):
    """The subject's state does not allow this now."""

    http_status = 409


class LeaseHeld(Conflict):
    """Another running operation holds the host; `details` names it (`workflow_id`, `run_id`)."""


class LeaseLost(Conflict):
    """This operation's lease was taken over: it must not touch the host any more."""


class EvacuationImpossible(Conflict):
    """Not every VM can leave the host; `details["plan"]` has the evacuation plan."""


class Refused(HostlerError):
    """The caller may not do this."""

    http_status = 403


class Unavailable(HostlerError):
    """A system did not answer. Nothing is known about whether the request had an effect."""

    retryable = True
    http_status = 503


class Failed(HostlerError):
    """A system answered that it failed."""

    http_status = 502


class OutcomeUnknown(Failed):
    """A command was on its way when something died, or was accepted and left no trace. What became
    of it can't be found out."""


class PowerUnchanged(Failed):
    """The BMC said that it did what it was told, and the host is as it was before."""
