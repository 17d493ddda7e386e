"""What the documents say is there: settings, commands, paths of the API, links."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from fastapi.routing import APIRoute
from typer.core import TyperGroup

from api.routes import (
    authority,
    certificates,
    events,
    health,
    hosts,
    imports,
    maintenance,
    oobm,
    operations,
    passwords,
    placement,
    power,
    reinstallation,
    removal,
    secrets,
    settings,
    topology,
)
from cli.main import app
from tests import settings_table
from workers.settings import CLIENT_VARIABLES, PREFIX, Settings

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SETTINGS = ROOT / "docs" / "settings.md"

_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
# Where a shell takes a word for a command: at the start, after another one, after assignments.
_COMMAND = re.compile(r"(?:^|&& |\| |; |\$\()(?:[A-Z_]+=\S+ )*hostler(?= |$)(.*)")
_REQUEST = re.compile(r"(?:-X (?P<method>[A-Z]+) .*)?http://127\.0\.0\.1:8480(?P<path>/\S+)")
_NAMED_REQUEST = re.compile(r"^(GET|POST|PUT|PATCH|DELETE) (/\S+)$")

every_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


def code_of(document: Path) -> Iterator[str]:
    """Each line of indented code, its continuations joined, and each code span."""
    text = document.read_text(encoding="utf-8")
    assert not _FENCE.search(text), "code is indented here, not fenced"
    blocks = "\n".join(line for line in text.splitlines() if line.startswith("    "))
    for line in re.sub(r"\\\n\s*", "", blocks).splitlines():
        yield line.strip()
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    for span in _SPAN.findall(prose):
        yield " ".join(span.split())


def commands_in(document: Path) -> Iterator[list[str]]:
    """The words after `hostler`, wherever that is a command."""
    for code in code_of(document):
        for arguments in _COMMAND.findall(code):
            yield shlex.split(re.split(r" [|&;>]", arguments, maxsplit=1)[0], comments=True)


def requests_in(document: Path) -> Iterator[tuple[str, str]]:
    """Method and path of each request that is written out."""
    for code in code_of(document):
        if named := _NAMED_REQUEST.match(code):
            yield named[1], named[2]
        if (sent := _REQUEST.search(code)) and "curl" not in code:
            implied = "POST" if "--json" in code else "GET"
            yield sent["method"] or implied, sent["path"]


def check_command(words: list[str]) -> None:
    """Raises TyperException if there is no such command, argument or option."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="hostler")
    rest = [*words]
    # A group may do something by itself, with options.
    while isinstance(command, TyperGroup) and rest and not rest[0].startswith("-"):
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command, context = found, typer.Context(found, info_name=name, parent=context)
    # A command named alone, as in "see `hostler host add`", needs no arguments.
    if rest:
        command.parse_args(context, rest)


def anchors_of(document: Path) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    headings = _HEADING.findall(document.read_text(encoding="utf-8"))
    return {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def test_there_are_documents() -> None:
    assert {"README.md", "CONTRIBUTING.md", "runbook.md", "settings.md", "architecture.md"} <= {
        document.name for document in DOCUMENTS
    }


def test_every_setting_is_in_the_table_with_its_default_and_meaning() -> None:
    rows = re.findall(
        rf"^\| `({PREFIX}\w+)` \| (.*?) \| (.*) \|$", SETTINGS.read_text(), re.MULTILINE
    )
    documented = {
        name: (default.strip().strip("`"), meaning)
        for name, default, meaning in rows
        if name not in CLIENT_VARIABLES
    }
    assert documented == {
        f"{PREFIX}{name.upper()}": (
            "" if field.default is None else str(field.default),
            field.description,
        )
        for name, field in Settings.model_fields.items()
    }
    assert {name for name, _, _ in rows} >= CLIENT_VARIABLES


def test_the_operators_settings_are_in_their_table() -> None:
    text = SETTINGS.read_text(encoding="utf-8")
    assert text == settings_table.updated(text), f"run `{settings_table.COMMAND}`"


@every_document
def test_every_variable_that_is_named_exists(document: Path) -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | CLIENT_VARIABLES
    assert set(re.findall(rf"\b{PREFIX}[A-Z_]+\b", document.read_text())) <= known


@every_document
def test_every_link_leads_somewhere(document: Path) -> None:
    for link in _LINK.findall(document.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target), link


@every_document
def test_every_command_exists(document: Path) -> None:
    for words in commands_in(document):
        try:
            check_command(words)
        except typer.TyperException as error:
            pytest.fail(f"hostler {' '.join(words)}: {error}")


def test_the_readme_shows_every_way_of_a_maintenance() -> None:
    shown = {" ".join(words[:2]) for words in commands_in(ROOT / "README.md")}
    for name in ("enter", "leave", "status", "resolve", "list"):
        assert f"maintenance {name}" in shown
    assert {("POST", "/v1/hosts/kvm-1/maintenance"), ("DELETE", "/v1/hosts/kvm-1/maintenance")} < {
        *requests_in(ROOT / "README.md")
    }


@every_document
def test_every_path_of_the_api_exists(document: Path) -> None:
    routers = (
        *(events, health, hosts, imports, maintenance, operations, placement, removal, settings),
        *(authority, certificates, oobm, passwords, power, reinstallation, secrets, topology),
    )
    known = [
        *(route for routes in routers for route in routes.router.routes),
        *authority.public_router.routes,
    ]
    for method, path in requests_in(document):
        assert any(
            method in (route.methods or ())
            for route in known
            if isinstance(route, APIRoute) and route.path_regex.match(path)
        ), f"{method} {path}"


@pytest.mark.parametrize(
    "words",
    [
        ["maintenence", "list"],
        ["maintenance", "enter", "kvm-1", "--wach"],
        ["maintenance", "enter", "kvm-1", "kvm-2"],
        ["maintenance", "resolve", "kvm-1", "vm-3", "retire"],
    ],
)
def test_a_command_that_does_not_exist_is_noticed(words: list[str]) -> None:
    with pytest.raises(typer.TyperException):
        check_command(words)
