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
from contracts.power_switching import refusal
from contracts.states import MAINTENANCE_STATES, ResourceState


def check(asked: PowerActionInput, survey: PowerSurvey) -> None:
    """Raises Conflict, with the remedy, if it may not be done as it was asked."""
    problem = refusal(asked.action, survey, force=asked.force)
    if problem is not None:
        raise ApplicationError(
            f"{problem} Nothing was sent to its BMC.", type="Conflict", non_retryable=True
        )


def warnings(asked: PowerActionInput, survey: PowerSurvey) -> tuple[str, ...]:
    """What whoever asked should know."""
    return tuple(_warnings(asked, survey))


def _warnings(asked: PowerActionInput, survey: PowerSurvey) -> Iterator[str]:
    if survey.resource_state in MAINTENANCE_STATES:
        yield maintenance_warning(survey.host, survey.resource_state)
    if survey.vms and asked.action in STOPS:
        yield f"VMs that run on {survey.host} end: {', '.join(survey.vms)}"
    if survey.coming and asked.action in STOPS:
        yield f"VMs are on their way to {survey.host}: {', '.join(survey.coming)}"


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
        why = f"it has stopped answering, and was not seen up again within {seconds} s"
    else:
        why = (
            f"it had not told its boot before, and was not seen off within {seconds} s; its BMC "
            f"says {seen.state}"
        )
    return Verdict(CommandOutcome.UNKNOWN, f"accepted, not proven: {why}")


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
