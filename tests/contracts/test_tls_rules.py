"""What is wrong with a host's TLS, by its code and words."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from contracts.preflight import Severity
from contracts.tls_check import Handshake, TlsCase, TlsFacts
from contracts.tls_rules import explain

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
ALLOWED = '["O=Hostler,OU=cluster-1f,CN=*", "O=Hostler,CN=hostler controller"]'
GOOD = TlsFacts(
    clock_s=round(NOW.timestamp()),
    set="run-1",
    certificate="pem",
    key_fits=True,
    crls="c1",
    qemu_crls="c1",
    trusts="t2",
    qemu_trusts="q2",
    allowed=ALLOWED,
    daemon="active",
    tls_socket="active",
    tcp_socket="inactive",
    listens=True,
)
WORKS = TlsCase(
    host="kvm-1",
    address="198.18.0.11",
    now=NOW,
    facts=GOOD,
    handshake=Handshake.SHOWN,
    shown_serial="7f",
    installed_serial="7f",
    serial="7f",
    not_before=NOW - timedelta(days=100),
    not_after=NOW + timedelta(days=100),
    ip_addresses=("198.18.0.11", "198.18.1.11"),
    allowed=ALLOWED,
    crls="c1",
    trusts="t2",
    qemu_trusts="q2",
)


def case(facts: dict[str, Any] | None = None, **changes: Any) -> TlsCase:
    changed = WORKS.model_copy(update={"facts": GOOD.model_copy(update=facts or {})})
    return changed.model_copy(update=changes)


def codes(one: TlsCase) -> set[str]:
    return {finding.code for finding in explain(one)}


def test_where_all_is_well_there_is_nothing_to_say() -> None:
    assert [*explain(WORKS)] == []
    # A clock may be a little off, and lists may not be there yet.
    assert codes(case({"clock_s": GOOD.clock_s + 30})) == set()
    assert codes(case({"crls": None, "qemu_crls": None}, crls=None)) == set()
    # A secured host migrates by TLS only; others need not.
    for secured in (True, False):
        assert codes(case({"forced": True}, secured=secured)) == set()


@pytest.mark.parametrize(
    ("one", "code", "says"),
    [
        (case(serial=None), "certificate-unreadable", "no certificate"),
        (case({"clock_s": GOOD.clock_s - 86_400}), "clock", "86400 s behind"),
        (case({"clock_s": GOOD.clock_s + 3600}), "clock", "3600 s ahead"),
        (case({"unproven": "run-2"}), "unproven", "run-2"),
        (case({"key_fits": False}), "key-mismatch", "another one's"),
        (case({"chain": "no issuer"}), "chain", "no issuer"),
        (case({"elsewhere": ("/etc/pki/CA/cacert.pem",)}), "files-elsewhere", "cacert.pem"),
        (case({"crls": "c0"}), "crl-outdated", "newest"),
        (case({"qemu_crls": "c0"}), "crl-outdated", "newest"),
        (case({"crls": None}), "crl-missing", "revoked"),
        (case({"trusts": "t1"}), "trust-outdated", "just the CAs"),
        (case({"qemu_trusts": "t2"}), "trust-outdated", "just the CAs"),
        (case({"trusts": None}), "trust-outdated", "just the CAs"),
        (case({"daemon": "failed"}), "libvirtd-failed", "failed"),
        (case({"tls_socket": "inactive"}), "tls-socket", "inactive"),
        (case({"tcp_socket": "active"}), "plain-tcp", "plain TCP"),
        (case({"allowed": None}), "allow-list", "not set"),
        (case({"old_vnc": ("vm-1", "vm-2")}), "old-vnc-certificate", "vm-1, vm-2"),
        (case(revoked=True), "revoked", "7f was revoked"),
        (case(address="198.18.0.99"), "address", "198.18.0.99"),
        (case(not_before=NOW + timedelta(days=1)), "not-valid-yet", "2026-11-27"),
        (case(secured=True), "not-forced", "migrates without TLS, too"),
        (
            case({"forced": True}, secured=True, keeps_hostler_out=True),
            "hostler-kept-out",
            "does not let Hostler in",
        ),
        (case(lets_in=True), "lets-in-anybody", "no certificate"),
        (case(shown_serial="7e"), "not-loaded", "shows the certificate 7e"),
        (
            case(installed_serial="80", shown_serial="7f"),
            "another-certificate",
            "Hostler has put 80 there",
        ),
    ],
)
def test_what_is_wrong_is_the_only_thing_that_is_said(one: TlsCase, code: str, says: str) -> None:
    found = [*explain(one)]
    assert [finding.code for finding in found] == [code]
    assert says in found[0].found
    assert found[0].remedy


def test_an_expired_one_is_told_of_from_both_sides() -> None:
    one = case(
        not_after=NOW - timedelta(hours=1),
        handshake=Handshake.REFUSED,
        shown_serial=None,
        problem="certificate has expired",
    )
    expired, shown = explain(one)
    assert (expired.code, shown.code) == ("expired", "not-believed")
    assert "does not start with it" in expired.found
    assert "Do not restart libvirtd before." in expired.remedy
    assert "the certificate that it shows has expired" in shown.found


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("certificate is not yet valid", "not valid yet"),
        ("IP address mismatch, certificate is not valid for '198.18.0.11'", "other addresses"),
        ("unable to get local issuer certificate", "another CA"),
        ("self-signed certificate in certificate chain", "another CA"),
        ("WRONG_VERSION_NUMBER", "The handshake fails"),
    ],
)
def test_what_openssl_says_is_said_in_words(said: str, words: str) -> None:
    (found,) = explain(case(handshake=Handshake.REFUSED, shown_serial=None, problem=said))
    assert words in found.found
    assert said in found.found


def test_a_firewall_is_told_from_a_daemon_that_is_away() -> None:
    silent: dict[str, Any] = {
        "handshake": Handshake.SILENT,
        "shown_serial": None,
        "problem": "timed out",
    }
    assert codes(case(**silent)) == {"port-closed"}
    assert codes(case({"listens": False}, **silent)) == {"no-answer"}
    assert codes(case({"listens": False, "tls_socket": "failed"}, **silent)) == {"tls-socket"}


def test_without_certificates_nothing_else_is_missed() -> None:
    nothing = TlsFacts(clock_s=GOOD.clock_s, daemon="active")
    bare = WORKS.model_copy(
        update={
            "facts": nothing,
            "handshake": Handshake.SILENT,
            "shown_serial": None,
            "serial": None,
            "installed_serial": None,
        }
    )
    assert codes(bare) == {"no-certificates"}
    assert codes(bare.model_copy(update={"installed_serial": "7f"})) == {"certificates-gone"}


def test_one_that_can_not_be_asked_is_looked_at_from_outside() -> None:
    away = WORKS.model_copy(update={"facts": None, "unasked": "no route", "serial": None})
    assert codes(away) == {"host-silent"}
    silent = away.model_copy(update={"handshake": Handshake.SILENT, "shown_serial": None})
    assert codes(silent) == {"host-silent", "no-answer"}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("Unable to verify TLS peer: No certificate was found.", "without a certificate"),
        ("Certificate failed validation: The certificate has been revoked.", "was revoked"),
        (
            "Client's Distinguished Name is not on the list of allowed clients",
            "of another cluster",
        ),
        ("Certificate failed validation: The certificate hasn't got a known issuer.", "of a CA"),
        ("Certificate failed validation: The certificate is not trusted.", "has expired"),
    ],
)
def test_whom_libvirtd_has_turned_away_is_said_once(said: str, words: str) -> None:
    (found,) = explain(case({"said": (said, said, "Certificates are nice")}))
    assert (found.code, found.severity) == ("turned-away", Severity.WARNING)
    assert words in found.found
