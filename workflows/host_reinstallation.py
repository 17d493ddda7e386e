"""HostReinstallation: a host gets a new installation, and stays the host that it was.

    survey -> maintenance (if asked) -> take over -> command (if any) -> withdraw trust ->
    boot from network (if asked) -> wait for a new host key -> accept it -> preflight ->
    provision, with certificates if it had some -> back in service

Until trust is withdrawn a cancel leaves the host as it is then: in maintenance, if it was or was
put there. After that there is no way back, and nothing that goes wrong on the host ends the
workflow: it asks, and looks again by itself. Where one was terminated, the next one goes on.
"""

import asyncio
from datetime import datetime
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, WorkflowAlreadyStartedError

with workflow.unsafe.imports_passed_through():
    from activities.fencing import FencingActivities
    from activities.records import RecordActivities
    from activities.reinstallation import ReinstallationActivities
    from activities.removal import RemovalActivities
    from activities.survey import SurveyActivities
    from contracts.certificates import RevocationReason
    from contracts.evacuation import HostEnvironment
    from contracts.hosts import Host
    from contracts.maintenance import HostMaintenanceInput, MaintenanceSettings
    from contracts.operations import OperationKind, workflow_id
    from contracts.preflight import Finding, errors_among, summary
    from contracts.reinstallation import (
        AnswerReinstallationInput,
        AwaitHostKeyInput,
        CommandOutcome,
        HostReinstallationInput,
        HostReinstallationResult,
        HostReinstallationStatus,
        KeyTakenAway,
        NewHostKey,
        PinHostKeyInput,
        Question,
        ReinstallationOutcome,
        ReturnHostInput,
        RunCommandInput,
        SettleCredentialInput,
        SettledCredential,
        Trust,
        WithdrawTrustInput,
    )
    from contracts.removal import RemovalEffect, RemovalSurvey
    from contracts.states import Phase, TlsState
    from contracts.steps import (
        CheckHostInput,
        EventInput,
        HostKeyResult,
        HostRef,
        PreflightInput,
        PreflightResult,
    )
    from contracts.vm_return import VmReturnInput
    from workflows import certification, policies, power_use, provisioning
    from workflows.failures import as_application_error
    from workflows.reinstallation_page import current_details, next_commands
    from workflows.reinstallation_plan import check, effects, lost_vms, needs_maintenance
    from workflows.search_attributes import HOST_CLUSTER, HOST_NAME, HOST_ZONE, PHASE
    from workflows.takeover import Takeover, conflict
    from workflows.vm_return import VmReturn

# Nobody can do anything about these by waiting or trying again.
_HOPELESS = frozenset({"LeaseLost", "NotFound"})
_ENDINGS = frozenset({Phase.ROLLING_BACK, Phase.DONE})
# A question may wait for weeks: the longer it does, the less often it is looked again unasked.
_LONGEST_RETRY_S = 3600


@workflow.defn(name="HostReinstallation")
class HostReinstallation:
    """One re-installation of one host."""

    def __init__(self) -> None:
        self._request: HostReinstallationInput | None = None
        self._phase = Phase.PLANNING
        self._message = "Looks at the host"
        self._takeover = Takeover("reinstallation", self._enter)
        self._effects: tuple[RemovalEffect, ...] = ()
        self._begun = False
        self._since: datetime | None = None
        self._canceled = False
        self._cancel_came_late = False
        self._former: str | None = None
        self._environment: HostEnvironment | None = None
        self._tls = TlsState.NONE
        self._certified: str | None = None
        self._forced = False
        self._key: HostKeyResult | None = None
        self._accepted: str | None = None
        self._secret = ""
        self._settling = 0
        self._takes_credentials = True
        self._findings: tuple[Finding, ...] = ()
        self._installs_packages = False
        self._skips_command = False
        self._skips_network_boot = False
        self._question: Question | None = None
        self._answers = 0
        self._retries = 0

    # --- the run, read like a runbook -----------------------------------------------------------

    @workflow.run
    async def run(self, request: HostReinstallationInput) -> HostReinstallationResult:
        """Returns when the host is back in service, or when a dry run has its list."""
        self._request = request
        self._accepted = request.host_key_sha256
        self._installs_packages = request.install_packages
        workflow.upsert_search_attributes([HOST_NAME.value_set(request.host)])
        self._enter(Phase.PLANNING, f"Looks at {request.host}")
        work = asyncio.create_task(self._reinstall())
        while not work.done():
            try:
                await workflow.wait_condition(work.done)
            except asyncio.CancelledError:
                self._cancel(work)
        failure: BaseException | None = work.exception() if not work.cancelled() else None
        ended_early = failure is not None or work.cancelled()
        if ended_early:
            await self._give_back()
        await workflow.wait_condition(workflow.all_handlers_finished)
        if ended_early and self._canceled:
            raise asyncio.CancelledError("the re-installation was cancelled before it had begun")
        if isinstance(failure, ActivityError):
            failure = as_application_error(failure)
        if failure is not None:
            host = request.host
            again = f"hostler host reinstall {host}" if self._begun else None
            raise self._takeover.with_remains(failure, host, again)
        return work.result()

    async def _reinstall(self) -> HostReinstallationResult:
        if self._asked.network_boot:
            await power_use.require_power(self._asked.host, "network_boot", network_boot=True)
        survey = await self._survey()
        if self._asked.dry_run:
            return self._result(ReinstallationOutcome.PLANNED)
        if needs_maintenance(survey.host):
            await self._take_out()
        await self._takeover.acquire(self._asked.host, survey.holder, self._asked.reason)
        survey = await self._survey()
        environment = await self._read_environment(survey.host)
        if self._asked.command is not None and not survey.host.being_reinstalled:
            await self._run_command(self._asked.command)
        await self._takeover.acquire_trust(self._asked.host, self._asked.reason)
        await self._withdraw_trust(survey.host, environment)
        if self._asked.network_boot:
            await self._boot_from_network()
        host = await self._take_on(survey.host)
        await self._takeover.release()
        self._enter(Phase.DONE, f"{host.name} is {host.resource_state}")
        await self._return_vms()
        return self._result(
            ReinstallationOutcome.REINSTALLED,
            resource_state=host.resource_state,
            host_key_sha256=host.host_key_sha256,
            facts=host.facts,
            findings=self._findings,
            lost_vms=lost_vms(survey),
        )

    # --- until trust is withdrawn ---------------------------------------------------------------

    async def _survey(self) -> RemovalSurvey:
        """What is there, refused if the host can't be re-installed as it is."""
        survey: RemovalSurvey = await workflow.execute_activity_method(
            RemovalActivities.survey_removal,
            HostRef(host=self._asked.host),
            summary=f"What there is of {self._asked.host}",
            **policies.FIRST_LOOK,
        )
        workflow.upsert_search_attributes(
            [HOST_CLUSTER.value_set(survey.host.cluster), HOST_ZONE.value_set(survey.host.zone)]
        )
        check(self._asked, survey)
        self._effects = effects(self._asked, survey)
        return survey

    async def _take_out(self) -> None:
        asked = self._asked
        await self._takeover.take_out(
            HostMaintenanceInput(
                host=asked.host,
                reason=asked.reason or "is to be re-installed",
                on_blocker=asked.on_blocker,
                max_parallel=asked.max_parallel,
                queue=asked.queue,
                host_is_down=asked.host_is_down,
            ),
            then="re-install the host",
        )

    async def _read_environment(self, host: Host) -> HostEnvironment | None:
        """What its VMs found there is to be there again. None: nobody can tell any more."""
        if host.being_reinstalled or self._asked.host_is_down:
            return None
        environment: HostEnvironment = await workflow.execute_activity_method(
            ReinstallationActivities.read_environment,
            HostRef(host=host.name),
            summary="Networks and storage pools",
            **policies.FIRST_LOOK,
        )
        return environment

    async def _run_command(self, command: tuple[str, ...]) -> None:
        """Until it succeeds, or somebody says that it is to go on without."""
        attempt = 0
        while not self._skips_command:
            attempt += 1
            self._enter(Phase.PLANNING, f"Runs on {self._asked.host}: {' '.join(command)}")
            try:
                outcome: CommandOutcome = await workflow.execute_activity_method(
                    ReinstallationActivities.run_command,
                    RunCommandInput(lease=self._takeover.held, command=command, attempt=attempt),
                    summary=command[0],
                    **policies.HOST_JOB,
                )
            except ActivityError as error:
                failure = as_application_error(error)
                if failure.type in _HOPELESS:
                    raise
                problem = failure.message
            else:
                if outcome.exit_status == 0:
                    return
                why = outcome.problem or f"exit status {outcome.exit_status}"
                problem = f"{why}; what it printed is there in {outcome.output}"
            await self._ask(Question.COMMAND, f"The command did not succeed: {problem}", None)

    async def _withdraw_trust(self, host: Host, environment: HostEnvironment | None) -> None:
        """From here on nothing is trusted that answers at the host's address; the fence of the old
        installation stays up, so that no VM starts there until its disk is written anew."""
        self._enter(Phase.CLEANING, "From here on there is no way back")
        # Whether it has taken effect is not known while it runs.
        self._begun = True
        try:
            trust: Trust = await workflow.execute_activity_method(
                ReinstallationActivities.withdraw_trust,
                WithdrawTrustInput(
                    lease=self._takeover.held,
                    reason=self._asked.reason or "no reason given",
                    environment=environment,
                ),
                summary=f"The host key of {host.name} is revoked",
                **policies.RECORD,
            )
        except ActivityError:
            self._begun = False
            raise
        self._since = workflow.now()
        # Not what the survey has seen: a provisioning may have ended since.
        if trust.tls_again.can and workflow.patched("certificates-again"):
            self._tls = trust.tls_again
            await certification.revoke_all(
                host.name,
                RevocationReason.SUPERSEDED,
                f"Of the former installation of {host.name}",
            )
        self._former = trust.former_sha256
        self._environment = trust.environment
        self._accepted = self._accepted or trust.pinned_sha256
        if trust.former_sha256 is not None and not self._asked.host_is_down:
            await self._take_away_key()
        await self._settle(self._asked.secret)

    async def _take_away_key(self) -> None:
        """As far as the old installation still answers: its disk is written anew in any case."""
        try:
            taken: KeyTakenAway = await workflow.execute_activity_method(
                ReinstallationActivities.take_away_key,
                self._takeover.held,
                summary="Hostler's key opens the old installation no more",
                **policies.FIRST_LOOK,
            )
        except ActivityError as error:
            failure = as_application_error(error)
            if failure.type in _HOPELESS:
                raise
            await self._tell("reinstallation.key_left", f"on the old disk: {failure.message}")
        else:
            await self._tell("reinstallation.key_taken", f"from the old disk: {taken.proof}")

    async def _settle(self, secret: str | None) -> None:
        """What is to log in to the new installation; what opened the old one is deleted."""
        settled: SettledCredential = await workflow.execute_activity_method(
            ReinstallationActivities.settle_credential,
            SettleCredentialInput(lease=self._takeover.held, secret=secret),
            summary="The credential of the new installation",
            **policies.RECORD,
        )
        self._secret = settled.secret
        if settled.problem:
            await self._tell("reinstallation.credential_lost", settled.problem)

    async def _boot_from_network(self) -> None:
        """Until it is told to, or somebody says that it is to go on without: what was sent to a BMC
        is not sent again unasked."""
        host = self._asked.host
        while not self._skips_network_boot:
            self._enter(Phase.SWITCHING, f"Has {host} boot from the network, once, by its BMC")
            reason = f"re-installation: {self._asked.reason or 'no reason given'}"
            try:
                await power_use.boot(host, reason, network_boot=True)
            except ApplicationError as error:
                await self._ask(
                    Question.NETWORK_BOOT,
                    f"{host} was not booted from the network: {error.message}",
                    None,
                )
            else:
                await self._tell("reinstallation.network_boot", "it was booted from the network")
                return

    # --- the new installation -------------------------------------------------------------------

    async def _take_on(self, host: Host) -> Host:
        """Until the host is back in service, whatever goes wrong with it meanwhile."""
        while True:
            try:
                key = await self._accepted_key(host)
                # One that is settled later takes the place of what provisioning has put there.
                await workflow.wait_condition(lambda: not self._settling)
                self._takes_credentials = False
                looked = await self._preflight(host, key)
                errors = errors_among(self._findings)
                if not errors:
                    await self._pin(key)
                    if not looked.lacks_packages:
                        return await self._provision()
                    await self._install_packages()
                    self._takes_credentials = True
                    continue
                problem = f"{host.name} can't be provisioned: {summary(self._findings)}"
            except (ActivityError, ApplicationError) as error:
                failure = as_application_error(error) if isinstance(error, ActivityError) else error
                if failure.type in _HOPELESS:
                    raise
                problem = failure.message
            self._takes_credentials = True
            await self._ask(Question.FINDINGS, problem, await self._retry_interval())

    async def _accepted_key(self, host: Host) -> HostKeyResult:
        """One that the old installation has not, and that somebody says is the host's own."""
        former = (self._former,) if self._former is not None else ()
        self._key = None
        self._enter(
            Phase.REINSTALLING,
            f"Waits for {host.name} to come back as a new installation, with a new SSH host key at "
            f"{host.address} port {host.ssh_port}",
        )
        key = await self._next_key(host, former)
        while key.sha256 != self._accepted:
            key = await self._ask_about(host, key, former)
        self._key = key
        return key

    async def _next_key(self, host: Host, unlike: tuple[str, ...]) -> HostKeyResult:
        while True:
            found: NewHostKey = await workflow.execute_activity_method(
                ReinstallationActivities.await_host_key,
                AwaitHostKeyInput(
                    host=host.name, address=host.address, ssh_port=host.ssh_port, unlike=unlike
                ),
                summary=f"Until {host.name} shows another host key",
                **policies.HOST_JOB,
            )
            if found.key is not None:
                return found.key
            since = f"{self._since:%Y-%m-%d %H:%M} UTC" if self._since is not None else "long"
            await self._tell("reinstallation.waits", f"no other host key yet; since {since}")

    async def _ask_about(
        self, host: Host, key: HostKeyResult, former: tuple[str, ...]
    ) -> HostKeyResult:
        """The key, when it was accepted; or another one that is shown by then: an installer has a
        key of its own, too."""
        self._key, self._question = key, Question.HOST_KEY
        given = f"; {self._accepted} was given in advance" if self._accepted is not None else ""
        self._enter(
            Phase.QUESTION, f"{host.name} shows the key {key.sha256}{given}: is it the right one?"
        )
        other = asyncio.create_task(self._next_key(host, (*former, key.sha256)))
        try:
            await workflow.wait_condition(lambda: self._accepted == key.sha256 or other.done())
        finally:
            self._question = None
            if not other.done():
                other.cancel()
            await asyncio.gather(other, return_exceptions=True)
        return key if self._accepted == key.sha256 else other.result()

    async def _preflight(self, host: Host, key: HostKeyResult) -> PreflightResult:
        self._enter(Phase.CONNECTING, "Logs in and looks at everything that a host needs")
        result = await provisioning.preflight(
            PreflightInput(
                host=host.name,
                cluster=host.cluster,
                address=host.address,
                ssh_port=host.ssh_port,
                user=host.user,
                secret=self._secret,
                host_key=key,
                log_in=True,
                epoch=self._takeover.held.epoch,
                install_packages=self._installs_packages,
                known=True,
            )
        )
        self._findings = result.findings
        return result

    async def _pin(self, key: HostKeyResult) -> None:
        self._enter(Phase.INSTALLING, f"Pins the host key {key.sha256}")
        await workflow.execute_activity_method(
            ReinstallationActivities.pin_host_key,
            PinHostKeyInput(lease=self._takeover.held, key=key),
            summary=key.sha256,
            **policies.RECORD,
        )

    async def _install_packages(self) -> None:
        """What could not be seen without them is looked at next."""
        self._enter(Phase.INSTALLING, "Installs libvirt and QEMU; a job on the host does it")
        self._installs_packages = False
        await provisioning.install_packages(self._takeover.held)

    async def _provision(self) -> Host:
        """The fence first: no VM starts before the host is back in service."""
        lease, name = self._takeover.held, self._asked.host
        await provisioning.record_findings(lease, "reinstallation.warning", self._findings)
        self._enter(Phase.INSTALLING, "Installs the fence and proves that it holds")
        await provisioning.install_fence(lease, stays_up=True)
        self._enter(Phase.INSTALLING, "Installs Hostler's own key and proves it by a new login")
        refused = await provisioning.change_to_own_key(lease)
        if refused is not None:
            self._findings += (refused,)
            await provisioning.record_findings(lease, "reinstallation.warning", (refused,))
        await self._certify()
        self._enter(Phase.RETURNING, f"Tells {name} whether it takes new VMs")
        told = await provisioning.tell_allocation(name)
        for untold in told.untold:  # with the fence down it might take what it is not to take
            raise ApplicationError(untold.reason, type="Failed", non_retryable=True)
        await self._require_sound()
        self._enter(Phase.RETURNING, "Takes the fence down")
        await workflow.execute_activity_method(
            FencingActivities.take_down_fence,
            lease,
            summary=f"Fence of {name} down",
            **policies.HOST_CHANGE,
        )
        self._enter(Phase.RETURNING, "Puts it back into service")
        host: Host = await workflow.execute_activity_method(
            ReinstallationActivities.return_host,
            ReturnHostInput(lease=lease, reason="re-installed"),
            summary=f"{name} is back",
            **policies.HOST_CHANGE,
        )
        return host

    async def _certify(self) -> None:
        """What it had before, and before VMs come to it: those of secured hosts come only by TLS.
        Once for each installation."""
        trust, name = self._takeover.trust, self._asked.host
        if not self._tls.can or trust is None or self._certified == self._shown:
            return
        self._enter(Phase.INSTALLING, f"Reads the addresses that {name} has now")
        await workflow.execute_activity_method(
            SurveyActivities.read_facts,
            self._takeover.held,
            summary="What its certificates are to name",
            **policies.FIRST_LOOK,
        )
        secured = self._tls is TlsState.SECURED
        self._enter(
            Phase.INSTALLING,
            f"Has {name} get certificates" + (", and take and give VMs by TLS only" * secured),
        )
        await certification.certify(trust, self._tls, "it was re-installed")
        self._certified = self._shown

    async def _require_sound(self) -> None:
        """VMs would come to a host that lacks what they had there before."""
        name = self._asked.host
        self._enter(Phase.RETURNING, "Compares its networks and storage pools with those before")
        await workflow.execute_activity_method(
            SurveyActivities.check_host,
            CheckHostInput(host=name, environment=None if self._forced else self._environment),
            summary=f"Is {name} sound?",
            **policies.FIRST_LOOK,
        )

    async def _return_vms(self) -> None:
        """By an operation of its own: what becomes of it fails nothing here."""
        host = self._asked.host
        if not self._asked.return_vms:
            return
        try:
            await workflow.start_child_workflow(
                VmReturn.run,
                VmReturnInput(host=host),
                id=workflow_id(OperationKind.RETURN, host),
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
                static_summary=f"What the last maintenance of {host} has moved comes back",
            )
        except WorkflowAlreadyStartedError:
            workflow.logger.warning("VMs already come back to %s", host)

    # --- questions ------------------------------------------------------------------------------

    async def _ask(self, question: Question, problem: str, within_s: int | None) -> None:
        """Until somebody answers, or for so many seconds: then it is tried again unasked."""
        before, self._question = self._answers, question
        self._enter(Phase.QUESTION, problem)
        try:
            await workflow.wait_condition(
                lambda: self._answers > before,
                timeout=within_s,
                timeout_summary=f"{self._asked.host} is looked at again",
            )
        except TimeoutError:
            self._retries += 1
        else:
            self._retries = 0
        finally:
            self._question = None

    async def _retry_interval(self) -> int:
        settings: MaintenanceSettings = await workflow.execute_activity_method(
            RecordActivities.read_settings, HostRef(host=self._asked.host), **policies.RECORD
        )
        longest = max(_LONGEST_RETRY_S, settings.retry_interval)
        return min(settings.retry_interval << min(self._retries, 16), longest)

    async def _tell(self, kind: str, message: str) -> None:
        await workflow.execute_activity_method(
            RecordActivities.record_event,
            EventInput(lease=self._takeover.held, kind=kind, message=message),
            summary=kind,
            **policies.RECORD,
        )

    async def _give_back(self) -> None:
        """Nobody holds the host; its state stays as it is."""
        if self._takeover.lease is not None:
            self._enter(Phase.ROLLING_BACK, "Ends, and leaves the host as it is")
            await self._takeover.release()

    # --- updates and the query ------------------------------------------------------------------

    @workflow.update(name="answer")
    async def answer(self, said: AnswerReinstallationInput) -> None:
        """Answer a question, or say in advance what will be asked."""
        if said.secret is not None:
            self._settling += 1
            try:
                await self._settle(said.secret)
            finally:
                self._settling -= 1
        self._accepted = said.host_key_sha256 or self._accepted
        self._installs_packages = self._installs_packages or said.install_packages
        self._skips_command = self._skips_command or said.skip_command
        self._skips_network_boot = self._skips_network_boot or said.skip_network_boot
        self._forced = self._forced or said.force
        self._answers += 1

    @answer.validator
    def _check_answer(self, said: AnswerReinstallationInput) -> None:
        if self._request is None or self._request.dry_run or self._phase in _ENDINGS:
            raise ApplicationError(
                f"Nothing waits for an answer ({self._phase}: {self._message}).", type="Conflict"
            )
        if said.secret is not None and not self._secret:
            raise ApplicationError(
                "The credential of the new installation is taken once trust is withdrawn.",
                type="Conflict",
            )
        if said.secret is not None and not self._takes_credentials:
            raise ApplicationError(
                "The host is provisioned with the credential that it has. If that is refused, "
                "another one is asked for.",
                type="Conflict",
            )
        key = self._key if self._question is Question.HOST_KEY else None
        if key is not None and said.host_key_sha256 not in (None, key.sha256):
            raise ApplicationError(
                f"The host shows {key.sha256}, not {said.host_key_sha256}.", type="Conflict"
            )

    @workflow.query(name="status")
    def status(self) -> HostReinstallationStatus:
        """Where the re-installation stands, what it waits for, and what moves it on."""
        status = HostReinstallationStatus(
            host=self._asked.host,
            phase=self._phase,
            reason=self._asked.reason,
            message=self._message,
            question=self._question,
            since=self._since,
            final=self._begun,
            cancel_came_late=self._cancel_came_late,
            host_key_sha256=self._key.sha256 if self._key is not None else None,
            findings=self._findings,
            effects=self._effects,
        )
        commands = next_commands(
            status,
            workflow.info().workflow_id,
            maintenance=self._takeover.maintenance is not None and self._takeover.lease is None,
        )
        return status.model_copy(update={"commands": commands})

    # --- bookkeeping ----------------------------------------------------------------------------

    @property
    def _shown(self) -> str | None:
        """The host key of the new installation."""
        return self._key.sha256 if self._key is not None else None

    @property
    def _asked(self) -> HostReinstallationInput:
        if self._request is None:
            raise conflict("The re-installation has not begun yet.")
        return self._request

    def _cancel(self, work: "asyncio.Task[HostReinstallationResult]") -> None:
        if self._begun:
            self._cancel_came_late = True
            self._show()
        else:
            self._canceled = True
            work.cancel()

    def _result(self, outcome: ReinstallationOutcome, **more: Any) -> HostReinstallationResult:
        return HostReinstallationResult(
            host=self._asked.host, outcome=outcome, effects=self._effects, **more
        )

    def _enter(self, phase: Phase, message: str) -> None:
        # The SDK loses a cancel that crosses the end of an activity: no further step begins.
        if self._canceled and phase not in _ENDINGS:
            raise asyncio.CancelledError
        self._phase, self._message = phase, message
        workflow.upsert_search_attributes([PHASE.value_set(phase)])
        self._show()

    def _show(self) -> None:
        workflow.set_current_details(current_details(self.status()))
