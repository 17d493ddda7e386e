import json
import logging
import subprocess
import sys
import uuid

import pytest
from temporalio.client import Client

from contracts.maintenance import HostMaintenanceInput
from tests.workers.conftest import TASK_QUEUE
from workers.logs import configure_logs, host_of_log


@pytest.fixture(autouse=True)
def restored_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    monkeypatch.setattr(root, "level", root.level)


def test_json_has_one_object_per_record(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    with host_of_log("kvm-1"):
        logging.getLogger("drivers.libvirt").info("opened %s", "a connection")
    logging.getLogger("drivers.libvirt").debug("not this")
    record = json.loads(capsys.readouterr().err)
    assert record["logger"] == "drivers.libvirt"
    assert record["level"] == "INFO"
    assert record["message"] == "opened a connection"
    assert record["host"] == "kvm-1"
    assert "timestamp" in record


def test_text_has_one_line_per_record(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("debug", "text")
    logging.getLogger("drivers.libvirt").warning("closed")
    logging.getLogger("httpx").info("noise")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("warning drivers.libvirt: closed")


@pytest.mark.asyncio(loop_scope="package")
async def test_records_of_workflows_and_activities_name_their_operation(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs("info", "json")
    workflow_id = f"maintenance/{uuid.uuid4()}"
    handle = await client.start_workflow(
        "HostMaintenance",
        HostMaintenanceInput(host="kvm-1"),
        id=workflow_id,
        task_queue=TASK_QUEUE,
    )
    await handle.result()
    records = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    by_message = {record["message"]: record for record in records}
    assert by_message["calls "]["workflow_id"] == workflow_id
    assert by_message["calls "]["run_id"] == handle.first_execution_run_id
    assert by_message["greets"]["workflow_id"] == workflow_id
    assert by_message["greets"]["activity"] == "greet"
    assert by_message["greets"]["host"] == "kvm-1"


def test_the_import_of_the_settings_loads_no_driver() -> None:
    loaded = "import sys, cli.processes; print({'libvirt', 'asyncssh'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
