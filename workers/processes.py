"""The processes: the embedded default, a worker, an API."""

import gc
from collections.abc import Callable
from contextlib import AsyncExitStack

from temporalio.client import Client

from activities.bmcs import BmcDirectory
from api.app import create_app
from drivers.power.registry import PowerDrivers
from inventory import Inventory
from workers.api_tls import api_tls, following
from workers.embedded_temporal import connect_when_ready, embedded_temporal
from workers.home import listen, locked_home, require_free
from workers.limits import allow_open_files
from workers.master_keys import master_key_place
from workers.parts import Part, first_end, running_api, running_worker, until_signalled
from workers.schedules import ensure_schedules
from workers.settings import Settings
from workers.stores import ensure_admin_token, ensure_master_key, open_inventory, upgrade_database
from workers.telemetry import Telemetry, running_telemetry
from workers.temporal import connect, ensure_search_attributes
from workers.worker import build_worker

Say = Callable[[str], None]


async def run_worker(settings: Settings, say: Say) -> None:
    """A worker on its own, until SIGTERM. Raises HostlerError."""

    async def work() -> None:
        async with AsyncExitStack() as stack:
            telemetry = await stack.enter_async_context(running_telemetry())
            inventory = await stack.enter_async_context(open_inventory(settings))
            client = await connect(settings, telemetry)
            await ensure_search_attributes(client)
            worker = await _start_worker(stack, settings, client, inventory)
            _keep_what_is_there()
            say(f"Worker on queue {settings.task_queue} of {settings.temporal_address}.")
            await first_end([worker])

    await until_signalled(work)


async def run_api(settings: Settings, say: Say) -> None:
    """An API on its own, until SIGTERM. Raises HostlerError."""

    async def work() -> None:
        async with AsyncExitStack() as stack:
            telemetry = await stack.enter_async_context(running_telemetry())
            inventory = await stack.enter_async_context(open_inventory(settings))
            client = await connect(settings, telemetry)
            await ensure_search_attributes(client)
            api = await _start_api(stack, settings, client, inventory, telemetry)
            _keep_what_is_there()
            say(f"API at {settings.api_url}.")
            await first_end(api)

    await until_signalled(work)


async def run_up(settings: Settings, say: Say) -> None:
    """Temporal, inventory, worker and API in one, until SIGTERM. Raises HostlerError."""

    async def work() -> None:
        # Left in the reverse order: the worker first, then the API, then Temporal.
        async with AsyncExitStack() as stack:
            stack.enter_context(locked_home(settings.home))
            _require_free_ports(settings)
            telemetry = await stack.enter_async_context(running_telemetry())
            server = await stack.enter_async_context(embedded_temporal(settings))
            await ensure_master_key(settings, say)
            await upgrade_database(settings)
            inventory = await stack.enter_async_context(open_inventory(settings))
            await ensure_admin_token(settings, inventory, say)
            client = await connect_when_ready(settings, telemetry, server)
            await ensure_search_attributes(client)
            api = await _start_api(stack, settings, client, inventory, telemetry)
            worker = await _start_worker(stack, settings, client, inventory)
            _keep_what_is_there()
            say(_addresses(settings))
            await first_end([server, worker, *api])

    await until_signalled(work)


def _keep_what_is_there() -> None:
    """Modules, models and routes stay for ever: a full garbage collection that went through them
    again and again held up every activity, query and request for 0.2 s at a time."""
    gc.collect()
    gc.freeze()


async def _start_worker(
    stack: AsyncExitStack, settings: Settings, client: Client, inventory: Inventory
) -> Part:
    allow_open_files(await inventory.hosts.count())
    await ensure_schedules(client, inventory, settings.task_queue)
    bundle = build_worker(client, inventory, settings)
    stack.push_async_callback(bundle.close)
    return await stack.enter_async_context(
        running_worker(bundle.worker, settings.shutdown_timeout_s)
    )


async def _start_api(
    stack: AsyncExitStack,
    settings: Settings,
    client: Client,
    inventory: Inventory,
    telemetry: Telemetry,
) -> list[Part]:
    tls = await api_tls(settings, inventory)
    listener = stack.enter_context(
        listen(settings.api_host, settings.api_port, "the API", "HOSTLER_API_PORT")
    )
    drivers = PowerDrivers()
    stack.push_async_callback(drivers.close)
    bmcs = BmcDirectory(inventory, drivers)
    app = create_app(client, inventory, bmcs, task_queue=settings.task_queue)
    telemetry.instrument(app)
    context = tls.context if tls is not None else None
    parts = [await stack.enter_async_context(running_api(app, listener, context))]
    if tls is not None:
        parts.append(await stack.enter_async_context(following(tls)))
    return parts


def _require_free_ports(settings: Settings) -> None:
    """All three before anything is started, so that a wrong one leaves nothing behind."""
    host, _, port = settings.temporal_address.rpartition(":")
    require_free(host, int(port), "Temporal", "HOSTLER_TEMPORAL_ADDRESS")
    require_free(host, settings.temporal_ui_port, "Temporal's UI", "HOSTLER_TEMPORAL_UI_PORT")
    require_free(settings.api_host, settings.api_port, "the API", "HOSTLER_API_PORT")


def _addresses(settings: Settings) -> str:
    return "\n".join(
        (
            "Hostler is ready.",
            f"  API          {settings.api_url} (OpenAPI at {settings.api_url}/openapi.json)",
            f"  Temporal     {settings.temporal_address}",
            f"  Temporal UI  {settings.temporal_ui_url}",
            f"  Master key   {master_key_place(settings)}",
            "               Back it up, apart from the inventory: who loses it loses every stored "
            "credential.",
            f"  Admin token  {settings.admin_token_path}",
        )
    )
