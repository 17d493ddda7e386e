"""Every error as RFC 9457 problem details: the one place where they get their form."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import Field
from starlette.exceptions import HTTPException

from contracts.base import Contract
from contracts.errors import HostlerError, InvalidInput, NotFound, Refused, Unavailable
from contracts.validation import invalid_input

MEDIA_TYPE = "application/problem+json"

_TYPE = "urn:hostler:error:"
_RETRY_AFTER_S = 5
_MODEL_SUFFIXES = ("Request", "Input")
# Where in the request a field was; in its body, for nearly all.
_PLACES = ("body", "path", "query")


class Unauthenticated(Refused):
    """The token is missing or wrong."""

    http_status = 401


class FieldProblem(Contract):
    """What is wrong with one field of the request."""

    field: str
    message: str


class Problem(Contract):
    """Problem details.

    Attributes:
        detail: what is wrong and what to do about it.
        remedy: what to do about it alone, or null.
        errors: the fields that are not valid.
        details: facts for programs.
        operation: the running operation that is in the way.
    """

    type: str = Field(examples=[f"{_TYPE}NotFound"])
    title: str
    status: int
    detail: str
    remedy: str | None
    details: dict[str, Any]
    errors: tuple[FieldProblem, ...] = ()
    operation: str | None = None


def install(app: FastAPI) -> None:
    """Let `app` answer every error with a problem."""
    app.add_exception_handler(HostlerError, _on_hostler_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_unexpected_error)


def problem_response(error: HostlerError) -> Response:
    """The answer that tells `error`."""
    details = dict(error.details)
    optional: dict[str, Any] = {}
    if "fields" in details:
        optional["errors"] = details.pop("fields")
    if "operation" in details:
        optional["operation"] = details["operation"]
    headers = {}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(_RETRY_AFTER_S)
    problem = Problem(
        type=_TYPE + error.type,
        title=error.type,
        status=error.http_status,
        detail=str(error),
        remedy=error.remedy,
        details=details,
        **optional,
    )
    return _respond(problem, headers)


def document_problems(document: dict[str, Any]) -> None:
    """Say in an OpenAPI document which problems each path may answer."""
    schemas = document["components"]["schemas"]
    for replaced in ("HTTPValidationError", "ValidationError"):
        schemas.pop(replaced, None)
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= schema.pop("$defs")
    schemas["Problem"] = schema
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            operation["responses"].pop("422", None)
            operation["responses"] |= {
                str(int(status)): document_problem(status) for status in _expected(path, method)
            }


def document_problem(status: HTTPStatus) -> dict[str, Any]:
    """How an OpenAPI document says that `status` comes with a problem."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": status.phrase, "content": {MEDIA_TYPE: {"schema": schema}}}


def _expected(path: str, method: str) -> list[HTTPStatus]:
    expected = [HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.INTERNAL_SERVER_ERROR]
    if path.startswith("/v1/"):
        expected += [HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY]
    if "{" in path or method == "post":
        expected.append(HTTPStatus.NOT_FOUND)
    if method in ("post", "put", "delete"):
        expected.append(HTTPStatus.CONFLICT)
    return sorted(expected)


async def _on_hostler_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HostlerError):
        raise error
    return problem_response(error)


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    problems = [_located(request, problem) for problem in error.errors()]
    return problem_response(invalid_input(_subject(request), problems))


async def _on_http_error(request: Request, error: Exception) -> Response:
    """What the framework itself refuses."""
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == HTTPStatus.NOT_FOUND:
        return problem_response(_no_such_path(request.url.path))
    if error.status_code == HTTPStatus.BAD_REQUEST:
        unreadable = {"loc": (), "type": "json_invalid", "msg": "must be valid JSON in UTF-8"}
        return problem_response(invalid_input(_subject(request), [unreadable]))
    status = HTTPStatus(error.status_code)
    message = f"{request.method} {request.url.path}: {status.description or status.phrase}."
    return _respond(_bare_problem(status, message), error.headers)


async def _on_unexpected_error(_request: Request, _error: Exception) -> Response:
    """Nothing of our insides; the framework raises it again, and the server logs it."""
    return _respond(
        _bare_problem(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "Hostler failed in a way that it should not. Its log tells more.",
        )
    )


def _no_such_path(path: str) -> HostlerError:
    if "//" in path:
        return InvalidInput(f"A name in the path {path} is empty.", remedy="Fill it in.")
    return NotFound(f"There is nothing at {path}.", remedy="See /openapi.json for what there is.")


def _bare_problem(status: HTTPStatus, message: str) -> Problem:
    title = status.phrase.title().replace(" ", "")
    return Problem(
        type=_TYPE + title, title=title, status=status, detail=message, remedy=None, details={}
    )


def _respond(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        problem.model_dump_json(exclude_unset=True),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers=headers,
    )


def _subject(request: Request) -> str:
    """What the request's body is called where else it may come in; else the request itself."""
    route = request.scope.get("route")
    if isinstance(route, APIRoute) and route.body_field is not None:
        name: str = getattr(route.body_field.field_info.annotation, "__name__", "")
        for suffix in _MODEL_SUFFIXES:
            name = name.removesuffix(suffix)
        return name
    return f"{request.method} {request.url.path}"


def _located(request: Request, problem: Mapping[str, Any]) -> dict[str, Any]:
    """The problem in the words that the same input gets as JSON of a workflow."""
    place, *loc = problem["loc"]
    located = {**problem, "loc": loc if place in _PLACES else [place, *loc]}
    if problem["type"] == "json_invalid":
        reason, position = problem["ctx"]["error"], loc[0] if loc else 0
        located |= {"loc": (), "msg": f"invalid JSON: {reason} at character {position}"}
    if problem["type"] == "model_attributes_type":
        located["msg"] = (
            "must be sent with the header Content-Type: application/json"
            if isinstance(problem.get("input"), bytes)
            else "Input should be an object"
        )
    return located
