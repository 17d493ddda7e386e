"""IPMI by pyghmi, which runs in a process that is watched and restarted (ipmi_process)."""

import asyncio
import ipaddress
import logging
import socket
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from typing import Any, NoReturn

from contracts.errors import HostlerError
from contracts.oobm import DEFAULT_PORTS
from contracts.power import PowerCommand, PowerState
from drivers.errors import LoginRefused, PowerDriverFailed
from drivers.power import failures, ipmi_commands
from drivers.power.fields import validate_ipmi, validate_new_ipmi_password
from drivers.power.ipmi_commands import Ask
from drivers.power.ipmi_messages import BmcKey, Problem
from drivers.power.watched import ProcessEnded, WatchedProcess
from drivers.protocols import BmcAccess, BmcReport

PORT = DEFAULT_PORTS["ipmi"]
_LOOKUPS = 4  # of names, at once
_ADDRESSES = 1 << 16  # whose form is remembered
# Of its deadline, what a call leaves for the process to notice it, and for the way back.
_MARGIN, _MARGIN_S = 0.25, 0.5
# How often a call is made again because the process ended for another BMC's sake.
_RESTARTS = 2
# Neither a session nor its password is kept for longer than this without a use.
_IDLE_S = 900.0
_log = logging.getLogger(__name__)


class IpmiDriver:
    """Sessions are kept for as long as they are used, all in one process.

    Args:
        process: the command of the process; it gets the number of a file descriptor as its last
            argument.
        patience: seconds after which a process that answers nothing is killed.
        idle: seconds after which a session that nobody has used is ended, with its password; up to
            twice as many.
    """

    def __init__(
        self,
        *,
        process: Sequence[str] = (sys.executable, "-P", "-m", "drivers.power.ipmi_process"),
        patience: float = 5.0,
        idle: float = _IDLE_S,
    ) -> None:
        self._command = tuple(process)
        self._patience = patience
        self._idle = idle
        self._process: WatchedProcess | None = None
        self._starting = asyncio.Lock()
        self._lookups = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="bmc-names")
        self._used: dict[str, dict[BmcKey, float]] = {}
        self._working: Counter[BmcKey] = Counter()
        self._purge: asyncio.TimerHandle | None = None

    def validate(self, access: BmcAccess) -> None:
        """See PowerDriver."""
        validate_ipmi(access)

    async def examine(self, access: BmcAccess, *, timeout: float) -> BmcReport:  # noqa: ASYNC109
        """See PowerDriver."""
        answer = await self._ask(
            access, ipmi_commands.CHASSIS_STATUS, _deadline(timeout), fresh=True
        )
        return BmcReport(answer["guid"], access.privilege, _state(access, answer))

    async def power_state(self, access: BmcAccess, *, timeout: float) -> PowerState:  # noqa: ASYNC109
        """See PowerDriver."""
        return (await self.power_state_and_guid(access, timeout=timeout))[0]

    async def power_state_and_guid(
        self,
        access: BmcAccess,
        *,
        timeout: float,  # noqa: ASYNC109
    ) -> tuple[PowerState, str | None]:
        """See SessionKeeper."""
        answer = await self._ask(access, ipmi_commands.CHASSIS_STATUS, _deadline(timeout))
        return _state(access, answer), answer["guid"]

    async def set_power(
        self,
        access: BmcAccess,
        command: PowerCommand,
        *,
        timeout: float,  # noqa: ASYNC109
    ) -> None:
        """See PowerDriver."""
        deadline = _deadline(timeout)
        # Proves the session, so that the command, which is sent once, is not lost with an old one.
        await self._ask(access, ipmi_commands.CHASSIS_STATUS, deadline)
        answer = await self._ask(
            access, ipmi_commands.chassis_control(command), deadline, once=command.value
        )
        ipmi_commands.check(access.name, f"switch power {command.value}", answer["code"])

    async def check_network_boot(self, access: BmcAccess, *, timeout: float) -> None:  # noqa: ASYNC109
        """See NetworkBooter."""
        await self._boot_flags(access, _deadline(timeout))

    async def set_network_boot(self, access: BmcAccess, *, timeout: float) -> None:  # noqa: ASYNC109
        """See NetworkBooter."""
        deadline = _deadline(timeout)
        before = await self._boot_flags(access, deadline)
        answer = await self._ask(access, ipmi_commands.boot_from_network_once(before), deadline)
        ipmi_commands.check(access.name, "boot it from the network", answer["code"])
        if not ipmi_commands.boots_from_network_once(await self._boot_flags(access, deadline)):
            raise failures.boots_as_before(access)

    async def clear_network_boot(self, access: BmcAccess, *, timeout: float) -> None:  # noqa: ASYNC109
        """See NetworkBooter."""
        deadline = _deadline(timeout)
        if not ipmi_commands.boots_from_network_once(await self._boot_flags(access, deadline)):
            return
        answer = await self._ask(access, ipmi_commands.BOOT_AS_EVER, deadline)
        ipmi_commands.check(access.name, "boot it as before", answer["code"])
        if ipmi_commands.boots_from_network_once(await self._boot_flags(access, deadline)):
            raise failures.boots_from_network_still(access)

    async def _boot_flags(self, access: BmcAccess, deadline: float) -> Sequence[int]:
        answer = await self._ask(access, ipmi_commands.BOOT_FLAGS, deadline)
        ipmi_commands.check(access.name, "tell what it boots from", answer["code"])
        flags: Sequence[int] = answer["data"]
        return flags

    async def change_password(
        self,
        access: BmcAccess,
        new_password: str,
        *,
        timeout: float,  # noqa: ASYNC109
    ) -> None:
        """See PowerDriver."""
        self.validate(access)
        validate_new_ipmi_password(new_password)
        deadline = _deadline(timeout)
        renewed = replace(access, password=new_password)
        former = await self._key(access, deadline)
        try:
            number = await self._account(access, deadline)
            answer = await self._ask(
                access, ipmi_commands.set_password(number, new_password), deadline
            )
            ipmi_commands.check(access.name, "change a password", answer["code"])
        except LoginRefused as refused:
            # Done by an earlier call, perhaps, whose answer was lost.
            try:
                await self._ask(renewed, None, deadline, fresh=True)
            except LoginRefused:
                raise refused from None
        else:
            await self._prove(renewed, deadline)
        self._forget_key(access.name, former)

    async def _account(self, access: BmcAccess, deadline: float) -> int:
        """The number of the user's account on the BMC."""
        answer = await self._ask(access, ipmi_commands.user_access(1), deadline)
        ipmi_commands.check(access.name, "list its accounts", answer["code"])
        for number in range(1, ipmi_commands.accounts(answer["data"]) + 1):
            named = await self._ask(access, ipmi_commands.user_name(number), deadline)
            if named["code"] == 0 and ipmi_commands.name_of(named["data"]) == access.user.encode():
                return number
        raise failures.no_account(access)

    async def _prove(self, renewed: BmcAccess, deadline: float) -> None:
        try:
            await self._ask(renewed, None, deadline, fresh=True)
        except LoginRefused as error:
            raise failures.password_not_proven(renewed) from error

    async def forget(self, host: str) -> None:
        """See PowerDriver."""
        for key in list(self._used.get(host, ())):
            self._forget_key(host, key)

    def _forget_key(self, host: str, key: BmcKey) -> None:
        used = self._used.get(host, {})
        used.pop(key, None)
        if not used:
            self._used.pop(host, None)
        if self._process is not None:
            self._process.forget(key)

    async def close(self) -> None:
        """See PowerDriver."""
        async with self._starting:
            if self._purge is not None:
                self._purge.cancel()
            if self._process is not None:
                await self._process.end()
            self._process = None
        self._lookups.shutdown(wait=False, cancel_futures=True)

    async def _ask(
        self,
        access: BmcAccess,
        ask: Ask | None,
        deadline: float,
        *,
        once: str | None = None,
        fresh: bool = False,
    ) -> Mapping[str, Any]:
        """What the BMC answers: `code`, `data`, `guid`. `once`: its name, for a command that must
        not be sent twice. `fresh`: by a new session. No `ask`: only log in."""
        self.validate(access)
        loop = asyncio.get_running_loop()
        key = await self._key(access, deadline)
        self._note(access.name, key, loop.time())
        self._working[key] += 1
        sent = False
        try:
            async with asyncio.timeout_at(deadline):
                for _ in range(1 + _RESTARTS):
                    process = await self._running()
                    left = deadline - loop.time()
                    sent = True
                    try:
                        answer = await process.ask(
                            key,
                            ask,
                            guid=access.guid,
                            once=once is not None,
                            fresh=fresh,
                            seconds=left - min(left * _MARGIN, _MARGIN_S),
                        )
                    except ProcessEnded as ended:
                        if once is not None:
                            raise failures.outcome_unknown(access, once) from ended
                        if ended.culprit == key:
                            raise PowerDriverFailed(
                                f"The IPMI driver hung on the BMC of {access.name} and was "
                                "restarted.",
                                remedy="If that happens again, choose the driver ipmitool for it.",
                            ) from ended
                        continue
                    if "problem" in answer:
                        if answer["problem"] in {Problem.LOGIN, Problem.ACCOUNT}:
                            self._forget_key(access.name, key)
                        self._fail(access, answer["problem"], answer["text"], once)
                    self._forget_others(access.name, key)
                    return answer
        except TimeoutError:
            if once is not None and sent:
                raise failures.outcome_unknown(access, once) from None
            raise _stuck(access) from None
        finally:
            self._working[key] -= 1
            if not self._working[key]:
                del self._working[key]
        raise _stuck(access)

    def _fail(self, access: BmcAccess, problem: str, text: str, once: str | None) -> NoReturn:
        """Raise what the process's answer stands for."""
        error: HostlerError
        match problem:
            case Problem.LATE:
                error = failures.too_late(access)
            case Problem.BUSY:
                error = failures.unreachable(access, "it has no session left for us")
            case Problem.LOGIN:
                error = failures.login_refused(access)
            case Problem.ACCOUNT:
                error = failures.account_refused(access)
            case Problem.PRIVILEGE:
                error = failures.privilege_refused(access)
            case Problem.SUITE:
                error = failures.cipher_suite_refused(access)
            case Problem.WRONG:
                error = failures.wrong_bmc(access, text)
            case Problem.UNIDENTIFIED:
                error = failures.unidentified(access)
            case Problem.SILENT:
                error = failures.outcome_unknown(access, once or "")
            case Problem.DEFECT:
                error = PowerDriverFailed(
                    f"The IPMI driver can't make sense of the BMC of {access.name}: {text}.",
                    remedy="Choose the driver ipmitool for it.",
                )
            case _:
                error = failures.unreachable(access, text)
        raise error

    async def _key(self, access: BmcAccess, deadline: float) -> BmcKey:
        return BmcKey(
            _numeric(access.address) or await self._look_up(access, deadline),
            access.port or PORT,
            access.user,
            access.password,
            ipmi_commands.PRIVILEGE_LEVELS[access.privilege],
            access.cipher_suite,
        )

    async def _look_up(self, access: BmcAccess, deadline: float) -> str:
        """pyghmi would do it while everything else waits."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline):
                found = await loop.run_in_executor(
                    self._lookups, socket.getaddrinfo, access.address, None, 0, socket.SOCK_DGRAM
                )
        except TimeoutError:
            raise failures.unreachable(access, "no name server answers") from None
        except OSError as error:
            raise failures.unreachable(access, error.strerror or "its name is unknown") from error
        return str(found[0][4][0])

    def _note(self, host: str, key: BmcKey, now: float) -> None:
        self._used.setdefault(host, {})[key] = now
        if self._purge is None:
            self._purge = asyncio.get_running_loop().call_later(self._idle, self._forget_idle)

    def _forget_others(self, host: str, key: BmcKey) -> None:
        """The BMC of `host` has let us in by `key`: its other sessions are of former configurations
        and passwords."""
        for other in list(self._used.get(host, ())):
            if other != key and other not in self._working:
                self._forget_key(host, other)

    def _forget_idle(self) -> None:
        loop = asyncio.get_running_loop()
        old = loop.time() - self._idle
        for host, used in list(self._used.items()):
            for key in [k for k, at in used.items() if at <= old and k not in self._working]:
                self._forget_key(host, key)
        self._purge = loop.call_later(self._idle, self._forget_idle) if self._used else None

    async def _running(self) -> WatchedProcess:
        process = self._process
        if process is not None and not process.ended:
            return process
        async with self._starting:
            if self._process is None or self._process.ended:
                if self._process is not None:
                    _log.warning("the IPMI driver's process has ended and is started again")
                    await self._process.end()
                self._process = await WatchedProcess.start(self._command, self._patience)
            return self._process


@lru_cache(_ADDRESSES)
def _numeric(address: str) -> str | None:
    """In its normal form; None: it is a name."""
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return None


def _deadline(timeout: float) -> float:
    return asyncio.get_running_loop().time() + timeout


def _state(access: BmcAccess, answer: Mapping[str, Any]) -> PowerState:
    ipmi_commands.check(access.name, "read the power state", answer["code"])
    return ipmi_commands.power_state(answer["data"])


def _stuck(access: BmcAccess) -> PowerDriverFailed:
    return PowerDriverFailed(
        f"The IPMI driver's own process has not answered about {access.name}.",
        remedy="It is restarted by itself; see the worker's log if that goes on.",
    )
