"""What makes a machine a host of Hostler's: the steps that an addition and a re-installation share.

Each of them finds its work done if it was done. None of them decides what comes next.
"""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.allocation import AllocationActivities
    from activities.fencing import FencingActivities
    from activities.own_key import OwnKeyActivities
    from activities.packages import PackageActivities
    from activities.passwords import PasswordActivities
    from activities.preflight import PreflightActivities
    from activities.records import RecordActivities
    from contracts.allocation import TellHostsInput, TellHostsResult
    from contracts.leases import LeaseRef, Owner
    from contracts.passwords import BringUpInput, BringUpResult
    from contracts.preflight import Finding
    from contracts.preflight_rules import warning
    from contracts.steps import (
        EventInput,
        FenceInput,
        OwnKeyResult,
        PreflightInput,
        PreflightResult,
    )
    from workflows import policies


async def preflight(request: PreflightInput) -> PreflightResult:
    """Everything that can be found, at once."""
    result: PreflightResult = await workflow.execute_activity_method(
        PreflightActivities.preflight_host,
        request,
        summary="Preflight: host, libvirt, cluster, inventory",
        **policies.FIRST_LOOK,
    )
    return result


async def install_packages(lease: LeaseRef) -> None:
    """By a job on the host. Look again afterwards: what could not be seen before may be wrong."""
    await workflow.execute_activity_method(
        PackageActivities.install_packages,
        lease,
        summary="Packages of libvirt and QEMU",
        **policies.HOST_JOB,
    )


async def install_fence(lease: LeaseRef, *, stays_up: bool) -> None:
    """Proven up, and, unless it stays up, down."""
    await workflow.execute_activity_method(
        FencingActivities.install_fence,
        FenceInput(lease=lease, operation=workflow.info().workflow_id, stays_up=stays_up),
        summary="Fence hook, proven up" if stays_up else "Fence hook, proven up and down",
        **policies.HOST_CHANGE,
    )


async def change_to_own_key(lease: LeaseRef) -> Finding | None:
    """After the fence: from then on the host itself refuses what comes from operations that were
    taken over. The credential that was given stays in use if the host takes no key; that is what
    is returned."""
    await workflow.execute_activity_method(
        OwnKeyActivities.stage_own_key,
        lease,
        summary="A key, stored encrypted",
        **policies.RECORD,
    )
    key: OwnKeyResult = await workflow.execute_activity_method(
        OwnKeyActivities.install_own_key,
        lease,
        summary="Key in authorized_keys, proven by a login",
        **policies.HOST_CHANGE,
    )
    after = OwnKeyActivities.promote_own_key if key.proven else OwnKeyActivities.drop_own_key
    await workflow.execute_activity_method(
        after,
        lease,
        summary="The key logs in from now on" if key.proven else "The key is of no use",
        **policies.RECORD,
    )
    if key.proven:
        return None
    return warning(
        "own-key-refused",
        f"It lets nobody in with Hostler's own key: {key.problem}",
        "Hostler goes on with the credential that was given. See PubkeyAuthentication and "
        "AuthorizedKeysFile in its sshd_config.",
    )


async def tell_allocation(host: str) -> TellHostsResult:
    """A host of something `Disabled` is closed. One that does not answer just now is told by its
    checks."""
    result: TellHostsResult = await workflow.execute_activity_method(
        AllocationActivities.tell_hosts,
        TellHostsInput(hosts=(host,)),
        summary="Whether it takes new VMs",
        **policies.SWEEP,
    )
    return result


async def give_password(host: str) -> Finding | None:
    """That of its cluster, if that has one and the settings say so. A host that can't be given it
    now gets it later, by Housekeeping: that is what is returned."""
    info = workflow.info()
    result: BringUpResult = await workflow.execute_activity_method(
        PasswordActivities.bring_passwords_up,
        BringUpInput(
            hosts=(host,),
            owner=Owner(workflow_id=info.workflow_id, first_run_id=info.first_execution_run_id),
        ),
        summary="The password of its cluster",
        **policies.SWEEP,
    )
    if not result.failed:
        return None
    return warning(
        "password-stale",
        "It does not have the password of its cluster: "
        + "; ".join(one.problem or "" for one in result.failed),
        "It is tried again every hour. See `hostler passwords verify`.",
    )


async def record_findings(lease: LeaseRef, kind: str, findings: tuple[Finding, ...]) -> None:
    """A line each in the host's audit trail; `kind`: of these events."""
    for finding in findings:
        await workflow.execute_activity_method(
            RecordActivities.record_event,
            EventInput(
                lease=lease,
                kind=kind,
                message=f"[{finding.code}] {finding.found} {finding.remedy}",
            ),
            summary=finding.code,
            **policies.RECORD,
        )
