"""Certificates: signed for hosts that are set up outside, listed, revoked."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response, status

from api.authentication import VIEWER, Admin, Operator, actor
from api.dependencies import NameInPath, TheInventory, TheOperations
from api.operations import Operations, as_operation, link
from api.requests import (
    CertificatePage,
    CertificateQuery,
    CertificateRequest,
    Items,
    ProvisioningRequest,
    RevocationRequest,
)
from contracts.access import Principal
from contracts.certificates import (
    Certificate,
    CertificateProvisioningInput,
    CertificateRevocationInput,
    CertificateSigningInput,
    ClusterCertificatesInput,
    Serial,
    check_reason,
)
from contracts.errors import NotFound
from contracts.operations import Operation, OperationKind, workflow_id
from contracts.tls_check import TlsReport
from inventory import Inventory

router = APIRouter(prefix="/v1", tags=["certificates"], dependencies=[VIEWER])

_NO_REASON = RevocationRequest()
_NO_WORDS = ProvisioningRequest()
# What a signing for Hostler itself is called; no host can have that name.
_CONTROLLER = "hostler controller"


@router.get("/certificates")
async def list_certificates(
    query: Annotated[CertificateQuery, Query()], inventory: TheInventory
) -> CertificatePage:
    """Those that match all that is given, by serial; of removed hosts, too."""
    found = await inventory.certificates.list(**{**dict(query), "limit": query.limit + 1})
    items = found[: query.limit]
    return CertificatePage(items=items, next=items[-1].serial if len(found) > len(items) else None)


@router.get("/certificates/{serial}")
async def get_certificate(
    serial: Annotated[Serial, Path()], inventory: TheInventory
) -> Certificate:
    """One certificate."""
    return await inventory.certificates.get(serial)


@router.post("/certificates", status_code=status.HTTP_202_ACCEPTED)
async def sign_certificate(
    request: CertificateRequest,
    caller: Admin,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
) -> Operation:
    """Start a CertificateSigning: whose key it is comes from the signing request, all names from
    the inventory. The operation's result has the certificate and its chain.

    Admins only: libvirt takes whoever has a host's certificate for root.
    """
    if request.host is not None:
        await inventory.hosts.get(request.host)
    return await _start(
        OperationKind.SIGNING,
        request.host or _CONTROLLER,
        CertificateSigningInput(**dict(request), requester=actor(caller)),
        caller,
        inventory,
        operations,
        response,
        message=f"a certificate in the role {request.role}",
    )


@router.post("/certificates/{serial}/revocation", status_code=status.HTTP_202_ACCEPTED)
async def revoke_certificate(
    serial: Annotated[Serial, Path()],
    caller: Admin,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
    request: RevocationRequest = _NO_REASON,
) -> Operation:
    """Start a CertificateRevocation of one certificate."""
    one = await inventory.certificates.get(serial)
    check_reason(one, request.reason)
    return await _start(
        OperationKind.REVOCATION,
        serial,
        CertificateRevocationInput(serial=serial, reason=request.reason, requester=actor(caller)),
        caller,
        inventory,
        operations,
        response,
        message=request.reason,
    )


@router.get("/hosts/{name}/certificate")
async def list_installed(name: NameInPath, inventory: TheInventory) -> Items[Certificate]:
    """What the host goes by, as Hostler has put it there: libvirt's certificate, and QEMU's."""
    await inventory.hosts.get(name)
    found = await inventory.certificates.list(host=name)
    return Items(items=[one for one in found if one.installed_at is not None])


@router.post("/hosts/{name}/certificate/check")
async def check_tls(
    name: NameInPath, caller: Operator, inventory: TheInventory, operations: TheOperations
) -> TlsReport:
    """Have a worker look at the host's TLS now: what it has, what it shows to others, and what is
    wrong with that, in words."""
    await inventory.hosts.get(name)
    return await operations.check_tls(name, caller)


@router.post("/hosts/{name}/certificate", status_code=status.HTTP_202_ACCEPTED)
async def provision_certificates(
    name: NameInPath,
    caller: Operator,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
    request: ProvisioningRequest = _NO_WORDS,
) -> Operation:
    """Start a CertificateProvisioning: keys are made on the host, their certificates put beside
    those in use, and libvirt and QEMU switched to them. What fails is put back."""
    await inventory.hosts.get(name)
    return await _start(
        OperationKind.PROVISIONING,
        name,
        CertificateProvisioningInput(host=name, reason=request.reason, requester=actor(caller)),
        caller,
        inventory,
        operations,
        response,
        message=request.reason or "certificates",
    )


@router.post("/clusters/{name}/certificates", status_code=status.HTTP_202_ACCEPTED)
async def secure_cluster(
    name: NameInPath,
    caller: Operator,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
    request: ProvisioningRequest = _NO_WORDS,
) -> Operation:
    """Start a ClusterCertificates: hosts without certificates get some, and when all have some,
    each takes and gives VMs by TLS only. What was done before is not done again."""
    await inventory.topology.get_cluster(name)
    return await _start(
        OperationKind.CLUSTER_CERTIFICATES,
        name,
        ClusterCertificatesInput(cluster=name, reason=request.reason, requester=actor(caller)),
        caller,
        inventory,
        operations,
        response,
        message=request.reason or "certificates",
    )


@router.post("/hosts/{name}/certificate/revocation", status_code=status.HTTP_202_ACCEPTED)
async def revoke_certificates_of_host(
    name: NameInPath,
    caller: Admin,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
    request: RevocationRequest = _NO_REASON,
) -> Operation:
    """Start a CertificateRevocation of all certificates of a host, which may be removed. Of what is
    revoked already it makes sure that the lists say so."""
    if not await inventory.certificates.list(host=name, limit=1):
        raise NotFound(
            f"No certificate of {name} was issued.",
            remedy="See `hostler cert list` for those that were.",
        )
    return await _start(
        OperationKind.REVOCATION,
        name,
        CertificateRevocationInput(host=name, reason=request.reason, requester=actor(caller)),
        caller,
        inventory,
        operations,
        response,
        message=request.reason,
    )


async def _start(
    kind: OperationKind,
    subject: str,
    request: CertificateProvisioningInput
    | ClusterCertificatesInput
    | CertificateSigningInput
    | CertificateRevocationInput,
    caller: Principal,
    inventory: Inventory,
    operations: Operations,
    response: Response,
    *,
    message: str,
) -> Operation:
    await operations.start(kind, subject, request, caller, message)
    await inventory.events.record(
        f"certificate.{kind}_requested",
        _subject(subject, request),
        message,
        operation=workflow_id(kind, subject),
        actor=actor(caller),
    )
    started = await operations.find(kind, subject)
    response.headers["Location"] = link(started)
    return as_operation(started)


def _subject(
    subject: str,
    request: CertificateProvisioningInput
    | ClusterCertificatesInput
    | CertificateSigningInput
    | CertificateRevocationInput,
) -> str:
    """Of the event."""
    if isinstance(request, ClusterCertificatesInput):
        return f"cluster/{request.cluster}"
    return f"host/{request.host}" if request.host is not None else f"certificate/{subject}"
