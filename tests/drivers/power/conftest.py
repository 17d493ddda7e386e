"""BMCs, and drivers that speak with them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from drivers.power.ipmi import IpmiDriver
from drivers.power.ipmitool import IpmitoolDriver
from drivers.protocols import PowerDriver
from tests.drivers.power.servers import (
    IpmiSim,
    Machine,
    SimulatedBmc,
    SimulatedBmcs,
    ipmi_sim,
    simulated_bmcs,
)


@pytest.fixture
async def openipmi(tmp_path: Path) -> AsyncIterator[IpmiSim]:
    async with ipmi_sim(tmp_path) as server:
        yield server


@pytest.fixture
async def bmcs(tmp_path: Path) -> AsyncIterator[SimulatedBmcs]:
    """Three."""
    async with simulated_bmcs(tmp_path) as servers:
        yield servers


@pytest.fixture
def bmc(bmcs: SimulatedBmcs) -> SimulatedBmc:
    """The first of them."""
    return bmcs.bmc()


@pytest.fixture
async def ipmi() -> AsyncIterator[IpmiDriver]:
    driver = IpmiDriver()
    yield driver
    await driver.close()


@pytest.fixture(params=[IpmiDriver, IpmitoolDriver], ids=["ipmi", "ipmitool"])
async def driver(request: pytest.FixtureRequest) -> AsyncIterator[PowerDriver]:
    """Each that speaks IPMI."""
    driver: PowerDriver = request.param()
    yield driver
    await driver.close()


@pytest.fixture(params=["ipmi_sim", "pyghmi"])
async def machine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Machine]:
    """One, with power, behind either kind of BMC."""
    if request.param == "ipmi_sim":
        async with ipmi_sim(tmp_path) as server:
            yield server
    else:
        async with simulated_bmcs(tmp_path, 1) as servers:
            yield servers.bmc()
