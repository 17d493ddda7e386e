"""Which names a certificate gets, and what a signing request asks for beyond that."""

import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_address

from contracts.certificates import CertificateNames, CertificateRole
from contracts.hosts import Host
from contracts.settings import Network
from drivers.authorities.x509 import EXTENDED_KEY_USAGES, ORGANIZATION, CsrFacts

# No host can be called so: a blank is in no name of the inventory.
CONTROLLER_NAMES = CertificateNames(common_name="hostler controller")

_MOST_NAMED = 20
_MAX_CHARS = 200

_DNS_NAME = re.compile(r"([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]*[a-z0-9])?", re.I)


def names_of(
    host: Host, cluster_id: int, network: Network | None, owners: Mapping[str, str]
) -> CertificateNames:
    """What the inventory says of a host.

    Args:
        network: that of migrations; None: they go to the address that Hostler reaches it by.
        owners: by address, the host that Hostler reaches there.

    A host reports its addresses itself: one where Hostler reaches another host is not believed.
    """
    reported = host.facts.addresses if host.facts is not None else ()
    addresses = [host.address]
    if network is not None:
        addresses += [
            address
            for address in reported
            if ip_address(address) in network and owners.get(address, host.name) == host.name
        ]
    return CertificateNames(
        common_name=host.name,
        unit=f"cluster-id-{cluster_id}",
        dns_names=(host.name,) if _is_dns_name(host.name) else (),
        ip_addresses=tuple(dict.fromkeys(str(ip_address(address)) for address in addresses)),
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
