"""What the inventory raises beside the general errors.

Conflict
├── DestinationFull    the memory or the CPUs that are free do not suffice
├── DestinationUnfit   the host takes no VM now
└── PlanOutdated       the cluster has changed since the plan was made
Unavailable
└── SlotsBusy          as many migrations run from or to the host as may
Failed
└── SecretUnreadable   a stored credential can't be decrypted, or none can be encrypted
    ├── MasterKeyMissing   the master key that it takes is not here
    └── SecretDamaged      it was changed, cut off, or moved from another row
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
    """Nothing was overwritten."""


class MasterKeyMissing(SecretUnreadable):
    """With that key, all is well again."""


class SecretDamaged(SecretUnreadable):
    """Its key is here, and does not fit what is stored."""
