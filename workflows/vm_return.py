"""VmReturn: what a maintenance has moved comes back to its host, as far as there is room.

A VM that can't come back stays where it is and is reported; it fails nothing.
"""

import asyncio
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.leases import LeaseActivities
    from activities.records import RecordActivities
    from activities.survey import SurveyActivities
    from activities.virtualization import VirtualizationActivities
    from contracts.evacuation import Move, Survey
    from contracts.hosts import Host
    from contracts.leases import Lease, LeaseRef, Owner
    from contracts.states import Phase
    from contracts.steps import (
        STATES_OF_FATES,
        AcquireLeaseInput,
        HostRef,
        MigrateVmInput,
        MovedVms,
        ReturnSurvey,
        ReturnSurveyInput,
    )
    from contracts.vm_return import VmReturnInput, VmReturnResult, VmReturnStatus
    from contracts.vms import MigrationState
    from workflows import policies
    from workflows.evacuation import plan_evacuation
    from workflows.failures import explain
    from workflows.maintenance_page import return_details
    from workflows.search_attributes import HOST_CLUSTER, HOST_NAME, HOST_ZONE, PHASE
    from workflows.vm_board import VmBoard


@workflow.defn(name="VmReturn")
class VmReturn:
    """One return of VMs to one host."""

    def __init__(self) -> None:
        self._host = ""
        self._phase = Phase.PLANNING
        self._message = "Looks where the VMs are"
        self._since = workflow.now()
        self._vms = VmBoard()
        self._lease: LeaseRef | None = None

    @workflow.run
    async def run(self, request: VmReturnInput) -> VmReturnResult:
        """Returns when each VM is back, or it is known why not."""
        self._host = request.host
        lease = await self._take_lease()
        try:
            await self._look()
            names = request.vms or await self._moved_from()
            survey: ReturnSurvey = await workflow.execute_activity_method(
                SurveyActivities.survey_return,
                ReturnSurveyInput(host=self._host, vms=names),
                summary=f"Where the VMs of {self._host} are",
                **policies.FIRST_LOOK,
            )
            self._note_missing(names, survey)
            self._enter(Phase.RETURNING, f"{len(names)} VMs come back to {self._host}")
            for one in survey.surveys:
                await self._bring_back_from(one, lease)
        finally:
            # A cancel must not leave the lease behind.
            await asyncio.shield(self._release(lease))
        self._enter(Phase.DONE, f"{len(self._came_back())} of {len(names)} VMs are back")
        return VmReturnResult(host=self._host, vms=self._vms.statuses)

    async def _take_lease(self) -> LeaseRef:
        info = workflow.info()
        lease: Lease = await workflow.execute_activity_method(
            LeaseActivities.acquire_lease,
            AcquireLeaseInput(
                host=self._host,
                owner=Owner(workflow_id=info.workflow_id, first_run_id=info.first_execution_run_id),
                purpose="VMs come back",
            ),
            summary=f"Lease of {self._host}",
            **policies.RECORD,
        )
        if lease.taken_over_from is not None:
            await workflow.sleep(
                policies.HEARTBEAT_TIMEOUT, summary="The predecessor's activities come to an end"
            )
        return LeaseRef(host=lease.host, scope=lease.scope, owner=lease.owner, epoch=lease.epoch)

    async def _look(self) -> None:
        host: Host = await workflow.execute_activity_method(
            RecordActivities.get_host, HostRef(host=self._host), **policies.RECORD
        )
        workflow.upsert_search_attributes(
            [
                HOST_NAME.value_set(host.name),
                HOST_CLUSTER.value_set(host.cluster),
                HOST_ZONE.value_set(host.zone),
                PHASE.value_set(self._phase),
            ]
        )

    async def _moved_from(self) -> tuple[str, ...]:
        moved: MovedVms = await workflow.execute_activity_method(
            RecordActivities.list_moved_vms, HostRef(host=self._host), **policies.RECORD
        )
        return moved.vms

    def _note_missing(self, names: tuple[str, ...], survey: ReturnSurvey) -> None:
        """VMs that run on no host that answered: here already, shut off, or out of sight."""
        found = {vm.name for one in survey.surveys for vm in one.vms}
        unseen = f"; these hosts did not answer: {', '.join(survey.unseen)}"
        for name in names:
            if name not in found:
                self._vms.note(
                    name,
                    "",
                    MigrationState.GONE,
                    error="runs on no other host of the cluster"
                    + (unseen if survey.unseen else ""),
                )

    async def _bring_back_from(self, survey: Survey, lease: LeaseRef) -> None:
        # What has local disks got here with them, and goes back with them.
        copied = frozenset(vm.name for vm in survey.vms if vm.local_disks)
        plan = plan_evacuation(survey, copy_storage=copied)
        for blocker in plan.blockers:
            why = "; ".join((blocker.message, *blocker.candidates.values()))
            self._vms.note(blocker.vm, "", MigrationState.STAYED, error=why)
        for move in plan.moves:
            self._vms.note(move.vm, move.uuid, MigrationState.WAITING)
        window = asyncio.Semaphore(survey.max_parallel)
        moves = [
            asyncio.create_task(self._bring_back(move, survey, lease, window, copied))
            for move in plan.moves
        ]
        try:
            await asyncio.gather(*moves)
        finally:
            # The lease is needed until the last of them has put right what it began.
            await asyncio.gather(*moves, return_exceptions=True)

    async def _bring_back(
        self,
        move: Move,
        survey: Survey,
        lease: LeaseRef,
        window: asyncio.Semaphore,
        copied: frozenset[str],
    ) -> None:
        async with window:
            self._note(move, MigrationState.MIGRATING, destination=self._host)
            try:
                result = await workflow.execute_activity_method(
                    VirtualizationActivities.migrate_vm,
                    MigrateVmInput(
                        lease=lease,
                        vm=move.vm,
                        uuid=move.uuid,
                        destination=self._host,
                        memory_mib=move.memory_mib,
                        vcpus=move.vcpus,
                        max_parallel=survey.max_parallel,
                        copy_storage=move.vm in copied,
                        source=survey.host,
                    ),
                    summary=f"{move.vm}: {survey.host} → {self._host}",
                    **policies.LIVE_MIGRATION,
                )
            except ActivityError as error:
                if is_cancelled_exception(error):
                    raise
                self._note(
                    move, MigrationState.STAYED, destination=survey.host, error=explain(error)
                )
            else:
                self._note(move, STATES_OF_FATES[result.fate], destination=result.host)

    async def _release(self, lease: LeaseRef) -> None:
        await workflow.execute_activity_method(
            LeaseActivities.release_lease, lease, **policies.RECORD
        )

    @workflow.query(name="status")
    def status(self) -> VmReturnStatus:
        """Where each VM stands."""
        return VmReturnStatus(
            host=self._host,
            phase=self._phase,
            message=self._message,
            since=self._since,
            vms=self._vms.statuses,
        )

    def _came_back(self) -> list[str]:
        return [
            status.vm
            for status in self._vms.statuses
            if status.state is MigrationState.MOVED and status.destination == self._host
        ]

    def _note(self, move: Move, state: MigrationState, **more: Any) -> None:
        self._vms.note(move.vm, move.uuid, state, **more)
        workflow.set_current_details(return_details(self.status()))

    def _enter(self, phase: Phase, message: str) -> None:
        self._phase, self._message = phase, message
        workflow.upsert_search_attributes([PHASE.value_set(phase)])
        workflow.set_current_details(return_details(self.status()))
