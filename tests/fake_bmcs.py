"""BMCs in memory: a driver of them, and the set that has nothing else."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from contracts.errors import HostlerError
from contracts.power import BmcPrivilege, PowerCommand, PowerState
from drivers.errors import BmcCommandRejected, BmcUnreachable, LoginRefused, WrongBmc
from drivers.protocols import BmcAccess, BmcReport

_ENDS = {
    PowerCommand.ON: PowerState.ON,
    PowerCommand.OFF: PowerState.OFF,
    PowerCommand.SOFT: PowerState.OFF,
    PowerCommand.RESET: PowerState.ON,
    PowerCommand.CYCLE: PowerState.ON,
}


@dataclass
class FakeBmc:
    """One BMC.

    Attributes:
        fails: what it raises, whatever it is asked.
        command_fails: what `set_power` raises; `after_effect`: when it has done it.
        lies: it accepts commands, and does nothing; `lies_of_passwords` likewise.
        late_by: so many logins after it has taken a password, it goes by it.
        boots: how often the machine has booted, and `network_boots` of these from the network.
        network_fails: what the methods of NetworkBooter raise; `clear_fails`: its last one alone.
        asked: so many times, and so often of these, `examined`, by a login of its own.
    """

    state: PowerState = PowerState.ON
    guid: str | None = "guid-1"
    password: str = "bmc-pw"
    fails: Exception | None = None
    command_fails: Exception | None = None
    after_effect: bool = False
    lies: bool = False
    lies_of_passwords: bool = False
    late_by: int = 0
    staged_password: str | None = None
    password_fails: Exception | None = None
    boots: int = 1
    network_next: bool = False
    network_boots: int = 0
    network_fails: HostlerError | None = None
    clear_fails: HostlerError | None = None
    asked: int = 0
    examined: int = 0
    commands: list[PowerCommand] = field(default_factory=list)
    refused_logins: int = 0


class _BmcByHost(dict[str, FakeBmc]):
    """Each has a GUID of its own: guid-1 is that of kvm-1."""

    def __missing__(self, host: str) -> FakeBmc:
        bmc = self[host] = FakeBmc(guid=f"guid-{host.rpartition('-')[2]}")
        return bmc


async def _at_once() -> None:
    pass


class FakeBmcs:
    """PowerDriver, and PowerDriverSet: BMCs by the names of their hosts.

    Attributes:
        on_command: called before a command takes effect.
        on_login: called with a BMC before it answers to a login.
        on_network_boot: awaited when a BMC was told to boot from the network.
    """

    def __init__(self) -> None:
        self.of: dict[str, FakeBmc] = _BmcByHost()
        self.on_command: Callable[[], None] = lambda: None
        self.on_login: Callable[[FakeBmc], None] = lambda _: None
        self.on_network_boot: Callable[[], Awaitable[None]] = _at_once
        self.forgotten: list[str] = []

    def get(self, _name: str) -> "FakeBmcs":
        return self

    def validate(self, access: BmcAccess) -> None:
        """Everything goes."""

    async def examine(self, access: BmcAccess, *, timeout: float) -> BmcReport:  # noqa: ASYNC109
        bmc = self._log_in(access)
        bmc.examined += 1
        return BmcReport(guid=bmc.guid, privilege=BmcPrivilege.ADMINISTRATOR, state=bmc.state)

    async def power_state(self, access: BmcAccess, *, timeout: float) -> PowerState:  # noqa: ASYNC109
        return self._log_in(access).state

    async def power_state_and_guid(
        self,
        access: BmcAccess,
        *,
        timeout: float,  # noqa: ASYNC109
    ) -> tuple[PowerState, str | None]:
        bmc = self._log_in(access)
        return bmc.state, bmc.guid

    async def set_power(
        self,
        access: BmcAccess,
        command: PowerCommand,
        *,
        timeout: float,  # noqa: ASYNC109
    ) -> None:
        bmc = self._log_in(access)
        self.on_command()
        if bmc.command_fails is not None and not bmc.after_effect:
            raise bmc.command_fails
        bmc.commands.append(command)
        if not bmc.lies:
            booted = command in (PowerCommand.RESET, PowerCommand.CYCLE)
            booted |= command is PowerCommand.ON and bmc.state is PowerState.OFF
            bmc.boots += booted
            bmc.network_boots += booted and bmc.network_next
            bmc.network_next &= not booted
            bmc.state = _ENDS[command]
        if bmc.command_fails is not None:
            raise bmc.command_fails

    async def check_network_boot(self, access: BmcAccess, *, timeout: float) -> None:  # noqa: ASYNC109
        fails = self._log_in(access).network_fails
        if fails is not None:
            raise fails

    async def set_network_boot(self, access: BmcAccess, *, timeout: float) -> None:  # noqa: ASYNC109
        await self.check_network_boot(access, timeout=timeout)
        self.of[access.name].network_next = True
        await self.on_network_boot()

    async def clear_network_boot(self, access: BmcAccess, *, timeout: float) -> None:  # noqa: ASYNC109
        await self.check_network_boot(access, timeout=timeout)
        fails = self.of[access.name].clear_fails
        if fails is not None:
            raise fails
        self.of[access.name].network_next = False

    async def change_password(
        self,
        access: BmcAccess,
        new_password: str,
        *,
        timeout: float,  # noqa: ASYNC109
    ) -> None:
        bmc = self._log_in(access)
        if bmc.password_fails is not None:
            raise bmc.password_fails
        if bmc.late_by:
            bmc.staged_password = new_password
        elif not bmc.lies_of_passwords:
            bmc.password = new_password

    async def forget(self, host: str) -> None:
        self.forgotten.append(host)

    async def close(self) -> None:
        """Nothing is open."""

    def _log_in(self, access: BmcAccess) -> FakeBmc:
        bmc = self.of[access.name]
        bmc.asked += 1
        self.on_login(bmc)
        if bmc.staged_password is not None:
            bmc.late_by -= 1
            if bmc.late_by == 0:
                bmc.password, bmc.staged_password = bmc.staged_password, None
        if bmc.fails is not None:
            raise bmc.fails
        if access.password != bmc.password:
            bmc.refused_logins += 1
            raise LoginRefused(f"The BMC of {access.name} refuses the login.")
        if access.guid is not None and access.guid != bmc.guid:
            raise WrongBmc(
                f"Another BMC than that of {access.name} answers at {access.address}.",
                details={"expected": access.guid, "shown": bmc.guid},
            )
        return bmc


def mute(host: str = "kvm-1") -> BmcUnreachable:
    """What a BMC raises that does not answer."""
    return BmcUnreachable(f"The BMC of {host} does not answer.")


def rejected(host: str = "kvm-1") -> BmcCommandRejected:
    """What a BMC raises that does not do it."""
    return BmcCommandRejected(f"The BMC of {host} rejects it: not supported in this state.")
