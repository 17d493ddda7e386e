"""What is withdrawn from an old installation, and what the new one gets."""

import pytest
from sqlmodel import select

from contracts.errors import AlreadyExists, Conflict, LeaseLost, NotFound
from contracts.evacuation import HostEnvironment
from contracts.host_checks import Look
from contracts.host_status import Seen
from contracts.hosts import Host
from contracts.leases import LeaseRef
from contracts.states import HostStatus, ResourceState
from inventory import Inventory
from inventory.models import HostRow, now
from inventory.own_keys import HostSecrets
from tests.inventory.conftest import OTHER, OWNER, acquire, enabled, ref
from tests.inventory.test_authorities import authority, certificate
from tests.samples import FACTS

HOST = "kvm-1"
WAY_OUT = (
    ResourceState.DISABLED,
    ResourceState.PREPARE_FOR_MAINTENANCE,
    ResourceState.MAINTENANCE,
)
OLD, NEW = "ssh-ed25519 AAAA", "ssh-ed25519 BBBB"
NEW_FACTS = FACTS.model_copy(update={"uuid": "another-uuid", "operating_system": "Debian 13"})


async def store(inventory: Inventory, kind: str = "private_key") -> str:
    return await inventory.secrets.store(kind, f"a {kind}", actor="test")


async def is_stored(inventory: Inventory, secret_id: str) -> bool:
    try:
        await inventory.secrets.reveal(secret_id)
    except NotFound:
        return False
    return True


async def messages(inventory: Inventory, *kinds: str) -> list[str]:
    events = await inventory.events.list(subject=f"host/{HOST}")
    return [event.message for event in reversed(events) if event.kind in kinds]


@pytest.fixture
async def lease(inventory: Inventory) -> LeaseRef:
    """Of kvm-1, which is in Maintenance and was Disabled before, with a key of Hostler's own."""
    await enabled(inventory, 1)
    lease = ref(await acquire(inventory))
    await inventory.hosts.set_facts(HOST, FACTS)
    await inventory.own_keys.stage(HOST, await store(inventory), lease=lease)
    await inventory.own_keys.promote(HOST, operation="addition/x", lease=lease)
    for state in WAY_OUT:
        await inventory.hosts.change_state(
            HOST,
            expected=frozenset(ResourceState),
            target=state,
            operation="test",
            step=state,
            actor="test",
            reason="test",
        )
    return lease


async def complete(inventory: Inventory, lease: LeaseRef) -> Host:
    return await inventory.reinstallations.complete(
        lease, NEW_FACTS, step="2/return", reason="re-installed"
    )


async def test_a_host_is_re_installed(inventory: Inventory, lease: LeaseRef) -> None:
    reinstallations = inventory.reinstallations
    before = await inventory.own_keys.find(HOST)
    offered = HostEnvironment(networks=frozenset({"default"}), pools=frozenset({"images"}))
    for environment in (offered, None):
        trust = await reinstallations.withdraw(lease, reason="disk broken", environment=environment)
        assert trust.environment == offered
        assert (trust.former_sha256, trust.pinned_sha256) == ("SHA256:abc", None)
        assert trust.secret_id == before.password
        host = await inventory.hosts.get(HOST)
        assert host.being_reinstalled
        assert (host.status, host.status_reason) == (
            HostStatus.DISCONNECTED,
            "is being re-installed",
        )
    assert (await inventory.hosts.login(HOST)).host_key_line == f"@revoked {OLD}"
    assert before.password is not None
    for _ in range(2):
        assert await reinstallations.settle_credential(lease, None) == before.password
        assert await inventory.own_keys.find(HOST) == HostSecrets(before.password, None, None)
    assert not await is_stored(inventory, before.login)
    for _ in range(2):
        await reinstallations.pin(lease, host_key_line=NEW, host_key_sha256="SHA256:new")
        host = await inventory.hosts.get(HOST)
        assert (host.host_key_sha256, host.being_reinstalled) == ("SHA256:new", True)
    assert (await inventory.hosts.login(HOST)).host_key_line.startswith(NEW)
    again = await reinstallations.withdraw(lease, reason="terminated meanwhile")
    assert (again.former_sha256, again.pinned_sha256) == (None, "SHA256:new")
    assert again.environment == offered
    await inventory.maintenances.take_turn(lease, "cluster-1", 1)
    for _ in range(2):
        host = await complete(inventory, lease)
        assert host.resource_state is ResourceState.DISABLED
        assert (host.status, host.facts, host.being_reinstalled) == (
            HostStatus.UP,
            NEW_FACTS,
            False,
        )
    assert (await inventory.hosts.login(HOST)).host_key_line == NEW
    async with inventory.database.reading() as session:
        assert (await session.exec(select(HostRow.environment))).all() == [None]
    assert await inventory.maintenances.tickets("cluster-1") == []
    assert await messages(inventory, "host.trust_withdrawn", "host.trusted", "host.uuid") == [
        "the host key SHA256:abc is accepted no more: disk broken",
        "the host key SHA256:abc -> SHA256:new: new",
        f"its libvirt has another UUID: {FACTS.uuid} -> another-uuid",
    ]
    assert (await messages(inventory, "host.state"))[-1] == (
        "Maintenance -> Disabled: re-installed"
    )
    assert (await messages(inventory, "host.status"))[1:] == [
        "Up -> Disconnected: is being re-installed",
        "Disconnected -> Up: was re-installed",
    ]


async def test_the_same_uuid_is_no_news(inventory: Inventory, lease: LeaseRef) -> None:
    await inventory.reinstallations.withdraw(lease, reason="")
    await inventory.reinstallations.pin(lease, host_key_line=NEW, host_key_sha256="SHA256:new")
    host = await inventory.reinstallations.complete(lease, FACTS, step="s", reason="")
    assert host.facts == FACTS
    assert await messages(inventory, "host.uuid") == []


async def test_the_new_installation_has_no_certificates(
    inventory: Inventory, lease: LeaseRef
) -> None:
    await inventory.authorities.add(authority(), after=0, unused=False, operation="test")
    await inventory.certificates.record(certificate(1), actor="test")
    await inventory.certificates.install(HOST, ["request-1"], operation="test", actor="test")
    await inventory.certificate_upkeep.note_crls({"root/1": 1}, lease=lease)
    assert [one.host for one in await inventory.certificate_upkeep.crls({})] == [HOST]
    await inventory.reinstallations.withdraw(lease, reason="")
    await inventory.reinstallations.pin(lease, host_key_line=NEW, host_key_sha256="SHA256:new")
    assert await inventory.certificate_upkeep.crls({}) == []
    (one,) = await inventory.certificates.list(host=HOST)
    assert one.installed_at is None


async def test_a_host_that_is_down_stays_so_until_it_is_back(
    inventory: Inventory, lease: LeaseRef
) -> None:
    await inventory.hosts.set_status(HOST, HostStatus.DOWN, actor="test", reason="off")
    await inventory.reinstallations.withdraw(lease, reason="")
    assert (await inventory.hosts.get(HOST)).status is HostStatus.DOWN


async def test_what_was_told_of_its_closing_is_forgotten(
    inventory: Inventory, lease: LeaseRef
) -> None:
    closing = await inventory.closings.decide(HOST, operation="test")
    await inventory.closings.record(HOST, closing, operation="test")
    assert (await inventory.hosts.get(HOST)).closed
    await inventory.reinstallations.withdraw(lease, reason="")
    await inventory.reinstallations.pin(lease, host_key_line=NEW, host_key_sha256="SHA256:new")
    assert (await inventory.hosts.get(HOST)).closed is None
    assert await inventory.closings.pending((HOST,)) == {HOST}


async def test_a_credential_that_is_given_takes_the_place_of_all_others(
    inventory: Inventory, lease: LeaseRef
) -> None:
    before = await inventory.own_keys.find(HOST)
    given = await store(inventory, "password")
    await inventory.reinstallations.withdraw(lease, reason="")
    assert await inventory.reinstallations.settle_credential(lease, given) == given
    assert await inventory.own_keys.find(HOST) == HostSecrets(given, None, None)
    for former in (before.login, before.password):
        assert former is not None
        assert not await is_stored(inventory, former)
    with pytest.raises(NotFound, match="give it again"):
        await inventory.reinstallations.settle_credential(lease, "gone")
    assert (await inventory.own_keys.find(HOST)).login == given


async def test_only_what_has_begun_goes_on(inventory: Inventory, lease: LeaseRef) -> None:
    reinstallations, secrets = inventory.reinstallations, await inventory.own_keys.find(HOST)
    with pytest.raises(Conflict):
        await reinstallations.pin(lease, host_key_line=NEW, host_key_sha256="SHA256:new")
    with pytest.raises(Conflict):
        await reinstallations.settle_credential(lease, None)
    assert await inventory.own_keys.find(HOST) == secrets
    assert (await inventory.hosts.login(HOST)).host_key_line == OLD


async def test_a_host_in_service_keeps_its_trust(inventory: Inventory) -> None:
    await enabled(inventory, 1)
    lease = ref(await acquire(inventory))
    with pytest.raises(Conflict, match="is Enabled"):
        await inventory.reinstallations.withdraw(lease, reason="")
    assert (await inventory.hosts.login(HOST)).host_key_line == OLD


async def test_whoever_lost_the_lease_changes_nothing(
    inventory: Inventory, lease: LeaseRef
) -> None:
    await acquire(inventory, OTHER, takeover_from=OWNER)
    reinstallations = inventory.reinstallations
    with pytest.raises(LeaseLost):
        await reinstallations.withdraw(lease, reason="")
    with pytest.raises(LeaseLost):
        await reinstallations.settle_credential(lease, None)
    with pytest.raises(LeaseLost):
        await reinstallations.pin(lease, host_key_line=NEW, host_key_sha256="SHA256:new")
    with pytest.raises(LeaseLost):
        await complete(inventory, lease)


async def test_the_uuid_of_another_host_is_refused(inventory: Inventory, lease: LeaseRef) -> None:
    await enabled(inventory, 2)
    await inventory.hosts.set_facts("kvm-2", NEW_FACTS)
    await inventory.reinstallations.withdraw(lease, reason="")
    await inventory.reinstallations.pin(lease, host_key_line=NEW, host_key_sha256="SHA256:new")
    with pytest.raises(AlreadyExists):
        await complete(inventory, lease)
    host = await inventory.hosts.get(HOST)
    assert (host.resource_state, host.being_reinstalled) == (ResourceState.MAINTENANCE, True)


async def test_checks_leave_it_alone(inventory: Inventory, lease: LeaseRef) -> None:
    checks = inventory.host_checks
    assert [host.name for host in await checks.page("", 10)] == [HOST]
    await inventory.reinstallations.withdraw(lease, reason="")
    look = Look(host=HOST, began_at=now(), seen=Seen.KEY_CHANGED, problem="another key")
    for pinned in (False, True):
        if pinned:
            await inventory.reinstallations.pin(
                lease, host_key_line=NEW, host_key_sha256="SHA256:new"
            )
        assert await checks.page("", 10) == []
        assert await checks.record([look], operation="host-check") == []
        assert (await inventory.hosts.get(HOST)).status is HostStatus.DISCONNECTED
    await complete(inventory, lease)
    assert [host.name for host in await checks.page("", 10)] == [HOST]


async def test_a_host_that_never_comes_back_leaves_a_tombstone_with_its_old_key(
    inventory: Inventory, lease: LeaseRef
) -> None:
    await inventory.reinstallations.withdraw(lease, reason="")
    await inventory.removed_hosts.remove(
        lease, reason="lost", forced=True, vms=(), cleaned=False, problem="is away"
    )
    (tombstone,) = await inventory.removed_hosts.uncleaned()
    assert (await inventory.removed_hosts.login(tombstone.id)).host_key_line == OLD
