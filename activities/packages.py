"""Installing libvirt and QEMU on a host, as a job that needs nobody's connection."""

import asyncio
import hashlib
import importlib.resources
import re

from temporalio import activity

from activities.directory import HostDirectory
from contracts.errors import Failed
from contracts.leases import LeaseRef
from drivers.protocols import Job, JobState, ServiceManager
from inventory import Inventory

_LOOK_AGAIN_S = 1.0
_TIMEOUT_S = 3600
_SHOWN_BYTES = 600
# Of a repository or a proxy: a password may be in it.
_LOGIN_IN_URL = re.compile(r"//[^/\s@]+@")


class PackagesNotInstalled(Failed):
    """The package manager failed; what it said last is in the message."""


class PackageActivities:
    """One job per addition, joined as often as it takes."""

    def __init__(
        self, inventory: Inventory, directory: HostDirectory, services: ServiceManager
    ) -> None:
        self._inventory = inventory
        self._directory = directory
        self._services = services

    @activity.defn(name="install_packages")
    async def install_packages(self, lease: LeaseRef) -> None:
        """Returns when libvirt's daemon and QEMU are installed, and the daemon is enabled and
        started. Raises PackagesNotInstalled, LeaseLost."""
        access = await self._directory.access(lease.host)
        name = job_name(lease)
        while not (state := await self._services.look_at_job(access, name)).ended:
            if not state.started:
                await self._inventory.leases.verify(lease)
                await self._services.start_job(access, _job(name))
            await asyncio.sleep(_LOOK_AGAIN_S)
        if state.exit_status != 0:
            output = await self._services.job_output(access, name, _SHOWN_BYTES)
            raise PackagesNotInstalled(
                f"The packages of libvirt and QEMU could not be installed on {lease.host}: "
                f"{_why(state)}: {_LOGIN_IN_URL.sub('//...@', output).strip()}",
                remedy="Put its package manager right, then add the host again.",
            )


def job_name(lease: LeaseRef) -> str:
    """Of the job that installs packages for the lease's operation."""
    run = hashlib.sha256(lease.owner.first_run_id.encode()).hexdigest()
    return f"packages-{lease.epoch}-{run[:16]}"


def _job(name: str) -> Job:
    script = importlib.resources.files("drivers.hooks").joinpath("install-packages")
    return Job(name=name, script=script.read_text("utf-8"), environment={}, timeout=_TIMEOUT_S)


def _why(state: JobState) -> str:
    return state.problem or f"exit status {state.exit_status}"
