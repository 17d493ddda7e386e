"""Logs on stderr, one record a line, each with the operation it belongs to."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter
from temporalio import activity, workflow
from temporalio.common import SearchAttributeKey

_HOST = SearchAttributeKey.for_keyword("HostlerHost")

_host: ContextVar[str | None] = ContextVar("hostler_log_host", default=None)

# Libraries that tell at `info` what only their own developers want to know.
_NOISY = (
    "aiosqlite",
    "alembic",
    "asyncio",
    "asyncssh",
    "httpcore",
    "httpx",
    "opentelemetry",
    "sqlalchemy",
    "uvicorn.access",
    "uvicorn.error",
)

# The SDK's own copies of the context.
_SDK_FIELDS = ("temporal_activity", "temporal_log", "temporal_workflow", "color_message")

_CONTEXT = ("workflow_id", "run_id", "workflow_type", "activity", "attempt", "host")


@contextmanager
def host_of_log(host: str | None) -> Iterator[None]:
    """Records written inside the block carry `host`."""
    token = _host.set(host)
    try:
        yield
    finally:
        _host.reset(token)


def configure_logs(level: str, log_format: Literal["text", "json"]) -> None:
    """Send every logger of the process to stderr, this way alone."""
    handler = logging.StreamHandler()
    handler.addFilter(_add_context)
    handler.setFormatter(_Json() if log_format == "json" else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    # The SDK appends its context to the message; the fields below say the same, in fields.
    activity.logger.activity_info_on_message = False
    workflow.logger.workflow_info_on_message = False


def _add_context(record: logging.LogRecord) -> bool:
    for name, value in _context().items():
        setattr(record, name, value)
    return True


def _context() -> dict[str, str | int]:
    found: dict[str, str | int | None] = {"host": _host.get()}
    if workflow.in_workflow():
        flow = workflow.info()
        found |= {
            "workflow_id": flow.workflow_id,
            "run_id": flow.run_id,
            "workflow_type": flow.workflow_type,
            "host": flow.typed_search_attributes.get(_HOST),
        }
    elif activity.in_activity():
        step = activity.info()
        found |= {
            "workflow_id": step.workflow_id,
            "run_id": step.workflow_run_id,
            "workflow_type": step.workflow_type,
            "activity": step.activity_type,
            "attempt": step.attempt,
        }
    return {name: value for name, value in found.items() if value is not None}


class _Text(logging.Formatter):
    """`2026-11-24T09:00:00Z info    workers: message [workflow_id=maintenance/kvm-1 ...]`"""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        context = " ".join(
            f"{name}={getattr(record, name)}" for name in _CONTEXT if hasattr(record, name)
        )
        when = self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z")
        level = record.levelname.lower()
        text = f"{when} {level:<7} {record.name}: {record.message}"
        return f"{text} [{context}]" if context else text


class _Json(JsonFormatter):
    def __init__(self) -> None:
        super().__init__(
            ["levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger"},
            reserved_attrs=[*RESERVED_ATTRS, *_SDK_FIELDS],
            timestamp=True,
        )
