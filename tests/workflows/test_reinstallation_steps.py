"""HostReinstallation with all that is real but libvirt: activities, inventory, SSH, scripts, and
a machine that gets new host keys, another password and an empty disk.

A worker that is killed after a step's effect, and before Temporal knows of it, leaves the step to
be done again: here that happens to each step. A workflow that is terminated at a step is followed
by another re-installation of the same host.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from temporalio.client import (
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
)
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.service import RPCError

from activities.directory import HostDirectory, TrustWithdrawn
from contracts.leases import LeaseRef, LeaseScope, Owner
from contracts.reinstallation import (
    AnswerReinstallationInput,
    HostReinstallationInput,
    HostReinstallationResult,
    HostReinstallationStatus,
    Question,
    ReinstallationOutcome,
)
from contracts.states import HostStatus, Phase, ResourceState
from drivers.errors import HostKeyChanged
from drivers.fence import HookFence
from drivers.own_key import AuthorizedKeys
from tests.machine import PASSWORD
from tests.samples import FACTS
from tests.workflows.machine_site import HOST, OTHERS, Fault, Site, tree
from workflows.host_reinstallation import HostReinstallation

pytestmark = pytest.mark.asyncio(loop_scope="package")

NEW_PASSWORD = "canary-password-of-the-new-installation"
HOOK = "etc/libvirt/hooks/qemu.d/hostler"
FENCE = "etc/hostler/fence"
MAINTENANCE = Owner(workflow_id="maintenance/kvm-9", first_run_id="run-1")
BEFORE = (
    *("survey_removal", "hand_over_maintenance", "acquire_lease", "read_environment"),
    *("withdraw_trust", "take_away_key", "settle_credential"),
)
AFTER = (
    *("await_host_key", "preflight_host", "pin_host_key", "record_event", "install_fence"),
    *("stage_own_key", "install_own_key", "promote_own_key", "tell_hosts", "check_host"),
    "take_down_fence",
)
BACK = ("return_host", "release_lease")
Handle = WorkflowHandle[HostReinstallation, HostReinstallationResult]


async def take_out(site: Site) -> None:
    """The machine is in the inventory, with the fence and a key of Hostler's own, `Maintenance`,
    and no operation is open on it."""
    inventory, access = site.inventory, site.machine.access(HOST)
    shown = await site.shell.scan_host_key(access.address, access.port)
    await inventory.hosts.register(
        name=HOST,
        cluster="cluster-1",
        address=access.address,
        ssh_port=access.port,
        user="root",
        secret_id=await inventory.secrets.store("password", PASSWORD, actor="test"),
        host_key_line=shown.line,
        host_key_sha256=shown.sha256,
        capacity_memory_mib=None,
        capacity_cpus=None,
        reserved_memory_mib=0,
        operation="addition",
        actor="test",
    )
    await inventory.hosts.set_status(HOST, HostStatus.UP, actor="test", reason="added")
    await inventory.hosts.set_facts(HOST, FACTS)
    lease = await inventory.leases.acquire(HOST, LeaseScope.PLACEMENT, MAINTENANCE, "maintenance")
    held = LeaseRef(host=HOST, owner=MAINTENANCE, epoch=lease.epoch)
    keys, fence = AuthorizedKeys(site.shell), HookFence(site.shell)
    key = keys.create()
    secret = await inventory.secrets.store("own_key", key, actor="test")
    await inventory.own_keys.stage(HOST, secret, lease=held)
    await keys.install(access, key, held.epoch)
    await inventory.own_keys.promote(HOST, operation="addition", lease=held)
    await fence.install(access, held.epoch)
    await fence.put_up(access, MAINTENANCE.workflow_id, held.epoch)
    await inventory.hosts.want_fence(HOST, MAINTENANCE.workflow_id, held.epoch)
    for state in (
        ResourceState.ENABLED,
        ResourceState.PREPARE_FOR_MAINTENANCE,
        ResourceState.MAINTENANCE,
    ):
        await inventory.hosts.change_state(
            HOST,
            expected=frozenset(ResourceState),
            target=state,
            operation="test",
            step=state,
            actor="test",
            reason="test",
        )
    await inventory.leases.release(held)


async def begin(site: Site, **asked: object) -> Handle:
    return await site.client.start_workflow(
        HostReinstallation.run,
        HostReinstallationInput.model_validate({"host": HOST, **asked}),
        id=f"reinstallation/{HOST}-{uuid.uuid4()}",
        task_queue=site.queue,
    )


async def rebuild(site: Site) -> str:
    """The machine is another installation now; the fingerprint that it shows."""
    await site.machine.stop()
    site.machine.rebuild(NEW_PASSWORD)
    await site.machine.start()
    access = site.machine.access(HOST)
    return (await site.shell.scan_host_key(access.address, access.port)).sha256


async def answer(site: Site, handle: Handle, status: HostReinstallationStatus) -> None:
    """As an operator would, who has read what it asks."""
    said = AnswerReinstallationInput(host_key_sha256=status.host_key_sha256)
    if status.question is Question.FINDINGS:
        secret = await site.inventory.secrets.store("password", NEW_PASSWORD, actor="test")
        said = AnswerReinstallationInput(secret=secret)
    await handle.execute_update("answer", said)


@asynccontextmanager
async def operator(site: Site, handle: Handle) -> AsyncIterator[None]:
    """Somebody re-installs the machine when it is waited for, and answers what is asked."""

    async def work() -> None:
        rebuilt = site.machine.password == NEW_PASSWORD
        while True:
            # It may be terminated at any moment, or ask something else by now.
            with suppress(RPCError, WorkflowQueryRejectedError, WorkflowUpdateFailedError):
                status = await handle.query(HostReinstallation.status)
                if status.phase is Phase.REINSTALLING and not rebuilt:
                    assert FENCE in tree(site.machine)
                    await rebuild(site)
                    rebuilt = True
                elif status.question is not None:
                    await answer(site, handle, status)
            await asyncio.sleep(0.05)

    task = asyncio.create_task(work())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def finish(site: Site, handle: Handle) -> HostReinstallationResult:
    async with operator(site, handle):
        return await handle.result()


async def until(handle: Handle, phase: Phase) -> HostReinstallationStatus:
    while (status := await handle.query(HostReinstallation.status)).phase is not phase:
        await asyncio.sleep(0.05)
    return status


async def assert_back(site: Site) -> None:
    """In service, with the new key, the new password and one own key; nothing half-made."""
    access = site.machine.access(HOST)
    shown = await site.shell.scan_host_key(access.address, access.port)
    (host,) = await site.inventory.hosts.list()
    assert (host.name, host.resource_state, host.status) == (
        HOST,
        ResourceState.ENABLED,
        HostStatus.UP,
    )
    assert (host.host_key_sha256, host.being_reinstalled, host.fence) == (shown.sha256, False, None)
    assert host.facts is not None
    assert host.facts.uuid == "of-the-machine"
    assert await site.secrets() == ["own_key", "password"]
    known = await HostDirectory(site.inventory).access_by_password(HOST)
    assert known is not None
    assert known.password == NEW_PASSWORD
    (own,) = site.machine.keys.read_text().splitlines()
    assert own.endswith(f" hostler:{HOST}")
    await site.shell.forget(HOST)
    before = len(site.machine.logins)
    reached = await HostDirectory(site.inventory).access(HOST)
    assert (await site.shell.run(reached, ["true"])).exit_status == 0
    assert site.machine.logins[before:] == ["publickey"]
    there = tree(site.machine)
    assert HOOK in there
    assert FENCE not in there
    assert len(await site.messages("host.trust_withdrawn")) == 1
    assert len(await site.messages("host.trusted")) == 1
    states = await site.messages("host.state")
    assert states[-1] == "Maintenance -> Enabled: re-installed"
    assert len([state for state in states if "re-installed" in state]) == 1


async def test_each_step_is_done_twice_and_has_one_effect(site: Site) -> None:
    await take_out(site)
    fault = Fault(repeated=True)
    async with site.worker(fault):
        result = await finish(site, await begin(site, reason="disk broken"))
    assert result.outcome is ReinstallationOutcome.REINSTALLED
    assert result.resource_state is ResourceState.ENABLED
    await assert_back(site)
    assert await site.inventory.leases.find(HOST) is None
    steps = {*BEFORE, *AFTER, *BACK} - {"hand_over_maintenance"}
    assert steps <= set(fault.done)
    assert all(fault.done[step] >= 2 for step in steps), fault.done
    assert len(await site.messages("reinstallation.key_taken")) >= 1


@pytest.mark.some_a_day("step", [*BEFORE, *AFTER, *BACK], number=6)
async def test_another_one_goes_on_where_one_was_terminated(site: Site, step: str) -> None:
    await take_out(site)
    if step == "hand_over_maintenance":
        # The maintenance has ended, and its lease is still there.
        await site.inventory.leases.acquire(HOST, LeaseScope.PLACEMENT, MAINTENANCE, "maintenance")
    fault = Fault(stops_at=step)
    async with site.worker(fault):
        terminated = await begin(site)
        async with operator(site, terminated):
            await fault.stopped.wait()
            await terminated.terminate()
        if step not in BACK:
            await finish(site, await begin(site))
    await assert_back(site)


async def test_the_old_installation_is_trusted_no_more(site: Site) -> None:
    await take_out(site)
    former = site.machine.access(HOST)
    async with site.worker(Fault()):
        handle = await begin(site)
        status = await until(handle, Phase.REINSTALLING)
        assert status.final
        assert status.since is not None
        assert any("answer-reinstallation" in command for command in status.commands)
        # It still answers: fenced, without Hostler's key, and nobody logs in there.
        assert site.machine.keys.read_text() == OTHERS
        assert FENCE in tree(site.machine)
        logins = len(site.machine.logins)
        with pytest.raises(TrustWithdrawn, match="is being re-installed"):
            await HostDirectory(site.inventory).access(HOST)
        assert await site.secrets() == ["password"]
        await asyncio.sleep(0.5)
        assert (await handle.query(HostReinstallation.status)).phase is Phase.REINSTALLING
        assert len(site.machine.logins) == logins
        await finish(site, handle)
    await assert_back(site)
    with pytest.raises(HostKeyChanged):
        await site.shell.run(former, ["true"])


async def test_a_fingerprint_and_a_password_given_in_advance_ask_nothing(site: Site) -> None:
    await take_out(site)
    secret = await site.inventory.secrets.store("password", NEW_PASSWORD, actor="test")
    async with site.worker(Fault()):
        handle = await begin(site, secret=secret)
        await until(handle, Phase.REINSTALLING)
        await site.machine.stop()
        site.machine.rebuild(NEW_PASSWORD)
        # Known from its console before it shows it.
        fingerprint = site.machine.fingerprint
        await handle.execute_update(
            "answer", AnswerReinstallationInput(host_key_sha256=fingerprint)
        )
        await site.machine.start()
        result = await handle.result()
    assert result.host_key_sha256 == fingerprint
    await assert_back(site)


async def test_another_key_than_the_one_given_in_advance_is_never_taken(site: Site) -> None:
    await take_out(site)
    given = "SHA256:" + "B" * 43
    async with site.worker(Fault()):
        handle = await begin(site, host_key_sha256=given)
        await until(handle, Phase.REINSTALLING)
        shown = await rebuild(site)
        status = await until(handle, Phase.QUESTION)
        assert status.host_key_sha256 == shown
        assert given in status.message
        logins = len(site.machine.logins)
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await handle.execute_update("answer", AnswerReinstallationInput(host_key_sha256=given))
        assert f"shows {shown}" in str(refused.value.cause)
        assert len(site.machine.logins) == logins
        # An installer has a key of its own: the machine shows another one by and by.
        later = await rebuild(site)
        while (await handle.query(HostReinstallation.status)).host_key_sha256 != later:
            await asyncio.sleep(0.05)
        await finish(site, handle)
    assert later != shown


async def test_a_refused_login_is_a_question_with_all_findings(site: Site) -> None:
    await take_out(site)
    async with site.worker(Fault()):
        handle = await begin(site)
        await until(handle, Phase.REINSTALLING)
        shown = await rebuild(site)
        await until(handle, Phase.QUESTION)
        await handle.execute_update("answer", AnswerReinstallationInput(host_key_sha256=shown))
        while (status := await handle.query(HostReinstallation.status)).question is not (
            Question.FINDINGS
        ):
            await asyncio.sleep(0.05)
        assert [finding.code for finding in status.findings] == ["login-refused"]
        assert any("--password-file" in command for command in status.commands)
        assert HOOK not in tree(site.machine)
        await finish(site, handle)
    await assert_back(site)


async def test_a_cancel_before_trust_is_withdrawn_leaves_it_in_maintenance(site: Site) -> None:
    await take_out(site)
    before = tree(site.machine)
    fault = Fault(stops_at="acquire_lease")
    async with site.worker(fault):
        handle = await begin(site)
        await fault.stopped.wait()
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()
    assert isinstance(failed.value.cause, CancelledError)
    assert tree(site.machine) == before
    host = await site.inventory.hosts.get(HOST)
    assert (host.resource_state, host.being_reinstalled) == (ResourceState.MAINTENANCE, False)


async def test_a_cancel_after_that_has_no_effect(site: Site) -> None:
    await take_out(site)
    async with site.worker(Fault()):
        handle = await begin(site)
        await until(handle, Phase.REINSTALLING)
        await handle.cancel()
        while not (await handle.query(HostReinstallation.status)).cancel_came_late:
            await asyncio.sleep(0.05)
        await finish(site, handle)
    await assert_back(site)


async def test_the_uuid_of_another_host_is_a_question(site: Site) -> None:
    await take_out(site)
    await site.inventory.hosts.register(
        name="kvm-8",
        cluster="cluster-1",
        address="198.18.0.18",
        ssh_port=22,
        user="root",
        secret_id=await site.inventory.secrets.store("password", "pw", actor="test"),
        host_key_line="ssh-ed25519 AAAA",
        host_key_sha256="SHA256:abc",
        capacity_memory_mib=None,
        capacity_cpus=None,
        reserved_memory_mib=0,
        operation="addition",
        actor="test",
    )
    await site.inventory.hosts.set_facts(
        "kvm-8", FACTS.model_copy(update={"uuid": "of-the-machine"})
    )
    secret = await site.inventory.secrets.store("password", NEW_PASSWORD, actor="test")
    async with site.worker(Fault()):
        handle = await begin(site, secret=secret)
        await until(handle, Phase.REINSTALLING)
        shown = await rebuild(site)
        await handle.execute_update("answer", AnswerReinstallationInput(host_key_sha256=shown))
        while "uuid-taken" not in {
            finding.code for finding in (await handle.query(HostReinstallation.status)).findings
        }:
            await asyncio.sleep(0.05)
        assert HOOK not in tree(site.machine)
        await handle.terminate()
    assert (await site.inventory.hosts.get(HOST)).being_reinstalled


async def test_no_credential_is_in_the_history(site: Site) -> None:
    await take_out(site)
    async with site.worker(Fault()):
        handle = await begin(site)
        await finish(site, handle)
    access = await HostDirectory(site.inventory).access(HOST)
    assert access.private_key is not None
    events = (await handle.fetch_history()).events
    history = b"".join(event.SerializeToString() for event in events)
    assert b"ssh-ed25519" in history
    for secret in (PASSWORD, NEW_PASSWORD, access.private_key.splitlines()[3], "PRIVATE KEY"):
        assert secret.encode() not in history
        assert not any(secret in line for line in site.machine.lines)


def failure_of(error: WorkflowFailureError) -> Any:
    assert isinstance(error.cause, ApplicationError)
    return error.cause


async def test_a_second_one_waits_for_the_first_to_end(site: Site) -> None:
    await take_out(site)
    async with site.worker(Fault()):
        first = await begin(site)
        await until(first, Phase.REINSTALLING)
        with pytest.raises(WorkflowFailureError) as failed:
            await (await begin(site)).result()
        assert failure_of(failed.value).type == "LeaseHeld"
        await finish(site, first)
