"""What an import asks of the inventory: ImportActivities on real tables."""

import pytest

from activities.host_import import ImportActivities
from contracts.addition import HostAdditionInput
from contracts.errors import NotFound
from contracts.host_import import DiscardSecretsInput, FindHostsInput, FindHostsResult
from contracts.states import ResourceState
from inventory import Inventory
from tests.inventory.conftest import enabled, register


@pytest.fixture
def activities(inventory: Inventory) -> ImportActivities:
    return ImportActivities(inventory, None)  # type: ignore[arg-type] # Temporal is not asked


async def asked(inventory: Inventory, number: int, **more: object) -> HostAdditionInput:
    """As `register` registers it, with a credential of its own."""
    return HostAdditionInput.model_validate(
        {
            "name": f"kvm-{number}",
            "cluster": "cluster-1",
            "address": f"198.18.0.{10 + number}",
            "secret": await inventory.secrets.store("password", "other", actor="test"),
            **more,
        }
    )


async def is_stored(inventory: Inventory, secret: str) -> bool:
    try:
        await inventory.secrets.reveal(secret)
    except NotFound:
        return False
    return True


async def test_hosts_that_are_there_are_told_from_others(
    inventory: Inventory, activities: ImportActivities
) -> None:
    await enabled(inventory, 1)
    await enabled(inventory, 2)
    await register(inventory, 3)
    hosts = [
        await asked(inventory, 1, enabled=False),
        await asked(inventory, 2, ssh_port=2222, address="198.18.0.99"),
        await asked(inventory, 3),
        await asked(inventory, 4),
    ]
    found = await activities.find_hosts(FindHostsInput(hosts=tuple(hosts)))
    assert found == FindHostsResult(
        present=frozenset({"kvm-1"}),
        different={
            "kvm-2": "There is a host 'kvm-2' already, and it differs: ssh_port is 22, not 2222, "
            "address is 198.18.0.12, not 198.18.0.99."
        },
    )
    stored = [await is_stored(inventory, host.secret) for host in hosts]
    assert stored == [False, False, True, True]
    # It may be done again.
    assert await activities.find_hosts(FindHostsInput(hosts=tuple(hosts))) == found


@pytest.mark.parametrize(
    ("fingerprint", "present"),
    [(None, True), ("SHA256:" + "A" * 43, True), ("SHA256:" + "B" * 43, False)],
)
async def test_a_fingerprint_is_compared_if_one_was_given(
    inventory: Inventory, activities: ImportActivities, fingerprint: str | None, present: bool
) -> None:
    await register(inventory, 1, host_key_sha256="SHA256:" + "A" * 43)
    await inventory.hosts.change_state(
        "kvm-1",
        expected=frozenset({ResourceState.CREATING}),
        target=ResourceState.DISABLED,
        operation="addition/x",
        step="into-service",
        actor="test",
        reason="added",
    )
    host = await asked(inventory, 1, host_key_sha256=fingerprint)
    found = await activities.find_hosts(FindHostsInput(hosts=(host,)))
    assert ("kvm-1" in found.present) == present


async def test_a_credential_that_a_host_took_over_stays(
    inventory: Inventory, activities: ImportActivities
) -> None:
    login = await register(inventory, 1)
    own = (await inventory.hosts.login(login.name)).secret_id
    spare = await inventory.secrets.store("password", "spare", actor="test")
    await activities.discard_secrets(DiscardSecretsInput(secrets=(own, spare, "no-such")))
    assert await is_stored(inventory, own)
    assert not await is_stored(inventory, spare)
    await activities.discard_secrets(DiscardSecretsInput(secrets=()))


async def test_many_secrets_are_stored_together(inventory: Inventory) -> None:
    given = [("password", f"pw-{number}") for number in range(600)]
    stored = await inventory.secrets.store_all(given, actor="test")
    assert len(set(stored)) == 600
    assert (await inventory.secrets.reveal(stored[599])).plaintext == "pw-599"
    await inventory.secrets.discard_all(stored)
    assert not await is_stored(inventory, stored[0])
    assert not await is_stored(inventory, stored[599])
