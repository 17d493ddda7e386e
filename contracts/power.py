"""Power of a host, as its BMC (baseboard management controller) switches and tells it."""

from enum import StrEnum
from typing import Protocol

from pydantic_core import PydanticCustomError

# The group of Python entry points that drivers come in by: a name, and a callable without arguments
# that makes a drivers.protocols.PowerDriver.
POWER_DRIVER_GROUP = "hostler.power_drivers"


class PowerState(StrEnum):
    """What is known of a host's power. `Unknown`: nobody could tell; never to be taken for `Off`.
    `Disabled`: nobody asks."""

    ON = "On"
    OFF = "Off"
    UNKNOWN = "Unknown"
    DISABLED = "Disabled"


class PowerCommand(StrEnum):
    """What a BMC is told. `off` takes the power away, `soft` asks the operating system to power
    off (ACPI); `cycle` takes the power away and gives it back, `reset` resets what has power."""

    ON = "on"
    OFF = "off"
    RESET = "reset"
    CYCLE = "cycle"
    SOFT = "soft"


class BmcPrivilege(StrEnum):
    """What a login on a BMC may do: each level may do what the ones before it may. `user` reads,
    `operator` switches power, `administrator` changes accounts."""

    USER = "user"
    OPERATOR = "operator"
    ADMINISTRATOR = "administrator"


class SwitchesOff(Protocol):
    """The field of a request to switch a host off in good order."""

    @property
    def fall_back_to_off(self) -> bool: ...


def check_fall_back(asked: SwitchesOff, option: str, *, chosen: bool) -> None:
    """Raises PydanticCustomError. `option`: the field that `fall_back_to_off` goes with."""
    if asked.fall_back_to_off and not chosen:
        raise PydanticCustomError(
            "fall_back", "fall_back_to_off goes with {option} only", {"option": option}
        )
