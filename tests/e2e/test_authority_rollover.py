"""Another CA takes the place of the one that issues, while VMs run, and migrate between all."""

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from temporalio.client import WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import CancelledError

from contracts.certificates import certificates_in
from drivers.authorities.x509 import is_signed_by
from tests.authorities.samples import KEYS, csr, key_pem, write
from tests.e2e.conftest import HOSTS
from tests.e2e.killing import Moments, MortalWorker
from tests.e2e.proofs import assert_ticks, places
from tests.e2e.system import System
from tests.e2e.test_certificates import STEPS, Client, assert_whole, installed
from tests.e2e.test_health import prepare, run_round
from tests.lab import Lab

pytestmark = pytest.mark.timeout(2400)

AWAY = "kvm-3"
ROLLOVER_STEPS = (
    "find_rollover",
    "prepare_next_authority",
    "look_at_rollover",
    "publish_crl",
    "deliver_crls",
    "begin_issuing",
    "renew_own_certificate",
    "note_rollover",
    "withdraw_authority",
    "end_rollover",
)
# The host that goes by it, and the CAs that its libvirt and its QEMU trust.
_TRUSTED = "cat /etc/pki/CA/cacert.pem; echo QEMU:; cat /etc/pki/qemu/ca-cert.pem"


@pytest_asyncio.fixture
async def system(populated: System, lab: Lab) -> System:
    """Running, with three secured hosts; rounds of checks begin when a test says so."""
    await populated.up()
    await populated.done("cert", "secure", "cluster-1")
    await prepare(populated)
    return populated


async def addresses_of(lab: Lab) -> dict[str, str]:
    return {row["name"]: row["address"] for row in (await lab.status())["hosts"]}


async def migrate_between_all(lab: Lab) -> None:
    """vm-1 goes over each pair of hosts, in both directions, by TLS from end to end."""
    addresses = await addresses_of(lab)
    # Each ordered pair once, as one way through all of them.
    first, second, third = HOSTS
    way: tuple[str, ...] = (first, second, third, second, first, third, first)
    assert {*itertools.pairwise(way)} == {*itertools.permutations(HOSTS, 2)}
    where = (await places(lab))["vm-1"]
    if where != first:
        way = (where, *way)
    for source, destination in itertools.pairwise(way):
        address = addresses[destination]
        await lab.virsh(
            *(source, "migrate", "--live", "--p2p", "--tls", "--persistent", "--undefinesource"),
            *("vm-1", f"qemu+tls://{address}/system", "--migrateuri", f"tcp://{address}"),
        )
    await assert_ticks(lab)


async def until(
    system: System, wanted: Callable[[dict[str, Any]], bool], of: str = ""
) -> dict[str, Any]:
    """The rollover's view as soon as it is as wanted; `of`: the query that says which one."""
    while True:
        view: dict[str, Any] = (await system.request("GET", f"/v1/ca/rollover{of}")).json()
        if view["status"] is not None and wanted(view):
            return view
        await asyncio.sleep(0.2)


def waits_for_the_one_away(view: dict[str, Any]) -> bool:
    progress = view["progress"]
    waiting = [one["host"] for one in progress["waiting"]]
    return progress["due_count"] == 0 and waiting == [AWAY]


async def trusted(lab: Lab, host: str) -> tuple[int, int]:
    """How many CAs the host's libvirt trusts, and its QEMU; none of them is trusted by both."""
    said = (await lab.exec(host, "sh", "-c", _TRUSTED)).stdout
    libvirt, qemu = (certificates_in(part) for part in said.split("QEMU:\n"))
    assert not {*libvirt} & {*qemu}
    return len(libvirt), len(qemu)


def some_have_new_ones(view: dict[str, Any]) -> bool:
    progress = view["progress"]
    return bool(progress["stage"] == "certificates" and progress["done"])


async def _pause(system: System, of: str = "") -> None:
    """By the API, before two others have begun."""
    paused = await system.request("POST", f"/v1/ca/rollover/pause{of}")
    assert paused.status_code == 204, paused.text


async def _until_cancelled(rollover: WorkflowHandle[Any, Any]) -> None:
    with pytest.raises(WorkflowFailureError) as failure:
        await rollover.result()
    assert isinstance(failure.value.cause, CancelledError)


async def test_all_hosts_trust_each_other_all_along(
    system: System, lab: Lab, tmp_path: Path
) -> None:
    """With one that is away in the middle, and with hosts of both CAs beside each other."""
    addresses = await addresses_of(lab)
    key = write(tmp_path / "key.pem", key_pem(KEYS["P-256"]))
    request = write(tmp_path / "request.pem", csr(KEYS["P-256"]))

    async def controller(name: str) -> tuple[Path, Client]:
        """A CA's anchor, and who comes with a certificate of it that is good for Hostler."""
        anchor = tmp_path / f"{name}-ca.pem"
        await system.done("ca", "chain", "--out", str(anchor))
        pem = await system.done("cert", "sign", "--role", "controller", "--csr-file", str(request))
        return anchor, Client(anchor, write(tmp_path / f"{name}.pem", pem), key)

    former_anchor, former = await controller("former")
    for host in HOSTS:
        assert (await asyncio.to_thread(former.connect, addresses[host]))[1]
    before = {host: (await installed(system, host))["host"]["serial"] for host in HOSTS}
    await system.set("ca.framework.cert.renewal.concurrency", "1")

    # One is away: nothing issues, whatever is old is in force.
    await lab.cut(AWAY)
    try:
        for _ in range(2):
            await run_round(system)
        await system.done("ca", "rollover", "--reason", "a test")
        await until(system, waits_for_the_one_away)
        shown = await system.done("ca", "rollover", "status")
        assert f"hostler ca rollover leave-out {AWAY}" in shown
        await system.done("ca", "rollover", "pause")
    finally:
        await lab.heal(AWAY)
    await run_round(system)
    assert (await system.host(AWAY))["status"] == "Up"
    for host in HOSTS:
        # Rounds of checks tell who is back which CAs to trust, pause or not.
        assert await trusted(lab, host) in (((1, 1), (2, 1)) if host == AWAY else ((2, 1),))
    for host in HOSTS:
        serial, came_in = await asyncio.to_thread(former.connect, addresses[host])
        assert (serial, came_in) == (before[host], True)
    await migrate_between_all(lab)
    await system.done("ca", "rollover", "resume")

    # Some have certificates of the one, some of the other.
    await until(system, some_have_new_ones)
    await _pause(system)
    assert {host: await trusted(lab, host) for host in HOSTS} == dict.fromkeys(HOSTS, (2, 1))
    await migrate_between_all(lab)
    for host in HOSTS:
        await assert_whole(lab, host)
    new = [
        host for host in HOSTS if (await installed(system, host))["host"]["serial"] != before[host]
    ]
    assert 0 < len(new) < len(HOSTS)
    await system.done("ca", "rollover", "resume")

    said = await system.done("ca", "rollover", "status", "--watch")
    assert "Generation 2 of root issues" in said
    await system.record("rollover/root", "authority_rollover")
    anchor, present = await controller("present")
    assert anchor.read_text() != former_anchor.read_text()
    # Hosts show certificates of the new CA, and let in nobody of the old one.
    stranger = Client(anchor, tmp_path / "former.pem", key)
    for host in HOSTS:
        one = (await installed(system, host))["host"]
        assert is_signed_by(one["pem"], anchor.read_text())
        assert await asyncio.to_thread(present.connect, addresses[host]) == (one["serial"], True)
        assert await asyncio.to_thread(stranger.connect, addresses[host]) == (one["serial"], False)
        assert await trusted(lab, host) == (1, 1)
        assert (await system.host(host))["tls"] == "secured"
        await assert_whole(lab, host)
        found = await system.shown("doctor", "tls", host)
        assert [one for one in found["findings"] if one["severity"] == "error"] == []
    await migrate_between_all(lab)

    # The CA of the cluster's QEMUs is replaced in the same way, by itself.
    of_qemus = ("--cluster", "cluster-1")
    former_chain = await system.done("ca", "chain", *of_qemus)
    await system.done("ca", "rollover", *of_qemus)
    await until(system, some_have_new_ones, "?cluster=cluster-1")
    await _pause(system, "?cluster=cluster-1")
    assert {host: await trusted(lab, host) for host in HOSTS} == dict.fromkeys(HOSTS, (1, 2))
    await migrate_between_all(lab)
    await system.done("ca", "rollover", "resume", *of_qemus)
    said = await system.done("ca", "rollover", "status", "--watch", *of_qemus)
    assert "-qemu issues, and hosts trust no other one" in said
    chain = await system.done("ca", "chain", *of_qemus)
    assert chain != former_chain
    for host in HOSTS:
        certified = await installed(system, host)
        assert is_signed_by(certified["qemu"]["pem"], chain)
        assert is_signed_by(certified["host"]["pem"], anchor.read_text())
        assert await trusted(lab, host) == (1, 1)
        await assert_whole(lab, host)
    await migrate_between_all(lab)


async def test_a_worker_killed_at_each_step(
    populated_split: System, lab: Lab, tmp_path: Path, moments: Moments
) -> None:
    worker = MortalWorker(populated_split, tmp_path / "failpoints")
    await worker.start()
    await populated_split.done("cert", "secure", "cluster-1")
    armed = worker.arm((*ROLLOVER_STEPS, *STEPS), moments)
    replacing = asyncio.create_task(populated_split.done("ca", "rollover", "--watch"))
    await worker.die_at(armed, replacing)
    await replacing
    shown = await populated_split.shown("ca", "show")
    assert (shown["generation"], shown["state"]) == (2, "current")
    anchor = tmp_path / "ca.pem"
    await populated_split.done("ca", "chain", "--out", str(anchor))
    for host in HOSTS:
        await assert_whole(lab, host)
        assert await trusted(lab, host) == (1, 1)
        assert is_signed_by(
            (await installed(populated_split, host))["host"]["pem"], anchor.read_text()
        )
    await migrate_between_all(lab)


async def test_a_worker_killed_while_it_takes_back_the_next_ca(
    populated_split: System, lab: Lab, tmp_path: Path, moments: Moments
) -> None:
    """A rollover is cancelled before its CA issues: then no host trusts that one."""
    system = populated_split
    worker = MortalWorker(system, tmp_path / "failpoints")
    await worker.start()
    for host in HOSTS:
        await system.done("cert", "provision", host)
    await prepare(system)
    await lab.cut(AWAY)
    try:
        for _ in range(2):
            await run_round(system)
        await system.done("ca", "rollover")
        await until(system, waits_for_the_one_away)
        assert [await trusted(lab, host) for host in HOSTS if host != AWAY] == [(2, 1)] * 2
        armed = worker.arm(("drop_next_authority",), moments)
        rollover = await system.workflow("rollover/root")
        cancelled = asyncio.create_task(_until_cancelled(rollover))
        await system.done("operation", "cancel", "rollover", "root")
        await worker.die_at(armed, cancelled)
        await cancelled
    finally:
        await lab.heal(AWAY)
    progress = (await system.shown("ca", "rollover", "status"))["progress"]
    assert (progress["current"], progress["newest"], progress["stage"]) == (1, 2, "none")
    for host in HOSTS:
        assert await trusted(lab, host) == (1, 1)
        await assert_whole(lab, host)
    await migrate_between_all(lab)
