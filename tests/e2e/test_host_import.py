"""The lab's hosts from one file, as an operator adds them."""

import asyncio
from pathlib import Path

import pytest

from tests.e2e.conftest import HOSTS, add_topology
from tests.e2e.system import System
from tests.lab import Lab

pytestmark = pytest.mark.timeout(300)


async def list_of(lab: Lab, *, fingerprints: bool = True) -> str:
    """What the file says."""
    lines = ["defaults: {cluster: cluster-1, capacity_memory_mib: 512}", "hosts:"]
    for row in (await lab.status())["hosts"]:
        lines += [f"  - name: {row['name']}", f"    address: {row['address']}"]
        lines += [f"    password_file: {row['password_file']}"]
        if fingerprints:
            lines += [f"    host_key_sha256: {row['host_key_sha256']}"]
    return "\n".join(lines) + "\n"


async def test_the_labs_hosts_from_one_file(embedded: System, lab: Lab, tmp_path: Path) -> None:
    await embedded.up()
    await add_topology(embedded)
    path = tmp_path / "lab.yaml"
    path.write_text(await list_of(lab))
    said = await embedded.done("host", "import", str(path), "--parallel", "2")
    assert said.endswith(f"{len(HOSTS)} hosts: {len(HOSTS)} added.\n")
    for host in HOSTS:
        assert (await embedded.host(host))["resource_state"] == "Enabled"
    again = await embedded.done("host", "import", str(path))
    assert again.endswith(f"{len(HOSTS)} hosts: {len(HOSTS)} there already.\n")


async def test_keys_are_shown_and_accepted_one_by_one(
    embedded: System, lab: Lab, tmp_path: Path
) -> None:
    await embedded.up()
    await add_topology(embedded)
    path = tmp_path / "lab.yaml"
    path.write_text(await list_of(lab, fingerprints=False))
    importing = asyncio.create_task(embedded.hostler("host", "import", str(path)))
    for row in (await lab.status())["hosts"]:
        command = f"hostler host accept-key {row['name']} {row['host_key_sha256']}"
        while command not in (await embedded.request("GET", "/v1/imports/lab")).text:
            await asyncio.sleep(0.2)
        await embedded.done(*command.split()[1:])
    said = await importing
    assert said.status == 0, said
    assert said.stdout.endswith(f"{len(HOSTS)} hosts: {len(HOSTS)} added.\n")


async def test_one_that_can_not_be_added_fails_no_other(
    embedded: System, lab: Lab, tmp_path: Path
) -> None:
    await embedded.up()
    await add_topology(embedded)
    path, wrong = tmp_path / "lab.yaml", tmp_path / "wrong"
    wrong.write_text("not-it-3141\n")
    good = await list_of(lab)
    first = (await lab.status())["hosts"][0]
    path.write_text(good.replace(first["password_file"], str(wrong), 1))
    said = await embedded.hostler("host", "import", str(path))
    assert said.status == 1, said
    assert f"1 of {len(HOSTS)} hosts were not added." in said.stderr
    assert f"{first['name']} refuses the login" in said.stdout
    assert "not-it-3141" not in said.stdout + said.stderr
    path.write_text(good)
    again = await embedded.done("host", "import", str(path))
    assert again.endswith(f"{len(HOSTS)} hosts: 1 added, {len(HOSTS) - 1} there already.\n")
