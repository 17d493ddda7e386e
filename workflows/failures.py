"""From what Temporal raises in a workflow to what an operator should read."""

from collections.abc import Sequence

from temporalio import exceptions
from temporalio.exceptions import ActivityError, ApplicationError, FailureError


def as_application_error(error: ActivityError) -> ApplicationError:
    """The error that an activity ended with, as the workflow's own: same type, text and details.

    An ActivityError says only that an activity failed; its cause says why.
    """
    cause = error.cause
    if isinstance(cause, ApplicationError):
        return ApplicationError(
            cause.message, *cause.details, type=cause.type, non_retryable=cause.non_retryable
        )
    if isinstance(cause, exceptions.TimeoutError):
        last = cause.cause.message if isinstance(cause.cause, FailureError) else None
        return ApplicationError(
            f"{error.activity_type} did not succeed in time" + (f": {last}" if last else "."),
            type="TimedOut",
            non_retryable=True,
        )
    return ApplicationError(
        f"{error.activity_type} failed: {cause or error}", type="Failed", non_retryable=True
    )


def all_of(problems: Sequence[BaseException]) -> BaseException:
    """One error for what several branches have raised; of a cancel among them, that."""
    for one in problems:
        if len(problems) == 1 or not isinstance(one, ApplicationError):
            return one
    return ApplicationError(
        " ".join(str(one) for one in problems), type="Failed", non_retryable=True
    )


def explain(error: ActivityError) -> str:
    """What went wrong, in words."""
    return as_application_error(error).message


def is_absence(error: ActivityError) -> bool:
    """Whether a system did not answer in time, rather than with an error."""
    cause = error.cause
    if isinstance(cause, ApplicationError):
        return not cause.non_retryable
    return isinstance(cause, exceptions.TimeoutError)
