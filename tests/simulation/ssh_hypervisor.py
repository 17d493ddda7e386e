"""A simulated libvirt on hosts that are SSH servers: what it is asked goes through SSH."""

from pathlib import Path

from contracts.hosts import HostFacts
from contracts.preflight import HostReport
from drivers.commands import check
from drivers.preflight import ShellInspector
from drivers.protocols import HostAccess, RemoteShell
from tests.simulation.cluster import EVERYTHING, Cluster, SimulatedHost, SimulatedHypervisor
from tests.simulation.ssh_hosts import read_hosts

_READ = ["cat", "/etc/os-release", "/proc/cpuinfo", "/proc/meminfo"]
_HOOK = "/etc/libvirt/hooks/qemu.d/hostler"
_PROBE = ["sh", "-c", f"[ ! -x {_HOOK} ] || exec {_HOOK} probe prepare begin -"]


class SshHypervisor(SimulatedHypervisor):
    """Hypervisor; facts take a look at the host, and a probe is refused by the host's own hook."""

    def __init__(self, cluster: Cluster, shell: RemoteShell) -> None:
        super().__init__(cluster)
        self._shell = shell

    async def facts(self, access: HostAccess) -> HostFacts:
        """Those of the simulation, after one command."""
        check(access, "cat", await self._shell.run(access, _READ))
        return await super().facts(access)

    async def start_probe(self, access: HostAccess) -> str | None:
        """What the hook says, as libvirt would call it."""
        said = await self._shell.run(access, _PROBE)
        return None if said.exit_status == 0 else said.stderr.strip()


class SshInspector(ShellInspector):
    """HostInspector; looks at the host as always, and then takes libvirt for granted."""

    async def inspect(self, access: HostAccess) -> HostReport:
        """What was measured, but for what a host has and this machine may lack."""
        return (await super().inspect(access)).model_copy(update=EVERYTHING)


def ssh_cluster(directory: Path) -> Cluster:
    """The hosts that `tests.simulation.ssh_hosts` serves from there."""
    cluster = Cluster(hosts=0, vms=0, seed=0)
    for host in read_hosts(directory):
        cluster.hosts[host.name] = SimulatedHost(host.name, host.address)
    return cluster
