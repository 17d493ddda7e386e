"""Out-of-band management: how a host's BMC is reached, and what it said."""

import re
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import AfterValidator, StringConstraints
from pydantic_core import PydanticCustomError

from contracts.base import Contract, Name
from contracts.power import BmcPrivilege, PowerState

DEFAULT_DRIVER = "ipmi"
DEFAULT_CIPHER_SUITE: Literal[3] = 3
"""Of IPMI: RAKP-HMAC-SHA1, which all BMCs know."""

DEFAULT_PORTS: Mapping[str, int] = {"ipmi": 623, "ipmitool": 623, "redfish": 443}
"""Where BMCs listen, by driver."""


def normal_address(address: str) -> str:
    """The one way to write an IP address or a name. Raises PydanticCustomError for what some would
    take for an IP address, and others not: 127.1, 0x7f000001, 010.0.0.1."""
    try:
        found = ip_address(address)
    except ValueError:
        last = address.rsplit(".", 1)[-1].lower()
        if ":" in address or last.isdigit() or re.fullmatch(r"0x[0-9a-f]*", last):
            raise PydanticCustomError(
                "address", "is neither an IP address in its usual form nor a name"
            ) from None
        return address.lower()
    return str(getattr(found, "ipv4_mapped", None) or found)


def endpoint(driver: str, address: str, port: int | None) -> str:
    """What no two BMCs have: where one is reached, whichever way that was written."""
    return f"{normal_address(address)} {port or DEFAULT_PORTS.get(driver, driver)}"


# An IP address or a name: BMCs are often known to DNS alone.
BmcAddress = Annotated[
    str,
    StringConstraints(
        min_length=1, max_length=253, pattern=r"^[A-Za-z0-9:]([A-Za-z0-9.:-]*[A-Za-z0-9:])?$"
    ),
    AfterValidator(normal_address),
]
BmcUser = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")
]
BmcCertificate = Annotated[
    str, StringConstraints(max_length=65_536, pattern=r"^\s*-----BEGIN CERTIFICATE-----[^\x00]*$")
]
CIPHER_SUITES = (3, 17)
"""Of IPMI, those that sign and encrypt: 3 with SHA-1, 17 with SHA-256."""
CipherSuite = Literal[3, 17]
IPMI_USER_BYTES, IPMI_PASSWORD_BYTES = 16, 20
IPMITOOL_INTERFACES = ("lanplus", "lan")
IPMITOOL_RETRIES = range(1, 11)


class PowerProblem(StrEnum):
    """Why a BMC's word is not known."""

    NOT_ASKED = "not asked"
    """Since it was configured or enabled."""
    UNREACHABLE = "unreachable"
    LOGIN_REFUSED = "login refused"
    ACCOUNT_REFUSED = "account refused"
    """It is locked or disabled, or not there: no password would help."""
    PRIVILEGE_REFUSED = "privilege refused"
    """The user may log in, but not as what the configuration says."""
    ANOTHER_BMC = "another BMC"
    """What answers at its address has another GUID than the BMC that was there before."""
    FAILED = "failed"
    """It answered with an error, or with what nobody understands."""


LOGIN_PROBLEMS = frozenset(
    {
        PowerProblem.LOGIN_REFUSED,
        PowerProblem.ACCOUNT_REFUSED,
        PowerProblem.PRIVILEGE_REFUSED,
    }
)
"""Who tries again and again is locked out."""


class HostPower(Contract):
    """What a host's BMC last said of its power.

    Attributes:
        since: when the state became what it is, as far as was seen.
        observed_at: when the BMC was last asked; None: not yet.
        stale: nobody has asked for more than three rounds: it may be otherwise by now.
        problem, reason: why it is `Unknown`, as a word and in words.
        failures: in a row.
        next_try_at: it is left alone until then; None: it is asked in every round.
        disabled_by: where it is not enabled ("host", "cluster cluster-1", "zone zone-1").
    """

    state: PowerState
    since: datetime | None = None
    observed_at: datetime | None = None
    stale: bool = False
    problem: PowerProblem | None = None
    reason: str = ""
    failures: int = 0
    next_try_at: datetime | None = None
    disabled_by: tuple[str, ...] = ()


class Oobm(Contract):
    """A host's out-of-band management; never holds the password.

    Attributes:
        enabled: the host's own switch; in force where those of its cluster and zone agree.
        privilege: as what Hostler logs in.
        port: None: the driver's own.
        cipher_suite: IPMI's number; None: the driver chooses.
        certificate: in PEM; one of these must have signed the BMC's, or be it. Redfish's.
        guid: of the BMC, kept from its first answer on: another one at its address is not trusted.
        password_changing: a new password is stored beside the old one, and not proven yet.
    """

    host: Name
    enabled: bool
    driver: Name
    address: BmcAddress
    port: int | None
    user: BmcUser
    privilege: BmcPrivilege
    cipher_suite: int | None
    certificate: str | None
    guid: str | None
    password_changing: bool
    power: HostPower
    updated_at: datetime


class BmcLook(Contract):
    """What a look at a BMC has shown, step by step; what comes after a step that failed is not
    known (None).

    Attributes:
        privilege: as what it lets this user in; None: it does not tell.
        problem: of the step that failed, in words.
    """

    reachable: bool
    logged_in: bool | None = None
    privilege: BmcPrivilege | None = None
    power_state: PowerState | None = None
    guid: str | None = None
    problem: str | None = None


class PowerCount(Contract):
    """How many BMCs stand so."""

    state: PowerState
    problem: PowerProblem | None
    hosts: int


class PowerRound(Contract):
    """One sweep over all BMCs that are enabled.

    Attributes:
        seconds: until the last of those that answer had answered or given up.
        asked: in this round; those that are left alone for now are not.
        answered: with `On` or `Off`.
        waiting: left alone for now, since they did not answer before.
        changed: whose state is another one than before.
        oldest_observed_at: of all that are enabled, the one whose last answer is the oldest.
    """

    started_at: datetime
    ended_at: datetime
    seconds: float
    asked: int
    answered: int
    waiting: int
    changed: int
    oldest_observed_at: datetime | None
    counts: tuple[PowerCount, ...] = ()


class OobmOverview(Contract):
    """How all BMCs stand, and the latest rounds, the newest first."""

    counts: tuple[PowerCount, ...]
    rounds: tuple[PowerRound, ...]


class OobmSwitch(Contract):
    """Whether out-of-band management is enabled for a zone or cluster. `hosts`: how many below it
    have any."""

    name: Name
    enabled: bool
    hosts: int
