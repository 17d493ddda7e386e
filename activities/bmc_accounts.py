"""A BMC's own password, and whether a configuration leads to a BMC."""

import asyncio
import secrets
import string
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from temporalio import activity

from activities.bmcs import BMC_PASSWORD, Bmc, BmcDirectory, sighting_of, surprises_of_bmc
from activities.execution import uninterrupted
from contracts.errors import (
    Conflict,
    Failed,
    HostlerError,
    InvalidInput,
    NotFound,
    OutcomeUnknown,
    Unavailable,
)
from contracts.leases import LeaseRef
from contracts.oobm import BmcLook
from contracts.power import PowerState
from contracts.power_actions import (
    BmcPasswordProven,
    BmcPasswordSettled,
    BmcTestInput,
    BmcTestResult,
    StageBmcPasswordInput,
    misses_password,
)
from contracts.settings import OOBM_SYNC_INTERVAL, OOBM_SYNC_TIMEOUT
from drivers.errors import (
    BmcCommandRejected,
    BmcUnreachable,
    InsufficientPrivilege,
    LoginRefused,
    WrongBmc,
)
from inventory import Inventory
from inventory.oobm import BmcLogin, unconfigured

# IPMI 1.5 takes 16 bytes, and some BMCs no more.
_PASSWORD_LENGTH = 16
_ALPHABET = string.ascii_letters + string.digits
_CHANGE_WITHIN_S = 30
_GRACE_S = 5
# Until a BMC that has taken a new password must go by it: seconds between the logins that prove it.
_PROOFS_AFTER_S = (5.0, 15.0, 40.0)
# Refused logins in all attempts at a change: with what somebody else has done, some BMCs lock an
# account at five.
_MOST_REFUSED = 4
# IPMI: busy, a time-out of its own, not now, being set up anew, no reason.
_UNCLEAR_CODES = frozenset({0xC0, 0xC3, 0xCE, 0xD0, 0xD1, 0xD2, 0xFF})
_SERVERS_FAULT = 500  # HTTP
_REFUSED = "refused_logins"  # in the details of an error


class BmcAccountActivities:
    """Each step finds out first which password the BMC takes."""

    def __init__(
        self,
        inventory: Inventory,
        bmcs: BmcDirectory,
        waits: Sequence[float] = _PROOFS_AFTER_S,
    ) -> None:
        self._inventory = inventory
        self._bmcs = bmcs
        self._waits = waits

    # --- a look ---------------------------------------------------------------------------------

    @activity.defn(name="test_bmc")
    async def test_bmc(self, request: BmcTestInput) -> BmcTestResult:
        """Log in to it and look, by the host's configuration with what is given in its place. What
        is seen is not written down, but for a new password that a change could not prove: if the
        BMC takes it by now, it counts. Raises NotFound (host; a configuration, where it takes one),
        InvalidInput."""
        await self._inventory.hosts.get(request.host)
        bmc = await self._to_test(request)
        timeout = (await self._inventory.settings.resolve())[OOBM_SYNC_TIMEOUT]
        bmc.driver.validate(bmc.access)
        began = time.monotonic()
        look = await _look(bmc, timeout)
        staged = bmc.login.staged_secret_id
        if look.logged_in is False and staged is not None and not request.gives_anything:
            left = max(1, timeout - int(time.monotonic() - began))
            found = await _look(await self._bmcs.of(bmc.login, staged), left)
            if found.logged_in and await self._inventory.oobm.promote_found_password(
                request.host, staged, actor=activity.info().workflow_id or "oobm test"
            ):
                await self._bmcs.forget(request.host)
                return BmcTestResult(host=request.host, look=found)
        return BmcTestResult(host=request.host, look=look)

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
            login = unconfigured(host.name, host.cluster)
        # It may be another BMC on purpose: only the one that is configured has a known GUID.
        guid = None if given.keys() & {"address", "port", "driver"} else login.guid
        return await self._bmcs.of(replace(login, **given, guid=guid), request.secret)

    # --- another password -----------------------------------------------------------------------

    @activity.defn(name="settle_bmc_password")
    async def settle_bmc_password(self, lease: LeaseRef) -> BmcPasswordSettled:
        """A change before this one may have left a password that it could not prove: find out which
        one the BMC takes now, and delete the other one. Raises Unavailable, Failed (it takes
        neither), OutcomeUnknown (it has refused too many logins), LeaseLost, NotFound."""
        await self._inventory.leases.verify(lease)
        login = await self._inventory.oobm.login(lease.host)
        if login.staged_secret_id is None:
            return BmcPasswordSettled()
        logins = _Logins.of_the_attempts_before()
        async with self._left_alone_if_it_refuses(login):
            if logins.used_up:
                raise _refused_enough(lease.host, logins)
            # The left one first: if it is refused, the next login ends the BMC's counting.
            if await logins.takes(await self._bmcs.of(login, login.staged_secret_id)):
                await self._inventory.oobm.promote_password(lease.host, lease=lease)
                await self._bmcs.forget(lease.host)
                return BmcPasswordSettled(promoted=True)
            if await logins.takes(await self._bmcs.of(login)):
                reason = "it does not take the one that a former change has left"
                await self._inventory.oobm.drop_password(lease.host, reason, lease=lease)
                return BmcPasswordSettled()
            raise _takes_neither(lease.host, logins)

    @activity.defn(name="stage_bmc_password")
    async def stage_bmc_password(self, request: StageBmcPasswordInput) -> None:
        """Store the new password beside the old one, a random one if none is given. Raises
        LeaseLost, NotFound, InvalidInput, Conflict (another one is there that is not settled)."""
        host = request.lease.host
        secret = request.secret or await self._inventory.secrets.store(
            BMC_PASSWORD, _random_password(), actor=request.lease.owner.workflow_id
        )
        staged = await self._inventory.oobm.stage_password(host, secret, lease=request.lease)
        if staged == secret:
            return
        if request.secret is not None:
            raise Conflict(f"Another new password of the BMC of {host} is not settled yet.")
        # An attempt before this one has stored its own.
        await self._inventory.secrets.discard(secret)

    @activity.defn(name="set_bmc_password")
    async def set_bmc_password(self, lease: LeaseRef) -> BmcPasswordProven:
        """Have the BMC take the stored new password, and prove it by a login with nothing else. One
        that refuses it in words is an answer: it keeps the old one. Raises Unavailable, Failed
        (it takes neither), OutcomeUnknown (it was told, and shows no sign of it), LeaseLost,
        NotFound (also of the new password)."""
        await self._inventory.leases.verify(lease)
        login = await self._inventory.oobm.login(lease.host)
        if login.staged_secret_id is None:
            raise NotFound(f"No new password of the BMC of {lease.host} is stored.")
        old = await self._bmcs.of(login)
        new = await self._bmcs.of(login, login.staged_secret_id)
        async with self._left_alone_if_it_refuses(login):
            return await _set(old, new, _Logins.of_the_attempts_before(), self._waits)

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

    @asynccontextmanager
    async def _left_alone_if_it_refuses(self, login: BmcLogin) -> AsyncIterator[None]:
        """If it comes to nothing because the BMC refuses us, the rounds do not log in at once."""
        try:
            yield
        except Failed as error:
            if _REFUSED in error.details:
                settings = await self._inventory.settings.resolve()
                await self._inventory.power.record(
                    [sighting_of(login, datetime.now(UTC), LoginRefused(error.message))],
                    interval=timedelta(seconds=settings[OOBM_SYNC_INTERVAL]),
                    operation=activity.info().workflow_id or "bmc-password",
                )
            raise


class _Logins:
    """Logins that are refused, over all attempts of an activity: BMCs lock accounts. The number is
    in the heartbeats."""

    def __init__(self, refused: int = 0) -> None:
        self.refused = refused

    @classmethod
    def of_the_attempts_before(cls) -> "_Logins":
        details = activity.info().heartbeat_details
        return cls(details[0] if details else 0)

    @property
    def used_up(self) -> bool:
        """Whether another refused one would be too much."""
        return self.refused >= _MOST_REFUSED

    async def takes(self, bmc: Bmc) -> bool:
        """Whether it lets us in with that password, in a session of its own."""
        # Counted before: who dies here does not know what came of it.
        self._count(1)
        try:
            with surprises_of_bmc(bmc):
                async with asyncio.timeout(_CHANGE_WITHIN_S + _GRACE_S):
                    await bmc.driver.examine(bmc.access, timeout=_CHANGE_WITHIN_S)
        except LoginRefused:
            return False
        except HostlerError:
            self._count(-1)
            raise
        self._count(-1)
        return True

    async def change(self, bmc: Bmc, password: str) -> HostlerError | None:
        """What the BMC said against it. Raises Unavailable."""
        self._count(1)
        try:
            with surprises_of_bmc(bmc, password):
                async with asyncio.timeout(_CHANGE_WITHIN_S + _GRACE_S):
                    await bmc.driver.change_password(bmc.access, password, timeout=_CHANGE_WITHIN_S)
        except LoginRefused as error:
            return error
        except Unavailable:
            self._count(-1)
            raise
        except HostlerError as error:
            self._count(-1)
            return error
        self._count(-1)
        return None

    def _count(self, more: int) -> None:
        self.refused += more
        activity.heartbeat(self.refused)


async def _set(old: Bmc, new: Bmc, logins: _Logins, waits: Sequence[float]) -> BmcPasswordProven:
    """The old password first: one that is wrong counts against the account. Nothing is given up for
    lost that the BMC was told: some take it at once, and go by it a minute later."""
    host = old.login.host
    takes_old = None if logins.used_up else await logins.takes(old)
    if takes_old:
        problem = await uninterrupted(logins.change(old, new.access.password))
        if problem is not None and _is_refusal(problem) and await logins.takes(old):
            return BmcPasswordProven(changed=False, proof=problem.message)
    for wait in (0.0, *waits):
        await asyncio.sleep(wait)
        if logins.used_up:
            break
        if await logins.takes(new):
            return BmcPasswordProven(
                changed=True, proof="a login of its own with nothing but the new password"
            )
        # Also so that refused logins do not follow each other.
        if not logins.used_up:
            takes_old = await logins.takes(old)
    if takes_old is False:
        raise _takes_neither(host, logins)
    if takes_old is None:
        raise _refused_enough(host, logins)
    raise OutcomeUnknown(
        f"The BMC of {host} was told its new password, and takes the old one still; it may go by "
        "the new one yet."
    )


def _is_refusal(error: HostlerError) -> bool:
    """Whether the BMC has said, or the driver knew, that nothing will come of it. It has not if it
    was busy, or gave up waiting for itself."""
    if isinstance(error, InvalidInput | InsufficientPrivilege):
        return True
    code = error.details.get("code")
    unclear = isinstance(code, int) and (code in _UNCLEAR_CODES or code >= _SERVERS_FAULT)
    return isinstance(error, BmcCommandRejected) and not unclear


def _refused_enough(host: str, logins: _Logins) -> OutcomeUnknown:
    return OutcomeUnknown(
        f"The BMC of {host} has refused {logins.refused} logins, and then not answered: no more "
        "are tried now, since BMCs lock accounts. Which password it takes is not known.",
        details={_REFUSED: logins.refused},
    )


def _takes_neither(host: str, logins: _Logins) -> Failed:
    return Failed(
        f"The BMC of {host} takes neither its old password nor the new one.",
        remedy="Log in to it by other means, then store the right one with "
        f"`hostler oobm configure {host} --password-file FILE`.",
        details={_REFUSED: logins.refused},
    )


async def _look(bmc: Bmc, seconds: int) -> BmcLook:
    try:
        with surprises_of_bmc(bmc):
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


def _random_password() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(_PASSWORD_LENGTH))
