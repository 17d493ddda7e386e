"""Hosts that let another user in than root: SSH servers with sudo, and a simulated libvirt."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.ssh_hosts import GUEST, OPS, SshHost
from tests.simulation.ssh_system import CLUSTER, SshSystem

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def simulation(tmp_path: Path) -> Iterator[SshSystem]:
    simulation = SshSystem(tmp_path, hosts=2, forked=True)
    yield simulation
    simulation.system.stop()


def of_hostler(simulation: SshSystem, host: SshHost) -> set[str]:
    """Its files on that host, and who they belong to ("etc/hostler/epoch 0")."""
    root = simulation.directory / "hosts" / host.name
    # Deleted below an overlay is a device there.
    files = [path for path in root.rglob("*") if path.is_file() and ".work" not in path.parts]
    return {
        f"{path.relative_to(root)} {path.stat().st_uid}"
        for path in files
        if "hostler" in str(path.relative_to(root)) or "hostler:" in path.read_text()
    }


async def test_a_user_who_becomes_root_by_sudo_and_one_who_does_not(simulation: SshSystem) -> None:
    system = simulation.system
    by_sudo, without = await simulation.start_hosts()
    await simulation.up()
    await simulation.worker()
    path = simulation.write_list([by_sudo, without], users={by_sudo.name: OPS, without.name: GUEST})
    said = await system.hostler("host", "import", str(path))

    assert said.status == 1
    assert "error [no-sudo] guest may not run commands as root on ssh-2" in said.stdout
    alone = await system.hostler(
        *("host", "add", without.name, "--cluster", CLUSTER, "--address", without.address),
        *("--ssh-port", str(without.port), "--user", GUEST, "--dry-run"),
        *("--password-file", str(simulation.directory / "password")),
        *("--accept-host-key", without.fingerprint),
    )
    assert "error [no-sudo] guest may not run commands as root on ssh-2" in alone.stdout
    assert "Add `guest ALL=(ALL) NOPASSWD: ALL` to /etc/sudoers.d/hostler there." in alone.stdout
    assert of_hostler(simulation, without) == set()
    assert (await system.host(by_sudo.name))["resource_state"] == "Enabled"
    assert of_hostler(simulation, by_sudo) == {
        *("etc/hostler/epoch 0", "etc/hostler/lock 0", "etc/hostler/told 0"),
        "etc/libvirt/hooks/qemu.d/hostler 0",
        "var/lib/ops/.ssh/authorized_keys 64001",
    }

    await system.done("maintenance", "enter", by_sudo.name, "--watch")
    await system.done("host", "remove", by_sudo.name, "--reason", "sold")
    assert of_hostler(simulation, by_sudo) == set()
    assert list((simulation.directory / "hosts" / by_sudo.name / "var/lib/ops").iterdir()) == []
