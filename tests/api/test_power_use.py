"""Operations that switch a host's power: refused here before there is a workflow, if they can't."""

from typing import Any

import pytest

from tests.api.conftest import Api, history, problem
from tests.api.test_oobm import configure

pytestmark = pytest.mark.asyncio(loop_scope="package")


@pytest.mark.parametrize(
    ("method", "path", "field", "workflow"),
    [
        ("POST", "/maintenance", "power_off_when_ready", "maintenance"),
        ("DELETE", "", "power_off", "removal"),
        ("POST", "/reinstallation", "network_boot", "reinstallation"),
    ],
)
async def test_without_a_bmc_the_field_and_the_way_out_are_named(
    api: Api, host: str, method: str, path: str, field: str, workflow: str
) -> None:
    where = f"/v1/hosts/{host}{path}"
    asked: dict[str, Any] = (
        {"params": {field: True}} if method == "DELETE" else {"json": {field: True}}
    )
    before = api.rows()
    found = problem(await api.admin.request(method, where, **asked), 409, "Conflict")
    assert found["detail"].startswith(f"{field}: power is switched by out-of-band management")
    assert f"hostler oobm configure {host}" in found["remedy"]
    assert api.rows() == before
    assert await api.run_id(f"{workflow}/{host}") is None
    await configure(api, host, enabled=False, address="198.18.1.201")
    found = problem(await api.admin.request(method, where, **asked), 409, "Conflict")
    assert f"disabled: of {host} (by host)" in found["detail"]
    assert "hostler oobm enable" in found["remedy"]
    assert await api.run_id(f"{workflow}/{host}") is None
    await api.admin.patch(f"/v1/hosts/{host}/oobm", json={"enabled": True})
    if method == "DELETE":
        await api.enter(host, reason="ready")
    assert (await api.admin.request(method, where, **asked)).status_code == 202
    assert f'"{field}":true'.encode() in await history(api.workflow(f"{workflow}/{host}"))
    await api.admin.delete(f"/v1/hosts/{host}/oobm")


async def test_what_goes_with_another_field_only(api: Api, host: str) -> None:
    said = problem(
        await api.operator.post(f"/v1/hosts/{host}/maintenance", json={"fall_back_to_off": True}),
        422,
        "InvalidInput",
    )
    assert "fall_back_to_off goes with power_off_when_ready only" in said["detail"]
    said = problem(
        await api.admin.delete(f"/v1/hosts/{host}", params={"fall_back_to_off": True}),
        422,
        "InvalidInput",
    )
    assert "fall_back_to_off goes with power_off only" in said["detail"]
