"""Passwords of the lab's hosts, which begin with a different one each, proven from outside."""

import asyncio
import os
import shlex
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from contracts.passwords import MOST_CHARACTERS
from contracts.secrets import SecretState
from tests.e2e.conftest import HOSTS, add_host, add_topology, enable_bmcs
from tests.e2e.killing import Moments, MortalWorker
from tests.e2e.secrecy import forms, inventory_of, texts_of, watching
from tests.e2e.system import System
from tests.e2e.test_secrets import read
from tests.lab import Lab

pytestmark = pytest.mark.timeout(600)

CLUSTER = "cluster-1"
ODD = (
    'it\'s "quoted"',
    "back\\slash \\n",
    "  spaces  ",
    "$HOME `id` ${x} $(id)",
    "root:x:0:0",
    "äöüß€ 日本語 \N{KEY}",
    ("'\"\\ $:`# äß" * 20)[:MOST_CHARACTERS],
)
STEPS = (
    *("plan_password_rotation", "acquire_hosts", "stage_password", "check_hosts_for_password"),
    *("change_passwords", "promote_password", "release_hosts"),
)
PUT_BACK_STEPS = (*STEPS[:5], "put_passwords_back", "abandon_password", "release_hosts")
NO_ROOT_PASSWORDS = "/etc/ssh/sshd_config.d/10-test.conf"


async def takes(row: dict[str, Any], password: str) -> bool:
    """From outside, with sshpass and OpenSSH's own client, in a new connection."""
    reader, writer = os.pipe()
    os.write(writer, password.encode() + b"\n")
    os.close(writer)
    options = (
        *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
        *("-o", "PubkeyAuthentication=no", "-o", "PreferredAuthentications=password"),
        *("-o", "NumberOfPasswordPrompts=1", "-o", "LogLevel=ERROR", "-F", "none"),
    )
    process = await asyncio.create_subprocess_exec(
        *("sshpass", "-d", str(reader), "ssh", *options, f"root@{row['address']}", "true"),
        pass_fds=(reader,),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    os.close(reader)
    assert process.returncode == 0 or b"Permission denied" in said, said
    return process.returncode == 0


async def all_take(lab: Lab, password: str, hosts: Sequence[str] = HOSTS) -> bool:
    rows = [row for row in (await lab.status())["hosts"] if row["name"] in hosts]
    return all([await takes(row, password) for row in rows])


async def passwords(lab: Lab) -> dict[str, str]:
    """Those that the hosts were made with."""
    rows = (await lab.status())["hosts"]
    return {row["name"]: read(row["password_file"]).strip() for row in rows}


@pytest_asyncio.fixture
async def first(lab: Lab) -> AsyncIterator[dict[str, str]]:
    """What each host begins with, and has again in the end."""
    made_with = await passwords(lab)
    yield made_with
    await lab.power_on()
    for host, password in made_with.items():
        await lab.exec(host, "rm", "-f", NO_ROOT_PASSWORDS)
        await allow(lab, host)
        await lab.exec(host, "systemctl", "reload", "ssh")
        await lab.exec(host, "chpasswd", stdin=f"root:{password}\n")


@pytest_asyncio.fixture
async def system(populated: System, lab: Lab, first: dict[str, str]) -> System:
    """Running, with its hosts added."""
    await populated.up(HOSTLER_LOG_LEVEL="debug")
    return populated


async def rotate(system: System, tmp_path: Path, password: str | None = None, *options: str) -> Any:
    if password is not None:
        path = tmp_path / "new-password"
        path.write_text(password + "\n")
        options = (*options, "--password-file", str(path))
    return await system.hostler("passwords", "rotate", CLUSTER, "--watch", *options)


async def refuse(lab: Lab, host: str) -> None:
    """PAM there refuses every new password, as a rule of its own would."""
    script = (
        "mkdir -p /usr/share/pam-test; cp -n /etc/pam.d/chpasswd /usr/share/pam-test/; "
        "echo password required pam_deny.so >/etc/pam.d/chpasswd"
    )
    await lab.exec(host, "sh", "-c", script)


async def allow(lab: Lab, host: str) -> None:
    """Its PAM is as it was made, if `refuse` has changed it."""
    await lab.exec(host, "cp", "/usr/share/pam-test/chpasswd", "/etc/pam.d/", check=False)


async def test_odd_passwords_on_hosts_that_begin_with_different_ones(
    system: System, lab: Lab, tmp_path: Path, first: dict[str, str]
) -> None:
    rows = (await lab.status())["hosts"]
    assert len(set(first.values())) == len(rows)
    needles = [form for one in (*ODD, *first.values()) for form in forms(one) if len(form) > 10]
    system.forked = False  # their arguments and environments are looked at
    with watching(needles) as watch:
        for password in ODD:
            said = await rotate(system, tmp_path, password)
            assert said.status == 0, said
            assert await all_take(lab, password)
        said = await rotate(system, tmp_path)  # a random one
        assert said.status == 0, said
    assert watch.found == set()
    for row in rows:
        for old in (first[row["name"]], ODD[-1]):
            assert not await takes(row, old)
        shadow = (await lab.exec(row["name"], "grep", "^root:", "/etc/shadow")).stdout
        assert shadow.split(":")[1].startswith("$y$")
    verified = await system.hostler("passwords", "verify", CLUSTER)
    assert verified.status == 0, verified

    async with inventory_of(system) as inventory:
        current = await inventory.cluster_passwords.find(
            CLUSTER, SecretState.CURRENT, account="root"
        )
        assert current is not None
        random_one = (await inventory.secrets.reveal(current[1])).plaintext
    assert await all_take(lab, random_one)
    needles += forms(random_one)
    texts = await texts_of(system)
    assert f"history of rotation/{CLUSTER}" in texts
    assert any(b"RunActivity:change_passwords" in text for text in texts.values())
    found = {name for name, text in texts.items() for form in needles if form in text}
    assert found == set()


async def test_where_sshd_takes_no_password_of_root(
    system: System, lab: Lab, tmp_path: Path
) -> None:
    for row in (await lab.status())["hosts"][:1]:
        line = f"echo PermitRootLogin prohibit-password >{NO_ROOT_PASSWORDS}"
        await lab.exec(row["name"], "sh", "-c", f"{line}; systemctl reload ssh")
    said = await rotate(system, tmp_path, "for-su-alone")
    assert said.status == 0, said
    reports = {
        one["host"]: one["proof"] for one in await system.shown("passwords", "status", CLUSTER)
    }
    assert reports == {"kvm-1": "pam", "kvm-2": "ssh", "kvm-3": "ssh"}
    assert await all_take(lab, "for-su-alone", ("kvm-2", "kvm-3"))
    su = "setpriv --reuid 65534 --regid 65534 --clear-groups su -c true root"
    assert (await lab.exec("kvm-1", *shlex.split(su), stdin="for-su-alone\n")).exit_status == 0


async def test_a_host_that_refuses_has_all_put_back(
    system: System, lab: Lab, tmp_path: Path, first: dict[str, str]
) -> None:
    await refuse(lab, "kvm-2")
    said = await rotate(system, tmp_path, "put-back-again")
    assert (said.status, "kvm-2: " in said.stderr) == (1, True), said
    for row in (await lab.status())["hosts"]:
        assert await takes(row, first[row["name"]])
        assert not await takes(row, "put-back-again")


async def test_a_host_that_was_down_is_brought_up_to_date(
    system: System, lab: Lab, tmp_path: Path
) -> None:
    await enable_bmcs(system, lab)  # whose word makes it Down
    await system.set("host.check.interval", "10")
    await system.set("host.check.timeout", "5")
    await lab.kill("kvm-3")
    while (await system.host("kvm-3"))["status"] != "Down":
        await asyncio.sleep(1)
    refused = await rotate(system, tmp_path, "of-the-others")
    assert (refused.status, "kvm-3 (Down)" in refused.stderr) == (1, True), refused
    said = await rotate(system, tmp_path, "of-the-others", "--leave-out", "kvm-3")
    assert said.status == 0, said
    assert (await system.hostler("passwords", "verify", CLUSTER)).status == 1
    await lab.power_on()
    row = (await lab.status())["hosts"][2]
    while not await takes(row, "of-the-others"):
        await asyncio.sleep(2)


async def test_a_new_host_gets_the_password_of_its_cluster(
    embedded: System, lab: Lab, tmp_path: Path, first: dict[str, str]
) -> None:
    await embedded.up()
    await add_topology(embedded)
    *others, new = (await lab.status())["hosts"]
    for row in others:
        await add_host(embedded, row)
    assert (await rotate(embedded, tmp_path, "of-the-cluster")).status == 0
    await add_host(embedded, new)
    assert await all_take(lab, "of-the-cluster")


async def test_killed_at_each_step(
    populated_split: System, lab: Lab, tmp_path: Path, first: dict[str, str], moments: Moments
) -> None:
    worker = MortalWorker(populated_split, tmp_path / "failpoints")
    await worker.start()
    await refuse(lab, "kvm-3")  # all is put back
    for steps, promoted in ((PUT_BACK_STEPS, False), (STEPS, True)):
        armed = worker.arm(steps, moments)
        operation = asyncio.create_task(rotate(populated_split, tmp_path, "survives-everything"))
        await worker.die_at(armed, operation)
        said = await operation
        assert said.status == (0 if promoted else 1), said
        for row in (await lab.status())["hosts"]:
            assert await takes(row, "survives-everything") is promoted
            assert await takes(row, first[row["name"]]) is not promoted
        await allow(lab, "kvm-3")
