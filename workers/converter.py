"""How payloads become models, and exceptions become failures."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.contrib.pydantic import PydanticPayloadConverter
from temporalio.converter import DataConverter, DefaultFailureConverter, PayloadConverter
from temporalio.exceptions import ApplicationError

from contracts.errors import HostlerError
from contracts.validation import invalid_input

# Temporal refuses a failure of more than about 4 MiB, and people read one line.
MAX_TEXT_BYTES = 4096

_INPUT_SUFFIX = "Input"


class HostlerPayloadConverter(PydanticPayloadConverter):
    """Pydantic's converter, except that a wrong input ends what it was meant for.

    Temporal decodes an input before the workflow's own code runs; an ordinary error there is
    retried for ever as a workflow task failure. Only inputs (`...Input`) are treated so: a result
    that an older worker can't read waits for a newer one, as usual.
    """

    def from_payloads(
        self, payloads: Sequence[Payload], type_hints: list[type] | None = None
    ) -> list[Any]:
        """Decode; an input that does not validate raises ApplicationError (InvalidInput)."""
        if len(payloads) == 1 and type_hints and _is_input(type_hints[0]):
            return [self._read_input(payloads[0], type_hints[0])]
        return super().from_payloads(payloads, type_hints)

    def _read_input(self, payload: Payload, model: type[BaseModel]) -> Any:
        subject = model.__name__.removesuffix(_INPUT_SUFFIX)
        if payload.metadata.get("encoding") != b"json/plain":
            problem = {"loc": (), "type": "not_json", "msg": "must be a JSON object"}
            raise application_error(invalid_input(subject, [problem]))
        try:
            return super().from_payloads([payload], [model])[0]
        except ValidationError as error:
            problems = [
                {"loc": item["loc"], "type": item["type"], "msg": item["msg"]}
                | ({"ctx": item["ctx"]} if "ctx" in item else {})
                for item in error.errors(include_url=False, include_input=False)
            ]
        # Outside the handler: pydantic's own error quotes the input, and would become the cause.
        raise application_error(invalid_input(subject, problems))


class HostlerFailureConverter(DefaultFailureConverter):
    """The default one with every text of the chain cut to a size that can be stored and read."""

    def to_failure(
        self, exception: BaseException, payload_converter: PayloadConverter, failure: Failure
    ) -> None:
        """Write `exception` and its causes into `failure`."""
        super().to_failure(exception, payload_converter, failure)
        failure.message = cut(failure.message)
        failure.stack_trace = cut(failure.stack_trace)


def cut(text: str) -> str:
    """`text`, at most MAX_TEXT_BYTES long in UTF-8."""
    encoded = text.encode()
    if len(encoded) <= MAX_TEXT_BYTES:
        return text
    kept = encoded[: MAX_TEXT_BYTES - len(" [cut]")]
    return kept.decode(errors="ignore") + " [cut]"


def application_error(error: HostlerError) -> ApplicationError:
    """What Temporal stores of `error`: its stable type, its text, its details."""
    return ApplicationError(
        cut(str(error)), error.details, type=error.type, non_retryable=not error.retryable
    )


def _is_input(hint: type) -> bool:
    return (
        isinstance(hint, type)
        and issubclass(hint, BaseModel)
        and hint.__name__.endswith(_INPUT_SUFFIX)
    )


HOSTLER_DATA_CONVERTER = dataclasses.replace(
    DataConverter.default,
    payload_converter_class=HostlerPayloadConverter,
    failure_converter_class=HostlerFailureConverter,
)
