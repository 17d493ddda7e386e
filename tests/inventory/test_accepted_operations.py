from datetime import timedelta

import pytest
from sqlmodel import col, select, update

from contracts.access import Principal, Role
from contracts.errors import Conflict, InvalidInput, NotFound
from contracts.operations import AcceptedOperation, AcceptedState
from contracts.passwords import PasswordRotationInput
from contracts.secrets import SecretState
from inventory import Inventory
from inventory.accepted_operations import Repeatable
from inventory.models import EventRow, OperationRow, SecretVersionRow, now

CLUSTER, ACCOUNT = "cluster-1", "root"
ANNA, OLGA = (Principal(name=name, role=Role.ADMIN) for name in ("anna", "olga"))
CANARY = "canary-of-a-request"
AT_ONCE = timedelta()


async def accept(
    inventory: Inventory,
    password: str | None = CANARY,
    what: Repeatable | None = None,
    caller: Principal = ANNA,
    host: str | None = None,
) -> AcceptedOperation:
    return await inventory.accepted.accept_rotation(
        PasswordRotationInput(cluster=CLUSTER, reason="quarterly", host=host),
        password,
        caller=caller,
        actor=f"token:{caller.name}",
        what=what,
    )


async def staged(inventory: Inventory) -> str | None:
    found = await inventory.cluster_passwords.find(CLUSTER, SecretState.STAGED, account=ACCOUNT)
    return (await inventory.secrets.reveal(found[1])).plaintext if found is not None else None


async def stored(inventory: Inventory) -> list[str]:
    async with inventory.database.reading() as session:
        return list(await session.exec(select(SecretVersionRow.kind)))


async def kinds(inventory: Inventory) -> list[str]:
    async with inventory.database.reading() as session:
        return list(await session.exec(select(EventRow.kind)))


async def test_the_request_comes_with_its_password(inventory: Inventory) -> None:
    accepted = await accept(inventory)
    asked = PasswordRotationInput.model_validate(accepted.request)
    assert asked.accepted == accepted.id
    assert (accepted.state, accepted.run_id) == (AcceptedState.ACCEPTED, None)
    assert await staged(inventory) == CANARY
    assert (await inventory.secrets.reveal(str(asked.secret))).plaintext == CANARY
    async with inventory.database.reading() as session:
        rows = (await session.exec(select(OperationRow))).all()
    assert CANARY not in repr(rows)
    assert "password_rotation.requested" in await kinds(inventory)
    none = await accept(inventory, password=None)
    assert none.request["secret"] is None
    assert await staged(inventory) == CANARY, "one that is staged stays for it"


async def test_both_or_nothing(inventory: Inventory) -> None:
    await inventory.cluster_passwords.stage(
        CLUSTER, "another", account=ACCOUNT, actor="test", operation="rotation/x#1"
    )
    before = sorted(await stored(inventory))
    with pytest.raises(Conflict, match="belongs to rotation/x#1"):
        await accept(inventory, what=Repeatable("key", "body"))
    assert await inventory.accepted.overdue(AT_ONCE) == []
    assert await staged(inventory) == "another"
    assert sorted(await stored(inventory)) == before
    with pytest.raises(NotFound):
        await inventory.accepted.accept_rotation(
            PasswordRotationInput(cluster="nowhere"), CANARY, caller=ANNA, actor="test"
        )


async def test_a_key_is_of_one_request_of_one_caller(inventory: Inventory) -> None:
    what = Repeatable("key", f"body with {CANARY}")
    assert await inventory.accepted.repeated(ANNA, what) is None
    accepted = await accept(inventory, what=what)
    assert await inventory.accepted.repeated(ANNA, what) == accepted
    await inventory.accepted.begin(accepted.id, "run-1")
    again = await inventory.accepted.repeated(ANNA, what)
    assert again is not None
    assert (again.state, again.run_id) == (AcceptedState.STARTED, "run-1")
    with pytest.raises(InvalidInput, match="'key' was the key of another request"):
        await inventory.accepted.repeated(ANNA, Repeatable("key", "another body"))
    assert await inventory.accepted.repeated(OLGA, what) is None
    # Two at the same moment, of which neither has seen the other.
    with pytest.raises(Conflict, match="was taken just now"):
        await accept(inventory, password="two", what=what)
    assert await staged(inventory) == CANARY


async def test_it_is_started_once(inventory: Inventory) -> None:
    accepted = await accept(inventory)
    assert await inventory.accepted.overdue(timedelta(minutes=1)) == []
    assert [one.id for one in await inventory.accepted.overdue(AT_ONCE)] == [accepted.id]
    for _ in range(2):
        await inventory.accepted.begin(accepted.id, "run-1")
    with pytest.raises(Conflict, match="was started before: run run-1"):
        await inventory.accepted.begin(accepted.id, "run-2")
    assert await inventory.accepted.overdue(AT_ONCE) == []
    await inventory.accepted.expire(accepted.id, "too late")
    await inventory.accepted.withdraw(accepted.id)
    assert await staged(inventory) == CANARY
    await inventory.accepted.begin(accepted.id, "run-1")
    with pytest.raises(NotFound):
        await inventory.accepted.begin("another", "run-1")


@pytest.mark.parametrize("host", [None, "kvm-1"])
async def test_one_that_expires_leaves_no_password(inventory: Inventory, host: str | None) -> None:
    what = Repeatable("key", "body")
    accepted = await accept(inventory, what=what, host=host)
    for _ in range(2):
        await inventory.accepted.expire(accepted.id, "nobody started it")
    assert await staged(inventory) is None
    assert await stored(inventory) == ["request_digest"]
    assert (await kinds(inventory)).count("password_rotation.expired") == 1
    with pytest.raises(Conflict, match="has expired: nobody started it"):
        await inventory.accepted.begin(accepted.id, "run-1")
    again = await inventory.accepted.repeated(ANNA, what)
    assert again is not None
    assert again.state is AcceptedState.EXPIRED
    assert await inventory.accepted.overdue(AT_ONCE) == []


async def test_a_password_that_an_operation_has_does_not_expire(inventory: Inventory) -> None:
    accepted = await accept(inventory)
    await inventory.cluster_passwords.adopt(CLUSTER, account=ACCOUNT, operation="rotation/x#1")
    await inventory.accepted.expire(accepted.id, "nobody started it")
    assert await staged(inventory) == CANARY


@pytest.mark.parametrize("host", [None, "kvm-1"])
async def test_one_that_is_refused_may_be_sent_again(
    inventory: Inventory, host: str | None
) -> None:
    """Of a cluster, the password stays staged, as if it had been by itself."""
    what = Repeatable("key", "body")
    accepted = await accept(inventory, what=what, host=host)
    for _ in range(2):
        await inventory.accepted.withdraw(accepted.id)
    assert await inventory.accepted.repeated(ANNA, what) is None
    assert await stored(inventory) == ([] if host else ["password"])
    await accept(inventory, what=what)


async def test_a_day_later_it_is_forgotten(inventory: Inventory) -> None:
    what, open_one = Repeatable("key", "body"), Repeatable("other", "body")
    accepted = await accept(inventory, password=None, what=what)
    await inventory.accepted.begin(accepted.id, "run-1")
    await accept(inventory, password=None, what=open_one)
    async with inventory.database.writing() as session:
        await session.exec(
            update(OperationRow).values(accepted_at=now() - timedelta(days=1, seconds=1))
        )
    await accept(inventory, password=None)
    assert await inventory.accepted.repeated(ANNA, what) is None
    assert await inventory.accepted.repeated(ANNA, open_one) is not None
    assert await stored(inventory) == ["request_digest"]
    async with inventory.database.reading() as session:
        query = select(OperationRow.id).where(col(OperationRow.id) == accepted.id)
        assert (await session.exec(query)).all() == []
