"""`hostler vm policy` and `hostler affinity`: where evacuations may send VMs."""

from typing import Annotated

import typer

from cli.arguments import ClusterArgument, JsonOption, check_name, check_vm_name
from cli.client import Api, connect
from cli.output import say, say_fields, say_json, say_table
from contracts.evacuation import AffinityGroup, AffinityKind, VmPolicy

VmArgument = Annotated[
    str, typer.Argument(metavar="VM", callback=check_vm_name, help="The VM's name.")
]
GroupArgument = Annotated[
    str, typer.Argument(metavar="GROUP", callback=check_name, help="The group's name.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    policies = typer.Typer(
        name="policy",
        help="What is decided about single VMs: evacuations move one without a policy to any host "
        "of its cluster that can run it.",
        no_args_is_help=True,
    )
    policies.command("list")(list_policies)
    policies.command("show")(show_policy)
    policies.command("set")(set_policy)
    policies.command("clear")(clear_policy)
    vms = typer.Typer(name="vm", help="VMs.", no_args_is_help=True)
    vms.add_typer(policies)
    app.add_typer(vms)

    groups = typer.Typer(
        name="affinity",
        help="Groups of VMs that evacuations keep together on one host, or apart.",
        no_args_is_help=True,
    )
    groups.command("list")(list_groups)
    groups.command("set")(set_group)
    groups.command("delete")(delete_group)
    app.add_typer(groups)


def list_policies(cluster: ClusterArgument, as_json: JsonOption = False) -> None:
    """List the VMs of a cluster that have a policy."""
    with connect() as api:
        items = api.items("clusters", cluster, "vms")
        if as_json:
            say_json(items)
            return
        policies = [api.read(VmPolicy, item) for item in items]
    say_table(
        ["VM", "PINNED", "TAGS", "REASON"],
        [[one.vm, "yes" if one.pinned else None, one.tags, one.reason] for one in policies],
    )


def show_policy(cluster: ClusterArgument, vm: VmArgument, as_json: JsonOption = False) -> None:
    """Show the policy of one VM."""
    with connect() as api:
        answer = api.get("clusters", cluster, "vms", vm, "policy")
        if as_json:
            say_json(answer)
            return
        policy = api.read(VmPolicy, answer)
    say_fields(
        (
            ("vm", policy.vm),
            ("pinned", "yes" if policy.pinned else "no"),
            ("tags", policy.tags or None),
            ("reason", policy.reason or None),
        )
    )


def set_policy(
    cluster: ClusterArgument,
    vm: VmArgument,
    pinned: Annotated[
        bool | None,
        typer.Option(
            "--pinned/--no-pinned",
            help="Keep it where it is: it blocks every evacuation of its host.",
        ),
    ] = None,
    reason: Annotated[
        str | None, typer.Option(help="Why, for whoever finds it in the way.")
    ] = None,
    tags: Annotated[
        list[str] | None,
        typer.Option(
            "--tag",
            metavar="TAG",
            help="Move it only to hosts that have this tag; repeat it for more, replacing those "
            "it has.",
        ),
    ] = None,
    no_tags: Annotated[
        bool, typer.Option("--no-tags", help="Move it to hosts with any tags or none.")
    ] = False,
) -> None:
    """Decide where evacuations may move a VM. What is not given stays as it is."""
    if tags and no_tags:
        raise typer.BadParameter("give --tag or --no-tags, not both.")
    given = {"pinned": pinned, "reason": reason, "tags": [] if no_tags else tags or None}
    changes = {field: value for field, value in given.items() if value is not None}
    if not changes:
        raise typer.BadParameter("give --pinned, --no-pinned, --reason, --tag or --no-tags.")
    with connect() as api:
        current = _find_policy(api, cluster, vm).model_dump(mode="json", exclude={"vm"})
        answer = api.put("clusters", cluster, "vms", vm, "policy", body={**current, **changes})
        policy = api.read(VmPolicy, answer)
    say(f"{policy.vm} {_meaning(policy)}.")


def clear_policy(cluster: ClusterArgument, vm: VmArgument) -> None:
    """Delete the policy of a VM: evacuations move it to any host that can run it."""
    with connect() as api:
        api.delete("clusters", cluster, "vms", vm, "policy")
    say(f"{vm} {_meaning(VmPolicy(vm=vm))}.")


def list_groups(cluster: ClusterArgument, as_json: JsonOption = False) -> None:
    """List the affinity and anti-affinity groups of a cluster."""
    with connect() as api:
        items = api.items("clusters", cluster, "affinity-groups")
        if as_json:
            say_json(items)
            return
        groups = [api.read(AffinityGroup, item) for item in items]
    say_table(["NAME", "KIND", "MEMBERS"], [[one.name, one.kind, one.members] for one in groups])


def set_group(
    cluster: ClusterArgument,
    group: GroupArgument,
    members: Annotated[
        list[str], typer.Argument(metavar="VM", help="All VMs of the group, two at least.")
    ],
    kind: Annotated[
        AffinityKind, typer.Option(help="Together on one host, or each on another one.")
    ],
) -> None:
    """Create or replace a group of VMs that evacuations keep together on one host, or apart."""
    body = {"kind": kind, "members": members}
    with connect() as api:
        answer = api.put("clusters", cluster, "affinity-groups", group, body=body)
        made = api.read(AffinityGroup, answer)
    place = "one host" if made.kind is AffinityKind.AFFINITY else "a different host each"
    say(f"Evacuations move {', '.join(sorted(made.members))} to {place}.")


def delete_group(cluster: ClusterArgument, group: GroupArgument) -> None:
    """Delete a group: evacuations move its VMs wherever their other rules allow."""
    with connect() as api:
        api.delete("clusters", cluster, "affinity-groups", group)
    say(f"The group {group} is deleted.")


def _find_policy(api: Api, cluster: str, vm: str) -> VmPolicy:
    """What is decided so far. An unknown cluster is refused by the change itself."""
    found = api.find(VmPolicy, "clusters", cluster, "vms", vm, "policy")
    return found or VmPolicy(vm=vm)


def _meaning(policy: VmPolicy) -> str:
    if policy.pinned:
        return "stays where it is: it blocks every evacuation of its host"
    if policy.tags:
        return f"moves only to hosts tagged {', '.join(sorted(policy.tags))}"
    return "moves to any host that can run it"
