"""Stored credentials: what may be told of them, and one in clear, for admins and with a reason.

None of this has to do with a workflow: what goes into one is in Temporal's history in clear.
"""

from typing import Annotated

from fastapi import APIRouter, Path, Response

from api.authentication import VIEWER, Admin, actor
from api.dependencies import PRIVATE_WAY, NameInPath, TheInventory
from api.requests import DisclosureRequest, Items, SearchText
from contracts.secrets import DisclosedSecret, StoredSecret

router = APIRouter(prefix="/v1", tags=["secrets"], dependencies=[VIEWER])


@router.get("/hosts/{name}/secrets")
async def list_host_secrets(
    name: NameInPath, _caller: Admin, inventory: TheInventory
) -> Items[StoredSecret]:
    """What is stored for the host, without the credentials themselves."""
    return Items(items=await inventory.stored_secrets.of_host(name))


@router.get("/clusters/{name}/secrets")
async def list_cluster_secrets(
    name: NameInPath, _caller: Admin, inventory: TheInventory
) -> Items[StoredSecret]:
    """All versions of the cluster's passwords, without the passwords themselves; and which host has
    which."""
    return Items(items=await inventory.cluster_passwords.versions(name))


@router.get("/removed-hosts/{tombstone}/secrets")
async def list_removed_host_secrets(
    tombstone: Annotated[int, Path(ge=1, le=2**31 - 1)], _caller: Admin, inventory: TheInventory
) -> Items[StoredSecret]:
    """What is kept of a removed host until it is clean, without the credential itself."""
    return Items(items=await inventory.stored_secrets.of_removed(tombstone))


@router.post("/secrets/{id}/disclosure", dependencies=[PRIVATE_WAY])
async def disclose_secret(
    secret_id: Annotated[SearchText, Path(alias="id")],
    request: DisclosureRequest,
    caller: Admin,
    inventory: TheInventory,
    response: Response,
) -> DisclosedSecret:
    """One credential in clear. An event says who asked for it, and why."""
    credential = await inventory.secrets.disclose(
        secret_id, reason=request.reason, actor=actor(caller)
    )
    response.headers["Cache-Control"] = "no-store"
    return DisclosedSecret(id=secret_id, kind=credential.kind, plaintext=credential.plaintext)
