import asyncio
from collections.abc import Sequence
from functools import partial

import pytest
from sqlmodel import select

from contracts.errors import Conflict, LeaseLost, NotFound
from contracts.leases import LeaseRef
from contracts.secrets import SecretState
from contracts.states import HostStatus, ResourceState
from inventory import Database, Inventory
from inventory.models import ClusterPasswordRow, SecretVersionRow
from tests.inventory.conftest import OTHER, acquire, enabled, ref, register

ROOT_ACCOUNT = {"account": "root"}


@pytest.fixture
async def leases(inventory: Inventory) -> list[LeaseRef]:
    """Of kvm-1 to kvm-3, each with a password of its own: `pw`."""
    held = []
    for number in (1, 2, 3):
        host = await enabled(inventory, number)
        held.append(ref(await acquire(inventory, host=host.name)))
    return held


async def stage(inventory: Inventory, plaintext: str) -> tuple[int, str]:
    """Its number, and its id."""
    number = await inventory.cluster_passwords.stage(
        "cluster-1", plaintext, account="root", actor="token:anna"
    )
    (secret,) = [
        version.id
        for version in await inventory.cluster_passwords.versions("cluster-1")
        if version.version == number
    ]
    assert secret is not None
    return number, secret


async def states(inventory: Inventory) -> list[tuple[int | None, str | None, tuple[str, ...]]]:
    return [
        (version.version, version.state, version.hosts)
        for version in await inventory.cluster_passwords.versions("cluster-1")
    ]


async def promote(
    inventory: Inventory, version: int, leases: Sequence[LeaseRef], *left_out: str
) -> None:
    await inventory.cluster_passwords.promote(
        "cluster-1",
        version,
        leases=leases,
        left_out=dict.fromkeys(left_out, "disk broken"),
        operation="rotation/cluster-1",
        **ROOT_ACCOUNT,
    )


async def rotate(inventory: Inventory, leases: Sequence[LeaseRef], plaintext: str) -> str:
    number, secret = await stage(inventory, plaintext)
    for lease in leases:
        await give(inventory, secret, lease)
    await promote(inventory, number, leases)
    return secret


async def give(inventory: Inventory, secret: str, lease: LeaseRef) -> None:
    """As an operation does that is not disturbed."""
    await inventory.cluster_passwords.attempt(secret, lease=lease, **ROOT_ACCOUNT)
    await inventory.cluster_passwords.record(secret, lease=lease, **ROOT_ACCOUNT)


async def login_of(inventory: Inventory, host: str) -> str:
    secret = (await inventory.hosts.login(host)).secret_id
    return (await inventory.secrets.reveal(secret)).plaintext


async def tried(inventory: Inventory, host: str) -> list[str]:
    return [
        (await inventory.secrets.reveal(secret)).plaintext
        for secret in await inventory.cluster_passwords.candidates(host, **ROOT_ACCOUNT)
    ]


async def stored(database: Database) -> int:
    async with database.reading() as session:
        return len((await session.exec(select(SecretVersionRow.id))).all())


async def test_a_version_goes_through_all_its_states(
    inventory: Inventory, leases: list[LeaseRef], database: Database
) -> None:
    everywhere = ("kvm-1", "kvm-2", "kvm-3")
    assert await states(inventory) == []
    first, secret = await stage(inventory, "first")
    assert await states(inventory) == [(first, SecretState.STAGED, ())]
    # It is stored before any host is touched, and does not log in anywhere yet.
    assert (await inventory.secrets.reveal(secret)).plaintext == "first"
    assert await login_of(inventory, "kvm-1") == "pw"
    for lease in leases:
        for _ in range(2):
            await inventory.cluster_passwords.record(secret, lease=lease, **ROOT_ACCOUNT)
    assert await states(inventory) == [(first, SecretState.STAGED, everywhere)]
    assert await login_of(inventory, "kvm-1") == "first"
    for _ in range(2):
        await promote(inventory, first, leases)
    assert await states(inventory) == [(first, SecretState.CURRENT, everywhere)]
    assert await stored(database) == 1, "what the hosts had before is deleted"

    await rotate(inventory, leases, "second")
    assert await states(inventory) == [
        (2, SecretState.CURRENT, everywhere),
        (1, SecretState.PREVIOUS, ()),
    ]
    await rotate(inventory, leases, "third")
    assert await states(inventory) == [
        (3, SecretState.CURRENT, everywhere),
        (2, SecretState.PREVIOUS, ()),
        (1, SecretState.RETIRED, ()),
    ]
    assert await stored(database) == 2, "of a retired one no ciphertext is left"
    retire = inventory.cluster_passwords.retire_previous
    assert await retire("cluster-1", actor="token:anna", **ROOT_ACCOUNT) == [2]
    assert await retire("cluster-1", actor="token:anna", **ROOT_ACCOUNT) == []
    assert await stored(database) == 1
    messages = [event.message for event in await inventory.events.list(subject="cluster/cluster-1")]
    assert messages[:2] == [
        "password of root: version 2 is retired",
        "password of root: version 3 is current",
    ]


async def test_promotion_is_all_or_nothing(inventory: Inventory, leases: list[LeaseRef]) -> None:
    number, secret = await stage(inventory, "new")
    await inventory.cluster_passwords.record(secret, lease=leases[0], **ROOT_ACCOUNT)
    before = await inventory.cluster_passwords.holdings("cluster-1", **ROOT_ACCOUNT)
    with pytest.raises(Conflict, match=r"not proven on kvm-2, kvm-3\.") as caught:
        await promote(inventory, number, leases)
    assert caught.value.details["hosts"] == ["kvm-2", "kvm-3"]
    assert await states(inventory) == [(1, SecretState.STAGED, ("kvm-1",))]
    assert await inventory.cluster_passwords.holdings("cluster-1", **ROOT_ACCOUNT) == before
    with pytest.raises(Conflict, match=r"not proven on kvm-3\."):
        await promote(inventory, number, leases, "kvm-2")
    await promote(inventory, number, leases, "kvm-2", "kvm-3")
    held = await inventory.cluster_passwords.holdings("cluster-1", **ROOT_ACCOUNT)
    assert [(one.host, one.version, one.stale) for one in held] == [
        ("kvm-1", 1, False),
        ("kvm-2", None, True),
        ("kvm-3", None, True),
    ]
    assert await login_of(inventory, "kvm-2") == "pw"


async def test_a_lease_that_was_lost_promotes_and_records_nothing(
    inventory: Inventory, leases: list[LeaseRef]
) -> None:
    number, secret = await stage(inventory, "new")
    for lease in leases:
        await inventory.cluster_passwords.record(secret, lease=lease, **ROOT_ACCOUNT)
    await acquire(inventory, OTHER, "kvm-2", takeover_from=leases[1].owner)
    with pytest.raises(LeaseLost):
        await promote(inventory, number, leases)
    with pytest.raises(LeaseLost):
        await inventory.cluster_passwords.record(secret, lease=leases[1], **ROOT_ACCOUNT)
    assert (await states(inventory))[0][1] == SecretState.STAGED


async def test_what_may_be_tried_comes_the_likeliest_first(
    inventory: Inventory, leases: list[LeaseRef]
) -> None:
    assert await tried(inventory, "kvm-1") == ["pw"]
    number, secret = await stage(inventory, "first")
    assert await tried(inventory, "kvm-1") == ["first", "pw"]
    await inventory.cluster_passwords.record(secret, lease=leases[0], **ROOT_ACCOUNT)
    assert await tried(inventory, "kvm-1") == ["first", "pw"]
    await inventory.cluster_passwords.record(secret, lease=leases[1], **ROOT_ACCOUNT)
    await promote(inventory, number, leases, "kvm-3")
    assert await tried(inventory, "kvm-1") == ["first"]
    assert await tried(inventory, "kvm-3") == ["pw", "first"]
    await rotate(inventory, leases, "second")
    await stage(inventory, "third")
    assert await tried(inventory, "kvm-1") == ["third", "second", "first"]
    with pytest.raises(NotFound):
        await tried(inventory, "kvm-9")


async def test_all_put_back_and_abandoned(
    inventory: Inventory, leases: list[LeaseRef], database: Database
) -> None:
    passwords = inventory.cluster_passwords
    number, secret = await stage(inventory, "new")
    await passwords.record(secret, lease=leases[0], **ROOT_ACCOUNT)
    with pytest.raises(Conflict, match="is on kvm-1 already, or may be"):
        await passwords.abandon(
            "cluster-1", number, reason="PAM refused it", actor="rotation", account="root"
        )
    with pytest.raises(Conflict, match="is on kvm-1 already, or may be"):
        await stage(inventory, "another")
    (first, *_) = await passwords.holdings("cluster-1", **ROOT_ACCOUNT)
    assert (first.version, first.secret) == (1, secret)
    assert first.former is not None
    await passwords.record(first.former, lease=leases[0], **ROOT_ACCOUNT)
    assert await login_of(inventory, "kvm-1") == "pw"
    for _ in range(2):
        await passwords.abandon(
            "cluster-1", number, reason="PAM refused it", actor="rotation", account="root"
        )
    assert await states(inventory) == [(1, SecretState.RETIRED, ())]
    assert await stored(database) == 3
    assert await tried(inventory, "kvm-1") == ["pw"]
    with pytest.raises(Conflict, match="is retired"):
        await promote(inventory, number, leases)
    assert (await stage(inventory, "another"))[0] == 2


async def test_a_stale_host_keeps_its_version_until_it_is_back(
    inventory: Inventory, leases: list[LeaseRef], database: Database
) -> None:
    await rotate(inventory, leases, "first")
    for plaintext in ("second", "third"):
        number, secret = await stage(inventory, plaintext)
        for lease in leases[:2]:
            await inventory.cluster_passwords.record(secret, lease=lease, **ROOT_ACCOUNT)
        await promote(inventory, number, leases, "kvm-3")
    assert await states(inventory) == [
        (3, SecretState.CURRENT, ("kvm-1", "kvm-2")),
        (2, SecretState.PREVIOUS, ()),
        (1, SecretState.PREVIOUS, ("kvm-3",)),
    ]
    assert (await tried(inventory, "kvm-3"))[0] == "first"
    await inventory.cluster_passwords.record(secret, lease=leases[2], **ROOT_ACCOUNT)
    held = await inventory.cluster_passwords.holdings("cluster-1", **ROOT_ACCOUNT)
    assert [one.stale for one in held] == [False] * 3
    await inventory.cluster_passwords.retire_previous("cluster-1", actor="test", **ROOT_ACCOUNT)
    assert [state for _, state, _ in await states(inventory)] == [
        SecretState.CURRENT,
        SecretState.RETIRED,
        SecretState.RETIRED,
    ]
    assert await stored(database) == 1


async def test_a_host_with_a_key_of_its_own_keeps_it(
    inventory: Inventory, leases: list[LeaseRef]
) -> None:
    key = await inventory.secrets.store("own_key", "a key", actor="test")
    await inventory.own_keys.stage("kvm-1", key, lease=leases[0])
    await inventory.own_keys.promote("kvm-1", operation="test", lease=leases[0])
    secret = await rotate(inventory, leases, "new")
    found = await inventory.own_keys.find("kvm-1")
    assert (found.login, found.password) == (key, secret)
    (login, password) = await inventory.stored_secrets.of_host("kvm-1")
    assert (login.kind, password.id) == ("own_key", secret)


async def test_another_account_is_not_the_login(
    inventory: Inventory, leases: list[LeaseRef]
) -> None:
    passwords = inventory.cluster_passwords
    number = await passwords.stage("cluster-1", "theirs", account="admin", actor="test")
    (version,) = await passwords.versions("cluster-1", account="admin")
    assert version.id is not None
    for lease in leases:
        await passwords.record(version.id, account="admin", lease=lease)
    await passwords.promote(
        "cluster-1", number, account="admin", leases=leases, operation="rotation"
    )
    assert await login_of(inventory, "kvm-1") == "pw"
    assert await passwords.versions("cluster-1", account="root") == []
    assert (await passwords.holdings("cluster-1", account="admin"))[0].version == 1


async def test_a_disclosure_of_a_shared_password_is_told_of_the_cluster_and_its_hosts(
    inventory: Inventory, leases: list[LeaseRef]
) -> None:
    secret = await rotate(inventory, leases, "new")
    await inventory.secrets.disclose(secret, reason="console", actor="token:anna")
    assert (await inventory.events.list(subject="cluster/cluster-1"))[0].kind == "secret.disclosed"
    for host in ("kvm-1", "kvm-2", "kvm-3"):
        assert (await inventory.events.list(subject=f"host/{host}"))[0].kind == "secret.disclosed"


async def test_passwords_go_with_their_cluster(inventory: Inventory, database: Database) -> None:
    await inventory.topology.create_cluster("cluster-2", "pod-1", actor="test")
    await inventory.cluster_passwords.stage("cluster-2", "new", account="root", actor="test")
    await inventory.topology.rename_cluster("cluster-2", "cluster-3", actor="test")
    assert len(await inventory.cluster_passwords.versions("cluster-3")) == 1
    await inventory.topology.delete_cluster("cluster-3", actor="test")
    async with database.reading() as session:
        assert (await session.exec(select(ClusterPasswordRow))).all() == []


async def test_a_host_that_is_forgotten_takes_its_note_along(
    inventory: Inventory, database: Database
) -> None:
    await register(inventory, 1)
    lease = ref(await acquire(inventory))
    _, secret = await stage(inventory, "new")
    await inventory.cluster_passwords.record(secret, lease=lease, **ROOT_ACCOUNT)
    await inventory.hosts.forget("kvm-1", operation="addition/x", actor="test", lease=lease)
    assert await states(inventory) == [(1, SecretState.STAGED, ())]
    assert await stored(database) == 1, "what it had before goes with it"
    assert (await inventory.secrets.reveal(secret)).plaintext == "new"


async def test_a_removed_host_can_still_be_cleaned_when_its_cluster_is_gone(
    inventory: Inventory, leases: list[LeaseRef], database: Database
) -> None:
    secret = await rotate(inventory, leases, "shared")
    number, newer = await stage(inventory, "newer")
    await inventory.cluster_passwords.record(newer, lease=leases[0], **ROOT_ACCOUNT)
    await promote(inventory, number, leases, "kvm-2", "kvm-3")
    for lease in leases:
        await inventory.hosts.set_status(
            lease.host, HostStatus.DISCONNECTED, actor="test", reason="burnt down"
        )
        removed = await inventory.removed_hosts.remove(
            lease, reason="burnt", forced=True, vms=(), cleaned=False, problem="no answer"
        )
        assert "notes of its password: 1" in removed.deleted
    await inventory.topology.delete_cluster("cluster-1", actor="test")
    assert {(await inventory.secrets.reveal(one)).plaintext for one in (secret, newer)} == {
        "shared",
        "newer",
    }
    for tombstone in await inventory.removed_hosts.list():
        await inventory.removed_hosts.settle(tombstone.id, reason="scrapped", actor="test")
    assert await stored(database) == 0


async def test_a_new_installation_has_no_password_of_the_old_one(
    inventory: Inventory, leases: list[LeaseRef]
) -> None:
    shared = await rotate(inventory, leases, "shared")
    for state in (ResourceState.PREPARE_FOR_MAINTENANCE, ResourceState.MAINTENANCE):
        await inventory.hosts.change_state(
            "kvm-1",
            expected=frozenset(ResourceState),
            target=state,
            operation="test",
            step=state,
            actor="test",
            reason="test",
        )
    await inventory.reinstallations.withdraw(leases[0], reason="disk broken")
    own = await inventory.secrets.store("password", "of the installer", actor="test")
    await inventory.reinstallations.settle_credential(leases[0], own)
    (first, *others) = await inventory.cluster_passwords.holdings("cluster-1", **ROOT_ACCOUNT)
    assert (first.secret, first.version, first.stale) == (own, None, True)
    assert [one.stale for one in others] == [False, False]
    assert await tried(inventory, "kvm-1") == ["of the installer", "shared"]
    await inventory.cluster_passwords.record(shared, lease=leases[0], **ROOT_ACCOUNT)
    assert await login_of(inventory, "kvm-1") == "shared"


# --- killed between the setting and the proof ---------------------------------------------------


async def test_what_was_attempted_is_never_dropped(
    inventory: Inventory, leases: list[LeaseRef]
) -> None:
    """The host may have it: whoever comes next finds out by a login first."""
    passwords = inventory.cluster_passwords
    number, secret = await stage(inventory, "new")
    for _ in range(2):
        await passwords.attempt(secret, lease=leases[0], **ROOT_ACCOUNT)
    (version,) = await passwords.versions("cluster-1")
    assert (version.hosts, version.attempted_on) == ((), ("kvm-1",))
    assert (await passwords.holdings("cluster-1", **ROOT_ACCOUNT))[0].attempted == (secret,)
    with pytest.raises(Conflict, match="is on kvm-1 already, or may be"):
        await stage(inventory, "another")
    with pytest.raises(Conflict, match="is on kvm-1 already, or may be"):
        await passwords.abandon("cluster-1", number, account="root", reason="x", actor="test")
    await inventory.secrets.discard(secret)
    assert await tried(inventory, "kvm-1") == ["new", "pw"]
    # A login has proven what it has.
    (first, *_) = await passwords.holdings("cluster-1", **ROOT_ACCOUNT)
    assert first.secret is not None
    await passwords.record(first.secret, lease=leases[0], **ROOT_ACCOUNT)
    assert await tried(inventory, "kvm-1") == ["new", "pw"]
    await stage(inventory, "another")
    assert await tried(inventory, "kvm-1") == ["another", "pw"]


async def test_a_host_that_is_skipped_unproven_keeps_what_it_may_have(
    inventory: Inventory, leases: list[LeaseRef]
) -> None:
    await rotate(inventory, leases, "second")
    number, secret = await stage(inventory, "third")
    for lease in leases[:2]:
        await give(inventory, secret, lease)
    await inventory.cluster_passwords.attempt(secret, lease=leases[2], **ROOT_ACCOUNT)
    with pytest.raises(Conflict, match=r"not proven on kvm-3\."):
        await promote(inventory, number, leases)
    await promote(inventory, number, leases[:2], "kvm-3")
    for plaintext in ("fourth", "fifth"):
        number, secret = await stage(inventory, plaintext)
        for lease in leases[:2]:
            await give(inventory, secret, lease)
        await promote(inventory, number, leases[:2], "kvm-3")
    await inventory.cluster_passwords.retire_previous("cluster-1", actor="test", **ROOT_ACCOUNT)
    assert await tried(inventory, "kvm-3") == ["third", "second", "fifth"]
    stale = (await inventory.events.list(subject="host/kvm-3"))[0]
    assert stale.kind == "host.password_stale"
    assert "disk broken" in stale.message


async def test_a_host_that_is_being_put_back_is_not_promoted(
    inventory: Inventory, leases: list[LeaseRef]
) -> None:
    number, secret = await stage(inventory, "new")
    for lease in leases:
        await give(inventory, secret, lease)
    (first, *_) = await inventory.cluster_passwords.holdings("cluster-1", **ROOT_ACCOUNT)
    assert first.former is not None
    await inventory.cluster_passwords.attempt(first.former, lease=leases[0], **ROOT_ACCOUNT)
    with pytest.raises(Conflict, match=r"not proven on kvm-1\."):
        await promote(inventory, number, leases)
    assert await tried(inventory, "kvm-1") == ["pw", "new"]
    await inventory.cluster_passwords.record(secret, lease=leases[0], **ROOT_ACCOUNT)
    await promote(inventory, number, leases)


async def test_who_does_not_hold_a_host_promotes_nothing_for_it(
    inventory: Inventory, leases: list[LeaseRef]
) -> None:
    number, secret = await stage(inventory, "new")
    for lease in leases:
        await give(inventory, secret, lease)
    with pytest.raises(Conflict, match=r"not proven on kvm-2\."):
        await promote(inventory, number, [leases[0], leases[2]])


async def test_all_that_may_be_there_is_tried_the_latest_attempt_first(
    inventory: Inventory, leases: list[LeaseRef]
) -> None:
    """Forward, killed; back, killed; forward again."""
    _, secret = await stage(inventory, "new")
    (first, *_) = await inventory.cluster_passwords.holdings("cluster-1", **ROOT_ACCOUNT)
    assert first.secret is not None
    for attempt in (secret, first.secret):
        await inventory.cluster_passwords.attempt(attempt, lease=leases[0], **ROOT_ACCOUNT)
    assert await tried(inventory, "kvm-1") == ["pw", "new"]
    await inventory.cluster_passwords.attempt(secret, lease=leases[0], **ROOT_ACCOUNT)
    assert await tried(inventory, "kvm-1") == ["new", "pw"]
    with pytest.raises(NotFound):
        await inventory.cluster_passwords.attempt("none", lease=leases[0], **ROOT_ACCOUNT)
    await acquire(inventory, OTHER, "kvm-1", takeover_from=leases[0].owner)
    with pytest.raises(LeaseLost):
        await inventory.cluster_passwords.attempt(secret, lease=leases[0], **ROOT_ACCOUNT)


async def test_a_version_that_a_host_left_behind_may_have_is_kept_when_it_is_abandoned(
    inventory: Inventory, leases: list[LeaseRef]
) -> None:
    passwords = inventory.cluster_passwords
    number, secret = await stage(inventory, "new")
    await passwords.attempt(secret, lease=leases[0], **ROOT_ACCOUNT)
    for _ in range(2):
        await passwords.abandon(
            "cluster-1",
            number,
            account="root",
            reason="PAM refused it on kvm-2",
            actor="test",
            left_out={"kvm-1": "went down in the middle"},
        )
    assert await states(inventory) == [(1, SecretState.PREVIOUS, ())]
    second, other = await stage(inventory, "another")
    for lease in leases[1:]:
        await give(inventory, other, lease)
    await promote(inventory, second, leases[1:], "kvm-1")
    await passwords.retire_previous("cluster-1", actor="test", **ROOT_ACCOUNT)
    assert await tried(inventory, "kvm-1") == ["new", "pw", "another"]
    await passwords.record(other, lease=leases[0], **ROOT_ACCOUNT)
    assert await passwords.retire_previous("cluster-1", actor="test", **ROOT_ACCOUNT) == [1]


async def test_what_a_host_has_to_be_put_back_to_is_not_retired(
    inventory: Inventory, leases: list[LeaseRef]
) -> None:
    """Of a stale host that is only now on its way to the next one."""
    await rotate(inventory, leases, "first")
    number, secret = await stage(inventory, "second")
    for lease in leases[:2]:
        await give(inventory, secret, lease)
    await promote(inventory, number, leases[:2], "kvm-3")
    _, third = await stage(inventory, "third")
    await give(inventory, third, leases[2])
    retire = inventory.cluster_passwords.retire_previous
    assert await retire("cluster-1", actor="test", **ROOT_ACCOUNT) == []
    assert await tried(inventory, "kvm-3") == ["third", "second", "first"]


# --- one staged version, one operation ----------------------------------------------------------


async def test_a_repeated_staging_stores_nothing(
    inventory: Inventory, database: Database, leases: list[LeaseRef]
) -> None:
    stage_for = partial(
        inventory.cluster_passwords.stage, "cluster-1", account="root", actor="test"
    )
    first = await stage_for("one", operation="rotation/cluster-1#a")
    before = await stored(database)
    assert await stage_for("two", operation="rotation/cluster-1#a") == first
    assert await stored(database) == before
    assert (await tried(inventory, "kvm-1"))[0] == "one"
    assert len(await inventory.cluster_passwords.versions("cluster-1")) == 1
    # Another one's is not replaced, unless that has ended.
    with pytest.raises(Conflict, match="belongs to rotation/cluster-1#a") as caught:
        await stage_for("three", operation="rotation/cluster-1#b")
    assert caught.value.details == {"operation": "rotation/cluster-1#a"}
    with pytest.raises(Conflict, match="belongs to"):
        await stage_for("three")
    second = await stage_for(
        "three", operation="rotation/cluster-1#b", takeover_from="rotation/cluster-1#a"
    )
    assert [state for _, state, _ in await states(inventory)] == ["staged", "retired"]
    assert await stage_for("x", operation="rotation/cluster-1#b") == second


async def test_what_an_operator_staged_is_one_operations(
    inventory: Inventory, leases: list[LeaseRef]
) -> None:
    adopt = partial(inventory.cluster_passwords.adopt, "cluster-1", account="root")
    with pytest.raises(NotFound, match="No password of root is staged for cluster-1"):
        await adopt(operation="a")
    number, secret = await stage(inventory, "typed")
    assert await adopt(operation="a") == await adopt(operation="a") == number
    with pytest.raises(Conflict, match="belongs to a"):
        await adopt(operation="b")
    with pytest.raises(Conflict, match="belongs to a"):
        await stage(inventory, "typed again")
    for lease in leases:
        await give(inventory, secret, lease)
    with pytest.raises(Conflict, match="belongs to a"):
        await promote(inventory, number, leases)
    assert await adopt(operation="b", takeover_from="a") == number
    await inventory.cluster_passwords.promote(
        "cluster-1", number, account="root", leases=leases, operation="b"
    )
    assert await adopt(operation="b") == number, "its last step was repeated"


# --- what may be told ---------------------------------------------------------------------------


async def test_all_that_a_host_may_have_is_listed_the_likeliest_first(
    inventory: Inventory, leases: list[LeaseRef]
) -> None:
    await rotate(inventory, leases, "first")
    _, second = await stage(inventory, "second")
    await inventory.cluster_passwords.attempt(second, lease=leases[0], **ROOT_ACCOUNT)
    number = await inventory.cluster_passwords.stage(
        "cluster-1", "theirs", account="admin", actor="test"
    )
    (theirs,) = await inventory.cluster_passwords.versions("cluster-1", account="admin")
    assert theirs.id is not None
    await inventory.cluster_passwords.record(theirs.id, account="admin", lease=leases[0])
    bmc = await inventory.secrets.store("bmc_password", "bmc-pw", actor="test")
    await inventory.oobm.configure(
        "kvm-1",
        {"enabled": True, "address": "127.0.1.1", "user": "operator"},
        secret_id=bmc,
        replace=True,
        actor="test",
    )
    listed = await inventory.stored_secrets.of_host("kvm-1")
    assert [
        (one.kind, one.account, one.version, one.state, one.attempted_on != ()) for one in listed
    ] == [
        ("password", "root", 1, "current", False),
        ("password", "root", 2, "staged", True),
        ("password", "admin", number, "current", False),
        ("bmc_password", "operator", None, "current", False),
    ]
    await inventory.secrets.disclose(bmc, reason="console", actor="token:anna")
    assert (await inventory.events.list(subject="host/kvm-1"))[0].kind == "secret.disclosed"


async def test_a_version_that_is_replaced_while_it_is_attempted_is_kept_or_refused(
    inventory: Inventory, leases: list[LeaseRef]
) -> None:
    (first, *_) = await inventory.cluster_passwords.holdings("cluster-1", **ROOT_ACCOUNT)
    assert first.secret is not None
    kept = 0

    async def replace(after: int) -> int:
        for _ in range(after):
            await asyncio.sleep(0)
        return await inventory.cluster_passwords.stage(
            "cluster-1", "another", account="root", actor="test"
        )

    for turn in range(40):
        _, secret = await stage(inventory, f"turn {turn}")
        attempted, replaced = await asyncio.gather(
            inventory.cluster_passwords.attempt(secret, lease=leases[0], **ROOT_ACCOUNT),
            # Either may be the first to write.
            replace(after=turn % 8),
            return_exceptions=True,
        )
        if attempted is None:
            kept += 1
            assert isinstance(replaced, Conflict), replaced
            assert (await inventory.secrets.reveal(secret)).plaintext == f"turn {turn}"
            await inventory.cluster_passwords.record(first.secret, lease=leases[0], **ROOT_ACCOUNT)
        else:
            assert isinstance(attempted, NotFound), attempted
    assert kept > 0


async def test_changes_at_the_same_time_are_each_hosts_own(
    inventory: Inventory, leases: list[LeaseRef]
) -> None:
    """They share a transaction: a lease that was lost, or a secret that is not there, is the matter
    of that one alone."""
    _, secret = await stage(inventory, "new")
    passwords = inventory.cluster_passwords
    await acquire(inventory, OTHER, host="kvm-2", takeover_from=leases[1].owner)
    for write in (passwords.attempt, passwords.record):
        ended = await asyncio.gather(
            *(write(secret, lease=lease, **ROOT_ACCOUNT) for lease in leases),
            write("none", lease=leases[2], account="anna"),
            return_exceptions=True,
        )
        assert [type(one) for one in ended] == [type(None), LeaseLost, type(None), NotFound]
    known = await passwords.known(["kvm-1", "kvm-2", "kvm-3", "kvm-9"], **ROOT_ACCOUNT)
    assert {host: one.holding.secret == secret for host, one in known.items()} == {
        "kvm-1": True,
        "kvm-2": False,
        "kvm-3": True,
    }
    for host, one in known.items():
        assert one.holding == await passwords.holding(host, **ROOT_ACCOUNT)
        assert one.holding.attempted == ()
        assert list(one.candidates) == await passwords.candidates(host, **ROOT_ACCOUNT)
    assert known["kvm-1"].candidates == (secret, known["kvm-1"].holding.former)
