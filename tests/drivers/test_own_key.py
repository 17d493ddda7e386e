"""AuthorizedKeys, and its script, on a machine that is a directory and an SSH server."""

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest

from drivers.errors import CommandFailed, EpochRefused, LoginRefused
from drivers.own_key import AuthorizedKeys
from drivers.ssh import AsyncSshShell
from tests.machine import Machine

OTHERS = "# of the operators\nssh-ed25519 AAAAother somebody@somewhere\n"


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    machine = Machine(tmp_path / "machine")
    async with machine.serving():
        yield machine


@pytest.fixture
async def ssh() -> AsyncIterator[AsyncSshShell]:
    shell = AsyncSshShell()
    yield shell
    await shell.close()


@pytest.fixture
def keys(ssh: AsyncSshShell) -> AuthorizedKeys:
    return AuthorizedKeys(ssh)


def line_of(private_key: str, name: str = "kvm-9") -> str:
    public = asyncssh.import_private_key(private_key).export_public_key("openssh").decode()
    return " ".join([*public.split()[:2], f"hostler:{name}\n"])


def write_keys(machine: Machine, text: str, mode: int = 0o600) -> None:
    machine.keys.parent.mkdir(mode=0o700)
    machine.keys.write_text(text)
    machine.keys.chmod(mode)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def files(machine: Machine) -> list[str]:
    return sorted(path.name for path in machine.keys.parent.iterdir())


async def test_a_host_without_any_key(machine: Machine, keys: AuthorizedKeys) -> None:
    key = keys.create()
    for _ in range(2):
        await keys.install(machine.access(), key, 1)
        assert machine.keys.read_text() == line_of(key)
        assert (mode(machine.keys.parent), mode(machine.keys)) == (0o700, 0o600)
        assert files(machine) == ["authorized_keys"]
    for _ in range(2):
        await keys.remove(machine.access(), 1)
        assert not machine.keys.parent.exists()


@pytest.mark.parametrize("end", ["", "\n"])
async def test_all_else_in_the_file_stays(machine: Machine, keys: AuthorizedKeys, end: str) -> None:
    write_keys(machine, OTHERS.rstrip("\n") + end, mode=0o640)
    key = keys.create()
    await keys.install(machine.access(), key, 1)
    assert machine.keys.read_text() == OTHERS + line_of(key)
    assert mode(machine.keys) == 0o640
    await keys.remove(machine.access(), 1)
    assert machine.keys.read_text() == OTHERS
    assert (mode(machine.keys), files(machine)) == (0o640, ["authorized_keys"])


async def test_a_second_run_writes_nothing(machine: Machine, keys: AuthorizedKeys) -> None:
    write_keys(machine, OTHERS)
    key = keys.create()
    await keys.install(machine.access(), key, 1)
    before = machine.keys.stat()
    await keys.install(machine.access(), key, 1)
    after = machine.keys.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


async def test_the_key_of_an_earlier_addition_is_replaced_and_no_other_hosts(
    machine: Machine, keys: AuthorizedKeys
) -> None:
    old, new, other = keys.create(), keys.create(), line_of(keys.create(), "kvm-99")
    write_keys(machine, f"{line_of(old)}{OTHERS}{other}")
    await keys.install(machine.access(), new, 1)
    assert machine.keys.read_text() == f"{OTHERS}{other}{line_of(new)}"


async def test_what_was_cut_off_half_way_does_not_matter(
    machine: Machine, keys: AuthorizedKeys
) -> None:
    write_keys(machine, OTHERS)
    left = machine.keys.with_name("authorized_keys.hostler-new")
    left.write_text("ssh-ed25519 half")
    left.chmod(0o666)
    key = keys.create()
    await keys.install(machine.access(), key, 1)
    assert machine.keys.read_text() == OTHERS + line_of(key)
    assert (mode(machine.keys), files(machine)) == (0o600, ["authorized_keys"])


async def test_a_file_that_is_a_link_stays_one(machine: Machine, keys: AuthorizedKeys) -> None:
    real = machine.file("/srv/keys/root", OTHERS)
    machine.keys.parent.mkdir()
    machine.keys.symlink_to(real)
    key = keys.create()
    await keys.install(machine.access(), key, 1)
    assert machine.keys.is_symlink()
    assert real.read_text() == OTHERS + line_of(key)


async def test_an_operation_that_was_taken_over_changes_nothing(
    machine: Machine, keys: AuthorizedKeys
) -> None:
    write_keys(machine, OTHERS)
    machine.file("/etc/hostler/epoch", "5\n")
    for change in (
        keys.install(machine.access(), keys.create(), 3),
        keys.remove(machine.access(), 3),
    ):
        with pytest.raises(EpochRefused) as refused:
            await change
        assert refused.value.details == {"held": 5, "own": 3}
    assert machine.keys.read_text() == OTHERS
    await keys.install(machine.access(), keys.create(), 5)


async def test_what_can_not_be_written_is_said(machine: Machine, keys: AuthorizedKeys) -> None:
    machine.without("flock")
    with pytest.raises(CommandFailed, match="own-key install"):
        await keys.install(machine.access(), keys.create(), 1)


async def test_a_file_that_can_not_be_replaced_is_said_and_nothing_stays(
    machine: Machine, keys: AuthorizedKeys
) -> None:
    write_keys(machine, OTHERS)
    machine.program("mv", "echo 'mv: Operation not permitted' >&2; exit 1")
    with pytest.raises(CommandFailed, match="Operation not permitted"):
        await keys.install(machine.access(), keys.create(), 1)
    assert files(machine) == ["authorized_keys"]
    assert machine.keys.read_text() == OTHERS


async def test_a_link_to_nowhere_is_said(machine: Machine, keys: AuthorizedKeys) -> None:
    machine.keys.parent.mkdir()
    machine.keys.symlink_to("/no/such/folder/keys")
    with pytest.raises(CommandFailed, match="a link into a folder that is not there"):
        await keys.install(machine.access(), keys.create(), 1)
    await keys.remove(machine.access(), 1)
    assert await keys.find(machine.access(), "kvm-9") == []


async def test_a_comment_that_ends_like_a_key_stays(machine: Machine, keys: AuthorizedKeys) -> None:
    text = f"# the next one is hostler:kvm-9\n{OTHERS}"
    write_keys(machine, text)
    await keys.install(machine.access(), keys.create(), 1)
    await keys.remove(machine.access(), 1)
    assert machine.keys.read_text() == text


async def test_a_login_proves_the_key_alone(
    machine: Machine, keys: AuthorizedKeys, ssh: AsyncSshShell
) -> None:
    key = keys.create()
    with pytest.raises(LoginRefused):
        await keys.log_in(machine.access(), key)
    await keys.install(machine.access(), key, 1)
    await keys.log_in(machine.access(), key)
    # Each proof is a login of its own, also while one is open.
    await keys.log_in(machine.access(), key)
    assert machine.logins == ["password", "publickey", "publickey"]
    assert not any(key in line or "PRIVATE" in line for line in machine.lines)


async def test_a_server_that_takes_no_keys(machine: Machine, keys: AuthorizedKeys) -> None:
    machine.lets_keys_in = False
    key = keys.create()
    await keys.install(machine.access(), key, 1)
    with pytest.raises(LoginRefused) as refused:
        await keys.log_in(machine.access(), key)
    assert key not in f"{refused.value}{refused.value.details}"
    await keys.remove(machine.access(), 1)
    assert not machine.keys.exists()
