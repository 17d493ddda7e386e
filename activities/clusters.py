"""What the inventory knows of a cluster's hosts together."""

from temporalio import activity

from contracts.cluster_maintenance import ClusterPlan, PlanClusterInput
from inventory import Inventory
from inventory.cluster_maintenance import plan_cluster_maintenance


class ClusterActivities:
    """Reads that concern a whole cluster."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory

    @activity.defn(name="plan_cluster_maintenance")
    async def plan_cluster_maintenance(self, request: PlanClusterInput) -> ClusterPlan:
        """Which hosts, in which order. Raises NotFound, InvalidInput, Conflict."""
        return await plan_cluster_maintenance(self._inventory, request)
