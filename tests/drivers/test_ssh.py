"""AsyncSshShell on lab hosts."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest

from contracts.errors import Unavailable
from drivers.errors import CallTimedOut, HostKeyChanged, HostUnreachable, LoginRefused
from drivers.protocols import HostAccess
from drivers.ssh import AsyncSshShell
from tests.drivers.conftest import DESTINATION
from tests.lab import Lab

WHICH_CONNECTION = ["sh", "-c", 'echo "$SSH_CONNECTION"']


def fingerprint(access: HostAccess) -> str:
    return asyncssh.import_public_key(access.host_key).get_fingerprint("sha256")


async def connection_of(shell: AsyncSshShell, access: HostAccess) -> str:
    return (await shell.run(access, WHICH_CONNECTION)).stdout


async def test_scan_shows_the_hosts_own_ed25519_key(
    shell: AsyncSshShell, destination: HostAccess, lab: Lab
) -> None:
    key = await shell.scan_host_key(destination.address, 22)
    rows = (await lab.status())["hosts"]
    assert key.line == destination.host_key
    assert key.sha256 in [row["host_key_sha256"] for row in rows if row["name"] == DESTINATION]


async def test_words_arrive_as_they_are(shell: AsyncSshShell, destination: HostAccess) -> None:
    words = ["", " ", "a b", "$(id)", "`id`", "'", '"', "*", "\\", "ünï", "two\nlines", "-n", ";"]
    result = await shell.run(destination, ["printf", "%s|", *words])
    assert result.stdout == "".join(f"{word}|" for word in words)


async def test_status_and_both_outputs_are_the_answer(
    shell: AsyncSshShell, destination: HostAccess
) -> None:
    result = await shell.run(destination, ["sh", "-c", "cat; echo no >&2; exit 3"], stdin="é")
    assert (result.exit_status, result.stdout, result.stderr) == (3, "é", "no\n")


async def test_without_stdin_a_command_reads_nothing(
    shell: AsyncSshShell, destination: HostAccess
) -> None:
    assert (await shell.run(destination, ["cat"])).stdout == ""


async def test_a_killed_command_has_no_good_status(
    shell: AsyncSshShell, destination: HostAccess
) -> None:
    assert (await shell.run(destination, ["sh", "-c", "kill -9 $$"])).exit_status != 0


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ssh-ed448"])
async def test_a_changed_host_key_is_refused_with_both_fingerprints(
    shell: AsyncSshShell, destination: HostAccess, kind: str
) -> None:
    other = asyncssh.generate_private_key(kind).export_public_key("openssh").decode()
    pinned = dataclasses.replace(destination, host_key=other)
    with pytest.raises(HostKeyChanged) as refusal:
        await shell.run(pinned, ["true"])
    expected = {"pinned": fingerprint(pinned), "shown": fingerprint(destination)}
    assert refusal.value.details == expected
    assert all(text in str(refusal.value) for text in expected.values())


async def test_a_wrong_password_is_refused_and_not_told(
    shell: AsyncSshShell, destination: HostAccess
) -> None:
    with pytest.raises(LoginRefused) as refusal:
        await shell.run(dataclasses.replace(destination, password="not-it-3141"), ["true"])
    assert "not-it-3141" not in f"{refusal.value}{refusal.value.details}"


async def test_a_key_that_is_none_is_refused_and_not_told(
    shell: AsyncSshShell, destination: HostAccess
) -> None:
    access = dataclasses.replace(destination, password=None, private_key="secret-2718")
    with pytest.raises(LoginRefused) as refusal:
        await shell.run(access, ["true"])
    assert "secret-2718" not in str(refusal.value)


@pytest.fixture
async def authorized(lab: Lab) -> AsyncIterator[str]:
    """A private key that DESTINATION lets in."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    await lab.exec(
        DESTINATION,
        *("sh", "-c", "mkdir -pm 700 /root/.ssh; cat >/root/.ssh/authorized_keys"),
        stdin=key.export_public_key("openssh").decode(),
    )
    yield key.export_private_key("openssh").decode()
    await lab.exec(DESTINATION, "rm", "-f", "/root/.ssh/authorized_keys")


async def test_a_private_key_logs_in(
    shell: AsyncSshShell, destination: HostAccess, authorized: str
) -> None:
    access = dataclasses.replace(destination, password=None, private_key=authorized)
    assert (await shell.run(access, ["id", "-u"])).stdout == "0\n"


async def test_the_accounts_own_ssh_files_play_no_part(
    shell: AsyncSshShell,
    destination: HostAccess,
    authorized: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dot_ssh = tmp_path / ".ssh"
    dot_ssh.mkdir()
    (dot_ssh / "config").write_text("Host *\n  Port 1\n  User nobody\n  ProxyCommand false\n")
    (dot_ssh / "id_ed25519").write_text(authorized)
    (dot_ssh / "id_ed25519").chmod(0o600)
    (dot_ssh / "known_hosts").write_text(f"* {destination.host_key}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (await shell.run(destination, ["true"])).exit_status == 0
    # Neither that key nor that known host lets anybody in.
    with pytest.raises(LoginRefused):
        await shell.run(dataclasses.replace(destination, password="wrong"), ["true"])
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key("openssh").decode()
    with pytest.raises(HostKeyChanged):
        await shell.run(dataclasses.replace(destination, host_key=other), ["true"])


async def test_a_closed_port_and_a_silent_address_are_unreachable(
    destination: HostAccess,
) -> None:
    shell = AsyncSshShell(connect_timeout=1)
    with pytest.raises(HostUnreachable, match=DESTINATION):
        await shell.run(dataclasses.replace(destination, port=1), ["true"])
    with pytest.raises(HostUnreachable):
        await shell.run(dataclasses.replace(destination, address="198.18.0.250"), ["true"])
    with pytest.raises(HostUnreachable):
        await shell.scan_host_key(destination.address, 1)


async def test_concurrent_callers_share_one_connection(
    shell: AsyncSshShell, destination: HostAccess
) -> None:
    # More than the 10 sessions that sshd takes on a connection by default.
    asked = await asyncio.gather(*(connection_of(shell, destination) for _ in range(100)))
    assert len(set(asked)) == 1


async def test_another_credential_is_tried_even_while_a_connection_is_open(
    shell: AsyncSshShell, destination: HostAccess, authorized: str
) -> None:
    first = await connection_of(shell, destination)
    with pytest.raises(LoginRefused):
        await shell.run(dataclasses.replace(destination, password="wrong"), ["true"])
    by_key = dataclasses.replace(destination, password=None, private_key=authorized)
    assert await connection_of(shell, by_key) != first


async def test_a_command_outlives_a_change_of_the_credential(
    shell: AsyncSshShell, destination: HostAccess, authorized: str
) -> None:
    wait = "echo > /run/drv-wait; while [ -e /run/drv-wait ]; do sleep 0.1; done; echo done"
    running = asyncio.create_task(shell.run(destination, ["sh", "-c", wait]))
    by_key = dataclasses.replace(destination, password=None, private_key=authorized)
    while (await shell.run(by_key, ["test", "-e", "/run/drv-wait"])).exit_status != 0:
        await asyncio.sleep(0.1)
    await shell.run(by_key, ["rm", "/run/drv-wait"])
    assert (await running).stdout == "done\n"


async def test_a_deadline_ends_the_command_and_not_the_connection(
    shell: AsyncSshShell, destination: HostAccess
) -> None:
    before = await connection_of(shell, destination)
    with pytest.raises(CallTimedOut, match="sleep"):
        await shell.run(destination, ["sleep", "987654"], timeout=1)
    assert await connection_of(shell, destination) == before
    while (await shell.run(destination, ["pgrep", "-xf", "sleep 987654"])).exit_status == 0:
        await asyncio.sleep(0.1)


async def test_it_connects_again_after_sshd_was_restarted(
    shell: AsyncSshShell, destination: HostAccess, lab: Lab
) -> None:
    before = await connection_of(shell, destination)
    await lab.exec(DESTINATION, "systemctl", "restart", "ssh")
    await lab.exec(DESTINATION, "pkill", "-f", "^sshd: root", check=False)
    await until_reachable(shell, destination)
    assert await connection_of(shell, destination) != before


async def test_it_notices_a_cut_cable_and_connects_again(
    shell: AsyncSshShell, destination: HostAccess, lab: Lab
) -> None:
    running = asyncio.create_task(shell.run(destination, ["sleep", "1000"], timeout=1000))
    await connection_of(shell, destination)
    await lab.cut(DESTINATION)
    try:
        with pytest.raises(HostUnreachable):
            await running
        with pytest.raises(Unavailable):
            await shell.run(destination, ["true"], timeout=2)
    finally:
        await lab.heal(DESTINATION)
    await until_reachable(shell, destination)


async def test_forget_closes_what_is_open(shell: AsyncSshShell, destination: HostAccess) -> None:
    before = await connection_of(shell, destination)
    await shell.forget(DESTINATION)
    await shell.forget("never-seen")
    assert await connection_of(shell, destination) != before


async def test_nothing_is_left_of_a_tunnel(shell: AsyncSshShell, destination: HostAccess) -> None:
    tunnel = await shell.open_unix_tunnel(destination, "/run/libvirt/libvirt-sock")
    assert tunnel.path.parent.stat().st_mode & 0o777 == 0o700
    reader, writer = await asyncio.open_unix_connection(str(tunnel.path))
    writer.write(b"\0\0\0\4")  # libvirtd hangs up on such a message
    assert await reader.read() == b""
    while not tunnel.dead:
        await asyncio.sleep(0.05)
    assert not tunnel.path.parent.exists()
    writer.close()
    await tunnel.close()


async def test_a_tunnel_to_nothing_is_refused(
    shell: AsyncSshShell, destination: HostAccess
) -> None:
    with pytest.raises(HostUnreachable, match="/run/none"):
        await shell.open_unix_tunnel(destination, "/run/none")


async def until_reachable(shell: AsyncSshShell, access: HostAccess) -> None:
    while True:
        try:
            await shell.run(access, ["true"])
        except Unavailable:
            await asyncio.sleep(0.2)
        else:
            return
