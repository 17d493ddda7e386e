"""install_packages: one job, joined by whoever comes."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from activities.directory import HostDirectory
from activities.packages import PackageActivities, PackagesNotInstalled
from contracts.errors import LeaseLost
from contracts.leases import LeaseRef, LeaseScope, Owner
from drivers.protocols import Boot, HostAccess, Job, JobState
from inventory import Inventory, SecretBox
from tests.activities.conftest import OWNER, ref, run
from tests.databases import sqlite_database

HOST = "kvm-9"


class Jobs:
    """ServiceManager. A job goes through `states`; the last one stays."""

    def __init__(self, *states: JobState, output: str = "") -> None:
        self.states = list(states)
        self.output = output
        self.started: list[Job] = []

    async def start_job(self, access: HostAccess, job: Job) -> None:
        if job.name not in [known.name for known in self.started]:
            self.started.append(job)

    async def look_at_job(self, access: HostAccess, name: str) -> JobState:
        if not self.started:
            return JobState(started=False)
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    async def job_output(self, access: HostAccess, name: str, most: int) -> str:
        return self.output[-most:]

    async def boot(self, access: HostAccess) -> Boot:
        raise NotImplementedError

    async def reboot(self, access: HostAccess, boot_id: str) -> None:
        raise NotImplementedError


@pytest.fixture
async def inventory(tmp_path: Path) -> AsyncIterator[Inventory]:
    """HOST is being added."""
    database = sqlite_database(tmp_path)
    inventory = Inventory(database, SecretBox(SecretBox.new_key()))
    await inventory.topology.create_zone("zone-1", actor="test")
    await inventory.topology.create_pod("pod-1", "zone-1", actor="test")
    await inventory.topology.create_cluster("cluster-1", "pod-1", actor="test")
    await inventory.hosts.register(
        name=HOST,
        cluster="cluster-1",
        address="198.18.0.19",
        ssh_port=22,
        user="root",
        secret_id=await inventory.secrets.store("password", "pw", actor="test"),
        host_key_line="ssh-ed25519 BBBB",
        host_key_sha256="SHA256:" + "B" * 43,
        capacity_memory_mib=None,
        capacity_cpus=None,
        reserved_memory_mib=0,
        operation="addition",
        actor="test",
    )
    yield inventory
    await database.close()


@pytest.fixture
async def lease(inventory: Inventory) -> LeaseRef:
    return ref(await inventory.leases.acquire(HOST, LeaseScope.PLACEMENT, OWNER, "addition"))


async def install(inventory: Inventory, lease: LeaseRef, jobs: Jobs) -> None:
    activities = PackageActivities(inventory, HostDirectory(inventory), jobs)
    await run(activities.install_packages, lease)


async def test_a_second_call_joins_the_job(inventory: Inventory, lease: LeaseRef) -> None:
    jobs = Jobs(JobState(started=True), JobState(started=True, exit_status=0))
    for _ in range(2):
        await install(inventory, lease, jobs)
    (job,) = jobs.started
    assert "libvirt-daemon-system" in job.script


async def test_a_failure_is_told_without_what_a_url_may_hide(
    inventory: Inventory, lease: LeaseRef
) -> None:
    ended = JobState(started=True, exit_status=100)
    jobs = Jobs(ended, output="E: Failed to fetch http://me:canary-pw@mirror/x 404\n")
    with pytest.raises(PackagesNotInstalled) as failed:
        await install(inventory, lease, jobs)
    assert "exit status 100: E: Failed to fetch http://...@mirror/x 404" in failed.value.message
    assert "canary-pw" not in str(failed.value)


async def test_a_job_that_was_cut_off(inventory: Inventory, lease: LeaseRef) -> None:
    jobs = Jobs(JobState(started=True, problem="it was interrupted by a reboot"))
    with pytest.raises(PackagesNotInstalled, match="interrupted by a reboot"):
        await install(inventory, lease, jobs)


async def test_another_addition_tries_again(inventory: Inventory, lease: LeaseRef) -> None:
    jobs = Jobs(JobState(started=True, exit_status=0))
    await install(inventory, lease, jobs)
    other = Owner(workflow_id="addition/other", first_run_id="run-2")
    taken = await inventory.leases.acquire(
        HOST, LeaseScope.PLACEMENT, other, "addition", takeover_from=OWNER
    )
    fresh = Jobs(JobState(started=True, exit_status=0))
    await install(inventory, ref(taken), fresh)
    assert fresh.started[0].name != jobs.started[0].name


async def test_without_the_lease_no_job_starts(inventory: Inventory, lease: LeaseRef) -> None:
    other = Owner(workflow_id="addition/other", first_run_id="run-2")
    await inventory.leases.acquire(
        HOST, LeaseScope.PLACEMENT, other, "addition", takeover_from=OWNER
    )
    jobs = Jobs(JobState(started=True, exit_status=0))
    with pytest.raises(LeaseLost):
        await install(inventory, lease, jobs)
    assert jobs.started == []
