"""Looking at a host before it is added: all that can be found, in one go."""

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence

from temporalio import activity

from activities.directory import HostDirectory, host_access
from contracts.errors import Failed, HostlerError, NotFound
from contracts.hosts import Host
from contracts.preflight import (
    Bounds,
    Candidacy,
    Finding,
    HostReport,
    LibvirtReport,
    PeerReport,
)
from contracts.preflight_rules import error, from_host, from_inventory, from_libvirt, from_peers
from contracts.settings import CA_ROOT_AUTH_STRICTNESS, HOST_CLOCK_SKEW_MAX, HOST_DISK_FREE_MIN
from contracts.states import HostStatus, ResourceState, TlsState, tls_beside
from contracts.steps import PreflightInput, PreflightResult
from drivers.errors import (
    CallTimedOut,
    CommandFailed,
    HostKeyChanged,
    HostUnreachable,
    LoginRefused,
    SudoRefused,
)
from drivers.protocols import HostAccess, HostCpu, HostInspector, Hypervisor, Neighbours
from inventory import Inventory

# A host that was there when its key was read may be slow to answer once, not again and again.
_TRIES = 3
_MOST_PEERS = 3
_CONNECT_S = 5  # seconds for a connection from one to the other
_CODES: Mapping[type[HostlerError], str] = {
    LoginRefused: "login-refused",
    SudoRefused: "no-sudo",
    HostKeyChanged: "host-key-changed",
    HostUnreachable: "unreachable",
    CallTimedOut: "unreachable",
    CommandFailed: "not-inspectable",
}
# What another user than root does not see as it is.
_OF_ROOT_ALONE = frozenset({"not-root", "no-kvm"})


class PreflightActivities:
    """Reads only."""

    def __init__(
        self,
        inventory: Inventory,
        directory: HostDirectory,
        hypervisor: Hypervisor,
        inspector: HostInspector,
        neighbours: Neighbours,
    ) -> None:
        self._inventory = inventory
        self._directory = directory
        self._hypervisor = hypervisor
        self._inspector = inspector
        self._neighbours = neighbours

    @activity.defn(name="preflight_host")
    async def preflight_host(self, request: PreflightInput) -> PreflightResult:
        """Every finding at once: what stops one look (a refused login, say) hides no other.

        Raises NotFound (cluster), Unavailable while the host may only be slow.
        """
        asked = await self._candidacy(request)
        if not request.log_in or request.host_key is None:
            return PreflightResult(findings=tuple(from_inventory(asked)), tls=asked.tls)
        try:
            access = await self._access(request, request.host_key.line)
            found = await self._look(access, request, asked)
            return found.model_copy(update={"tls": asked.tls})
        except (NotFound, Failed, HostUnreachable, CallTimedOut) as failure:
            if failure.retryable and activity.info().attempt < _TRIES:
                raise
            return PreflightResult(
                findings=(*from_inventory(asked), _as_finding(failure)), tls=asked.tls
            )
        finally:
            if not asked.same_name:  # else they are the known host's
                await self._hypervisor.forget(request.host)
                await self._inspector.forget(request.host)

    async def _candidacy(self, request: PreflightInput) -> Candidacy:
        inventory = self._inventory
        await inventory.topology.get_cluster(request.cluster)
        settings = await inventory.settings.resolve(cluster=request.cluster)
        strict = settings[CA_ROOT_AUTH_STRICTNESS]
        hosts = await inventory.hosts.list(cluster=request.cluster)
        tls = TlsState.NONE
        if not request.known:
            others = [one for one in hosts if one.name != request.host and one.is_machine]
            tls = tls_beside([one.tls_in_service for one in others], only_secured=strict)
        same_name = await inventory.hosts.find(request.host)
        same_address = await inventory.hosts.find_at(request.address, request.ssh_port)
        return Candidacy(
            name=request.host,
            cluster=request.cluster,
            address=request.address,
            ssh_port=request.ssh_port,
            bounds=Bounds(
                clock_skew_max=settings[HOST_CLOCK_SKEW_MAX],
                disk_free_min=settings[HOST_DISK_FREE_MIN],
            ),
            epoch=request.epoch,
            generation=await inventory.events.newest(),
            wants_packages=request.install_packages,
            returning=request.returning,
            known=request.known,
            tls=tls,
            must_be_secured=request.enabled and strict and tls is not TlsState.SECURED,
            # One that is `Creating` was left by an addition that ended.
            same_name=same_name is not None
            and not request.known
            and same_name.resource_state is not ResourceState.CREATING,
            same_address=same_address.name
            if same_address is not None and same_address.name != request.host
            else None,
            removed=await inventory.removed_hosts.known(
                uuid=None, host_key_sha256=request.host_key.sha256
            )
            if request.host_key is not None
            else None,
            peers=_peers(hosts, request.host),
        )

    async def _access(self, request: PreflightInput, host_key: str) -> HostAccess:
        return host_access(
            request.host,
            address=request.address,
            port=request.ssh_port,
            user=request.user,
            host_key=host_key,
            credential=await self._inventory.secrets.reveal(request.secret),
        )

    async def _look(
        self, access: HostAccess, request: PreflightInput, asked: Candidacy
    ) -> PreflightResult:
        try:
            await self._inspector.log_in(access)
        except SudoRefused as refused:
            return await self._look_as_user(access, request, asked, refused)
        report = await self._inspector.inspect(access)
        libvirt, cpu = await self._ask_libvirt(access, report)
        uuid = libvirt.facts.uuid if libvirt.facts is not None else report.uuid
        if uuid is not None:
            asked = await self._with_uuid(asked, uuid, request)
        peers = await asyncio.gather(
            *(
                self._ask_peer(access, cpu, peer, request, reach=number == 0)
                for number, peer in enumerate(asked.peers)
            )
        )
        findings = (
            *from_inventory(asked),
            *from_host(asked, report),
            *from_libvirt(asked, libvirt),
            *from_peers(asked, peers),
        )
        return PreflightResult(
            findings=findings, lacks_packages=report.installable or not report.running
        )

    async def _look_as_user(
        self, access: HostAccess, request: PreflightInput, asked: Candidacy, refused: SudoRefused
    ) -> PreflightResult:
        """What somebody sees there who is not root."""
        try:
            report = await self._inspector.inspect(dataclasses.replace(access, unprivileged=True))
        except CommandFailed:
            return PreflightResult(findings=(*from_inventory(asked), _as_finding(refused)))
        if report.uuid is not None:
            asked = await self._with_uuid(asked, report.uuid, request)
        seen = (one for one in from_host(asked, report) if one.code not in _OF_ROOT_ALONE)
        told = _as_finding(refused, "libvirt, its VMs, CPU and ports")
        return PreflightResult(findings=(*from_inventory(asked), told, *seen))

    async def _with_uuid(self, asked: Candidacy, uuid: str, request: PreflightInput) -> Candidacy:
        same = await self._inventory.hosts.find_by_uuid(uuid)
        itself = request.known and same is not None and same.name == asked.name
        removed = await self._inventory.removed_hosts.known(
            # One that was added again after it was removed has a tombstone, and is no news.
            uuid=None if itself else uuid,
            host_key_sha256=request.host_key.sha256 if request.host_key is not None else None,
        )
        return asked.model_copy(
            update={
                "same_uuid": same.name if same is not None and same.name != asked.name else None,
                "removed": removed,
            }
        )

    async def _ask_libvirt(
        self, access: HostAccess, report: HostReport
    ) -> tuple[LibvirtReport, HostCpu | None]:
        there = report.libvirt_version is not None and report.qemu_version is not None
        if not (there and report.running):
            return LibvirtReport(), None
        try:
            facts = await self._hypervisor.facts(access)
            vms = await self._hypervisor.list_vms(access)
        except (Failed, HostUnreachable, CallTimedOut) as failure:
            return LibvirtReport(problem=failure.message), None
        said = LibvirtReport(facts=facts, vms=tuple(vm.name for vm in vms if not vm.incoming))
        try:
            return said, await self._hypervisor.host_cpu(access)
        except (Failed, HostUnreachable, CallTimedOut) as failure:
            return said.model_copy(update={"cpu_problem": failure.message}), None

    async def _ask_peer(
        self,
        access: HostAccess,
        cpu: HostCpu | None,
        peer: Host,
        request: PreflightInput,
        *,
        reach: bool,
    ) -> PeerReport:
        report = PeerReport(host=peer.name)
        try:
            there = await self._directory.access(peer.name)
            if reach:
                connect = self._neighbours.reach
                to_new = await connect(there, request.address, request.ssh_port, _CONNECT_S)
                from_new = await connect(access, peer.address, peer.ssh_port, _CONNECT_S)
                report = report.model_copy(update={"to_new": to_new, "from_new": from_new})
            theirs = await self._hypervisor.host_cpu(there) if cpu is not None else None
            # Emulated CPUs and real ones are not compared: they run different VMs.
            if cpu is not None and theirs is not None and cpu.virt_type == theirs.virt_type:
                report = report.model_copy(
                    update={
                        "new_lacks": await self._hypervisor.cpu_shortfall(access, theirs),
                        "peer_lacks": await self._hypervisor.cpu_shortfall(there, cpu),
                    }
                )
        except (NotFound, Failed, HostUnreachable, CallTimedOut) as failure:
            return report.model_copy(update={"problem": failure.message})
        return report


def _peers(hosts: Sequence[Host], name: str) -> tuple[Host, ...]:
    """Hosts that answer, one for each CPU model and no more than a few: they stand for all."""
    models: dict[str, Host] = {}
    for host in hosts:
        in_service = host.status is HostStatus.UP and host.facts is not None
        if in_service and host.facts is not None and host.name != name:
            models.setdefault(host.facts.cpu_model, host)
    return tuple(models.values())[:_MOST_PEERS]


def _as_finding(failure: HostlerError, unseen: str = "all that is behind that") -> Finding:
    """What keeps us from looking at the host itself, or at some of it."""
    return error(
        _CODES.get(type(failure), "credential-unreadable"),
        f"{failure.message} Could not be looked at: {unseen}.",
        failure.remedy or "See what the host itself says of it.",
    )
