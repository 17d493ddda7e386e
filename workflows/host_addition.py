"""HostAddition: bring a host into the inventory, its key pinned, its fence proven.

connect -> accept the host key -> preflight -> register -> install packages, if asked to ->
read facts -> install the fence -> log in with a key of our own -> certificates, if others of its
cluster have some; secured, if they are -> in service, closed if it is in something that is Disabled
"""

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.addition import AdditionActivities
    from activities.fencing import FencingActivities
    from activities.leases import LeaseActivities
    from activities.records import RecordActivities
    from activities.survey import SurveyActivities
    from contracts.addition import (
        AcceptHostKeyInput,
        HostAdditionInput,
        HostAdditionResult,
        HostAdditionStatus,
    )
    from contracts.certificates import RevocationReason
    from contracts.hosts import Host, HostFacts
    from contracts.leases import Lease, LeaseRef, LeaseScope, Owner
    from contracts.preflight import Finding, Findings, errors_among, summary
    from contracts.preflight_rules import error, warning
    from contracts.states import HostStatus, Phase, ResourceState, TlsState
    from contracts.steps import (
        AcquireLeaseInput,
        AwaitLeaseInput,
        ChangeStateInput,
        FormerKeysInput,
        HostKeyResult,
        HostRef,
        PreflightInput,
        RegisteredHost,
        RegisterHostInput,
        ScanHostKeyInput,
        SecretRef,
        SetStatusInput,
        TakeBackResult,
        TombstonesClosed,
    )
    from workflows import certification, policies, provisioning
    from workflows.failures import as_application_error, explain, is_absence
    from workflows.search_attributes import HOST_CLUSTER, HOST_NAME, HOST_ZONE, PHASE

_ACCEPT_WITHIN = timedelta(hours=1)
_TRUST_WITHIN_S = 900
_TO_GET = {
    TlsState.NONE: "",
    TlsState.READY: "Before it is put into service it gets certificates, as others of its cluster "
    "have some. ",
    TlsState.SECURED: "Before it is put into service it gets certificates, and is secured, as all "
    "others are. ",
}


@workflow.defn(name="HostAddition")
class HostAddition:
    """One addition of one host."""

    def __init__(self) -> None:
        self._request: HostAdditionInput | None = None
        self._phase = Phase.CONNECTING
        self._message = "Connects to the host"
        self._lease: LeaseRef | None = None
        self._key: HostKeyResult | None = None
        self._accepted: str | None = None
        self._findings: tuple[Finding, ...] = ()
        self._tls = TlsState.NONE
        self._trust: LeaseRef | None = None
        self._registered = False
        self._packages_begun = False
        self._fence_begun = False
        self._in_service = False
        self._remains: tuple[str, ...] = ()
        self._canceled = False

    @workflow.run
    async def run(self, request: HostAdditionInput) -> HostAdditionResult:
        """Returns when the host is in service; a cancel that comes then is too late. After a
        failure neither its row, its lease nor anything on the host stay, but for packages."""
        self._request = request
        self._accepted = request.host_key_sha256
        self._enter(Phase.CONNECTING, f"Connects to {request.address} port {request.ssh_port}")
        work = asyncio.create_task(self._dry_run() if request.dry_run else self._add())
        canceled = False
        while not work.done():
            try:
                await workflow.wait_condition(work.done)
            except asyncio.CancelledError:
                if self._in_service:
                    continue  # it came too late
                self._canceled = canceled = True
                work.cancel()
        failure: BaseException | None = work.exception() if not work.cancelled() else None
        if failure is None and not work.cancelled():
            return work.result()
        await self._undo()
        await workflow.wait_condition(workflow.all_handlers_finished)
        if canceled:
            raise asyncio.CancelledError("the addition was cancelled")
        if isinstance(failure, ActivityError):
            failure = as_application_error(failure)
        if isinstance(failure, ApplicationError):
            raise self._with_remains(failure)
        raise failure or asyncio.CancelledError

    async def _dry_run(self) -> HostAdditionResult:
        """Without a lease: it changes nothing, whatever else goes on."""
        findings = await self._look_from_outside()
        if self._key is not None and self._accepted is None:
            findings += (
                warning(
                    "host-key-not-accepted",
                    f"It shows the host key {self._key.sha256}; nobody has said that it is the "
                    "right one, so nothing behind it was looked at.",
                    f"Compare it with the host's own, then: --accept-host-key {self._key.sha256}",
                ),
            )
        await self._preflight(findings)
        await self._discard_secret()
        self._enter(
            Phase.DONE,
            f"A dry run: {summary(self._findings)}. {_TO_GET[self._tls]}Nothing was changed",
        )
        return self._result()

    async def _add(self) -> HostAdditionResult:
        await self._take_lease()
        from_outside = await self._look_from_outside()
        if self._key is not None and self._accepted is None:
            await self._ask_for_acceptance(self._key)
            from_outside = self._about_key()
        lacks_packages = await self._preflight(from_outside)
        self._require_no_errors()
        host = await self._register()
        await self._tell_warnings(self._findings)
        if self._asked.install_packages and lacks_packages:
            await self._install_packages()
        facts = await self._read_facts()
        await self._install_fence()
        await self._change_to_own_key()
        if self._tls.can and workflow.patched("certificates-of-new-hosts"):
            await self._certify()
        host = await self._put_into_service(host)
        await self._tell_allocation(host)
        if workflow.patched("password-of-new-hosts"):
            await self._give_password(host)
        await self._release_lease()
        self._enter(Phase.DONE, f"{host.name} is {host.resource_state}")
        return self._result(host, facts)

    def _result(
        self, host: Host | None = None, facts: HostFacts | None = None
    ) -> HostAdditionResult:
        return HostAdditionResult(
            name=self._asked.name,
            resource_state=host.resource_state if host is not None else None,
            host_key_sha256=self._key.sha256 if self._key is not None else None,
            facts=facts,
            findings=self._findings,
            tls=self._tls,
        )

    async def _take_lease(self) -> None:
        lease: Lease = await workflow.execute_activity_method(
            LeaseActivities.acquire_lease,
            self._wanted(LeaseScope.PLACEMENT),
            summary=f"Lease of {self._asked.name}",
            **policies.RECORD,
        )
        self._lease = _ref(lease)
        await _outwait(lease)

    async def _take_trust(self) -> LeaseRef:
        lease: Lease = await workflow.execute_activity_method(
            LeaseActivities.await_lease,
            AwaitLeaseInput(acquire=self._wanted(LeaseScope.TRUST), within_s=_TRUST_WITHIN_S),
            summary=f"Certificates of {self._asked.name}, for this alone",
            **policies.HOST_WAIT,
        )
        self._trust = trust = _ref(lease)
        await _outwait(lease)
        return trust

    def _wanted(self, scope: LeaseScope) -> AcquireLeaseInput:
        info = workflow.info()
        return AcquireLeaseInput(
            host=self._asked.name,
            scope=scope,
            owner=Owner(workflow_id=info.workflow_id, first_run_id=info.first_execution_run_id),
            purpose="addition",
            known=False,
        )

    # --- the host key ---------------------------------------------------------------------------

    async def _look_from_outside(self) -> tuple[Finding, ...]:
        """Read the host key. A host that does not answer is a finding."""
        try:
            self._key = await workflow.execute_activity_method(
                AdditionActivities.scan_host_key,
                ScanHostKeyInput(address=str(self._asked.address), ssh_port=self._asked.ssh_port),
                summary="SSH host key",
                **policies.FIRST_CONTACT,
            )
        except ActivityError as failure:
            if not is_absence(failure):
                raise
            return (
                error(
                    "unreachable",
                    explain(failure),
                    "Check address and port, whether sshd runs, and whether this machine may "
                    "connect to it.",
                ),
            )
        return self._about_key()

    def _about_key(self) -> tuple[Finding, ...]:
        if self._accepted in (None, self._shown.sha256):
            return ()
        return (
            error(
                "host-key-differs",
                f"{self._asked.address} shows the host key {self._shown.sha256}, but "
                f"{self._accepted} was accepted.",
                "Find out which machine answers there. Nobody has logged in.",
            ),
        )

    async def _ask_for_acceptance(self, key: HostKeyResult) -> None:
        """The key is pinned only after somebody has said that it is the host's."""
        self._enter(Phase.QUESTION, f"The host shows the key {key.sha256}: is it the right one?")
        try:
            await workflow.wait_condition(
                lambda: self._accepted is not None,
                timeout=_ACCEPT_WITHIN,
                timeout_summary="An operator compares the host key",
            )
        except TimeoutError as timeout:
            raise ApplicationError(
                f"Nobody accepted the host key {key.sha256} within {_ACCEPT_WITHIN}.",
                type="HostKeyNotAccepted",
                non_retryable=True,
            ) from timeout

    # --- preflight ------------------------------------------------------------------------------

    async def _preflight(self, known: tuple[Finding, ...] = ()) -> bool:
        """All findings, those that are known already first; whether packages are wanting."""
        asked = self._asked
        self._enter(Phase.CONNECTING, "Logs in and looks at everything that an addition needs")
        result = await provisioning.preflight(
            PreflightInput(
                host=asked.name,
                cluster=asked.cluster,
                address=str(asked.address),
                ssh_port=asked.ssh_port,
                user=asked.user,
                secret=asked.secret,
                host_key=self._key,
                log_in=self._key is not None and self._accepted == self._key.sha256,
                epoch=self._lease.epoch if self._lease is not None else None,
                install_packages=asked.install_packages and not self._packages_begun,
                returning=asked.returning,
                enabled=asked.enabled,
            )
        )
        self._findings, self._tls = (*known, *result.findings), result.tls
        return result.lacks_packages

    def _require_no_errors(self) -> None:
        errors = errors_among(self._findings)
        if not errors:
            return
        raise ApplicationError(
            f"{self._asked.name} can't be added ({summary(self._findings)}):\n"
            + "\n".join(str(finding) for finding in self._findings),
            Findings(findings=self._findings).model_dump(mode="json"),
            type="PreflightFailed",
            non_retryable=True,
        )

    async def _tell_warnings(self, findings: tuple[Finding, ...]) -> None:
        """Once there is a host to tell them of."""
        await provisioning.record_findings(self._held, "addition.warning", findings)

    # --- the host -------------------------------------------------------------------------------

    async def _register(self) -> Host:
        asked = self._asked
        self._enter(Phase.INSTALLING, "Registers the host")
        self._registered = True
        host: RegisteredHost = await workflow.execute_activity_method(
            RecordActivities.register_host,
            RegisterHostInput(
                lease=self._held,
                cluster=asked.cluster,
                address=str(asked.address),
                ssh_port=asked.ssh_port,
                user=asked.user,
                secret=asked.secret,
                host_key_line=self._shown.line,
                host_key_sha256=self._shown.sha256,
                capacity_memory_mib=asked.capacity_memory_mib,
                capacity_cpus=asked.capacity_cpus,
                reserved_memory_mib=asked.reserved_memory_mib,
            ),
            summary=f"{asked.name} becomes Creating",
            **policies.RECORD,
        )
        workflow.upsert_search_attributes([HOST_ZONE.value_set(host.zone)])
        self._fence_begun = host.adopted
        return host

    async def _install_packages(self) -> None:
        """Then look again: what could not be seen before may be wrong too."""
        self._enter(Phase.INSTALLING, "Installs libvirt and QEMU; a job on the host does it")
        self._packages_begun = True
        before = self._findings
        await provisioning.install_packages(self._held)
        await self._preflight()
        self._require_no_errors()
        await self._tell_warnings(tuple(one for one in self._findings if one not in before))
        self._enter(Phase.INSTALLING, "libvirt and QEMU are installed")

    async def _read_facts(self) -> HostFacts:
        self._enter(Phase.INSTALLING, "Logs in and reads the host's facts")
        facts: HostFacts = await workflow.execute_activity_method(
            SurveyActivities.read_facts,
            self._held,
            summary="Login, CPUs, memory, versions",
            **policies.FIRST_LOOK,
        )
        return facts

    async def _install_fence(self) -> None:
        self._enter(Phase.INSTALLING, "Installs the fence and proves that it holds")
        self._fence_begun = True
        await provisioning.install_fence(self._held, stays_up=False)

    async def _change_to_own_key(self) -> None:
        self._enter(Phase.INSTALLING, "Installs Hostler's own key and proves it by a new login")
        refused = await provisioning.change_to_own_key(self._held)
        if refused is not None:
            await self._warn(refused)

    async def _certify(self) -> None:
        """Before it is put into service: from then on VMs come to it, and those of secured hosts
        only by TLS."""
        name = self._asked.name
        self._enter(Phase.INSTALLING, f"Takes the certificates of {name} for this alone")
        trust = await self._take_trust()
        secured = self._tls is TlsState.SECURED
        self._enter(
            Phase.INSTALLING,
            f"Has {name} get certificates" + (", and take and give VMs by TLS only" * secured),
        )
        await certification.certify(trust, self._tls, "it is added")

    async def _put_into_service(self, host: Host) -> Host:
        self._enter(Phase.INSTALLING, "Puts it into service")
        await workflow.execute_activity_method(
            RecordActivities.set_host_status,
            SetStatusInput(lease=self._held, status=HostStatus.UP, reason="added"),
            **policies.RECORD,
        )
        target = ResourceState.ENABLED if self._asked.enabled else ResourceState.DISABLED
        added: Host = await workflow.execute_activity_method(
            RecordActivities.change_host_state,
            ChangeStateInput(
                lease=self._held,
                expected=frozenset({ResourceState.CREATING}),
                target=target,
                step="into-service",
                reason="added",
            ),
            summary=f"{host.name} becomes {target}",
            **policies.DECISION,
        )
        self._in_service = True
        if self._asked.returning:
            await self._close_tombstones()
        return added

    async def _close_tombstones(self) -> None:
        """Its former names are of the past, and so are the keys that it knew Hostler by under
        them. One that it does not give up now is told: the host is in service all the same."""
        closed: TombstonesClosed = await workflow.execute_activity_method(
            AdditionActivities.close_tombstones,
            self._held,
            summary="Nobody cleans it as a removed host any more",
            **policies.RECORD,
        )
        if not closed.keys_of:
            return
        names = ", ".join(closed.keys_of)
        try:
            await workflow.execute_activity_method(
                AdditionActivities.remove_former_keys,
                FormerKeysInput(lease=self._held, names=closed.keys_of),
                summary=f"The keys that it had as {names}",
                **policies.FIRST_LOOK,
            )
        except ActivityError as failure:
            if as_application_error(failure).type == "LeaseLost":
                raise
            marks = ", ".join(f"hostler:{name}" for name in closed.keys_of)
            await self._warn(
                warning(
                    "old-key-left",
                    f"It may still let in the key that Hostler had for it as {names}: "
                    f"{explain(failure)}",
                    f"That key is deleted here. Remove the lines that end with {marks} from "
                    "authorized_keys there, of whoever Hostler logged in as (~root/.ssh).",
                )
            )

    async def _tell_allocation(self, host: Host) -> None:
        """Whether it takes new VMs. It is in service whatever comes of that."""
        told = await provisioning.tell_allocation(host.name)
        for untold in told.untold:
            await self._warn(
                warning(
                    "allocation-untold",
                    f"It could not be told whether it takes new VMs: {untold.reason}",
                    "Every round of the checks tells it again while it is Up. What it was told "
                    f"last: hostler host show {host.name}",
                )
            )

    async def _give_password(self, host: Host) -> None:
        """It is in service whatever comes of that."""
        stale = await provisioning.give_password(host.name)
        if stale is not None:
            await self._warn(stale)

    async def _warn(self, finding: Finding) -> None:
        self._findings += (finding,)
        await self._tell_warnings((finding,))

    # --- the way back ---------------------------------------------------------------------------

    async def _undo(self) -> None:
        if self._lease is None:
            if self._asked.dry_run:
                await self._discard_secret()
            return
        self._enter(
            Phase.ROLLING_BACK, "Takes back what was done; waits for the host if it is away"
        )
        fence = await self._take_down_fence() if self._fence_begun else ()
        if self._fence_begun or self._packages_begun:
            self._remains += await self._take_back(fence)
        if self._registered:
            await workflow.execute_activity_method(
                RecordActivities.forget_host, self._held, **policies.RECORD
            )
        if self._trust is not None and await self._is_forgotten():
            await certification.revoke_all(
                self._asked.name,
                RevocationReason.CESSATION_OF_OPERATION,
                f"{self._asked.name} was not added",
            )
        await self._discard_secret()
        await self._release_lease()

    async def _is_forgotten(self) -> bool:
        """Its last step may have put it into service, and only its answer got lost."""
        try:
            await workflow.execute_activity_method(
                RecordActivities.get_host,
                HostRef(host=self._asked.name),
                summary=f"Whether {self._asked.name} is there all the same",
                **policies.RECORD,
            )
        except ActivityError as failure:
            if as_application_error(failure).type != "NotFound":
                raise
            return True
        return False

    async def _take_down_fence(self) -> tuple[str, ...]:
        """What stays up of it, unless it goes with all the rest."""
        try:
            await workflow.execute_activity_method(
                FencingActivities.take_down_fence,
                self._held,
                summary="Fence down",
                **policies.HOST_CHANGE,
            )
        except ActivityError as failure:
            # The host answered, and trying again would not help: the rest is taken back.
            return (f"The fence may still be up: {explain(failure)}",)
        return ()

    async def _take_back(self, fence: tuple[str, ...]) -> tuple[str, ...]:
        """What stays on the host."""
        packages = ("Packages that were installed stay.",) if self._packages_begun else ()
        try:
            result: TakeBackResult = await workflow.execute_activity_method(
                AdditionActivities.take_back,
                self._held,
                summary="Nothing of Hostler's stays on the host",
                **policies.HOST_CHANGE,
            )
        except ActivityError as failure:
            files = "/etc/hostler, the hook and the key may still be on the host"
            return (*packages, *fence, f"{files}: {explain(failure)}")
        jobs = (
            f"The job {job} still runs there, see /var/lib/hostler/jobs."
            for job in result.running_jobs
        )
        return (*packages, *jobs)

    def _with_remains(self, failure: ApplicationError) -> ApplicationError:
        if not self._remains:
            return failure
        facts = failure.details[0] if failure.details else {}
        return ApplicationError(
            " ".join((failure.message, *self._remains)),
            {**facts, "remains": list(self._remains)},
            type=failure.type,
            non_retryable=failure.non_retryable,
        )

    async def _discard_secret(self) -> None:
        await workflow.execute_activity_method(
            AdditionActivities.discard_secret,
            SecretRef(secret=self._asked.secret),
            **policies.RECORD,
        )

    async def _release_lease(self) -> None:
        if self._trust is not None:
            await workflow.execute_activity_method(
                LeaseActivities.release_lease, self._trust, **policies.RECORD
            )
        await workflow.execute_activity_method(
            LeaseActivities.release_lease, self._held, **policies.RECORD
        )

    # --- what people see and say ----------------------------------------------------------------

    @workflow.update(name="accept_host_key")
    async def accept_host_key(self, answer: AcceptHostKeyInput) -> None:
        """The fingerprint is the host's own: go on."""
        self._accepted = answer.fingerprint

    @accept_host_key.validator
    def _check_fingerprint(self, answer: AcceptHostKeyInput) -> None:
        if self._key is None or self._accepted is not None or self._asked.dry_run:
            raise ApplicationError("No host key waits to be accepted.", type="Conflict")
        if answer.fingerprint != self._key.sha256:
            raise ApplicationError(
                f"The host shows {self._key.sha256}, not {answer.fingerprint}.", type="Conflict"
            )

    @workflow.query(name="status")
    def status(self) -> HostAdditionStatus:
        """Where the addition stands, the host key and the findings as soon as they are known."""
        return HostAdditionStatus(
            name=self._asked.name,
            phase=self._phase,
            message=self._message,
            host_key_sha256=self._key.sha256 if self._key is not None else None,
            findings=self._findings,
            commands=self._commands(),
        )

    def _commands(self) -> tuple[str, ...]:
        """What moves it on."""
        workflow_id = workflow.info().workflow_id
        cancel = f"temporal workflow cancel --workflow-id {workflow_id}"
        match self._phase:
            case Phase.QUESTION:
                accept = (
                    f"temporal workflow update execute --workflow-id {workflow_id} "
                    "--name accept_host_key "
                    f'--input \'{{"fingerprint": "{self._shown.sha256}"}}\''
                )
                return (accept, cancel)
            case Phase.DONE:
                return ()
            case Phase.ROLLING_BACK:  # what it waits for may never come
                return (f"temporal workflow terminate --workflow-id {workflow_id}",)
        return (cancel,)

    @property
    def _asked(self) -> HostAdditionInput:
        if self._request is None:
            raise ApplicationError("The addition has not begun yet.", type="Conflict")
        return self._request

    @property
    def _held(self) -> LeaseRef:
        if self._lease is None:
            raise ApplicationError("The addition holds no lease yet.", type="Conflict")
        return self._lease

    @property
    def _shown(self) -> HostKeyResult:
        if self._key is None:
            raise ApplicationError("The host key is not known yet.", type="Conflict")
        return self._key

    def _enter(self, phase: Phase, message: str) -> None:
        # The SDK loses a cancel that crosses the end of an activity: no further step begins.
        if self._canceled and phase not in (Phase.ROLLING_BACK, Phase.DONE):
            raise asyncio.CancelledError
        self._phase, self._message = phase, message
        workflow.upsert_search_attributes(
            [
                HOST_NAME.value_set(self._asked.name),
                HOST_CLUSTER.value_set(self._asked.cluster),
                PHASE.value_set(phase),
            ]
        )
        workflow.set_current_details(self._page())

    def _page(self) -> str:
        """In Markdown."""
        parts = [f"### {self._asked.name}: {self._phase}", self._message]
        if self._key is not None:
            parts.append(f"SSH host key: `{self._key.sha256}`")
        if self._findings:
            parts.append("\n".join(f"- {finding}" for finding in self._findings))
        parts += [f"    {command}" for command in self._commands()]
        return "\n\n".join(parts)


def _ref(lease: Lease) -> LeaseRef:
    return LeaseRef(host=lease.host, scope=lease.scope, owner=lease.owner, epoch=lease.epoch)


async def _outwait(lease: Lease) -> None:
    if lease.taken_over_from is not None:
        await workflow.sleep(
            policies.HEARTBEAT_TIMEOUT, summary="The predecessor's activities come to an end"
        )
