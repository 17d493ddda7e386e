"""CertificateRenewal's order and bounds, with the activities and provisionings replaced and time
skipped."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.worker import Worker

from contracts.certificate_renewal import (
    CERTIFICATE_RENEWAL_SCHEDULE,
    CertificateRenewalInput,
    CertificateRenewalResult,
    ClusterRenewals,
    Lifetime,
    NoteRenewalInput,
    PlanRenewalsInput,
    RenewalPlan,
)
from contracts.certificates import CertificateProvisioningInput, CertificateProvisioningResult
from contracts.host_checks import AlignScheduleInput
from tests.samples import WHEN
from workers.interceptors import HostlerInterceptor
from workers.worker import activities_of
from workflows.certificate_renewal import CertificateRenewal
from workflows.failures import as_application_error

pytestmark = pytest.mark.asyncio(loop_scope="package")

Handle = WorkflowHandle[CertificateRenewal, CertificateRenewalResult]
Begin = Callable[..., Awaitable[Handle]]


@workflow.defn(name="CertificateProvisioning", sandboxed=False)
class Provisioning:
    """Stands in for it: what it does is up to the activity."""

    @workflow.run
    async def run(self, request: CertificateProvisioningInput) -> CertificateProvisioningResult:
        if request.host.startswith("stuck"):
            await workflow.wait_condition(lambda: False)
        try:
            result: CertificateProvisioningResult = await workflow.execute_activity_method(
                Fleet.provision, request, start_to_close_timeout=timedelta(minutes=1)
            )
        except ActivityError as error:
            raise as_application_error(error) from error
        return result


@dataclass
class Fleet:
    """`due`: hosts by cluster, of which `at_a_time` are renewed; `fails`: whose renewal does."""

    due: dict[str, tuple[str, ...]]
    at_a_time: int = 2
    patience_s: int = 60
    fails: frozenset[str] = frozenset()
    running: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)
    order: list[str] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)
    notes: dict[str, str] = field(default_factory=dict)
    aligned: list[str] = field(default_factory=list)

    @activity.defn(name="plan_renewals")
    async def plan_renewals(self, _: PlanRenewalsInput) -> RenewalPlan:
        return RenewalPlan(
            every_s=600,
            patience_s=self.patience_s,
            clusters=tuple(
                ClusterRenewals(
                    cluster=cluster,
                    at_a_time=self.at_a_time,
                    hosts=tuple(
                        Lifetime(
                            host=host,
                            serial="1",
                            not_before=WHEN,
                            not_after=WHEN + timedelta(days=30),
                        )
                        for host in hosts
                    ),
                )
                for cluster, hosts in self.due.items()
            ),
        )

    @activity.defn(name="align_schedule")
    async def align_schedule(self, request: AlignScheduleInput) -> bool:
        self.aligned.append(f"{request.schedule} {request.every_s}")
        return False

    @activity.defn(name="note_renewal")
    async def note_renewal(self, request: NoteRenewalInput) -> None:
        self.notes[request.host] = request.problem

    @activity.defn(name="provision")
    async def provision(
        self, request: CertificateProvisioningInput
    ) -> CertificateProvisioningResult:
        cluster = next(name for name, hosts in self.due.items() if request.host in hosts)
        self.order.append(request.host)
        self.reasons.add(request.reason)
        self.running[cluster] += 1
        self.most[cluster] = max(self.most[cluster], self.running[cluster])
        await asyncio.sleep(0.05)
        self.running[cluster] -= 1
        if request.host in self.fails:
            raise ApplicationError("No space left.", type="CommandFailed", non_retryable=True)
        return CertificateProvisioningResult(
            host=request.host, libvirt="a", qemu="b", not_after=WHEN
        )


@pytest_asyncio.fixture(loop_scope="package")
async def begin(client: Client) -> AsyncIterator[Begin]:
    """`await begin(fleet)` starts a round with a worker of its own."""
    workers: list[Worker] = []

    async def start(fleet: Fleet) -> Handle:
        queue = f"test-{uuid.uuid4()}"
        worker = Worker(
            client,
            task_queue=queue,
            workflows=[CertificateRenewal, Provisioning],
            activities=activities_of(fleet),
            interceptors=[HostlerInterceptor()],
        )
        await worker.__aenter__()
        workers.append(worker)
        return await client.start_workflow(
            CertificateRenewal.run,
            CertificateRenewalInput(),
            id=f"certificate-renewal-{uuid.uuid4()}",
            task_queue=queue,
        )

    yield start
    for worker in workers:
        await worker.__aexit__(None, None, None)


def named(number: int) -> tuple[str, ...]:
    """So many hosts that no other test has."""
    run = uuid.uuid4().hex[:8]
    return tuple(f"kvm-{run}-{one}" for one in range(number))


async def test_hosts_of_a_cluster_take_turns(begin: Begin) -> None:
    first, second = named(7), named(2)
    fleet = Fleet({"cluster-1": first, "cluster-2": second})
    result = await (await begin(fleet)).result()
    assert result == CertificateRenewalResult(renewed=tuple(sorted(first + second)), failed={})
    assert max(fleet.most.values()) <= fleet.at_a_time
    # Those that expire first come first, two of them side by side.
    order = [host for host in fleet.order if host in first]
    assert {*order[:2]} == {*first[:2]}
    assert {*order[-1:]} <= {*first[-2:]}
    assert fleet.notes == dict.fromkeys(first + second, "")
    assert fleet.reasons == {f"they expire at {WHEN + timedelta(days=30):%Y-%m-%d %H:%M} UTC"}
    assert fleet.aligned == [f"{CERTIFICATE_RENEWAL_SCHEDULE} 600"]


async def test_one_that_fails_holds_up_no_other(begin: Begin) -> None:
    hosts = named(3)
    fleet = Fleet({"cluster-1": hosts}, at_a_time=1, fails=frozenset(hosts[:1]))
    result = await (await begin(fleet)).result()
    failed = {hosts[0]: "No space left."}
    assert result == CertificateRenewalResult(renewed=tuple(sorted(hosts[1:])), failed=failed)
    assert fleet.notes == failed | dict.fromkeys(hosts[1:], "")


async def test_one_that_never_ends_keeps_its_place_for_so_long(
    begin: Begin, client: Client
) -> None:
    stuck = f"stuck-{uuid.uuid4().hex[:8]}"
    hosts = named(1)
    # A round does not skip time while it has a child.
    fleet = Fleet({"cluster-1": (stuck, *hosts)}, at_a_time=1, patience_s=1)
    result = await (await begin(fleet)).result()
    assert result.renewed == hosts
    assert result.failed == {stuck: f"provisioning/{stuck} is still under way after 1 s"}
    # It goes on.
    provisioning = client.get_workflow_handle(f"provisioning/{stuck}")
    assert (await provisioning.describe()).status is WorkflowExecutionStatus.RUNNING
    # Nor does the next round begin another one, or call it a failure.
    fleet.notes.clear()
    again = await (await begin(Fleet({"cluster-1": (stuck,)}))).result()
    assert (again.renewed, again.failed, fleet.notes) == ((), {}, {})
    await provisioning.terminate()


async def test_a_round_that_is_cancelled_ends_no_provisioning(begin: Begin, client: Client) -> None:
    stuck = f"stuck-{uuid.uuid4().hex[:8]}"
    handle = await begin(Fleet({"cluster-1": (stuck,)}))
    provisioning = client.get_workflow_handle(f"provisioning/{stuck}")
    while not await _is_there(provisioning):
        await asyncio.sleep(0.02)
    await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert (await handle.describe()).status is WorkflowExecutionStatus.CANCELED
    assert (await provisioning.describe()).status is WorkflowExecutionStatus.RUNNING
    await provisioning.terminate()


async def _is_there(handle: WorkflowHandle[Any, Any]) -> bool:
    try:
        await handle.describe()
    except Exception:
        return False
    return True
