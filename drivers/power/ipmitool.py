"""IPMI by ipmitool (1.8.19): a process for each call, for BMCs that pyghmi does not get on with.

The password goes through a pipe (`-f`), what is to be done through standard input (`exec`): neither
can be seen in a list of processes. Requests are `raw`, whose answers and completion codes need no
translation, and which ipmitool sends once: a repeated reset would be two.
"""

import asyncio
import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from contracts.errors import HostlerError
from contracts.oobm import DEFAULT_PORTS, IPMITOOL_INTERFACES, IPMITOOL_RETRIES
from contracts.power import BmcPrivilege, PowerCommand, PowerState
from drivers.errors import BmcCommandRejected, LoginRefused, PowerDriverFailed
from drivers.power import failures, ipmi_commands
from drivers.power.fields import refuse, validate_ipmi, validate_new_ipmi_password
from drivers.power.ipmi_commands import Ask
from drivers.protocols import BmcAccess, BmcReport

PORT = DEFAULT_PORTS["ipmitool"]
_INTERFACE, _PATH, _RETRIES = "lanplus", "/usr/bin/ipmitool", 1
_STATUS = "chassis power status"
# With -v, on standard error, which it does not hold back: before it sends, and after an answer.
_SENDING, _ANSWERED = "RAW REQ (", "RAW RSP ("
# Its last words when it has got no session, whatever the reason.
_NO_SESSION = "Error: Unable to establish "
_STATUS_REFUSED = "Get Chassis Power Status failed"
_RAW_CODE = re.compile(r"^Unable to send RAW command \(.* rsp=0x(\w+)\)", re.MULTILINE)
_RAW_SILENT = re.compile(r"^Unable to send RAW command \([^)]*cmd=0x\w+\)$", re.MULTILINE)
_PRIVILEGE = (
    "invalid role",
    "unauthorized role",
    "requested role",
    "set session privilege level to",
)
_HEX = re.compile(r"^( [0-9a-f]{2})+$")
_LEVELS = {
    BmcPrivilege.USER: "USER",
    BmcPrivilege.OPERATOR: "OPERATOR",
    BmcPrivilege.ADMINISTRATOR: "ADMINISTRATOR",
}
_STATES = {
    "Chassis Power is on": PowerState.ON,
    "Chassis Power is off": PowerState.OFF,
}


@dataclass(frozen=True)
class Output:
    """What ipmitool has printed. `complete`: it has ended by itself; `status`: as what."""

    stdout: str
    stderr: str
    complete: bool
    status: int = 0

    @property
    def raw_answers(self) -> list[list[int]]:
        """Of the requests that were answered with data."""
        answers: list[list[int]] = []
        going_on = False
        for line in self.stdout.splitlines():
            if _HEX.match(line):
                octets = [int(octet, 16) for octet in line.split()]
                if going_on:  # a line has 16
                    answers[-1] += octets
                else:
                    answers.append(octets)
                going_on = len(octets) == 16
            else:
                going_on = False
        return answers

    @property
    def code(self) -> int | None:
        """The completion code of a request that was refused."""
        found = _RAW_CODE.search(self.stderr)
        return int(found[1], 16) if found else None

    @property
    def power(self) -> PowerState | None:
        """What `chassis power status` has printed."""
        lines = self.stdout.splitlines()
        return next((_STATES[line] for line in lines if line in _STATES), None)

    @property
    def answered(self) -> bool:
        """Whether it has shown anything that a BMC has answered to a request."""
        return (
            self.code is not None
            or self.power is not None
            or _ANSWERED in self.stderr
            or _STATUS_REFUSED in self.stderr
        )

    @property
    def sent_nothing(self) -> bool:
        """Whether it says so: it ended without a session. All else is no proof: what it says may be
        lost, or be another program's words."""
        ended = self.complete and self.status != 0
        return ended and _NO_SESSION in self.stderr and _SENDING not in self.stderr


class IpmitoolDriver:
    """Keeps nothing."""

    def validate(self, access: BmcAccess) -> None:
        """See PowerDriver."""
        validate_ipmi(access)
        if access.options.get("interface", _INTERFACE) not in IPMITOOL_INTERFACES:
            refuse(
                "outofbandmanagement.ipmitool.interface",
                f"must be {' or '.join(IPMITOOL_INTERFACES)}",
            )
        if not str(access.options.get("path", _PATH)).startswith("/"):
            refuse("outofbandmanagement.ipmitool.path", "must be an absolute path")
        retries = access.options.get("retries", _RETRIES)
        if retries not in IPMITOOL_RETRIES:
            refuse(
                "outofbandmanagement.ipmitool.retries",
                f"must be from {IPMITOOL_RETRIES[0]} to {IPMITOOL_RETRIES[-1]}",
            )

    async def examine(self, access: BmcAccess, *, timeout: float) -> BmcReport:  # noqa: ASYNC109
        """See PowerDriver."""
        output = await self._run(access, [_raw(ipmi_commands.SYSTEM_GUID), _STATUS], timeout)
        guid = _guid(output)
        _check_guid(access, guid)
        return BmcReport(guid, access.privilege, _state(access, output))

    async def power_state(self, access: BmcAccess, *, timeout: float) -> PowerState:  # noqa: ASYNC109
        """See PowerDriver."""
        if access.guid is not None:
            return (await self.examine(access, timeout=timeout)).state
        return _state(access, await self._run(access, [_STATUS], timeout))

    async def set_power(
        self,
        access: BmcAccess,
        command: PowerCommand,
        *,
        timeout: float,  # noqa: ASYNC109
    ) -> None:
        """See PowerDriver."""
        deadline = asyncio.get_running_loop().time() + timeout
        # A read that fails proves that nothing was sent; after the command, silence proves nothing.
        await self.examine(access, timeout=timeout)
        ask = ipmi_commands.chassis_control(command)
        output = await self._run(access, [_raw(ask)], _left(deadline), once=command.value)
        ipmi_commands.check(access.name, f"switch power {command.value}", output.code or 0)

    async def check_network_boot(self, access: BmcAccess, *, timeout: float) -> None:  # noqa: ASYNC109
        """See NetworkBooter."""
        deadline = asyncio.get_running_loop().time() + timeout
        if access.guid is not None:
            await self.examine(access, timeout=timeout)
        await self._boot_flags(access, deadline)

    async def set_network_boot(self, access: BmcAccess, *, timeout: float) -> None:  # noqa: ASYNC109
        """See NetworkBooter."""
        deadline = asyncio.get_running_loop().time() + timeout
        if access.guid is not None:
            await self.examine(access, timeout=timeout)
        ask = ipmi_commands.boot_from_network_once(await self._boot_flags(access, deadline))
        output = await self._run(access, [_raw(ask)], _left(deadline))
        ipmi_commands.check(access.name, "boot it from the network", output.code or 0)
        if not ipmi_commands.boots_from_network_once(await self._boot_flags(access, deadline)):
            raise failures.boots_as_before(access)

    async def clear_network_boot(self, access: BmcAccess, *, timeout: float) -> None:  # noqa: ASYNC109
        """See NetworkBooter."""
        deadline = asyncio.get_running_loop().time() + timeout
        if access.guid is not None:
            await self.examine(access, timeout=timeout)
        if not ipmi_commands.boots_from_network_once(await self._boot_flags(access, deadline)):
            return
        output = await self._run(access, [_raw(ipmi_commands.BOOT_AS_EVER)], _left(deadline))
        ipmi_commands.check(access.name, "boot it as before", output.code or 0)
        if ipmi_commands.boots_from_network_once(await self._boot_flags(access, deadline)):
            raise failures.boots_from_network_still(access)

    async def _boot_flags(self, access: BmcAccess, deadline: float) -> Sequence[int]:
        output = await self._run(access, [_raw(ipmi_commands.BOOT_FLAGS)], _left(deadline))
        ipmi_commands.check(access.name, "tell what it boots from", output.code or 0)
        return next(iter(output.raw_answers), ())

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
        deadline = asyncio.get_running_loop().time() + timeout
        renewed = replace(access, password=new_password)
        try:
            await self.examine(access, timeout=timeout)
            number = await self._account(access, deadline)
            ask = ipmi_commands.set_password(number, new_password)
            output = await self._run(access, [_raw(ask)], _left(deadline))
            ipmi_commands.check(access.name, "change a password", output.code or 0)
        except LoginRefused as refused:
            # Done by an earlier call, perhaps, whose answer was lost.
            try:
                await self.examine(renewed, timeout=_left(deadline))
            except LoginRefused:
                raise refused from None
        else:
            try:
                await self.examine(renewed, timeout=_left(deadline))
            except LoginRefused as error:
                raise failures.password_not_proven(renewed) from error

    async def _account(self, access: BmcAccess, deadline: float) -> int:
        """The number of the user's account on the BMC."""
        output = await self._run(access, [_raw(ipmi_commands.user_access(1))], _left(deadline))
        ipmi_commands.check(access.name, "list its accounts", output.code or 0)
        count = ipmi_commands.accounts(next(iter(output.raw_answers), ()))
        for number in range(1, count + 1):
            ask = ipmi_commands.user_name(number)
            output = await self._run(access, [_raw(ask)], _left(deadline))
            name = ipmi_commands.name_of(next(iter(output.raw_answers), ()))
            if name == access.user.encode():
                return number
        raise failures.no_account(access)

    async def forget(self, host: str) -> None:
        """See PowerDriver."""

    async def close(self) -> None:
        """See PowerDriver."""

    async def _run(
        self,
        access: BmcAccess,
        commands: Sequence[str],
        timeout: float,  # noqa: ASYNC109
        *,
        once: str | None = None,
    ) -> Output:
        """Do `commands` in one session. `once`: the name of what must not be sent again. Raises
        whatever stands for a session that was not opened, or an answer that did not come; a
        completion code is in the output."""
        self.validate(access)
        output = await _ipmitool(access, commands, timeout)
        if once is not None and not output.sent_nothing:
            if output.code is None and _ANSWERED not in output.stderr:
                raise failures.outcome_unknown(access, once)
            return output
        failure = session_failure(access, output)
        if failure is not None:
            raise failure
        # It may be no ipmitool at all, or one that gave up in words which are not known here.
        if output.status != 0 and not output.answered:
            raise PowerDriverFailed(
                f"ipmitool ended with status {output.status}, and nothing shows that it has asked "
                f"the BMC of {access.name} anything.",
                remedy="Run it by hand; see outofbandmanagement.ipmitool.path.",
            )
        return output


async def _ipmitool(access: BmcAccess, commands: Sequence[str], seconds: float) -> Output:
    options = access.options
    path = str(options.get("path", _PATH))
    arguments = [
        *("-v", "-I", str(options.get("interface", _INTERFACE))),
        *("-H", access.address, "-p", str(access.port or PORT), "-U", access.user),
        *("-L", _LEVELS[access.privilege], "-R", str(options.get("retries", _RETRIES))),
    ]
    if access.cipher_suite is not None:
        arguments += ["-C", str(access.cipher_suite)]
    reading, writing = os.pipe()
    try:
        os.write(writing, access.password.encode() + b"\n")
        os.close(writing)
        process = await asyncio.create_subprocess_exec(
            path,
            *arguments,
            *("-f", f"/dev/fd/{reading}", "exec", "/dev/stdin"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(reading,),
            env={"LC_ALL": "C"},
        )
    except OSError as error:
        raise PowerDriverFailed(
            f"{path} can't be started: {error.strerror}.",
            remedy="Install ipmitool there, or set outofbandmanagement.ipmitool.path.",
        ) from error
    finally:
        os.close(reading)
    return await _talk(process, "".join(f"{line}\n" for line in commands), seconds)


async def _talk(process: asyncio.subprocess.Process, text: str, seconds: float) -> Output:
    """Until it ends, or its time is over. It is gone afterwards."""
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise RuntimeError("started without pipes")
    printed = bytearray()
    complained = bytearray()

    async def collect(stream: asyncio.StreamReader, into: bytearray) -> None:
        while chunk := await stream.read(1 << 16):
            into += chunk

    complete = False
    try:
        async with asyncio.timeout(max(seconds, 0)):
            with contextlib.suppress(ConnectionError):  # it has ended: what it says tells why
                process.stdin.write(text.encode())
                await process.stdin.drain()
            process.stdin.close()
            await asyncio.gather(
                collect(process.stdout, printed), collect(process.stderr, complained)
            )
            await process.wait()
            complete = True
    except TimeoutError:
        pass  # what it has said until now tells how far it came
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return Output(
        printed.decode(errors="replace"),
        complained.decode(errors="replace"),
        complete,
        process.returncode or 0,
    )


def session_failure(access: BmcAccess, output: Output) -> HostlerError | None:
    """What is wrong with the session, by ipmitool's own words."""
    said = output.stderr
    lowered = said.lower()
    if "no response from rakp" in lowered:
        # What it then takes for a wrong password is the late answer.
        return failures.too_late(access)
    if "rakp 2 hmac is invalid" in lowered:
        return failures.login_refused(access)
    if "unauthorized name" in lowered:
        return failures.account_refused(access)
    if any(words in lowered for words in _PRIVILEGE):
        return failures.privilege_refused(access)
    if "insufficient resources" in lowered:
        return failures.unreachable(access, "it has no session left for us")
    if "address lookup for" in lowered:
        return failures.unreachable(access, "its name is unknown")
    if "error in open session response" in lowered:
        return failures.cipher_suite_refused(access)
    if "rakp" in lowered and "error" in lowered:
        return failures.login_refused(access)
    if "get auth capabilities error" in lowered or "unable to establish" in lowered:
        return failures.unreachable(access, "")
    if not output.complete:
        heard = "discovered ipmb" in lowered or _SENDING in said
        return failures.too_late(access) if heard else failures.unreachable(access, "")
    if _RAW_SILENT.search(said) or "unable to get chassis power status" in lowered:
        return failures.too_late(access)
    return None


def _raw(ask: Ask) -> str:
    return " ".join(["raw", *(f"0x{octet:02x}" for octet in (ask.netfn, ask.command, *ask.data))])


def _guid(output: Output) -> str | None:
    return ipmi_commands.system_guid(next(iter(output.raw_answers), ()))


def _check_guid(access: BmcAccess, shown: str | None) -> None:
    if access.guid in {None, shown}:
        return
    if shown is None:
        raise failures.unidentified(access)
    raise failures.wrong_bmc(access, shown)


def _state(access: BmcAccess, output: Output) -> PowerState:
    if output.power is not None:
        return output.power
    if _STATUS_REFUSED in output.stderr:
        raise BmcCommandRejected(
            f"The BMC of {access.name} refused to read the power state.",
            remedy="See what its own log says about that.",
        )
    return PowerState.UNKNOWN


def _left(deadline: float) -> float:
    return deadline - asyncio.get_running_loop().time()
