"""Why a host's TLS does not work, in words. Pure: the same in, the same out.

Each rule looks at one thing, so that all are told at once. What rests on something that is missing
is left out: that has a finding of its own.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

from contracts.preflight import Finding
from contracts.preflight_rules import error, warning
from contracts.tls_check import Handshake, TlsCase, TlsFacts

PORT = 16514
_CLOCKS_DIFFER_BY_S = 60
_MOST_NAMED = 10
# What libvirtd and GnuTLS say of a client that is turned away.
_TURNED_AWAY = (
    ("No certificate was found", "a client came without a certificate"),
    ("has been revoked", "a client came with a certificate that was revoked"),
    (
        "not on the list of allowed clients",
        "a client came with a certificate of another cluster",
    ),
    (
        "known issuer",
        "a client came with a certificate of a CA that libvirt there does not know, as is QEMU's",
    ),
    (
        "is not trusted",
        "a client came with a certificate that has expired, or is not valid yet by the host's "
        "clock",
    ),
)
# What OpenSSL says of the certificate that a host shows.
_NOT_BELIEVED = (
    ("has expired", "the certificate that it shows has expired"),
    ("not yet valid", "the certificate that it shows is not valid yet"),
    ("mismatch", "the certificate that it shows is for other addresses"),
    ("issuer certificate", "the certificate that it shows is signed by another CA"),
    ("self-signed", "the certificate that it shows is signed by another CA"),
    ("self signed", "the certificate that it shows is signed by another CA"),
)


def explain(case: TlsCase) -> Iterator[Finding]:
    """All that is wrong."""
    facts = case.facts
    if facts is None:
        yield error(
            "host-silent",
            f"{case.host} could not be asked: {case.unasked}",
            f"See `hostler host check {case.host}`.",
        )
    elif facts.set is None:
        yield _without(case)
    else:
        yield from _of_clock(case, facts)
        yield from _of_files(case, facts)
        yield from _of_lists(case, facts)
        yield from _of_trust(case, facts)
    if facts is not None:
        yield from _of_libvirtd(case, facts)
    yield from _of_handshake(case)
    if facts is not None:
        yield from _of_others(case, facts)


def _without(case: TlsCase) -> Finding:
    if case.installed_serial is None:
        return error(
            "no-certificates",
            f"{case.host} has no certificates of Hostler's.",
            _provision(case),
        )
    return error(
        "certificates-gone",
        f"Hostler has put certificates on {case.host}, and they are not there any more: was it "
        "installed anew?",
        _provision(case),
    )


def _of_clock(case: TlsCase, facts: TlsFacts) -> Iterator[Finding]:
    off = facts.clock_s - round(case.now.timestamp())
    if abs(off) > _CLOCKS_DIFFER_BY_S:
        yield error(
            "clock",
            f"The clock of {case.host} is {abs(off)} s {'ahead' if off > 0 else 'behind'}: it "
            "takes good certificates for expired, or not valid yet.",
            "Set it, and have it kept by NTP.",
        )


def _of_files(case: TlsCase, facts: TlsFacts) -> Iterator[Finding]:
    if facts.unproven is not None:
        yield warning(
            "unproven",
            f"A provisioning has switched {case.host} to the set {facts.unproven}, and was ended "
            "before that was proven.",
            f"The next one puts back what was there first: {_provision(case)}",
        )
    if case.serial is None:
        yield error(
            "certificate-unreadable",
            f"What lies in /etc/hostler/tls/current/cert.pem on {case.host} is no certificate.",
            _provision(case),
        )
        return
    if case.revoked and case.serial == case.installed_serial:
        yield error(
            "revoked",
            f"The certificate {case.serial} was revoked: the other hosts let {case.host} in no "
            "more.",
            _provision(case),
        )
    if case.serial != case.installed_serial:
        yield error(
            "another-certificate",
            f"{case.host} has the certificate {case.serial}, and Hostler has put "
            f"{case.installed_serial or 'none'} there.",
            _provision(case),
        )
    if not facts.key_fits:
        yield error(
            "key-mismatch",
            f"The key beside the certificate on {case.host} is another one's: libvirtd starts no "
            "more with them.",
            _provision(case),
        )
    if case.not_after is not None and case.not_after < case.now:
        yield error(
            "expired",
            f"The certificate of {case.host} has expired at {_time(case.not_after)}. Its libvirtd "
            "serves it until it is restarted, and does not start with it.",
            f"{_provision(case)} Do not restart libvirtd before.",
        )
    elif case.not_before is not None and case.not_before > case.now:
        yield error(
            "not-valid-yet",
            f"The certificate of {case.host} is valid from {_time(case.not_before)} on.",
            "Is the clock of this worker, or was that of the CA, right?",
        )
    elif facts.chain:
        yield error(
            "chain",
            f"By the CAs beside it, the certificate of {case.host} is no good: {facts.chain}.",
            _provision(case),
        )
    if case.ip_addresses and case.address not in case.ip_addresses:
        yield error(
            "address",
            f"The certificate of {case.host} is for {', '.join(case.ip_addresses)}, and the host "
            f"is reached at {case.address}.",
            _provision(case),
        )
    if facts.elsewhere:
        yield error(
            "files-elsewhere",
            f"These on {case.host} are not those of Hostler's set: {_named(facts.elsewhere)}.",
            f"Somebody has put others there. {_provision(case)}",
        )


def _of_lists(case: TlsCase, facts: TlsFacts) -> Iterator[Finding]:
    if case.crls is None or facts.crls == facts.qemu_crls == case.crls:
        return
    if facts.crls is None or facts.qemu_crls is None:
        yield error(
            "crl-missing",
            f"{case.host} has no revocation list: it lets in who has a revoked certificate.",
            _provision(case),
        )
        return
    yield warning(
        "crl-outdated",
        f"{case.host} does not have the newest revocation lists.",
        "It gets them with the next rounds of checks: see `hostler ca hosts --missing`.",
    )


def _of_trust(case: TlsCase, facts: TlsFacts) -> Iterator[Finding]:
    wanted = case.trusts, case.qemu_trusts
    if case.trusts is not None and (facts.trusts, facts.qemu_trusts) != wanted:
        yield warning(
            "trust-outdated",
            f"{case.host} does not trust just the CAs that it is to: of another one, it refuses "
            "who should come in, or lets in who should not.",
            "During a rollover, also of the CA of its cluster's QEMUs, it is told with the next "
            "rounds of checks: see `hostler ca rollover status`, there with --cluster. Otherwise: "
            f"{_provision(case)}",
        )


def _of_libvirtd(case: TlsCase, facts: TlsFacts) -> Iterator[Finding]:
    if facts.daemon == "failed":
        yield error(
            "libvirtd-failed",
            f"libvirtd on {case.host} has failed, and systemd starts it no more.",
            "See `journalctl -u libvirtd` there. Once that is mended: systemctl reset-failed "
            "'libvirtd*' && systemctl restart libvirtd.socket libvirtd",
        )
    if case.secured and not facts.forced:
        yield error(
            "not-forced",
            f"{case.host} is secured, and its libvirt migrates without TLS, too: migrate_tls_force "
            "in /etc/libvirt/qemu.conf there is not 1.",
            "Put it there, and restart libvirtd while no VM migrates.",
        )
    if facts.set is None:
        return
    if facts.tls_socket != "active":
        yield error(
            "tls-socket",
            f"libvirtd-tls.socket on {case.host} is {facts.tls_socket}: nobody listens for TLS.",
            "systemctl stop libvirtd && systemctl enable --now libvirtd-tls.socket && systemctl "
            "start libvirtd",
        )
    if facts.tcp_socket == "active":
        yield error(
            "plain-tcp",
            f"libvirtd on {case.host} listens for plain TCP, too: whoever reaches it is root.",
            "systemctl disable --now libvirtd-tcp.socket",
        )
    if facts.allowed != case.allowed:
        yield error(
            "allow-list",
            f"tls_allowed_dn_list in /etc/libvirt/libvirtd.conf on {case.host} is "
            f"{facts.allowed or 'not set'}, and should be {case.allowed}.",
            _provision(case),
        )


def _of_handshake(case: TlsCase) -> Iterator[Finding]:
    if case.handshake is Handshake.SILENT:
        facts = case.facts
        if facts is not None and facts.listens:
            yield error(
                "port-closed",
                f"libvirtd on {case.host} listens on {PORT}, and does not answer from here: "
                f"{case.problem}",
                f"A firewall is in between: open TCP {PORT} for all hosts of its cluster and for "
                "Hostler's workers.",
            )
        elif facts is None or (facts.set is not None and facts.tls_socket == "active"):
            yield error(
                "no-answer",
                f"Nobody answers on {PORT}: {case.problem}",
                "Is libvirtd running there?",
            )
    elif case.handshake is Handshake.REFUSED:
        yield error(
            "not-believed",
            f"{_translated(_NOT_BELIEVED, case.problem) or 'The handshake fails'}: {case.problem}",
            "What else is said here tells why; if nothing is, another machine answers at "
            f"{case.address}.",
        )
    else:
        if case.serial is not None and case.shown_serial != case.serial:
            yield error(
                "not-loaded",
                f"libvirtd on {case.host} shows the certificate {case.shown_serial}, and "
                f"{case.serial} lies there.",
                "virt-admin server-update-tls libvirtd",
            )
        if case.lets_in:
            yield error(
                "lets-in-anybody",
                f"libvirtd on {case.host} lets in who has no certificate.",
                "See tls_no_verify_certificate in /etc/libvirt/libvirtd.conf there, and what else "
                f"listens on {PORT}.",
            )
        if case.keeps_hostler_out:
            yield error(
                "hostler-kept-out",
                f"libvirtd on {case.host} does not let Hostler in by its own certificate.",
                _provision(case),
            )


def _of_others(case: TlsCase, facts: TlsFacts) -> Iterator[Finding]:
    if facts.old_vnc:
        yield warning(
            "old-vnc-certificate",
            f"These VMs run since before the certificate came, and offer VNC by the former one: "
            f"{_named(facts.old_vnc)}.",
            'virsh qemu-monitor-command VM \'{"execute":"display-reload","arguments":'
            '{"type":"vnc","tls-certs":true}}\', or migrate them.',
        )
    reasons = (_translated(_TURNED_AWAY, line) for line in facts.said)
    for reason in dict.fromkeys(one for one in reasons if one):
        yield warning(
            "turned-away",
            f"Within the last hour, {reason}.",
            f"See `journalctl -u libvirtd` on {case.host}; if another host was turned away: "
            "`hostler doctor tls` with that one.",
        )


def _translated(words: tuple[tuple[str, str], ...], said: str) -> str:
    return next((ours for theirs, ours in words if theirs in said), "")


def _provision(case: TlsCase) -> str:
    return f"hostler cert provision {case.host}."


def _named(names: tuple[str, ...]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _time(when: datetime) -> str:
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
