"""Whether hosts have the password of their cluster."""

from functools import partial

from temporalio import activity

from activities.host_accounts import HostAccountDirectory, Trouble, sweep
from contracts.errors import NotFound
from contracts.passwords import (
    Held,
    HostOutcome,
    HostPasswordReport,
    HostsOfAccount,
    HostsToVerify,
    PasswordState,
    PasswordVerificationInput,
    Proof,
    VerifyHostsInput,
    VerifyHostsResult,
)
from contracts.secrets import SecretState
from contracts.settings import (
    PASSWORD_HOSTS_MAY_DIFFER,
    PASSWORD_ROTATION_CONCURRENCY,
    PASSWORD_VERIFICATION_INTERVAL,
    ResolvedSettings,
)
from inventory import Inventory


class PasswordCheckActivities:
    """Looks: no password is changed. What was seen is noted as it comes."""

    def __init__(self, inventory: Inventory, accounts: HostAccountDirectory) -> None:
        self._inventory = inventory
        self._accounts = accounts

    @activity.defn(name="list_hosts_to_verify")
    async def list_hosts_to_verify(self, request: PasswordVerificationInput) -> HostsToVerify:
        """The hosts in service of the cluster, or of all that have a password. Raises NotFound."""
        checks = self._inventory.password_checks
        settings = await self._inventory.settings.resolve()
        found: list[HostsOfAccount] = []
        accounts: list[str] = []
        if request.cluster is not None:
            await self._inventory.topology.get_cluster(request.cluster)
        for account in await checks.accounts():
            clusters = await checks.clusters(account)
            if request.cluster is not None:
                clusters = [cluster for cluster in clusters if cluster == request.cluster]
            if clusters:
                accounts.append(account)
            hosts = [host for one in clusters for host in await checks.in_service(one)]
            if hosts:
                found.append(HostsOfAccount(account=account, hosts=tuple(hosts)))
        return HostsToVerify(
            found=tuple(found),
            every_s=settings[PASSWORD_VERIFICATION_INTERVAL],
            accounts=tuple(accounts),
        )

    @activity.defn(name="verify_passwords")
    async def verify_passwords(self, request: VerifyHostsInput) -> VerifyHostsResult:
        """Which password each host has. One that does not answer is a report of its own. Raises
        Unavailable for the inventory alone."""
        hosts = await self._inventory.hosts.among(request.hosts)
        reports: dict[str, HostPasswordReport] = {}
        for cluster in sorted({host.cluster for host in hosts}):
            settings = await self._inventory.settings.resolve(cluster=cluster)
            names = [host.name for host in hosts if host.cluster == cluster]
            known = await self._inventory.password_checks.of_hosts(names, request.account)
            proofs = {name: report.proof for name, report in known.items()}
            await sweep(
                names,
                settings[PASSWORD_ROTATION_CONCURRENCY],
                partial(self._verify, request.account, settings, proofs, reports),
            )
        return VerifyHostsResult(
            hosts=tuple(reports[host] for host in request.hosts if host in reports)
        )

    async def _verify(
        self,
        account: str,
        settings: ResolvedSettings,
        proofs: dict[str, Proof | None],
        reports: dict[str, HostPasswordReport],
        host: str,
    ) -> HostOutcome:
        """Puts what was seen into `reports`."""
        try:
            report = await self._look(host, account, settings, proofs.get(host))
        except Trouble as trouble:
            report = HostPasswordReport(
                host=host, account=account, state=PasswordState.UNKNOWN, reason=str(trouble)
            )
        except NotFound:  # it was removed meanwhile
            return HostOutcome(host=host, held=Held.UNKNOWN)
        info = activity.info()
        operation = info.workflow_id or info.activity_id
        await self._inventory.password_checks.note(report, operation=operation)
        reports[host] = report
        return HostOutcome(host=host, held=Held.UNKNOWN)

    async def _look(
        self, host: str, account: str, settings: ResolvedSettings, proof: Proof | None
    ) -> HostPasswordReport:
        passwords = self._inventory.cluster_passwords
        opened = await self._accounts.open(host, account, settings)
        candidates = await opened.candidates()
        if not candidates:
            raise Trouble(f"Hostler knows no password of {account} there")
        present = await opened.find(candidates)
        said = HostPasswordReport(host=host, account=account, state=PasswordState.DIFFERS)
        if present is None:
            return said.model_copy(
                update={"reason": "it is none that Hostler knows: somebody else has changed it"}
            )
        if proof not in (None, Proof.HASH) and not await opened.takes(present, proof):
            return said.model_copy(
                update={"proof": proof, "reason": f"its hash is right, yet it is refused ({proof})"}
            )
        holding = await passwords.holding(host, account=account)
        cluster = (await self._inventory.hosts.get(host)).cluster
        current = await passwords.find(cluster, SecretState.CURRENT, account=account)
        is_own = settings[PASSWORD_HOSTS_MAY_DIFFER] and holding.version is None
        state, version, reason = PasswordState.STALE, None, "it has another one that Hostler knows"
        if current is None:
            state, reason = PasswordState.AGREES, "its cluster has no password yet"
        elif present.secret == current[1]:
            state, version, reason = PasswordState.AGREES, current[0], ""
        elif is_own and present.secret == holding.secret:
            state, reason = PasswordState.AGREES, "its own"
        return HostPasswordReport(
            host=host,
            account=account,
            state=state,
            version=version,
            proof=proof or Proof.HASH,
            reason=reason,
        )
