"""A BMC's own password, and whether a configuration leads to a BMC."""

import asyncio
import secrets
import string
from dataclasses import replace

from temporalio import activity

from activities.bmcs import BMC_PASSWORD, Bmc, BmcDirectory, surprises_of_bmc
from activities.execution import uninterrupted
from contracts.errors import Failed, HostlerError, InvalidInput, NotFound, Unavailable
from contracts.leases import LeaseRef
from contracts.oobm import DEFAULT_CIPHER_SUITE, DEFAULT_DRIVER, BmcLook
from contracts.power import BmcPrivilege, PowerState
from contracts.power_actions import (
    BmcPasswordProven,
    BmcTestInput,
    BmcTestResult,
    StageBmcPasswordInput,
    misses_password,
)
from contracts.settings import OOBM_SYNC_TIMEOUT
from drivers.errors import BmcUnreachable, InsufficientPrivilege, LoginRefused, WrongBmc
from inventory import Inventory
from inventory.oobm import BmcLogin

# IPMI 1.5 takes 16 bytes, and some BMCs no more.
_PASSWORD_LENGTH = 16
_ALPHABET = string.ascii_letters + string.digits
_CHANGE_WITHIN_S = 30
_GRACE_S = 5


class BmcAccountActivities:
    """Each step finds out first which password the BMC takes."""

    def __init__(self, inventory: Inventory, bmcs: BmcDirectory) -> None:
        self._inventory = inventory
        self._bmcs = bmcs

    # --- a look ---------------------------------------------------------------------------------

    @activity.defn(name="test_bmc")
    async def test_bmc(self, request: BmcTestInput) -> BmcTestResult:
        """Log in to it and look, by the host's configuration with what is given in its place. What
        is seen is not written down. Raises NotFound (host; a configuration, where it takes one),
        InvalidInput."""
        await self._inventory.hosts.get(request.host)
        bmc = await self._to_test(request)
        timeout = (await self._inventory.settings.resolve())[OOBM_SYNC_TIMEOUT]
        bmc.driver.validate(bmc.access)
        return BmcTestResult(host=request.host, look=await _look(bmc, timeout))

    @activity.defn(name="discard_bmc_secret")
    async def discard_bmc_secret(self, secret: str) -> None:
        """Delete a password that no configuration refers to."""
        await self._inventory.secrets.discard(secret)

    async def _to_test(self, request: BmcTestInput) -> Bmc:
        given = {
            name: value
            for name, value in request.model_dump(exclude={"host", "secret"}).items()
            if value is not None
        }
        if request.secret is None:
            refused = misses_password(given)
            if refused is not None:
                raise refused
        elif await self._inventory.secrets.is_claimed(request.secret):
            raise InvalidInput(
                "The password of a look is its own: this one is a host's.",
                details={"fields": [{"field": "secret", "message": "is a host's own"}]},
            )
        try:
            login = await self._inventory.oobm.login(request.host)
        except NotFound:
            if request.secret is None or not {"address", "user"} <= given.keys():
                raise
            host = await self._inventory.hosts.get(request.host)
            login = _unconfigured(host.name, host.cluster)
        # It may be another BMC on purpose: only the one that is configured has a known GUID.
        guid = None if given.keys() & {"address", "port", "driver"} else login.guid
        return await self._bmcs.of(replace(login, **given, guid=guid), request.secret)

    # --- another password -----------------------------------------------------------------------

    @activity.defn(name="stage_bmc_password")
    async def stage_bmc_password(self, request: StageBmcPasswordInput) -> None:
        """Store the new password beside the old one, a random one if none is given; one that was
        stored before and never proven is taken up. Raises LeaseLost, NotFound, InvalidInput."""
        host = request.lease.host
        secret = request.secret or await self._inventory.secrets.store(
            BMC_PASSWORD, _random_password(), actor=request.lease.owner.workflow_id
        )
        staged = await self._inventory.oobm.stage_password(host, secret, lease=request.lease)
        if staged != secret:
            await self._inventory.secrets.discard(secret)

    @activity.defn(name="set_bmc_password")
    async def set_bmc_password(self, lease: LeaseRef) -> BmcPasswordProven:
        """Have the BMC take the stored new password, and prove it by a login with nothing else. One
        that does not take it, and still takes the old one, is an answer. Raises Unavailable, Failed
        (it takes neither), LeaseLost."""
        await self._inventory.leases.verify(lease)
        login = await self._inventory.oobm.login(lease.host)
        if login.staged_secret_id is None:
            return BmcPasswordProven(changed=True, proof="it was promoted before")
        old = await self._bmcs.of(login)
        new = await self._bmcs.of(login, login.staged_secret_id)
        return await uninterrupted(_set(old, new))

    @activity.defn(name="promote_bmc_password")
    async def promote_bmc_password(self, lease: LeaseRef) -> None:
        """From now on the new password counts; the old one is deleted. Raises LeaseLost."""
        await self._inventory.oobm.promote_password(lease.host, lease=lease)
        await self._bmcs.forget(lease.host)

    @activity.defn(name="drop_bmc_password")
    async def drop_bmc_password(self, request: StageBmcPasswordInput) -> None:
        """The BMC keeps its old password: delete the new one. Raises LeaseLost."""
        await self._inventory.oobm.drop_password(
            request.lease.host, "it did not take the new one", lease=request.lease
        )


async def _set(old: Bmc, new: Bmc) -> BmcPasswordProven:
    """The old password first: one that is wrong counts against the account."""
    host = old.login.host
    problem = None
    if await _takes(old):
        problem = await _change(old, new.access.password)
        if problem is not None and await _takes(old):
            return BmcPasswordProven(changed=False, proof=problem)
    if await _takes(new):
        return BmcPasswordProven(
            changed=True, proof="a login of its own with nothing but the new password"
        )
    if problem is None and await _takes(old):
        return BmcPasswordProven(
            changed=False, proof="it said that it takes the new one, and takes the old one"
        )
    raise Failed(
        f"The BMC of {host} takes neither its old password nor the new one. Both are kept.",
        remedy="Log in to it by other means, then store the right one with "
        f"`hostler oobm configure {host} --password-file FILE`.",
    )


async def _change(old: Bmc, password: str) -> str | None:
    """What the BMC said against it. Raises Unavailable."""
    try:
        with surprises_of_bmc(old.login.host):
            async with asyncio.timeout(_CHANGE_WITHIN_S + _GRACE_S):
                await old.driver.change_password(old.access, password, timeout=_CHANGE_WITHIN_S)
    except Unavailable:
        raise
    except HostlerError as error:
        return error.message
    return None


async def _takes(bmc: Bmc) -> bool:
    """Whether it lets us in with that password, in a session of its own."""
    try:
        with surprises_of_bmc(bmc.login.host):
            async with asyncio.timeout(_CHANGE_WITHIN_S + _GRACE_S):
                await bmc.driver.examine(bmc.access, timeout=_CHANGE_WITHIN_S)
    except LoginRefused:
        return False
    return True


async def _look(bmc: Bmc, seconds: int) -> BmcLook:
    try:
        with surprises_of_bmc(bmc.login.host):
            async with asyncio.timeout(seconds + _GRACE_S):
                report = await bmc.driver.examine(bmc.access, timeout=seconds)
    except (LoginRefused, InsufficientPrivilege) as error:
        logged_in = isinstance(error, InsufficientPrivilege)
        return BmcLook(reachable=True, logged_in=logged_in, problem=error.message)
    except WrongBmc as error:
        shown = error.details.get("shown")
        return BmcLook(reachable=True, guid=str(shown) if shown else None, problem=error.message)
    except InvalidInput:
        raise
    except BmcUnreachable as error:
        return BmcLook(reachable=False, problem=error.message)
    except HostlerError as error:
        return BmcLook(reachable=not isinstance(error, Unavailable), problem=error.message)
    unclear = report.state is PowerState.UNKNOWN
    return BmcLook(
        reachable=True,
        logged_in=True,
        privilege=report.privilege,
        power_state=report.state,
        guid=report.guid,
        problem="it answers with neither On nor Off" if unclear else None,
    )


def _unconfigured(host: str, cluster: str) -> BmcLogin:
    """What a configuration has that says nothing."""
    return BmcLogin(
        host=host,
        cluster=cluster,
        generation=0,
        driver=DEFAULT_DRIVER,
        address="",
        port=None,
        user="",
        privilege=BmcPrivilege.ADMINISTRATOR,
        cipher_suite=DEFAULT_CIPHER_SUITE,
        certificate=None,
        guid=None,
        secret_id="",
        staged_secret_id=None,
    )


def _random_password() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(_PASSWORD_LENGTH))
