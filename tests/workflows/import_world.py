"""An inventory in memory, and additions that end as a test says."""

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from contracts.addition import HostAdditionInput, HostAdditionResult
    from contracts.host_import import DiscardSecretsInput, FindHostsInput, FindHostsResult
    from contracts.preflight import Finding


@workflow.defn(name="HostAddition")
class StandIn:
    """Takes as long as the world says, and ends as it says."""

    @workflow.run
    async def run(self, request: HostAdditionInput) -> str | HostAdditionResult:
        if request.dry_run:
            found: HostAdditionResult = await workflow.execute_activity(
                "preflight",
                request,
                result_type=HostAdditionResult,
                start_to_close_timeout=timedelta(seconds=60),
            )
            return found
        added: str = await workflow.execute_activity(
            "work_on_host",
            request,
            start_to_close_timeout=timedelta(seconds=60),
            heartbeat_timeout=timedelta(seconds=5),
            retry_policy=RetryPolicy(maximum_attempts=1),
        )
        return added


@dataclass
class ImportWorld:
    """An inventory in memory, and what is done to its hosts.

    Attributes:
        broken: why the addition of a host fails.
        held: hosts whose addition waits for `go`.
        findings: what a dry run finds.
    """

    hosts: dict[str, HostAdditionInput] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    findings: dict[str, tuple[Finding, ...]] = field(default_factory=dict)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    seconds: float = 0.0
    begun: list[str] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    @activity.defn(name="work_on_host")
    async def work_on_host(self, request: HostAdditionInput) -> str:
        self.begun.append(request.name)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.seconds)
        if request.name in self.held:
            await self.go.wait()
        self.at_once -= 1
        if request.name in self.broken:
            raise ApplicationError(self.broken[request.name], non_retryable=True)
        self.hosts[request.name] = request
        return request.name

    @activity.defn(name="preflight")
    async def preflight(self, request: HostAdditionInput) -> HostAdditionResult:
        await asyncio.sleep(self.seconds)
        findings = self.findings.get(request.name, ())
        return HostAdditionResult(name=request.name, findings=findings)

    @activity.defn(name="find_hosts")
    async def find_hosts(self, request: FindHostsInput) -> FindHostsResult:
        there = [host for host in request.hosts if host.name in self.hosts]
        different = [host for host in there if self.hosts[host.name].address != host.address]
        return FindHostsResult(
            present=frozenset(host.name for host in there if host not in different),
            different={host.name: "it is elsewhere" for host in different},
        )

    @activity.defn(name="discard_secrets")
    async def discard_secrets(self, request: DiscardSecretsInput) -> None:
        self.discarded += request.secrets
