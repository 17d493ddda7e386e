"""Issuing as workflows do it, without Temporal."""

from activities.authorities import Directory
from activities.certificates import CertificateActivities
from contracts.certificates import CertificateSigningResult, IssueCertificateInput
from drivers.authorities.protocols import ExternalAccess, Providers
from drivers.authorities.providers import provider
from inventory import Inventory
from tests.authorities.samples import csr


def activities(
    inventory: Inventory,
    providers: Providers = provider,
    access: ExternalAccess = ExternalAccess(),  # noqa: B008 - a frozen value
) -> CertificateActivities:
    return CertificateActivities(inventory, Directory(inventory, providers, access))


async def issue(
    certificates: CertificateActivities, request: str = "signing/kvm-1/run-1", **fields: object
) -> CertificateSigningResult:
    """For kvm-1, unless `fields` say otherwise."""
    values = {"csr": csr(), "host": "kvm-1", "operation": "signing/kvm-1", **fields}
    return await certificates.issue_certificate(
        IssueCertificateInput.model_validate({"request": request, **values})
    )
