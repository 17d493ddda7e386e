"""A worker: drivers behind activities, workflows beside them."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from temporalio.client import Client
from temporalio.worker import Interceptor, Worker

from activities.accepted_operations import AcceptedActivities
from activities.addition import AdditionActivities
from activities.allocation import AllocationActivities
from activities.authorities import Directory
from activities.bmc_accounts import BmcAccountActivities
from activities.bmcs import BmcDirectory
from activities.certificates import CertificateActivities
from activities.clusters import ClusterActivities
from activities.controller import ControllerCertificates, LibvirtByTls
from activities.crl_delivery import CrlDeliveryActivities
from activities.directory import HostDirectory
from activities.fencing import FencingActivities
from activities.holders import Holders
from activities.hooks import HookActivities
from activities.host_accounts import HostAccountDirectory
from activities.host_checks import HostCheckActivities
from activities.host_import import ImportActivities
from activities.leases import LeaseActivities
from activities.operations import OperationActivities
from activities.own_key import OwnKeyActivities
from activities.packages import PackageActivities
from activities.password_checks import PasswordCheckActivities
from activities.passwords import PasswordActivities
from activities.power import PowerActivities
from activities.power_sync import PowerSyncActivities
from activities.preflight import PreflightActivities
from activities.provisioning import ProvisioningActivities
from activities.reconciliation import ReconciliationActivities
from activities.records import RecordActivities
from activities.reinstallation import ReinstallationActivities
from activities.removal import RemovalActivities
from activities.renewal import RenewalActivities
from activities.restarts import Restarts
from activities.rollover import RolloverActivities
from activities.schedules import ScheduleActivities
from activities.securing import SecuringActivities
from activities.survey import SurveyActivities
from activities.tls_check import TlsCheckActivities
from activities.turns import TurnActivities
from activities.virtualization import VirtualizationActivities
from drivers.authorities.profiles import new_request
from drivers.authorities.protocols import ExternalAccess
from drivers.authorities.providers import provider
from drivers.disks import ShellDisks
from drivers.fence import HookFence
from drivers.libvirt import LibvirtHypervisor
from drivers.neighbours import ShellNeighbours
from drivers.own_key import AuthorizedKeys
from drivers.passwords import ScriptAccounts
from drivers.power.registry import PowerDrivers
from drivers.preflight import ShellInspector
from drivers.removal import ScriptCleaner
from drivers.ssh import AsyncSshShell
from drivers.systemd import Systemd
from drivers.tls import ScriptCertificates
from inventory import Inventory
from workers.interceptors import HostlerInterceptor
from workers.settings import Settings
from workers.unknown import UnknownWorkflow
from workflows.registry import WORKFLOWS

# The SDK holds heartbeats back for up to a minute; a cancel reaches an activity by its heartbeat.
_HEARTBEAT_AT_LEAST_EVERY = timedelta(seconds=5)


@dataclass(frozen=True)
class RunnableWorker:
    """A worker, and how to close the connections of its drivers once it has stopped."""

    worker: Worker
    close: Callable[[], Awaitable[None]]


def build_worker(
    client: Client,
    inventory: Inventory,
    settings: Settings,
    *,
    interceptors: Sequence[Interceptor] = (),
    sticky_timeout: timedelta = timedelta(seconds=10),
) -> RunnableWorker:
    """Put the drivers in place. Nothing is connected before an activity needs it.

    `interceptors`: more of them, inside Hostler's own. `sticky_timeout`: so long a workflow waits
    for the worker that has it in memory, before another one takes it from its history.
    """
    shell = AsyncSshShell(
        connect_timeout=settings.ssh_connect_timeout_s,
        keepalive_interval=settings.ssh_keepalive_interval_s,
        keepalive_count=settings.ssh_keepalive_count,
    )
    authorities = Directory(
        inventory,
        provider,
        ExternalAccess(settings.ca_url, settings.ca_token_file, settings.ca_trust_file),
    )
    certificates = CertificateActivities(inventory, authorities)
    controller = ControllerCertificates(inventory, certificates, new_request)
    by_tls = LibvirtByTls(inventory, controller)
    hypervisor = LibvirtHypervisor(
        shell,
        migration_threads=settings.libvirt_migration_threads,
        call_timeout=settings.libvirt_call_timeout_s,
        keepalive_interval=settings.libvirt_keepalive_interval_s,
        keepalive_count=settings.libvirt_keepalive_count,
        on_broken_tls=by_tls.tell_broken,
    )
    fence = HookFence(shell)
    keys = AuthorizedKeys(shell)
    host_certificates = ScriptCertificates(shell)
    cleaner = ScriptCleaner(shell, host_certificates)
    neighbours = ShellNeighbours(shell)
    directory = HostDirectory(inventory, by_tls.login)
    power_drivers = PowerDrivers()
    bmcs = BmcDirectory(inventory, power_drivers)
    holders = Holders(inventory, client)
    leases = LeaseActivities(inventory, holders)
    restarts = Restarts(inventory, holders)
    accounts = HostAccountDirectory(inventory, directory, ScriptAccounts(shell))
    worker = Worker(
        client,
        task_queue=settings.task_queue,
        workflows=[*WORKFLOWS, UnknownWorkflow],
        activities=activities_of(
            AcceptedActivities(inventory, client),
            AdditionActivities(inventory, directory, shell, cleaner),
            OwnKeyActivities(inventory, directory, keys),
            PackageActivities(inventory, directory, Systemd(shell)),
            PreflightActivities(
                inventory, directory, hypervisor, ShellInspector(shell), neighbours
            ),
            AllocationActivities(inventory, directory, fence, hypervisor),
            BmcAccountActivities(inventory, bmcs),
            certificates,
            ClusterActivities(inventory),
            CrlDeliveryActivities(inventory, directory, host_certificates, leases),
            FencingActivities(inventory, directory, fence, hypervisor),
            HookActivities(inventory, directory, shell, Systemd(shell)),
            HostCheckActivities(inventory, directory, hypervisor, shell, fence, neighbours, bmcs),
            ImportActivities(inventory, client),
            leases,
            OperationActivities(client),
            PasswordActivities(inventory, accounts, leases),
            PasswordCheckActivities(inventory, accounts),
            PowerActivities(inventory, bmcs, directory, hypervisor, Systemd(shell), leases),
            PowerSyncActivities(inventory, bmcs),
            ProvisioningActivities(inventory, directory, host_certificates, restarts),
            ReconciliationActivities(inventory, directory, hypervisor, fence, holders),
            RecordActivities(inventory),
            RemovalActivities(inventory, directory, cleaner, hypervisor, shell),
            ReinstallationActivities(
                *(inventory, directory, cleaner),
                *(hypervisor, shell, Systemd(shell)),
            ),
            RenewalActivities(inventory),
            RolloverActivities(inventory, authorities, controller),
            ScheduleActivities(client),
            SecuringActivities(inventory, directory, host_certificates, controller, restarts),
            SurveyActivities(inventory, directory, hypervisor, holders),
            TlsCheckActivities(inventory, directory, host_certificates, controller),
            TurnActivities(inventory, holders),
            VirtualizationActivities(inventory, directory, hypervisor, ShellDisks(shell), holders),
        ),
        interceptors=[HostlerInterceptor(), *interceptors],
        max_concurrent_activities=settings.max_concurrent_activities,
        max_heartbeat_throttle_interval=_HEARTBEAT_AT_LEAST_EVERY,
        default_heartbeat_throttle_interval=_HEARTBEAT_AT_LEAST_EVERY,
        graceful_shutdown_timeout=timedelta(seconds=settings.shutdown_timeout_s),
        sticky_queue_schedule_to_start_timeout=sticky_timeout,
    )

    async def close() -> None:
        await power_drivers.close()
        await hypervisor.close()
        await shell.close()

    return RunnableWorker(worker, close)


def activities_of(*objects: object) -> list[Callable[..., Any]]:
    """Every bound method of theirs that is an activity."""
    methods = (getattr(one, name) for one in objects for name in dir(one))
    return [method for method in methods if hasattr(method, "__temporal_activity_definition")]
