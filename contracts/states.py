"""States and their transition tables. The tables are data: the inventory enforces them."""

from collections.abc import Collection, Mapping
from enum import StrEnum


class ResourceState(StrEnum):
    """What the administrator wants of a host."""

    CREATING = "Creating"
    ENABLED = "Enabled"
    DISABLED = "Disabled"
    PREPARE_FOR_MAINTENANCE = "PrepareForMaintenance"
    ERROR_IN_PREPARE_FOR_MAINTENANCE = "ErrorInPrepareForMaintenance"
    MAINTENANCE = "Maintenance"
    ERROR_IN_MAINTENANCE = "ErrorInMaintenance"
    ERROR = "Error"
    REMOVED = "Removed"


class HostStatus(StrEnum):
    """What Hostler sees of a host."""

    UP = "Up"
    DOWN = "Down"
    DISCONNECTED = "Disconnected"
    ALERT = "Alert"


class TlsState(StrEnum):
    """What of its libvirt a host does by TLS."""

    NONE = "none"
    """Nothing that Hostler knows of: it has no certificates of Hostler's."""
    READY = "ready"
    """It has certificates: migrations are by TLS where the other host has them, too."""
    SECURED = "secured"
    """It takes and gives VMs by TLS only."""

    @property
    def can(self) -> bool:
        """Whether VMs can come and go by TLS."""
        return self is not TlsState.NONE


def tls_beside(others: Collection[TlsState], *, only_secured: bool) -> TlsState:
    """What a host that joins these gets before VMs come to it: nothing where nobody has anything.
    It is secured where all are, so that none of them is cut off from it; `only_secured`: nothing
    else gets into service, so also where all can do with that."""
    if all(other is TlsState.SECURED for other in others):
        return TlsState.SECURED if others or only_secured else TlsState.NONE
    if only_secured:
        return TlsState.SECURED if all(other.can for other in others) else TlsState.READY
    return TlsState.READY if any(other.can for other in others) else TlsState.NONE


class AllocationState(StrEnum):
    """Whether a zone, pod or cluster takes new VMs."""

    ENABLED = "Enabled"
    DISABLED = "Disabled"


class Phase(StrEnum):
    """Where an operation stands; the search attribute `HostlerPhase`."""

    PLANNING = "Planning"
    QUEUED = "Queued"
    EVACUATING = "Evacuating"
    QUESTION = "Question"
    READY = "Ready"
    LEAVING = "Leaving"
    ROLLING_BACK = "RollingBack"
    RETURNING = "Returning"
    CONNECTING = "Connecting"
    INSTALLING = "Installing"
    TELLING = "Telling"
    CLEANING = "Cleaning"
    REMOVING = "Removing"
    REINSTALLING = "Reinstalling"
    SWITCHING = "Switching"
    VERIFYING = "Verifying"
    CHANGING = "Changing"
    DONE = "Done"


_R = ResourceState

RESOURCE_STATE_TRANSITIONS: Mapping[ResourceState, frozenset[ResourceState]] = {
    _R.CREATING: frozenset({_R.ENABLED, _R.DISABLED, _R.ERROR}),
    _R.ERROR: frozenset({_R.CREATING, _R.REMOVED}),
    _R.ENABLED: frozenset({_R.DISABLED, _R.PREPARE_FOR_MAINTENANCE}),
    _R.DISABLED: frozenset({_R.ENABLED, _R.PREPARE_FOR_MAINTENANCE}),
    _R.PREPARE_FOR_MAINTENANCE: frozenset(
        {
            _R.MAINTENANCE,
            _R.ERROR_IN_PREPARE_FOR_MAINTENANCE,
            _R.ERROR_IN_MAINTENANCE,
            _R.ENABLED,
            _R.DISABLED,
        }
    ),
    _R.ERROR_IN_PREPARE_FOR_MAINTENANCE: frozenset(
        {
            _R.PREPARE_FOR_MAINTENANCE,
            _R.MAINTENANCE,
            _R.ERROR_IN_MAINTENANCE,
            _R.ENABLED,
            _R.DISABLED,
        }
    ),
    _R.MAINTENANCE: frozenset(
        {
            _R.ENABLED,
            _R.DISABLED,
            _R.PREPARE_FOR_MAINTENANCE,
            _R.ERROR_IN_MAINTENANCE,
            _R.REMOVED,
        }
    ),
    _R.ERROR_IN_MAINTENANCE: frozenset(
        {_R.PREPARE_FOR_MAINTENANCE, _R.MAINTENANCE, _R.ENABLED, _R.DISABLED}
    ),
    _R.REMOVED: frozenset({_R.CREATING}),
}

# A host in one of these is on its way into, in, or stuck in a maintenance.
MAINTENANCE_STATES = frozenset(
    {
        _R.PREPARE_FOR_MAINTENANCE,
        _R.ERROR_IN_PREPARE_FOR_MAINTENANCE,
        _R.MAINTENANCE,
        _R.ERROR_IN_MAINTENANCE,
    }
)

_S = HostStatus

HOST_STATUS_TRANSITIONS: Mapping[HostStatus, frozenset[HostStatus]] = {
    _S.UP: frozenset({_S.DISCONNECTED, _S.ALERT, _S.DOWN}),
    _S.DISCONNECTED: frozenset({_S.UP, _S.ALERT, _S.DOWN}),
    _S.ALERT: frozenset({_S.UP, _S.DISCONNECTED, _S.DOWN}),
    _S.DOWN: frozenset({_S.UP, _S.ALERT}),
}


def may_change_to(current: ResourceState, target: ResourceState) -> bool:
    """Whether the table allows `current` to become `target`; staying as it is, is no transition."""
    return target in RESOURCE_STATE_TRANSITIONS[current]
