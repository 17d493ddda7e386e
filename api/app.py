"""The application: what it is made of."""

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from temporalio.client import Client

from api import problems
from api.authentication import Authentication
from api.dependencies import BmcChecker
from api.operations import Operations
from api.routes import (
    authority,
    certificates,
    cluster_maintenance,
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
from inventory import Inventory

_DESCRIPTION = """Takes hypervisor hosts out of service and back, and adds them, as durable Temporal
workflows. What starts an operation answers 202 with the operation's path in `Location`; errors are
problem details (RFC 9457)."""


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The document, with the problems in it."""
        if self.openapi_schema is None:
            problems.document_problems(super().openapi())
        return super().openapi()


def create_app(
    client: Client, inventory: Inventory, bmcs: BmcChecker, *, task_queue: str
) -> FastAPI:
    """The API. `task_queue` is where the operations that it starts find their workers."""
    app = _Application(
        title="Hostler",
        description=_DESCRIPTION,
        version=version("hostler"),
        # With a slash at the end it is another path, not one to be redirected to with a token.
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
    )
    app.state.inventory = inventory
    app.state.bmcs = bmcs
    app.state.operations = Operations(client, inventory, task_queue)
    app.add_middleware(Authentication, inventory=inventory)
    problems.install(app)
    for routes in (
        topology,
        hosts,
        imports,
        removal,
        reinstallation,
        placement,
        oobm,
        power,
        maintenance,
        cluster_maintenance,
        passwords,
        certificates,
        authority,
        operations,
        secrets,
        settings,
        events,
        health,
    ):
        app.include_router(routes.router)
    app.include_router(authority.public_router)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name
