"""Whether a host's power may be switched, by what would lose it: pure rules."""

from contracts.power import PowerState
from contracts.power_actions import BOOTS, STOPS, Action, PowerSurvey
from contracts.states import ResourceState

# Hosts get into these when no VM is active on them.
_EMPTY = frozenset({ResourceState.MAINTENANCE, ResourceState.REMOVED})


def refusal(
    action: Action, survey: PowerSurvey, *, force: bool, may_be_silent: bool = False
) -> str | None:
    """Why it may not be done, with the remedy. `may_be_silent`: it was told to shut down before, so
    that it need not tell its VMs any more."""
    host = survey.host
    if action in BOOTS and survey.state is PowerState.OFF:
        return f"{host} is off: {action} does nothing there. Switch it on: hostler power on {host}"
    if force or action not in STOPS or survey.state is PowerState.OFF:
        return None
    way = (
        f"Take it out first (hostler maintenance enter {host}); or let them end there, with force "
        "and a reason."
    )
    if survey.vms:
        return f"VMs run on {host}: {', '.join(survey.vms)}. {way}"
    if survey.coming:
        return f"VMs are on their way to {host}: {', '.join(survey.coming)}. {way}"
    out = may_be_silent or survey.resource_state in _EMPTY
    if survey.vms is None and not out:
        seen = survey.last_seen_vms
        last = "" if seen is None else f" (when it was last looked at: {seen})"
        return f"{host} is on, and does not say which VMs run there{last}. {way}"
    return None
