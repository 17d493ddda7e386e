"""Errors that are the same whichever driver finds them."""

from drivers.errors import (
    AccountRefused,
    BmcCommandRejected,
    BmcUnidentified,
    BmcUnreachable,
    CallTimedOut,
    InsufficientPrivilege,
    LoginRefused,
    PowerOutcomeUnknown,
    WrongBmc,
)
from drivers.protocols import BmcAccess


def unreachable(access: BmcAccess, because: str) -> BmcUnreachable:
    """`because`: a clause, or empty."""
    return BmcUnreachable(
        f"The BMC of {access.name} does not answer at {access.address}"
        + (f": {because}." if because else "."),
        remedy="See whether it is connected, and whether this machine reaches its network.",
    )


def too_late(access: BmcAccess) -> CallTimedOut:
    """It has answered something, but not what was asked for."""
    return CallTimedOut(
        f"The BMC of {access.name} ({access.address}) is too slow: no answer within the deadline.",
        remedy="Raise outofbandmanagement.action.timeout if it is always so; a BMC that has become "
        "slow often recovers by a reset of the BMC itself.",
    )


def login_refused(access: BmcAccess) -> LoginRefused:
    """User or password."""
    return LoginRefused(
        f"The BMC of {access.name} ({access.address}) refuses the login of {access.user}.",
        remedy="Configure the user and password that it has; some BMCs answer so, too, when they "
        "have locked the account.",
    )


def account_refused(access: BmcAccess) -> AccountRefused:
    """The user, whatever the password."""
    return AccountRefused(
        f"The BMC of {access.name} ({access.address}) refuses {access.user}, whatever the "
        "password: the account is locked or disabled, or not there.",
        remedy="Unlock it on the BMC, or wait until it does that itself; see whether that is the "
        "right user.",
    )


def privilege_refused(access: BmcAccess) -> InsufficientPrivilege:
    """At the login."""
    return InsufficientPrivilege(
        f"The BMC of {access.name} does not give {access.user} the privilege "
        f"{access.privilege.value}.",
        remedy="Raise the account's privilege on the BMC, or configure a lower one.",
        details={"privilege": access.privilege.value},
    )


def cipher_suite_refused(access: BmcAccess) -> BmcCommandRejected:
    """Before the login."""
    return BmcCommandRejected(
        f"The BMC of {access.name} ({access.address}) does not offer the cipher suite "
        f"{access.cipher_suite}.",
        remedy="Configure another one: 17 (SHA-256) or 3 (SHA-1).",
    )


def unidentified(access: BmcAccess) -> BmcUnidentified:
    """It has a GUID, and did not tell it now."""
    return BmcUnidentified(
        f"The BMC at {access.address} does not tell at the moment whether it is that of "
        f"{access.name}: it has answered, but not with its GUID.",
        remedy="If that goes on, reset the BMC itself; if its board was replaced, configure it "
        "anew.",
        details={"expected": access.guid},
    )


def wrong_bmc(access: BmcAccess, shown: str) -> WrongBmc:
    """Another GUID than the one that is known."""
    return WrongBmc(
        f"At {access.address} answers another BMC than that of {access.name}: its GUID is "
        f"{shown}, not {access.guid}.",
        remedy="Configure the address that the BMC has now; if its board was replaced, configure "
        "it anew.",
        details={"expected": access.guid, "shown": shown},
    )


def boots_as_before(access: BmcAccess) -> BmcCommandRejected:
    """It was told to boot from the network once."""
    return BmcCommandRejected(
        f"The BMC of {access.name} has accepted to boot it from the network once, and does not "
        "show that it does.",
        remedy="Boot it from the network by its console, or by its BMC's own means.",
    )


def boots_from_network_still(access: BmcAccess) -> BmcCommandRejected:
    """It was told to boot as before."""
    return BmcCommandRejected(
        f"The BMC of {access.name} has accepted not to boot it from the network, and shows that it "
        "does.",
        remedy="Take that back by the BMC's own means before the host boots again.",
    )


def outcome_unknown(access: BmcAccess, what: str) -> PowerOutcomeUnknown:
    """`what`: the command that was sent."""
    return PowerOutcomeUnknown(
        f"The BMC of {access.name} may have got the command {what}, and has not answered.",
        remedy="Look at the host's power state before it is sent again.",
    )


def no_account(access: BmcAccess) -> BmcCommandRejected:
    """Of the user, in the list of accounts."""
    return BmcCommandRejected(
        f"The BMC of {access.name} lists no account {access.user} to change the password of.",
        remedy="Accounts of a directory (LDAP) have their passwords there.",
    )


def password_not_proven(access: BmcAccess) -> LoginRefused:
    """`access` has the new password."""
    return LoginRefused(
        f"The BMC of {access.name} has accepted a new password for {access.user}, and refuses the "
        "login with it.",
        remedy="See whether the old one still logs in; a BMC may have rules for passwords that it "
        "does not tell.",
    )
