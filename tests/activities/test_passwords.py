"""The steps of a change of passwords, on hosts that are only made of passwords."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import col, select
from temporalio.testing import ActivityEnvironment

from activities.directory import HostDirectory
from activities.host_accounts import HostAccountDirectory
from activities.leases import LeaseActivities
from activities.password_checks import PasswordCheckActivities
from activities.passwords import PasswordActivities
from contracts.access import Principal, Role
from contracts.errors import Conflict, InvalidInput, LeaseHeld, LeaseLost, NotFound
from contracts.leases import LeaseRef, LeaseScope, Owner
from contracts.passwords import (
    AcquireHostsInput,
    BringUpInput,
    EndRotationInput,
    Held,
    HeldHosts,
    HostOutcome,
    PasswordRotationInput,
    PasswordState,
    PasswordVerificationInput,
    PlanRotationInput,
    Proof,
    StagedPassword,
    StageRotationInput,
    SweepInput,
    VerifyHostsInput,
)
from contracts.secrets import SecretState
from contracts.states import HostStatus, ResourceState
from drivers.errors import CommandFailed, HostUnreachable, LoginCutOff
from drivers.protocols import AccountReport, HostAccess
from inventory import Inventory, SecretBox
from inventory.models import SecretVersionRow
from tests.databases import sqlite_database
from tests.inventory.conftest import register

CLUSTER, ACCOUNT = "cluster-1", "root"
OWNER = Owner(workflow_id="rotation/cluster-1", first_run_id="run-1")
OTHER = Owner(workflow_id="rotation/by-hand", first_run_id="run-2")
HOSTS = ("kvm-1", "kvm-2", "kvm-3")
OLD = "old-{}"


class Runs:
    """Which operations still run."""

    def __init__(self) -> None:
        self.open: set[Owner] = set()

    async def runs(self, owner: Owner) -> bool:
        return owner in self.open


@dataclass
class Fake:
    """HostAccounts. `passwords` by host; `sets` and `refused`: what was set and refused where;
    `tried`: on one connection; `cuts_off`: where the next one of these breaks in the
    middle."""

    passwords: dict[str, str] = field(
        default_factory=lambda: {host: OLD.format(host) for host in HOSTS}
    )
    away: set[str] = field(default_factory=set)
    dies_after_set: set[str] = field(default_factory=set)
    refuses: set[str] = field(default_factory=set)
    problems: dict[str, str] = field(default_factory=dict)
    locked: set[str] = field(default_factory=set)
    lets_in: tuple[Proof, ...] = (Proof.SSH, Proof.PAM, Proof.HASH)
    offers: tuple[Proof, ...] = (Proof.SSH, Proof.PAM, Proof.HASH)
    compares: bool = True
    counted: int = 0
    sets: list[tuple[str, str]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    tried: list[tuple[str, list[str]]] = field(default_factory=list)
    ignores: set[str] = field(default_factory=set)
    cuts_off: list[str] = field(default_factory=list)
    epochs: set[int] = field(default_factory=set)

    def _reach(self, access: HostAccess) -> None:
        assert access.private_key is not None, "the way in is a key"
        if access.name in self.away:
            raise HostUnreachable(f"{access.name} does not answer.")

    async def look(
        self,
        access: HostAccess,
        account: str,
        new_password: str,
        passwords: Sequence[str] = (),
    ) -> AccountReport:
        self._reach(access)
        problem = self.problems.get(access.name)
        return AccountReport(
            problems=(problem,) if problem else (),
            locked=access.name in self.locked,
            hash="yescrypt",
            compares=self.compares,
            proofs=self.offers,
            refused=self.counted,
            matches=await self.match(access, account, passwords) if self.compares else None,
        )

    async def match(self, access: HostAccess, account: str, passwords: Sequence[str]) -> int | None:
        self._reach(access)
        here = self.passwords[access.name]
        return passwords.index(here) if here in passwords else None

    async def takes(self, access: HostAccess, account: str, password: str, proof: Proof) -> bool:
        self._reach(access)
        taken = proof in self.lets_in and self.passwords[access.name] == password
        if not taken and proof is not Proof.HASH:
            self.refused.append(access.name)
        return taken

    async def first_taken(
        self, access: HostAccess, account: str, passwords: Sequence[str]
    ) -> int | None:
        self.tried.append((access.name, list(passwords)))
        if access.name in self.cuts_off:
            self.cuts_off.remove(access.name)
            self.refused.append(access.name)
            raise LoginCutOff("It broke.", details={"tried": 1})
        for number, password in enumerate(passwords):
            if await self.takes(access, account, password, Proof.SSH):
                return number
        return None

    async def set(self, access: HostAccess, account: str, password: str, epoch: int) -> None:
        self._reach(access)
        self.epochs.add(epoch)
        if access.name in self.refuses:
            raise CommandFailed(f"chpasswd on {access.name}: pam_deny")
        if access.name not in self.ignores:
            self.passwords[access.name] = password
        self.sets.append((access.name, password))
        if access.name in self.dies_after_set:
            self.dies_after_set.discard(access.name)
            self.away.add(access.name)
            raise HostUnreachable(f"The connection to {access.name} broke.")


@dataclass
class Site:
    """Three hosts with passwords of their own, all with a key."""

    inventory: Inventory
    accounts: Fake
    running: Runs
    steps: PasswordActivities
    checks: PasswordCheckActivities

    async def run(self, step: Callable[..., Any], *request: object) -> Any:
        return await ActivityEnvironment().run(step, *request)

    async def acquire(self, owner: Owner = OWNER, hosts: Sequence[str] = HOSTS) -> HeldHosts:
        held: HeldHosts = await self.run(
            self.steps.acquire_hosts,
            AcquireHostsInput(
                hosts=tuple(hosts), scope=LeaseScope.TRUST, owner=owner, purpose="test"
            ),
        )
        return held

    async def stage(
        self, owner: Owner = OWNER, secret: str | None = None, host: str | None = None
    ) -> StagedPassword:
        staged: StagedPassword = await self.run(
            self.steps.stage_password,
            StageRotationInput(
                cluster=CLUSTER, account=ACCOUNT, host=host, secret=secret, owner=owner
            ),
        )
        return staged

    async def sweep(
        self, step: str, held: HeldHosts, staged: StagedPassword, **more: bool
    ) -> dict[str, HostOutcome]:
        result = await self.run(
            getattr(self.steps, step),
            SweepInput(
                cluster=CLUSTER,
                account=ACCOUNT,
                secret=staged.secret,
                held=held,
                concurrency=2,
                **more,
            ),
        )
        return {one.host: one for one in result.hosts}

    def end(self, held: HeldHosts, staged: StagedPassword, **skipped: str) -> EndRotationInput:
        return EndRotationInput(
            cluster=CLUSTER,
            account=ACCOUNT,
            host=None,
            staged=staged,
            held=held.only(set(HOSTS) - {name.replace("_", "-") for name in skipped}),
            skipped={name.replace("_", "-"): why for name, why in skipped.items()},
        )

    async def plaintext(self, secret: str) -> str:
        return (await self.inventory.secrets.reveal(secret)).plaintext


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    database = sqlite_database(tmp_path)
    inventory = Inventory(database, SecretBox(SecretBox.new_key()))
    await inventory.topology.create_zone("zone-1", actor="test")
    await inventory.topology.create_pod("pod-1", "zone-1", actor="test")
    await inventory.topology.create_cluster(CLUSTER, "pod-1", actor="test")
    accounts, running = Fake(), Runs()
    for number, host in enumerate(HOSTS, start=1):
        await add(inventory, number, OLD.format(host))
    leases = LeaseActivities(inventory, running)  # type: ignore[arg-type] # it only has `runs`
    directory = HostAccountDirectory(inventory, HostDirectory(inventory), accounts)
    await inventory.settings.set("password.unreachable.timeout", 1, actor="test")
    await inventory.settings.set("password.attempt.interval", 0, actor="test")
    yield Site(
        inventory,
        accounts,
        running,
        PasswordActivities(inventory, directory, leases),
        PasswordCheckActivities(inventory, directory),
    )
    await database.close()


async def add(inventory: Inventory, number: int, password: str) -> None:
    """A host in service that logs in by a key of Hostler's, with its password beside."""
    secret = await inventory.secrets.store("password", password, actor="test")
    host = await register(inventory, number, secret_id=secret)
    lease = await inventory.leases.acquire(host.name, LeaseScope.PLACEMENT, OWNER, "addition")
    ref = LeaseRef(host=lease.host, scope=lease.scope, owner=lease.owner, epoch=lease.epoch)
    key = await inventory.secrets.store("own_key", "a key", actor="test")
    await inventory.own_keys.stage(host.name, key, lease=ref)
    await inventory.own_keys.promote(host.name, operation="test", lease=ref)
    await inventory.leases.release(ref)
    await inventory.hosts.set_status(host.name, HostStatus.UP, actor="test", reason="added")
    await inventory.hosts.change_state(
        host.name,
        expected=frozenset({ResourceState.CREATING}),
        target=ResourceState.ENABLED,
        operation="addition/x",
        step="into-service",
        actor="test",
        reason="added",
    )


async def test_a_whole_change(site: Site) -> None:
    held, staged = await site.acquire(), await site.stage()
    new = await site.plaintext(staged.secret)
    assert (len(new), staged.version, staged.fresh) == (32, 1, True)
    checked = await site.sweep("check_hosts_for_password", held, staged)
    assert {one.problem for one in checked.values()} == {None}
    assert {one.proof for one in checked.values()} == {Proof.SSH}
    assert site.accounts.sets == []
    changed = await site.sweep("change_passwords", held, staged)
    assert {one.held for one in changed.values()} == {Held.NEW}
    assert site.accounts.passwords == dict.fromkeys(HOSTS, new)
    assert sorted(site.accounts.refused) == sorted(HOSTS), "the old one, once on each"
    # Again: its work is found done, without a login.
    await site.sweep("change_passwords", held, staged)
    assert (len(site.accounts.sets), len(site.accounts.refused)) == (3, 3)
    promoted = await site.run(site.steps.promote_password, site.end(held, staged))
    assert promoted.lacking == ()
    current = await site.inventory.cluster_passwords.find(
        CLUSTER, SecretState.CURRENT, account=ACCOUNT
    )
    assert current == (1, staged.secret)
    seen = await site.run(
        site.checks.verify_passwords, VerifyHostsInput(hosts=HOSTS, account=ACCOUNT)
    )
    assert {one.state for one in seen.hosts} == {PasswordState.AGREES}
    assert {one.version for one in seen.hosts} == {1}


async def test_an_attempt_that_was_cut_off_is_found_out_before_anything_is_set(site: Site) -> None:
    held, staged = await site.acquire(), await site.stage()
    site.accounts.dies_after_set = {"kvm-2"}
    changed = await site.sweep("change_passwords", held, staged)
    assert (changed["kvm-2"].held, changed["kvm-1"].held) == (Held.UNKNOWN, Held.NEW)
    assert changed["kvm-2"].problem is not None
    site.accounts.away.clear()
    again = await site.sweep("change_passwords", held, staged)
    assert {one.problem for one in again.values()} == {None}
    assert [host for host, _ in site.accounts.sets].count("kvm-2") == 1


async def test_it_is_waited_for(site: Site) -> None:
    await site.inventory.settings.set("password.unreachable.timeout", 60, actor="test")
    held, staged = await site.acquire(), await site.stage()
    site.accounts.dies_after_set = {"kvm-2"}
    changing = asyncio.create_task(site.sweep("change_passwords", held, staged))
    while "kvm-2" not in site.accounts.away:
        await asyncio.sleep(0.02)
    site.accounts.away.clear()
    assert (await changing)["kvm-2"].problem is None


@pytest.mark.parametrize("at_once", [False, True])
async def test_all_are_put_back(site: Site, at_once: bool) -> None:
    """Also one of which nobody knows whether it has taken the new one."""
    held, staged = await site.acquire(), await site.stage()
    site.accounts.refuses = {"kvm-3"}
    if at_once:
        site.accounts.dies_after_set = {"kvm-2"}
    changed = await site.sweep("change_passwords", held, staged)
    assert (changed["kvm-3"].held, "pam_deny" in (changed["kvm-3"].problem or "")) == (
        Held.FORMER,
        True,
    )
    site.accounts.refuses.clear()
    site.accounts.away.clear()
    back = await site.sweep("put_passwords_back", held, staged)
    assert {one.held for one in back.values()} == {Held.FORMER}
    assert site.accounts.passwords == {host: OLD.format(host) for host in HOSTS}
    for _ in range(2):
        await site.run(site.steps.abandon_password, site.end(held, staged))
    (version,) = await site.inventory.cluster_passwords.versions(CLUSTER)
    assert (version.state, version.id) == (SecretState.RETIRED, None)


async def test_what_a_skipped_host_may_have_stays_stored(site: Site) -> None:
    held, staged = await site.acquire(), await site.stage()
    site.accounts.dies_after_set = {"kvm-2"}
    await site.sweep("change_passwords", held, staged)
    await site.sweep("put_passwords_back", held.only({"kvm-1", "kvm-3"}), staged)
    await site.run(site.steps.abandon_password, site.end(held, staged, kvm_2="dead"))
    candidates = await site.inventory.cluster_passwords.candidates("kvm-2", account=ACCOUNT)
    assert staged.secret in candidates


async def test_hosts_that_are_unfit_are_told_and_not_touched(site: Site) -> None:
    site.accounts.passwords["kvm-1"] = "changed by hand"
    site.accounts.problems["kvm-2"] = "/etc/shadow can't be written"
    site.accounts.locked.add("kvm-3")
    held, staged = await site.acquire(), await site.stage()
    checked = await site.sweep("check_hosts_for_password", held, staged)
    assert "none that Hostler knows" in (checked["kvm-1"].problem or "")
    assert checked["kvm-2"].problem == "/etc/shadow can't be written"
    assert "is locked" in (checked["kvm-3"].problem or "")
    accepted = await site.sweep("check_hosts_for_password", held, staged, accept_unknown=True)
    assert [host for host, one in accepted.items() if one.problem] == ["kvm-2"]
    assert site.accounts.sets == []
    # Without the former one it can't be put back.
    await site.inventory.hosts.get("kvm-1")
    await site.sweep("change_passwords", held.only({"kvm-1"}), staged)
    assert site.accounts.passwords["kvm-1"] == await site.plaintext(staged.secret)


async def test_the_password_that_it_has_is_not_taken_for_a_new_one(site: Site) -> None:
    passwords = site.inventory.cluster_passwords
    await passwords.stage(CLUSTER, OLD.format("kvm-1"), account=ACCOUNT, actor="test")
    held, staged = await site.acquire(), await site.stage()
    assert not staged.fresh
    checked = await site.sweep("check_hosts_for_password", held, staged)
    assert "it has, or had" in (checked["kvm-1"].problem or "")
    assert checked["kvm-2"].problem is None


@pytest.mark.parametrize(
    ("lets_in", "offers", "expected"),
    [
        ((Proof.PAM, Proof.HASH), (Proof.SSH, Proof.PAM, Proof.HASH), Proof.PAM),
        ((Proof.PAM, Proof.HASH), (Proof.PAM, Proof.HASH), Proof.PAM),
        ((Proof.HASH,), (Proof.PAM, Proof.HASH), Proof.HASH),
    ],
)
async def test_what_is_taken_for_a_proof(
    site: Site, lets_in: tuple[Proof, ...], offers: tuple[Proof, ...], expected: Proof
) -> None:
    site.accounts.lets_in, site.accounts.offers = lets_in, offers
    held, staged = await site.acquire(), await site.stage()
    checked = await site.sweep("check_hosts_for_password", held, staged)
    assert {one.proof for one in checked.values()} == {expected}
    known = tuple(one.model_copy(update={"proof": expected}) for one in held.hosts)
    changed = await site.sweep("change_passwords", held.model_copy(update={"hosts": known}), staged)
    assert {one.problem for one in changed.values()} == {None}


async def test_no_account_is_locked_by_trying(site: Site) -> None:
    """Two refused logins in a row, whoever tries, and then none for a while."""
    site.accounts.compares = False
    site.accounts.offers = (Proof.SSH,)
    site.accounts.passwords["kvm-1"] = "changed by hand"
    held, staged = await site.acquire(), await site.stage()
    for _ in range(4):
        checked = await site.sweep("check_hosts_for_password", held, staged)
        assert checked["kvm-1"].problem is not None
    assert site.accounts.refused.count("kvm-1") == 2
    assert "since hosts lock accounts" in (checked["kvm-1"].problem or "")
    await site.inventory.settings.set("password.refused.interval", 1, actor="test")
    await asyncio.sleep(1.1)
    await site.sweep("check_hosts_for_password", held, staged)
    assert site.accounts.refused.count("kvm-1") == 4


async def test_both_proofs_take_one_connection_where_two_refusals_lock_nothing(
    site: Site,
) -> None:
    held, staged = await site.acquire(), await site.stage()
    await site.inventory.password_checks.count_refusal("kvm-2", ACCOUNT)
    await site.sweep("change_passwords", held, staged)
    new = await site.plaintext(staged.secret)
    assert sorted(site.accounts.tried) == [
        (host, [OLD.format(host), new]) for host in ("kvm-1", "kvm-3")
    ]
    refusals = [await site.inventory.password_checks.refusals(host, ACCOUNT) for host in HOSTS]
    assert [one.number for one in refusals] == [0, 1, 0], "the last login there counts"


async def test_what_is_cut_off_counts_as_refused(site: Site) -> None:
    """Else trying again would lock the account."""
    await site.inventory.settings.set("password.unreachable.timeout", 60, actor="test")
    held, staged = await site.acquire(), await site.stage()
    site.accounts.cuts_off = ["kvm-1"]
    changed = await site.sweep("change_passwords", held, staged)
    assert {one.problem for one in changed.values()} == {None}
    assert [host for host, _ in site.accounts.tried].count("kvm-1") == 1, "then one by one"
    assert site.accounts.refused.count("kvm-1") == 2, "with a success in between"
    assert (await site.inventory.password_checks.refusals("kvm-1", ACCOUNT)).number == 1


async def test_the_same_password_again_is_not_to_be_refused(site: Site) -> None:
    """A new secret with the text of the old one: it can't be both."""
    held = await site.acquire()
    again = await site.inventory.secrets.store("password", OLD.format("kvm-1"), actor="test")
    staged = await site.stage()
    same = staged.model_copy(update={"secret": again})
    changed = await site.sweep("change_passwords", held, same)
    assert changed["kvm-1"].problem is None
    back = await site.sweep("put_passwords_back", held, same)
    assert back["kvm-1"].problem is None
    assert "kvm-1" not in site.accounts.refused


async def test_one_that_says_it_has_changed_and_has_not(site: Site) -> None:
    held, staged = await site.acquire(), await site.stage()
    site.accounts.ignores = {"kvm-1"}
    changed = await site.sweep("change_passwords", held, staged)
    assert changed["kvm-1"].held is Held.UNKNOWN
    assert "refuses it" in (changed["kvm-1"].problem or "")
    assert changed["kvm-2"].problem is None


async def test_one_that_takes_neither_is_not_tried_for_long(site: Site) -> None:
    held, staged = await site.acquire(), await site.stage()
    site.accounts.lets_in = ()
    for _ in range(2):
        changed = await site.sweep("change_passwords", held, staged)
        assert {one.held for one in changed.values()} == {Held.UNKNOWN}
    assert [site.accounts.refused.count(host) for host in HOSTS] == [2, 2, 2]
    assert "since hosts lock accounts" in (changed["kvm-1"].problem or "")


async def test_what_the_host_counts_itself_is_minded(site: Site) -> None:
    site.accounts.counted = 2
    held, staged = await site.acquire(), await site.stage()
    checked = await site.sweep("check_hosts_for_password", held, staged)
    assert all("another one may lock it" in (one.problem or "") for one in checked.values())
    assert site.accounts.refused == []


async def test_leases_of_all_or_of_none(site: Site) -> None:
    site.running.open.add(OTHER)
    await site.acquire(OTHER, ("kvm-3",))
    with pytest.raises(LeaseHeld):
        await site.acquire()
    assert await site.inventory.leases.find("kvm-1", LeaseScope.TRUST) is None
    site.running.open.clear()
    held = await site.acquire()
    assert held.taken_over
    await site.run(site.steps.release_hosts, held)
    assert await site.inventory.leases.find("kvm-3", LeaseScope.TRUST) is None


async def test_one_that_was_taken_over_sets_nothing(site: Site) -> None:
    held, staged = await site.acquire(), await site.stage()
    await site.acquire(OTHER)  # its predecessor does not run
    with pytest.raises(LeaseLost):
        await site.sweep("change_passwords", held, staged)
    assert site.accounts.sets == []


async def test_a_staged_password_of_an_operation_that_has_ended_is_taken_over(site: Site) -> None:
    site.running.open.add(OTHER)
    first = await site.stage(OTHER)
    with pytest.raises(Conflict):
        await site.stage()
    site.running.open.clear()
    assert (await site.stage()).secret == first.secret
    with pytest.raises(InvalidInput):
        await site.stage(secret="another")


@pytest.mark.parametrize("host", [None, "kvm-2"])
async def test_a_repeated_step_finds_the_random_password_of_the_first(
    site: Site, host: str | None
) -> None:
    first = await site.stage(host=host)
    stored = await site.plaintext(first.secret)
    assert await site.stage(host=host) == first, "it is this operation's own, and goes with it"
    assert await site.plaintext(first.secret) == stored
    assert len(await secrets_called(site, "password")) == len(HOSTS) + 1
    other = await site.stage(OTHER, host=host)
    # Another one's is not made for it: of a cluster it is taken over as it is.
    assert (other.secret == first.secret) is (host is None)
    assert other.fresh is (host is not None)


async def secrets_called(site: Site, kind: str) -> list[str]:
    async with site.inventory.database.reading() as session:
        query = select(SecretVersionRow.id).where(col(SecretVersionRow.kind) == kind)
        return list(await session.exec(query))


async def test_the_request_that_it_was_started_for_is_begun_first(site: Site) -> None:
    accept = site.inventory.accepted.accept_rotation
    asked = PasswordRotationInput(cluster=CLUSTER)
    anna = Principal(name="anna", role=Role.ADMIN)
    started, expired = [await accept(asked, None, caller=anna, actor="t") for _ in range(2)]
    await site.inventory.accepted.expire(expired.id, "too late")

    async def stage(accepted: str) -> StagedPassword:
        request = StageRotationInput(
            cluster=CLUSTER,
            account=ACCOUNT,
            host=None,
            secret=None,
            owner=OWNER,
            accepted=accepted,
        )
        staged: StagedPassword = await site.run(site.steps.stage_password, request)
        return staged

    with pytest.raises(Conflict, match="has expired: too late"):
        await stage(expired.id)
    assert await site.inventory.cluster_passwords.versions(CLUSTER) == []
    assert await stage(started.id) == await stage(started.id)
    assert await site.inventory.accepted.overdue(timedelta()) == []


async def test_what_there_is_to_look_at(site: Site) -> None:
    asked = PasswordVerificationInput(cluster=CLUSTER)
    listed = await site.run(site.checks.list_hosts_to_verify, asked)
    assert (listed.found, listed.accounts) == ((), ()), "the cluster has no password"
    nowhere = PasswordVerificationInput(cluster="nowhere")
    with pytest.raises(NotFound):
        await site.run(site.checks.list_hosts_to_verify, nowhere)
    held, staged = await site.acquire(), await site.stage()
    await site.sweep("change_passwords", held, staged)
    await site.run(site.steps.promote_password, site.end(held, staged))
    listed = await site.run(site.checks.list_hosts_to_verify, asked)
    assert listed.accounts == (ACCOUNT,)
    assert [one.hosts for one in listed.found] == [HOSTS]


async def test_a_host_that_came_meanwhile_is_named(site: Site) -> None:
    held, staged = await site.acquire(), await site.stage()
    await site.sweep("change_passwords", held, staged)
    await add(site.inventory, 4, "its own")
    promoted = await site.run(site.steps.promote_password, site.end(held, staged))
    assert promoted.lacking == ("kvm-4",)
    site.accounts.passwords["kvm-4"] = "its own"
    end = site.end(held, staged).model_copy(update={"skipped": {"kvm-4": "it came meanwhile"}})
    await site.run(site.steps.promote_password, end)
    assert (await site.run(site.steps.list_stale_passwords)).hosts == ("kvm-4",)
    brought = await site.run(
        site.steps.bring_passwords_up, BringUpInput(hosts=("kvm-4", "kvm-1"), owner=OTHER)
    )
    assert [one.host for one in brought.done] == ["kvm-4"]
    assert site.accounts.passwords["kvm-4"] == site.accounts.passwords["kvm-1"]
    assert (await site.run(site.steps.list_stale_passwords)).hosts == ()
    assert await site.inventory.leases.find("kvm-4", LeaseScope.TRUST) is None


@pytest.mark.parametrize(
    ("setting", "value"),
    [("password.of.new.hosts", False), ("password.hosts.may.differ", True)],
)
async def test_hosts_with_a_password_of_their_own_keep_it_where_that_is_allowed(
    site: Site, setting: str, value: bool
) -> None:
    held, staged = await site.acquire(), await site.stage()
    await site.sweep("change_passwords", held, staged)
    await add(site.inventory, 4, "its own")
    end = site.end(held, staged).model_copy(update={"skipped": {"kvm-4": "its own"}})
    await site.run(site.steps.promote_password, end)
    await site.inventory.settings.set(setting, value, cluster=CLUSTER, actor="test")
    assert (await site.run(site.steps.list_stale_passwords)).hosts == ()
    asked = BringUpInput(hosts=("kvm-4",), owner=OTHER)
    assert (await site.run(site.steps.bring_passwords_up, asked)).done == ()


async def test_one_that_somebody_else_has_changed_is_left_alone_and_told(site: Site) -> None:
    held, staged = await site.acquire(), await site.stage()
    await site.sweep("change_passwords", held.only({"kvm-1", "kvm-2"}), staged)
    await site.run(site.steps.promote_password, site.end(held, staged, kvm_3="away"))
    await site.run(site.steps.release_hosts, held)
    site.accounts.passwords["kvm-3"] = site.accounts.passwords["kvm-1"] = "changed by hand"
    asked = BringUpInput(hosts=("kvm-3",), owner=OTHER)
    (failed,) = (await site.run(site.steps.bring_passwords_up, asked)).failed
    assert "none that Hostler knows" in (failed.problem or "")
    assert site.accounts.passwords["kvm-3"] == "changed by hand"
    # Not again at once.
    assert (await site.run(site.steps.list_stale_passwords)).hosts == ()
    for _ in range(2):
        seen = await site.run(
            site.checks.verify_passwords, VerifyHostsInput(hosts=HOSTS, account=ACCOUNT)
        )
    states = {one.host: one.state for one in seen.hosts}
    assert states["kvm-1"] is PasswordState.DIFFERS
    assert states["kvm-2"] is PasswordState.AGREES
    events = await site.inventory.events.list(subject="host/kvm-1", limit=100)
    told = [event.message for event in events if event.kind == "host.password"]
    assert len(told) == 1, "once, not at each look"
    assert told[0].startswith("agrees -> differs")


async def test_a_single_host(site: Site) -> None:
    plan = PlanRotationInput(cluster=CLUSTER, account=ACCOUNT, host="kvm-2")
    with pytest.raises(Conflict, match="share one password"):
        await site.run(site.steps.plan_password_rotation, plan)
    await site.inventory.settings.set(
        "password.hosts.may.differ", True, cluster=CLUSTER, actor="test"
    )
    assert (await site.run(site.steps.plan_password_rotation, plan)).hosts == ("kvm-2",)
    held = await site.acquire(hosts=("kvm-2",))
    staged = await site.run(
        site.steps.stage_password,
        StageRotationInput(
            cluster=CLUSTER, account=ACCOUNT, host="kvm-2", secret=None, owner=OWNER
        ),
    )
    assert staged.version is None
    await site.sweep("change_passwords", held, staged)
    end = site.end(held, staged).model_copy(update={"host": "kvm-2"})
    await site.run(site.steps.promote_password, end)
    holding = await site.inventory.cluster_passwords.holding("kvm-2", account=ACCOUNT)
    assert (holding.secret, holding.former, holding.attempted) == (staged.secret, None, ())


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"leave_out": ("kvm-9",)}, InvalidInput, "leave_out"),
        ({"host": "kvm-9"}, InvalidInput, "host"),
        ({"leave_out": HOSTS}, Conflict, "no host"),
    ],
)
async def test_a_plan_that_can_not_be(
    site: Site, fields: dict[str, object], error: type[Exception], words: str
) -> None:
    request = {"cluster": CLUSTER, "account": ACCOUNT, "host": None} | fields
    with pytest.raises(error, match=words):
        await site.run(site.steps.plan_password_rotation, PlanRotationInput.model_validate(request))


async def test_hosts_that_are_down_are_left_out_on_purpose_alone(site: Site) -> None:
    await site.inventory.hosts.set_status("kvm-2", HostStatus.DOWN, actor="test", reason="silent")
    request = PlanRotationInput(cluster=CLUSTER, account=ACCOUNT, host=None)
    with pytest.raises(Conflict, match=r"kvm-2 \(Down\)"):
        await site.run(site.steps.plan_password_rotation, request)
    plan = await site.run(
        site.steps.plan_password_rotation,
        request.model_copy(update={"leave_out": ("kvm-2",)}),
    )
    assert plan.hosts == ("kvm-1", "kvm-3")
    assert [(one.host, one.reason) for one in plan.left_out] == [("kvm-2", "Down")]
