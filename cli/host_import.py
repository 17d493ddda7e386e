"""`hostler host import`: many hosts from one file, one view of how it goes, one report."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from cli.arguments import check_name
from cli.client import Api, connect
from cli.known_hosts import KnownHosts
from cli.output import console, one_line, say, say_table
from cli.waiting import COMPLETED, RUNNING, find_operation, interruptible, patiently, pause, why
from contracts.errors import Conflict, Failed, InvalidInput
from contracts.host_import import (
    ENDED_STATES,
    HostImportResult,
    HostImportView,
    ImportState,
    with_defaults,
)
from contracts.operations import OperationKind

_KIND = OperationKind.IMPORT
_FILES = {"password_file": "password", "private_key_file": "private_key"}
_NO_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_NAME = 63
# Another import than the real one of the same file, which may run beside it.
_DRY_RUN = "-dry-run"
# Rows that a terminal keeps for the bar of the whole and the prompt.
_ROWS_KEPT = 6
# Between two lines about the whole in a pipe.
_PERCENT_STEP = 5


def import_hosts(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="YAML: `hosts`, and `defaults` for what they have in common."
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Of the import. [default: the file's, without its suffix]")
    ] = None,
    parallel: Annotated[int, typer.Option(metavar="N", help="Hosts at a time.")] = 20,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only look at each host, tell all findings, and change nothing. Its own name "
            "ends with -dry-run, if none is given.",
        ),
    ] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return as soon as the import has started.")
    ] = False,
) -> None:
    """Add the hosts that a file lists, and report how it went for each.

    Given again, it goes on: it shows the import if it runs, and else adds what is left.
    """
    chosen = check_name(_name_of(file, _DRY_RUN if dry_run else "") if name is None else name)
    body: dict[str, Any] = {"name": chosen, "parallel": parallel, **read_file(file)}
    if dry_run:
        body["hosts"] = [{**host, "dry_run": True} for host in body["hosts"]]
    look = f"hostler operation show import {chosen}"
    with connect() as api:
        if _start(api, chosen, body):
            say(f"The import {chosen} of {len(body['hosts'])} hosts has started.")
        else:
            say(f"The import {chosen} runs already; what the file says now plays no part in it.")
        if no_wait:
            say(f"See how it goes: {look}")
            return
        with interruptible(f"The import {chosen} goes on: {look}"):
            result = _watch(api, chosen)
    _report(result, dry_run=dry_run)


def read_file(path: Path) -> dict[str, Any]:
    """`defaults` and `hosts` as the API takes them: files are read, known keys looked up.

    Raises InvalidInput, which never quotes a secret.
    """
    document = _parse(path)
    unknown = document.keys() - {"defaults", "hosts", "known_hosts"}
    defaults, hosts = document.get("defaults") or {}, document.get("hosts")
    if unknown:
        raise InvalidInput(f"{path}: there is no such field: {', '.join(map(str, unknown))}.")
    if not isinstance(defaults, dict):
        raise InvalidInput(f"{path}: defaults must be fields with values.")
    if not isinstance(hosts, list) or not all(isinstance(host, dict) for host in hosts):
        raise InvalidInput(f"{path}: hosts must be a list of hosts, each fields with values.")
    reader = _Reader(path)
    known = reader.known_hosts(document.get("known_hosts"))
    filled = reader.with_credential(defaults, "defaults")
    return {
        "defaults": filled,
        "hosts": [
            _with_known_key(reader.with_credential(host, f"hosts[{position}]"), filled, known)
            for position, host in enumerate(hosts)
        ],
    }


class _Loader(yaml.SafeLoader):
    """Plain data; what looks like a date stays the text that it is."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Reader:
    """Reads the files that a list of hosts names, each once; relative to the list's own place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: dict[Path, str] = {}

    def with_credential(self, fields: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The fields with the credential in the place of its file's name. Raises InvalidInput."""
        for secret in _FILES.values():
            if secret in fields:
                raise InvalidInput(
                    f"{self._path}: {where}.{secret}: a list of hosts is no place for it.",
                    remedy=f"Put it into a file of its own, and name that as {secret}_file.",
                )
        filled = {field: value for field, value in fields.items() if field not in _FILES}
        for field, secret in _FILES.items():
            if field in fields:
                text = self._text(fields[field], f"{where}.{field}")
                # A line break at the end of a password is the editor's.
                filled[secret] = text.rstrip("\r\n") if field == "password_file" else text
        return filled

    def known_hosts(self, name: object) -> KnownHosts | None:
        """Those of a file. Raises InvalidInput."""
        return KnownHosts(self._text(name, "known_hosts")) if name is not None else None

    def _text(self, name: object, where: str) -> str:
        if not isinstance(name, str):
            raise InvalidInput(f"{self._path}: {where} must be the name of a file.")
        path = self._path.parent / Path(name).expanduser()
        if path not in self._read:
            self._read[path] = _text_of(path, f"{self._path}: {where}: {name}")
        return self._read[path]


def _parse(path: Path) -> dict[Any, Any]:
    try:
        document = yaml.load(_text_of(path, str(path)), _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" line {mark.line + 1}" if mark is not None else ""
        raise InvalidInput(f"{path}{line} is no YAML: {error.problem}.") from None
    except yaml.YAMLError as error:
        raise InvalidInput(f"{path} is no YAML: {one_line(str(error))}.") from None
    if not isinstance(document, dict):
        raise InvalidInput(
            f"{path} lists no hosts.", remedy="See the README for what such a file looks like."
        )
    return document


def _text_of(path: Path, what: str) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"{what} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        # The error itself would show what is in the file.
        raise InvalidInput(f"{what} is no text in UTF-8.") from None
    if not text.strip():
        raise InvalidInput(f"{what} is empty.")
    return text


def _with_known_key(
    host: dict[str, Any], defaults: Mapping[str, Any], known: KnownHosts | None
) -> dict[str, Any]:
    """With the fingerprint that the known_hosts file has for it; its own comes first."""
    if known is None or "host_key_sha256" in host:
        return host
    port = with_defaults(defaults, host).get("ssh_port", 22)
    names = [str(host[field]) for field in ("address", "name") if field in host]
    fingerprint = known.fingerprint(names, port) if isinstance(port, int) else None
    return host if fingerprint is None else {**host, "host_key_sha256": fingerprint}


def _name_of(file: Path, suffix: str) -> str:
    most = _MAX_NAME - len(suffix)
    return (_NO_NAME.sub("-", file.stem).strip("._-")[:most].rstrip("._-") or "hosts") + suffix


def _start(api: Api, name: str, body: Mapping[str, object]) -> bool:
    """False if an import of that name runs already."""
    try:
        api.post("imports", body=body)
    except Conflict as error:
        if error.details.get("operation") == f"/v1/operations/{_KIND}/{name}":
            return False
        raise
    return True


# --- while it goes on -------------------------------------------------------------------------


class Display(Protocol):
    """Where an import is shown while it goes on."""

    def show(self, view: HostImportView) -> None:
        """This is how it stands now."""

    def say(self, text: str) -> None:
        """One line that stays."""


@contextmanager
def _open_display() -> Iterator[Display]:
    """Bars if stdout is a terminal, lines if not."""
    out = console()
    if not out.is_terminal:
        yield _Lines(out)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=out) as progress:
        yield _Bars(progress)


class _Lines:
    """A line whenever so many per cent more are done."""

    def __init__(self, out: Console) -> None:
        self._console = out
        self._percent = -_PERCENT_STEP

    def show(self, view: HostImportView) -> None:
        """Say what is new."""
        percent = 100 * _done(view) // view.total
        if percent >= self._percent + _PERCENT_STEP:
            self._percent = percent - percent % _PERCENT_STEP
            self.say(f"{view.name}: {_note(view)}")

    def say(self, text: str) -> None:
        """Print it; whoever reads the pipe has it at once."""
        self._console.print(one_line(text), soft_wrap=True)
        self._console.file.flush()


class _Bars:
    """A bar for the whole, and a row for each host that is being added."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._whole: TaskID | None = None
        self._rows: dict[str, TaskID] = {}

    def show(self, view: HostImportView) -> None:
        """Move the bar, and change the rows."""
        if self._whole is None:
            self._whole = self._progress.add_task(view.name, total=view.total, note="")
        self._progress.update(self._whole, completed=_done(view), note=_note(view))
        shown = view.additions[: max(self._progress.console.height - _ROWS_KEPT, 0)]
        for host in self._rows.keys() - {addition.host for addition in shown}:
            self._progress.remove_task(self._rows.pop(host))
        for addition in shown:
            if addition.host not in self._rows:
                self._rows[addition.host] = self._progress.add_task(
                    one_line(addition.host), total=None, note=""
                )
            self._progress.update(self._rows[addition.host], note=addition.phase or "")

    def say(self, text: str) -> None:
        """Print it above the bars."""
        self._progress.console.print(one_line(text), soft_wrap=True)


def _watch(api: Api, name: str) -> HostImportResult:
    """Until it has ended. Raises Failed, with the reason, if it has no report."""
    told: set[str] = set()
    with _open_display() as display:
        while True:
            view = patiently(lambda: _find_view(api, name), display.say)
            if view is None:
                ended = patiently(lambda: find_operation(api, _KIND, name), display.say)
                if ended is None or ended.status != RUNNING:
                    break
            else:
                display.show(view)
                for text in _news(view):
                    if text not in told:
                        told.add(text)
                        display.say(text)
            pause()
    if ended is None or ended.status != COMPLETED:
        raise Failed(why(ended) if ended is not None else f"There is no import {name}.")
    return api.read(HostImportResult, ended.details)


def _find_view(api: Api, name: str) -> HostImportView | None:
    """The import while it runs, else None."""
    return api.find(HostImportView, "imports", name)


def _news(view: HostImportView) -> Iterator[str]:
    """What is to be said once: what has failed, and whose key waits to be accepted."""
    for host in view.failed:
        yield f"{host.host}: {host.state}: {host.error}"
    for addition in view.additions:
        if addition.command is not None:
            yield (
                f"{addition.host} shows the key {addition.host_key_sha256}. Compare it with the "
                f"host's own, then: {addition.command}"
            )


def _done(view: HostImportView) -> int:
    return sum(view.counts.get(state, 0) for state in ENDED_STATES)


def _note(view: HostImportView) -> str:
    counts = view.counts
    stands = [f"{counts[state]} {state}" for state in ImportState if counts.get(state)]
    return f"{_done(view)} of {view.total} hosts: {', '.join(stands)}"


def _report(result: HostImportResult, *, dry_run: bool) -> None:
    """Each host, in the file's order, and what dry runs have found. Raises Failed if one was not
    added, or can't be."""
    say_table(
        ["HOST", "RESULT", "REASON"],
        [[host.host, host.state, host.error] for host in result.hosts],
    )
    for host in result.hosts:
        for finding in host.findings:
            say(f"{host.host}: {finding}")
    counts = Counter(host.state for host in result.hosts)
    total = len(result.hosts)
    say(
        f"{total} hosts: "
        + ", ".join(f"{counts[state]} {state}" for state in ImportState if counts[state])
        + "."
    )
    failed = counts[ImportState.FAILED]
    if failed and dry_run:
        raise Failed(f"{failed} of {total} hosts can't be added like this.")
    if failed:
        raise Failed(
            f"{failed} of {total} hosts were not added.",
            remedy="Remove the causes, and import the same file again: it adds what is left.",
        )
