"""A maintenance of kvm-1 in a world in memory."""

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError

from contracts.maintenance import (
    HostMaintenanceInput,
    HostMaintenanceResult,
    LeaveInput,
    MaintenanceStatus,
    ResolveVmInput,
    VmAction,
)
from contracts.states import Phase
from tests.workflows.world import World
from workflows.host_maintenance import HostMaintenance


class Run:
    """One maintenance of kvm-1 in a world."""

    def __init__(self, client: Client, world: World, queue: str) -> None:
        self.client = client
        self.world = world
        self.queue = queue
        self.handle: WorkflowHandle[HostMaintenance, HostMaintenanceResult]

    async def start(self, host: str = "kvm-1", **asked: Any) -> "Run":
        started = await self.client.start_workflow(
            HostMaintenance.run,
            HostMaintenanceInput(host=host, **asked),
            id=f"maintenance/{host}-{uuid.uuid4()}",
            task_queue=self.queue,
        )
        # Without a run id: it continues as new when the host is ready.
        self.handle = self.client.get_workflow_handle_for(HostMaintenance.run, started.id)
        return self

    async def status(self) -> MaintenanceStatus:
        return await self.handle.query(HostMaintenance.status)

    async def until(self, wanted: Callable[[MaintenanceStatus], bool]) -> MaintenanceStatus:
        while True:
            status = await self.status()
            if wanted(status):
                return status
            await asyncio.sleep(0.05)

    async def until_phase(self, phase: Phase) -> MaintenanceStatus:
        return await self.until(lambda status: status.phase is phase)

    async def leave(self, **how: Any) -> None:
        await self.handle.execute_update("leave", LeaveInput(**how))

    async def resolve(self, vm: str, action: VmAction) -> None:
        await self.handle.execute_update("resolve_vm", ResolveVmInput(vm=vm, action=action))

    async def result(self) -> HostMaintenanceResult:
        return await self.handle.result()

    async def failure(self) -> ApplicationError:
        with pytest.raises(WorkflowFailureError) as caught:
            await self.handle.result()
        assert isinstance(caught.value.cause, ApplicationError)
        return caught.value.cause


Begin = Callable[..., Any]
