"""A CA is replaced: at no moment do two hosts not trust each other, whatever dies or is away."""

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlmodel import col, delete, select
from temporalio.client import (
    Client,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowUpdateFailedError,
)
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.service import RPCError
from temporalio.worker import Worker

from activities.authorities import Directory
from activities.controller import ControllerCertificates
from activities.crl_delivery import CrlDeliveryActivities
from activities.directory import HostDirectory
from activities.holders import Holders
from activities.leases import LeaseActivities
from activities.provisioning import ProvisioningActivities
from activities.restarts import Restarts
from activities.rollover import RolloverActivities
from contracts.certificates import (
    AuthorityState,
    CertificateProvisioningInput,
    CertificateRole,
    certificates_in,
    qemu_authority,
)
from contracts.errors import Unavailable
from contracts.rollover import (
    AuthorityRolloverInput,
    AuthorityRolloverResult,
    AuthorityRolloverStatus,
    LeaveOutInput,
    PauseInput,
    RolloverStage,
)
from contracts.secrets import CA_KEY
from contracts.settings import CA_PROVIDER
from contracts.states import HostStatus, ResourceState
from drivers.authorities.profiles import new_request
from drivers.authorities.protocols import ExternalAccess
from drivers.authorities.providers import provider
from inventory import Inventory, rollovers
from inventory.models import HostRow, RolloverOmissionRow
from tests.authorities.certified_host import CertifiedFleet, CertifiedHost, signed_by_one_of
from tests.authorities.conftest import prepared_inventory
from tests.authorities.issuing import activities
from tests.authorities.samples import ca, key_pem
from tests.inventory.conftest import register
from tests.workflows.machine_site import Fault
from workers.interceptors import HostlerInterceptor
from workers.worker import activities_of
from workflows.authority_rollover import AuthorityRollover
from workflows.certificate_provisioning import CertificateProvisioning

pytestmark = pytest.mark.asyncio(loop_scope="package")

HOSTS = ("kvm-1", "kvm-2")
ID = "rollover/root"


class TrustingFleet(CertifiedFleet):
    """Checks after each step that all hosts which are not `apart` trust each other."""

    def __init__(self, *names: str) -> None:
        super().__init__(*names)
        self.apart: set[str] = set()

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        step = super().__getattr__(name)

        async def do(*words: Any, **more: Any) -> Any:
            try:
                return await step(*words, **more)
            finally:
                self.check()

        return do

    def check(self) -> None:
        certified = {
            name: host.sets[host.in_force]
            for name, host in self.hosts.items()
            if host.in_force is not None and name not in self.apart
        }
        for (name, one), (other, another) in itertools.permutations(certified.items(), 2):
            for part, authorities in (("libvirt", "ca"), ("qemu", "qemu-ca")):
                assert signed_by_one_of(one[part], another[authorities]), (
                    f"{other} distrusts {name}"
                )


class Site:
    """Hostler's side of it; `begin` starts an AuthorityRollover: of `provider`, whose certificates
    are those of `part`."""

    provider = "root"
    part = "libvirt"

    def __init__(self, client: Client, inventory: Inventory, fleet: TrustingFleet) -> None:
        self.client = client
        self.inventory = inventory
        self.fleet = fleet
        self.queue = f"test-{uuid.uuid4()}"
        self.handle: WorkflowHandle[Any, Any] = client.get_workflow_handle(ID)

    def worker(self, fault: Fault) -> Worker:
        inventory, directory = self.inventory, HostDirectory(self.inventory)
        certificates = activities(inventory)
        holders = Holders(inventory, self.client)
        leases, restarts = LeaseActivities(inventory, holders), Restarts(inventory, holders)
        own = ControllerCertificates(inventory, certificates, new_request)
        return Worker(
            self.client,
            task_queue=self.queue,
            workflows=[AuthorityRollover, CertificateProvisioning],
            activities=activities_of(
                certificates,
                leases,
                CrlDeliveryActivities(inventory, directory, self.fleet, leases),  # type: ignore[arg-type]
                ProvisioningActivities(inventory, directory, self.fleet, restarts),  # type: ignore[arg-type]
                RolloverActivities(
                    inventory, Directory(inventory, provider, ExternalAccess()), own
                ),
            ),
            interceptors=[HostlerInterceptor(), fault],
            max_heartbeat_throttle_interval=timedelta(milliseconds=200),
        )

    async def provision(self, *hosts: str) -> None:
        for host in hosts:
            await self.client.execute_workflow(
                CertificateProvisioning.run,
                CertificateProvisioningInput(host=host),
                id=f"provisioning/{host}",
                task_queue=self.queue,
            )
        self.fleet.steps.clear()

    async def begin(self, **asked: Any) -> WorkflowHandle[Any, AuthorityRolloverResult]:
        return await self.client.start_workflow(
            AuthorityRollover.run,
            AuthorityRolloverInput.model_validate(
                {"reason": "it is old", "provider": self.provider, **asked}
            ),
            id=ID,
            task_queue=self.queue,
        )

    async def refused(self, **asked: Any) -> str:
        with pytest.raises(WorkflowFailureError) as failure:
            await (await self.begin(**asked)).result()
        assert isinstance(failure.value.cause, ApplicationError)
        return failure.value.cause.message

    async def states(self) -> list[AuthorityState]:
        """Of all generations, the first to begin with."""
        found = await self.inventory.authorities.of(self.provider)
        return [one.state for one in reversed(found)]

    async def until(self, wanted: Callable[[AuthorityRolloverStatus], bool]) -> None:
        while not wanted(await self.handle.query("status", result_type=AuthorityRolloverStatus)):
            await asyncio.sleep(0.05)

    async def until_waiting_for(self, host: str) -> None:
        def waits(status: AuthorityRolloverStatus) -> bool:
            progress = status.progress
            if progress is None or progress.due_count:
                return False
            return [one.host for one in progress.waiting] == [host]

        await self.until(waits)

    async def be(self, host: str, status: HostStatus) -> None:
        await self.inventory.hosts.set_status(host, status, actor="test", reason="test")

    async def terminate_provisionings(self) -> None:
        """Those that run."""
        for host in HOSTS:
            with suppress(RPCError):
                await self.client.get_workflow_handle(f"provisioning/{host}").terminate()

    async def replace_qemus(self) -> None:
        """From now on, it is about the CA of the cluster's QEMUs."""
        self.provider = qemu_authority(await self.inventory.certificates.unit(HOSTS[0]))
        self.part = "qemu"

    def in_force(self, host: str) -> dict[str, str]:
        """The set that the host goes by."""
        machine: CertifiedHost = self.fleet.hosts[host]
        assert machine.in_force is not None
        return machine.sets[machine.in_force]

    def authorities(self, host: str) -> str:
        """That are trusted there."""
        return self.in_force(host)["ca" if self.part == "libvirt" else "qemu-ca"]

    def trusts(self, host: str) -> int:
        """How many CAs it does."""
        return len(certificates_in(self.authorities(host)))

    async def assert_rolled_over(self, generation: int = 2) -> None:
        """All is of the new one alone."""
        inventory = self.inventory
        assert (await self.states())[-1] is AuthorityState.CURRENT
        assert {*(await self.states())[:-1]} == {AuthorityState.WITHDRAWN}
        current = await inventory.authorities.get(self.provider)
        assert current.generation == generation
        name = f"{self.provider}/{generation}"
        for host in HOSTS:
            if host in self.fleet.apart:
                continue
            assert self.authorities(host) == "".join(current.chain)
            assert signed_by_one_of(self.in_force(host)[self.part], current.chain[0])
            trusted = await inventory.trust.of_host(host)
            assert [one for one in trusted if one.startswith(self.provider)] == [name]
            assert len(trusted) == len(("libvirt", "qemu"))
            numbers = await inventory.authorities.crl_numbers()
            assert {f"{self.provider}/1", name} <= {*numbers}


Open = Callable[..., Awaitable[Site]]


@pytest_asyncio.fixture(loop_scope="package")
async def open_site(client: Client, tmp_path: Path) -> AsyncIterator[Open]:
    """`await open_site(fault)`: with a worker, and hosts that have certificates."""
    async with AsyncExitStack() as stack:
        inventory = await stack.enter_async_context(prepared_inventory(tmp_path))
        site = Site(client, inventory, TrustingFleet(*HOSTS))

        async def open_site(fault: Fault | None = None) -> Site:
            fault = fault or Fault()
            stops_at, fault.stops_at = fault.stops_at, ""
            await stack.enter_async_context(site.worker(fault))
            await site.provision(*HOSTS)
            fault.stops_at = stops_at
            return site

        yield open_site
        with suppress(RPCError):
            await site.handle.terminate()
        await site.terminate_provisionings()


@pytest.mark.parametrize("of_qemus", [False, True])
@pytest.mark.parametrize("repeated", [False, True])
async def test_all_trust_both_before_the_new_one_issues(
    open_site: Open, repeated: bool, of_qemus: bool
) -> None:
    """Also with each step done twice, as after a kill."""
    site = await open_site(Fault(repeated=repeated))
    if of_qemus:
        await site.replace_qemus()
    result = await (await site.begin()).result()
    assert (result.progress.stage, result.progress.total) == (RolloverStage.NONE, 2)
    await site.assert_rolled_over()
    names = [name for _, name in site.fleet.steps]
    first_key = names.index("prepare")
    last_switch = max(at for at, name in enumerate(names) if name == "finish")
    trusted = [at for at, name in enumerate(names) if name == "update_trust"]
    assert len([at for at in trusted if at < first_key]) >= len(HOSTS)
    assert len([at for at in trusted if at > last_switch]) >= len(HOSTS)
    own = [
        one.generation
        for one in await site.inventory.certificates.list()
        if one.role is CertificateRole.CONTROLLER
    ]
    assert own == [1 if of_qemus else 2]
    first, second = reversed(await site.inventory.authorities.of(site.provider))
    assert second.subject != first.subject
    told_of = f"ca/{site.provider}"
    kinds = [event.kind for event in await site.inventory.events.list(subject=told_of)]
    told = ("ca.next", "ca.issuer_changed", "ca.leaving", "ca.withdrawn")
    assert [kind for kind in reversed(kinds) if kind in told] == [*told]


async def test_another_one_after_it(open_site: Open) -> None:
    site = await open_site()
    for generation in (2, 3):
        await (await site.begin()).result()
        await site.assert_rolled_over(generation)


async def test_a_host_that_is_away_is_waited_for(open_site: Open) -> None:
    site = await open_site()
    await site.be("kvm-2", HostStatus.DOWN)
    running = await site.begin()
    await site.until_waiting_for("kvm-2")
    assert await site.states() == [AuthorityState.CURRENT, AuthorityState.NEXT]
    assert site.fleet.having("prepare") == []
    assert (site.trusts("kvm-1"), site.trusts("kvm-2")) == (2, 1)
    status = await running.query("status", result_type=AuthorityRolloverStatus)
    assert "1 of 2; waits for 1" in status.message
    assert status.commands[0] == "hostler ca rollover leave-out kvm-2 --reason ..."
    await site.be("kvm-2", HostStatus.UP)
    await running.result()
    await site.assert_rolled_over()


async def test_one_that_goes_away_before_it_has_its_certificates(open_site: Open) -> None:
    fault = Fault(stops_at="begin_issuing")
    site = await open_site(fault)
    await site.begin()
    await fault.stopped.wait()
    await site.be("kvm-2", HostStatus.DISCONNECTED)
    await site.handle.terminate()
    running = await site.begin()
    await site.until_waiting_for("kvm-2")
    assert await site.states() == [AuthorityState.RETIRING, AuthorityState.CURRENT]
    assert (site.trusts("kvm-1"), site.trusts("kvm-2")) == (2, 2)
    assert {*site.fleet.having("prepare")} == {"kvm-1"}
    await site.be("kvm-2", HostStatus.UP)
    await running.result()
    await site.assert_rolled_over()


async def test_one_is_left_out_on_purpose_and_comes_back(open_site: Open) -> None:
    site = await open_site()
    await site.be("kvm-2", HostStatus.DOWN)
    running = await site.begin()
    await site.until_waiting_for("kvm-2")
    unknown = LeaveOutInput(host="kvm-9", reason="gone")
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await running.execute_update("leave_out", unknown)
    assert "kvm-9" in str(refused.value.cause)
    site.fleet.apart.add("kvm-2")
    await running.execute_update("leave_out", LeaveOutInput(host="kvm-2", reason="in repair"))
    result = await running.result()
    await site.assert_rolled_over()
    assert result.progress.left_out_count == 0  # nothing is under way any more
    told = await site.inventory.events.list(kind="ca.rollover_left_out")
    assert [event.subject for event in told] == ["host/kvm-2"]
    # Nobody trusts it: it is due at once when it is back.
    distrusted = {
        one.lifetime.host: one.distrusted
        for one in await site.inventory.expiring_certificates.hosts()
    }
    assert distrusted == {"kvm-1": False, "kvm-2": True}
    await site.be("kvm-2", HostStatus.UP)
    site.fleet.apart.clear()
    # What its own libvirtd goes by stays trusted there until it has others.
    anchors = await site.inventory.trust.wanted("kvm-2")
    assert anchors.libvirt.names == ("root/1", "root/2")
    site.fleet.apart.add("kvm-2")
    await site.provision("kvm-2")
    site.fleet.apart.clear()
    site.fleet.check()
    await site.assert_rolled_over()


async def test_one_that_comes_back_with_the_old_ca_after_it_was_left_out(open_site: Open) -> None:
    """Its provisioning has switched, and ends when no other host trusts that CA any more."""
    fault = Fault(stops_at="switch_certificates")
    site = await open_site(fault)
    provisioning = await site.client.start_workflow(
        CertificateProvisioning.run,
        CertificateProvisioningInput(host="kvm-2"),
        id="provisioning/kvm-2",
        task_queue=site.queue,
    )
    await fault.stopped.wait()
    site.fleet.apart.add("kvm-2")
    await (await site.begin(leave_out=("kvm-2",))).result()
    fault.goes_on.set()
    with pytest.raises(WorkflowFailureError) as failure:
        await provisioning.result()
    assert "no other host trusts it any more" in str(failure.value.cause)
    assert "finish" not in {name for host, name in site.fleet.steps if host == "kvm-2"}


@pytest.mark.parametrize("step", ["begin_issuing", "withdraw_authority"])
async def test_one_that_was_left_out_and_is_back_in_time(open_site: Open, step: str) -> None:
    fault = Fault(stops_at=step)
    site = await open_site(fault)
    await site.be("kvm-2", HostStatus.DOWN)
    site.fleet.apart.add("kvm-2")
    running = await site.begin(leave_out=("kvm-2",))
    await fault.stopped.wait()
    await site.be("kvm-2", HostStatus.UP)
    fault.goes_on.set()
    await running.result()
    site.fleet.apart.clear()
    site.fleet.check()
    await site.assert_rolled_over()


async def test_one_with_old_certificates_in_the_last_stage(open_site: Open) -> None:
    """Nobody has left it out: it gets others, and is looked at no more often than that takes."""
    fault = Fault(stops_at="withdraw_authority")
    site = await open_site(fault)
    await site.be("kvm-2", HostStatus.DOWN)
    site.fleet.apart.add("kvm-2")
    running = await site.begin(leave_out=("kvm-2",))
    await fault.stopped.wait()
    async with site.inventory.database.writing() as session:
        await session.exec(delete(RolloverOmissionRow))
    await site.be("kvm-2", HostStatus.UP)
    looks = fault.done["look_at_rollover"]
    fault.goes_on.set()
    await running.result()
    site.fleet.apart.clear()
    site.fleet.check()
    await site.assert_rolled_over()
    assert fault.done["look_at_rollover"] - looks <= 4


async def test_left_out_from_the_beginning(open_site: Open) -> None:
    site = await open_site()
    assert "There is no host 'kvm-9'" in await site.refused(leave_out=("kvm-9",))
    await register(site.inventory, 8)
    async with site.inventory.database.writing() as session:
        row = (await session.exec(select(HostRow).where(col(HostRow.name) == "kvm-8"))).one()
        row.resource_state = ResourceState.ERROR
        session.add(row)
    assert "There is no host 'kvm-8'" in await site.refused(leave_out=("kvm-8",))
    assert await site.states() == [AuthorityState.CURRENT]
    await site.be("kvm-2", HostStatus.DOWN)
    site.fleet.apart.add("kvm-2")
    await (await site.begin(leave_out=("kvm-2",))).result()
    await site.assert_rolled_over()
    assert site.trusts("kvm-2") == 1


async def test_who_is_busy_holds_up_nobody_else(
    open_site: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pages of one host."""
    monkeypatch.setattr(rollovers, "_MOST_DUE", 1)
    fault = Fault(stops_at="place_certificates")
    site = await open_site(fault)
    provisioning = await site.client.start_workflow(
        CertificateProvisioning.run,
        CertificateProvisioningInput(host="kvm-1"),
        id="provisioning/kvm-1",
        task_queue=site.queue,
    )
    await fault.stopped.wait()
    running = await site.begin(look_again_s=1)
    while site.trusts("kvm-2") == 1:
        await asyncio.sleep(0.05)
    fault.goes_on.set()
    await provisioning.result()
    await running.result()
    await site.assert_rolled_over()


async def test_another_provider_in_the_middle_has_it_stand_still(open_site: Open) -> None:
    fault = Fault()
    site = await open_site(fault)
    settings = site.inventory.settings
    await settings.set(CA_PROVIDER.name, "vault", actor="test")
    assert "names another provider, vault" in await site.refused(provider="root")
    assert await site.states() == [AuthorityState.CURRENT]
    await settings.set(CA_PROVIDER.name, "root", actor="test")
    await site.be("kvm-2", HostStatus.DOWN)
    running = await site.begin(look_again_s=1)
    await site.until_waiting_for("kvm-2")
    await settings.set(CA_PROVIDER.name, "vault", actor="test")
    await site.until(lambda status: "stands still" in status.message)
    await site.be("kvm-2", HostStatus.UP)
    looks = fault.done["look_at_rollover"]
    while fault.done["look_at_rollover"] < looks + 2:
        await asyncio.sleep(0.05)
    assert site.trusts("kvm-2") == 1
    assert await site.states() == [AuthorityState.CURRENT, AuthorityState.NEXT]
    await settings.set(CA_PROVIDER.name, "root", actor="test")
    await running.result()
    await site.assert_rolled_over()


async def test_paused_and_resumed(open_site: Open) -> None:
    fault = Fault(delays="begin_issuing")
    site = await open_site(fault)
    running = await site.begin()
    await fault.stopped.wait()
    await running.execute_update("pause", PauseInput())
    with pytest.raises(WorkflowUpdateFailedError):
        await running.execute_update("pause", PauseInput())
    await site.until(
        lambda status: (
            status.progress is not None and status.progress.stage is RolloverStage.CERTIFICATES
        )
    )
    status = await running.query("status", result_type=AuthorityRolloverStatus)
    assert (status.paused, status.commands) == (True, ("hostler ca rollover resume",))
    looks = fault.done["look_at_rollover"]
    await asyncio.sleep(0.5)
    assert (fault.done["look_at_rollover"], site.fleet.having("prepare")) == (looks, [])
    await running.execute_update("resume", PauseInput())
    with pytest.raises(WorkflowUpdateFailedError):
        await running.execute_update("resume", PauseInput())
    await running.result()
    await site.assert_rolled_over()


@pytest.mark.some_a_day(
    "step",
    [
        "prepare_next_authority",
        "publish_crl",
        "deliver_crls",
        "begin_issuing",
        "renew_own_certificate",
        "switch_certificates",
        "finish_certificates",
        "withdraw_authority",
        "end_rollover",
    ],
    number=4,
)
async def test_another_run_goes_on_where_a_terminated_one_has_ended(
    open_site: Open, step: str
) -> None:
    fault = Fault(stops_at=step)
    site = await open_site(fault)
    first = await site.begin()
    await fault.stopped.wait()
    await first.terminate()
    await site.terminate_provisionings()
    if step == "end_rollover":
        await site.assert_rolled_over()
        return
    await (await site.begin()).result()
    await site.assert_rolled_over()


async def test_it_continues_as_new_with_what_was_said(open_site: Open) -> None:
    site = await open_site()
    await site.be("kvm-2", HostStatus.DOWN)
    first = await site.begin(rounds=1)
    await site.until_waiting_for("kvm-2")
    runs = {first.result_run_id}
    while len(runs) < 3:
        runs.add((await site.handle.describe()).run_id)
        await asyncio.sleep(0.05)
    await site.be("kvm-2", HostStatus.UP)
    await site.handle.result()
    await site.assert_rolled_over()


async def test_a_cancel_drops_a_ca_that_does_not_issue_yet(open_site: Open) -> None:
    site = await open_site()
    await site.be("kvm-2", HostStatus.DOWN)
    running = await site.begin()
    await site.until_waiting_for("kvm-2")
    await running.cancel()
    with pytest.raises(WorkflowFailureError) as failure:
        await running.result()
    assert isinstance(failure.value.cause, CancelledError)
    assert await site.states() == [AuthorityState.CURRENT, AuthorityState.WITHDRAWN]
    assert (site.trusts("kvm-1"), site.trusts("kvm-2")) == (1, 1)
    # The next one is another one.
    await site.be("kvm-2", HostStatus.UP)
    await (await site.begin()).result()
    await site.assert_rolled_over(3)


@pytest.mark.parametrize("step", ["find_rollover", "prepare_next_authority"])
async def test_a_cancel_at_its_beginning_is_none_of_its_ends(open_site: Open, step: str) -> None:
    fault = Fault(delays=step)
    site = await open_site(fault)
    running = await site.begin()
    await fault.stopped.wait()
    await running.cancel()
    with pytest.raises(WorkflowFailureError) as failure:
        await running.result()
    assert isinstance(failure.value.cause, CancelledError)
    assert AuthorityState.NEXT not in await site.states()
    assert (await site.inventory.authorities.get("root")).generation == 1
    assert (site.trusts("kvm-1"), site.trusts("kvm-2")) == (1, 1)


async def test_a_cancel_while_the_ca_does_not_answer(
    open_site: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be away for days."""
    site, asked = await open_site(), asyncio.Event()

    async def does_not_answer(*_: object) -> None:
        asked.set()
        raise Unavailable("The CA does not answer.")

    with monkeypatch.context() as away:
        away.setattr(ControllerCertificates, "current", does_not_answer)
        running = await site.begin()
        await asked.wait()
        await running.cancel()
        with pytest.raises(WorkflowFailureError) as failure:
            await running.result()
    assert isinstance(failure.value.cause, CancelledError)
    assert await site.states() == [AuthorityState.RETIRING, AuthorityState.CURRENT]
    await (await site.begin()).result()
    await site.assert_rolled_over()


async def test_a_dry_run_that_is_cancelled_takes_nothing_back(
    open_site: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, asked = await open_site(), asyncio.Event()
    await site.be("kvm-2", HostStatus.DOWN)
    running = await site.begin()
    await site.until_waiting_for("kvm-2")
    await running.terminate()

    async def does_not_answer(*_: object) -> None:
        asked.set()
        raise Unavailable("The CA does not answer.")

    monkeypatch.setattr(RolloverActivities, "_progress", does_not_answer)
    running = await site.begin(dry_run=True)
    await asked.wait()
    await running.cancel()
    with pytest.raises(WorkflowFailureError) as failure:
        await running.result()
    assert isinstance(failure.value.cause, CancelledError)
    assert await site.states() == [AuthorityState.CURRENT, AuthorityState.NEXT]


async def test_a_cancel_after_that_leaves_both_in_force(open_site: Open) -> None:
    fault = Fault(delays="renew_own_certificate")
    site = await open_site(fault)
    running = await site.begin()
    await fault.stopped.wait()
    await running.cancel()
    with pytest.raises(WorkflowFailureError) as failure:
        await running.result()
    assert isinstance(failure.value.cause, CancelledError)
    assert await site.states() == [AuthorityState.RETIRING, AuthorityState.CURRENT]
    assert (site.trusts("kvm-1"), site.trusts("kvm-2")) == (2, 2)
    await (await site.begin()).result()
    await site.assert_rolled_over()


async def test_one_that_takes_no_certificates_is_named_and_keeps_the_old_ones(
    open_site: Open,
) -> None:
    site = await open_site()
    machine = site.fleet.hosts["kvm-2"]
    machine.fails_at, before = "place", machine.in_force
    running = await site.begin()
    await site.until_waiting_for("kvm-2")
    assert (machine.in_force, site.trusts("kvm-2")) == (before, 2)
    status = await running.query("status", result_type=AuthorityRolloverStatus)
    assert status.progress is not None
    assert "No space left" in status.progress.waiting[0].reason
    machine.fails_at = None
    # It is tried again at once when it was away.
    await site.be("kvm-2", HostStatus.DOWN)
    await site.be("kvm-2", HostStatus.UP)
    await running.result()
    await site.assert_rolled_over()


async def test_one_whose_libvirtd_does_not_take_the_cas(open_site: Open) -> None:
    site = await open_site()
    site.fleet.hosts["kvm-2"].fails_at = "trust"
    running = await site.begin()
    await site.until_waiting_for("kvm-2")
    assert await site.states() == [AuthorityState.CURRENT, AuthorityState.NEXT]
    site.fleet.hosts["kvm-2"].fails_at = None
    await site.be("kvm-2", HostStatus.DOWN)
    await site.be("kvm-2", HostStatus.UP)
    await running.result()
    await site.assert_rolled_over()


async def test_an_operators_own_is_the_next_one(open_site: Open) -> None:
    site = await open_site()
    top = ca("top")
    middle = ca("middle", top)
    secrets = site.inventory.secrets

    async def asked(chain: str, key: str) -> dict[str, str]:
        return {"chain": chain, "key_secret": await secrets.store(CA_KEY, key, actor="test")}

    theirs = await asked(middle.pem + top.pem, key_pem(middle.key))
    await (await site.begin(**theirs)).result()
    await site.assert_rolled_over()
    assert (await site.inventory.authorities.get("root")).chain == (middle.pem, top.pem)
    with pytest.raises(Exception, match=theirs["key_secret"]):
        await secrets.reveal(theirs["key_secret"])
    again = await asked(middle.pem + top.pem, key_pem(middle.key))
    assert "CN=middle is in use now" in await site.refused(**again)
    namesake = ca("middle", top)
    said = await site.refused(**await asked(namesake.pem + top.pem, key_pem(namesake.key)))
    assert "CN=middle is, or was, in use" in said
    wrong = await asked(ca("other").pem, key_pem(middle.key))
    assert "not that of the chain's first certificate" in await site.refused(**wrong)


async def test_a_dry_run_changes_nothing(open_site: Open) -> None:
    site = await open_site()
    await site.be("kvm-2", HostStatus.DOWN)
    result = await (await site.begin(dry_run=True)).result()
    assert (result.dry_run, result.progress.total) == (True, 2)
    assert await site.states() == [AuthorityState.CURRENT]
    assert site.fleet.steps == []


async def test_without_a_ca_there_is_nothing_to_replace(open_site: Open) -> None:
    site = await open_site()
    assert "'vault' has no certificate authority yet" in await site.refused(provider="vault")
    assert "nowhere" in await site.refused(provider="nowhere")
