"""From a host's name to how its BMC is reached, and from what a driver says to what is known."""

import asyncio
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any, Protocol

from temporalio import activity

from contracts.errors import Conflict, Failed, HostlerError, InvalidInput, Unavailable
from contracts.oobm import PowerProblem
from contracts.power import PowerState
from contracts.power_actions import PowerSighting
from contracts.settings import SETTINGS, ResolvedSettings, Setting
from drivers.errors import (
    AccountRefused,
    BmcUnidentified,
    BmcUnreachable,
    InsufficientPrivilege,
    LoginRefused,
    WrongBmc,
)
from drivers.protocols import BmcAccess, PowerDriver, SessionKeeper
from inventory import Inventory
from inventory.errors import MasterKeyMissing
from inventory.oobm import BmcLogin

BMC_PASSWORD = "bmc_password"  # noqa: S105 - a kind
_OPTIONS = "outofbandmanagement."
# A driver that does not keep its own deadline is not waited for.
_GRACE_S = 5
_MAX_REASON_CHARS = 500


class PowerDriverSet(Protocol):
    """The drivers that this worker has."""

    def get(self, name: str) -> PowerDriver:
        """Raises NotFound."""

    async def forget(self, host: str) -> None:
        """End what any of them keeps for the BMC of `host`."""


class Disabled(Conflict):
    """Out-of-band management is not enabled there."""


@dataclass(frozen=True)
class Bmc:
    """A BMC that can be spoken with."""

    login: BmcLogin
    driver: PowerDriver
    access: BmcAccess

    def with_password(self, password: str) -> "Bmc":
        """The same with another one."""
        return replace(self, access=replace(self.access, password=password))


class BmcDirectory:
    """Looks up configurations, passwords and drivers."""

    def __init__(self, inventory: Inventory, drivers: PowerDriverSet) -> None:
        self._inventory = inventory
        self._drivers = drivers

    async def find(self, host: str) -> Bmc:
        """The host's BMC. Raises NotFound (configuration, password, driver), Disabled,
        SecretUnreadable."""
        login = await self._inventory.oobm.login(host)
        if login.disabled_by:
            raise Disabled(
                f"Out-of-band management of {host} is disabled: {', '.join(login.disabled_by)}.",
                remedy=f"Enable it, for example with `hostler oobm enable {host}`.",
            )
        return await self.of(login)

    async def check(self, login: BmcLogin, password: str | None) -> None:
        """Whether that could be a BMC's configuration, without any contact. No password: the one
        that is stored. Raises InvalidInput, which names the field; NotFound, SecretUnreadable."""
        if password is None:
            bmc = await self.of(login)
        else:
            settings = await self._inventory.settings.resolve(cluster=login.cluster)
            bmc = self.open(login, password, settings)
        bmc.driver.validate(bmc.access)

    async def forget(self, host: str) -> None:
        """End what is kept open to its BMC, in this worker."""
        await self._drivers.forget(host)

    async def of(self, login: BmcLogin, secret_id: str | None = None) -> Bmc:
        """The BMC by that configuration, with another stored password if one is named. Raises
        InvalidInput if what is named is not one of a BMC: no other secret goes there."""
        credential = await self._inventory.secrets.reveal(secret_id or login.secret_id)
        if credential.kind != BMC_PASSWORD:
            raise InvalidInput(f"What is stored as {secret_id} is not the password of a BMC.")
        settings = await self._inventory.settings.resolve(cluster=login.cluster)
        return self.open(login, credential.plaintext, settings)

    async def of_many(
        self, logins: Sequence[BmcLogin]
    ) -> list[tuple[BmcLogin, Bmc | HostlerError]]:
        """The same of many, in few queries; what is in the way of one of them in its place. Those
        whose password takes a master key that is missing here are left out."""
        settings = {
            cluster: await self._inventory.settings.resolve(cluster=cluster)
            for cluster in {login.cluster for login in logins}
        }
        passwords = await self._inventory.secrets.reveal_all([one.secret_id for one in logins])
        found: list[tuple[BmcLogin, Bmc | HostlerError]] = []
        for login in logins:
            secret = login.secret_id
            try:
                password = passwords.get(secret) or await self._inventory.secrets.reveal(secret)
                bmc = self.open(login, password.plaintext, settings[login.cluster])
                found.append((login, bmc))
            except MasterKeyMissing as error:  # that says nothing of the BMC
                activity.logger.warning("the BMC of %s can't be asked: %s", login.host, error)
            except HostlerError as error:
                found.append((login, error))
        return found

    def open(self, login: BmcLogin, password: str, settings: ResolvedSettings) -> Bmc:
        """Raises NotFound (the driver), Conflict (a stored setting is not valid)."""
        return Bmc(
            login,
            self._drivers.get(login.driver),
            BmcAccess(
                name=login.host,
                address=login.address,
                port=login.port,
                user=login.user,
                password=password,
                privilege=login.privilege,
                cipher_suite=login.cipher_suite,
                guid=login.guid,
                certificate=login.certificate,
                options={
                    option: settings[setting]
                    for option, setting in _options_of(login.driver).items()
                },
            ),
        )


@cache
def _options_of(driver: str) -> Mapping[str, Setting[Any]]:
    """The settings of a driver, by the last part of their names: a round asks for thousands."""
    prefix = f"{_OPTIONS}{driver}."
    return {
        name.removeprefix(prefix): setting
        for name, setting in SETTINGS.items()
        if name.startswith(prefix)
    }


@contextmanager
def surprises_of_bmc(bmc: Bmc, new_password: str | None = None) -> Iterator[None]:
    """As `surprises_of`; a deadline that passed is one that the BMC has missed. No error tells its
    password; nor the new one that it is given, which BMCs quote when they refuse it."""
    try:
        yield
    except HostlerError as error:
        if new_password is not None:
            hidden = (bmc.access.password, new_password)
            error.message = _without(error.message, hidden)
            error.remedy = _without(error.remedy, hidden) if error.remedy else None
            raise error from None
        raise
    except TimeoutError:
        raise BmcUnreachable(f"The BMC of {bmc.login.host} did not answer in time.") from None
    except Exception as error:
        raise surprise_of_bmc(bmc, error, new_password) from None


def surprise_of_bmc(bmc: Bmc, error: Exception, new_password: str | None = None) -> Failed:
    """What a driver of this BMC is not to raise, as a failure; it is logged."""
    hidden = (bmc.access.password, new_password or "")
    trace = _without("".join(traceback.format_exception(error)), hidden)
    activity.logger.error("the BMC of %s is beyond Hostler: %s", bmc.login.host, trace)
    said = _without(str(error), hidden)
    return Failed(
        f"The driver {bmc.login.driver} has failed over the BMC of {bmc.login.host}: "
        f"{type(error).__name__}: {said}"
    )


def _without(text: str, passwords: Sequence[str]) -> str:
    """The longest first: one may be part of another."""
    for password in sorted(filter(None, passwords), key=len, reverse=True):
        text = text.replace(password, "********")
    return text


async def ask(bmc: Bmc, seconds: int) -> PowerSighting:
    """What it says of the power, or why it says nothing; raises nothing. With its GUID when that is
    not known yet."""
    began_at = datetime.now(UTC)
    host = bmc.login.host
    guid = None
    try:
        with surprises_of_bmc(bmc):
            async with asyncio.timeout(seconds + _GRACE_S):
                state, guid = await _power_of(bmc, seconds)
    except HostlerError as error:
        return sighting_of(bmc.login, began_at, error)
    return PowerSighting(
        host=host,
        generation=bmc.login.generation,
        began_at=began_at,
        state=state,
        guid=guid,
        problem=PowerProblem.FAILED if state is PowerState.UNKNOWN else None,
        reason="its BMC answers with neither On nor Off" if state is PowerState.UNKNOWN else "",
    )


async def _power_of(bmc: Bmc, seconds: int) -> tuple[PowerState, str | None]:
    """With its GUID when that is not known yet. What proves a configuration is a new login; a BMC
    that has no GUID need not take one in each round."""
    driver, access = bmc.driver, bmc.access
    if access.guid is not None:
        return await driver.power_state(access, timeout=seconds), None
    if bmc.login.answers and isinstance(driver, SessionKeeper):
        return await driver.power_state_and_guid(access, timeout=seconds)
    report = await driver.examine(access, timeout=seconds)
    return report.state, report.guid


def sighting_of(login: BmcLogin, began_at: datetime, error: HostlerError) -> PowerSighting:
    """What an error tells of the power: nothing, and why."""
    if not isinstance(error, Unavailable | Failed | InvalidInput | Conflict):
        activity.logger.warning("%s: %s", login.host, error)
    return PowerSighting(
        host=login.host,
        generation=login.generation,
        began_at=began_at,
        state=PowerState.UNKNOWN,
        problem=problem_of(error),
        reason=error.message.rstrip(".")[:_MAX_REASON_CHARS],
    )


def problem_of(error: HostlerError) -> PowerProblem:
    """The kind of it."""
    if isinstance(error, AccountRefused):
        return PowerProblem.ACCOUNT_REFUSED
    if isinstance(error, LoginRefused):
        return PowerProblem.LOGIN_REFUSED
    if isinstance(error, InsufficientPrivilege):
        return PowerProblem.PRIVILEGE_REFUSED
    if isinstance(error, WrongBmc):
        return PowerProblem.ANOTHER_BMC
    if isinstance(error, BmcUnidentified):
        return PowerProblem.FAILED
    if isinstance(error, Unavailable):
        return PowerProblem.UNREACHABLE
    return PowerProblem.FAILED
