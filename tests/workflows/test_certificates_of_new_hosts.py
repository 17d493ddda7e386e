"""A host that is added, or re-installed, where certificates are in use: it gets some before VMs
come to it. All is real but libvirt and the host's side of certificates.
"""

import asyncio

import pytest
from sqlmodel import select
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError, CancelledError

from contracts.addition import HostAdditionResult, HostAdditionStatus
from contracts.certificates import Certificate
from contracts.errors import NotFound
from contracts.leases import LeaseRef, LeaseScope, Owner
from contracts.reinstallation import Question
from contracts.settings import CA_ROOT_AUTH_STRICTNESS
from contracts.states import Phase, ResourceState, TlsState
from inventory.models import CertificateRow
from tests.authorities.certified_host import CertifiedHost
from tests.inventory.conftest import enabled
from tests.workflows import test_reinstallation_steps as reinstallation
from tests.workflows.machine_site import HOST, Fault, Site, tree
from workflows.host_reinstallation import HostReinstallation

pytestmark = pytest.mark.asyncio(loop_scope="package")

STEPS = (
    *("await_lease", "prepare_certificates", "issue_certificate", "place_certificates"),
    *("switch_certificates", "finish_certificates", "secure_host"),
)
SECURED, READY, NONE = TlsState.SECURED, TlsState.READY, TlsState.NONE


async def set_tls(site: Site, host: str, *states: TlsState) -> None:
    owner = Owner(workflow_id="test", first_run_id="test")
    lease = await site.inventory.leases.acquire(host, LeaseScope.TRUST, owner, "test")
    held = LeaseRef(host=host, scope=lease.scope, owner=owner, epoch=lease.epoch)
    for tls in states:
        await site.inventory.hosts.set_tls(
            host, tls, reason="test", operation="test", actor="test", lease=held
        )
    await site.inventory.leases.release(held)


async def neighbours(site: Site, *states: TlsState) -> None:
    for number, tls in enumerate(states, start=1):
        host = (await enabled(site.inventory, number)).name
        await set_tls(site, host, tls)


async def certificates(site: Site) -> tuple[list[Certificate], list[Certificate]]:
    """Those of the host that are valid, and those that were revoked."""
    all_of_it = await site.inventory.certificates.list(host=HOST)
    return (
        [one for one in all_of_it if one.revoked_at is None],
        [one for one in all_of_it if one.revoked_at is not None],
    )


async def assert_not_there(site: Site, before: dict[str, str]) -> None:
    assert tree(site.machine) == before
    with pytest.raises(NotFound):
        await site.inventory.hosts.get(HOST)
    assert site.certified.in_force is None
    assert site.certified.sets == {}
    for scope in (LeaseScope.PLACEMENT, LeaseScope.TRUST):
        assert await site.inventory.leases.find(HOST, scope) is None
    assert "own_key" not in await site.secrets()
    valid: list[Certificate] = []
    for _ in range(100):  # revoked by an operation of its own
        valid, _ = await certificates(site)
        if not valid:
            break
        await asyncio.sleep(0.1)
    assert valid == []


async def assert_added(site: Site, result: HostAdditionResult, tls: TlsState) -> None:
    assert (result.resource_state, result.tls) == (ResourceState.ENABLED, tls)
    host = await site.inventory.hosts.get(HOST)
    assert (host.resource_state, host.tls) == (ResourceState.ENABLED, tls)
    assert site.certified.by_tls_only is (tls is SECURED)
    assert (site.certified.in_force is not None) is tls.can
    for scope in (LeaseScope.PLACEMENT, LeaseScope.TRUST):
        assert await site.inventory.leases.find(HOST, scope) is None


@pytest.mark.parametrize(
    ("others", "tls"),
    [
        ((), NONE),
        ((NONE, NONE), NONE),
        ((NONE, READY), READY),
        ((READY, SECURED), READY),
        ((SECURED, SECURED), SECURED),
    ],
)
async def test_it_gets_what_the_others_have(
    site: Site, others: tuple[TlsState, ...], tls: TlsState
) -> None:
    await neighbours(site, *others)
    fault = Fault()
    async with site.worker(fault):
        result = await (await site.begin()).result()
    await assert_added(site, result, tls)
    if tls is NONE:
        assert not {*STEPS} & {*fault.done}
        assert site.certified.steps == []
    else:
        # VMs come only after that.
        told = [
            event.kind
            for event in reversed(await site.inventory.events.list(subject=f"host/{HOST}"))
            if event.kind == "host.tls_changed" or event.to_state == "Enabled"
        ]
        assert told[-1] == "host.state"
        assert len(told) == (3 if tls is SECURED else 2)


async def test_where_only_secured_hosts_get_into_service_the_first_one_is_secured(
    site: Site,
) -> None:
    await site.inventory.settings.set(CA_ROOT_AUTH_STRICTNESS.name, True, actor="test")
    async with site.worker(Fault()):
        result = await (await site.begin()).result()
    await assert_added(site, result, SECURED)


async def test_a_dry_run_tells_of_it_and_does_nothing(site: Site) -> None:
    await neighbours(site, SECURED)
    before = tree(site.machine)
    fault = Fault()
    async with site.worker(fault):
        handle = await site.begin(dry_run=True)
        result: HostAdditionResult = await handle.result()
        status: HostAdditionStatus = await handle.query("status", result_type=HostAdditionStatus)
    assert result.tls is SECURED
    assert "gets certificates, and is secured" in status.message
    assert not {*STEPS} & {*fault.done}
    assert tree(site.machine) == before


async def test_each_step_is_done_twice_and_has_one_effect(site: Site) -> None:
    await neighbours(site, SECURED)
    fault = Fault(repeated=True)
    async with site.worker(fault):
        result = await (await site.begin()).result()
    await assert_added(site, result, SECURED)
    assert all(fault.done[step] >= 2 for step in STEPS), fault.done
    valid, revoked = await certificates(site)
    assert (len(valid), revoked) == (2, [])


async def test_its_certificates_tell_who_holds_the_lease(site: Site) -> None:
    """By that a rollover of the CA knows that they may be in use soon."""
    await neighbours(site, SECURED)
    fault = Fault(stops_at="place_certificates")
    async with site.worker(fault):
        running = await site.begin()
        await fault.stopped.wait()
        holder = await site.inventory.leases.find(HOST, LeaseScope.TRUST)
        async with site.inventory.database.reading() as session:
            requests = [
                row.request
                for row in await session.exec(select(CertificateRow))
                if row.host == HOST
            ]
        fault.goes_on.set()
        await running.result()
    assert holder is not None
    assert len(requests) == 2
    assert all(holder.owner.first_run_id in request for request in requests)


@pytest.mark.parametrize("step", [*STEPS[1:], "change_host_state"])
async def test_what_fails_leaves_nothing_behind(site: Site, step: str) -> None:
    """Also after all certificates are there."""
    await neighbours(site, SECURED)
    before = tree(site.machine)
    async with site.worker(Fault(fails=step)):
        with pytest.raises(WorkflowFailureError) as failed:
            await (await site.begin()).result()
        cause = failed.value.cause
        assert isinstance(cause, ApplicationError)
        assert cause.type == "Refused"
        if step in STEPS[:-1]:
            assert cause.message.startswith(f"{HOST} got no certificates: refused")
        await assert_not_there(site, before)


@pytest.mark.parametrize("step", ["place_certificates", "secure_host"])
async def test_a_cancel_takes_it_back(site: Site, step: str) -> None:
    await neighbours(site, SECURED)
    before = tree(site.machine)
    fault = Fault(delays=step)
    async with site.worker(fault):
        running = await site.begin()
        await fault.stopped.wait()
        await running.cancel()
        with pytest.raises(WorkflowFailureError) as failed:
            await running.result()
        assert isinstance(failed.value.cause, CancelledError)
        await assert_not_there(site, before)


@pytest.mark.some_a_day("step", STEPS, number=3)
async def test_another_addition_goes_on_from_one_that_was_terminated(site: Site, step: str) -> None:
    await neighbours(site, SECURED)
    fault = Fault(stops_at=step)
    async with site.worker(fault):
        terminated = await site.begin()
        await fault.stopped.wait()
        await terminated.terminate()
        if step == "finish_certificates":
            fault.goes_on.set()  # nothing cancels that, so the next one waits for its end
        result = await (await site.begin()).result()
    await assert_added(site, result, SECURED)
    valid, _ = await certificates(site)
    installed = [one for one in valid if one.installed_at is not None]
    assert len(installed) == 2


# --- a re-installation ------------------------------------------------------------------------


async def take_out(site: Site, *before: TlsState) -> CertifiedHost:
    """The old installation, in maintenance, after what it had."""
    await neighbours(site, before[-1] if before else NONE)
    await reinstallation.take_out(site)
    await set_tls(site, HOST, *before)
    return site.certified


async def assert_back(site: Site, tls: TlsState) -> None:
    """In service again, without a fence, by then with what it had."""
    host = await site.inventory.hosts.get(HOST)
    assert (host.resource_state, host.fence) == (ResourceState.ENABLED, None)
    assert (host.tls, host.tls_again) == (tls, None)
    assert site.certified.by_tls_only is (tls is SECURED)
    assert (site.certified.in_force is not None) is tls.can
    assert reinstallation.FENCE not in tree(site.machine)


@pytest.mark.parametrize(
    ("before", "tls"), [((), NONE), ((READY,), READY), ((READY, SECURED), SECURED)]
)
async def test_a_new_installation_gets_what_the_former_one_had(
    site: Site, before: tuple[TlsState, ...], tls: TlsState
) -> None:
    await take_out(site, *before)
    fault = Fault(repeated=True)
    async with site.worker(fault):
        await reinstallation.finish(site, await reinstallation.begin(site))
    await assert_back(site, tls)
    assert bool({*STEPS[1:]} & {*fault.done}) is tls.can
    for scope in (LeaseScope.PLACEMENT, LeaseScope.TRUST):
        assert await site.inventory.leases.find(HOST, scope) is None


async def test_nor_is_it_forgotten_when_the_former_one_got_it_after_the_survey(site: Site) -> None:
    await take_out(site)
    fault = Fault(stops_at="read_environment")
    async with site.worker(fault):
        handle = await reinstallation.begin(site)
        await fault.stopped.wait()
        await set_tls(site, HOST, READY)
        fault.goes_on.set()
        await reinstallation.finish(site, handle)
    await assert_back(site, READY)


async def test_certificates_of_the_former_installation_are_revoked(site: Site) -> None:
    await neighbours(site, SECURED)
    async with site.worker(Fault()):
        await (await site.begin()).result()
        former = {one.serial for one in (await certificates(site))[0]}
        for state in (ResourceState.PREPARE_FOR_MAINTENANCE, ResourceState.MAINTENANCE):
            await site.inventory.hosts.change_state(
                HOST,
                expected=frozenset(ResourceState),
                target=state,
                operation="test",
                step=state,
                actor="test",
                reason="test",
            )
        site.machine.file(f"/{reinstallation.FENCE}", "maintenance/kvm-9\n")
        handle = await reinstallation.begin(site)
        status = await reinstallation.until(handle, Phase.REINSTALLING)
        told = [effect.message for effect in status.effects]
        assert "certificates of the old installation are revoked" in told
        assert "it gets certificates again, and takes and gives VMs by TLS only" in told
        # While it is away it is no reason not to secure others.
        host = await site.inventory.hosts.get(HOST)
        assert host.tls_again is SECURED
        site.certified.sets, site.certified.in_force = {}, None
        site.certified.by_tls_only = False
        await reinstallation.finish(site, handle)
        while {one.serial for one in (await certificates(site))[1]} != former:
            await asyncio.sleep(0.1)
    valid, _ = await certificates(site)
    assert len(valid) == 2
    assert (await site.inventory.hosts.get(HOST)).tls is SECURED


async def test_one_that_can_not_be_certified_is_asked_about_and_tried_again(site: Site) -> None:
    machine = await take_out(site, READY, SECURED)
    machine.fails_at = "place"
    async with site.worker(Fault()):
        handle = await reinstallation.begin(site)
        async with reinstallation.operator(site, handle):
            while True:
                status = await handle.query(HostReinstallation.status)
                if status.question is Question.FINDINGS and "certificates" in status.message:
                    break
                await asyncio.sleep(0.05)
            assert f"{HOST} got no certificates" in status.message
            assert "No space left" in status.message
            host = await site.inventory.hosts.get(HOST)
            assert (host.resource_state, host.tls) == (ResourceState.MAINTENANCE, NONE)
            machine.fails_at = None
            await handle.result()
    await assert_back(site, SECURED)


@pytest.mark.some_a_day("step", ["pin_host_key", *STEPS[1:], "return_host"], number=3)
async def test_another_reinstallation_goes_on_where_one_was_terminated(
    site: Site, step: str
) -> None:
    await take_out(site, READY, SECURED)
    fault = Fault(stops_at=step)
    async with site.worker(fault):
        terminated = await reinstallation.begin(site)
        async with reinstallation.operator(site, terminated):
            await fault.stopped.wait()
            await terminated.terminate()
        if step == "finish_certificates":
            fault.goes_on.set()
        if step != "return_host":
            await reinstallation.finish(site, await reinstallation.begin(site))
    await assert_back(site, SECURED)
