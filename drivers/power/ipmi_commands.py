"""IPMI's requests and answers (specification 2.0), as bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from contracts.power import BmcPrivilege, PowerCommand, PowerState
from drivers.errors import BmcCommandRejected, InsufficientPrivilege
from drivers.power.fields import is_placeholder

PRIVILEGE_LEVELS = {
    BmcPrivilege.USER: 2,
    BmcPrivilege.OPERATOR: 3,
    BmcPrivilege.ADMINISTRATOR: 4,
}
_CHASSIS_CONTROL = {
    PowerCommand.OFF: 0,
    PowerCommand.ON: 1,
    PowerCommand.CYCLE: 2,
    PowerCommand.RESET: 3,
    PowerCommand.SOFT: 5,
}
_REASONS = {
    0xC0: "it is busy",
    0xC1: "it does not know that command",
    0xC3: "it took too long itself",
    0xC9: "a parameter is out of its range",
    0xCB: "there is no such thing",
    0xCC: "a field of the request is invalid",
    0xCE: "it can't answer that now",
    0xD3: "what the command is for can't be reached",
    0xD5: "not in its present state",
    0xD6: "that function is disabled",
}


@dataclass(frozen=True)
class Ask:
    """A request: network function, command, data."""

    netfn: int
    command: int
    data: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"0x{self.netfn:02x} 0x{self.command:02x}"


CHASSIS_STATUS = Ask(0x00, 0x01)
GET_DEVICE_ID = Ask(0x06, 0x01)
BOOT_FLAGS = Ask(0x00, 0x09, (0x05, 0x00, 0x00))
SYSTEM_GUID = Ask(0x06, 0x37)
# Of the boot flags (table 28-14).
_VALID, _PERSISTENT, _UEFI = 0x80, 0x40, 0x20
_DEVICE, _NETWORK = 0x3C, 0x04
# The channel that the request itself comes by.
THIS_CHANNEL = 0x0E


def chassis_control(command: PowerCommand) -> Ask:
    """Switch power (28.3)."""
    return Ask(0x00, 0x02, (_CHASSIS_CONTROL[command],))


def boot_from_network_once(data: Sequence[int]) -> Ask:
    """Set the boot flags (28.12), by what BOOT_FLAGS was answered: whether firmware boots by BIOS
    or UEFI stays as it is. The BMC forgets them after 60 seconds without a boot, and so do we mean
    it: what is left behind must not install a host by surprise."""
    flags = data[2] if len(data) > 2 else 0
    return Ask(0x00, 0x08, (0x05, _VALID | flags & _UEFI, _NETWORK, 0x00, 0x00, 0x00))


BOOT_AS_EVER = Ask(0x00, 0x08, (0x05, 0x00, 0x00, 0x00, 0x00, 0x00))


def boots_from_network_once(data: Sequence[int]) -> bool:
    """Of BOOT_FLAGS's answer. There are BMCs (ipmi_sim is one) that do not show the flags as
    valid, though they are."""
    return len(data) >= 4 and not data[2] & _PERSISTENT and data[3] & _DEVICE == _NETWORK


def session_privilege(level: int) -> Ask:
    """Raise the session to that level (22.18)."""
    return Ask(0x06, 0x3B, (level,))


def user_access(number: int) -> Ask:
    """Of one account on this channel (22.27); its answer begins with the number of accounts."""
    return Ask(0x06, 0x44, (THIS_CHANNEL, number))


def user_name(number: int) -> Ask:
    """The account's (22.29)."""
    return Ask(0x06, 0x46, (number,))


def set_password(number: int, password: str) -> Ask:
    """Give an account a password of 16 bytes at most (22.30)."""
    return Ask(0x06, 0x47, (number, 0x02, *password.encode().ljust(16, b"\0")))


def power_state(data: Sequence[int]) -> PowerState:
    """Of Get Chassis Status's answer."""
    if not data:
        return PowerState.UNKNOWN
    return PowerState.ON if data[0] & 1 else PowerState.OFF


def accounts(data: Sequence[int]) -> int:
    """How many accounts there can be, of Get User Access's answer."""
    return data[0] & 0x3F if data else 0


def name_of(data: Sequence[int]) -> bytes:
    """Of Get User Name's answer."""
    return bytes(data).rstrip(b"\0")


def system_guid(data: Sequence[int]) -> str | None:
    """The UUID of Get System GUID's answer; None: it has none of its own. Most BMCs have SMBIOS's
    order of bytes, some the specification's, some RFC 4122's: the first in which it is a UUID that
    somebody may have made, so that it is the machine's own one (as `ipmitool mc guid` does)."""
    octets = bytes(data)
    if len(octets) != 16 or is_placeholder(UUID(bytes=octets)):
        return None
    orders = (UUID(bytes_le=octets), UUID(bytes=octets[::-1]), UUID(bytes=octets))
    return str(next((o for o in orders if o.version in range(1, 9)), orders[0]))


def check(host: str, what: str, code: int) -> None:
    """Raise what a completion code other than 0 stands for."""
    if code == 0:
        return
    if code == 0xD4:
        raise InsufficientPrivilege(
            f"The BMC of {host} does not let this login {what}.",
            remedy="Give that account a higher privilege on the BMC, or configure another one.",
            details={"code": code},
        )
    reason = f" ({_REASONS[code]})" if code in _REASONS else ""
    raise BmcCommandRejected(
        f"The BMC of {host} refused to {what}: completion code 0x{code:02x}{reason}.",
        remedy="See what its own log says about that; not every BMC has every command.",
        details={"code": code},
    )
