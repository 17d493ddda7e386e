"""The settings that take effect at once."""

from typing import Any

import pytest

from contracts.settings import MIGRATION_BANDWIDTH, SETTINGS, SettingValue
from tests.api.conftest import Api, problem

pytestmark = pytest.mark.asyncio(loop_scope="package")

PATH = f"/v1/settings/{MIGRATION_BANDWIDTH.name}"


async def test_they_are_set_and_unset(api: Api) -> None:
    assert (await api.viewer.get(PATH)).json()["origin"] == "default"
    for query, value, origin in (
        ("", 100, "global"),
        ("?zone=zone-1", 50, "zone zone-1"),
        ("?cluster=cluster-1", None, "cluster cluster-1"),
    ):
        changed = await api.admin.put(PATH + query, json={"value": value})
        assert changed.status_code == 200, changed.text
        told = SettingValue.model_validate(changed.json())
        assert (told.value, told.origin, told.updated_by) == (value, origin, "token:anna")
        assert (await api.viewer.get(PATH + query)).json() == changed.json()
    assert (await api.inventory.settings.resolve("cluster-1"))[MIGRATION_BANDWIDTH] is None
    for query, value, origin in (
        ("?cluster=cluster-1", 50, "zone zone-1"),
        ("?zone=zone-1", 100, "global"),
        ("", None, "default"),
    ):
        for _ in range(2):
            changed = await api.admin.delete(PATH + query)
            assert changed.status_code == 200, changed.text
            assert (changed.json()["value"], changed.json()["origin"]) == (value, origin)
    events = await api.inventory.events.list(subject=f"setting/{MIGRATION_BANDWIDTH.name}")
    assert [(event.message, event.actor) for event in events][-2:] == [
        ("zone zone-1: 100 (global) -> 50", "token:anna"),
        ("global: null (default) -> 100", "token:anna"),
    ]
    assert len(events) == 6


async def test_the_list_has_all_of_them(api: Api) -> None:
    await api.admin.put(f"{PATH}?cluster=cluster-1", json={"value": 7})
    for query, value in (("", None), ("?zone=zone-1", None), ("?cluster=cluster-1", 7)):
        items = (await api.viewer.get(f"/v1/settings{query}")).json()["items"]
        assert [item["name"] for item in items] == sorted(SETTINGS)
        assert {item["name"]: item["value"] for item in items}[MIGRATION_BANDWIDTH.name] == value


@pytest.mark.parametrize(
    ("path", "body", "field", "says"),
    [
        (PATH, {}, "value", "this field is required"),
        (PATH, {"value": 1, "cluster": "c"}, "cluster", "there is no such field"),
        (PATH, {"value": 0}, "value", "possible: integer from 1 to 1000000 or null"),
        (f"{PATH}?cluster=cluster-1&zone=zone-1", {"value": 1}, "zone", "not together with clus"),
        (f"{PATH}?clster=cluster-1", {"value": 1}, "clster", "there is no such field"),
        (f"{PATH}?cluster=", {"value": 1}, "cluster", "must not be empty"),
        ("/v1/settings/a%20b", {"value": 1}, "name", "must match"),
    ],
)
async def test_a_wrong_change_is_refused_by_field(
    api: Api, path: str, body: Any, field: str, says: str
) -> None:
    before = api.rows()
    found = problem(await api.admin.put(path, json=body), 422, "InvalidInput")
    assert [error["field"] for error in found["errors"]] == [field]
    assert says in found["errors"][0]["message"]
    assert says in found["detail"]
    assert api.rows() == before


async def test_a_number_that_json_does_not_have(api: Api) -> None:
    before = api.rows()
    refused = await api.admin.put(
        "/v1/settings/cpu.overprovisioning.factor",
        content=b'{"value": NaN}',
        headers={"Content-Type": "application/json"},
    )
    assert "possible: number from 1 to 64" in problem(refused, 422, "InvalidInput")["detail"]
    assert api.rows() == before


async def test_a_scope_that_the_setting_does_not_have(api: Api) -> None:
    before = api.rows()
    path = "/v1/settings/storage.shared.paths"
    for refused in (
        await api.admin.put(path, json={"value": ["/srv"]}),
        await api.admin.delete(f"{path}?zone=zone-1"),
    ):
        found = problem(refused, 422, "InvalidInput")
        assert "only at cluster" in found["detail"]
        assert found["remedy"] == "Name a cluster."
    assert api.rows() == before


async def test_what_is_not_there(api: Api) -> None:
    before = api.rows()
    for path in ("/v1/settings/migration.bandwith", f"{PATH}x"):
        for answer in (
            await api.viewer.get(path),
            await api.admin.put(path, json={"value": 1}),
            await api.admin.delete(path),
        ):
            assert "Is migration.bandwidth " in problem(answer, 404, "UnknownSetting")["remedy"]
    for query in ("?cluster=none", "?zone=none"):
        for answer in (
            await api.viewer.get(f"/v1/settings{query}"),
            await api.viewer.get(PATH + query),
            await api.admin.put(PATH + query, json={"value": 1}),
            await api.admin.delete(PATH + query),
        ):
            assert "'none'" in problem(answer, 404, "NotFound")["detail"]
    assert api.rows() == before
