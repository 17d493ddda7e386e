"""The driver `ipmi` and its process: what is kept, what is watched, what one BMC does to others."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest

from contracts.power import BmcPrivilege, PowerCommand, PowerState
from drivers.errors import (
    BmcUnreachable,
    LoginRefused,
    PowerDriverFailed,
    PowerOutcomeUnknown,
    WrongBmc,
)
from drivers.power.ipmi import IpmiDriver
from tests.drivers.power.servers import SimulatedBmc, SimulatedBmcs, running, simulated_bmcs

ENOUGH = 30.0
MANY = 300


DRIVING = """
import asyncio, sys
from drivers.power.ipmi import IpmiDriver
from drivers.protocols import BmcAccess

async def main():
    access = BmcAccess("kvm-1", sys.argv[1], sys.argv[2], sys.argv[3], port=int(sys.argv[4]))
    await IpmiDriver().power_state(access, timeout=30)
    print("read", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def child(parent: int | None = None) -> int:
    """The process id of the driver's process."""
    parent = parent or os.getpid()
    mine = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    [found] = [
        int(pid)
        for pid in mine
        if any(
            name in Path(f"/proc/{pid}/cmdline").read_text()
            for name in ("ipmi_process", "hanging_process", "hasty_process")
        )
    ]
    return found


def runs(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def environment(process: int) -> bytes:
    return Path(f"/proc/{process}/environ").read_bytes()


@pytest.fixture
async def hanging() -> AsyncIterator[IpmiDriver]:
    """Its process hangs on whoever logs in as `hang`."""
    process = (sys.executable, "-m", "tests.drivers.power.hanging_process")
    driver = IpmiDriver(process=process, patience=1.0)
    yield driver
    await driver.close()


async def test_a_session_is_kept(ipmi: IpmiDriver, bmc: SimulatedBmc) -> None:
    for _ in range(3):
        await ipmi.power_state(bmc.access(), timeout=ENOUGH)
    assert (await bmc.state())["logins"] == 1
    await ipmi.examine(bmc.access(), timeout=ENOUGH)
    assert (await bmc.state())["logins"] == 2


async def test_a_session_that_the_bmc_has_forgotten_is_opened_again(
    ipmi: IpmiDriver, bmc: SimulatedBmc
) -> None:
    await ipmi.power_state(bmc.access(), timeout=ENOUGH)
    await bmc.all.control(0, forget=True)
    await ipmi.set_power(bmc.access(), PowerCommand.OFF, timeout=ENOUGH)
    assert await ipmi.power_state(bmc.access(), timeout=ENOUGH) is PowerState.OFF
    state = await bmc.state()
    assert (state["commands"], state["logins"]) == (["off"], 2)


async def test_a_session_is_kept_alive_and_closed_when_nobody_uses_it(bmc: SimulatedBmc) -> None:
    driver = IpmiDriver(process=(sys.executable, "-m", "tests.drivers.power.hasty_process"))
    try:
        await driver.power_state(bmc.access(), timeout=ENOUGH)
        async with asyncio.timeout(ENOUGH):
            while (await bmc.state())["requests"] < 4:  # the GUID, the state, two keepalives
                assert (await bmc.state())["sessions"] == 1
                await asyncio.sleep(0.05)
            while (await bmc.state())["sessions"]:
                await asyncio.sleep(0.05)
        assert (await bmc.state())["logins"] == 1
        assert await driver.power_state(bmc.access(), timeout=ENOUGH) is PowerState.ON
        assert (await bmc.state())["logins"] == 2
    finally:
        await driver.close()


async def test_calls_at_once_share_a_session(ipmi: IpmiDriver, bmc: SimulatedBmc) -> None:
    calls = [ipmi.power_state(bmc.access(), timeout=ENOUGH) for _ in range(20)]
    assert set(await asyncio.gather(*calls)) == {PowerState.ON}
    state = await bmc.state()
    assert state["logins"] == 1
    # One each, and one for the GUID: an answer that is not heard has the request sent again.
    assert state["requests"] < 2 * 20


async def test_one_without_a_guid_keeps_its_session_and_shows_it_when_it_has_one(
    ipmi: IpmiDriver, bmc: SimulatedBmc
) -> None:
    await bmc.switch(reject_guid=0xC1)
    for _ in range(3):
        shown = await ipmi.power_state_and_guid(bmc.access(), timeout=ENOUGH)
        assert shown == (PowerState.ON, None)
    assert (await bmc.state())["logins"] == 1
    await bmc.switch(reject_guid=0)
    await ipmi.forget("kvm-1")
    shown = await ipmi.power_state_and_guid(bmc.access(), timeout=ENOUGH)
    assert shown == (PowerState.ON, bmc.guid)


async def test_one_bmc_with_two_logins(ipmi: IpmiDriver, bmc: SimulatedBmc) -> None:
    """pyghmi would give both the same session."""
    all_of_it, reads = bmc.access(), bmc.access(privilege=BmcPrivilege.USER)
    await asyncio.gather(
        ipmi.power_state(all_of_it, timeout=ENOUGH), ipmi.power_state(reads, timeout=ENOUGH)
    )
    assert (await bmc.state())["logins"] == 2


async def test_a_guid_that_became_known_needs_no_other_session(
    ipmi: IpmiDriver, bmc: SimulatedBmc
) -> None:
    report = await ipmi.examine(bmc.access(), timeout=ENOUGH)
    await ipmi.power_state(bmc.access(guid=report.guid), timeout=ENOUGH)
    assert (await bmc.state())["logins"] == 1


async def test_a_login_that_is_accepted_ends_the_former_sessions(
    ipmi: IpmiDriver, bmc: SimulatedBmc
) -> None:
    await ipmi.power_state(bmc.access(), timeout=ENOUGH)
    await ipmi.power_state(bmc.access(privilege=BmcPrivilege.OPERATOR), timeout=ENOUGH)
    async with asyncio.timeout(ENOUGH):
        while (await bmc.state())["sessions"] != 1:
            await asyncio.sleep(0.05)
    with pytest.raises(LoginRefused):
        await ipmi.power_state(bmc.access(password="wrong"), timeout=ENOUGH)
    await ipmi.power_state(bmc.access(privilege=BmcPrivilege.OPERATOR), timeout=ENOUGH)
    # Neither a former password nor one that was refused is kept.
    [kept] = ipmi._used[bmc.access().name]  # noqa: SLF001 - what it keeps is the point
    assert (kept.password, kept.privilege) == (bmc.access().password, 3)
    assert (await bmc.state())["logins"] == 3


async def test_neither_session_nor_password_is_kept_for_nothing(bmc: SimulatedBmc) -> None:
    driver = IpmiDriver(idle=0.3)
    try:
        await driver.power_state(bmc.access(), timeout=ENOUGH)
        async with asyncio.timeout(ENOUGH):
            while (await bmc.state())["sessions"]:
                await asyncio.sleep(0.05)
        assert driver._used == {}  # noqa: SLF001 - what it keeps is the point
        assert await driver.power_state(bmc.access(), timeout=ENOUGH) is PowerState.ON
    finally:
        await driver.close()


async def test_a_bmc_that_is_known_now_keeps_its_session(
    ipmi: IpmiDriver, bmc: SimulatedBmc
) -> None:
    report = await ipmi.examine(bmc.access(), timeout=ENOUGH)
    known = bmc.access(guid=report.guid)
    assert await ipmi.power_state(known, timeout=ENOUGH) is PowerState.ON
    assert (await bmc.state())["logins"] == 1
    await bmc.all.control(bmc.number, forget=True)
    assert await ipmi.power_state(known, timeout=ENOUGH) is PowerState.ON
    with pytest.raises(WrongBmc):
        await ipmi.power_state(bmc.access(guid=str(UUID(int=1))), timeout=ENOUGH)


async def test_a_call_that_is_given_up_disturbs_nobody(
    ipmi: IpmiDriver, bmcs: SimulatedBmcs
) -> None:
    await bmcs.switch(0, mute=True)
    given_up = asyncio.create_task(ipmi.power_state(bmcs.bmc(0).access(), timeout=ENOUGH))
    await ipmi.power_state(bmcs.bmc(1).access(), timeout=ENOUGH)
    given_up.cancel()
    await bmcs.switch(0, mute=False)
    assert await ipmi.power_state(bmcs.bmc(0).access(), timeout=ENOUGH) is PowerState.ON


async def test_mute_bmcs_do_not_delay_the_others(tmp_path: Path, ipmi: IpmiDriver) -> None:
    async with simulated_bmcs(tmp_path, MANY) as bmcs:
        mute = set(range(0, MANY, 10))
        await bmcs.switch(*mute, mute=True)
        order: list[int] = []

        async def look(number: int) -> object:
            try:
                return await ipmi.power_state(bmcs.bmc(number).access(), timeout=60)
            except BmcUnreachable as unreachable:
                return unreachable
            finally:
                order.append(number)

        for _ in range(2):
            order.clear()
            answers = await asyncio.gather(*(look(number) for number in range(MANY)))
            live = [a for number, a in enumerate(answers) if number not in mute]
            assert live == [PowerState.ON] * len(live)
            assert all(isinstance(answers[number], BmcUnreachable) for number in mute)
            assert set(order[-len(mute) :]) == mute


async def test_a_bmc_that_pyghmi_hangs_on_is_given_up_and_the_others_go_on(
    hanging: IpmiDriver, bmcs: SimulatedBmcs
) -> None:
    first, second = bmcs.bmc(0).access(), bmcs.bmc(1).access()
    assert await hanging.power_state(first, timeout=ENOUGH) is PowerState.ON
    process = child()
    evil = bmcs.bmc(2).access(user="hang")
    results = await asyncio.gather(
        hanging.power_state(evil, timeout=ENOUGH),
        hanging.power_state(first, timeout=ENOUGH),
        hanging.power_state(second, timeout=ENOUGH),
        return_exceptions=True,
    )
    assert isinstance(results[0], PowerDriverFailed)
    assert "kvm-3" in str(results[0])
    assert results[1:] == [PowerState.ON, PowerState.ON]
    assert child() != process
    assert not runs(process)


async def test_a_command_that_was_on_its_way_to_a_hanging_process_is_not_sent_again(
    hanging: IpmiDriver, bmcs: SimulatedBmcs
) -> None:
    bmc = bmcs.bmc(0)
    await hanging.power_state(bmc.access(), timeout=ENOUGH)
    await bmc.switch(swallow=True)
    cycle = asyncio.create_task(hanging.set_power(bmc.access(), PowerCommand.CYCLE, timeout=ENOUGH))
    async with asyncio.timeout(ENOUGH):
        while await bmc.commands() != ["cycle"]:
            await asyncio.sleep(0.05)
    with pytest.raises(PowerDriverFailed):
        await hanging.power_state(bmcs.bmc(2).access(user="hang"), timeout=ENOUGH)
    with pytest.raises(PowerOutcomeUnknown):
        await cycle
    await bmc.switch(swallow=False)
    assert await hanging.power_state(bmc.access(), timeout=ENOUGH) is PowerState.ON
    assert await bmc.commands() == ["cycle"]


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_process_that_is_struck_down_is_started_again(
    bmc: SimulatedBmc, blow: signal.Signals
) -> None:
    driver = IpmiDriver(patience=1.0)
    try:
        assert await driver.power_state(bmc.access(), timeout=ENOUGH) is PowerState.ON
        process = child()
        os.kill(process, blow)
        assert await driver.power_state(bmc.access(), timeout=ENOUGH) is PowerState.ON
        assert child() != process
    finally:
        await driver.close()


async def test_a_busy_event_loop_is_no_hanging_process(bmc: SimulatedBmc) -> None:
    driver = IpmiDriver(patience=2.0)
    try:
        assert await driver.power_state(bmc.access(), timeout=ENOUGH) is PowerState.ON
        process = child()
        time.sleep(2.5)  # noqa: ASYNC251 - that is the point
        await asyncio.sleep(0.1)
        assert await driver.power_state(bmc.access(), timeout=ENOUGH) is PowerState.ON
        assert child() == process
    finally:
        await driver.close()


async def test_the_process_ends_with_its_driver(bmc: SimulatedBmc) -> None:
    driver = IpmiDriver()
    await driver.power_state(bmc.access(), timeout=ENOUGH)
    process = child()
    await driver.close()
    assert not runs(process)


async def test_the_process_ends_when_its_driver_is_killed(bmc: SimulatedBmc) -> None:
    to = bmc.access()
    arguments = (to.address, to.user, to.password, str(to.port))
    async with running(sys.executable, "-c", DRIVING, *arguments) as driving:
        assert driving.stdout is not None
        assert await driving.stdout.readline() == b"read\n"
        process = child(driving.pid)
        driving.kill()
        await driving.wait()
        async with asyncio.timeout(ENOUGH):
            while runs(process):
                await asyncio.sleep(0.05)


async def test_the_process_has_nothing_of_hostlers_environment(
    monkeypatch: pytest.MonkeyPatch, ipmi: IpmiDriver, bmc: SimulatedBmc
) -> None:
    monkeypatch.setenv("HOSTLER_MASTER_KEY", "a-key")
    await ipmi.power_state(bmc.access(), timeout=ENOUGH)
    assert b"a-key" not in environment(child())


async def test_a_host_that_is_forgotten_has_no_session(ipmi: IpmiDriver, bmc: SimulatedBmc) -> None:
    await ipmi.power_state(bmc.access(), timeout=ENOUGH)
    await ipmi.forget(bmc.access().name)
    await ipmi.power_state(bmc.access(), timeout=ENOUGH)
    assert (await bmc.state())["logins"] == 2
