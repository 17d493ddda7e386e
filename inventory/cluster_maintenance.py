"""Which hosts a ClusterMaintenance works on, by what is known of them before it begins."""

from contracts.cluster_maintenance import ClusterPlan, PlanClusterInput
from contracts.errors import Conflict, InvalidInput
from contracts.hosts import Host
from contracts.settings import (
    HOOK_TIMEOUT,
    HOST_REBOOT_TIMEOUT,
    MAINTENANCE_HOSTS_OUT_MAX,
    MAINTENANCE_UNREACHABLE_TIMEOUT,
)
from contracts.states import ResourceState
from contracts.validation import invalid_input
from inventory import Inventory

_IN_SERVICE = frozenset({ResourceState.ENABLED, ResourceState.DISABLED})
_SUBJECT = "ClusterMaintenance"


async def plan_cluster_maintenance(inventory: Inventory, request: PlanClusterInput) -> ClusterPlan:
    """The hosts in their order, and the cluster's settings as they are now.

    Raises NotFound (cluster), InvalidInput (hosts of other clusters, more at a time than may be
    out), Conflict (a host that is not in service, or none that is; or that has no out-of-band
    management, if its power is to be switched).
    """
    cluster = await inventory.topology.get_cluster(request.cluster)
    settings = await inventory.settings.resolve(cluster=cluster.name)
    most = settings[MAINTENANCE_HOSTS_OUT_MAX]
    if request.parallel > most:
        raise _wrong(
            "parallel",
            f"{request.parallel} hosts at a time, but the setting "
            f"{MAINTENANCE_HOSTS_OUT_MAX.name} of {cluster.name} lets {most} be out",
        )
    known = {host.name: host for host in await inventory.hosts.list(cluster=cluster.name)}
    hosts = _chosen(request, known)
    if request.power_cycle_when_lost:
        await inventory.oobm.require(hosts, "power_cycle_when_lost")
    return ClusterPlan(
        cluster=cluster.name,
        zone=cluster.zone,
        hosts=hosts,
        hook_timeout=settings[HOOK_TIMEOUT],
        reboot_timeout=settings[HOST_REBOOT_TIMEOUT],
        unreachable_timeout=settings[MAINTENANCE_UNREACHABLE_TIMEOUT],
    )


def _chosen(request: PlanClusterInput, known: dict[str, Host]) -> tuple[str, ...]:
    if request.hosts is None:
        in_service = tuple(
            name for name, host in known.items() if host.resource_state in _IN_SERVICE
        )
        if not in_service:
            raise Conflict(
                f"No host of {request.cluster} is in service.",
                remedy="See `hostler host list`, and put hosts back into service first.",
            )
        return in_service
    strange = [name for name in request.hosts if name not in known]
    if strange:
        raise _wrong("hosts", f"not in {request.cluster}: {', '.join(strange)}")
    away = [
        f"{name} is {known[name].resource_state}"
        for name in request.hosts
        if known[name].resource_state not in _IN_SERVICE
    ]
    if away:
        raise Conflict(
            f"Hosts of {request.cluster} that are asked for are not in service: {', '.join(away)}.",
            remedy="Put them back into service, or leave them out.",
        )
    return request.hosts


def _wrong(field: str, message: str) -> InvalidInput:
    return invalid_input(_SUBJECT, [{"loc": (field,), "type": "refused", "msg": message}])
