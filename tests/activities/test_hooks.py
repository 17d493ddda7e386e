"""Hooks and reboots on a lab host: once each, whatever happens to whoever asked for them."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from activities.directory import HostDirectory
from activities.hooks import HookActivities, HostSilent, RebootTimedOut, UnsafeHook
from contracts.cluster_maintenance import (
    BuiltinHook,
    Hook,
    HookRun,
    ReadBootIdInput,
    RebootHostInput,
    RunHookInput,
    RunHookResult,
    Stage,
)
from contracts.errors import Conflict
from contracts.leases import LeaseRef, LeaseScope, Owner
from contracts.states import ResourceState
from drivers.ssh import AsyncSshShell
from drivers.systemd import Systemd
from inventory import Inventory
from tests.activities.conftest import ref, run
from tests.lab import Lab

OPERATION = "cluster-maintenance/cluster-1#run-0"
HOST = "kvm-3"
OWNER = Owner(workflow_id=f"maintenance/{HOST}", first_run_id="run-1")
COUNTED = "/root/counted"
COUNT = ("sh", "-c", f"printf x >>{COUNTED}; sleep 2; echo $HOSTLER_HOST")


@pytest.fixture
async def shell() -> AsyncIterator[AsyncSshShell]:
    shell = AsyncSshShell(keepalive_interval=1, keepalive_count=2, connect_timeout=2)
    yield shell
    await shell.close()


@pytest.fixture
async def activities(
    inventory: Inventory, directory: HostDirectory, shell: AsyncSshShell, lab: Lab
) -> AsyncIterator[HookActivities]:
    async def clean() -> None:
        await lab.exec(HOST, "systemctl", "stop", "hostler-job-*", check=False)
        await lab.exec(HOST, "rm", "-rf", "/var/lib/hostler/jobs", "/etc/hostler", COUNTED)

    await clean()
    yield HookActivities(inventory, directory, shell, Systemd(shell))
    await clean()


@pytest.fixture
async def lease(inventory: Inventory) -> LeaseRef:
    """Of HOST, held by OWNER."""
    return ref(await inventory.leases.acquire(HOST, LeaseScope.PLACEMENT, OWNER, "test"))


@pytest.fixture
async def ready(inventory: Inventory, lease: LeaseRef) -> Owner:
    """HOST is in maintenance."""
    states = (ResourceState.PREPARE_FOR_MAINTENANCE, ResourceState.MAINTENANCE)
    for before, after in zip((ResourceState.ENABLED, *states), states, strict=False):
        await inventory.hosts.change_state(
            HOST,
            expected=frozenset({before}),
            target=after,
            operation=OWNER.workflow_id,
            step=after,
            actor="test",
            reason="test",
        )
    return lease.owner


def order(
    *command: str,
    stage: Stage = Stage.PRE_FLIGHT,
    attempt: int = 1,
    timeout: int = 60,
    maintenance: Owner | None = None,
    unreachable_timeout: int = 30,
    hook: Hook | None = None,
) -> RunHookInput:
    return RunHookInput(
        operation=OPERATION,
        cluster="cluster-1",
        host=HOST,
        stage=stage,
        attempt=attempt,
        hook=hook or (Hook(command=command) if command else None),
        maintenance=maintenance,
        timeout=timeout,
        unreachable_timeout=unreachable_timeout,
    )


async def kept(inventory: Inventory) -> list[HookRun]:
    return await inventory.hook_runs.of_host(OPERATION, HOST)


async def counted(lab: Lab) -> int:
    return len((await lab.exec(HOST, "cat", COUNTED)).stdout)


def status_of(result: RunHookResult) -> int | None:
    assert result.outcome is not None
    return result.outcome.exit_status


async def test_a_command_runs_with_its_words_and_its_place_and_is_kept(
    activities: HookActivities, inventory: Inventory
) -> None:
    names = "$HOSTLER_HOST $HOSTLER_CLUSTER $HOSTLER_STAGE $HOSTLER_OPERATION"
    tell = order("sh", "-c", f'printf "%s\\n" "$0" "$1" {names}; exit 3', "a b", "$(id)")
    assert status_of(await run(activities.run_hook, tell)) == 3
    (seen,) = await kept(inventory)
    assert seen.output == (
        f"a b\n$(id)\n{HOST}\ncluster-1\npre_flight\ncluster-maintenance/cluster-1\n"
    )
    assert (seen.exit_status, seen.problem, seen.attempt) == (3, None, 1)
    assert seen.command[3:] == ("a b", "$(id)")
    assert seen.finished_at is not None
    assert (await inventory.hook_runs.list(OPERATION))[0].output is None
    (event,) = await inventory.events.list(subject=f"host/{HOST}", operation=OPERATION[:-6])
    assert event.message == "hook pre_flight, attempt 1: status 3"


async def test_whoever_asks_again_joins_it(
    activities: HookActivities, inventory: Inventory, lab: Lab
) -> None:
    """As after a worker that died, and beside one that was only thought dead."""
    first = asyncio.create_task(run(activities.run_hook, order(*COUNT)))
    while not await kept(inventory):
        await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    results = await asyncio.gather(*(run(activities.run_hook, order(*COUNT)) for _ in range(2)))
    assert [status_of(result) for result in results] == [0, 0]
    assert status_of(await run(activities.run_hook, order(*COUNT))) == 0
    assert await counted(lab) == 1
    (seen,) = await kept(inventory)
    assert seen.output == f"{HOST}\n"
    # Another attempt is another run.
    assert status_of(await run(activities.run_hook, order(*COUNT, attempt=2))) == 0
    assert await counted(lab) == 2
    assert [one.attempt for one in await kept(inventory)] == [1, 2]


async def test_a_hook_goes_on_while_the_host_is_cut_off(
    activities: HookActivities, inventory: Inventory, lab: Lab
) -> None:
    slow = ("sh", "-c", f"printf x >>{COUNTED}; sleep 8; echo through")
    # The host is silent for longer than it is waited for before a hook has begun.
    work = asyncio.create_task(run(activities.run_hook, order(*slow, unreachable_timeout=2)))
    while not (await lab.exec(HOST, "cat", COUNTED, check=False)).stdout:
        await asyncio.sleep(0.1)
    await lab.cut(HOST)
    try:
        while (await lab.exec(HOST, "systemctl", "is-active", "hostler-job-*")).stdout:
            await asyncio.sleep(0.2)
    except AssertionError:
        pass  # no such unit is active any more
    finally:
        await lab.heal(HOST)
    assert status_of(await work) == 0
    assert await counted(lab) == 1
    assert [one.output for one in await kept(inventory)] == ["through\n"]


async def test_a_host_that_is_silent_before_anything_has_begun(
    activities: HookActivities, inventory: Inventory, lab: Lab
) -> None:
    await lab.cut(HOST)
    try:
        with pytest.raises(HostSilent, match="has not answered for 1 s"):
            await run(activities.run_hook, order("true", unreachable_timeout=1))
        with pytest.raises(HostSilent, match="has not answered for 1 s"):
            await run(activities.read_boot_id, ReadBootIdInput(host=HOST, unreachable_timeout=1))
    finally:
        await lab.heal(HOST)
    assert await kept(inventory) == []


async def test_one_that_takes_too_long(activities: HookActivities, inventory: Inventory) -> None:
    hook = Hook(command=("sh", "-c", "echo begun; sleep 100"), timeout_s=1)
    result = await run(activities.run_hook, order(hook=hook))
    assert result.outcome is not None
    assert result.outcome.problem == "it took longer than it may, and was ended"
    assert result.outcome.exit_status is None
    (seen,) = await kept(inventory)
    assert (seen.output, seen.problem) == ("begun\n", result.outcome.problem)


async def test_only_the_end_of_much_output_is_kept(
    activities: HookActivities, inventory: Inventory
) -> None:
    await run(activities.run_hook, order("sh", "-c", "seq 100000; printf 'a\\0b\\377\\n'"))
    (seen,) = await kept(inventory)
    assert seen.output is not None
    assert len(seen.output) <= 64 * 1024
    assert seen.output.endswith("100000\na\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}\n")


async def test_the_hosts_own_hook(
    activities: HookActivities, inventory: Inventory, lab: Lab
) -> None:
    own = "/etc/hostler/hooks/pre_flight"
    assert (await run(activities.run_hook, order())).outcome is None
    assert await kept(inventory) == []
    script = "#!/bin/sh\necho own of $HOSTLER_STAGE\n"
    await lab.exec(HOST, "sh", "-c", f"mkdir -p /etc/hostler/hooks; cat >{own}", stdin=script)
    assert (await run(activities.run_hook, order())).outcome is None, "it is not executable"
    await lab.exec(HOST, "chmod", "777", own)
    with pytest.raises(UnsafeHook, match="does not belong to root alone"):
        await run(activities.run_hook, order())
    await lab.exec(HOST, "chmod", "755", own)
    assert status_of(await run(activities.run_hook, order())) == 0
    (seen,) = await kept(inventory)
    assert (seen.command, seen.output) == ((own,), "own of pre_flight\n")
    # One that is asked for goes before it.
    await run(activities.run_hook, order("echo", "asked", attempt=2))
    assert [one.output for one in await kept(inventory)][-1] == "asked\n"


async def test_the_ready_hook(activities: HookActivities, inventory: Inventory) -> None:
    hook = Hook(builtin=BuiltinHook.APPLY_UPDATES)
    result = await run(activities.run_hook, order(hook=hook))
    (seen,) = await kept(inventory)
    assert seen.command == ("apply-updates",)
    # No repository is set up here: there is nothing to update, and that is said.
    assert (status_of(result), seen.output) == (0, "nothing to update\nreboot wanted: no\n")


async def test_work_is_done_only_on_a_host_that_is_ready(
    activities: HookActivities, inventory: Inventory, lease: LeaseRef, lab: Lab
) -> None:
    work = order(*COUNT, stage=Stage.MAINTENANCE, maintenance=lease.owner)
    with pytest.raises(Conflict, match="is Enabled, and not ready in maintenance/kvm-3"):
        await run(activities.run_hook, work)
    boot = await run(activities.read_boot_id, ReadBootIdInput(host=HOST, unreachable_timeout=9))
    with pytest.raises(Conflict, match="nothing was done to it"):
        await run(activities.reboot_host, reboot_order(boot.boot_id, lease.owner))
    assert await kept(inventory) == []
    assert (await lab.exec(HOST, "ls", COUNTED, check=False)).exit_status != 0


async def test_nor_on_one_that_is_ready_in_another_maintenance(
    activities: HookActivities, ready: Owner
) -> None:
    other = Owner(workflow_id=f"maintenance/{HOST}", first_run_id="an earlier one")
    with pytest.raises(Conflict):
        await run(activities.run_hook, order("true", stage=Stage.MAINTENANCE, maintenance=other))
    work = order("true", stage=Stage.MAINTENANCE, maintenance=ready)
    assert status_of(await run(activities.run_hook, work)) == 0


def reboot_order(boot_id: str, maintenance: Owner, timeout: int = 100) -> RebootHostInput:
    return RebootHostInput(host=HOST, maintenance=maintenance, boot_id=boot_id, timeout=timeout)


async def test_a_reboot_in_the_middle_of_a_hook_and_one_reboot_however_often_it_is_asked_for(
    activities: HookActivities, inventory: Inventory, ready: Owner, lab: Lab
) -> None:
    hook = asyncio.create_task(
        run(activities.run_hook, order("sh", "-c", f"printf x >>{COUNTED}; sleep 1000"))
    )
    while not (await lab.exec(HOST, "cat", COUNTED, check=False)).stdout:
        await asyncio.sleep(0.1)
    await clear(lab)
    before = await run(activities.read_boot_id, ReadBootIdInput(host=HOST, unreachable_timeout=9))
    first = asyncio.create_task(run(activities.reboot_host, reboot_order(before.boot_id, ready)))
    while await boot_id(lab) == before.boot_id:
        await asyncio.sleep(0.2)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    after = await run(activities.reboot_host, reboot_order(before.boot_id, ready))
    assert after.boot_id != before.boot_id
    again = await run(activities.reboot_host, reboot_order(before.boot_id, ready))
    assert again == after
    assert after.boot_id == await boot_id(lab)
    interrupted = (await hook).outcome
    assert interrupted is not None
    assert interrupted.problem == "it was interrupted by a reboot"
    assert await counted(lab) == 1


async def clear(lab: Lab) -> None:
    """Guests that earlier tests have left would hold up the reboot."""
    for guest in (await lab.status())["guests"]:
        if HOST in guest["hosts"]:
            await lab.remove_guest(guest["name"])


async def boot_id(lab: Lab) -> str:
    """Empty while it does not run."""
    path = "/proc/sys/kernel/random/boot_id"
    return (await lab.exec(HOST, "cat", path, check=False)).stdout.strip() or "none"


async def test_a_host_that_does_not_come_back_in_time(
    activities: HookActivities, ready: Owner, lab: Lab
) -> None:
    now = await boot_id(lab)
    await lab.cut(HOST)
    try:
        with pytest.raises(RebootTimedOut, match="is not back from its reboot after 1 s") as late:
            await run(activities.reboot_host, reboot_order(now, ready, timeout=1))
        assert late.value.details == {"answers": False}
    finally:
        await lab.heal(HOST)
    assert await boot_id(lab) == now
