"""`hostler zone|pod|cluster`: what hosts belong to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from cli import cluster_maintenance
from cli.arguments import JsonOption, NameArgument
from cli.client import connect
from cli.output import say, say_fields, say_json, say_table
from contracts.hosts import Cluster, Pod, Zone
from contracts.states import AllocationState


@dataclass(frozen=True)
class _Level:
    """One level of the hierarchy: its noun, its path in the API, its model."""

    noun: str
    path: str
    model: type[Zone] | type[Pod] | type[Cluster]

    @property
    def columns(self) -> Sequence[str]:
        return tuple(self.model.model_fields)


_ZONE = _Level("zone", "zones", Zone)
_POD = _Level("pod", "pods", Pod)
_CLUSTER = _Level("cluster", "clusters", Cluster)


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.add_typer(_commands(_ZONE, "Zones: data centres.", create_zone))
    app.add_typer(_commands(_POD, "Pods: racks or rows of a zone.", create_pod))
    clusters = _commands(_CLUSTER, "Clusters: hosts between which VMs can migrate.", create_cluster)
    cluster_maintenance.register(clusters)
    app.add_typer(clusters)


def create_zone(name: Annotated[str, typer.Argument(help="Its name.")]) -> None:
    """Create a zone, disabled."""
    _create(_ZONE, {"name": name})


def create_pod(
    name: Annotated[str, typer.Argument(help="Its name.")],
    zone: Annotated[str, typer.Option(help="The zone that it is in.")],
) -> None:
    """Create a pod, disabled."""
    _create(_POD, {"name": name, "zone": zone})


def create_cluster(
    name: Annotated[str, typer.Argument(help="Its name.")],
    pod: Annotated[str, typer.Option(help="The pod that it is in.")],
) -> None:
    """Create a cluster, disabled."""
    _create(_CLUSTER, {"name": name, "pod": pod})


def _create(level: _Level, body: Mapping[str, str]) -> None:
    with connect() as api:
        made = api.read(level.model, api.post(level.path, body=body))
    say(f"{level.noun} {made.name} is {made.allocation_state}.")


def _commands(level: _Level, summary: str, create: Callable[..., None]) -> typer.Typer:
    commands = typer.Typer(name=level.noun, help=summary, no_args_is_help=True)
    commands.command("create")(create)

    @commands.command("list", help=f"List the {level.path}.")
    def _list(as_json: JsonOption = False) -> None:
        with connect() as api:
            items = api.items(level.path)
            if as_json:
                say_json(items)
                return
            rows = [api.read(level.model, item).model_dump() for item in items]
        say_table(
            [column.replace("_", " ").upper() for column in level.columns],
            [[row[column] for column in level.columns] for row in rows],
        )

    @commands.command("show", help=f"Show one {level.noun}.")
    def _show(name: NameArgument, as_json: JsonOption = False) -> None:
        with connect() as api:
            answer = api.get(level.path, name)
            if as_json:
                say_json(answer)
                return
            found = api.read(level.model, answer)
        say_fields((field.replace("_", " "), value) for field, value in found)

    @commands.command("enable", help=f"Let VMs come to the {level.noun}'s hosts.")
    def _enable(name: NameArgument) -> None:
        _allocate(level, name, AllocationState.ENABLED)

    @commands.command("disable", help=f"Keep VMs from coming to the {level.noun}'s hosts.")
    def _disable(name: NameArgument) -> None:
        _allocate(level, name, AllocationState.DISABLED)

    return commands


def _allocate(level: _Level, name: str, state: AllocationState) -> None:
    with connect() as api:
        answer = api.patch(level.path, name, body={"allocation_state": state})
        changed = api.read(level.model, answer)
    say(f"{level.noun} {changed.name} is {changed.allocation_state}.")
