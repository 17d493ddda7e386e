"""HostAddition with all that is real but libvirt: activities, inventory, SSH, the scripts.

A worker that is killed after a step's effect, and before Temporal knows of it, leaves the step to
be done again: here that happens to each step, and to each step of the way back. A workflow that is
terminated at a step is followed by another addition of the same host.
"""

import asyncssh
import pytest
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError, CancelledError

from activities.directory import HostDirectory
from contracts.addition import HostAdditionResult
from contracts.states import ResourceState
from inventory.models import RemovedHostRow
from tests.machine import PASSWORD
from tests.workflows.machine_site import HOST, OTHERS, Fault, Site, tree

pytestmark = pytest.mark.asyncio(loop_scope="package")

STEPS = (
    *("acquire_lease", "scan_host_key", "preflight_host", "register_host", "record_event"),
    *("read_facts", "install_fence", "stage_own_key", "install_own_key", "promote_own_key"),
    *("set_host_status", "change_host_state", "tell_hosts", "bring_passwords_up"),
    "release_lease",
)


async def assert_added(site: Site, result: HostAdditionResult) -> None:
    """Once, with one key, and nothing half-made."""
    assert result.resource_state is ResourceState.ENABLED
    assert [finding.code for finding in result.findings] == ["no-kvm"]
    (host,) = await site.inventory.hosts.list()
    assert (host.name, host.resource_state, host.fence) == (HOST, ResourceState.ENABLED, None)
    assert await site.inventory.leases.find(HOST) is None
    ids = await site.inventory.own_keys.find(HOST)
    assert ids.staged_key is None
    assert ids.password is not None
    access = await HostDirectory(site.inventory).access(HOST)
    assert access.password is None
    assert access.private_key is not None
    others, own = site.machine.keys.read_text().splitlines()
    assert f"{others}\n" == OTHERS
    assert own.endswith(f" hostler:{HOST}")
    await site.shell.forget(HOST)
    before = len(site.machine.logins)
    assert (await site.shell.run(access, ["true"])).exit_status == 0
    assert site.machine.logins[before:] == ["publickey"]
    assert "etc/libvirt/hooks/qemu.d/hostler" in tree(site.machine)
    assert "etc/hostler/fence" not in tree(site.machine)


async def test_each_step_is_done_twice_and_has_one_effect(site: Site) -> None:
    fault = Fault(repeated=True)
    async with site.worker(fault):
        result = await (await site.begin()).result()
    await assert_added(site, result)
    assert set(fault.done) == set(STEPS)
    assert all(count >= 2 for count in fault.done.values()), fault.done
    assert await site.secrets() == ["own_key", "password"]
    states = await site.messages("host.state")
    assert states[-1] == "Creating -> Enabled: added"
    assert len([message for message in states if "->" in message]) == 1
    assert len(await site.messages("host.key")) == 1
    assert len(await site.messages("host.status")) == 1


@pytest.mark.parametrize("step", ["read_facts", "stage_own_key", "promote_own_key"])
async def test_each_step_of_the_way_back_is_done_twice(site: Site, step: str) -> None:
    await assert_taken_back(site, Fault(repeated=True, fails=step))


async def test_the_last_step_fails_with_the_key_in_use(site: Site) -> None:
    await assert_taken_back(site, Fault(repeated=True, fails="change_host_state"))


async def assert_taken_back(site: Site, fault: Fault) -> None:
    before = tree(site.machine)
    async with site.worker(fault):
        with pytest.raises(WorkflowFailureError) as failed:
            await (await site.begin()).result()
    assert isinstance(failed.value.cause, ApplicationError)
    assert failed.value.cause.type == "Refused"
    assert tree(site.machine) == before
    assert await site.inventory.hosts.list() == []
    assert await site.inventory.leases.find(HOST) is None
    assert await site.secrets() == []


@pytest.mark.some_a_day("step", STEPS, number=5)
async def test_another_addition_goes_on_from_one_that_was_terminated(site: Site, step: str) -> None:
    fault = Fault(stops_at=step)
    async with site.worker(fault):
        terminated = await site.begin()
        await fault.stopped.wait()
        await terminated.terminate()
        if step in STEPS[STEPS.index("change_host_state") :]:
            # It was added already.
            await assert_known(site)
            return
        result = await (await site.begin()).result()
    await assert_added(site, result)


async def assert_known(site: Site) -> None:
    with pytest.raises(WorkflowFailureError) as failed:
        await (await site.begin()).result()
    assert "[name-taken]" in str(failed.value.cause)
    (host,) = await site.inventory.hosts.list()
    assert host.resource_state is ResourceState.ENABLED


async def test_one_that_goes_on_takes_back_what_the_other_has_begun(site: Site) -> None:
    before = tree(site.machine)
    fault = Fault(stops_at="promote_own_key")
    async with site.worker(fault):
        terminated = await site.begin()
        await fault.stopped.wait()
        await terminated.terminate()
    assert tree(site.machine) != before
    async with site.worker(Fault(fails="read_facts")):
        with pytest.raises(WorkflowFailureError):
            await (await site.begin()).result()
    assert tree(site.machine) == before
    assert await site.inventory.hosts.list() == []


async def test_keys_that_can_not_be_written_are_a_warning(site: Site) -> None:
    site.machine.program("mv", 'case $* in */authorized_keys) exit 1 ;; esac; exec /bin/mv "$@"')
    async with site.worker(Fault()):
        result = await (await site.begin()).result()
    assert result.resource_state is ResourceState.ENABLED
    assert "own-key-refused" in [finding.code for finding in result.findings]
    assert await site.secrets() == ["password"]


async def test_an_addition_after_one_that_failed(site: Site) -> None:
    async with site.worker(Fault(fails="promote_own_key")):
        with pytest.raises(WorkflowFailureError):
            await (await site.begin()).result()
    async with site.worker(Fault()):
        result = await (await site.begin()).result()
    await assert_added(site, result)


async def test_a_key_that_was_given_is_not_kept(site: Site) -> None:
    given = asyncssh.generate_private_key("ssh-ed25519")
    public = given.export_public_key("openssh").decode()
    site.machine.keys.write_text(public)
    async with site.worker(Fault()):
        await (await site.begin(given.export_private_key("openssh").decode())).result()
    assert await site.secrets() == ["own_key"]
    theirs, own = site.machine.keys.read_text().splitlines()
    assert (f"{theirs}\n", own.split()[-1]) == (public, f"hostler:{HOST}")
    assert "password" not in site.machine.logins
    await site.shell.forget(HOST)
    site.machine.keys.write_text(f"{own}\n")
    access = await HostDirectory(site.inventory).access(HOST)
    assert (await site.shell.run(access, ["true"])).exit_status == 0


async def test_a_server_that_takes_no_keys(site: Site) -> None:
    site.machine.lets_keys_in = False
    async with site.worker(Fault(repeated=True)):
        result = await (await site.begin()).result()
    assert result.resource_state is ResourceState.ENABLED
    assert [finding.code for finding in result.findings] == ["no-kvm", "own-key-refused"]
    assert site.machine.keys.read_text() == OTHERS
    assert await site.secrets() == ["password"]
    access = await HostDirectory(site.inventory).access(HOST)
    assert access.password == PASSWORD
    assert (await site.shell.run(access, ["true"])).exit_status == 0


async def test_a_machine_that_was_removed_comes_back_on_purpose_alone(site: Site) -> None:
    key = await site.shell.scan_host_key("127.0.0.1", site.machine.access().port)
    # Under its present name another user logged in then.
    former = {"kvm-7": "root", HOST: "ops"}
    async with site.inventory.database.writing() as session:
        session.add_all(
            RemovedHostRow(
                name=name,
                cluster="cluster-1",
                address="198.18.0.17",
                ssh_port=22,
                user=user,
                host_key_line=key.line,
                host_key_sha256=key.sha256,
                operation=f"removal/{name}",
            )
            for name, user in former.items()
        )
    with site.machine.keys.open("a") as keys:
        keys.write("ssh-ed25519 AAAAformer hostler:kvm-7\n")
    of_ops = site.machine.file(
        "/home/ops/.ssh/authorized_keys", f"{OTHERS}ssh-ed25519 AAAAf hostler:{HOST}\n"
    )
    before = tree(site.machine)
    async with site.worker(Fault(repeated=True)):
        with pytest.raises(WorkflowFailureError) as failed:
            await (await site.begin()).result()
        assert f"[removed-before] This machine was removed as {HOST}" in str(failed.value.cause)
        assert tree(site.machine) == before
        assert await site.secrets() == []
        await assert_added(site, await (await site.begin(returning=True)).result())
    for tombstone in await site.inventory.removed_hosts.list():
        assert (tombstone.cleaned_at, tombstone.settled_at is None) == (None, False)
    # It was removed while it did not answer, so its keys of that time were still there.
    assert "hostler:kvm-7" not in site.machine.keys.read_text()
    assert of_ops.read_text() == OTHERS


async def test_a_dry_run_writes_nothing_anywhere(site: Site) -> None:
    before = tree(site.machine)
    async with site.worker(Fault(repeated=True)):
        result = await (await site.begin(dry_run=True)).result()
    assert [finding.code for finding in result.findings] == ["no-kvm"]
    assert tree(site.machine) == before
    assert await site.inventory.hosts.list() == []
    assert await site.secrets() == []


async def test_a_cancel_in_the_middle_takes_everything_back(site: Site) -> None:
    before = tree(site.machine)
    fault = Fault(stops_at="install_own_key")
    async with site.worker(fault):
        handle = await site.begin()
        await fault.stopped.wait()
        assert tree(site.machine) != before
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()
    assert isinstance(failed.value.cause, CancelledError)
    assert tree(site.machine) == before
    assert await site.inventory.hosts.list() == []
    assert await site.secrets() == []


@pytest.mark.parametrize("step", ["change_host_state", "tell_hosts"])
async def test_a_cancel_that_comes_too_late_leaves_the_host_in_service(
    site: Site, step: str
) -> None:
    fault = Fault(delays=step)
    async with site.worker(fault):
        handle = await site.begin()
        await fault.stopped.wait()
        await handle.cancel()
        result = await handle.result()
    await assert_added(site, result)


async def test_no_private_key_and_no_password_is_in_the_history(site: Site) -> None:
    async with site.worker(Fault()):
        handle = await site.begin()
        await handle.result()
    access = await HostDirectory(site.inventory).access(HOST)
    assert access.private_key is not None
    events = (await handle.fetch_history()).events
    history = b"".join(event.SerializeToString() for event in events)
    assert b"ssh-ed25519" in history
    for secret in (PASSWORD, access.private_key.splitlines()[3], "PRIVATE KEY"):
        assert secret.encode() not in history
        assert not any(secret in line for line in site.machine.lines)
