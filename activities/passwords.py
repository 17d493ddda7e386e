"""A change of the password that an account has on the hosts of a cluster, step by step."""

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial

from temporalio import activity

from activities.host_accounts import (
    Candidate,
    HostAccount,
    HostAccountDirectory,
    Trouble,
    patiently,
    random_password,
    sweep,
)
from activities.leases import LeaseActivities
from contracts.errors import Conflict, InvalidInput, LeaseHeld, LeaseLost, NotFound
from contracts.hosts import Host
from contracts.leases import LeaseRef, LeaseScope, Owner
from contracts.passwords import (
    AcquireHostsInput,
    BringUpInput,
    BringUpResult,
    EndRotationInput,
    Held,
    HeldHost,
    HeldHosts,
    HostOutcome,
    HostPasswordReport,
    HostRotation,
    HostWork,
    OnFailure,
    PasswordState,
    PlanRotationInput,
    Promoted,
    Proof,
    RotationPlan,
    StagedPassword,
    StageRotationInput,
    StaleHosts,
    SweepInput,
    SweepResult,
    operation_of,
    owner_of,
)
from contracts.secrets import HostPassword, SecretState
from contracts.settings import (
    PASSWORD_HOSTS_MAY_DIFFER,
    PASSWORD_OF_NEW_HOSTS,
    PASSWORD_ROTATION_CONCURRENCY,
    PASSWORD_ROTATION_ON_FAILURE,
    PASSWORD_UNREACHABLE_TIMEOUT,
    ResolvedSettings,
)
from contracts.states import HostStatus, ResourceState
from contracts.validation import invalid_input
from inventory import Inventory

_KIND = "password"
_NOT_READY = "it is being added, or removed"
_BUSY = "another operation changes its passwords or certificates"
_MOST_NAMED = 10
# A host that could not be brought up to date is tried again after that, or when it was away again.
_AGAIN_AFTER = timedelta(hours=1)
_NOT_YET = (ResourceState.CREATING, ResourceState.ERROR, ResourceState.REMOVED)


class PasswordActivities:
    """Each step finds its work done if it was done. What is wrong with a host is in the result; a
    step fails for the inventory, and for a lease that is lost."""

    def __init__(
        self, inventory: Inventory, accounts: HostAccountDirectory, leases: LeaseActivities
    ) -> None:
        self._inventory = inventory
        self._accounts = accounts
        self._leases = leases

    # --- before anything changes ----------------------------------------------------------------

    @activity.defn(name="plan_password_rotation")
    async def plan_password_rotation(self, request: PlanRotationInput) -> RotationPlan:
        """Which hosts. Raises NotFound, InvalidInput (no such host there), Conflict (hosts that are
        away and not left out; one host where that is not allowed; none at all)."""
        cluster = await self._inventory.topology.get_cluster(request.cluster)
        settings = await self._inventory.settings.resolve(cluster=cluster.name)
        there = {host.name: host for host in await self._inventory.hosts.list(cluster=cluster.name)}
        _require_known(request, there)
        if request.host is not None:
            if not settings[PASSWORD_HOSTS_MAY_DIFFER]:
                raise Conflict(
                    f"The hosts of {cluster.name} share one password.",
                    remedy=f"Change it on all of them, or allow it: hostler setting set "
                    f"{PASSWORD_HOSTS_MAY_DIFFER.name} true --cluster {cluster.name}",
                )
            there = {request.host: there[request.host]}
        # What is being added is brought up to date when it is there.
        hosts = [host for host in there.values() if host.resource_state not in _NOT_YET]
        left_out = [host for host in hosts if host.name in request.leave_out]
        wanted = [host for host in hosts if host.name not in request.leave_out]
        away = [one for one in wanted if one.status is HostStatus.DOWN or one.being_reinstalled]
        if away:
            raise Conflict(
                f"{_named([f'{one.name} ({_as_it_is(one)})' for one in away])}: their password "
                "can't be changed now.",
                remedy="Leave them out on purpose (--leave-out HOST): they get it when they are "
                "back; or wait for them.",
                details={"hosts": [one.name for one in away]},
            )
        if not wanted:
            raise Conflict(f"{cluster.name} has no host whose password is to be changed.")
        return RotationPlan(
            zone=cluster.zone,
            hosts=tuple(sorted(one.name for one in wanted)),
            left_out=tuple(
                HostRotation(host=one.name, state=HostWork.LEFT_OUT, reason=_as_it_is(one))
                for one in left_out
            ),
            on_failure=OnFailure(settings[PASSWORD_ROTATION_ON_FAILURE]),
            concurrency=settings[PASSWORD_ROTATION_CONCURRENCY],
        )

    @activity.defn(name="acquire_hosts")
    async def acquire_hosts(self, request: AcquireHostsInput) -> HeldHosts:
        """The leases of all these hosts, or of none. Raises LeaseHeld, NotFound, Unavailable."""
        leases = await self._leases.acquire_all(
            request.hosts, request.scope, request.owner, request.purpose
        )
        return HeldHosts(
            owner=request.owner,
            hosts=tuple(HeldHost(host=lease.host, epoch=lease.epoch) for lease in leases),
            taken_over=any(lease.taken_over_from is not None for lease in leases),
        )

    @activity.defn(name="release_hosts")
    async def release_hosts(self, held: HeldHosts) -> None:
        """Give them back; no effect on those that are gone."""
        await self._leases.release_all(held.leases())

    @activity.defn(name="stage_password")
    async def stage_password(self, request: StageRotationInput) -> StagedPassword:
        """The new password, stored: the given one, the staged one, or a random one; this
        operation's from now on, and the same in each attempt. Raises NotFound, InvalidInput,
        Conflict (another operation has the staged one; the request has expired)."""
        if request.accepted is not None:
            await self._inventory.accepted.begin(request.accepted, request.owner.first_run_id)
        if request.host is not None:
            return await self._stage_for_host(request)
        staged = await self._staged(request)
        if request.secret is not None and (staged is None or staged[1] != request.secret):
            raise InvalidInput(
                f"{request.secret} is not the staged password of {request.cluster}.",
                remedy="Stage it again, and start the change without `secret`.",
            )
        if staged is not None:
            await self._adopt(request)
            fresh = request.secret is not None or staged[1] == _own_secret(request.owner)
            return StagedPassword(secret=staged[1], version=staged[0], fresh=fresh)
        settings = await self._inventory.settings.resolve(cluster=request.cluster)
        await self._inventory.cluster_passwords.stage(
            request.cluster,
            random_password(settings),
            account=request.account,
            actor=request.owner.workflow_id,
            operation=operation_of(request.owner),
            secret_id=_own_secret(request.owner),
        )
        staged = await self._staged(request)
        if staged is None:
            raise Conflict(f"The staged password of {request.cluster} was taken away meanwhile.")
        return StagedPassword(secret=staged[1], version=staged[0], fresh=True)

    async def _staged(self, request: StageRotationInput) -> tuple[int, str] | None:
        return await self._inventory.cluster_passwords.find(
            request.cluster, SecretState.STAGED, account=request.account
        )

    async def _adopt(self, request: StageRotationInput) -> None:
        """Also from an operation that has ended."""
        adopt = partial(
            self._inventory.cluster_passwords.adopt,
            request.cluster,
            account=request.account,
            operation=operation_of(request.owner),
        )
        try:
            await adopt()
        except Conflict as conflict:
            holder = conflict.details.get("operation")
            if not isinstance(holder, str) or await self._leases.runs(owner_of(holder)):
                raise
            await adopt(takeover_from=holder)

    async def _stage_for_host(self, request: StageRotationInput) -> StagedPassword:
        secret = request.secret
        if secret is None:
            settings = await self._inventory.settings.resolve(cluster=request.cluster)
            secret = _own_secret(request.owner)
            await self._inventory.secrets.store_as(
                secret, _KIND, random_password(settings), actor=request.owner.workflow_id
            )
        elif (await self._inventory.secrets.reveal(secret)).kind != _KIND:
            raise InvalidInput(f"{secret} is no password.")
        return StagedPassword(secret=secret, version=None, fresh=True)

    @activity.defn(name="check_hosts_for_password")
    async def check_hosts_for_password(self, request: SweepInput) -> SweepResult:
        """Whether each host can be given the new password: reached by a key, with the present one
        known and proven, the new one to its rules. Only looks, but that what is found out to be the
        present one is noted."""
        settings = await self._inventory.settings.resolve(cluster=request.cluster)
        new = await self._candidate(request.secret)
        leases = {lease.host: lease for lease in request.held.leases()}
        accounts = await self._accounts.open_all(tuple(leases), request.account, settings)

        async def check(host: str) -> HostOutcome:
            account = await accounts.open(host)
            candidates = await account.likely(new)
            report = await account.look(new.plaintext, candidates)
            if report.problems:
                raise Trouble("; ".join(report.problems))
            if any(
                one.plaintext == new.plaintext and one.secret != new.secret for one in candidates
            ):
                raise Trouble("the new password is one that it has, or had")
            present = None if report.locked else await account.find(candidates)
            if present is None and not request.accept_unknown:
                known = "is locked" if report.locked else "is none that Hostler knows"
                raise Trouble(
                    f"the present password of {request.account} {known}: it could not be put back"
                )
            proof = await account.choose_proof(present, new)
            if present is not None:
                await self._note_present(present, await account.holding(), leases[host], request)
            has_it = present is not None and present.secret == new.secret
            return HostOutcome(host=host, held=Held.NEW if has_it else Held.FORMER, proof=proof)

        return SweepResult(hosts=await sweep(tuple(leases), request.concurrency, check))

    async def _note_present(
        self, present: Candidate, holding: HostPassword, lease: LeaseRef, request: SweepInput
    ) -> None:
        """Unless it is known already."""
        if holding.secret != present.secret or holding.attempted:
            await self._inventory.cluster_passwords.record(
                present.secret, account=request.account, lease=lease
            )

    # --- the change -----------------------------------------------------------------------------

    @activity.defn(name="change_passwords")
    async def change_passwords(self, request: SweepInput) -> SweepResult:
        """Give each host the new password, prove it by a new login, and prove that the old one is
        refused. Raises LeaseLost."""
        return await self._sweep(request, HostAccount.change)

    @activity.defn(name="put_passwords_back")
    async def put_passwords_back(self, request: SweepInput) -> SweepResult:
        """Give each host what it had before, and prove that. Raises LeaseLost."""
        return await self._sweep(request, HostAccount.put_back)

    async def _sweep(self, request: SweepInput, work: "_Work") -> SweepResult:
        settings = await self._inventory.settings.resolve(cluster=request.cluster)
        new = await self._candidate(request.secret)
        leases = {lease.host: lease for lease in request.held.leases()}
        proofs = {one.host: one.proof for one in request.held.hosts}
        accounts = await self._accounts.open_all(tuple(leases), request.account, settings)

        async def one(host: str) -> HostOutcome:
            account = await accounts.open(host)
            proof = proofs[host] or await account.choose_proof(None, new)
            return await work(account, new, proof, leases[host])

        async def one_patiently(host: str) -> HostOutcome:
            return await patiently(lambda: one(host), settings[PASSWORD_UNREACHABLE_TIMEOUT])

        outcomes = await sweep(tuple(leases), request.concurrency, one_patiently)
        told = [await self._with_held(one, request) for one in outcomes]
        return SweepResult(hosts=tuple(told))

    async def _with_held(self, outcome: HostOutcome, request: SweepInput) -> HostOutcome:
        """What is known of one that was in trouble: nothing was attempted, or something was."""
        if outcome.problem is None or outcome.held is not Held.UNKNOWN:
            return outcome
        try:
            holding = await self._inventory.cluster_passwords.holding(
                outcome.host, account=request.account
            )
        except NotFound:
            return outcome
        if holding.attempted:
            return outcome
        held = Held.NEW if holding.secret == request.secret else Held.FORMER
        return outcome.model_copy(update={"held": held})

    # --- its end --------------------------------------------------------------------------------

    @activity.defn(name="promote_password")
    async def promote_password(self, request: EndRotationInput) -> Promoted:
        """The new password counts from now on, for all hosts at once. Raises Conflict,
        LeaseLost."""
        operation = request.held.owner.workflow_id
        passwords = self._inventory.cluster_passwords
        leases = request.held.leases()
        version = request.staged.version
        if version is None:
            for lease in leases:
                await passwords.settle(request.staged.secret, account=request.account, lease=lease)
        else:
            others = dict.fromkeys(await self._not_to_wait_for(request.cluster), _NOT_READY)
            try:
                await passwords.promote(
                    request.cluster,
                    version,
                    account=request.account,
                    leases=leases,
                    left_out=others | request.skipped,
                    operation=operation_of(request.held.owner),
                )
            except LeaseLost:
                raise
            except Conflict as conflict:
                hosts = conflict.details.get("hosts")
                lacking = set(hosts if isinstance(hosts, list) else ())
                new = lacking - {one.host for one in request.held.hosts}
                if not new:
                    raise
                return Promoted(lacking=tuple(sorted(new)))
        await self._note_all(request, operation)
        return Promoted()

    async def _not_to_wait_for(self, cluster: str) -> frozenset[str]:
        """Those that are being added, or go: an addition gives them the current password itself."""
        hosts = await self._inventory.hosts.list(cluster=cluster)
        return frozenset(one.name for one in hosts if one.resource_state in _NOT_YET)

    async def _note_all(self, request: EndRotationInput, operation: str) -> None:
        reports = [
            HostPasswordReport(
                host=one.host,
                account=request.account,
                state=PasswordState.AGREES,
                version=request.staged.version,
                proof=one.proof,
                reason="" if request.host is None else "its own",
            )
            for one in request.held.hosts
        ] + [
            HostPasswordReport(
                host=host, account=request.account, state=PasswordState.STALE, reason=reason
            )
            for host, reason in request.skipped.items()
        ]
        await self._inventory.password_checks.note_all(reports, operation=operation)

    @activity.defn(name="abandon_password")
    async def abandon_password(self, request: EndRotationInput) -> None:
        """Nothing comes of the new password: no host has it. One that hosts may have all the same
        (`skipped`) is kept for them."""
        passwords, staged = self._inventory.cluster_passwords, request.staged
        if staged.version is None:
            for lease in request.held.leases():
                holding = await passwords.holding(lease.host, account=request.account)
                if holding.secret is not None and holding.former == staged.secret:
                    await passwords.settle(holding.secret, account=request.account, lease=lease)
            await self._inventory.secrets.discard(staged.secret)
            return
        await passwords.abandon(
            request.cluster,
            staged.version,
            account=request.account,
            reason=request.reason or "its change did not succeed",
            actor=request.held.owner.workflow_id,
            left_out=request.skipped,
            operation=operation_of(request.held.owner),
        )

    # --- hosts that were away -------------------------------------------------------------------

    @activity.defn(name="list_stale_passwords")
    async def list_stale_passwords(self) -> StaleHosts:
        """Hosts that are Up and do not have the current password of their cluster. One that never
        had any of its cluster's is among them only if the settings say so."""
        inventory = self._inventory
        found: set[str] = set()
        for account in await inventory.password_checks.accounts():
            for cluster in await inventory.password_checks.clusters(account):
                settings = await inventory.settings.resolve(cluster=cluster)
                stale = [
                    one.host
                    for one in await inventory.cluster_passwords.holdings(cluster, account=account)
                    if one.stale and _may_get_it(one, settings)
                ]
                found |= set(
                    await inventory.password_checks.due(stale, account, again_after=_AGAIN_AFTER)
                )
        return StaleHosts(hosts=tuple(sorted(found)))

    @activity.defn(name="bring_passwords_up")
    async def bring_passwords_up(self, request: BringUpInput) -> BringUpResult:
        """Give these hosts what is current in their clusters, of every account. One that has it
        already, that the settings leave with its own, or that another operation works on, is in no
        list. Raises LeaseLost."""
        outcomes: list[HostOutcome] = []
        for account in await self._inventory.password_checks.accounts():
            outcomes += await self._bring_up(request, account)
        return BringUpResult(
            done=tuple(one for one in outcomes if one.problem is None),
            failed=tuple(one for one in outcomes if one.problem is not None),
        )

    async def _bring_up(self, request: BringUpInput, account: str) -> list[HostOutcome]:
        hosts = await self._inventory.hosts.among(request.hosts)
        outcomes: list[HostOutcome] = []
        for cluster in sorted({host.cluster for host in hosts}):
            current = await self._inventory.cluster_passwords.find(
                cluster, SecretState.CURRENT, account=account
            )
            if current is None:
                continue
            settings = await self._inventory.settings.resolve(cluster=cluster)
            version, new = current[0], await self._candidate(current[1])
            holdings = await self._inventory.cluster_passwords.holdings(cluster, account=account)
            due = {one.host for one in holdings if one.stale and _may_get_it(one, settings)}
            found = await sweep(
                [host.name for host in hosts if host.name in due],
                settings[PASSWORD_ROTATION_CONCURRENCY],
                partial(self._bring_one, request.owner, account, new, settings),
            )
            for one in found:
                if one.problem != _BUSY:
                    await self._note_brought(one, account, version, request.owner.workflow_id)
                    outcomes.append(one)
        return outcomes

    async def _bring_one(
        self, owner: Owner, account: str, new: Candidate, settings: ResolvedSettings, host: str
    ) -> HostOutcome:
        asked = AcquireHostsInput(
            hosts=(host,), scope=LeaseScope.TRUST, owner=owner, purpose="password of its cluster"
        )
        try:
            held = await self.acquire_hosts(asked)
        except LeaseHeld:
            raise Trouble(_BUSY) from None
        except NotFound as gone:
            raise Trouble(gone.message) from None
        try:
            (lease,) = held.leases()
            return await self._give_current(host, account, new, settings, lease)
        finally:
            await self.release_hosts(held)

    async def _give_current(
        self,
        host: str,
        account: str,
        new: Candidate,
        settings: ResolvedSettings,
        lease: LeaseRef,
    ) -> HostOutcome:
        passwords = self._inventory.cluster_passwords
        opened = await self._accounts.open(host, account, settings)
        candidates = await opened.candidates()
        report = await opened.look(new.plaintext, candidates)
        if report.problems:
            raise Trouble("; ".join(report.problems))
        if report.locked:
            raise Trouble(f"the password of {account} is locked")
        present = await opened.find(candidates)
        holding = await passwords.holding(host, account=account)
        if present is None and holding.secret is not None:
            # Whoever has changed it may need it: an operator decides.
            raise Trouble(f"the password of {account} is none that Hostler knows")
        proof = await opened.choose_proof(present, new)
        outcome = await opened.change(new, proof, lease)
        if outcome.problem is None:
            await passwords.settle(new.secret, account=account, lease=lease)
        return outcome

    async def _note_brought(
        self, outcome: HostOutcome, account: str, version: int, operation: str
    ) -> None:
        if outcome.problem is not None:
            await self._inventory.password_checks.note_tried(outcome.host, account)
        agrees = outcome.problem is None
        report = HostPasswordReport(
            host=outcome.host,
            account=account,
            state=PasswordState.AGREES if agrees else PasswordState.STALE,
            version=version if agrees else None,
            proof=outcome.proof,
            reason=outcome.problem or "",
        )
        await self._inventory.password_checks.note(report, operation=operation)

    async def _candidate(self, secret: str) -> Candidate:
        return Candidate(secret, (await self._inventory.secrets.reveal(secret)).plaintext)


def _own_secret(owner: Owner) -> str:
    """Id of the random password of an operation: an attempt whose predecessor has stored one finds
    it, and knows it for its own."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"password/{operation_of(owner)}"))


_Work = Callable[[HostAccount, Candidate, Proof, LeaseRef], Awaitable[HostOutcome]]


def _require_known(request: PlanRotationInput, there: Mapping[str, Host]) -> None:
    fields = [("host", request.host)] if request.host is not None else []
    fields += [("leave_out", host) for host in request.leave_out]
    unknown = [(field, host) for field, host in fields if host not in there]
    if unknown:
        message = f"no host of {request.cluster}"
        raise invalid_input(
            "PasswordRotation",
            [
                {"loc": (field,), "type": "host", "msg": f"{host!r} is {message}"}
                for field, host in unknown
            ],
        )


def _may_get_it(holding: HostPassword, settings: ResolvedSettings) -> bool:
    """One that never had any of its cluster's passwords has one of its own, perhaps on purpose."""
    own = settings[PASSWORD_OF_NEW_HOSTS] and not settings[PASSWORD_HOSTS_MAY_DIFFER]
    return own or holding.version is not None


def _as_it_is(host: Host) -> str:
    return "being re-installed" if host.being_reinstalled else str(host.status)


def _named(hosts: Sequence[str]) -> str:
    more = f" and {len(hosts) - _MOST_NAMED} more" if len(hosts) > _MOST_NAMED else ""
    return f"{', '.join(hosts[:_MOST_NAMED])}{more}"
