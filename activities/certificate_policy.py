"""Which names a certificate gets, and what a signing request asks for beyond that."""

import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_address

from contracts.certificates import CertificateNames, CertificateRole, qemu_authority
from contracts.errors import Conflict
from contracts.hosts import Host
from contracts.settings import Network
from drivers.authorities.x509 import EXTENDED_KEY_USAGES, ORGANIZATION, CsrFacts

# No host can be called so: a blank is in no name of the inventory.
CONTROLLER_NAMES = CertificateNames(common_name="hostler controller")

_MOST_NAMED = 20
_MAX_CHARS = 200

_DNS_NAME = re.compile(r"([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]*[a-z0-9])?", re.I)


def migration_addresses(host: Host, network: Network | None) -> tuple[str, ...]:
    """What a host reports to have in the network of migrations; with None, these go to the address
    that Hostler reaches it by."""
    if network is None or host.facts is None:
        return ()
    found = (ip_address(address) for address in host.facts.addresses)
    return tuple(dict.fromkeys(str(address) for address in found if address in network))


def names_of(
    host: Host, unit: str, network: Network | None, claims: Mapping[str, str]
) -> CertificateNames:
    """What the inventory says of a host.

    Args:
        claims: by address, another host that is reached there, or reports to have it, too.

    A host reports its addresses itself, and may lie: one that others have, too, gets into nobody's
    certificate. Raises Conflict if no address is left for migrations.
    """
    reported = migration_addresses(host, network)
    control = str(ip_address(host.address))
    addresses = (control, *(one for one in reported if one not in claims))
    if network is not None and not any(ip_address(one) in network for one in addresses):
        shared = [f"{one}, which {claims[one]} has, too" for one in reported if one != control]
        raise Conflict(
            f"{host.name} has no address of its own in migration.network ({network}): "
            f"{'; '.join(shared) or 'it reports none there'}.",
            remedy=f"Give it one, then `hostler host check {host.name}`.",
        )
    return CertificateNames(
        common_name=host.name,
        unit=unit,
        dns_names=(host.name,) if _is_dns_name(host.name) else (),
        ip_addresses=tuple(dict.fromkeys(addresses)),
    )


def names_in_role(names: CertificateNames, role: CertificateRole) -> CertificateNames:
    """QEMU has a unit of its own: what it holds must not be on libvirt's list of who may come in,
    since whoever breaks out of a VM has it."""
    if role is not CertificateRole.QEMU or names.unit is None:
        return names
    return names.model_copy(update={"unit": qemu_authority(names.unit)})


def allowed_names(unit: str) -> tuple[str, str]:
    """Who may come into libvirtd, for its `tls_allowed_dn_list`: the cluster's hosts, Hostler."""
    return (
        f"O={ORGANIZATION},OU={unit},CN=*",
        f"O={ORGANIZATION},CN={CONTROLLER_NAMES.common_name}",
    )


def beyond(csr: CsrFacts, names: CertificateNames, role: CertificateRole) -> tuple[str, ...]:
    """What it asks for that a certificate of these names in this role does not have, in words.
    Asking for less is fine: the certificate has all of them."""
    found = [_printable(words) for words in _beyond(csr, names, role)]
    more = len(found) - _MOST_NAMED
    return (*found[:_MOST_NAMED], *([f"{more} more"] if more > 0 else []))


def _beyond(csr: CsrFacts, names: CertificateNames, role: CertificateRole) -> tuple[str, ...]:
    subject = {("O", ORGANIZATION), ("OU", names.unit), ("CN", names.common_name)}
    usages = {usage.dotted_string for usage in EXTENDED_KEY_USAGES[role]}
    return (
        *(f"{kind}={value}" for kind, value in csr.subject if (kind, value) not in subject),
        *(f"DNS:{name}" for name in _others(csr.dns_names, names.dns_names)),
        *(f"IP:{name}" for name in _others(csr.ip_addresses, names.ip_addresses)),
        *csr.other_names,
        *(f"usage {usage}" for usage in csr.extended_key_usages if usage not in usages),
        *csr.extensions,
    )


def _printable(words: str) -> str:
    """What a stranger has sent goes into events and errors."""
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in words)
    return shown if len(shown) <= _MAX_CHARS else f"{shown[:_MAX_CHARS]}..."


def _others(asked: Iterable[str], known: Iterable[str]) -> list[str]:
    """DNS does not tell small from capital letters."""
    small = {name.lower() for name in known}
    return [name for name in asked if name.lower() not in small]


def _is_dns_name(name: str) -> bool:
    """RFC 1123; an address in digits is not a name."""
    try:
        ip_address(name)
    except ValueError:
        return _DNS_NAME.fullmatch(name) is not None
    return False
