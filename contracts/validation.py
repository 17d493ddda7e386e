"""One wording for input that does not validate, whichever way it came in."""

from collections.abc import Iterable, Mapping
from typing import Any

from contracts.errors import InvalidInput


def invalid_input(subject: str, errors: Iterable[Mapping[str, Any]]) -> InvalidInput:
    """Turn pydantic's error list into an InvalidInput that names each field and the remedy.

    Args:
        subject: what was being read, for example "HostMaintenance".
        errors: pydantic's `ValidationError.errors()`.
    """
    fields = [
        {
            "field": ".".join(str(part) for part in error["loc"]) or "input",
            "message": say_error(error),
        }
        for error in errors
    ]
    listed = "; ".join(f"{field['field']}: {field['message']}" for field in fields)
    return InvalidInput(
        f"The input of {subject} is not valid: {listed}.",
        remedy="Correct these fields and start it again; nothing was changed.",
        details={"fields": fields},
    )


def say_error(error: Mapping[str, Any]) -> str:
    """What is wrong with one field, by its entry in pydantic's error list."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return "there is no such field"
    if kind == "missing":
        return "this field is required"
    if kind == "string_pattern_mismatch":
        return f"must match {context['pattern']}"
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "tuple_type":
        return "input should be a valid array"
    message = str(error["msg"])
    return message[:1].lower() + message[1:]
