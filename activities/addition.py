"""First contact with a host that is not in the inventory yet."""

from temporalio import activity

from contracts.steps import HostKeyResult, ScanHostKeyInput
from drivers.protocols import RemoteShell


class AdditionActivities:
    """What is done before a host has a pinned key."""

    def __init__(self, shell: RemoteShell) -> None:
        self._shell = shell

    @activity.defn(name="scan_host_key")
    async def scan_host_key(self, request: ScanHostKeyInput) -> HostKeyResult:
        """The SSH key the host shows, for an operator to compare. Raises HostUnreachable."""
        key = await self._shell.scan_host_key(request.address, request.ssh_port)
        return HostKeyResult(line=key.line, sha256=key.sha256)
