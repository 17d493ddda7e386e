"""Drivers on lab hosts that let another user in than root."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator

import pytest

from contracts.passwords import Proof
from contracts.vms import VmState
from drivers.errors import CallTimedOut, HostUnreachable, SudoRefused
from drivers.libvirt import LibvirtHypervisor
from drivers.own_key import AuthorizedKeys
from drivers.passwords import ScriptAccounts
from drivers.protocols import HostAccess, MigrationOptions
from drivers.ssh import AsyncSshShell
from tests.drivers.conftest import DESTINATION, SOURCE
from tests.lab import Lab

SUDOERS = "ops ALL=(ALL) NOPASSWD: ALL"
LIBVIRTD = "/run/libvirt/libvirt-sock"


@pytest.fixture
async def there(lab: Lab) -> AsyncIterator[HostAccess]:
    """At SOURCE, as a user who becomes root by sudo."""
    async with lab.user(SOURCE, "ops", SUDOERS) as access:
        yield access


@pytest.fixture
async def here(lab: Lab) -> AsyncIterator[HostAccess]:
    """The same at DESTINATION."""
    async with lab.user(DESTINATION, "ops", SUDOERS) as access:
        yield access


async def test_commands_are_roots(shell: AsyncSshShell, here: HostAccess) -> None:
    assert (await shell.run(here, ["id", "-u"])).stdout == "0\n"
    words = ["", " ", "$(id)", "'", '"', "*", "\\", "ünï", "two\nlines", "-n", ";", "A=b"]
    said = await shell.run(here, ["printf", "%s|", *words])
    assert said.stdout == "".join(f"{word}|" for word in words)
    said = await shell.run(here, ["sh", "-c", "cat; echo no >&2; exit 3"], stdin="é")
    assert (said.exit_status, said.stdout, said.stderr) == (3, "é", "no\n")
    assert (await shell.run(here, ["cat"])).stdout == ""


async def test_passwords_are_set_and_proven(shell: AsyncSshShell, here: HostAccess) -> None:
    """The user's own, and by him root's."""
    assert here.password is not None
    accounts = ScriptAccounts(shell)
    for account in ("ops", "root"):
        report = await accounts.look(here, account, "of-a-test", [here.password])
        assert (report.problems, report.matches) == ((), 0)
        await accounts.set(here, account, "of-a-test", 1)
        try:
            assert await accounts.match(here, account, [here.password, "of-a-test"]) == 1
            for proof in (Proof.SSH, Proof.PAM):
                assert await accounts.takes(here, account, "of-a-test", proof), proof
            assert await accounts.first_taken(here, account, [here.password, "of-a-test"]) == 1
        finally:
            # Over the connection that is open since before.
            await accounts.set(here, account, here.password, 1)
        assert await accounts.takes(here, account, here.password, Proof.SSH)


async def test_a_status_is_the_commands_own(shell: AsyncSshShell, here: HostAccess) -> None:
    """Also one that sudo has for itself."""
    for status in (1, 127):
        said = await shell.run(here, ["sh", "-c", f"echo said; exit {status}"])
        assert (said.exit_status, said.stdout) == (status, "said\n")
    assert (await shell.run(here, ["no-such-program"])).exit_status == 127
    assert (await shell.run(here, ["sh", "-c", "kill -9 $$"])).exit_status != 0


@pytest.mark.parametrize("ignores", ["", "trap : TERM; "])
async def test_a_deadline_ends_the_command(
    shell: AsyncSshShell, here: HostAccess, ignores: str
) -> None:
    script = f"{ignores}while :; do sleep 0.987; done"
    with pytest.raises(CallTimedOut):
        await shell.run(here, ["sh", "-c", script], timeout=1)
    while (await shell.run(here, ["pgrep", "-xf", "sleep 0.987"])).exit_status == 0:
        await asyncio.sleep(0.1)


async def test_a_cancelled_command_is_ended_by_its_deadline(
    shell: AsyncSshShell, here: HostAccess
) -> None:
    running = asyncio.create_task(shell.run(here, ["sleep", "987654"], timeout=2))
    while (await shell.run(here, ["pgrep", "-xf", "sleep 987654"])).exit_status != 0:
        await asyncio.sleep(0.1)
    running.cancel()
    while (await shell.run(here, ["pgrep", "-f", "sleep 98765[4]"])).exit_status == 0:
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("sudoers", "found", "remedy"),
    [
        ("", "password", "ops ALL=(ALL) NOPASSWD: ALL"),
        ("ops ALL=(ALL) ALL", "password", "ops ALL=(ALL) NOPASSWD: ALL"),
        ("ops ALL=(ALL) NOPASSWD: /usr/bin/true", "password", "ops ALL=(ALL) NOPASSWD: ALL"),
        (f"{SUDOERS}\nDefaults:ops requiretty", "tty", "Defaults:ops !requiretty"),
    ],
)
async def test_sudo_that_does_not_let_him(
    shell: AsyncSshShell, lab: Lab, sudoers: str, found: str, remedy: str
) -> None:
    async with lab.user(DESTINATION, "ops", sudoers) as access:
        as_himself = dataclasses.replace(access, unprivileged=True)
        assert (await shell.run(as_himself, ["id", "-un"])).stdout == "ops\n"
        for attempt in (
            shell.run(access, ["true"]),
            shell.open_unix_tunnel(access, LIBVIRTD),
        ):
            with pytest.raises(SudoRefused, match=found) as refused:
                await attempt
            assert remedy in (refused.value.remedy or "")


async def test_a_host_without_sudo(shell: AsyncSshShell, here: HostAccess, lab: Lab) -> None:
    hide, show = (
        ("/usr/bin/sudo", "/usr/bin/sudo.hidden"),
        ("/usr/bin/sudo.hidden", "/usr/bin/sudo"),
    )
    await lab.exec(DESTINATION, "mv", *hide)
    try:
        with pytest.raises(SudoRefused) as refused:
            await shell.run(here, ["true"])
    finally:
        await lab.exec(DESTINATION, "mv", *show)
    assert "Install sudo" in (refused.value.remedy or "")


async def test_sudo_that_is_taken_away_under_a_connection(
    shell: AsyncSshShell, here: HostAccess, lab: Lab
) -> None:
    assert (await shell.run(here, ["true"])).exit_status == 0
    await lab.exec(DESTINATION, "rm", "/etc/sudoers.d/ops")
    with pytest.raises(SudoRefused):
        await shell.run(here, ["true"])


async def test_libvirt_is_asked(
    shell: AsyncSshShell, hypervisor: LibvirtHypervisor, here: HostAccess, lab: Lab
) -> None:
    by_root = await hypervisor.facts(await lab.access(DESTINATION))
    assert await hypervisor.facts(here) == by_root
    # More than sshd lets run on one connection.
    tunnels = await asyncio.gather(*(shell.open_unix_tunnel(here, LIBVIRTD) for _ in range(12)))
    assert await hypervisor.defined_vms(here) == []
    for tunnel in tunnels:
        await tunnel.close()
    await hypervisor.forget(DESTINATION)
    await shell.forget(DESTINATION)
    # Nobody is left who speaks to libvirtd, nor any connection of ours.
    for program in ("virt-ssh-helper", "sshd: ops"):
        while (await lab.exec(DESTINATION, "pgrep", "-f", program, check=False)).stdout:
            await asyncio.sleep(0.1)


async def test_a_tunnel_that_its_host_forgets_is_broken(
    shell: AsyncSshShell, here: HostAccess
) -> None:
    tunnel = await shell.open_unix_tunnel(here, LIBVIRTD)
    reader, writer = await asyncio.open_unix_connection(str(tunnel.path))
    await shell.forget(DESTINATION)
    assert await reader.read() == b""
    assert tunnel.dead
    writer.close()
    await tunnel.close()


async def test_a_tunnel_to_nothing_is_refused(shell: AsyncSshShell, here: HostAccess) -> None:
    with pytest.raises(HostUnreachable, match="there is no /run/none"):
        await shell.open_unix_tunnel(here, "/run/none")


async def test_a_vm_moves_there_and_back(
    hypervisor: LibvirtHypervisor,
    there: HostAccess,
    here: HostAccess,
    vm: str,
    destination: HostAccess,
) -> None:
    for source, target in ((there, here), (here, there), (there, destination)):
        options = MigrationOptions(target.address)
        await hypervisor.migrate(source, target, vm, options, print)
        assert await hypervisor.find_vm(source, vm) is None
        moved = await hypervisor.find_vm(target, vm)
        assert moved is not None


async def test_a_cancelled_migration_leaves_the_vm_where_it_was(
    hypervisor: LibvirtHypervisor, there: HostAccess, here: HostAccess, vm: str
) -> None:
    begun = asyncio.Event()
    options = MigrationOptions(here.address, bandwidth_mib_s=1)
    migration = asyncio.create_task(
        hypervisor.migrate(there, here, vm, options, lambda _: begun.set())
    )
    await begun.wait()
    migration.cancel()
    with pytest.raises(asyncio.CancelledError):
        await migration
    staying = await hypervisor.find_vm(there, vm)
    assert staying is not None
    assert staying.state is VmState.RUNNING
    assert await hypervisor.find_vm(here, vm) is None


async def test_the_key_goes_to_his_home(shell: AsyncSshShell, here: HostAccess, lab: Lab) -> None:
    keys = AuthorizedKeys(shell)
    key = keys.create()
    await keys.install(here, key, 1)
    await keys.log_in(here, key)
    path = "/srv/ops/.ssh/authorized_keys"
    said = await lab.exec(DESTINATION, "stat", "-c", "%n %U %a", path, "/srv/ops/.ssh")
    assert said.stdout == f"{path} ops 600\n/srv/ops/.ssh ops 700\n"
    assert await keys.find(here, DESTINATION) == [f"key hostler:{DESTINATION} in {path}"]
    by_root = await lab.access(DESTINATION)
    assert await keys.find(by_root, DESTINATION) == []
    assert await keys.remove_of(by_root, DESTINATION, 1, user="ops") != []
    assert (await lab.exec(DESTINATION, "ls", "-A", "/srv/ops")).stdout.split() == [
        *(".bash_logout", ".bashrc", ".profile")
    ]


async def test_a_shell_that_prints_something_first(
    shell: AsyncSshShell, here: HostAccess, lab: Lab
) -> None:
    await lab.exec(DESTINATION, "usermod", "--shell", "/bin/bash", "ops")
    await lab.exec(DESTINATION, "sh", "-c", "sed -i '1i echo Welcome' /srv/ops/.bashrc")
    with pytest.raises(HostUnreachable, match="bashrc"):
        await shell.open_unix_tunnel(here, LIBVIRTD)
