"""An HTTP server that plays Hostler's API, and the real program against it."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner, Result

from cli import waiting
from cli.main import app

ROOT = Path(__file__).parents[2]
# Whoever started the tests in the background has left SIGINT ignored, which is inherited.
PROGRAM = ("env", "--default-signal=INT", sys.executable, "-m", "cli.main")
TOKEN = "canary-token-6f1c"


@dataclass(frozen=True)
class Answer:
    """One response."""

    status: int
    body: object = None
    content_type: str = "application/json"


def ok(body: object) -> Answer:
    return Answer(200, body)


def items(*models: object) -> Answer:
    return Answer(200, {"items": list(models)})


def problem(status: int, error_type: str, detail: str, **more: object) -> Answer:
    return Answer(
        status,
        {
            "type": f"urn:hostler:error:{error_type}",
            "title": error_type,
            "status": status,
            "detail": detail,
            "remedy": None,
            "details": {},
            **more,
        },
        "application/problem+json",
    )


NOT_FOUND = problem(404, "NotFound", "There is no such thing.")
UNAVAILABLE = problem(503, "Unavailable", "Temporal does not answer.")


@dataclass(frozen=True)
class Request:
    """What the program asked."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


@dataclass
class FakeApi:
    """Answers each route from its list, in order; the last one stays."""

    routes: dict[str, list[Answer]] = field(default_factory=lambda: defaultdict(list))
    requests: list[Request] = field(default_factory=list)
    # Set when a route has been asked, for tests that act in the middle of a command.
    asked: dict[str, threading.Event] = field(default_factory=lambda: defaultdict(threading.Event))
    url: str = ""

    def on(self, route: str, *answers: Answer) -> None:
        """`route` is like `GET /v1/zones`."""
        self.routes[route] = list(answers)

    def bodies(self, route: str) -> list[Any]:
        return [one.body for one in self.requests if f"{one.method} {one.path}" == route]

    def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return problem(401, "Refused", "The token is not known.")
        route = f"{request.method} {request.path}"
        answers = self.routes.get(route)
        self.asked[route].set()
        if not answers:
            return problem(404, "NotFound", f"There is no {route}.")
        return answers.pop(0) if len(answers) > 1 else answers[0]


class _Handler(BaseHTTPRequestHandler):
    api: FakeApi

    def serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        request = Request(
            self.command, self.path, dict(self.headers), json.loads(raw) if raw else None
        )
        answer = self.api.answer(request)
        body = b"" if answer.status == 204 else _encode(answer.body)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """The tests' output is not the place."""


def _encode(body: object) -> bytes:
    if isinstance(body, str):
        return body.encode()

    def plain(value: object) -> object:
        if isinstance(value, BaseModel):
            return value.model_dump(mode="json")
        raise TypeError(type(value))

    return json.dumps(body, default=plain).encode()


_started: list[subprocess.Popen[Any]] = []


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No setting of the machine, no home but an empty one, no waiting; no process is left."""
    for name in os.environ:
        if name.startswith("HOSTLER_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOSTLER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(waiting, "_POLL_S", 0.01)
    yield
    while _started:
        left = _started.pop()
        left.kill()
        left.wait()


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    """The API, named by the environment."""
    played = FakeApi()
    serve = {f"do_{method}": _Handler.serve for method in ("GET", "POST", "PUT", "PATCH", "DELETE")}
    handler = type("Handler", (_Handler,), {"api": played, **serve})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        played.url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("HOSTLER_API_URL", played.url)
        monkeypatch.setenv("HOSTLER_TOKEN", TOKEN)
        yield played
        server.shutdown()
        thread.join()


def hostler(*arguments: str, stdin: str | None = None) -> Result:
    """Run the command in this process, its stdout a pipe."""
    return CliRunner().invoke(app, list(arguments), input=stdin)


def process(*arguments: str) -> subprocess.Popen[str]:
    """Run the command as a process of its own."""
    started = subprocess.Popen(
        [*PROGRAM, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _started.append(started)
    return started


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own, to its end."""
    started = process(*arguments)
    out, err = started.communicate()
    return subprocess.CompletedProcess(started.args, started.returncode, out, err)


class Terminal:
    """The command on a terminal of its own: what it shows, and what is typed."""

    def __init__(self, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self.shown = ""
        self._interrupted = False
        self._process = subprocess.Popen(
            [*PROGRAM, *arguments],
            cwd=ROOT,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
            start_new_session=True,
        )
        _started.append(self._process)
        os.close(slave)

    def until(self, text: str) -> None:
        """Read until `text` is shown."""
        while text not in self.shown:
            assert self._read(), f"{text!r} never came in:\n{self.shown}"

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """What the terminal does at Ctrl-C."""
        os.kill(self._process.pid, signal.SIGINT)
        self._interrupted = True

    def end(self) -> int:
        """Read to the end; the exit code."""
        while self._heard() and self._read():
            pass
        os.close(self._master)
        return self._process.wait()

    def _heard(self) -> bool:
        """Wait for something to read. Python misses a signal that comes just before it begins to
        wait for a key, until the next one: people press Ctrl-C again then."""
        patience = 2.0 if self._interrupted else None
        while not select.select([self._master], [], [], patience)[0]:
            os.kill(self._process.pid, signal.SIGINT)
        return True

    def _read(self) -> bool:
        try:
            chunk = os.read(self._master, 4096)
        except OSError:  # Linux's way to say that nobody writes any more
            return False
        self.shown += chunk.decode(errors="replace")
        return bool(chunk)
