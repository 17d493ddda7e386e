"""An operation that an older version of Hostler has begun goes on with the newer one.

It is the worked example of docs/versioning.md.
"""

import asyncio
import shutil
import signal
from pathlib import Path

import pytest
from temporalio.api.enums.v1 import EventType

from tests.e2e.conftest import slow_down, speed_up
from tests.e2e.proofs import assert_in_service, assert_ticks, places
from tests.e2e.system import ROOT, System
from tests.lab import Lab

pytestmark = pytest.mark.timeout(400)

ID = "maintenance/kvm-1"
PACKAGES = ("activities", "api", "cli", "contracts", "drivers", "inventory", "workers", "workflows")
# What the newer version has added to HostMaintenance.
ADDED = """        if workflow.patched("event-evacuating"):
            await self._record_evacuating()
"""
EVENT = "fenced; 3 VMs leave it"


def older_version(directory: Path) -> Path:
    """This tree as it was before the step that `ADDED` is."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, directory / package)
    workflow = directory / "workflows" / "host_maintenance.py"
    text = workflow.read_text()
    assert text.count(ADDED) == 1
    workflow.write_text(text.replace(ADDED, ""))
    return directory


async def patches(system: System, workflow_id: str) -> list[str]:
    """What the runs of a workflow have recorded of `workflow.patched`."""
    client = await system.client()
    found = []
    async for run in client.list_workflows(f"WorkflowId = '{workflow_id}'"):
        handle = client.get_workflow_handle(workflow_id, run_id=run.run_id)
        async for event in handle.fetch_history_events():
            if event.event_type == EventType.EVENT_TYPE_MARKER_RECORDED:
                found.append(str(event.marker_recorded_event_attributes))
    return found


async def test_an_old_worker_is_replaced_by_a_new_one_in_the_middle(
    populated_split: System, lab: Lab, tmp_path: Path
) -> None:
    old = await populated_split.worker(PYTHONPATH=str(older_version(tmp_path / "older")))
    await slow_down(populated_split)
    await populated_split.done("maintenance", "enter", "kvm-1")
    await populated_split.until_migrating("kvm-1", 3)
    old.send_signal(signal.SIGTERM)
    await asyncio.to_thread(old.wait)
    await speed_up(populated_split)
    await populated_split.worker()
    await populated_split.until_phase("kvm-1", "Ready")
    assert "kvm-1" not in (await places(lab)).values()
    await assert_ticks(lab)
    # It has passed that step in the old version: it stays as it began.
    assert await patches(populated_split, ID) == []
    assert EVENT not in await populated_split.events("host/kvm-1")
    await populated_split.done("maintenance", "leave", "kvm-1", "--return-vms")
    await assert_in_service(lab, "kvm-1", await populated_split.host("kvm-1"))
    await populated_split.record(ID, "host_maintenance_begun_by_an_older_version")

    handle = await populated_split.workflow("return/kvm-1")
    result = await handle.result()
    assert {vm["destination"] for vm in result["vms"]} == {"kvm-1"}
    assert set((await places(lab)).values()) == {"kvm-1"}
    await assert_ticks(lab)
    await populated_split.record("return/kvm-1", "vm_return")

    # What begins now takes the new step.
    await populated_split.done("maintenance", "enter", "kvm-1")
    await populated_split.until_phase("kvm-1", "Ready")
    assert len(await patches(populated_split, ID)) == 1
    assert EVENT in await populated_split.events("host/kvm-1")
    await populated_split.done("maintenance", "leave", "kvm-1")
