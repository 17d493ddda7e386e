"""Certificates and the authorities that issue them: X.509 as RFC 5280 has it."""

import base64
import re
import textwrap
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from contracts.base import Contract, Name, Reason
from contracts.errors import Conflict
from contracts.leases import LeaseRef
from contracts.states import Phase, TlsState

MAX_PEM_CHARS = 65_536
_PEM_COLUMNS = 64

AUTHORITY_UPKEEP = "AuthorityUpkeep"
AUTHORITY_UPKEEP_SCHEDULE = "ca-upkeep"

_BLOCK = "-----BEGIN {0}-----[A-Za-z0-9+/=\\s]+-----END {0}-----"
_CERTIFICATE = re.compile(_BLOCK.format("CERTIFICATE"))
_REQUEST = re.compile(_BLOCK.format("(?:NEW )?CERTIFICATE REQUEST"))


def certificates_in(text: str) -> list[str]:
    """The certificates of a text in PEM, each by itself."""
    return [f"{found}\n" for found in _CERTIFICATE.findall(text)]


def requests_in(text: str) -> list[str]:
    """The signing requests of a text in PEM, each by itself."""
    return [f"{found}\n" for found in _REQUEST.findall(text)]


def crl_to_pem(der: bytes) -> str:
    """A revocation list in PEM."""
    body = "\n".join(textwrap.wrap(base64.b64encode(der).decode(), _PEM_COLUMNS))
    return f"-----BEGIN X509 CRL-----\n{body}\n-----END X509 CRL-----\n"


def _only_certificates(text: str) -> str:
    _refuse_keys(text, "the key of a CA belongs into private_key (`--key-file`)")
    found = certificates_in(text)
    if not found:
        raise PydanticCustomError("no_certificate", "there is no certificate in PEM")
    return "".join(found)


def _only_request(text: str) -> str:
    _refuse_keys(text, "the key of a host stays there")
    found = requests_in(text)
    if len(found) != 1:
        raise PydanticCustomError(
            "one_request",
            "there must be one signing request (PKCS #10 in PEM), which `openssl req -new` makes; "
            "found {count}",
            {"count": len(found)},
        )
    return found[0]


def _refuse_keys(text: str, remedy: str) -> None:
    """What gets into an operation stays in its history for all to read."""
    if "PRIVATE KEY" in text:
        raise PydanticCustomError(
            "private_key", "has a private key, which is not kept: {remedy}", {"remedy": remedy}
        )


_Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PEM_CHARS)]
CertificatesPem = Annotated[_Text, AfterValidator(_only_certificates)]
"""Certificates in PEM; all else in the text is left out, and a private key refused."""
RequestPem = Annotated[_Text, AfterValidator(_only_request)]
"""One signing request (PKCS #10 in PEM); all else is left out, and a private key refused."""


def _hexadecimal(value: object) -> object:
    """openssl prints them with colons, Windows with blanks, some programs with 0x or zeros."""
    if not isinstance(value, str):
        return value
    return value.lower().removeprefix("0x").replace(":", "").replace(" ", "").lstrip("0")


# RFC 5280, 4.1.2.2: at most 20 octets, positive.
Serial = Annotated[
    str, BeforeValidator(_hexadecimal), StringConstraints(pattern=r"^[0-9a-f]{1,40}$")
]


class CertificateRole(StrEnum):
    """What a certificate is good for."""

    HOST = "host"
    """A host's libvirtd, as server and as client."""
    SERVER = "server"
    """A host's, to be connected to."""
    CLIENT = "client"
    """A host's, to connect with."""
    QEMU = "qemu"
    """Both ends of a host's migrations, and VNC: for QEMU, which is nobody to libvirt. Of the
    cluster's own CA for that."""
    CONTROLLER = "controller"
    """Hostler's own, to connect to hosts with; it names no host."""


_QEMU_AUTHORITY = re.compile(r"cluster-[0-9a-f]+-qemu")


def unit_of(certificate_id: str) -> str:
    """The organizational unit of a cluster, by the id that it has in certificates."""
    return f"cluster-{certificate_id}"


def qemu_authority(unit: str) -> str:
    """Who certifies the QEMUs of the cluster of that unit, and of no other one: QEMU has no list of
    who may come in, so its only anchor has to be one by which nobody else has certificates. It is
    also the organizational unit of these."""
    return f"{unit}-qemu"


def is_qemu_authority(provider: str) -> bool:
    """Whether it is such a one, and no plugin."""
    return _QEMU_AUTHORITY.fullmatch(provider) is not None


def concerns(provider: str, unit: str) -> bool:
    """Whether a host of that unit has to do with the provider: QEMU's of other clusters are nothing
    to it."""
    return not is_qemu_authority(provider) or provider == qemu_authority(unit)


class ExtraNames(StrEnum):
    """What becomes of a signing request that asks for more than the inventory knows."""

    REFUSE = "refuse"
    DROP = "drop"


class RevocationReason(StrEnum):
    """CRLReason (RFC 5280, 5.3.1), of those that apply to hosts and can't be taken back."""

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "keyCompromise"
    AFFILIATION_CHANGED = "affiliationChanged"
    SUPERSEDED = "superseded"
    CESSATION_OF_OPERATION = "cessationOfOperation"
    PRIVILEGE_WITHDRAWN = "privilegeWithdrawn"


class CertificateState(StrEnum):
    """Where a certificate is in its life."""

    VALID = "valid"
    EXPIRED = "expired"
    REVOKED = "revoked"


class AuthorityOrigin(StrEnum):
    """Where an authority's key comes from."""

    GENERATED = "generated"
    IMPORTED = "imported"
    EXTERNAL = "external"
    """Hostler has no key of it."""


class AuthorityState(StrEnum):
    """Where a provider's authority is in its life."""

    NEXT = "next"
    """Hosts get to trust it; it issues nothing yet."""
    CURRENT = "current"
    """It issues, and is trusted."""
    RETIRING = "retiring"
    """It issues no more, and is trusted: certificates of it are in use."""
    LEAVING = "leaving"
    """It is to be trusted no more; hosts may still do."""
    WITHDRAWN = "withdrawn"
    """No host trusts it, or is to. Its revocation list is made until what it has issued has
    expired."""


class CertificateNames(Contract):
    """What a certificate says of its holder. All of it is from the inventory.

    Attributes:
        common_name: the host's name, or Hostler's own.
        unit: `cluster-5f1c...`, a random id that the cluster keeps when it gets another name, and
            that no later one gets.
        dns_names: the host's name, if it is one that DNS allows.
        ip_addresses: those that Hostler and migrations go to.
    """

    common_name: str
    unit: str | None = None
    dns_names: tuple[str, ...] = ()
    ip_addresses: tuple[str, ...] = ()


class Certificate(Contract):
    """A certificate that was issued.

    Attributes:
        provider: the plugin that issued it, or the cluster's `qemu_authority`; and which of its
            authorities (`generation`).
        host: None for Hostler's own.
        subject: in the order of the certificate ("O=Hostler,CN=kvm-1"), which is also that of
            libvirt's `tls_allowed_dn_list`.
        key_sha256: of the SubjectPublicKeyInfo in DER.
        issued_by: the operation.
        installed_at: since when the host goes by it; None: Hostler did not put it there, or has put
            another one in its place.
    """

    serial: str
    provider: str
    generation: int
    host: str | None
    role: CertificateRole
    subject: str
    dns_names: tuple[str, ...]
    ip_addresses: tuple[str, ...]
    key_sha256: str
    not_before: datetime
    not_after: datetime
    issued_at: datetime
    issued_by: str
    revoked_at: datetime | None = None
    revocation_reason: RevocationReason | None = None
    installed_at: datetime | None = None
    pem: str

    def state(self, at: datetime) -> CertificateState:
        """What it is at that moment; an expired one that was revoked stays revoked."""
        if self.revoked_at is not None:
            return CertificateState.REVOKED
        return CertificateState.EXPIRED if self.not_after < at else CertificateState.VALID


def check_reason(certificate: Certificate, reason: RevocationReason) -> None:
    """Raises Conflict if it is revoked for another reason, unless others turn out to have its
    key."""
    first = certificate.revocation_reason
    if first not in (None, reason) and reason not in (
        RevocationReason.UNSPECIFIED,
        RevocationReason.KEY_COMPROMISE,
    ):
        raise Conflict(
            f"The certificate {certificate.serial} is revoked already: {first}.",
            remedy=f"Only {RevocationReason.KEY_COMPROMISE} takes the place of another reason.",
        )


class CrlFacts(Contract):
    """A certificate revocation list; `revoked` is the number of its entries."""

    number: int
    this_update: datetime
    next_update: datetime
    revoked: int


class Authority(Contract):
    """A certificate authority as API and CLI show it; never its key.

    Attributes:
        generation: rises when the provider gets another issuing certificate.
        state: of the provider's generations, the current one issues.
        chain: certificates in PEM: the issuing one first, the trust anchor last.
        sha256: of the issuing certificate in DER.
        crl: the newest list; None: none was made yet.
    """

    provider: str
    generation: int
    state: AuthorityState = AuthorityState.CURRENT
    origin: AuthorityOrigin
    subject: str
    not_before: datetime
    not_after: datetime
    sha256: str
    chain: tuple[str, ...]
    crl: CrlFacts | None = None

    @property
    def name(self) -> str:
        """As lists of authorities have it ("root/1")."""
        return f"{self.provider}/{self.generation}"


def check_host_of_role(role: CertificateRole, host: str | None) -> None:
    """Raises PydanticCustomError."""
    if (role is CertificateRole.CONTROLLER) == (host is not None):
        raise PydanticCustomError(
            "host_of_role", "every role needs a host, but controller, which takes none"
        )


class CertificateSigningInput(Contract):
    """Sign an operator's signing request for a host of the inventory.

    Attributes:
        host: whom it is for; none with the role `controller`.
        requester: who asks, as the audit trail names them.
    """

    csr: RequestPem
    host: Name | None = None
    role: CertificateRole = CertificateRole.HOST
    requester: str = ""

    @model_validator(mode="after")
    def _host_of_role(self) -> "CertificateSigningInput":
        check_host_of_role(self.role, self.host)
        return self


class IssueCertificateInput(CertificateSigningInput):
    """The same as a step of an operation; `request` is the same for each attempt at it."""

    request: str
    operation: str


class CertificateProvisioningInput(Contract):
    """Give a host certificates of its own, or new ones, and have libvirt and QEMU go by them.

    Attributes:
        requester: who asks, as the audit trail names them.
        held: the lease `trust` of the host, which the operation that adds or re-installs it holds
            for this; None: one of its own.
    """

    host: Name
    reason: Reason = ""
    requester: str = ""
    held: LeaseRef | None = None


class UnsecuredHost(Contract):
    """One that a ClusterCertificates has tried in vain: how it went by TLS then, and why."""

    host: Name
    tls: TlsState
    error: str


class SecuringSoFar(Contract):
    """What a ClusterCertificates knows that continues as new; the inventory has all else."""

    since: AwareDatetime
    failed: tuple[UnsecuredHost, ...] = ()


class ClusterCertificatesInput(Contract):
    """Have all hosts of a cluster take and give VMs by TLS only.

    Attributes:
        requester: who asks, as the audit trail names them.
        continued: what it has done before it continued as new.
    """

    cluster: Name
    reason: Reason = ""
    requester: str = ""
    continued: SecuringSoFar | None = None


class TlsWork(StrEnum):
    """Where a host of a ClusterCertificates is."""

    WAITING = "waiting"
    INSTALLING = "gets certificates"
    READY = "ready"
    SECURING = "is being secured"
    SECURED = "secured"
    FAILED = "failed"


class SecuredHost(Contract):
    """One host of a ClusterCertificates; `error`: why it has failed."""

    host: Name
    state: TlsWork
    error: str | None = None


class PlanSecuringInput(Contract):
    """Which hosts the cluster has."""

    cluster: Name


class SecuringPlan(Contract):
    """What a ClusterCertificates has to do.

    Attributes:
        hosts: by name, how they go by TLS now.
        parallel: how many get certificates, or are secured, at a time.
        wait_s: how long another operation on one of them is waited for.
        page: how many are begun before it continues as new.
    """

    zone: Name
    hosts: dict[str, TlsState]
    parallel: int
    wait_s: int
    page: int = 100


class ClusterCertificatesStatus(Contract):
    """Where a ClusterCertificates stands."""

    cluster: Name
    phase: Phase
    reason: str
    message: str
    since: datetime
    hosts: tuple[SecuredHost, ...]
    commands: tuple[str, ...] = ()


class ClusterCertificatesResult(Contract):
    """All hosts of the cluster; they are secured."""

    cluster: Name
    hosts: tuple[Name, ...]


class CertificateSet(Contract):
    """The set that a provisioning makes, as a step of it; `name` is that of its folder.

    Attributes:
        added: the machine may be none of the hosts yet.
    """

    lease: LeaseRef
    name: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z-]{1,80}$")]
    added: bool = False


class CertificateRequests(Contract):
    """Signing requests of a set's two keys."""

    libvirt: RequestPem
    qemu: RequestPem


class SwitchCertificatesInput(CertificateSet):
    """The set with its certificates, by their requests (`IssueCertificateInput.request`)."""

    libvirt: str
    qemu: str


class CertificateProvisioningResult(Contract):
    """Serials of what the host goes by from now on, and when the first of them ends."""

    host: str
    libvirt: str
    qemu: str
    not_after: datetime


class CertificateProvisioningStatus(Contract):
    """Where a provisioning stands."""

    host: str
    phase: Phase
    reason: str
    message: str
    commands: tuple[str, ...]


class CertificateStatus(Contract):
    """What an operation on certificates answers to its query `status`, and shows in Temporal."""

    message: str


class CertificateSigningResult(Contract):
    """The certificate, and the chain of its issuer: the issuing one first."""

    certificate: Certificate
    chain: tuple[str, ...]


class CertificateRevocationInput(Contract):
    """Revoke one certificate, or all valid ones of a host (also of one that was removed).

    Attributes:
        issued_before: of a host, only those: another one may have its name by now.
    """

    serial: Serial | None = None
    host: Name | None = None
    reason: RevocationReason = RevocationReason.UNSPECIFIED
    requester: str = ""
    issued_before: AwareDatetime | None = None

    @model_validator(mode="after")
    def _one_subject(self) -> "CertificateRevocationInput":
        if (self.serial is None) == (self.host is None):
            raise PydanticCustomError("one_subject", "exactly one of serial and host is required")
        return self


class RevokeCertificatesInput(CertificateRevocationInput):
    """The same as a step of an operation; `provider`: only what that one has issued."""

    operation: str
    provider: str | None = None


class CertificateIssuers(Contract):
    """Providers that have issued what is to be revoked."""

    providers: tuple[str, ...]


class RevokedCertificates(Contract):
    """What is revoked now, whether it was before or not, and which of the provider's authorities
    (generations) have to tell of it."""

    serials: tuple[str, ...]
    generations: tuple[int, ...]


class PublishCrlInput(Contract):
    """Make, or fetch, the newest list of one of a provider's authorities."""

    provider: str
    generation: Annotated[int, Field(ge=1)]
    operation: str


class CertificateRevocationResult(Contract):
    """What was revoked, the lists that say so, by authority ("root/1"), and which hosts have got
    these, and which not yet, with why."""

    serials: tuple[str, ...]
    crls: dict[str, CrlFacts]
    delivered: tuple[str, ...] = ()
    missing: dict[str, str] = Field(default_factory=dict)


class AuthoritySetupInput(Contract):
    """Have the provider make its authority, or import an operator's own.

    Attributes:
        key_secret: id of the stored private key.
        chain: certificates in PEM, the issuing one first, a self-signed one last.
    """

    key_secret: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    chain: CertificatesPem | None = None
    requester: str = ""

    @model_validator(mode="after")
    def _key_and_chain(self) -> "AuthoritySetupInput":
        if (self.key_secret is None) != (self.chain is None):
            raise PydanticCustomError("key_and_chain", "key_secret and chain go together")
        return self


class SetUpAuthorityInput(AuthoritySetupInput):
    """The same as a step of an operation."""

    operation: str


class AuthorityUpkeepInput(Contract):
    """One round of the schedule."""


class PlanUpkeepInput(Contract):
    """A round's first step."""

    operation: str


class UpkeepPlan(Contract):
    """What a round finds.

    Attributes:
        every_s: between two rounds.
        due: for each list that has to be made or fetched anew, how.
    """

    every_s: Annotated[int, Field(ge=1)]
    due: tuple[PublishCrlInput, ...]


class AuthorityUpkeepResult(Contract):
    """The lists that were made or fetched, by authority ("root/1"), and which hosts have got the
    newest ones, and which not yet, with why."""

    crls: dict[str, CrlFacts]
    delivered: tuple[str, ...] = ()
    missing: dict[str, str] = Field(default_factory=dict)
