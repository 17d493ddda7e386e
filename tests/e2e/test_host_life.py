"""A host that Hostler has never seen comes, serves, goes, and comes again."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.e2e.conftest import GUESTS, HOSTS, add_host
from tests.e2e.proofs import (
    assert_audited,
    assert_in_service,
    assert_nothing_left,
    assert_ticks,
    places,
    start_new,
)
from tests.e2e.system import System
from tests.lab import Lab

pytestmark = pytest.mark.timeout(600)

HOST = "kvm-4"


@pytest_asyncio.fixture
async def system(populated: System, lab: Lab) -> AsyncIterator[System]:
    """Running, with the hosts of the lab added, and beside them one that is as it was installed."""
    await populated.up()
    await lab.up(hosts=4)
    yield populated
    for guest in GUESTS:
        await lab.remove_guest(guest)
    await lab.remove(HOST)


async def test_a_fourth_host(system: System, lab: Lab) -> None:
    row = next(row for row in (await lab.status())["hosts"] if row["name"] == HOST)
    await add_host(system, row)
    await assert_in_service(lab, HOST, await system.host(HOST))
    for other in ("kvm-2", "kvm-3"):
        await system.done("host", "disable", other)
    await system.done("maintenance", "enter", "kvm-1", "--watch")
    assert set((await places(lab)).values()) == {HOST}
    await assert_ticks(lab)
    await system.done("maintenance", "leave", "kvm-1")
    for other in ("kvm-2", "kvm-3"):
        await system.done("host", "enable", other)

    await system.done("cluster", "disable", "cluster-1")
    for host in (*HOSTS, HOST):
        status, why = await start_new(lab, host)
        assert status != 0, host
        assert "cluster cluster-1 is Disabled" in why
    await lab.virsh(HOST, "destroy", "vm-1")
    await lab.virsh(HOST, "start", "vm-1")
    assert (await places(lab))["vm-1"] == HOST
    await system.done("cluster", "enable", "cluster-1")
    for host in (*HOSTS, HOST):
        assert (await start_new(lab, host))[0] == 0, host

    await system.done("host", "remove", HOST, "--after-maintenance", "--reason", "lent")
    assert HOST not in (await places(lab)).values()
    await lab.ticks_on("vm-2")
    await assert_nothing_left(lab, HOST)

    with pytest.raises(AssertionError, match="returning"):
        await add_host(system, row)
    await assert_nothing_left(lab, HOST)
    await add_host(system, row, "--returning")
    await assert_in_service(lab, HOST, await system.host(HOST))
    for host in (*HOSTS, HOST):
        await assert_audited(system, host)
