"""What every driver of BMCs asks of the fields of a BmcAccess, and of a BMC's GUID."""

import string
from typing import NoReturn
from uuid import UUID

from contracts.errors import InvalidInput
from contracts.oobm import CIPHER_SUITES, IPMI_PASSWORD_BYTES, IPMI_USER_BYTES
from drivers.protocols import BmcAccess

_IN_A_NAME = frozenset(string.ascii_letters + string.digits + ".-_:%")

# Of boards that nobody has given their own: the default of AMI's firmware, and what counts.
_PLACEHOLDERS = frozenset(
    {
        UUID("03000200-0400-0500-0006-000700080009"),
        UUID("00010203-0405-0607-0809-0a0b0c0d0e0f"),
        UUID("12345678-1234-5678-90ab-cddeefaabbcc"),
    }
)


def is_placeholder(guid: UUID) -> bool:
    """Whether many boards have it, in whichever order of bytes: it tells none from another."""
    orders = {guid, UUID(bytes=guid.bytes_le), UUID(bytes=guid.bytes[::-1])}
    return len({*guid.bytes}) == 1 or not _PLACEHOLDERS.isdisjoint(orders)


def refuse(field: str, because: str) -> NoReturn:
    """Raise InvalidInput that names the field."""
    raise InvalidInput(
        f"{field}: {because}.", details={"fields": [{"field": field, "message": because}]}
    )


def validate_address(access: BmcAccess) -> None:
    """Address and port could be those of a BMC."""
    if not access.address or not set(access.address) <= _IN_A_NAME or access.address[0] == "-":
        refuse("address", "must be a host name or an IP address, without a port")
    if access.port is not None and not 0 < access.port < 65536:
        refuse("port", "must be from 1 to 65535")


def validate_ipmi(access: BmcAccess) -> None:
    """IPMI can carry these (2.0, 22.28 and 22.30)."""
    validate_address(access)
    if not 0 < len(access.user.encode()) <= IPMI_USER_BYTES or "\0" in access.user:
        refuse("user", f"must have from 1 to {IPMI_USER_BYTES} bytes")
    if not 0 < len(access.password.encode()) <= IPMI_PASSWORD_BYTES or "\0" in access.password:
        refuse("password", f"must have from 1 to {IPMI_PASSWORD_BYTES} bytes, none of them 0")
    if access.cipher_suite not in {None, *CIPHER_SUITES}:
        refuse("cipher_suite", "must be 17 (SHA-256) or 3 (SHA-1), the two that sign and encrypt")


def validate_new_ipmi_password(password: str) -> None:
    """Every BMC can have it. There are some (ipmi_sim is one) that accept 20 bytes and keep 16:
    then neither the new password nor the old one lets anybody in."""
    if not 0 < len(password.encode()) <= 16 or "\0" in password:
        refuse("new_password", "must have from 1 to 16 bytes, none of them 0")
