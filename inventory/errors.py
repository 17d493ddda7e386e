"""What the inventory raises beside the general errors.

Conflict
├── DestinationFull    the memory or the CPUs that are free do not suffice
├── DestinationUnfit   the host takes no VM now
└── PlanOutdated       the cluster has changed since the plan was made
Unavailable
└── SlotsBusy          as many migrations run from or to the host as may
Failed
└── SecretUnreadable   a stored credential can't be decrypted, or none can be encrypted
    ├── MasterKeyMissing   the master key that it takes is not here; trying again may help
    ├── MasterKeyLost      the same, and somebody has given that key up
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
    """With the key `key_id`, all is well again: another process may have it."""

    retryable = True

    def __init__(self, message: str, *, remedy: str, key_id: str) -> None:
        super().__init__(message, remedy=remedy)
        self.key_id = key_id


class MasterKeyLost(SecretUnreadable):
    """Nobody waits for that key any more."""


class SecretDamaged(SecretUnreadable):
    """Its key is here, and does not fit what is stored."""
