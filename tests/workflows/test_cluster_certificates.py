"""A cluster is secured: certificates first, then TLS only, host by host, whatever dies."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.worker import Worker

from activities.controller import ControllerCertificates
from activities.directory import HostDirectory
from activities.holders import Holders
from activities.leases import LeaseActivities
from activities.provisioning import ProvisioningActivities
from activities.restarts import Restarts
from activities.securing import SecuringActivities
from contracts.certificates import (
    CertificateProvisioningInput,
    CertificateRole,
    ClusterCertificatesInput,
    ClusterCertificatesResult,
    ClusterCertificatesStatus,
    SecuredHost,
    TlsWork,
)
from contracts.errors import Conflict
from contracts.settings import CA_CLUSTER_PARALLEL, CA_ROOT_AUTH_STRICTNESS
from contracts.states import ResourceState, TlsState
from drivers.authorities.profiles import new_request
from inventory import Inventory
from tests.authorities.certified_host import CertifiedFleet
from tests.authorities.conftest import prepared_inventory
from tests.authorities.issuing import activities
from tests.workflows.machine_site import Fault
from workers.interceptors import HostlerInterceptor
from workers.worker import activities_of
from workflows.certificate_provisioning import CertificateProvisioning
from workflows.cluster_certificates import ClusterCertificates

pytestmark = pytest.mark.asyncio(loop_scope="package")

CLUSTER = "cluster-1"
HOSTS = ("kvm-1", "kvm-2")


class Site:
    """Hostler's side of it; `begin` starts a ClusterCertificates."""

    def __init__(self, client: Client, inventory: Inventory, fleet: CertifiedFleet) -> None:
        self.client = client
        self.inventory = inventory
        self.fleet = fleet
        self.queue = f"test-{uuid.uuid4()}"

    def worker(self, fault: Fault, page: int) -> Worker:
        inventory, directory = self.inventory, HostDirectory(self.inventory)
        certificates = activities(inventory)
        holders = Holders(inventory, self.client)
        restarts = Restarts(inventory, holders, within=1.0)
        return Worker(
            self.client,
            task_queue=self.queue,
            workflows=[CertificateProvisioning, ClusterCertificates],
            activities=activities_of(
                certificates,
                LeaseActivities(inventory, holders),
                ProvisioningActivities(inventory, directory, self.fleet, restarts),  # type: ignore[arg-type]
                SecuringActivities(
                    inventory,
                    directory,
                    self.fleet,  # type: ignore[arg-type]
                    ControllerCertificates(inventory, certificates, new_request),
                    restarts,
                    page=page,
                ),
            ),
            interceptors=[HostlerInterceptor(), fault],
            max_heartbeat_throttle_interval=timedelta(milliseconds=200),
        )

    async def begin(self) -> WorkflowHandle[Any, ClusterCertificatesResult]:
        return await self.client.start_workflow(
            ClusterCertificates.run,
            ClusterCertificatesInput(cluster=CLUSTER, reason="as all", requester="token:anna"),
            id=f"cluster-certificates/{CLUSTER}",
            task_queue=self.queue,
        )

    async def refused(self) -> str:
        with pytest.raises(WorkflowFailureError) as failure:
            await (await self.begin()).result()
        assert isinstance(failure.value.cause, ApplicationError)
        return failure.value.cause.message

    async def tls(self) -> dict[str, TlsState]:
        return {host: (await self.inventory.hosts.get(host)).tls for host in HOSTS}

    async def rows(self) -> dict[str, SecuredHost]:
        handle = self.client.get_workflow_handle(f"cluster-certificates/{CLUSTER}")
        status = await handle.query("status", result_type=ClusterCertificatesStatus)
        return {one.host: one for one in status.hosts}


Open = Callable[..., Awaitable[Site]]


@pytest_asyncio.fixture(loop_scope="package")
async def open_site(client: Client, tmp_path: Path) -> AsyncIterator[Open]:
    """`await open_site(fault)`: with a worker; `page`: of hosts, for one run."""
    async with AsyncExitStack() as stack:
        inventory = await stack.enter_async_context(prepared_inventory(tmp_path))
        site = Site(client, inventory, CertifiedFleet(*HOSTS))

        async def open_site(fault: Fault | None = None, page: int = 100) -> Site:
            await stack.enter_async_context(site.worker(fault or Fault(), page))
            return site

        yield open_site


@pytest.mark.parametrize("repeated", [False, True])
async def test_certificates_come_first_on_all(open_site: Open, repeated: bool) -> None:
    """Also with each step done twice, as after a kill."""
    site = await open_site(Fault(repeated=repeated))
    await site.inventory.settings.set(CA_CLUSTER_PARALLEL.name, 1, actor="test")
    result = await (await site.begin()).result()
    assert result.hosts == HOSTS
    assert await site.tls() == dict.fromkeys(HOSTS, TlsState.SECURED)
    assert all(host.by_tls_only for host in site.fleet.hosts.values())
    names = [name for _, name in site.fleet.steps]
    last_finish = max(at for at, name in enumerate(names) if name == "finish")
    assert names.index("secure") > last_finish
    assert {one.state for one in (await site.rows()).values()} == {TlsWork.SECURED}
    # One for Hostler itself, with its key in the inventory.
    own = [
        one
        for one in await site.inventory.certificates.list()
        if one.role is CertificateRole.CONTROLLER
    ]
    assert len(own) == 1
    told = await site.inventory.events.list(subject="host/kvm-1", kind="host.tls_changed")
    assert [event.message.partition(":")[0] for event in reversed(told)] == [
        "none -> ready",
        "ready -> secured",
    ]
    # What is done already is not done again.
    before = list(site.fleet.steps)
    await (await site.begin()).result()
    assert site.fleet.steps == before


async def test_one_without_certificates_keeps_all_from_being_secured(open_site: Open) -> None:
    site = await open_site()
    site.fleet.hosts["kvm-2"].fails_at = "place"
    said = await site.refused()
    assert "1 of 2 hosts of cluster-1 are without certificates: kvm-2 (" in said
    assert "No space left" in said
    assert await site.tls() == {"kvm-1": TlsState.READY, "kvm-2": TlsState.NONE}
    assert site.fleet.having("secure") == []
    site.fleet.hosts["kvm-2"].fails_at = None
    site.fleet.steps.clear()
    await (await site.begin()).result()
    assert site.fleet.having("prepare") == ["kvm-2"]
    assert await site.tls() == dict.fromkeys(HOSTS, TlsState.SECURED)


async def test_one_that_does_not_know_hostler_is_not_secured(open_site: Open) -> None:
    site = await open_site()
    site.fleet.hosts["kvm-1"].knows_hostler = False
    said = await site.refused()
    assert "1 of 2 hosts of cluster-1 are not secured: kvm-1 (libvirtd on kvm-1 does not" in said
    assert await site.tls() == {"kvm-1": TlsState.READY, "kvm-2": TlsState.SECURED}
    assert not site.fleet.hosts["kvm-1"].by_tls_only
    site.fleet.hosts["kvm-1"].knows_hostler = True
    await (await site.begin()).result()
    assert site.fleet.having("secure").count("kvm-2") == 1


async def runs(site: Site, handle: WorkflowHandle[Any, Any]) -> int:
    """Of the chain that it is."""
    count, run = 1, handle.first_execution_run_id
    while run is not None:
        history = await site.client.get_workflow_handle(handle.id, run_id=run).fetch_history()
        last = history.events[-1]
        run = last.workflow_execution_continued_as_new_event_attributes.new_execution_run_id or None
        count += run is not None
    return count


async def test_it_continues_as_new_after_a_page_of_hosts(open_site: Open) -> None:
    site = await open_site(page=1)
    running = await site.begin()
    result = await running.result()
    assert result.hosts == HOSTS
    assert await site.tls() == dict.fromkeys(HOSTS, TlsState.SECURED)
    for step in ("prepare", "secure"):
        assert sorted(site.fleet.having(step)) == list(HOSTS)
    assert await runs(site, running) >= 4


async def test_what_has_failed_is_known_after_that_and_not_tried_again(open_site: Open) -> None:
    site = await open_site(page=1)
    site.fleet.hosts["kvm-1"].fails_at = "place"
    said = await site.refused()
    assert "1 of 2 hosts of cluster-1 are without certificates: kvm-1 (" in said
    assert "No space left" in said
    assert sorted(site.fleet.having("prepare")) == list(HOSTS)
    site.fleet.hosts["kvm-1"].fails_at = None
    site.fleet.hosts["kvm-1"].knows_hostler = False
    said = await site.refused()
    assert "1 of 2 hosts of cluster-1 are not secured: kvm-1 (libvirtd on kvm-1 does not" in said
    assert await site.tls() == {"kvm-1": TlsState.READY, "kvm-2": TlsState.SECURED}
    assert {row.host: row.state for row in (await site.rows()).values()} == {
        "kvm-1": TlsWork.FAILED,
        "kvm-2": TlsWork.SECURED,
    }


async def test_another_one_goes_on_where_a_terminated_one_has_ended(open_site: Open) -> None:
    """And takes its lease over."""
    fault = Fault(stops_at="secure_host")
    site = await open_site(fault)
    first = await site.begin()
    await fault.stopped.wait()
    await first.terminate()
    await (await site.begin()).result()
    assert await site.tls() == dict.fromkeys(HOSTS, TlsState.SECURED)
    for host in HOSTS:
        assert site.fleet.having("prepare").count(host) == 1


async def test_a_cancel_lets_no_other_host_begin(open_site: Open) -> None:
    fault = Fault(delays="place_certificates")
    site = await open_site(fault)
    await site.inventory.settings.set(CA_CLUSTER_PARALLEL.name, 1, actor="test")
    running = await site.begin()
    await fault.stopped.wait()
    await running.cancel()
    with pytest.raises(WorkflowFailureError) as failure:
        await running.result()
    assert isinstance(failure.value.cause, CancelledError)
    assert await site.tls() == {"kvm-1": TlsState.READY, "kvm-2": TlsState.NONE}


async def test_an_operation_on_a_host_is_waited_for_not_for_ever(
    open_site: Open, client: Client
) -> None:
    site = await open_site()
    other = await client.start_workflow(
        CertificateProvisioning.run,
        CertificateProvisioningInput(host="kvm-1"),
        id="provisioning/kvm-1",
        task_queue="nobody-serves-this-one",
    )
    said = await site.refused()
    assert "kvm-1 (provisioning/kvm-1 runs already, for longer than 600 s.)" in said
    await other.terminate()
    await (await site.begin()).result()
    assert await site.tls() == dict.fromkeys(HOSTS, TlsState.SECURED)


async def test_only_secured_hosts_get_into_service_once_that_is_asked_for(open_site: Open) -> None:
    site = await open_site()
    settings, hosts = site.inventory.settings, site.inventory.hosts
    with pytest.raises(Conflict, match="2 hosts in service are not secured: kvm-1, kvm-2"):
        await settings.set(CA_ROOT_AUTH_STRICTNESS.name, True, actor="test")

    async def change(host: str, target: ResourceState) -> None:
        await hosts.change_state(
            host,
            expected=frozenset({ResourceState.ENABLED, ResourceState.DISABLED}),
            target=target,
            operation="test",
            step=str(uuid.uuid4()),
            actor="test",
            reason="test",
        )

    for host in HOSTS:
        await change(host, ResourceState.DISABLED)
    await settings.set(CA_ROOT_AUTH_STRICTNESS.name, True, actor="test")
    with pytest.raises(Conflict, match="kvm-1 is not secured"):
        await change("kvm-1", ResourceState.ENABLED)
    await asyncio.wait_for((await site.begin()).result(), 60)
    await change("kvm-1", ResourceState.ENABLED)
    await settings.set(CA_ROOT_AUTH_STRICTNESS.name, False, actor="test")
