"""Drivers come in as entry points."""

import pytest

from contracts.errors import NotFound
from drivers.power.ipmitool import IpmitoolDriver
from drivers.power.registry import PowerDrivers


async def test_hostlers_own_are_there_and_made_once() -> None:
    drivers = PowerDrivers()
    assert {"ipmi", "ipmitool", "redfish"} <= set(drivers.names())
    for name in drivers.names():
        assert drivers.get(name) is drivers.get(name)
    assert isinstance(drivers.get("ipmitool"), IpmitoolDriver)
    await drivers.forget("kvm-1")
    await drivers.close()


def test_one_that_is_not_installed_is_refused_with_a_choice() -> None:
    with pytest.raises(NotFound, match="ipmi, ipmitool, redfish"):
        PowerDrivers().get("telnet")
