"""Hosts get a new installation, and stay the hosts that they were."""

from fastapi import APIRouter, Response, status

from api.authentication import VIEWER, Admin, actor
from api.dependencies import NameInPath, TheInventory, TheOperations
from api.operations import as_operation, link
from api.requests import AnswerReinstallationRequest, HostReinstallationRequest
from api.takeover import require_ready
from contracts.errors import HostlerError, NotFound, Unavailable
from contracts.operations import Operation, OperationKind, workflow_id
from contracts.reinstallation import AnswerReinstallationInput, HostReinstallationInput
from inventory import Inventory

router = APIRouter(prefix="/v1/hosts/{name}/reinstallation", tags=["hosts"], dependencies=[VIEWER])

_KIND = OperationKind.REINSTALLATION
_NO_CHOICES = HostReinstallationRequest()


@router.post("", status_code=status.HTTP_202_ACCEPTED)
async def reinstall_host(
    name: NameInPath,
    caller: Admin,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
    request: HostReinstallationRequest = _NO_CHOICES,
) -> Operation:
    """Start a HostReinstallation: from `Maintenance`, which it takes over, or after a maintenance
    that it starts itself. It withdraws the host's trust, waits for another SSH host key, and
    provisions what is there then. The credential of the new installation is stored encrypted.

    `host_is_down`: of a host that does not answer. `network_boot`: by its BMC, it boots from the
    network once. `dry_run`: list every effect and change nothing.
    """
    await inventory.hosts.get(name)
    if request.network_boot:
        await inventory.oobm.require([name], "network_boot")
    await operations.require_free(name, but=OperationKind.MAINTENANCE)
    if not request.dry_run:
        await require_ready(name, operations)
    secret = await _store(inventory, request.credential(), actor(caller))
    fields = request.model_dump(exclude={"password", "private_key"})
    try:
        await operations.start(
            _KIND,
            name,
            HostReinstallationInput(**fields, host=name, secret=secret),
            caller,
            request.reason,
        )
    except Unavailable:
        # It may have started and need the secret; if not, the inventory drops it after a day.
        raise
    except HostlerError:
        await _discard(inventory, secret)
        raise
    await inventory.events.record(
        "reinstallation.requested",
        f"host/{name}",
        _in_words(request),
        operation=workflow_id(_KIND, name),
        actor=actor(caller),
    )
    started = await operations.find(_KIND, name)
    response.headers["Location"] = link(started)
    return as_operation(started)


@router.post("/answer", status_code=status.HTTP_204_NO_CONTENT)
async def answer_reinstallation(
    name: NameInPath,
    request: AnswerReinstallationRequest,
    caller: Admin,
    inventory: TheInventory,
    operations: TheOperations,
) -> None:
    """Tell the re-installation what it asks, or will ask: that a fingerprint is that of the new SSH
    host key, what logs in there; with neither, to look again now."""
    running = await operations.running(name, _KIND)
    if running is None:
        raise NotFound(
            f"No re-installation of {name!r} is running.",
            remedy=f"Start it with POST /v1/hosts/{name}/reinstallation.",
        )
    secret = await _store(inventory, request.credential(), actor(caller))
    fields = request.model_dump(exclude={"password", "private_key"})
    try:
        await operations.update(
            running, "answer", AnswerReinstallationInput(**fields, secret=secret)
        )
    except Unavailable:
        # It may have been taken.
        raise
    except HostlerError:
        await _discard(inventory, secret)
        raise
    await inventory.events.record(
        "reinstallation.answered",
        f"host/{name}",
        _answer_in_words(request),
        operation=running.id,
        actor=actor(caller),
    )


async def _store(
    inventory: Inventory, credential: tuple[str, str] | None, caller: str
) -> str | None:
    """Its id."""
    if credential is None:
        return None
    kind, plaintext = credential
    return await inventory.secrets.store(kind, plaintext, actor=caller)


async def _discard(inventory: Inventory, secret: str | None) -> None:
    if secret is not None:
        await inventory.secrets.discard(secret)


def _in_words(request: HostReinstallationRequest) -> str:
    how = [
        word
        for word, asked in (
            ("dry run", request.dry_run),
            ("after maintenance", request.after_maintenance),
            ("the host is down", request.host_is_down),
            ("loses VMs", request.lose_vms),
            ("boots from the network", request.network_boot),
        )
        if asked
    ]
    return ": ".join([*([", ".join(how)] if how else []), request.reason or "no reason given"])


def _answer_in_words(request: AnswerReinstallationRequest) -> str:
    said = [
        word
        for word, given in (
            (f"the host key is {request.host_key_sha256}", request.host_key_sha256 is not None),
            ("another credential", request.credential() is not None),
            ("packages are installed", request.install_packages),
            ("the command is skipped", request.skip_command),
            ("somebody else boots it", request.skip_network_boot),
            ("missing networks and storage are accepted", request.force),
        )
        if given
    ]
    return ", ".join(said) or "look again"
