"""Hostler as people run it: its processes, its command, Temporal's command, its API."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError

from contracts.operations import DEFAULT_TASK_QUEUE
from tests import forked
from tests.forked import MODULES, Forked, Said
from tests.ports import free_port
from workers.converter import HOSTLER_DATA_CONVERTER

Process = subprocess.Popen[bytes] | Forked
ROOT = Path(__file__).parents[2]
_PROGRAMS = Path(sys.executable).parent
_HISTORIES = ROOT / "tests" / "histories"
_PAUSE_S = 0.2
# Each client would read all CAs that are trusted: 50 ms, at each request.
_TRUST = httpx.create_ssl_context()
# To the logs, where the test of secrets finds them.
_TRACED = {"OTEL_TRACES_EXPORTER": "console"}


class System:
    """One installation in a directory of its own, on ports of its own.

    Args:
        directory: gets home and logs.
        database_url: the inventory's; None for the embedded default.
        record_histories: keep the histories that tests name, for the replay tests.
        forked: Hostler's own programs are forked from one that has imported them, not started anew.
    """

    def __init__(
        self,
        directory: Path,
        *,
        database_url: str | None = None,
        record_histories: bool = False,
        forked: bool = False,
    ) -> None:
        self.forked = forked
        self.home = directory / "home"
        self.logs = directory / "logs"
        self.logs.mkdir(parents=True)
        self._record_histories = record_histories
        self._started: list[Process] = []
        self._temporal_port, self._ui_port, self.api_port = (free_port() for _ in range(3))
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
            "PATH": f"{_PROGRAMS}:{os.environ['PATH']}",
            "HOSTLER_HOME": str(self.home),
            "HOSTLER_TEMPORAL_ADDRESS": self.temporal_address,
            "HOSTLER_TEMPORAL_UI_PORT": str(self._ui_port),
            "HOSTLER_API_PORT": str(self.api_port),
            "TEMPORAL_ADDRESS": self.temporal_address,
        }
        if database_url is not None:
            self._environment["HOSTLER_DATABASE_URL"] = database_url

    @property
    def temporal_address(self) -> str:
        return f"127.0.0.1:{self._temporal_port}"

    # --- processes ------------------------------------------------------------------------------

    async def up(self, **settings: str) -> Process:
        """`hostler up`, ready."""
        return await self.start("Hostler is ready.", "hostler", "up", **_TRACED, **settings)

    async def worker(self, **settings: str) -> Process:
        """`hostler worker`, ready."""
        return await self.start("Worker on queue", "hostler", "worker", **_TRACED, **settings)

    async def api(self) -> Process:
        """`hostler api`, ready."""
        return await self.start("API at", "hostler", "api", **_TRACED)

    async def temporal_server(self) -> Process:
        """Temporal's dev server, on a file; it says nothing when it is ready: connect waits."""
        address, _, port = self.temporal_address.rpartition(":")
        self.home.mkdir(mode=0o700, exist_ok=True)
        return await self.start(
            "Temporal Server:",
            *("temporal", "server", "start-dev", "--ip", address, "--port", port, "--headless"),
            *("--db-filename", str(self.home / "temporal.db")),
        )

    async def start(self, ready: str, *command: str, **settings: str) -> Process:
        """Start a process and return when its log has the words `ready`."""
        process, log = self._spawn(command, settings)
        while ready not in log.read_text(errors="replace"):
            assert process.poll() is None, log.read_text(errors="replace")
            await asyncio.sleep(_PAUSE_S)
        return process

    def _spawn(self, command: tuple[str, ...], settings: dict[str, str]) -> tuple[Process, Path]:
        log = self.logs / f"{len(self._started)}-{command[1]}.log"
        environment = self._environment | settings
        process: Process
        if self._forks(command, settings):
            log.touch()
            process = Forked(command, directory=self.logs, environment=environment, stdout=log)
        else:
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command,
                    cwd=self.logs,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
        self._started.append(process)
        return process, log

    def _forks(self, command: tuple[str, ...], settings: dict[str, str]) -> bool:
        """Whether it is a program of this Hostler, not of another version."""
        module = command[2] if command[:2] == (sys.executable, "-m") else None
        ours = command[0] == "hostler" or module in MODULES
        return self.forked and ours and settings.get("PYTHONPATH", str(ROOT)) == str(ROOT)

    @property
    def pids(self) -> list[int]:
        """Of all that was started, in that order."""
        return [process.pid for process in self._started]

    def kill(self, process: Process) -> None:
        """kill -9."""
        process.kill()
        process.wait()

    def stop(self) -> None:
        """End everything that still runs, in good order, the newest first."""
        for process in reversed(self._started):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait()

    # --- the three ways in ----------------------------------------------------------------------

    async def hostler(self, *arguments: str, **settings: str) -> Said:
        """The `hostler` command."""
        return await self.command("hostler", *arguments, **settings)

    async def temporal(self, *arguments: str) -> Said:
        """Temporal's own command."""
        return await self.command("temporal", *arguments)

    async def command(self, *command: str, **settings: str) -> Said:
        if self._forks(command, settings):
            return await forked.command(
                *command, directory=self.logs, environment=self._environment | settings
            )
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.logs,
            env=self._environment | settings,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        stdout, stderr = await process.communicate()
        return Said(process.returncode or 0, stdout.decode(), stderr.decode())

    async def done(self, *arguments: str) -> str:
        """The output of a `hostler` command that must succeed."""
        said = await self.hostler(*arguments)
        assert said.status == 0, (arguments, said)
        return said.stdout

    async def shown(self, *arguments: str) -> Any:
        """The same, of a command that knows `--json`."""
        return json.loads(await self.done(*arguments, "--json"))

    async def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        """A request to the API with the admin's token."""
        token = (self.home / "admin-token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"} | more.pop("headers", {})
        async with httpx.AsyncClient(timeout=60, trust_env=False, verify=_TRUST) as client:
            return await client.request(
                method, f"http://127.0.0.1:{self.api_port}{path}", headers=headers, **more
            )

    async def set(self, name: str, value: str) -> None:
        """A setting, for all."""
        answer = await self.request("PUT", f"/v1/settings/{name}", json={"value": value})
        assert answer.status_code == 200, answer.text

    async def unset(self, name: str) -> None:
        """Back to the default."""
        answer = await self.request("DELETE", f"/v1/settings/{name}")
        assert answer.status_code == 200, answer.text

    async def ended(self, started: httpx.Response) -> Any:
        """What the operation that was started has ended with. Raises WorkflowFailureError."""
        assert started.status_code == 202, started.text
        operation = (await self.request("GET", started.headers["Location"])).json()
        return await (await self.workflow(operation["workflow_id"])).result()

    async def curl(self, path: str, *arguments: str) -> tuple[int, Any]:
        """A request with curl, as the README shows it: status and body."""
        header = self.home / "curl-header"
        token = (self.home / "admin-token").read_text().strip()
        header.write_text(f'header = "Authorization: Bearer {token}"\n')
        said = await self.command(
            *("curl", "-sS", "-K", str(header), "-w", "\n%{http_code}", *arguments),
            f"http://127.0.0.1:{self.api_port}{path}",
        )
        header.unlink()
        assert said.status == 0, said
        body, _, status = said.stdout.rpartition("\n")
        return int(status), json.loads(body)

    # --- looking on -----------------------------------------------------------------------------

    async def client(self) -> Client:
        """A client of its Temporal."""
        return await Client.connect(self.temporal_address, data_converter=HOSTLER_DATA_CONVERTER)

    async def workflow(self, workflow_id: str) -> WorkflowHandle[Any, Any]:
        return (await self.client()).get_workflow_handle(workflow_id)

    async def host(self, name: str) -> dict[str, Any]:
        """The inventory's row."""
        host: dict[str, Any] = (await self.request("GET", f"/v1/hosts/{name}")).json()
        return host

    async def maintenance(self, name: str) -> dict[str, Any]:
        """The view of an open maintenance; empty while a worker is missing to tell."""
        answer = await self.request("GET", f"/v1/hosts/{name}/maintenance")
        view: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
        return view

    async def until_phase(self, name: str, *phases: str) -> dict[str, Any]:
        """The view of the maintenance as soon as it is in one of `phases`."""
        return await self.until_view(name, lambda view: view.get("phase") in phases)

    async def until_view(
        self, name: str, wanted: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        """The view of the maintenance as soon as it is as wanted. pytest's time-out bounds it."""
        while not wanted(view := await self.maintenance(name)):
            await asyncio.sleep(_PAUSE_S)
        return view

    async def until_migrating(self, name: str, number: int) -> None:
        """Until that many VMs are on their way, each with some of its memory already over."""

        def under_way(view: dict[str, Any]) -> bool:
            running = [m for m in view.get("migrations", ()) if m["state"] == "migrating"]
            return len(running) == number and all(m["percent"] > 0 for m in running)

        await self.until_view(name, under_way)

    async def until_running(self, workflow_id: str, activity: str) -> None:
        """Until a worker is at that activity of the workflow."""
        handle = await self.workflow(workflow_id)
        started = PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
        while True:
            with suppress(RPCError):  # it has not begun yet
                description = (await handle.describe()).raw_description
                if any(
                    pending.activity_type.name == activity and pending.state == started
                    for pending in description.pending_activities
                ):
                    return
            await asyncio.sleep(0.05)

    async def events(self, subject: str) -> list[str]:
        """Messages of the audit trail, the oldest first."""
        answer = await self.request("GET", "/v1/events", params={"subject": subject})
        return [event["message"] for event in reversed(answer.json()["items"])]

    async def record(self, workflow_id: str, name: str) -> None:
        """Keep every run of a workflow for the replay tests, when that was asked for."""
        if not self._record_histories:
            return
        client = await self.client()
        await wait_until_listed(client, workflow_id)
        query = f"WorkflowId = '{workflow_id}'"
        runs = [run async for run in client.list_workflows(query)]
        for number, run in enumerate(sorted(runs, key=lambda run: run.start_time), start=1):
            handle = client.get_workflow_handle(workflow_id, run_id=run.run_id)
            history = await handle.fetch_history()
            path = _HISTORIES / f"{name}-{number}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(history.to_json() + "\n")


async def wait_until_listed(client: Client, workflow_id: str) -> None:
    """Visibility comes a moment after the fact."""
    while not [run async for run in client.list_workflows(f"WorkflowId = '{workflow_id}'")]:
        await asyncio.sleep(_PAUSE_S)


def problem(answer: httpx.Response) -> str:
    """The detail of a problem document."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    detail: str = answer.json()["detail"]
    return detail


def run_id(text: str) -> str:
    """What `temporal workflow start` has printed."""
    found = re.search(r"RunId\s+(\S+)", text)
    assert found, text
    return found.group(1)


START = ("workflow", "start", "--task-queue", DEFAULT_TASK_QUEUE, "--type", "HostMaintenance")
