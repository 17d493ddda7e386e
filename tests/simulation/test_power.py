"""Power and out-of-band management on simulated BMCs, by their real drivers; workers die."""

import asyncio
import base64
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import col, select, update
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError

from contracts.access import Role
from contracts.hosts import Host
from contracts.maintenance import HostMaintenanceInput, LeaveInput
from contracts.oobm import HostPower, PowerProblem, endpoint
from contracts.operations import DEFAULT_TASK_QUEUE
from contracts.power import PowerState
from contracts.power_actions import (
    POWER_PROBE_ID,
    Action,
    BmcPasswordChangeInput,
    PowerActionInput,
    PowerSyncInput,
)
from contracts.states import HostStatus, ResourceState
from inventory import Inventory
from inventory.models import HostRow, OobmRow
from tests.e2e.system import ROOT, Process, System
from tests.simulation import cluster
from tests.simulation.bmcs import PASSWORD, USER, Bmcs, address_of, simulated_bmcs
from workers.settings import Settings
from workers.stores import open_inventory

_ACTIONS = {
    Action.ON: "sim-2",
    Action.OFF: "sim-3",
    Action.RESET: "sim-4",
    Action.CYCLE: "sim-5",
    Action.SOFT: "sim-6",
}
_ENDS = {
    Action.ON: PowerState.ON,
    Action.OFF: PowerState.OFF,
    Action.RESET: PowerState.ON,
    Action.CYCLE: PowerState.ON,
    Action.SOFT: PowerState.OFF,
}


@dataclass
class Plant:
    """Temporal, an inventory with hosts and their BMCs, and workers that come and go. Rounds begin
    when the test says so."""

    system: System
    inventory: Inventory
    client: Client
    bmcs: Bmcs
    count: int

    async def worker(self, **death: Any) -> Process:
        more = {"SIMULATION_DEATH": json.dumps(death)} if death else {}
        return await self.system.start(
            "Worker on queue",
            *(sys.executable, "-m", "tests.simulation.hostler", "worker"),
            PYTHONPATH=str(ROOT),
            SIMULATION_HOSTS=str(self.count),
            SIMULATION_VMS="3",
            SIMULATION_SEED="4",
            SIMULATION_JOURNAL=str(self.system.home / "journal"),
            SIMULATION_BMCS=str(self.bmcs.path),
            **more,
        )

    async def begin_round(self) -> WorkflowHandle[Any, Any]:
        return await self.client.start_workflow(
            "PowerSync",
            PowerSyncInput(),
            id=f"power-sync-{datetime.now(UTC).timestamp()}",
            task_queue=DEFAULT_TASK_QUEUE,
        )

    async def round(self) -> dict[str, Any]:
        result: dict[str, Any] = await (await self.begin_round()).result()
        return result

    async def act(self, action: Action, host: str, **more: Any) -> WorkflowHandle[Any, Any]:
        return await self.client.start_workflow(
            "PowerAction",
            PowerActionInput(host=host, action=action, **more),
            id=f"power/{host}",
            task_queue=DEFAULT_TASK_QUEUE,
        )

    async def power(self, host: str) -> HostPower:
        return (await self.inventory.oobm.get(host)).power

    async def observed(self) -> int:
        powers = [host.power for host in await self.hosts()]
        return sum(power is not None and power.observed_at is not None for power in powers)

    async def hosts(self) -> list[Host]:
        return await self.inventory.hosts.list()

    async def messages(self, host: str) -> list[str]:
        events = await self.inventory.events.list(subject=f"host/{host}")
        return [event.message for event in reversed(events) if event.kind.startswith("power.")]


Build = Callable[[int], Awaitable[Plant]]


@pytest.fixture
async def build(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Build]:
    """`await build(n)`: a plant of sim-1 to sim-n, all on, all enabled."""
    record = bool(request.config.getoption("--record-histories"))
    async with AsyncExitStack() as stack:

        async def make(count: int) -> Plant:
            bmcs = stack.enter_context(simulated_bmcs(tmp_path, count))
            system = System(tmp_path, record_histories=record, forked=True)
            stack.callback(system.stop)
            await system.temporal_server()
            await system.done("db", "upgrade")
            await system.done("key", "create")
            inventory = await stack.enter_async_context(open_inventory(Settings(home=system.home)))
            await _register(inventory, count, bmcs.port)
            for name, value in (("sync.interval", 3600), ("action.timeout", 5)):
                await inventory.settings.set(f"outofbandmanagement.{name}", value, actor="test")
            await inventory.settings.set("host.check.interval", 3600, actor="test")
            return Plant(system, inventory, await _client(system), bmcs, count)

        yield make


async def _client(system: System) -> Client:
    """As soon as Temporal answers."""
    while True:
        try:
            return await system.client()
        except RuntimeError:
            await asyncio.sleep(0.1)


async def _register(inventory: Inventory, count: int, port: int) -> None:
    """sim-1 as everybody's hosts, the others in one go: there may be thousands."""
    await inventory.topology.create_zone("zone-1", actor="test")
    await inventory.topology.create_pod("pod-1", "zone-1", actor="test")
    await inventory.topology.create_cluster("cluster-1", "pod-1", actor="test")
    secret = await inventory.secrets.store("password", "simulated", actor="test")
    passwords = await inventory.secrets.store_all(
        [("bmc_password", PASSWORD)] * count, actor="test"
    )
    first = cluster.SimulatedHost("sim-1", cluster.address_of(1))
    await inventory.hosts.register(
        name=first.name,
        cluster="cluster-1",
        address=first.address,
        ssh_port=22,
        user="root",
        secret_id=secret,
        host_key_line=first.key.line,
        host_key_sha256=first.key.sha256,
        capacity_memory_mib=None,
        capacity_cpus=None,
        reserved_memory_mib=0,
        operation="test",
        actor="test",
    )
    await inventory.hosts.set_status(first.name, HostStatus.UP, actor="test", reason="added")
    await inventory.hosts.change_state(
        first.name,
        expected=frozenset({ResourceState.CREATING}),
        target=ResourceState.ENABLED,
        operation="test",
        step="into-service",
        actor="test",
        reason="added",
    )
    await inventory.oobm.configure(
        first.name,
        {"enabled": True, "address": address_of(1), "port": port, "user": USER},
        secret_id=passwords[0],
        replace=True,
        actor="test",
    )
    async with inventory.database.writing() as session:
        host = (await session.exec(select(HostRow))).one().model_dump(exclude={"id"})
        oobm = (await session.exec(select(OobmRow))).one().model_dump()
        for number, password in enumerate(passwords[1:], start=2):
            one = cluster.SimulatedHost(f"sim-{number}", cluster.address_of(number))
            key = {"host_key_line": one.key.line, "host_key_sha256": one.key.sha256}
            session.add(HostRow(**host | key | {"name": one.name, "address": one.address}))
            address = address_of(number)
            where = {"address": address, "endpoint": endpoint(oobm["driver"], address, port)}
            session.add(OobmRow(**oobm | where | {"host": one.name, "secret_id": password}))


async def _listed(client: Client, workflow_type: str) -> str:
    """The id of the only workflow of that type; visibility comes a moment after the fact."""
    query = f"WorkflowType = '{workflow_type}'"
    while not (found := [run.id async for run in client.list_workflows(query)]):
        await asyncio.sleep(0.1)
    (workflow_id,) = found
    return workflow_id


async def failure(handle: WorkflowHandle[Any, Any]) -> ApplicationError:
    with pytest.raises(WorkflowFailureError) as raised:
        await handle.result()
    assert isinstance(raised.value.cause, ApplicationError), raised.value.cause
    return raised.value.cause


@pytest.mark.timeout(300)
async def test_a_worker_killed_in_a_sweep_loses_and_invents_nothing(build: Build) -> None:
    plant = await build(240)
    await plant.inventory.settings.set("outofbandmanagement.sync.poolsize", 20, actor="test")
    names = [host.name for host in await plant.hosts()]
    mute, off = names[5::20], names[7::20]
    plant.bmcs.set(*names, slow=0.02)
    plant.bmcs.set(*mute, mute=True)
    for name in off:
        plant.bmcs.press(name, on=False)
    worker = await plant.worker()
    handle = await plant.begin_round()
    while not 20 <= await plant.observed() < 200:
        await asyncio.sleep(0.05)
    plant.system.kill(worker)
    done = await plant.observed()
    assert done < 240, "it was killed too late to show anything"
    before = {name: state["logins"] for name, state in plant.bmcs.states().items()}
    seen = {host.name for host in await plant.hosts() if host.power and host.power.observed_at}
    await plant.worker()
    await handle.result()
    for host in await plant.hosts():
        assert host.power is not None
        if host.name in mute:
            assert host.power.state is PowerState.UNKNOWN
            assert host.power.problem is PowerProblem.UNREACHABLE
        else:
            expected = PowerState.OFF if host.name in off else PowerState.ON
            assert host.power.state is expected, host.name
    # What was written before the kill is not asked again.
    after = {name: state["logins"] for name, state in plant.bmcs.states().items()}
    assert {name for name in seen - set(mute) if after[name] != before[name]} == set()
    history = await handle.fetch_history()
    assert len(history.events) <= 60
    await plant.system.record(handle.id, "power_sync_worker_killed")
    (latest,) = await plant.inventory.power.rounds(1)
    assert latest.waiting == len(mute)

    second = await plant.round()
    assert (second["asked"], second["answered"]) == (240 - len(mute), 240 - len(mute))
    # Those that were silent are asked apart, once their time has come.
    plant.bmcs.set(*mute, mute=False)
    async with plant.inventory.database.writing() as session:
        due = update(OobmRow).where(col(OobmRow.failures) > 0)
        await session.exec(due.values(retry_at=datetime.now(UTC)))
    third = await plant.round()
    assert third["asked"] == 240 - len(mute)
    probe = await plant.client.get_workflow_handle(POWER_PROBE_ID).result()
    assert (probe["asked"], probe["answered"]) == (len(mute), len(mute))
    await plant.system.record(POWER_PROBE_ID, "power_probe")
    assert {(await plant.power(name)).state for name in mute} == {PowerState.ON}


@pytest.mark.timeout(300)
async def test_a_round_over_2000_bmcs_has_a_short_history_without_names(build: Build) -> None:
    plant = await build(2000)
    off, mute = ("sim-7", "sim-1999"), ("sim-8", "sim-1000")
    for host in off:
        plant.bmcs.press(host, on=False)
    plant.bmcs.set(*mute, mute=True)
    await plant.worker()
    handle = await plant.begin_round()
    result = await handle.result()
    assert (result["asked"], result["answered"], result["changed"]) == (2000, 1998, 2000)
    powers = {host.name: host.power.state for host in await plant.hosts() if host.power}
    states = {PowerState.OFF: off, PowerState.UNKNOWN: mute}
    expected = dict.fromkeys(powers, PowerState.ON) | {
        host: state for state, hosts in states.items() for host in hosts
    }
    assert (len(powers), powers) == (2000, expected)
    history = await handle.fetch_history()
    assert len(history.events) <= 60
    told = b"".join(event.SerializeToString() for event in history.events)
    named = [number for number in range(1, 2001) if f'"sim-{number}"'.encode() in told]
    assert 1 <= len(named) <= 4, named  # the shards' ends


@pytest.mark.timeout(300)
async def test_every_action_does_what_it_says_and_is_sent_once(build: Build) -> None:
    plant = await build(6)
    plant.bmcs.press("sim-2", on=False)
    await plant.worker()
    handles = {action: await plant.act(action, host) for action, host in _ACTIONS.items()}
    for action, host in _ACTIONS.items():
        result = await handles[action].result()
        assert (result["outcome"], result["state"]) == ("done", _ENDS[action]), result
        assert plant.bmcs.state(host)["commands"] == [action]
        assert plant.bmcs.state(host)["on"] == (_ENDS[action] is PowerState.ON)
        assert (await plant.power(host)).state is _ENDS[action]
    for action in (Action.ON, Action.OFF, Action.SOFT):
        result = await (await plant.act(action, _ACTIONS[action])).result()
        assert result["outcome"] == "there already"
        assert len(plant.bmcs.state(_ACTIONS[action])["commands"]) == 1
    # Those that run VMs are not touched, unless somebody says so and why.
    refused = await failure(await plant.act(Action.OFF, "sim-1"))
    assert refused.type == "Conflict"
    assert "vm-1" in refused.message
    assert plant.bmcs.state("sim-1")["commands"] == []
    forced = await (await plant.act(Action.OFF, "sim-1", force=True, reason="fire")).result()
    assert forced["state"] == "Off"
    assert any("vm-1" in warning for warning in forced["warnings"])


@pytest.mark.timeout(300)
async def test_a_worker_killed_after_sending_sends_nothing_twice(build: Build) -> None:
    plant = await build(6)
    plant.bmcs.press("sim-2", on=False)
    mortal = await plant.worker(at="after", calls=len(_ACTIONS))
    handles = {action: await plant.act(action, host) for action, host in _ACTIONS.items()}
    await asyncio.to_thread(mortal.wait)
    await plant.worker()
    for action, host in _ACTIONS.items():
        result = await handles[action].result()
        assert (result["outcome"], result["state"]) == ("done", _ENDS[action]), result
        assert plant.bmcs.state(host)["commands"] == [action]
        await plant.system.record(f"power/{host}", f"power_{action}_worker_killed")


@pytest.mark.timeout(300)
async def test_a_worker_killed_before_sending_sends_nothing_and_says_so(build: Build) -> None:
    plant = await build(6)
    plant.bmcs.press("sim-2", on=False)
    mortal = await plant.worker(at="before", calls=len(_ACTIONS))
    handles = {action: await plant.act(action, host) for action, host in _ACTIONS.items()}
    await asyncio.to_thread(mortal.wait)
    await plant.worker()
    for action, host in _ACTIONS.items():
        error = await failure(handles[action])
        assert error.type == "OutcomeUnknown", error
        assert plant.bmcs.state(host)["commands"] == []
        # And it can be asked for again.
        assert (await (await plant.act(action, host)).result())["outcome"] == "done"
        assert plant.bmcs.state(host)["commands"] == [action]


@pytest.mark.timeout(300)
async def test_a_worker_killed_while_it_watches_goes_on_watching(build: Build) -> None:
    plant = await build(6)
    plant.bmcs.press("sim-2", on=False)
    for host in _ACTIONS.values():
        plant.bmcs.set(host, lie=True)
    worker = await plant.worker()
    handles = {action: await plant.act(action, host) for action, host in _ACTIONS.items()}
    for host in _ACTIONS.values():
        await plant.system.until_running(f"power/{host}", "watch_power")
    plant.system.kill(worker)
    await plant.worker()
    for action, host in _ACTIONS.items():
        error = await failure(handles[action])
        assert error.type == "PowerUnchanged", error
        assert plant.bmcs.state(host)["commands"] == [action]
        await plant.system.record(f"power/{host}", f"power_{action}_unchanged")
        assert (await plant.messages(host))[-1].startswith(f"{action}: ")


@pytest.mark.timeout(300)
async def test_a_worker_killed_between_boot_flags_and_cycle_cycles_once(build: Build) -> None:
    plant = await build(2)
    mortal = await plant.worker(at="boot", calls=1)
    handle = await plant.act(Action.CYCLE, "sim-2", network_boot=True, force=True, reason="new")
    await asyncio.to_thread(mortal.wait)
    assert plant.bmcs.state("sim-2")["commands"] == []
    await plant.worker()
    assert (await handle.result())["outcome"] == "done"
    state = plant.bmcs.state("sim-2")
    assert (state["commands"], state["network_boots"]) == (["cycle"], 1)
    # The next boot is as ever.
    await (await plant.act(Action.RESET, "sim-2", force=True, reason="again")).result()
    assert plant.bmcs.state("sim-2")["network_boots"] == 1
    await plant.system.record("power/sim-2", "power_reset_after_network_boot")


@pytest.mark.timeout(300)
async def test_a_maintenance_whose_workers_die_switches_off_and_on_once(build: Build) -> None:
    plant = await build(3)
    mortal = await plant.worker(at="after", calls=1)
    maintenance: WorkflowHandle[Any, Any] = await plant.client.start_workflow(
        "HostMaintenance",
        HostMaintenanceInput(host="sim-2", power_off_when_ready=True, reason="new fan"),
        id="maintenance/sim-2",
        task_queue=DEFAULT_TASK_QUEUE,
    )
    await asyncio.to_thread(mortal.wait)
    assert plant.bmcs.state("sim-2")["commands"] == ["soft"]
    second = await plant.worker()
    maintenance = plant.client.get_workflow_handle("maintenance/sim-2")
    while (await maintenance.query("status"))["phase"] != "Ready":
        await asyncio.sleep(0.2)
    status = await maintenance.query("status")
    assert status["message"] == "Ready for maintenance: it is switched off"
    assert not plant.bmcs.state("sim-2")["on"]
    assert (await plant.power("sim-2")).state is PowerState.OFF

    plant.system.kill(second)
    mortal = await plant.worker(at="after", calls=1)
    leaving = asyncio.create_task(maintenance.execute_update("leave", LeaveInput()))
    await asyncio.to_thread(mortal.wait)
    await plant.worker()
    await leaving
    state = plant.bmcs.state("sim-2")
    assert (state["commands"], state["on"]) == (["soft", "on"], True)
    host = await plant.inventory.hosts.get("sim-2")
    assert (host.resource_state, host.status) == (ResourceState.ENABLED, HostStatus.UP)
    await plant.system.record("maintenance/sim-2", "maintenance_power_workers_killed")


@pytest.mark.timeout(300)
async def test_a_worker_killed_between_two_passwords_loses_neither(build: Build) -> None:
    plant = await build(2)
    mortal = await plant.worker(at="password", calls=1)
    handle = await plant.client.start_workflow(
        "BmcPasswordChange",
        BmcPasswordChangeInput(host="sim-2"),
        id="bmc-password/sim-2",
        task_queue=DEFAULT_TASK_QUEUE,
    )
    await asyncio.to_thread(mortal.wait)
    login = await plant.inventory.oobm.login("sim-2")
    assert login.staged_secret_id is not None
    (taken,) = plant.bmcs.state("sim-2")["passwords"].values()
    kept = await plant.inventory.secrets.reveal_all([login.secret_id, login.staged_secret_id])
    assert {one.plaintext for one in kept.values()} == {PASSWORD, taken}
    await plant.worker()
    await handle.result()
    login = await plant.inventory.oobm.login("sim-2")
    assert login.staged_secret_id is None
    assert (await plant.inventory.secrets.reveal(login.secret_id)).plaintext == taken
    await plant.round()
    assert (await plant.power("sim-2")).state is PowerState.ON
    await plant.system.record("bmc-password/sim-2", "bmc_password_worker_killed")


@pytest.mark.timeout(300)
async def test_what_is_wrong_with_a_bmc_has_its_own_state_and_event(build: Build) -> None:
    plant = await build(7)
    await plant.worker()
    await plant.round()
    assert {(await plant.power(f"sim-{n}")).state for n in range(1, 8)} == {PowerState.ON}
    plant.bmcs.set("sim-2", mute=True)
    plant.bmcs.set("sim-3", reject_login=True)
    plant.bmcs.change_password("sim-7", "of somebody else")
    plant.bmcs.forget("sim-3", "sim-7")
    plant.bmcs.press("sim-4", on=False)
    # The address of sim-5's BMC now belongs to that of sim-6.
    plant.bmcs.move("sim-5", "127.77.9.9")
    plant.bmcs.move("sim-6", address_of(5))
    plant.bmcs.forget("sim-6")
    await plant.round()
    expected = {
        "sim-1": (PowerState.ON, None),
        "sim-2": (PowerState.UNKNOWN, PowerProblem.UNREACHABLE),
        "sim-3": (PowerState.UNKNOWN, PowerProblem.ACCOUNT_REFUSED),
        "sim-4": (PowerState.OFF, None),
        "sim-5": (PowerState.UNKNOWN, PowerProblem.ANOTHER_BMC),
        "sim-6": (PowerState.UNKNOWN, PowerProblem.UNREACHABLE),
        "sim-7": (PowerState.UNKNOWN, PowerProblem.LOGIN_REFUSED),
    }
    for host, (state, problem) in expected.items():
        power = await plant.power(host)
        assert (power.state, power.problem) == (state, problem), (host, power)
        assert len(await plant.messages(host)) == (0 if host == "sim-1" else 1)
    assert "the account is locked" in (await plant.messages("sim-3"))[0]
    assert "refuses the login" in (await plant.messages("sim-7"))[0]
    # Both are left alone, so that no account is locked.
    refusing = ("sim-3", "sim-7")
    logins = [plant.bmcs.state(host)["logins"] for host in refusing]
    await plant.round()
    assert [plant.bmcs.state(host)["logins"] for host in refusing] == logins
    # Nothing is sent to another machine's BMC.
    error = await failure(await plant.act(Action.OFF, "sim-5", force=True, reason="test"))
    assert error.type == "WrongBmc", error
    assert plant.bmcs.state("sim-6")["commands"] == []
    # A new configuration ends the waiting.
    plant.bmcs.set("sim-3", reject_login=False)
    secret = await plant.inventory.secrets.store("bmc_password", PASSWORD, actor="test")
    await plant.inventory.oobm.configure("sim-3", {}, secret_id=secret, replace=False, actor="test")
    await plant.round()
    assert (await plant.power("sim-3")).state is PowerState.ON


@pytest.mark.timeout(300)
async def test_the_command_and_the_api_see_it_all_and_no_password_leaks(build: Build) -> None:
    plant = await build(3)
    await plant.worker()
    (plant.system.home / "admin-token").write_text(
        await plant.inventory.tokens.create("admin", Role.ADMIN)
    )
    await plant.system.api()
    done, shown = plant.system.done, plant.system.shown
    password = plant.system.home / "password"
    password.write_text(f"{PASSWORD}\n")
    report = await shown("oobm", "test", "sim-2")
    assert (report["power_state"], report["privilege"]) == ("On", "administrator")
    await plant.system.record(await _listed(plant.client, "BmcTest"), "bmc_test")
    wrong = plant.system.home / "wrong"
    wrong.write_text("canary-that-is-wrong\n")
    said = await plant.system.hostler("oobm", "test", "sim-2", "--password-file", str(wrong))
    assert said.status == 1
    await plant.round()
    assert (await shown("host", "show", "sim-2"))["power"]["state"] == "On"
    assert "On" in await done("host", "list")
    assert "sim-2 is Off: its BMC says Off." in await done("power", "off", "sim-2")
    assert "sim-2 is Off." in await done("power", "status", "sim-2")
    assert "already" in await done("power", "off", "sim-2")
    assert (await shown("power", "on", "sim-2"))["outcome"] == "done"
    said = await plant.system.hostler("power", "off", "sim-1")
    assert said.status == 1
    assert "VMs run on sim-1" in said.stderr
    assert "has a new password" in await done("oobm", "change-password", "sim-3")
    (new,) = plant.bmcs.state("sim-3")["passwords"].values()
    assert new != PASSWORD
    assert "sim-3 is On." in await done("power", "status", "sim-3")
    await done("oobm", "disable", "--zone", "zone-1")
    said = await plant.system.hostler("power", "off", "sim-2")
    assert said.status == 1
    assert "disabled: zone zone-1" in said.stderr
    assert (await shown("host", "show", "sim-2"))["power"]["state"] == "Disabled"
    await done("oobm", "enable", "--zone", "zone-1")
    plant.system.stop()
    forms = {*_forms(PASSWORD), *_forms(new), *_forms("canary-that-is-wrong")}
    leaks = [
        (path, form)
        for directory in (plant.system.home, plant.system.logs)
        for path in directory.rglob("*")
        if path not in (password, wrong) and path.is_file()
        for form in forms
        if form in path.read_bytes()
    ]
    assert leaks == []
    # The search is not blind.
    longer = b"before " + PASSWORD.encode() + b" after"
    for offset in range(3):
        coded = base64.b64encode(longer[offset:])
        assert any(form in coded for form in _forms(PASSWORD))


def _forms(secret: str) -> list[bytes]:
    """Plain, in hexadecimal, and what is the same in base64 wherever the secret begins."""
    raw = secret.encode()
    shifted = []
    for before in range(3):
        coded = base64.b64encode(b"\0" * before + raw)
        # Without the characters that have bits of what stands before and after it.
        shifted.append(coded[(before * 8 + 5) // 6 : (before + len(raw)) * 8 // 6])
    return [raw, raw.hex().encode(), raw.hex().upper().encode(), *shifted]
