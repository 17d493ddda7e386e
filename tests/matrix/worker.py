"""`python -m tests.matrix.worker`: Hostler's worker, with failpoints."""

import asyncio
import os
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

from tests.matrix.failpoints import FOLDER_VARIABLE, FailpointInterceptor
from workers.logs import configure_logs
from workers.parts import first_end, running_worker, until_signalled
from workers.settings import Settings, load_settings
from workers.stores import open_inventory
from workers.telemetry import running_telemetry
from workers.temporal import connect
from workers.worker import build_worker
from workflows import policies

# Half of what Hostler has, or less: both are waited for after each kill.
_NOTICED_AFTER = timedelta(seconds=10)
_TAKEN_OVER_AFTER = timedelta(seconds=2)


def notice_soon() -> None:
    """That an attempt is dead."""
    policies.HEARTBEAT_TIMEOUT = _NOTICED_AFTER
    for policy in vars(policies).values():
        if isinstance(policy, dict) and "heartbeat_timeout" in policy:
            policy["heartbeat_timeout"] = _NOTICED_AFTER


async def run(settings: Settings) -> None:
    """As workers.processes.run_worker."""
    async with AsyncExitStack() as stack:
        telemetry = await stack.enter_async_context(running_telemetry())
        inventory = await stack.enter_async_context(open_inventory(settings))
        client = await connect(settings, telemetry)
        failpoints = FailpointInterceptor(Path(os.environ[FOLDER_VARIABLE]))
        bundle = build_worker(
            *(client, inventory, settings),
            interceptors=[failpoints],
            sticky_timeout=_TAKEN_OVER_AFTER,
        )
        stack.push_async_callback(bundle.close)
        part = await stack.enter_async_context(
            running_worker(bundle.worker, settings.shutdown_timeout_s)
        )
        print("Worker with failpoints.", flush=True)  # noqa: T201 - its sign of life
        await first_end([part])


def main() -> None:
    """Until SIGTERM."""
    notice_soon()
    settings = load_settings()
    configure_logs(settings.log_level, settings.log_format)
    asyncio.run(until_signalled(lambda: run(settings)))


if __name__ == "__main__":
    main()
