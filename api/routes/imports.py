"""Many hosts added at once: start an import, see how it goes."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Response, status
from pydantic import ValidationError

from api.authentication import VIEWER, Admin, actor
from api.dependencies import NameInPath, TheInventory, TheOperations
from api.operations import Operations, as_operation, link
from api.requests import HostAdditionRequest, HostImportRequest
from contracts.addition import HostAdditionInput
from contracts.errors import HostlerError, NotFound, Unavailable
from contracts.host_import import HostImportInput, HostImportView, RunningAddition, with_defaults
from contracts.operations import Operation, OperationKind, workflow_id
from contracts.states import Phase
from contracts.validation import invalid_input
from inventory import Inventory

router = APIRouter(prefix="/v1/imports", tags=["imports"], dependencies=[VIEWER])

_KIND = OperationKind.IMPORT
_MOST_PROBLEMS = 200
# As long as the id of a stored one.
_NO_SECRET = "0" * 36


@router.post("", status_code=status.HTTP_202_ACCEPTED)
async def import_hosts(
    request: HostImportRequest,
    caller: Admin,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
) -> Operation:
    """Start a HostImport. All hosts are checked before anything is stored; each gets a stored
    credential of its own, and the workflow their ids alone."""
    name = request.name or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    hosts = await _read(request, inventory)
    _as_input(name, request.parallel, hosts, [_NO_SECRET] * len(hosts))
    await operations.require_no_import(name)
    stored = await inventory.secrets.store_all(
        [host.credential() for host in hosts], actor=actor(caller)
    )
    try:
        await operations.start(
            _KIND,
            name,
            _as_input(name, request.parallel, hosts, stored),
            caller,
            f"{len(hosts)} hosts",
        )
    except Unavailable:
        # It may have started and need them; if not, the inventory drops them after a day.
        raise
    except HostlerError:
        await inventory.secrets.discard_all(stored)
        raise
    await inventory.events.record(
        "import.requested",
        f"import/{name}",
        f"{len(hosts)} hosts, {request.parallel} at a time",
        operation=workflow_id(_KIND, name),
        actor=actor(caller),
    )
    started = await operations.find(_KIND, name)
    response.headers["Location"] = link(started)
    return as_operation(started)


@router.get("/{name}")
async def get_import(name: NameInPath, operations: TheOperations) -> HostImportView:
    """The import that runs under that name, with the phase of each addition that is under way."""
    execution = await operations.open_import(name)
    if execution is None:
        raise NotFound(
            f"No import {name!r} is running.",
            remedy=f"How it ended: `hostler operation show import {name}`.",
        )
    found = await operations.import_status(execution)
    phases = await operations.addition_phases()
    return HostImportView(
        **dict(found),
        additions=tuple([await _addition(operations, host, phases) for host in found.adding]),
        workflow_id=execution.id,
        run_id=execution.run_id,
    )


async def _addition(
    operations: Operations, host: str, phases: Mapping[str, Phase]
) -> RunningAddition:
    phase = phases.get(host)
    shown = await operations.shown_host_key(host) if phase is Phase.QUESTION else None
    return RunningAddition(
        host=host,
        phase=phase,
        host_key_sha256=shown,
        command=f"hostler host accept-key {host} {shown}" if shown is not None else None,
    )


async def _read(request: HostImportRequest, inventory: Inventory) -> list[HostAdditionRequest]:
    """The hosts, with defaults. Raises InvalidInput, which names all that is wrong with any."""
    filled = [with_defaults(request.defaults, host) for host in request.hosts]
    clusters = {cluster.name for cluster in await inventory.topology.list_clusters()}
    hosts: dict[int, HostAdditionRequest] = {}
    problems: list[dict[str, Any]] = []
    for position, given in enumerate(filled):
        try:
            hosts[position] = HostAdditionRequest.model_validate(given)
        except ValidationError as error:
            problems += [
                {**problem, "loc": (_place(position), *problem["loc"])}
                for problem in error.errors(include_url=False, include_input=False)
            ]
    problems += _given_twice({n: host.name for n, host in hosts.items()}, "name")
    places = {n: f"{host.address} port {host.ssh_port}" for n, host in hosts.items()}
    problems += _given_twice(places, "address")
    problems += [
        _problem(position, "cluster", f"there is no cluster {host.cluster!r}")
        for position, host in hosts.items()
        if host.cluster not in clusters
    ]
    if problems:
        left_out = len(problems) - _MOST_PROBLEMS
        more = {"loc": ("hosts",), "type": "more", "msg": f"and {left_out} more problems"}
        raise invalid_input(
            "HostImport", [*problems[:_MOST_PROBLEMS], *([more] if left_out > 0 else [])]
        )
    return list(hosts.values())


def _given_twice(values: Mapping[int, str], field: str) -> Iterator[dict[str, Any]]:
    """A problem for each value that an earlier host has, too."""
    first: dict[str, int] = {}
    for position, value in values.items():
        if value in first:
            yield _problem(position, field, f"the same as that of {_place(first[value])}: {value}")
        first.setdefault(value, position)


def _place(position: int) -> str:
    return f"hosts[{position}]"


def _problem(position: int, field: str, text: str) -> dict[str, Any]:
    return {"loc": (_place(position), field), "type": "refused", "msg": text}


def _as_input(
    name: str, parallel: int, hosts: Sequence[HostAdditionRequest], secret_ids: Sequence[str]
) -> HostImportInput:
    """The workflow's input. Raises InvalidInput: it is too large."""
    try:
        return HostImportInput(
            name=name,
            parallel=parallel,
            hosts=tuple(
                HostAdditionInput(
                    **host.model_dump(exclude={"password", "private_key"}), secret=secret
                )
                for host, secret in zip(hosts, secret_ids, strict=True)
            ),
        )
    except ValidationError as error:
        raise invalid_input("HostImport", error.errors(include_input=False)) from None
