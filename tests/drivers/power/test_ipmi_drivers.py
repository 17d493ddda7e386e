"""Both drivers of IPMI against real servers of it."""

import asyncio
import contextlib
import itertools
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from contracts.errors import InvalidInput
from contracts.power import BmcPrivilege, PowerCommand, PowerState
from drivers.errors import (
    AccountRefused,
    BmcCommandRejected,
    BmcUnidentified,
    BmcUnreachable,
    CallTimedOut,
    InsufficientPrivilege,
    LoginRefused,
    PowerDriverFailed,
    PowerOutcomeUnknown,
    WrongBmc,
)
from drivers.power.ipmi import IpmiDriver
from drivers.power.ipmitool import IpmitoolDriver
from drivers.protocols import BmcAccess, NetworkBooter, PowerDriver
from tests.drivers.power.servers import (
    OPERATOR,
    IpmiSim,
    Machine,
    SimulatedBmc,
    SimulatedBmcs,
    fields_of,
)
from tests.ports import free_port

ENOUGH = 30.0
OTHER = "5f2b1c52-3f3a-4f0e-9f0b-0d7f0f7a1111"


async def test_power_is_switched_and_read(driver: PowerDriver, machine: Machine) -> None:
    access = machine.access(guid=machine.guid)
    assert await driver.power_state(access, timeout=ENOUGH) is PowerState.ON
    for command, then in [
        (PowerCommand.RESET, PowerState.ON),
        (PowerCommand.OFF, PowerState.OFF),
        (PowerCommand.ON, PowerState.ON),
        (PowerCommand.SOFT, PowerState.OFF),
    ]:
        await driver.set_power(access, command, timeout=ENOUGH)
        assert await driver.power_state(access, timeout=ENOUGH) is then
    assert await machine.commands() == ["reset", "off", "on", "soft"]


async def test_a_cycle_is_one(driver: PowerDriver, bmc: SimulatedBmc) -> None:
    await driver.set_power(bmc.access(), PowerCommand.CYCLE, timeout=ENOUGH)
    state = await bmc.state()
    assert (state["commands"], state["boots"], state["on"]) == (["cycle"], 2, True)


async def test_it_boots_from_the_network_once(driver: PowerDriver, bmc: SimulatedBmc) -> None:
    assert isinstance(driver, NetworkBooter)
    access = bmc.access(guid=bmc.guid)
    await driver.check_network_boot(access, timeout=ENOUGH)
    assert (await bmc.state())["boot_flags"] == bytes(5).hex()
    await driver.set_network_boot(access, timeout=ENOUGH)
    await driver.set_network_boot(access, timeout=ENOUGH)
    await driver.set_power(access, PowerCommand.CYCLE, timeout=ENOUGH)
    await driver.set_power(access, PowerCommand.RESET, timeout=ENOUGH)
    state = await bmc.state()
    assert (state["commands"], state["network_boots"]) == (["cycle", "reset"], 1)


async def test_a_boot_from_the_network_is_taken_back(
    driver: PowerDriver, bmc: SimulatedBmc
) -> None:
    assert isinstance(driver, NetworkBooter)
    access = bmc.access(guid=bmc.guid)
    await driver.clear_network_boot(access, timeout=ENOUGH)
    await driver.set_network_boot(access, timeout=ENOUGH)
    for _ in range(2):
        await driver.clear_network_boot(access, timeout=ENOUGH)
    await driver.set_power(access, PowerCommand.CYCLE, timeout=ENOUGH)
    state = await bmc.state()
    assert (state["commands"], state["network_boots"]) == (["cycle"], 0)
    await driver.set_network_boot(access, timeout=ENOUGH)
    await bmc.switch(lie=True)
    with pytest.raises(BmcCommandRejected, match="shows that it does"):
        await driver.clear_network_boot(access, timeout=ENOUGH)


async def test_a_bmc_that_has_no_boot_options_says_so(
    driver: PowerDriver, bmc: SimulatedBmc
) -> None:
    assert isinstance(driver, NetworkBooter)
    await bmc.switch(no_boot_options=True)
    for call in (driver.check_network_boot, driver.set_network_boot):
        with pytest.raises(BmcCommandRejected, match="0xc1"):
            await call(bmc.access(), timeout=ENOUGH)


async def test_a_bmc_that_says_yes_and_boots_as_before(
    driver: PowerDriver, bmc: SimulatedBmc
) -> None:
    assert isinstance(driver, NetworkBooter)
    await bmc.switch(lie=True)
    with pytest.raises(BmcCommandRejected, match="does not show that it does"):
        await driver.set_network_boot(bmc.access(), timeout=ENOUGH)


async def test_ipmi_sim_is_told_too(driver: PowerDriver, openipmi: IpmiSim) -> None:
    assert isinstance(driver, NetworkBooter)
    await driver.check_network_boot(openipmi.access(), timeout=ENOUGH)
    assert await openipmi.commands() == []
    await driver.set_network_boot(openipmi.access(), timeout=ENOUGH)
    await driver.clear_network_boot(openipmi.access(), timeout=ENOUGH)
    first, then = await openipmi.commands()
    assert (first, then != "pxe") == ("pxe", True)


async def test_ipmi_sim_cycles_too(driver: PowerDriver, openipmi: IpmiSim) -> None:
    await driver.set_power(openipmi.access(), PowerCommand.CYCLE, timeout=ENOUGH)
    async with asyncio.timeout(ENOUGH):  # its machine is off for some seconds
        while await openipmi.commands() != ["off", "on"]:
            await asyncio.sleep(0.1)


async def test_a_bmc_tells_who_it_is(driver: PowerDriver, machine: Machine) -> None:
    report = await driver.examine(machine.access(), timeout=ENOUGH)
    assert report.guid == machine.guid
    assert report.privilege is BmcPrivilege.ADMINISTRATOR
    assert report.state is PowerState.ON


@pytest.mark.parametrize("wrong", [{"password": "another"}, {"user": "nobody"}])
async def test_a_refused_login_is_told(
    driver: PowerDriver, machine: Machine, wrong: dict[str, str]
) -> None:
    with pytest.raises(LoginRefused) as refused:
        await driver.power_state(machine.access(**wrong), timeout=ENOUGH)
    assert refused.value.remedy
    assert "another" not in str(refused.value)


async def test_a_login_is_not_tried_again(ipmi: IpmiDriver, bmc: SimulatedBmc) -> None:
    with pytest.raises(LoginRefused):
        await ipmi.power_state(bmc.access(password="another"), timeout=ENOUGH)
    assert (await bmc.state())["logins"] == 1


async def test_a_cipher_suite_that_the_bmc_does_not_have_is_refused(
    driver: PowerDriver, machine: Machine
) -> None:
    """Rather than another one taken without a word."""
    with pytest.raises(BmcCommandRejected, match="cipher suite 17"):
        await driver.power_state(machine.access(cipher_suite=17), timeout=ENOUGH)


async def test_without_a_cipher_suite_one_is_found(driver: PowerDriver, bmc: SimulatedBmc) -> None:
    access = bmc.access(cipher_suite=None)
    assert await driver.power_state(access, timeout=ENOUGH) is PowerState.ON


async def test_a_locked_account_is_a_refused_login(driver: PowerDriver, bmc: SimulatedBmc) -> None:
    await bmc.switch(reject_login=True)
    with pytest.raises(AccountRefused, match="locked"):
        await driver.power_state(bmc.access(), timeout=ENOUGH)


async def test_privilege_that_the_bmc_does_not_give(driver: PowerDriver, bmc: SimulatedBmc) -> None:
    await bmc.switch(privilege=3)
    with pytest.raises(InsufficientPrivilege) as refused:
        await driver.power_state(bmc.access(), timeout=ENOUGH)
    assert refused.value.details == {"privilege": "administrator"}
    operator = bmc.access(privilege=BmcPrivilege.OPERATOR)
    assert await driver.power_state(operator, timeout=ENOUGH) is PowerState.ON


async def test_who_only_reads_does_not_switch(driver: PowerDriver, bmc: SimulatedBmc) -> None:
    reader = bmc.access(privilege=BmcPrivilege.USER)
    assert await driver.power_state(reader, timeout=ENOUGH) is PowerState.ON
    with pytest.raises(InsufficientPrivilege):
        await driver.set_power(reader, PowerCommand.OFF, timeout=ENOUGH)
    assert (await bmc.state())["on"]


async def test_an_operator_changes_no_passwords(driver: PowerDriver, openipmi: IpmiSim) -> None:
    operator = openipmi.access(user=OPERATOR, privilege=BmcPrivilege.OPERATOR)
    await driver.set_power(operator, PowerCommand.RESET, timeout=ENOUGH)
    with pytest.raises(InsufficientPrivilege):
        await driver.change_password(operator, "a-new-password", timeout=ENOUGH)
    assert await driver.power_state(operator, timeout=ENOUGH) is PowerState.ON


async def test_a_rejected_command_has_its_code(driver: PowerDriver, bmc: SimulatedBmc) -> None:
    await bmc.switch(reject=0xD5)
    with pytest.raises(BmcCommandRejected, match="0xd5") as rejected:
        await driver.set_power(bmc.access(), PowerCommand.OFF, timeout=ENOUGH)
    assert rejected.value.details == {"code": 0xD5}
    assert await bmc.commands() == ["rejected 0"]


async def test_a_lie_is_no_error_here(driver: PowerDriver, bmc: SimulatedBmc) -> None:
    await bmc.switch(lie=True)
    await driver.set_power(bmc.access(), PowerCommand.OFF, timeout=ENOUGH)
    assert await driver.power_state(bmc.access(), timeout=ENOUGH) is PowerState.ON


async def test_another_machines_bmc_is_told_nothing(driver: PowerDriver, machine: Machine) -> None:
    stranger = machine.access(guid=OTHER)
    with pytest.raises(WrongBmc) as wrong:
        await driver.power_state(stranger, timeout=ENOUGH)
    assert wrong.value.details == {"expected": OTHER, "shown": machine.guid}
    with pytest.raises(WrongBmc):
        await driver.set_power(stranger, PowerCommand.OFF, timeout=ENOUGH)
    with pytest.raises(WrongBmc):
        await driver.change_password(stranger, "a-new-password", timeout=ENOUGH)
    assert isinstance(driver, NetworkBooter)
    for call in (driver.set_network_boot, driver.clear_network_boot):
        with pytest.raises(WrongBmc):
            await call(stranger, timeout=ENOUGH)
    assert await machine.commands() == []
    assert await driver.power_state(machine.access(), timeout=ENOUGH) is PowerState.ON


async def test_a_bmc_that_does_not_tell_who_it_is_is_told_nothing_and_not_called_another_one(
    driver: PowerDriver, bmc: SimulatedBmc
) -> None:
    access = bmc.access(guid=bmc.guid)
    await bmc.switch(reject_guid=0xC0)  # it is busy
    for call in (
        driver.power_state(access, timeout=ENOUGH),
        driver.set_power(access, PowerCommand.OFF, timeout=ENOUGH),
        driver.change_password(access, "another", timeout=ENOUGH),
    ):
        with pytest.raises(BmcUnidentified):
            await call
    assert await bmc.commands() == []
    assert (await driver.examine(bmc.access(), timeout=ENOUGH)).guid is None
    await bmc.switch(reject_guid=0)
    await driver.set_power(access, PowerCommand.OFF, timeout=ENOUGH)
    assert await bmc.commands() == ["off"]


async def test_two_bmcs_that_change_places_are_noticed(
    driver: PowerDriver, bmcs: SimulatedBmcs
) -> None:
    first, second = bmcs.bmc(0), bmcs.bmc(1)
    access = first.access(guid=first.guid)
    assert await driver.power_state(access, timeout=ENOUGH) is PowerState.ON
    await bmcs.control(0, address=["127.4.9.9", bmcs.port])
    await bmcs.control(1, address=[bmcs.address(0), bmcs.port])
    with pytest.raises(WrongBmc) as wrong:
        await driver.set_power(access, PowerCommand.OFF, timeout=ENOUGH)
    assert wrong.value.details["shown"] == second.guid
    moved = replace(access, address="127.4.9.9")
    assert await driver.power_state(moved, timeout=ENOUGH) is PowerState.ON
    assert await second.commands() == []


async def test_a_mute_bmc_is_unreachable(driver: PowerDriver, bmc: SimulatedBmc) -> None:
    await bmc.switch(mute=True)
    with pytest.raises(BmcUnreachable) as unreachable:
        await driver.power_state(bmc.access(), timeout=ENOUGH)
    assert unreachable.value.remedy
    with pytest.raises(BmcUnreachable):
        await driver.set_power(bmc.access(), PowerCommand.OFF, timeout=ENOUGH)
    await bmc.switch(mute=False)
    assert await driver.power_state(bmc.access(), timeout=ENOUGH) is PowerState.ON
    assert await bmc.commands() == []


async def test_a_closed_port_and_an_unknown_name_are_unreachable(driver: PowerDriver) -> None:
    nobody = BmcAccess(
        "kvm-1", "127.4.8.8", "admin", "password", port=free_port("127.4.8.8", socket.SOCK_DGRAM)
    )
    with pytest.raises(BmcUnreachable):
        await driver.power_state(nobody, timeout=ENOUGH)
    with pytest.raises(BmcUnreachable):
        await driver.power_state(replace(nobody, address="bmc.invalid"), timeout=ENOUGH)


async def test_a_mute_bmc_costs_no_more_than_the_deadline(
    driver: PowerDriver, bmc: SimulatedBmc
) -> None:
    assert await driver.power_state(bmc.all.bmc(1).access(), timeout=ENOUGH) is PowerState.ON
    await bmc.switch(mute=True)
    async with asyncio.timeout(5):
        with pytest.raises(BmcUnreachable):
            await driver.power_state(bmc.access(), timeout=0.8)


async def test_a_slow_bmc_is_read_if_there_is_time(driver: PowerDriver, bmc: SimulatedBmc) -> None:
    assert await driver.power_state(bmc.all.bmc(1).access(), timeout=ENOUGH) is PowerState.ON
    await bmc.switch(slow=0.2)
    # ipmitool does not tell that it has got answers before it is logged in.
    slow = CallTimedOut if isinstance(driver, IpmiDriver) else BmcUnreachable
    with pytest.raises(slow):
        await driver.power_state(bmc.access(), timeout=0.9)
    assert await driver.power_state(bmc.access(), timeout=ENOUGH) is PowerState.ON


async def test_an_answer_that_does_not_come_is_an_unknown_outcome(
    driver: PowerDriver, bmc: SimulatedBmc
) -> None:
    await bmc.switch(swallow=True)
    with pytest.raises(PowerOutcomeUnknown):
        await driver.set_power(bmc.access(), PowerCommand.CYCLE, timeout=8)
    state = await bmc.state()
    assert (state["commands"], state["boots"]) == (["cycle"], 2)


async def test_a_new_password_lets_in_and_the_old_one_does_not(
    driver: PowerDriver, machine: Machine
) -> None:
    old, new = machine.access(), machine.access(password="a-password-of-16")
    assert await driver.power_state(old, timeout=ENOUGH) is PowerState.ON
    await driver.change_password(old, new.password, timeout=ENOUGH)
    assert (await driver.examine(new, timeout=ENOUGH)).state is PowerState.ON
    with pytest.raises(LoginRefused):
        await driver.examine(old, timeout=ENOUGH)
    # As after a crash that has lost the answer.
    await driver.change_password(old, new.password, timeout=ENOUGH)


async def test_a_password_is_not_changed_by_who_has_neither(
    driver: PowerDriver, machine: Machine
) -> None:
    with pytest.raises(LoginRefused):
        await driver.change_password(
            machine.access(password="neither"), "a-new-password", timeout=ENOUGH
        )
    assert await driver.power_state(machine.access(), timeout=ENOUGH) is PowerState.ON


@pytest.mark.parametrize("password", ["", "x" * 17, "ä" * 9, "a\0b"])
async def test_a_new_password_that_some_bmc_cannot_have_is_refused(
    driver: PowerDriver, machine: Machine, password: str
) -> None:
    with pytest.raises(InvalidInput, match="new_password"):
        await driver.change_password(machine.access(), password, timeout=ENOUGH)
    assert await driver.power_state(machine.access(), timeout=ENOUGH) is PowerState.ON


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("address", ""),
        ("address", "-H"),
        ("address", "kvm-1;reboot"),
        ("port", 0),
        ("password", ""),
        ("password", "x" * 21),
        ("password", "a\0b"),
        ("user", ""),
        ("user", "x" * 17),
        ("cipher_suite", 0),
    ],
)
def test_what_can_be_no_bmc_is_refused(field: str, value: object) -> None:
    access = BmcAccess("kvm-1", "192.0.2.1", "admin", "password")
    for driver in (IpmiDriver(), IpmitoolDriver()):
        driver.validate(access)
        with pytest.raises(InvalidInput) as refused:
            driver.validate(replace(access, **{field: value}))  # type: ignore[arg-type]
        assert fields_of(refused.value) == [field]


def arguments_and_environments() -> list[bytes]:
    """Of all processes."""
    found = []
    for file in itertools.product(Path("/proc").glob("[0-9]*"), ("cmdline", "environ")):
        with contextlib.suppress(OSError):  # it has ended
            found.append(Path(*file).read_bytes())
    return found


async def test_no_password_is_in_a_list_of_processes(
    driver: PowerDriver, bmc: SimulatedBmc
) -> None:
    old, new = "kept-from-all-16", "kept-as-well"
    await bmc.all.control(0, set={"slow": 0.05})
    await driver.change_password(bmc.access(), old, timeout=ENOUGH)
    seen: list[bytes] = []

    async def look() -> None:
        while True:
            seen.extend(arguments_and_environments())
            await asyncio.sleep(0.01)

    looking = asyncio.create_task(look())
    await driver.power_state(bmc.access(password=old), timeout=ENOUGH)
    await driver.change_password(bmc.access(password=old), new, timeout=ENOUGH)
    looking.cancel()
    everything = b"\n".join(seen)
    assert bmc.access().address.encode() in everything or isinstance(driver, IpmiDriver)
    assert old.encode() not in everything
    assert new.encode() not in everything


async def test_a_program_that_asks_no_bmc_anything_is_told() -> None:
    driver = IpmitoolDriver()
    for guid in (None, OTHER):
        access = BmcAccess(
            "kvm-1", "192.0.2.1", "admin", "password", guid=guid, options={"path": "/bin/false"}
        )
        for call in (
            driver.power_state(access, timeout=ENOUGH),
            driver.set_power(access, PowerCommand.RESET, timeout=ENOUGH),
            driver.change_password(access, "another", timeout=ENOUGH),
        ):
            with pytest.raises(PowerDriverFailed, match="status 1"):
                await call


@pytest.mark.parametrize("swallow", [False, True], ids=["answered", "killed at the deadline"])
async def test_what_shows_no_sign_of_having_sent_it_may_have(
    tmp_path: Path, bmc: SimulatedBmc, swallow: bool
) -> None:
    """A wrapper that keeps ipmitool's messages to itself."""
    wrapper = tmp_path / "ipmitool"
    wrapper.write_text('#!/bin/sh\nexec /usr/bin/ipmitool "$@" 2>/dev/null\n')
    wrapper.chmod(0o755)
    await bmc.switch(swallow=swallow)
    access = bmc.access(options={"path": str(wrapper)})
    with pytest.raises(PowerOutcomeUnknown):
        await IpmitoolDriver().set_power(access, PowerCommand.RESET, timeout=3)
    assert await bmc.commands() == ["reset"]


async def test_ipmitool_gets_no_session_for_the_command_itself(
    tmp_path: Path, bmc: SimulatedBmc
) -> None:
    """After the read before it, the BMC falls silent."""
    wrapper, read = tmp_path / "ipmitool", tmp_path / "read"
    wrapper.write_text(
        f"#!/bin/sh\n[ -e {read} ] && address=127.4.8.8\ntouch {read}\n"
        'exec /usr/bin/ipmitool "$@" ${address:+-H $address}\n'
    )
    wrapper.chmod(0o755)
    access = bmc.access(options={"path": str(wrapper)})
    with pytest.raises(BmcUnreachable):
        await IpmitoolDriver().set_power(access, PowerCommand.RESET, timeout=ENOUGH)
    assert await bmc.commands() == []


async def test_ipmitool_that_is_not_there_is_told() -> None:
    access = BmcAccess(
        "kvm-1", "127.4.8.8", "admin", "password", options={"path": "/nonexistent/ipmitool"}
    )
    with pytest.raises(PowerDriverFailed, match=r"outofbandmanagement\.ipmitool\.path"):
        await IpmitoolDriver().power_state(access, timeout=ENOUGH)


@pytest.mark.parametrize(
    ("option", "value"), [("interface", "open"), ("path", "ipmitool"), ("retries", 0)]
)
def test_settings_of_ipmitool_are_checked(option: str, value: str | int) -> None:
    access = BmcAccess("kvm-1", "192.0.2.1", "admin", "password", options={option: value})
    with pytest.raises(InvalidInput, match=f"outofbandmanagement.ipmitool.{option}"):
        IpmitoolDriver().validate(access)
