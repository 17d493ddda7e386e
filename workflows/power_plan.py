"""Whether a host's power may be switched, and what became of a command: by what was found."""

from collections.abc import Iterator
from dataclasses import dataclass

from temporalio.exceptions import ApplicationError

from contracts.power import PowerState
from contracts.power_actions import (
    BOOTS,
    SHOULD_BE,
    STOPS,
    Action,
    BootSeen,
    CommandOutcome,
    PowerActionInput,
    PowerSeen,
    PowerSent,
    PowerSurvey,
)
from contracts.states import MAINTENANCE_STATES, ResourceState

# Hosts get into these when no VM is active on them.
_EMPTY = frozenset({ResourceState.MAINTENANCE, ResourceState.REMOVED})


def check(asked: PowerActionInput, survey: PowerSurvey) -> None:
    """Raises Conflict, with the remedy, if it may not be done as it was asked."""
    refusal = _refusal(asked, survey)
    if refusal is not None:
        raise ApplicationError(
            f"{refusal} Nothing was sent to its BMC.", type="Conflict", non_retryable=True
        )


def _refusal(asked: PowerActionInput, survey: PowerSurvey) -> str | None:
    host, action = survey.host, asked.action
    if action in BOOTS and survey.state is PowerState.OFF:
        return f"{host} is off: {action} does nothing there. Switch it on: hostler power on {host}"
    if asked.force or action not in STOPS or survey.state is PowerState.OFF:
        return None
    way = (
        f"Take it out first (hostler maintenance enter {host}); or let them end there, with force "
        "and a reason."
    )
    if survey.vms:
        return f"VMs run on {host}: {', '.join(survey.vms)}. {way}"
    if survey.vms is None and survey.resource_state not in _EMPTY:
        seen = survey.last_seen_vms
        last = "" if seen is None else f" (when it was last looked at: {seen})"
        return f"{host} is on, and does not say which VMs run there{last}. {way}"
    return None


def warnings(asked: PowerActionInput, survey: PowerSurvey) -> tuple[str, ...]:
    """What whoever asked should know."""
    return tuple(_warnings(asked, survey))


def _warnings(asked: PowerActionInput, survey: PowerSurvey) -> Iterator[str]:
    if survey.resource_state in MAINTENANCE_STATES:
        yield maintenance_warning(survey.host, survey.resource_state)
    if survey.vms and asked.action in STOPS:
        yield f"VMs that run on {survey.host} end: {', '.join(survey.vms)}"


def maintenance_warning(host: str, state: ResourceState) -> str:
    """Of a host that somebody may be working on."""
    return f"{host} is {state}: somebody may be working on it (hostler maintenance status {host})"


def is_there_already(action: Action, state: PowerState) -> bool:
    """Whether there is nothing to send."""
    return action not in BOOTS and state is SHOULD_BE[action]


@dataclass(frozen=True)
class Verdict:
    """What is known of a command. `message`: by what, or what it is that can't be known."""

    outcome: CommandOutcome
    message: str


def judge(action: Action, sent: PowerSent, seen: PowerSeen, seconds: int) -> Verdict:
    """What became of a command, by what was seen of it for so many seconds."""
    if action in BOOTS:
        return _judge_boot(action, sent, seen, seconds)
    wanted = SHOULD_BE[action]
    if seen.state is wanted:
        return Verdict(CommandOutcome.DONE, f"its BMC says {wanted}")
    if seen.state is PowerState.UNKNOWN:
        return _unknown(f"its BMC does not say how the power is ({seen.problem})", sent)
    if not sent.accepted:
        return _unknown(f"it is {seen.state} after {seconds} s", sent)
    if action is Action.SOFT:
        return Verdict(
            CommandOutcome.UNCHANGED,
            f"its operating system was asked to shut down, and is not off after {seconds} s",
        )
    return Verdict(
        CommandOutcome.UNCHANGED,
        f"its BMC has accepted {action!s}, and says {seen.state} after {seconds} s",
    )


def _judge_boot(action: Action, sent: PowerSent, seen: PowerSeen, seconds: int) -> Verdict:
    if seen.boot is BootSeen.ANOTHER:
        return Verdict(CommandOutcome.DONE, "it is in another boot than before")
    if seen.state is PowerState.ON and seen.was_off:
        return Verdict(CommandOutcome.DONE, "it was seen off, and is on again")
    if not sent.accepted:
        same = "it is in the same boot" if seen.boot is BootSeen.SAME else f"it is {seen.state}"
        return _unknown(f"{same} after {seconds} s", sent)
    if seen.state is PowerState.UNKNOWN:
        return _unknown(f"its BMC does not say how the power is ({seen.problem})", sent)
    if seen.state is PowerState.OFF:
        return Verdict(
            CommandOutcome.UNCHANGED, f"it is still off {seconds} s after {action!s} was accepted"
        )
    if seen.boot is BootSeen.SAME:
        return Verdict(
            CommandOutcome.UNCHANGED,
            f"its BMC has accepted {action!s}, and {seconds} s later it is in the same boot",
        )
    if seen.boot is BootSeen.SILENT:
        return Verdict(
            CommandOutcome.DONE,
            f"it stopped answering; that it is up again was not seen within {seconds} s",
        )
    return Verdict(
        CommandOutcome.DONE,
        "its BMC has accepted it; there is no proof of the boot, as the host did not tell its "
        "boot before",
    )


def _unknown(seen: str, sent: PowerSent) -> Verdict:
    arrived = (
        "the BMC had accepted the command"
        if sent.accepted
        else "whether the command arrived is not known"
        + (f" ({sent.problem.rstrip('.')})" if sent.problem else "")
    )
    return Verdict(CommandOutcome.UNKNOWN, f"{seen}; {arrived}, and it is not sent again")


_TYPES = {
    CommandOutcome.UNCHANGED: "PowerUnchanged",
    CommandOutcome.UNKNOWN: "OutcomeUnknown",
}


def failure(host: str, action: Action, verdict: Verdict) -> ApplicationError:
    """The error that a command ends with which is not done."""
    return ApplicationError(
        f"{action!s} of {host}: {verdict.message}. Look first (hostler power status {host}), then "
        "ask for it again if it is still wanted.",
        type=_TYPES[verdict.outcome],
        non_retryable=True,
    )
