"""Whether a host can be removed as it is, and what its removal does, by what was found."""

from collections.abc import Iterator

from temporalio.exceptions import ApplicationError

from contracts.hosts import HostUsage
from contracts.removal import EffectKind, HostRemovalInput, RemovalEffect, RemovalSurvey
from contracts.states import MAINTENANCE_STATES, HostStatus, ResourceState

_IN_SERVICE = frozenset({ResourceState.ENABLED, ResourceState.DISABLED})
_TOMBSTONE = (
    "a tombstone stays: the machine is only added again on purpose; its name and address are free"
)


def is_lost(asked: HostRemovalInput, survey: RemovalSurvey) -> bool:
    """Whether the host is removed without being cleaned: it does not answer, or its libvirt does
    not. What can be cleaned then, the next round of checks does."""
    return asked.forced and bool(survey.problem)


def needs_maintenance(survey: RemovalSurvey) -> bool:
    """Whether it is in service."""
    return survey.host.resource_state in _IN_SERVICE


def check(asked: HostRemovalInput, survey: RemovalSurvey, *, untouched: bool) -> None:
    """Raises Conflict, with the remedy, if the host can't be removed as it is and was asked.
    `untouched`: the removal has changed nothing so far."""
    refusal = _refusal(asked, survey)
    if refusal is not None:
        if untouched:
            refusal = f"{refusal} Nothing was changed."
        raise ApplicationError(refusal, type="Conflict", non_retryable=True)


def _refusal(asked: HostRemovalInput, survey: RemovalSurvey) -> str | None:
    name, state = survey.host.name, survey.host.resource_state
    if state is ResourceState.REMOVED:
        return None  # by an earlier removal, which has ended half-way: this one goes on
    if survey.problem:
        return _refusal_of_silent(asked, survey)
    if state in _IN_SERVICE and asked.after_maintenance:
        return _refusal_of_defined(asked, survey)
    if state is not ResourceState.MAINTENANCE:
        vms = ", ".join(survey.active) or "none"
        return (
            f"{name} answers and is {state}: a host is removed from Maintenance. VMs that run "
            f"there: {vms}. {_way_to_maintenance(name, state)}"
        )
    if survey.active:
        return (
            f"VMs run on {name}: {', '.join(survey.active)}. Put it back and into maintenance "
            f"again: hostler maintenance leave {name}"
        )
    return _refusal_of_defined(asked, survey)


def _refusal_of_defined(asked: HostRemovalInput, survey: RemovalSurvey) -> str | None:
    """No maintenance moves them."""
    if not survey.defined or asked.leave_vms:
        return None
    left = ", ".join(survey.defined)
    return (
        f"VMs are defined on {survey.host.name}, shut off: {left}. Undefine or move them, or "
        "remove it with leave_vms: they stay as they are."
    )


def _refusal_of_silent(asked: HostRemovalInput, survey: RemovalSurvey) -> str | None:
    name, host = survey.host.name, survey.host
    silence = "answers, but does not tell which VMs it has" if survey.answers else "does not answer"
    if not asked.forced:
        return (
            f"{name} {silence}: {survey.problem} Wait until it does; if it is lost, remove it with "
            "forced and a reason."
        )
    if host.status is HostStatus.UP and host.resource_state is not ResourceState.MAINTENANCE:
        return (
            f"{name} {silence} now, but is {HostStatus.UP} as far as was seen: one missed "
            f"answer is no evidence that it is lost ({survey.problem}) Wait until its status says "
            f"so (hostler host show {name}), or confirm it: hostler maintenance enter {name} "
            "--host-is-down"
        )
    return None


def _way_to_maintenance(name: str, state: ResourceState) -> str:
    if state in _IN_SERVICE:
        return (
            f"Take it out first (hostler maintenance enter {name}), or remove it with "
            "after_maintenance."
        )
    if state in MAINTENANCE_STATES:
        return f"See what it waits for: hostler maintenance status {name}"
    return f"See `hostler event list --subject host/{name}`."


def effects(asked: HostRemovalInput, survey: RemovalSurvey) -> tuple[RemovalEffect, ...]:
    """Everything that the removal does, in its order."""
    return tuple(_effects(asked, survey))


def _effects(asked: HostRemovalInput, survey: RemovalSurvey) -> Iterator[RemovalEffect]:
    name = survey.host.name
    lost = is_lost(asked, survey)
    if needs_maintenance(survey) and not lost:
        leaving = ", ".join(survey.active) or "none"
        yield RemovalEffect(
            kind=EffectKind.MAINTENANCE,
            message=f"{name} is taken out of service first; VMs that leave it: {leaving}",
        )
    if lost:
        when = (
            "which does not tell which VMs it has: the next round of checks cleans it all the same"
            if survey.answers
            else "which does not answer: it is cleaned, and not taken back, when it answers again "
            "at its address with its host key"
        )
        yield RemovalEffect(kind=EffectKind.HOST, message=f"nothing on {name} itself, {when}")
        yield RemovalEffect(kind=EffectKind.VMS, message=_last_seen(survey))
    else:
        yield RemovalEffect(
            kind=EffectKind.HOST, message=f"running jobs of Hostler on {name} are ended"
        )
        for found in survey.found:
            yield RemovalEffect(kind=EffectKind.HOST, message=f"removed from {name}: {found}")
        if survey.defined:
            left = ", ".join(survey.defined)
            yield RemovalEffect(
                kind=EffectKind.VMS, message=f"VMs stay defined there, shut off: {left}"
            )
        if asked.power_off:
            yield RemovalEffect(kind=EffectKind.POWER, message=_switched_off(asked, name))
    yield RemovalEffect(kind=EffectKind.INVENTORY, message=f"deleted: the host {name}")
    for belonging in survey.belongings:
        yield RemovalEffect(kind=EffectKind.INVENTORY, message=f"deleted: {belonging}")
    yield RemovalEffect(kind=EffectKind.SECRET, message=_secrets(survey, lost=lost))
    yield RemovalEffect(kind=EffectKind.TOMBSTONE, message=_TOMBSTONE)
    yield RemovalEffect(
        kind=EffectKind.CONNECTIONS, message=f"connections that are kept to {name} are closed"
    )


def _switched_off(asked: HostRemovalInput, name: str) -> str:
    late = "; if it does not in time, its power is taken away" if asked.fall_back_to_off else ""
    return f"{name} is shut down and switched off, once it is clean{late}"


def _secrets(survey: RemovalSurvey, *, lost: bool) -> str:
    if lost:
        return "the credential that logs in is kept for the cleaning; others are deleted"
    return f"deleted: {survey.secrets} stored credentials, as far as no other host has them"


def _last_seen(survey: RemovalSurvey) -> str:
    names = ", ".join(survey.last_seen) or "none that Hostler has moved"
    return f"not started elsewhere; VMs last seen there: {names}{_counted(survey.host.usage)}"


def _counted(usage: HostUsage | None) -> str:
    return f" ({usage.vms} were active at {usage.at:%Y-%m-%d %H:%M} UTC)" if usage else ""
