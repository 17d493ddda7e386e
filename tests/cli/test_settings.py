import json
from datetime import UTC, datetime
from typing import Any

import pytest

from contracts.settings import (
    HOOK_TIMEOUT,
    MIGRATION_BANDWIDTH,
    STORAGE_SHARED_PATHS,
    Setting,
    SettingValue,
)
from tests.cli.conftest import FakeApi, hostler, items, ok, problem

WHEN = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)


def value_of(setting: Setting[Any], value: object, origin: str, **more: Any) -> SettingValue:
    return SettingValue(
        name=setting.name,
        type=setting.type,
        possible=setting.possible,
        value=value,
        default=setting.dump(setting.default),
        unit=setting.unit,
        description=setting.description,
        scopes=tuple(setting.scopes),
        effect=setting.effect,
        origin=origin,
        **more,
    )


BANDWIDTH = value_of(
    MIGRATION_BANDWIDTH, 400, "cluster cluster-1", updated_at=WHEN, updated_by="token:anna"
)
NONE = value_of(MIGRATION_BANDWIDTH, None, "default")
PATHS = value_of(STORAGE_SHARED_PATHS, ["/srv/vms"], "cluster cluster-1")


@pytest.mark.parametrize(
    ("options", "query"),
    [
        ((), ""),
        (("--cluster", "cluster-1"), "?cluster=cluster-1"),
        (("--zone", "zone-1"), "?zone=zone-1"),
    ],
)
def test_every_command_names_the_place(api: FakeApi, options: tuple[str, ...], query: str) -> None:
    one = f"/v1/settings/migration.bandwidth{query}"
    api.on(f"GET /v1/settings{query}", items(BANDWIDTH))
    for method in ("GET", "PUT", "DELETE"):
        api.on(f"{method} {one}", ok(BANDWIDTH))
    for arguments in (
        ("list",),
        ("show", "migration.bandwidth"),
        ("set", "migration.bandwidth", "400"),
        ("unset", "migration.bandwidth"),
    ):
        done = hostler("setting", *arguments, *options)
        assert done.exit_code == 0, done.output
    assert [f"{one.method} {one.path}" for one in api.requests] == [
        f"GET /v1/settings{query}",
        f"GET {one}",
        f"PUT {one}",
        f"DELETE {one}",
    ]


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("400", 400),
        ("1.5", 1.5),
        ("true", True),
        ("null", None),
        ('["/srv/vms"]', ["/srv/vms"]),
        ("198.18.0.0/24", "198.18.0.0/24"),
        ('"400"', "400"),
        ("", ""),
        ("many", "many"),
        ("[", "["),
        # Python reads these as JSON, which has no such numbers and texts.
        ("NaN", "NaN"),
        ("1e400", "1e400"),
        (r'"\ud800"', r'"\ud800"'),
    ],
)
def test_a_value_is_json_or_else_text(api: FakeApi, typed: str, sent: object) -> None:
    route = "PUT /v1/settings/migration.bandwidth"
    api.on(route, ok(BANDWIDTH))
    done = hostler("setting", "set", "migration.bandwidth", typed)
    assert done.exit_code == 0, done.output
    assert api.bodies(route) == [{"value": sent}]


def test_set_and_unset_say_what_is_in_force(api: FakeApi) -> None:
    api.on("PUT /v1/settings/migration.bandwidth", ok(BANDWIDTH))
    api.on("DELETE /v1/settings/migration.bandwidth", ok(NONE))
    done = hostler("setting", "set", "migration.bandwidth", "400")
    assert done.stdout == "migration.bandwidth is 400 (cluster cluster-1).\n"
    done = hostler("setting", "unset", "migration.bandwidth")
    assert done.stdout == "migration.bandwidth is null (default).\n"


def test_list(api: FakeApi) -> None:
    api.on("GET /v1/settings", items(BANDWIDTH, PATHS))
    done = hostler("setting", "list")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["NAME", "VALUE", "UNIT", "ORIGIN"],
        ["migration.bandwidth", "400", "MiB/s", "cluster", "cluster-1"],
        ["storage.shared.paths", '["/srv/vms"]', "cluster", "cluster-1"],
    ]
    assert done.stderr == ""


def test_a_value_that_can_not_be_used_is_pointed_out(api: FakeApi) -> None:
    wrong = NONE.model_copy(update={"value": "many", "problem": "possible: integer"})
    api.on("GET /v1/settings", items(wrong, PATHS))
    api.on("GET /v1/settings/migration.bandwidth", ok(wrong))
    done = hostler("setting", "list")
    assert done.stderr == "migration.bandwidth can't be used: possible: integer.\n"
    done = hostler("setting", "show", "migration.bandwidth")
    assert ["problem", "possible:", "integer"] in [line.split() for line in done.stdout.split("\n")]


def test_show(api: FakeApi) -> None:
    api.on("GET /v1/settings/migration.bandwidth", ok(BANDWIDTH))
    shown = hostler("setting", "show", "migration.bandwidth").stdout.splitlines()
    fields = dict(line.split("  ", 1) for line in shown)
    assert {name: text.strip() for name, text in fields.items()} == {
        "name": "migration.bandwidth",
        "meaning": MIGRATION_BANDWIDTH.description,
        "value": "400",
        "unit": "MiB/s",
        "origin": "cluster cluster-1",
        "default": "null",
        "possible": "integer from 1 to 1000000 or null",
        "scopes": ", ".join(BANDWIDTH.scopes),
        "takes effect": "at once, also in operations that run",
        "updated at": "2026-11-03 12:00:00 UTC",
        "updated by": "token:anna",
    }


def test_show_says_what_operations_that_run_do_not_go_by(api: FakeApi) -> None:
    api.on("GET /v1/settings/hook.timeout", ok(value_of(HOOK_TIMEOUT, 60, "global")))
    shown = hostler("setting", "show", "hook.timeout").stdout
    assert "takes effect  in operations that start later\n" in shown


def test_json_is_what_the_api_gave(api: FakeApi) -> None:
    newer = {**BANDWIDTH.model_dump(mode="json"), "a field of a later version": [1]}
    api.on("GET /v1/settings", ok({"items": [newer]}))
    api.on("GET /v1/settings/migration.bandwidth", ok(newer))
    assert json.loads(hostler("setting", "list", "--json").stdout) == [newer]
    assert json.loads(hostler("setting", "show", "migration.bandwidth", "--json").stdout) == newer


def test_what_the_api_refuses(api: FakeApi) -> None:
    detail = "There is no setting 'migration.bandwith'. Is migration.bandwidth meant?"
    api.on("PUT /v1/settings/migration.bandwith", problem(404, "UnknownSetting", detail))
    done = hostler("setting", "set", "migration.bandwith", "1")
    assert (done.exit_code, done.stderr) == (1, f"hostler: {detail}\n")
    detail = "The input of setting migration.bandwidth is not valid: value: possible: integer."
    api.on("PUT /v1/settings/migration.bandwidth", problem(422, "InvalidInput", detail))
    done = hostler("setting", "set", "migration.bandwidth", "x")
    assert (done.exit_code, done.stderr) == (2, f"hostler: {detail}\n")
