"""A client of Hostler's HTTP API.

Where it is: HOSTLER_API_URL, else where `hostler up` of this home serves it. The token:
HOSTLER_TOKEN, else the home's admin token; never an argument, which every user of the machine
could read.
"""

import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from contracts.errors import (
    Conflict,
    Failed,
    HostlerError,
    InvalidInput,
    NotFound,
    Refused,
    Unavailable,
)
from workers.settings import load_settings

M = TypeVar("M", bound=BaseModel)

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
# The most that the API gives at a time.
_PAGE = 1000
_CONNECT_WITHIN_S = 5.0
# A question to a workflow may take the API ten seconds.
_ANSWER_WITHIN_S = 30.0

_ERRORS: Mapping[int, type[HostlerError]] = {
    401: Refused,
    **{
        error.http_status: error
        for error in (InvalidInput, NotFound, Conflict, Refused, Unavailable)
    },
}


class NoToken(Refused):
    """There is no usable token to show to the API."""


class NotTheApi(Failed):
    """What answered is not Hostler's API, or one of another version."""


class _Problem(BaseModel):
    """What is needed of RFC 9457's problem details."""

    detail: str
    details: dict[str, Any] = {}


class Api:
    """Requests under /v1.

    Paths are given in parts, which are quoted. Every method raises HostlerError: what the API
    answered, or Unavailable when nothing did.
    """

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._url = str(http.base_url).rstrip("/")

    def get(self, *path: str, **query: object) -> Any:
        """The answer; a query parameter that is None is left out."""
        return self._request("GET", path, query=query)

    def text(self, *path: str, **query: object) -> str:
        """An answer that is no JSON but text."""
        return self._send("GET", path, query=query).text

    def items(self, *path: str, **query: object) -> list[Any]:
        """The answer's `items`."""
        return self._list(*path, **query)[0]

    def all_items(self, *path: str, **query: object) -> list[Any]:
        """The `items` of all pages of a list by name."""
        items: list[Any] = []
        after: str | None = None
        while True:
            page, after = self._list(*path, **query, limit=_PAGE, after=after)
            items += page
            if after is None:
                return items

    def post(
        self,
        *path: str,
        body: Mapping[str, object],
        within_s: float = _ANSWER_WITHIN_S,
        **query: object,
    ) -> Any:
        """The answer, None if it is empty; a query parameter that is None is left out."""
        return self._request("POST", path, query=query, body=body, within_s=within_s)

    def put(self, *path: str, body: Mapping[str, object], **query: object) -> Any:
        """The answer."""
        return self._request("PUT", path, query=query, body=body)

    def patch(self, *path: str, body: Mapping[str, object]) -> Any:
        """The answer."""
        return self._request("PATCH", path, body=body)

    def delete(self, *path: str, **query: object) -> Any:
        """The answer."""
        return self._request("DELETE", path, query=query)

    def read(self, model: type[M], answer: object) -> M:
        """The answer as a model."""
        try:
            return model.model_validate(answer)
        except ValidationError as error:
            raise self._not_understood(f"a {model.__name__}") from error

    def find(self, model: type[M], *path: str) -> M | None:
        """The answer as a model; None if there is nothing at that path."""
        try:
            answer = self.get(*path)
        except NotFound:
            return None
        return self.read(model, answer)

    def _list(self, *path: str, **query: object) -> tuple[list[Any], str | None]:
        """The answer's `items`, and its `next`."""
        answer = self.get(*path, **query)
        if not isinstance(answer, dict) or not isinstance(answer.get("items"), list):
            raise self._not_understood("a list")
        return answer["items"], answer.get("next")

    def _request(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        query: Mapping[str, object] | None = None,
        body: Mapping[str, object] | None = None,
        within_s: float = _ANSWER_WITHIN_S,
    ) -> Any:
        response = self._send(method, path, query=query, body=body, within_s=within_s)
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError as error:
            raise self._not_understood("JSON") from error

    def _send(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        query: Mapping[str, object] | None = None,
        body: Mapping[str, object] | None = None,
        within_s: float = _ANSWER_WITHIN_S,
    ) -> httpx.Response:
        try:
            response = self._http.request(
                method,
                "/v1/" + "/".join(quote(part, safe="") for part in path),
                params={k: str(v) for k, v in (query or {}).items() if v is not None},
                json=body,
                timeout=httpx.Timeout(within_s, connect=_CONNECT_WITHIN_S),
            )
        except httpx.TransportError as error:
            raise Unavailable(
                f"The API at {self._url} does not answer ({error or type(error).__name__}).",
                remedy="Is Hostler running? Start it with `hostler up`, or set HOSTLER_API_URL."
                if self._url.startswith("http:")
                else "Is it running? HOSTLER_API_CA_FILE says whom to trust there; if it asks for "
                "a certificate: HOSTLER_API_CLIENT_CERT_FILE and HOSTLER_API_CLIENT_KEY_FILE.",
            ) from error
        if not response.is_success:
            raise self._problem(response)
        return response

    def _problem(self, response: httpx.Response) -> HostlerError:
        try:
            problem = _Problem.model_validate_json(response.content)
        except ValidationError:
            return NotTheApi(
                f"{self._url} answered {response.status_code} {response.reason_phrase}, which is "
                "no answer of Hostler's API.",
                remedy="Check HOSTLER_API_URL.",
            )
        error = _ERRORS.get(response.status_code, Failed)
        return error(problem.detail, details=problem.details)

    def _not_understood(self, expected: str) -> NotTheApi:
        return NotTheApi(
            f"{self._url} answered something that is not {expected} as this `hostler` knows it.",
            remedy="Check HOSTLER_API_URL, and use the `hostler` of the API's version.",
        )


@contextmanager
def connect() -> Iterator[Api]:
    """The API that the environment names. Raises InvalidInput, NoToken."""
    url, token = _url(), _token()
    try:
        http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"},
            # The way to this machine itself needs no proxy, which would read the token.
            trust_env=url.host not in _LOOPBACK,
            # To read the CAs that are trusted takes a tenth of a command's time.
            verify=_tls() if url.scheme == "https" else False,
        )
    except ImportError as error:
        raise InvalidInput(
            "ALL_PROXY names a SOCKS proxy, which `hostler` can't use.",
            remedy="Unset it for this command, or name an HTTP proxy.",
        ) from error
    with http:
        yield Api(http)


def _url() -> httpx.URL:
    given = os.environ.get("HOSTLER_API_URL")
    if not given:
        return httpx.URL(load_settings().api_url)
    try:
        url = httpx.URL(given)
    except httpx.InvalidURL:
        url = httpx.URL()
    # A password in the URL would go out in the token's place, and into messages.
    if url.scheme not in ("http", "https") or not url.host or url.userinfo:
        raise InvalidInput(
            "HOSTLER_API_URL is not a URL of the form http://HOST:PORT or https://HOST:PORT.",
            remedy="Correct or unset it.",
        )
    return url


def _tls() -> ssl.SSLContext:
    """Raises InvalidInput, which names the variable."""
    authorities, certificate, key = (
        os.environ.get(name) or None
        for name in (
            "HOSTLER_API_CA_FILE",
            "HOSTLER_API_CLIENT_CERT_FILE",
            "HOSTLER_API_CLIENT_KEY_FILE",
        )
    )
    try:
        context = ssl.create_default_context(cafile=authorities)
    except OSError as error:
        raise InvalidInput(
            f"HOSTLER_API_CA_FILE can't be used ({authorities}): {error}.",
            remedy="Name a file with CA certificates in PEM.",
        ) from error
    if (certificate is None) != (key is None):
        raise InvalidInput(
            "HOSTLER_API_CLIENT_CERT_FILE and HOSTLER_API_CLIENT_KEY_FILE go together."
        )
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key)
        except OSError as error:
            raise InvalidInput(
                f"HOSTLER_API_CLIENT_CERT_FILE and HOSTLER_API_CLIENT_KEY_FILE can't be used "
                f"({certificate}, {key}): {error}.",
                remedy="Name a certificate and its key, in PEM.",
            ) from error
    return context


def _token() -> str:
    given, source = os.environ.get("HOSTLER_TOKEN", "").strip(), "HOSTLER_TOKEN"
    if not given:
        path = load_settings().admin_token_path
        source = str(path)
        try:
            given = path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError as error:
            raise NoToken(
                f"There is no token for the API: HOSTLER_TOKEN is not set, and {path} can't be "
                f"read ({error.strerror}).",
                remedy="Set HOSTLER_TOKEN, or HOSTLER_HOME to the home of `hostler up`.",
            ) from error
    if not (given.isascii() and given.isprintable() and given and " " not in given):
        raise NoToken(
            f"What is in {source} is not a token.",
            remedy="Make one with `hostler token create NAME`.",
        )
    return given
