"""Rollovers of a CA as the databases keep them: no stage ends before the last host is through."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import ColumnElement
from sqlmodel import col, select

from contracts.certificates import AuthorityState, CertificateRole, RevocationReason
from contracts.errors import Conflict, LeaseLost, NotFound, Unavailable
from contracts.leases import LeaseRef, LeaseScope, Owner
from contracts.rollover import RolloverStage
from contracts.states import HostStatus
from inventory import Inventory
from inventory import rollovers as module
from inventory.authorities import NewAuthority
from inventory.models import CertificateRow, CertificateUpkeepRow, HostRow, now
from tests.inventory.conftest import enabled, into_service, ref, register
from tests.inventory.test_authorities import DAY, authority, certificate

HOSTS = ("kvm-1", "kvm-2")
OPERATION = "rollover/root"
OWNER = Owner(workflow_id=OPERATION, first_run_id="run-1")


async def lease(inventory: Inventory, host: str, owner: Owner = OWNER) -> LeaseRef:
    return ref(await inventory.leases.acquire(host, LeaseScope.TRUST, owner, "test"))


async def trusts(inventory: Inventory, host: str, *names: str) -> None:
    held = await lease(inventory, host)
    await inventory.trust.note(names, lease=held)
    await inventory.leases.release(held)


async def certify(inventory: Inventory, host: str, generation: int, run: str = "run") -> None:
    """It goes by one of that generation, and by no other."""
    request = f"provisioning/{host}/{run}-{generation}/host"
    await record(inventory, host, generation, request)
    await inventory.certificates.install(host, [request], operation="test", actor="test")


async def record(inventory: Inventory, host: str, generation: int, request: str) -> None:
    serial = int.from_bytes(request.encode()) % 2**150
    new = certificate(
        serial,
        request=request,
        host=host,
        generation=generation,
        role=CertificateRole.HOST,
        issued_by=f"provisioning/{host}",
    )
    await inventory.certificates.record(new, actor="test")


async def begun(inventory: Inventory) -> None:
    """Two hosts with certificates of the first CA, and a second one that is to issue next."""
    secret = await inventory.secrets.store("ca_key", "key", actor="test")
    first = authority(1, key_secret_id=secret)
    await inventory.authorities.add(first, after=0, unused=True, operation="test")
    for number, host in enumerate(HOSTS, start=1):
        await enabled(inventory, number)
        await certify(inventory, host, 1)
        await trusts(inventory, host, "root/1")
    await inventory.authorities.add_next(await following(inventory), after=1, operation=OPERATION)


async def following(inventory: Inventory, number: int = 2) -> NewAuthority:
    secret = await inventory.secrets.store("ca_key", "key", actor="test")
    return authority(number, key_secret_id=secret)


async def states(inventory: Inventory) -> Sequence[AuthorityState]:
    return [one.state for one in reversed(await inventory.authorities.of("root"))]


async def stage(inventory: Inventory) -> RolloverStage:
    return (await inventory.rollovers.progress("root")).stage


async def test_no_stage_ends_before_the_last_host_is_through(inventory: Inventory) -> None:
    rollovers = inventory.rollovers
    await begun(inventory)
    for host in HOSTS:
        assert await stage(inventory) is RolloverStage.TRUST
        assert not await rollovers.begin_issuing("root", operation=OPERATION)
        assert (await inventory.trust.wanted(host)).names == ("root/1", "root/2")
        await trusts(inventory, host, "root/1", "root/2")
    # Each step finds its work done, and is no way around the next one.
    for _ in range(2):
        assert await rollovers.begin_issuing("root", operation=OPERATION)
    assert (await inventory.authorities.get("root")).generation == 2
    with pytest.raises(Unavailable, match="just been replaced"):
        await certify(inventory, "kvm-1", 1, "late")

    for host in HOSTS:
        assert await stage(inventory) is RolloverStage.CERTIFICATES
        assert not await rollovers.withdraw("root", operation=OPERATION)
        await certify(inventory, host, 2)
    for _ in range(2):
        assert await rollovers.withdraw("root", operation=OPERATION)

    for host in HOSTS:
        assert await stage(inventory) is RolloverStage.WITHDRAWAL
        assert not await rollovers.end("root", operation=OPERATION)
        assert (await inventory.trust.wanted(host)).names == ("root/2",)
        await trusts(inventory, host, "root/2")
    for _ in range(2):
        assert await rollovers.end("root", operation=OPERATION)
    assert await states(inventory) == [AuthorityState.WITHDRAWN, AuthorityState.CURRENT]
    assert await stage(inventory) is RolloverStage.NONE
    # What the former one has signed may be revoked yet.
    assert [one.generation for one in await inventory.authorities.live()] == [1, 2]
    assert [one.generation for one in await inventory.authorities.trusted()] == [2]
    events = await inventory.events.list(subject="ca/root")
    assert [event.kind for event in reversed(events)] == [
        *("ca.generated", "ca.next", "ca.issuer_changed", "ca.leaving", "ca.withdrawn")
    ]
    told = {event.kind: event.message for event in events}
    assert told["ca.issuer_changed"] == "generation 2, CN=CA 2, issues from now on"
    assert told["ca.withdrawn"] == "generation 1, CN=CA 1, is trusted by no host any more"


async def test_who_comes_in_the_middle_is_waited_for(inventory: Inventory) -> None:
    """A provisioning that was given certificates of the old CA in time."""
    rollovers = inventory.rollovers
    await begun(inventory)
    await enabled(inventory, 3)
    new = Owner(workflow_id="provisioning/kvm-3", first_run_id="run-9")
    held = await lease(inventory, "kvm-3", new)
    await record(inventory, "kvm-3", 1, "provisioning/kvm-3/run-9/host")
    for host in HOSTS:
        await trusts(inventory, host, "root/1", "root/2")
    assert await rollovers.begin_issuing("root", operation=OPERATION)
    for host in HOSTS:
        await certify(inventory, host, 2)
    assert not await rollovers.withdraw("root", operation=OPERATION)
    assert [*(await rollovers.progress("root")).due] == ["kvm-3"]
    # It has them go by these; then it is as all others.
    await inventory.certificates.install(
        "kvm-3", ["provisioning/kvm-3/run-9/host"], operation="x", actor="x"
    )
    await inventory.leases.release(held)
    assert not await rollovers.withdraw("root", operation=OPERATION)
    await certify(inventory, "kvm-3", 2)
    # Those that were replaced count no more, also while the same operation runs there again.
    await lease(inventory, "kvm-3", new.model_copy(update={"first_run_id": "run-10"}))
    assert await rollovers.withdraw("root", operation=OPERATION)


async def test_who_is_being_added_is_waited_for_in_the_first_stage(inventory: Inventory) -> None:
    """It has certificates, and trusts the present CA alone."""
    rollovers = inventory.rollovers
    await begun(inventory)
    await register(inventory, 3)
    await certify(inventory, "kvm-3", 1)
    await trusts(inventory, "kvm-3", "root/1")
    for host in HOSTS:
        await trusts(inventory, host, "root/1", "root/2")
    assert not await rollovers.begin_issuing("root", operation=OPERATION)
    found = await rollovers.progress("root")
    assert [(one.host, one.reason) for one in found.waiting] == [("kvm-3", "it is being added")]
    assert (found.total, found.done, found.is_through) == (3, 2, False)
    await into_service(inventory, 3)
    assert [*(await rollovers.progress("root")).due] == ["kvm-3"]
    await trusts(inventory, "kvm-3", "root/1", "root/2")
    assert await rollovers.begin_issuing("root", operation=OPERATION)


async def test_what_an_addition_has_in_hand_is_waited_for(inventory: Inventory) -> None:
    """In its own lease, a provisioning was given certificates of the old CA in time."""
    rollovers = inventory.rollovers
    await begun(inventory)
    await register(inventory, 3)
    await lease(inventory, "kvm-3", Owner(workflow_id="addition/kvm-3", first_run_id="run-9"))
    await record(inventory, "kvm-3", 1, "provisioning/kvm-3/run-9/run-10/host")
    for host in HOSTS:
        await trusts(inventory, host, "root/1", "root/2")
    assert await rollovers.begin_issuing("root", operation=OPERATION)
    for host in HOSTS:
        await certify(inventory, host, 2)
    assert not await rollovers.withdraw("root", operation=OPERATION)
    found = await rollovers.progress("root")
    assert [(one.host, one.reason) for one in found.waiting] == [("kvm-3", "it is being added")]
    await rollovers.leave_out("root", "kvm-3", "it is away", operation="x", actor="x")
    assert await rollovers.withdraw("root", operation=OPERATION)


async def test_who_is_left_out_holds_up_nobody(inventory: Inventory) -> None:
    rollovers = inventory.rollovers
    await begun(inventory)
    await inventory.hosts.set_status("kvm-2", HostStatus.DOWN, actor="test", reason="test")
    await trusts(inventory, "kvm-1", "root/1", "root/2")
    found = await rollovers.progress("root")
    assert [(one.host, one.reason) for one in found.waiting] == [("kvm-2", "it is Down")]
    assert (found.total, found.done, found.due, found.is_through) == (2, 1, {}, False)
    with pytest.raises(NotFound):
        await rollovers.leave_out("root", "kvm-9", "x", operation="x", actor="x")
    for _ in range(2):
        await rollovers.leave_out("root", "kvm-2", "in repair", operation="x", actor="token:anna")
    found = await rollovers.progress("root")
    assert [(one.host, one.reason) for one in found.left_out] == [("kvm-2", "in repair")]
    assert (found.done, found.is_through) == (1, True)
    (event,) = await inventory.events.list(kind="ca.rollover_left_out")
    assert (event.subject, event.actor) == ("host/kvm-2", "token:anna")
    assert await rollovers.begin_issuing("root", operation=OPERATION)
    await certify(inventory, "kvm-1", 2)
    assert await rollovers.withdraw("root", operation=OPERATION)
    await trusts(inventory, "kvm-1", "root/2")
    assert await rollovers.end("root", operation=OPERATION)
    with pytest.raises(Conflict, match="not being replaced"):
        await rollovers.leave_out("root", "kvm-2", "x", operation="x", actor="x")
    assert (await rollovers.progress("root")).behind == ("kvm-2",)
    # Its own CA stays with it, and it is due for others.
    assert (await inventory.trust.wanted("kvm-2")).names == ("root/1", "root/2")
    due, not_now = await inventory.trust.without(again_after=DAY)
    assert (due, not_now) == ([], {"kvm-2": "it is Down"})
    hosts = await inventory.expiring_certificates.hosts()
    assert [(one.lifetime.host, one.distrusted) for one in hosts] == [
        ("kvm-1", False),
        ("kvm-2", True),
    ]


async def test_who_is_left_out_is_worked_on_once_it_is_there(inventory: Inventory) -> None:
    """After those that are waited for; and in the last stage it needs certificates first."""
    rollovers = inventory.rollovers
    await begun(inventory)
    await rollovers.leave_out("root", "kvm-1", "in repair", operation="x", actor="x")

    async def found() -> tuple[list[str], tuple[str, ...], int, list[str]]:
        one = await rollovers.progress("root")
        return [*one.due], one.to_certify, one.due_count, [left.host for left in one.left_out]

    assert await found() == (["kvm-2", "kvm-1"], (), 1, ["kvm-1"])
    await trusts(inventory, "kvm-2", "root/1", "root/2")
    assert await found() == (["kvm-1"], (), 0, ["kvm-1"])
    assert await rollovers.begin_issuing("root", operation=OPERATION)
    assert await found() == (["kvm-2", "kvm-1"], ("kvm-2", "kvm-1"), 1, ["kvm-1"])
    await certify(inventory, "kvm-2", 2)
    assert await rollovers.withdraw("root", operation=OPERATION)
    assert await found() == (["kvm-2", "kvm-1"], ("kvm-1",), 1, ["kvm-1"])
    await certify(inventory, "kvm-1", 2)
    assert await found() == (["kvm-2", "kvm-1"], (), 1, ["kvm-1"])
    for host in HOSTS:
        await trusts(inventory, host, "root/2")
    assert await found() == ([], (), 0, [])


async def test_a_page_has_hosts_of_each_cluster_and_the_busy_ones_last(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begun(inventory)
    topology = inventory.topology
    await topology.create_cluster("cluster-2", "pod-1", actor="test")
    for number in (3, 4, 5):
        await register(inventory, number, cluster="cluster-1" if number == 3 else "cluster-2")
        await into_service(inventory, number)
        await certify(inventory, f"kvm-{number}", 1)
    await inventory.rollovers.leave_out("root", "kvm-4", "test", operation="x", actor="x")

    async def page(most: int, *busy: str) -> list[str]:
        monkeypatch.setattr(module, "_MOST_DUE", most)
        return [*(await inventory.rollovers.progress("root", busy=busy)).due]

    assert await page(3) == ["kvm-1", "kvm-5", "kvm-2"]
    assert await page(5) == ["kvm-1", "kvm-5", "kvm-2", "kvm-3", "kvm-4"]
    assert await page(3, "kvm-1", "kvm-5") == ["kvm-2", "kvm-3", "kvm-4"]


async def test_who_was_revoked_is_left_to_those_who_did_it(inventory: Inventory) -> None:
    rollovers, certificates = inventory.rollovers, inventory.certificates
    await begun(inventory)
    (of_it,) = await certificates.list(host="kvm-2")
    await certificates.revoke(of_it, RevocationReason.KEY_COMPROMISE, operation="x", actor="anna")
    await trusts(inventory, "kvm-1", "root/1", "root/2")
    found = await rollovers.progress("root")
    assert [(one.host, one.reason) for one in found.left_out] == [
        ("kvm-2", "its certificates are revoked: hostler cert provision kvm-2")
    ]
    # It may know of the next CA.
    assert ([*found.due], found.is_through) == (["kvm-2"], True)
    assert await rollovers.begin_issuing("root", operation=OPERATION)
    await certify(inventory, "kvm-1", 2)
    found = await rollovers.progress("root")
    assert (found.due, found.left_out_count, found.is_through) == ({}, 1, True)
    # Somebody has given it others of the old CA, just in time.
    giver = Owner(workflow_id="provisioning/kvm-2", first_run_id="run-9")
    async with inventory.database.writing() as session:
        row = (await session.exec(select(CertificateRow).where(is_of("kvm-2")))).one()
        session.add(
            CertificateRow(
                **{
                    **row.model_dump(),
                    "request": "provisioning/kvm-2/run-9/host",
                    "serial": "9",
                    "revoked_at": None,
                    "installed_at": None,
                }
            )
        )
    held = await lease(inventory, "kvm-2", giver)
    assert not await rollovers.withdraw("root", operation=OPERATION)
    await inventory.leases.release(held)
    assert await rollovers.withdraw("root", operation=OPERATION)
    assert (await rollovers.progress("root")).due == {"kvm-1": "cluster-1"}


def is_of(host: str) -> ColumnElement[bool]:
    return col(CertificateRow.host) == host


async def test_what_went_wrong_is_tried_again_later_or_after_an_absence(
    inventory: Inventory,
) -> None:
    await begun(inventory)
    for _ in range(2):
        await inventory.trust.note_missing(
            "kvm-2", ("root/1", "root/2"), "No space left", operation=OPERATION
        )
    assert len(await inventory.events.list(kind="certificate.trust_not_changed")) == 1
    found = await inventory.rollovers.progress("root")
    assert (found.due, found.waiting[0].reason) == ({"kvm-1": "cluster-1"}, "No space left")
    due, not_now = await inventory.trust.without(again_after=DAY)
    assert (due, not_now) == (["kvm-1"], {"kvm-2": "No space left"})
    for status in (HostStatus.DOWN, HostStatus.UP):
        await inventory.hosts.set_status("kvm-2", status, actor="test", reason="test")
    assert [*(await inventory.rollovers.progress("root")).due] == [*HOSTS]
    await trusts(inventory, "kvm-2", "root/1", "root/2")
    assert [*(await inventory.rollovers.progress("root")).due] == ["kvm-1"]


async def test_certificates_are_tried_again_as_seldom_as_in_a_renewal(
    inventory: Inventory,
) -> None:
    """Each attempt costs two that are revoked again."""
    await begun(inventory)
    for host in HOSTS:
        await trusts(inventory, host, "root/1", "root/2")
    assert await inventory.rollovers.begin_issuing("root", operation=OPERATION)
    await inventory.expiring_certificates.note_renewal("kvm-2", "No space left.")

    async def tried(ago: timedelta) -> Sequence[str]:
        """Why it is waited for."""
        async with inventory.database.writing() as session:
            row = await session.get_one(CertificateUpkeepRow, "kvm-2")
            row.renewal_tried_at = now() - ago
            session.add(row)
        return [one.reason for one in (await inventory.rollovers.progress("root")).waiting]

    # It came into service a moment before.
    async with inventory.database.writing() as session:
        back = (await session.exec(select(HostRow).where(col(HostRow.name) == "kvm-2"))).one()
        back.status_since = now() - timedelta(days=1)
        session.add(back)
    assert await tried(timedelta(hours=5, minutes=59)) == [
        "No space left. It is tried again 6 hours after that, when it was away, or at once by: "
        "hostler cert provision kvm-2"
    ]
    assert await tried(timedelta(hours=6, minutes=1)) == []


async def test_the_next_one_is_made_once(inventory: Inventory) -> None:
    authorities = inventory.authorities
    await begun(inventory)
    others = [await following(inventory, number) for number in range(3, 8)]
    found = await asyncio.gather(
        *(authorities.add_next(one, after=1, operation=OPERATION) for one in others)
    )
    assert {(one.authority.generation, one.authority.subject) for one in found} == {(2, "CN=CA 2")}
    assert await states(inventory) == [AuthorityState.CURRENT, AuthorityState.NEXT]
    with pytest.raises(Conflict, match="is being replaced"):
        await authorities.add(
            await following(inventory, 9), after=1, unused=False, operation="test"
        )


async def test_none_is_imported_in_the_middle(inventory: Inventory) -> None:
    """Also one that has issued nothing yet is in the place of another one."""
    authorities, rollovers = inventory.authorities, inventory.rollovers

    async def assert_refused() -> None:
        with pytest.raises(Conflict, match="CN=CA 1 is being replaced by CN=CA 2"):
            await authorities.add(
                await following(inventory, 9), after=2, unused=True, operation="test"
            )

    await begun(inventory)
    for host in HOSTS:
        await trusts(inventory, host, "root/1", "root/2")
        await rollovers.leave_out("root", host, "test", operation="x", actor="x")
    assert await rollovers.begin_issuing("root", operation=OPERATION)
    await assert_refused()
    assert await rollovers.withdraw("root", operation=OPERATION)
    await assert_refused()
    assert await rollovers.end("root", operation=OPERATION)
    third = await authorities.add(
        await following(inventory, 3), after=2, unused=True, operation="test"
    )
    assert third.authority.generation == 3


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_a_provisioning_that_ends_while_a_stage_is_to_end_is_not_overlooked(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two of the statements that look who is through."""
    await begun(inventory)
    await enabled(inventory, 3)
    holder = Owner(workflow_id="provisioning/kvm-3", first_run_id="run-9")
    held = await lease(inventory, "kvm-3", holder)
    request = "provisioning/kvm-3/run-9/host"
    await record(inventory, "kvm-3", 1, request)
    for host in HOSTS:
        await trusts(inventory, host, "root/1", "root/2")
    assert await inventory.rollovers.begin_issuing("root", operation=OPERATION)
    for host in HOSTS:
        await certify(inventory, host, 2)
    ended: list[str] = []

    def ends_after(name: str) -> None:
        read = getattr(module, name)

        async def reads(*words: object) -> object:
            found = await read(*words)
            if not ended:
                ended.append(name)
                await inventory.certificates.install("kvm-3", [request], operation="x", actor="x")
                await inventory.leases.release(held)
            return found

        monkeypatch.setattr(module, name, reads)

    ends_after("issuers_of")
    ends_after("_in_hand")
    assert not await inventory.rollovers.withdraw("root", operation=OPERATION)
    assert len(ended) == 1


async def test_a_next_one_that_was_dropped_does_not_come_back(inventory: Inventory) -> None:
    authorities, rollovers = inventory.authorities, inventory.rollovers
    await begun(inventory)
    await trusts(inventory, "kvm-1", "root/1", "root/2")
    for _ in range(2):  # a worker that dies after the first one asks again
        assert await rollovers.drop_next("root", operation=OPERATION)
    assert await states(inventory) == [AuthorityState.CURRENT, AuthorityState.WITHDRAWN]
    (event,) = await inventory.events.list(kind="ca.next_dropped")
    assert event.message == "generation 2, CN=CA 2, does not come"
    due, _ = await inventory.trust.without(again_after=DAY)
    assert due == ["kvm-1"]
    # Whoever has begun before that comes too late, and its name is taken.
    with pytest.raises(Conflict, match="just been replaced"):
        await authorities.add_next(await following(inventory, 3), after=1, operation="late")
    with pytest.raises(Conflict, match="CN=CA 1 is, or was, in use"):
        await authorities.add_next(await following(inventory, 1), after=2, operation="x")
    next_one = await authorities.add_next(await following(inventory, 3), after=2, operation="x")
    assert next_one.authority.generation == 3
    # One that issues can't be dropped.
    for host in HOSTS:
        await trusts(inventory, host, "root/1", "root/3")
    assert await rollovers.begin_issuing("root", operation=OPERATION)
    assert not await rollovers.drop_next("root", operation=OPERATION)
    assert (await authorities.get("root")).generation == 3


async def test_a_next_one_that_was_dropped_before_it_issued_may_come_again(
    inventory: Inventory,
) -> None:
    authorities, rollovers = inventory.authorities, inventory.rollovers
    await begun(inventory)
    draft = await authorities.begin_crl("root", 2, kept=DAY)
    assert await rollovers.drop_next("root", operation=OPERATION)
    another = replace(await following(inventory, 2), chain=("another chain\n",))
    with pytest.raises(Conflict, match="CN=CA 2 is, or was, in use"):
        await authorities.add_next(another, after=2, operation="x")
    again = await authorities.add_next(await following(inventory, 2), after=2, operation="x")
    assert again.authority.generation == 3
    assert await states(inventory) == [
        *(AuthorityState.CURRENT, AuthorityState.WITHDRAWN, AuthorityState.NEXT)
    ]
    # Its name has lists already: the next ones are newer.
    assert (await authorities.begin_crl("root", 3, kept=DAY)).number > draft.number
    assert {"root/2", "root/3"} & {one.name for one in await authorities.live()} == {"root/3"}
    # Nor one that has issued.
    for host in HOSTS:
        await trusts(inventory, host, "root/1", "root/3")
    assert await rollovers.begin_issuing("root", operation=OPERATION)
    for host in HOSTS:
        await certify(inventory, host, 3)
    assert await rollovers.withdraw("root", operation=OPERATION)
    for host in HOSTS:
        await trusts(inventory, host, "root/3")
    assert await rollovers.end("root", operation=OPERATION)
    for number in (1, 2):
        with pytest.raises(Conflict, match=f"CN=CA {number} is, or was, in use"):
            await authorities.add_next(await following(inventory, number), after=3, operation="x")


async def test_recording_and_the_change_of_the_issuer_at_once(inventory: Inventory) -> None:
    """Either it counts as one of the old CA, or it is not recorded."""
    await begun(inventory)
    for host in HOSTS:
        await trusts(inventory, host, "root/1", "root/2")
    outcomes = await asyncio.gather(
        inventory.rollovers.begin_issuing("root", operation=OPERATION),
        *(record(inventory, "kvm-1", 1, f"r/{number}") for number in range(5)),
        return_exceptions=True,
    )
    assert outcomes[0] is True
    recorded = [one for one in outcomes[1:] if one is None]
    refused = [one for one in outcomes[1:] if isinstance(one, Unavailable)]
    assert len(recorded) + len(refused) == 5
    assert len(await inventory.certificates.list(host="kvm-1")) == 1 + len(recorded)


async def test_who_has_lost_its_lease_notes_nothing(inventory: Inventory) -> None:
    await begun(inventory)
    held = await lease(inventory, "kvm-1")
    await inventory.leases.release(held)
    with pytest.raises(LeaseLost):
        await inventory.trust.note(("root/1", "root/2"), lease=held)
    assert await inventory.trust.of_host("kvm-1") == ("root/1",)


async def test_an_external_ca_that_has_changed_is_trusted_beside_the_former_one(
    inventory: Inventory,
) -> None:
    await enabled(inventory, 1)
    for number in (1, 2):
        external = authority(number, provider="vault", origin="external")
        await inventory.authorities.add(external, after=number - 1, unused=False, operation="test")
        if number == 1:
            new = certificate(1, provider="vault", request="r")
            await inventory.certificates.record(new, actor="test")
            await inventory.certificates.install("kvm-1", ["r"], operation="t", actor="t")
    assert (await inventory.trust.wanted("kvm-1")).names == ("vault/1", "vault/2")
    progress = await inventory.rollovers.progress("vault")
    assert (progress.stage, progress.current) == (RolloverStage.CERTIFICATES, 2)
    with pytest.raises(NotFound, match="'root' has no certificate authority yet"):
        await inventory.rollovers.progress("root")
