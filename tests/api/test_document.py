"""The OpenAPI document: well-formed, complete, and true about errors."""

import json
from typing import Any

import pytest
from fastapi.openapi.models import OpenAPI

from tests.api.conftest import Api

pytestmark = pytest.mark.asyncio(loop_scope="package")

PATHS = {
    "/v1/zones": {"get", "post"},
    "/v1/zones/{name}": {"get", "patch", "delete"},
    "/v1/pods": {"get", "post"},
    "/v1/pods/{name}": {"get", "patch", "delete"},
    "/v1/clusters": {"get", "post"},
    "/v1/clusters/{name}": {"get", "patch", "delete"},
    "/v1/clusters/{name}/maintenance": {"get", "post"},
    "/v1/clusters/{name}/maintenance/pause": {"post"},
    "/v1/clusters/{name}/maintenance/resume": {"post"},
    "/v1/clusters/{name}/maintenance/stop": {"post"},
    "/v1/clusters/{name}/maintenance/hooks": {"get"},
    "/v1/clusters/{name}/maintenance/hooks/{host}": {"get"},
    "/v1/clusters/{name}/vms": {"get"},
    "/v1/clusters/{name}/vms/{vm}/policy": {"get", "put", "delete"},
    "/v1/clusters/{name}/affinity-groups": {"get"},
    "/v1/clusters/{name}/affinity-groups/{group}": {"get", "put", "delete"},
    "/v1/hosts": {"get", "post"},
    "/v1/hosts/{name}": {"get", "patch", "delete"},
    "/v1/oobm": {"get"},
    "/v1/zones/{name}/oobm": {"get", "patch"},
    "/v1/clusters/{name}/oobm": {"get", "patch"},
    "/v1/hosts/{name}/oobm": {"get", "put", "patch", "delete"},
    "/v1/hosts/{name}/oobm/test": {"post"},
    "/v1/hosts/{name}/oobm/password": {"post"},
    "/v1/hosts/{name}/power": {"get", "post"},
    "/v1/hosts/{name}/removal": {"post"},
    "/v1/hosts/{name}/reinstallation": {"post"},
    "/v1/hosts/{name}/reinstallation/answer": {"post"},
    "/v1/removed-hosts": {"get"},
    "/v1/removed-hosts/{tombstone}/settlement": {"post"},
    "/v1/removed-hosts/{tombstone}/secrets": {"get"},
    "/v1/hosts/{name}/host-key": {"post"},
    "/v1/hosts/{name}/check": {"post"},
    "/v1/hosts/{name}/tags": {"put"},
    "/v1/hosts/{name}/maintenance": {"get", "post", "delete"},
    "/v1/hosts/{name}/maintenance/return": {"post"},
    "/v1/hosts/{name}/maintenance/vms/{vm}": {"post"},
    "/v1/imports": {"post"},
    "/v1/imports/{name}": {"get"},
    "/v1/hosts/{name}/secrets": {"get"},
    "/v1/clusters/{name}/secrets": {"get"},
    "/v1/clusters/{name}/passwords": {"get"},
    "/v1/clusters/{name}/passwords/staged": {"post"},
    "/v1/clusters/{name}/passwords/verification": {"post"},
    "/v1/clusters/{name}/password-rotation": {"get", "post"},
    "/v1/clusters/{name}/password-rotation/retry": {"post"},
    "/v1/clusters/{name}/password-rotation/skip-host": {"post"},
    "/v1/clusters/{name}/password-rotation/revert": {"post"},
    "/v1/secrets/{id}/disclosure": {"post"},
    "/v1/certificates": {"get", "post"},
    "/v1/certificates/{serial}": {"get"},
    "/v1/certificates/{serial}/revocation": {"post"},
    "/v1/hosts/{name}/certificate/revocation": {"post"},
    "/v1/ca": {"get", "post"},
    "/v1/clusters/{name}/certificates": {"post"},
    "/v1/hosts/{name}/certificate": {"get", "post"},
    "/v1/hosts/{name}/certificate/check": {"post"},
    "/v1/ca/chain": {"get"},
    "/v1/ca/crl": {"get"},
    "/v1/ca/crl/hosts": {"get"},
    "/v1/ca/{provider}/{generation}/crl": {"get"},
    "/v1/ca/rollover": {"get", "post"},
    "/v1/ca/rollover/pause": {"post"},
    "/v1/ca/rollover/resume": {"post"},
    "/v1/ca/rollover/leave-out": {"post"},
    "/v1/settings": {"get"},
    "/v1/settings/{name}": {"get", "put", "delete"},
    "/v1/operations": {"get"},
    "/v1/operations/{kind}/{subject}": {"get", "delete"},
    "/v1/events": {"get"},
    "/healthz": {"get"},
}

PUBLIC = {"/v1/ca/chain", "/v1/ca/crl", "/v1/ca/{provider}/{generation}/crl"}


async def fetch(api: Api) -> dict[str, Any]:
    document: dict[str, Any] = (await api.nobody.get("/openapi.json")).json()
    return document


async def test_it_lists_every_path(api: Api) -> None:
    document = await fetch(api)
    assert {path: {*methods} for path, methods in document["paths"].items()} == PATHS
    assert document["info"]["title"] == "Hostler"


async def test_it_is_well_formed(api: Api) -> None:
    document = await fetch(api)
    OpenAPI.model_validate(document)
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    referred = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert referred == {*schemas}, "a schema is missing, or one that nothing uses is there"
    ids = [op["operationId"] for methods in document["paths"].values() for op in methods.values()]
    assert len(ids) == len({*ids})
    for path, methods in document["paths"].items():
        names = {part[1:-1] for part in path.split("/") if part.startswith("{")}
        for operation in methods.values():
            given = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
            assert given == names
            assert operation["description"]


async def test_it_says_that_a_token_is_needed(api: Api) -> None:
    document = await fetch(api)
    scheme = document["components"]["securitySchemes"]["bearer"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for path, methods in document["paths"].items():
        for operation in methods.values():
            protected = path.startswith("/v1/") and path not in PUBLIC
            assert operation.get("security", []) == ([{"bearer": []}] if protected else [])


async def test_it_documents_the_problems(api: Api) -> None:
    document = await fetch(api)
    for path, methods in document["paths"].items():
        for operation in methods.values():
            errors = {code for code in operation["responses"] if code >= "400"}
            assert "503" in errors
            if path.startswith("/v1/"):
                assert {"401", "403", "422"} <= errors
            for code in errors:
                assert operation["responses"][code]["content"] == {
                    "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
                }
    assert "password" in document["components"]["schemas"]["HostAdditionRequest"]["properties"]


async def test_the_pages_need_no_token(api: Api) -> None:
    assert (await api.nobody.get("/docs")).status_code == 200
