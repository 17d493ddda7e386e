"""Newest revocation lists to all hosts that are there: a step of whoever makes or finds them.

Whoever is away, or busy, gets them by a later round of checks (Housekeeping).
"""

from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.crl_delivery import CrlDeliveryActivities
    from contracts.certificate_upkeep import CrlDelivery, DeliverCrlsInput, HostsWithoutCrls
    from contracts.leases import Owner
    from workflows import policies

_BATCH = 200
_MOST_LISTED = 500


async def deliver_crls(batch: int = _BATCH) -> CrlDelivery:
    """Who has got them, and who has not yet."""
    listed: HostsWithoutCrls = await workflow.execute_activity_method(
        CrlDeliveryActivities.list_hosts_without_crls,
        summary="Hosts that do not have the newest revocation lists",
        **policies.RECORD,
    )
    info = workflow.info()
    owner = Owner(workflow_id=info.workflow_id, first_run_id=info.first_execution_run_id)
    delivered: list[str] = []
    missing = dict(listed.not_now)
    for begin in range(0, len(listed.hosts), batch):
        hosts = listed.hosts[begin : begin + batch]
        done: CrlDelivery = await workflow.execute_activity_method(
            CrlDeliveryActivities.deliver_crls,
            DeliverCrlsInput(hosts=hosts, owner=owner),
            summary=f"Revocation lists for {hosts[0]} and on",
            **policies.SWEEP,
        )
        delivered += done.delivered
        missing |= done.missing
    return CrlDelivery(delivered=tuple(delivered), missing=missing)


def named(delivery: CrlDelivery) -> dict[str, Any]:
    """The same for a result: of many hosts, only the first ones."""
    return {
        "delivered": delivery.delivered[:_MOST_LISTED],
        "missing": dict(sorted(delivery.missing.items())[:_MOST_LISTED]),
    }
