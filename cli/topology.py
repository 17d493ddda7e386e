"""`hostler zone|pod|cluster`: what hosts belong to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from cli import allocation, cluster_maintenance
from cli.arguments import JsonOption, NameArgument, check_name
from cli.client import connect
from cli.output import say, say_fields, say_json, say_table
from contracts.allocation import AllocationLevel
from contracts.hosts import Cluster, Pod, Zone
from contracts.states import AllocationState

AllocationOption = Annotated[AllocationState | None, typer.Option(help="Only those that are so.")]


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
    app.add_typer(_commands(_ZONE, "Zones: data centres.", create_zone, list_zones))
    app.add_typer(_commands(_POD, "Pods: racks or rows of a zone.", create_pod, list_pods))
    clusters = _commands(
        _CLUSTER, "Clusters: hosts between which VMs can migrate.", create_cluster, list_clusters
    )
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


def list_zones(allocation_state: AllocationOption = None, as_json: JsonOption = False) -> None:
    """All of them, or those in a state."""
    _list(_ZONE, as_json, allocation_state=allocation_state)


def list_pods(
    zone: Annotated[str | None, typer.Option(help="Only of this zone.")] = None,
    allocation_state: AllocationOption = None,
    as_json: JsonOption = False,
) -> None:
    """Those that match all that is given."""
    _list(_POD, as_json, zone=zone, allocation_state=allocation_state)


def list_clusters(
    zone: Annotated[str | None, typer.Option(help="Only of this zone.")] = None,
    pod: Annotated[str | None, typer.Option(help="Only of this pod.")] = None,
    allocation_state: AllocationOption = None,
    as_json: JsonOption = False,
) -> None:
    """Those that match all that is given."""
    _list(_CLUSTER, as_json, zone=zone, pod=pod, allocation_state=allocation_state)


def _list(level: _Level, as_json: bool, **filters: str | None) -> None:
    with connect() as api:
        items = api.all_items(level.path, **filters)
        if as_json:
            say_json(items)
            return
        rows = [api.read(level.model, item).model_dump() for item in items]
    say_table(
        [column.replace("_", " ").upper() for column in level.columns],
        [[row[column] for column in level.columns] for row in rows],
    )


def _create(level: _Level, body: Mapping[str, str]) -> None:
    with connect() as api:
        made = api.read(level.model, api.post(level.path, body=body))
    say(f"{level.noun} {made.name} is {made.allocation_state}.")


def _commands(
    level: _Level, summary: str, create: Callable[..., None], list_all: Callable[..., None]
) -> typer.Typer:
    commands = typer.Typer(name=level.noun, help=summary, no_args_is_help=True)
    commands.command("create")(create)

    commands.command("list", help=f"List the {level.path}.")(list_all)

    @commands.command("show", help=f"Show one {level.noun}.")
    def _show(name: NameArgument, as_json: JsonOption = False) -> None:
        with connect() as api:
            answer = api.get(level.path, name)
            if as_json:
                say_json(answer)
                return
            found = api.read(level.model, answer)
        say_fields((field.replace("_", " "), value) for field, value in found)

    @commands.command("rename", help=f"Give a {level.noun} another name.")
    def _rename(
        name: Annotated[
            str, typer.Argument(metavar="OLD", callback=check_name, help="Its present name.")
        ],
        new: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")],
    ) -> None:
        with connect() as api:
            renamed = api.read(level.model, api.patch(level.path, name, body={"name": new}))
        say(f"{level.noun} {name} is now {renamed.name}.")

    @commands.command("delete", help=f"Delete a {level.noun} that is empty.")
    def _delete(name: NameArgument) -> None:
        with connect() as api:
            api.delete(level.path, name)
        say(f"{level.noun} {name} is deleted.")

    allocation.register(commands, AllocationLevel(level.noun))
    return commands
