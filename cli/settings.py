"""`hostler setting`: what takes effect without a restart, globally, in a zone or in a cluster."""

import json
from typing import Annotated, Any

import typer

from cli.arguments import JsonOption, NameArgument
from cli.client import connect
from cli.output import note, say, say_fields, say_json, say_table
from contracts.settings import Effect, SettingValue

ClusterOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="In this cluster, instead of globally.")
]
ZoneOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="In this zone, instead of globally.")
]

_EFFECTS = {
    Effect.AT_ONCE: "at once, also in operations that run",
    Effect.NEXT_OPERATION: "in operations that start later",
}


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    commands = typer.Typer(
        name="setting",
        help="Settings that need no restart; a cluster's goes before its zone's, and that before "
        "the global one.",
        no_args_is_help=True,
    )
    commands.command("list")(list_all)
    commands.command("show")(show)
    commands.command("set")(set_value)
    commands.command("unset")(unset)
    app.add_typer(commands)


def list_all(
    cluster: ClusterOption = None, zone: ZoneOption = None, as_json: JsonOption = False
) -> None:
    """List all settings, what is in force, and where that was set."""
    with connect() as api:
        items = api.items("settings", cluster=cluster, zone=zone)
        if as_json:
            say_json(items)
            return
        settings = [api.read(SettingValue, item) for item in items]
    say_table(
        ["NAME", "VALUE", "UNIT", "ORIGIN"],
        [
            [setting.name, _text(setting.value), setting.unit, setting.origin]
            for setting in settings
        ],
    )
    for setting in settings:
        if setting.problem is not None:
            note(f"{setting.name} can't be used: {setting.problem}.")


def show(
    name: NameArgument,
    cluster: ClusterOption = None,
    zone: ZoneOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one setting: what is in force, what is possible, and what it means."""
    with connect() as api:
        answer = api.get("settings", name, cluster=cluster, zone=zone)
        if as_json:
            say_json(answer)
            return
        setting = api.read(SettingValue, answer)
    say_fields(
        [
            ("name", setting.name),
            ("meaning", setting.description),
            ("value", _text(setting.value)),
            ("problem", setting.problem),
            ("unit", setting.unit),
            ("origin", setting.origin),
            ("default", _text(setting.default)),
            ("possible", setting.possible),
            ("scopes", ", ".join(setting.scopes)),
            ("takes effect", _EFFECTS[setting.effect]),
            ("updated at", setting.updated_at),
            ("updated by", setting.updated_by),
        ]
    )


def set_value(
    name: NameArgument,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="JSON, or else plain text.")],
    cluster: ClusterOption = None,
    zone: ZoneOption = None,
) -> None:
    """Set it; `show` says whether operations that run go by it too. Nothing needs a restart."""
    with connect() as api:
        answer = api.put(
            "settings", name, body={"value": _value(value)}, cluster=cluster, zone=zone
        )
        _say(api.read(SettingValue, answer))


def unset(name: NameArgument, cluster: ClusterOption = None, zone: ZoneOption = None) -> None:
    """Go back to what is inherited: from the zone, from the global setting, or the default."""
    with connect() as api:
        answer = api.delete("settings", name, cluster=cluster, zone=zone)
        _say(api.read(SettingValue, answer))


def _say(setting: SettingValue) -> None:
    say(f"{setting.name} is {_text(setting.value)} ({setting.origin}).")


def _value(text: str) -> Any:
    """What `text` is as JSON; itself if it is none, or none that can be sent."""
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        return text
    return value


def _text(value: Any) -> str:
    """As it may be given to `set`."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
