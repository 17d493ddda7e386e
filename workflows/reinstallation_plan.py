"""Whether a host can be re-installed as it is, and what that does, by what was found."""

from collections.abc import Iterator

from temporalio.exceptions import ApplicationError

from contracts.hosts import Host
from contracts.reinstallation import HostReinstallationInput
from contracts.removal import EffectKind, RemovalEffect, RemovalSurvey
from contracts.states import MAINTENANCE_STATES, ResourceState, TlsState

_IN_SERVICE = frozenset({ResourceState.ENABLED, ResourceState.DISABLED})


def needs_maintenance(host: Host) -> bool:
    """Whether it is in service."""
    return host.resource_state in _IN_SERVICE


def check(asked: HostReinstallationInput, survey: RemovalSurvey) -> None:
    """Raises Conflict, with the remedy, if the host can't be re-installed as it is and was
    asked."""
    refusal = _refusal(asked, survey)
    if refusal is not None:
        raise ApplicationError(
            f"{refusal} Nothing was changed.", type="Conflict", non_retryable=True
        )


def _refusal(asked: HostReinstallationInput, survey: RemovalSurvey) -> str | None:
    host, name = survey.host, survey.host.name
    if host.being_reinstalled:
        return None  # an earlier one has ended half-way: this one goes on
    state = host.resource_state
    if state is not ResourceState.MAINTENANCE:
        out = needs_maintenance(host) and (asked.after_maintenance or asked.host_is_down)
        if not out:
            return _way_to_maintenance(survey)
    if asked.host_is_down:
        if survey.answers:
            return f"{name} answers: it is not down. Re-install it without host_is_down."
        return None
    if not survey.answers:
        return (
            f"Which VMs {name} has can't be seen: {survey.problem} Wait until it answers; if it "
            "is known to be off, or to be another installation already, say so with host_is_down."
        )
    if survey.problem:
        return f"{name} answers, but does not tell which VMs it has: {survey.problem}"
    if survey.active and not needs_maintenance(host):
        return (
            f"VMs run on {name}: {', '.join(survey.active)}. Put it back and into maintenance "
            f"again: hostler maintenance leave {name}"
        )
    if survey.defined and not asked.lose_vms:
        return (
            f"VMs are defined on {name}, shut off: {', '.join(survey.defined)}. A re-installation "
            "destroys them: move or undefine them, or lose them knowingly with lose_vms."
        )
    return None


def _way_to_maintenance(survey: RemovalSurvey) -> str:
    name, state = survey.host.name, survey.host.resource_state
    found = f"{name} is {state}: a host is re-installed from Maintenance."
    if needs_maintenance(survey.host):
        vms = ", ".join(survey.active) or "none that is known"
        return (
            f"{found} VMs that run there: {vms}. Take it out first (hostler maintenance enter "
            f"{name}), or re-install it with after_maintenance."
        )
    if state in MAINTENANCE_STATES:
        return f"{found} See what it waits for: hostler maintenance status {name}"
    return f"{found} See `hostler event list --subject host/{name}`."


def effects(asked: HostReinstallationInput, survey: RemovalSurvey) -> tuple[RemovalEffect, ...]:
    """Everything that the re-installation does, in its order."""
    return tuple(
        RemovalEffect(kind=kind, message=message) for kind, message in _effects(asked, survey)
    )


def lost_vms(survey: RemovalSurvey) -> tuple[str, ...]:
    """VMs that are gone with the old installation, as far as is known."""
    return survey.defined if survey.answers else survey.last_seen


def _effects(
    asked: HostReinstallationInput, survey: RemovalSurvey
) -> Iterator[tuple[EffectKind, str]]:
    host, name = survey.host, survey.host.name
    if needs_maintenance(host):
        leaving = ", ".join(survey.active) or "none"
        yield (
            EffectKind.MAINTENANCE,
            f"{name} is taken out as it is: no VM is moved"
            if asked.host_is_down
            else f"{name} is taken out of service first; VMs that leave it: {leaving}",
        )
    if not host.being_reinstalled:
        yield from _withdrawal(asked, survey)
    if asked.network_boot:
        yield EffectKind.POWER, f"{name} boots once from the network, by its BMC, off or on"
    yield EffectKind.HOST, f"{name} is waited for, until it shows another SSH host key"
    if asked.host_key_sha256 is None:
        yield EffectKind.HOST, "that key is shown, and pinned when somebody accepts it"
    else:
        yield EffectKind.HOST, f"that key is pinned if it is {asked.host_key_sha256}"
    yield EffectKind.HOST, "the new installation gets the fence, and a key of Hostler's own"
    if host.tls_in_service.can:
        secured = ", and takes and gives VMs by TLS only" * (
            host.tls_in_service is TlsState.SECURED
        )
        yield EffectKind.HOST, f"it gets certificates again{secured}"
    if host.being_reinstalled or not asked.host_is_down:
        yield EffectKind.HOST, "networks, bridges and storage pools are to be there as before"
    back = host.state_before_maintenance or host.resource_state
    yield (
        EffectKind.INVENTORY,
        f"{name} keeps its name, cluster, tags and history, and becomes {back} again",
    )
    if asked.return_vms:
        yield EffectKind.VMS, "VMs that its last maintenance has moved come back"


def _withdrawal(
    asked: HostReinstallationInput, survey: RemovalSurvey
) -> Iterator[tuple[EffectKind, str]]:
    host, name = survey.host, survey.host.name
    if asked.command is not None:
        yield EffectKind.HOST, f"run on {name} as root: {' '.join(asked.command)}"
    yield (
        EffectKind.INVENTORY,
        f"the host key {host.host_key_sha256} is accepted no more; from here on there is no way "
        "back",
    )
    if host.tls.can:
        yield EffectKind.SECRET, "certificates of the old installation are revoked"
    yield EffectKind.CONNECTIONS, f"connections that are kept to {name} are closed"
    if not asked.host_is_down:
        yield EffectKind.HOST, f"removed from {name}: Hostler's own key; the fence stays up"
    yield EffectKind.SECRET, "Hostler's own key is deleted; a password that is known is kept"
    vms = ", ".join(lost_vms(survey))
    if vms:
        seen = "defined" if survey.answers else "last seen"
        yield EffectKind.VMS, f"lost with the old installation, as they are {seen} there: {vms}"
