"""HostAddition: what starts it, what it shows."""

from typing import Annotated

from pydantic import Field, IPvAnyAddress, StrictBool, StrictInt, StringConstraints

from contracts.base import Contract, Name
from contracts.hosts import HostFacts
from contracts.preflight import Finding
from contracts.states import Phase, ResourceState, TlsState

# OpenSSH's notation, as `ssh-keygen -lf` prints it: unpadded base64 of the SHA-256.
Fingerprint = Annotated[str, StringConstraints(pattern=r"^SHA256:[A-Za-z0-9+/]{43}$")]
Port = Annotated[StrictInt, Field(ge=1, le=65535)]
UserName = Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]


class HostAdditionInput(Contract):
    """Bring a host into service.

    Attributes:
        secret: id of the stored credential (a secret version); never the credential itself. It is
            the addition's own: one that ends without a host in the inventory deletes it.
        host_key_sha256: the accepted fingerprint; None: the workflow shows what it finds and
            waits for the update `accept_host_key`.
        enabled: put it into service; otherwise it ends `Disabled`.
        dry_run: only look; the result has the findings, and nothing is changed.
        returning: a machine that was removed before is added again on purpose.
        install_packages: install libvirt's daemon and QEMU where they are missing.
    """

    name: Name
    cluster: Name
    address: IPvAnyAddress
    ssh_port: Port = 22
    user: UserName = "root"
    secret: str
    host_key_sha256: Fingerprint | None = None
    enabled: StrictBool = True
    capacity_memory_mib: Annotated[StrictInt, Field(ge=1)] | None = None
    capacity_cpus: Annotated[StrictInt, Field(ge=1)] | None = None
    reserved_memory_mib: Annotated[StrictInt, Field(ge=0)] = 0
    dry_run: StrictBool = False
    returning: StrictBool = False
    install_packages: StrictBool = False


class AcceptHostKeyInput(Contract):
    """The operator has compared this fingerprint with the host's own."""

    fingerprint: Fingerprint


class HostAdditionResult(Contract):
    """What a completed HostAddition answers.

    Attributes:
        resource_state: None, as the facts: it was a dry run.
        host_key_sha256: None: the host has shown none.
        findings: of the preflight; errors only after a dry run.
        tls: what it does by TLS, as others of its cluster do; after a dry run, what it would.
    """

    name: Name
    resource_state: ResourceState | None = None
    host_key_sha256: str | None = None
    facts: HostFacts | None = None
    findings: tuple[Finding, ...] = ()
    tls: TlsState = TlsState.NONE


class HostAdditionStatus(Contract):
    """What the `status` query answers; `host_key_sha256` and the `findings` of the preflight are
    shown as soon as they are known."""

    name: Name
    phase: Phase
    message: str
    host_key_sha256: str | None = None
    findings: tuple[Finding, ...] = ()
    commands: tuple[str, ...] = ()
