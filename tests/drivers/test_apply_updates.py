"""The hook apply-updates: with apt and a repository of its own on a lab host; with dnf's answers
recorded, since there is no such host here."""

import importlib.resources
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.drivers.conftest import DESTINATION
from tests.lab import Lab, Said

SCRIPT = importlib.resources.files("drivers.hooks").joinpath("apply-updates").read_text()
PACKAGE = "hostler-lab-canary"
PREPARE = """
set -eu
mkdir -p /root/repository /root/sources.away
mv /etc/apt/sources.list /etc/apt/sources.list.d/* /root/sources.away/ 2>/dev/null || :
echo 'deb [trusted=yes] file:/root/repository ./' >/etc/apt/sources.list.d/hostler-lab.list
"""
PUBLISH = """
set -eu
cd /root/repository
mkdir -p tree/DEBIAN tree/etc
printf 'Package: %s\\nVersion: %s\\nArchitecture: all\\n' "$1" "$2" >tree/DEBIAN/control
printf 'Maintainer: lab <lab@localhost>\\nDescription: nothing\\n' >>tree/DEBIAN/control
echo /etc/hostler-lab.conf >tree/DEBIAN/conffiles
echo "of $2" >tree/etc/hostler-lab.conf
printf '#!/bin/sh\\n%s\\n' "$3" >tree/DEBIAN/postinst
chmod 755 tree/DEBIAN/postinst
dpkg-deb --root-owner-group --build tree "$1_$2_all.deb" >/dev/null
rm -rf tree
: >Packages
for deb in *.deb; do
    dpkg-deb --field "$deb" >>Packages
    printf 'Filename: ./%s\\nSize: %s\\nSHA256: %s\\n\\n' "$deb" "$(stat -c %s "$deb")" \
        "$(sha256sum "$deb" | cut -d' ' -f1)" >>Packages
done
"""
CLEAN = f"""
dpkg --purge --force-all {PACKAGE} >/dev/null 2>&1
rm -rf /root/repository /etc/apt/sources.list.d/hostler-lab.list /etc/hostler-lab.conf*
rm -f /run/reboot-required
mv /root/sources.away/*.list /root/sources.away/*.sources /etc/apt/sources.list.d/ 2>/dev/null
mv /etc/apt/sources.list.d/sources.list /etc/apt/ 2>/dev/null
rm -rf /root/sources.away /var/lib/apt/lists/*
:
"""


class Repository:
    """The only one that the host knows."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    async def publish(self, version: str, postinst: str = "") -> None:
        await self.sh(PUBLISH, PACKAGE, version, postinst)

    async def sh(self, script: str, *words: str, check: bool = True) -> Said:
        return await self._lab.exec(DESTINATION, "sh", "-c", script, "sh", *words, check=check)

    async def apply(self) -> Said:
        return await self.sh(SCRIPT, check=False)


@pytest.fixture
async def repository(lab: Lab) -> AsyncIterator[Repository]:
    repository = Repository(lab)
    await repository.sh(CLEAN)
    await repository.sh(PREPARE)
    await repository.publish("1.0")
    await repository.sh(f"apt-get -qq update; apt-get -qq install {PACKAGE}")
    yield repository
    await repository.sh(CLEAN)


async def test_apt_says_what_has_changed_and_keeps_configuration_files(
    repository: Repository,
) -> None:
    await repository.sh("echo mine >/etc/hostler-lab.conf")
    await repository.publish("1.1")
    said = await repository.apply()
    assert said.exit_status == 0, said
    *_, change, reboot = said.stdout.splitlines()
    assert change == f"{PACKAGE}:all 1.0 -> 1.1"
    assert reboot == "reboot wanted: no"
    assert (await repository.sh("cat /etc/hostler-lab.conf")).stdout == "mine\n"

    again = await repository.apply()
    assert again.exit_status == 0
    assert again.stdout == "nothing to update\nreboot wanted: no\n"


async def test_apt_wants_a_reboot_when_the_distribution_says_so(repository: Repository) -> None:
    await repository.publish("1.1", "touch /run/reboot-required")
    said = await repository.apply()
    assert said.exit_status == 0
    assert said.stdout.splitlines()[-2:] == [f"{PACKAGE}:all 1.0 -> 1.1", "reboot wanted: yes"]


async def test_apt_fails_and_its_next_run_ends_what_it_has_begun(repository: Repository) -> None:
    await repository.publish("1.1", "[ -e /root/repository/repaired ]")
    said = await repository.apply()
    assert said.exit_status != 0
    assert f"apply-updates failed: apt ended with status {said.exit_status}" in said.stderr
    assert "nothing to update" not in said.stdout
    await repository.sh("touch /root/repository/repaired")
    assert (await repository.apply()).exit_status == 0
    version = await repository.sh(f"dpkg-query -W -f '${{Version}} ${{Status}}' {PACKAGE}")
    assert version.stdout == "1.1 install ok installed"


async def test_a_repository_that_is_away_is_a_failure(repository: Repository) -> None:
    await repository.sh("rm -r /root/repository /var/lib/apt/lists/*")
    said = await repository.apply()
    assert said.exit_status != 0
    assert "nothing to update" not in said.stdout


def with_dnf(
    directory: Path, before: str, after: str, status: int
) -> subprocess.CompletedProcess[str]:
    """Run the hook where the only package manager is dnf, as recorded."""
    programs = {
        "dnf": f'echo "$*" >{directory}/asked; cp {directory}/after {directory}/now; exit {status}',
        "rpm": f"cat {directory}/now",
    }
    (directory / "now").write_text(before)
    (directory / "after").write_text(after)
    for name, body in programs.items():
        (directory / name).write_text(f"#!/bin/sh\n{body}\n")
        (directory / name).chmod(0o755)
    for name in ("sort", "comm", "awk", "grep", "cat", "cp", "rm", "mktemp"):
        (directory / name).symlink_to(f"/usr/bin/{name}")
    return subprocess.run(
        ["/bin/sh", "-c", SCRIPT],
        env={**os.environ, "PATH": str(directory)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_dnf_keeps_old_kernels_beside_the_new_one(tmp_path: Path) -> None:
    said = with_dnf(
        tmp_path,
        "bash.x86_64 5.1.8-6\nkernel.x86_64 5.14-1\nkernel.x86_64 5.14-2\nold.noarch 1-1\n",
        "bash.x86_64 5.1.8-9\nkernel.x86_64 5.14-2\nkernel.x86_64 5.14-3\nnew.noarch 1-1\n",
        0,
    )
    assert said.returncode == 0
    assert said.stdout.splitlines() == [
        "bash.x86_64 5.1.8-6 -> 5.1.8-9",
        "kernel.x86_64 5.14-1 -> 5.14-3",
        "new.noarch (none) -> 1-1",
        "old.noarch 1-1 -> (none)",
        "reboot wanted: yes",
    ]
    assert (tmp_path / "asked").read_text() == "--quiet --assumeyes --refresh upgrade\n"


def test_dnf_that_fails_is_a_failure_and_what_changed_is_said(tmp_path: Path) -> None:
    said = with_dnf(tmp_path, "bash.x86_64 1-1\n", "bash.x86_64 1-2\n", 1)
    assert said.returncode == 1
    assert said.stdout == "bash.x86_64 1-1 -> 1-2\nreboot wanted: no\n"
    assert said.stderr == "apply-updates failed: dnf ended with status 1\n"


def test_neither_apt_nor_dnf(tmp_path: Path) -> None:
    said = subprocess.run(
        ["/bin/sh", "-c", SCRIPT],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 69
    assert "neither" in said.stderr
