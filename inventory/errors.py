"""What the inventory raises beside the general errors.

Conflict
├── DestinationFull    the memory or the CPUs that are free do not suffice
├── DestinationUnfit   the host takes no VM now
└── PlanOutdated       the cluster has changed since the plan was made
Unavailable
└── SlotsBusy          as many migrations run from or to the host as may
Failed
└── SecretUnreadable   the master key is not the one that the secret was encrypted with
"""

from contracts.errors import Conflict, Failed, Unavailable


class DestinationFull(Conflict):
    """Another destination may have the room."""


class DestinationUnfit(Conflict):
    """Another destination may do."""


class PlanOutdated(Conflict):
    """A new look at the cluster gives a plan that holds."""


class SlotsBusy(Unavailable):
    """The migration waits until another one from or to the same host has ended."""


class SecretUnreadable(Failed):
    """Wrong master key, or the row was tampered with."""
