"""Hooks and reboots of hosts in a ClusterMaintenance: begun once, joined as often as it takes."""

import asyncio
import hashlib
import importlib.resources
import shlex
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from temporalio import activity

from activities.directory import HostDirectory
from contracts.cluster_maintenance import (
    MAX_OUTPUT_BYTES,
    BootId,
    Hook,
    HookOutcome,
    ReadBootIdInput,
    RebootHostInput,
    RunHookInput,
    RunHookResult,
)
from contracts.errors import Conflict, Failed, Unavailable
from contracts.leases import Owner
from contracts.states import ResourceState
from drivers.protocols import HostAccess, Job, JobState, RemoteShell, ServiceManager
from inventory import Inventory

T = TypeVar("T")

_LOOK_AGAIN_S = 1.0
_HOOKS = "/etc/hostler/hooks"
_NO_HOOK, _UNSAFE_HOOK = 4, 5
_FIND_HOOK = rf"""
[ -f "$1" ] && [ -x "$1" ] || exit {_NO_HOOK}
[ -z "$(find -L "$1" \( ! -user root -o -perm /022 \))" ] || exit {_UNSAFE_HOOK}
"""


class HostSilent(Failed):
    """The host has not answered for longer than it may."""


class UnsafeHook(Failed):
    """Others than root could change what would run as root."""


class RebootTimedOut(Failed):
    """The host is not back from its reboot. `details`: whether it `answers`."""


class HookActivities:
    """What is done on a host that is out of service, and right before."""

    def __init__(
        self,
        inventory: Inventory,
        directory: HostDirectory,
        shell: RemoteShell,
        services: ServiceManager,
    ) -> None:
        self._inventory = inventory
        self._directory = directory
        self._shell = shell
        self._services = services

    @activity.defn(name="run_hook")
    async def run_hook(self, request: RunHookInput) -> RunHookResult:
        """Run the stage's hook to its end, and keep what it printed; join it if it has begun.

        Without a hook in the request, the host's own is run, if it has one. A hook that fails is
        an outcome. Raises HostSilent, UnsafeHook, Conflict (not ready in its maintenance).
        """
        access = await self._directory.access(request.host)
        name = _job_name(request)
        state = await self._look(access, name, request.unreachable_timeout)
        if not state.started:
            command = await self._command(access, request)
            if command is None:
                return RunHookResult(outcome=None)
            await self._begin(access, request, name, command)
        state = await self._until_ended(access, request, name)
        return RunHookResult(outcome=await self._keep(access, request, name, state))

    @activity.defn(name="read_boot_id")
    async def read_boot_id(self, request: ReadBootIdInput) -> BootId:
        """Which boot the host is in. Raises HostSilent."""
        access = await self._directory.access(request.host)
        boot = await _patiently(
            lambda: self._services.boot(access), request.host, request.unreachable_timeout
        )
        return BootId(boot_id=boot.boot_id)

    @activity.defn(name="reboot_host")
    async def reboot_host(self, request: RebootHostInput) -> BootId:
        """Reboot the host, unless it is in another boot already, and wait until all of the new one
        has been started. Raises RebootTimedOut, Conflict (not ready in its maintenance)."""
        access = await self._directory.access(request.host)
        deadline = time.monotonic() + request.timeout
        asked = answers = False
        while True:
            try:
                answers = False
                boot = await self._services.boot(access)
                answers = True
                if boot.boot_id != request.boot_id and boot.complete:
                    return BootId(boot_id=boot.boot_id)
                if boot.boot_id != request.boot_id:
                    trouble = "it has booted, but not all of its services have started"
                elif asked:
                    trouble = "it is still in its old boot"
                else:
                    trouble = "it was not asked to yet"
                    await self._require_ready(request.host, request.maintenance)
                    await self._services.reboot(access, request.boot_id)
                    asked = True
                    # This connection ends with the boot, whenever that is noticed.
                    await self._shell.forget(request.host)
            except Unavailable as error:
                trouble = error.message
            if time.monotonic() > deadline:
                raise RebootTimedOut(
                    f"{request.host} is not back from its reboot after {request.timeout} s: "
                    f"{trouble}",
                    remedy="Look at its console. The setting host.reboot.timeout is the bound.",
                    details={"answers": answers},
                )
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _look(self, access: HostAccess, name: str, patience: float) -> JobState:
        return await _patiently(
            lambda: self._services.look_at_job(access, name), access.name, patience
        )

    async def _command(
        self, access: HostAccess, request: RunHookInput
    ) -> tuple[tuple[str, ...], str] | None:
        """What is to run, in words for people and as a script; None: nothing."""
        if request.hook is not None:
            return _script(request.hook)
        path = f"{_HOOKS}/{request.stage}"
        result = await _patiently(
            lambda: self._shell.run(access, ["sh", "-c", _FIND_HOOK, "sh", path]),
            access.name,
            request.unreachable_timeout,
        )
        if result.exit_status == _NO_HOOK:
            return None
        if result.exit_status == 0:
            return (path,), f"exec {path}"
        raise UnsafeHook(
            f"{path} on {access.name} does not belong to root alone"
            + (f": {result.stderr.strip()}" if result.stderr.strip() else "."),
            remedy=f"chown root {path} && chmod go-w {path}, then resume.",
        )

    async def _begin(
        self,
        access: HostAccess,
        request: RunHookInput,
        name: str,
        command: tuple[tuple[str, ...], str],
    ) -> None:
        if request.maintenance is not None:
            await self._require_ready(request.host, request.maintenance)
        words, script = command
        await self._inventory.hook_runs.start(
            request.operation, request.host, request.stage, request.attempt, words
        )
        job = Job(
            name=name,
            script=script,
            environment={
                "HOSTLER_HOST": request.host,
                "HOSTLER_CLUSTER": request.cluster,
                "HOSTLER_STAGE": request.stage,
                "HOSTLER_OPERATION": request.operation.rpartition("#")[0],
            },
            timeout=_timeout(request),
        )
        await _patiently(
            lambda: self._services.start_job(access, job), access.name, request.unreachable_timeout
        )

    async def _until_ended(self, access: HostAccess, request: RunHookInput, name: str) -> JobState:
        """It goes on while the host is cut off: as long as it may run, and a while more."""
        while True:
            state = await self._look(access, name, _timeout(request) + request.unreachable_timeout)
            if state.ended:
                return state
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _keep(
        self, access: HostAccess, request: RunHookInput, name: str, state: JobState
    ) -> HookOutcome:
        outcome = HookOutcome(
            stage=request.stage,
            attempt=request.attempt,
            exit_status=state.exit_status,
            problem=state.problem,
        )
        output = await _patiently(
            lambda: self._services.job_output(access, name, MAX_OUTPUT_BYTES),
            access.name,
            request.unreachable_timeout,
        )
        await self._inventory.hook_runs.finish(request.operation, request.host, outcome, output)
        return outcome

    async def _require_ready(self, name: str, maintenance: Owner) -> None:
        """Raises Conflict unless the host is out of service, empty, in just that maintenance."""
        host = await self._inventory.hosts.get(name)
        lease = await self._inventory.leases.find(name)
        ready = host.resource_state is ResourceState.MAINTENANCE
        if not ready or lease is None or lease.owner != maintenance:
            raise Conflict(
                f"{name} is {host.resource_state}, and not ready in {maintenance.workflow_id}: "
                "nothing was done to it.",
                remedy="Resume: it is drained again.",
            )


def _timeout(request: RunHookInput) -> int:
    own = request.hook.timeout_s if request.hook is not None else None
    return own or request.timeout


def _script(hook: Hook) -> tuple[tuple[str, ...], str]:
    if hook.command is not None:
        return hook.command, f"exec {shlex.join(hook.command)}"
    ready = str(hook.builtin)
    return (ready,), importlib.resources.files("drivers.hooks").joinpath(ready).read_text("utf-8")


def _job_name(request: RunHookInput) -> str:
    """One per attempt, whoever asks."""
    parts = (request.operation, request.host, request.stage, str(request.attempt))
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"{request.stage}-{request.attempt}-{digest[:16]}"


async def _patiently(call: Callable[[], Awaitable[T]], host: str, patience: float) -> T:
    """What `call` returns, asked again while the host does not answer. Raises HostSilent."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return await call()
        except Unavailable as error:
            if time.monotonic() > deadline:
                raise HostSilent(
                    f"{host} has not answered for {patience:g} s: {error.message}",
                    remedy="Bring it back, then resume.",
                ) from error
        await asyncio.sleep(_LOOK_AGAIN_S)
