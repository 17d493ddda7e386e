"""A look at a host's TLS: what it says of itself, what it shows to others, and what that means."""

from datetime import datetime
from enum import StrEnum

from contracts.base import Contract, Name
from contracts.preflight import Finding

TLS_CHECK = "TlsCheck"
"""The workflow's type."""


class TlsFacts(Contract):
    """What a host says of itself.

    Attributes:
        clock_s: its time, in Unix seconds.
        set: the set of certificates that counts there; None: there is none.
        unproven: the operation's set that was switched to and never proven, if there is one.
        certificate: libvirt's own, in PEM.
        key_fits: whether its key is the one beside it.
        chain: what openssl has against the certificate, by the CAs beside it; empty: nothing.
        elsewhere: files that libvirt or QEMU look for, and that are not of that set.
        crls, qemu_crls: SHA-256 of libvirt's revocation lists, and of QEMU's.
        trusts, qemu_trusts: the same of the CAs that they trust.
        allowed: clients that libvirtd lets in, as libvirtd.conf has it.
        daemon, tls_socket, tcp_socket: how systemd calls their state.
        listens: whether anybody does on the port of libvirt's TLS.
        forced: its libvirt migrates by TLS only, as qemu.conf has it.
        said: what libvirtd has said of TLS within the hour.
        old_vnc: VMs whose QEMU was started before the set came, and offers VNC by the former
            certificate.
    """

    clock_s: int
    set: str | None = None
    unproven: str | None = None
    certificate: str | None = None
    key_fits: bool = False
    chain: str = ""
    elsewhere: tuple[str, ...] = ()
    crls: str | None = None
    qemu_crls: str | None = None
    trusts: str | None = None
    qemu_trusts: str | None = None
    allowed: str | None = None
    daemon: str = "unknown"
    tls_socket: str = "unknown"
    tcp_socket: str = "unknown"
    listens: bool = False
    forced: bool = False
    said: tuple[str, ...] = ()
    old_vnc: tuple[str, ...] = ()


class Handshake(StrEnum):
    """How a host answers a client without a certificate."""

    SHOWN = "shown"
    """By its own certificate, which the CA has signed."""
    REFUSED = "refused"
    """By a certificate that is not the host's by the CA's word."""
    SILENT = "silent"
    """Nobody answers there."""


class TlsCase(Contract):
    """All that is known when it is explained.

    Attributes:
        facts: None: the host could not be asked (`unasked`: why).
        handshake, problem: how it answers, and in which words it does not.
        shown_serial: of the certificate that it shows.
        lets_in: it lets in who has none.
        secured: it is to take and give VMs by TLS only, and to let Hostler in by Hostler's own
            certificate.
        keeps_hostler_out: it does not let that in.
        installed_serial: of the certificate that Hostler has put there last; None: it has put none.
        revoked: that one was revoked.
        serial, not_before, not_after, ip_addresses: of the certificate that lies there.
        allowed: who may come in, as libvirtd.conf should have it.
        crls: SHA-256 of the lists that the host should have; None: there are none.
        trusts, qemu_trusts: the same of the CAs that its libvirt should trust, and its QEMU; None:
            it has no certificates.
    """

    host: str
    address: str
    now: datetime
    facts: TlsFacts | None = None
    unasked: str = ""
    handshake: Handshake = Handshake.SILENT
    problem: str = ""
    shown_serial: str | None = None
    lets_in: bool = False
    secured: bool = False
    keeps_hostler_out: bool = False
    installed_serial: str | None = None
    revoked: bool = False
    serial: str | None = None
    not_before: datetime | None = None
    not_after: datetime | None = None
    ip_addresses: tuple[str, ...] = ()
    allowed: str = ""
    crls: str | None = None
    trusts: str | None = None
    qemu_trusts: str | None = None


class TlsCheckInput(Contract):
    """Look at the TLS of one host."""

    host: Name


class TlsReport(Contract):
    """What was found; without a finding that is an error, TLS works there.

    Attributes:
        shown_serial: of the certificate that it shows, until `not_after`.
        old_vnc: VMs that offer VNC by a former certificate.
    """

    host: str
    findings: tuple[Finding, ...]
    shown_serial: str | None = None
    not_after: datetime | None = None
    old_vnc: tuple[str, ...] = ()
