"""ScriptAccounts on a host with an /etc of its own: real chpasswd, PAM, su, crypt."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest

from contracts.errors import InvalidInput
from contracts.passwords import MOST_CHARACTERS, Proof, check_password
from drivers.commands import check
from drivers.errors import CommandFailed, EpochRefused, HostUnreachable
from drivers.passwords import ScriptAccounts
from drivers.protocols import HostAccess
from drivers.ssh import AsyncSshShell
from tests.simulation.ssh_hosts import READY, read_hosts

pytestmark = pytest.mark.timeout(300)

FIRST = "simulated"
PASSWORDS = [
    "plain-1",
    'it\'s "quoted"',
    "back\\slash \\n \\0",
    "  spaces at both ends  ",
    "$HOME $(id) `id` ${x}",
    "root:x:0:0",
    "#!comment",
    "-n",
    # The SSH server here knows no characters that are newer than Unicode 3.2.
    "äöüß€ 日本語",
    "x" * MOST_CHARACTERS,
]
ALL = (Proof.SSH, Proof.PAM, Proof.HASH)


class Host:
    """One, reached with a key."""

    def __init__(self, directory: Path, shell: AsyncSshShell) -> None:
        (row,) = read_hosts(directory)
        self.etc = directory / "hosts" / row.name / "etc"
        self.journal = directory / "journal"
        self.shell = shell
        self.cable = directory / "hosts" / row.name / "cut"
        public = asyncssh.read_known_hosts(str(directory / "known_hosts"))
        keys, *_ = public.match(row.address, row.address, row.port)
        self.access = HostAccess(
            name=row.name,
            address=row.address,
            port=row.port,
            user="root",
            host_key=" ".join(keys[0].export_public_key().decode().split()[:2]),
            private_key=(directory / "id").read_text(),
        )

    async def run(self, line: str) -> str:
        result = await self.shell.run(self.access, ["sh", "-c", line])
        check(self.access, line, result)
        return result.stdout

    async def program(self, name: str, script: str) -> None:
        """It has a program of that name."""
        await self.run(
            "mkdir -p /root/sbin /root/work; mountpoint -q /usr/sbin || mount -t overlay overlay "
            "-o lowerdir=/usr/sbin,upperdir=/root/sbin,workdir=/root/work /usr/sbin; "
            f"printf '#!/bin/sh\\n%s\\n' '{script}' >/usr/sbin/{name}; chmod 755 /usr/sbin/{name}"
        )


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    # An overlay on an overlay: not all file systems take that.
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.simulation.ssh_hosts", str(tmp_path), "1"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert server.stdout is not None
    assert (await server.stdout.readline()).decode().strip() == READY
    shell = AsyncSshShell()
    yield Host(tmp_path, shell)
    await shell.close()
    server.kill()
    await server.wait()


@pytest.fixture
def accounts(host: Host) -> ScriptAccounts:
    return ScriptAccounts(host.shell)


async def test_odd_passwords_are_set_and_proven_by_all_means(
    host: Host, accounts: ScriptAccounts
) -> None:
    before = FIRST
    for password in PASSWORDS:
        check_password(password)
        await accounts.set(host.access, "root", password, 2)
        for proof in ALL:
            assert await accounts.takes(host.access, "root", password, proof), (password, proof)
        # PAM takes its time to refuse.
        for proof in (Proof.SSH, Proof.HASH):
            assert not await accounts.takes(host.access, "root", before, proof), (before, proof)
        assert await accounts.match(host.access, "root", [before, "other", password]) == 2
        assert await accounts.match(host.access, "root", [before, "other"]) is None
        assert (await accounts.look(host.access, "root", "x", [before, password])).matches == 1
        assert await accounts.first_taken(host.access, "root", [before, password]) == 1
        before = password
    assert await accounts.first_taken(host.access, "root", [before, FIRST]) == 0
    assert await accounts.first_taken(host.access, "root", [FIRST]) is None
    assert not await accounts.takes(host.access, "root", FIRST, Proof.PAM)
    assert (await accounts.look(host.access, "root", "x")).hash == "yescrypt"
    seen = host.journal.read_text()
    assert not [password for password in PASSWORDS[:-2] if password in seen]


async def test_another_account(host: Host, accounts: ScriptAccounts) -> None:
    await host.run("useradd --no-create-home anna && usermod -p '*' anna")
    assert (await accounts.look(host.access, "anna", "x")).locked
    await accounts.set(host.access, "anna", "of anna's own", 2)
    report = await accounts.look(host.access, "anna", "x")
    assert (report.locked, report.problems, report.proofs) == (False, (), ALL)
    assert await accounts.takes(host.access, "anna", "of anna's own", Proof.PAM)
    assert await accounts.takes(host.access, "root", FIRST, Proof.HASH)


async def test_a_lower_epoch_is_refused(host: Host, accounts: ScriptAccounts) -> None:
    (host.etc / "hostler").mkdir()
    await accounts.set(host.access, "root", "second", 4)
    with pytest.raises(EpochRefused) as caught:
        await accounts.set(host.access, "root", "too late", 2)
    assert caught.value.details == {"held": 4, "own": 2}
    assert await accounts.takes(host.access, "root", "second", Proof.HASH)
    await accounts.set(host.access, "root", "third", 4)


async def test_what_stands_in_the_way_is_found_beforehand(
    host: Host, accounts: ScriptAccounts
) -> None:
    (there_is_none,) = (await accounts.look(host.access, "nobody-here", "x")).problems
    assert "there is no account nobody-here" in there_is_none
    await host.program("pwscore", "cat >/dev/null; echo it is based on a word >&2; exit 1")
    assert (await accounts.look(host.access, "root", "x")).problems == ()
    # Only where PAM itself goes by these rules.
    await host.run("echo password requisite pam_pwquality.so >>/etc/pam.d/common-password")
    (refused,) = (await accounts.look(host.access, "root", "x")).problems
    assert refused == "its rules refuse the new password: it is based on a word"
    # They are shown the new one alone, whether or not the host compares.
    await host.program("pwscore", 'test "$(cat)" = new')
    assert (await accounts.look(host.access, "root", "new", [FIRST, "b"])).problems == ()
    await host.run("mount --bind /dev/null /usr/bin/perl")
    assert (await accounts.look(host.access, "root", "new", [FIRST, "b"])).problems == ()
    await host.program("python3", "exit 1")
    await host.run("chmod 644 /usr/sbin/python3; mount --bind /dev/null /usr/bin/python3")
    report = await accounts.look(host.access, "root", "new", [FIRST, "b"])
    assert (report.compares, report.problems) == (False, ())
    await host.run("mount --bind -o ro /etc/shadow /etc/shadow")
    problems = (await accounts.look(host.access, "root", "x")).problems
    assert "/etc/shadow can't be written" in problems


@pytest.mark.parametrize(
    ("permit", "password", "expected"),
    [
        ("yes", "yes", ALL),
        ("without-password", "yes", (Proof.PAM, Proof.HASH)),
        ("yes", "no", (Proof.PAM, Proof.HASH)),
    ],
)
async def test_sshd_says_whether_it_takes_passwords(
    host: Host, accounts: ScriptAccounts, permit: str, password: str, expected: tuple[Proof, ...]
) -> None:
    await host.program(
        "sshd",
        f"echo permitrootlogin {permit}; echo passwordauthentication {password}; "
        "echo kbdinteractiveauthentication no; echo usepam yes; echo authenticationmethods any",
    )
    assert (await accounts.look(host.access, "root", "x")).proofs == expected


async def test_the_hosts_own_count_of_refused_logins(host: Host, accounts: ScriptAccounts) -> None:
    await host.program(
        "faillock", 'echo "$2:"; echo When Type Source Valid; echo 1 2 3 V; echo 1 2 3 I'
    )
    assert (await accounts.look(host.access, "root", "x")).refused == 1


async def test_hashes_are_compared_without_perl(host: Host, accounts: ScriptAccounts) -> None:
    await host.run("mount --bind /dev/null /usr/bin/perl")
    await accounts.set(host.access, "root", PASSWORDS[4], 2)
    assert await accounts.match(host.access, "root", [FIRST, PASSWORDS[4]]) == 1
    assert await accounts.match(host.access, "root", [FIRST]) is None
    assert (await accounts.look(host.access, "root", "x", [FIRST, PASSWORDS[4]])).matches == 1


async def test_what_pam_refuses_is_told_without_the_password(
    host: Host, accounts: ScriptAccounts
) -> None:
    await host.run("echo password required pam_deny.so >/etc/pam.d/chpasswd")
    with pytest.raises(CommandFailed) as caught:
        await accounts.set(host.access, "root", "canary-of-a-password", 2)
    assert "canary-of-a-password" not in f"{caught.value} {caught.value.details}"
    assert await accounts.takes(host.access, "root", FIRST, Proof.HASH)


async def test_a_program_that_says_the_password_is_not_quoted(
    host: Host, accounts: ScriptAccounts
) -> None:
    await host.program("chpasswd", "cat >&2; exit 1")
    with pytest.raises(CommandFailed) as caught:
        await accounts.set(host.access, "root", "canary-of-a-password", 2)
    assert "root:[password]" in caught.value.message


async def test_a_host_that_is_away_is_no_refusal(host: Host, accounts: ScriptAccounts) -> None:
    host.cable.touch()
    with pytest.raises(HostUnreachable):
        await accounts.takes(host.access, "root", FIRST, Proof.SSH)


@pytest.mark.parametrize(
    ("password", "problem"),
    [
        ("", "empty"),
        ("two\nlines", "line breaks"),
        ("nul\0", "control characters"),
        ("tab\there", "control characters"),
        ("x" * (MOST_CHARACTERS + 1), "128 characters"),
        ("\N{KEY}" * MOST_CHARACTERS, "511 bytes"),
        ("\ud800", "UTF-8"),
    ],
)
def test_passwords_that_cannot_be_used(password: str, problem: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_password(password)
    assert problem in caught.value.message
    assert len(password) < 2 or password not in str(caught.value)
