"""Certificates of hosts, by the script hooks/tls, and how libvirtd answers by them."""

import asyncio
import importlib.resources
import os
import ssl
import textwrap
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from pydantic import ValidationError

from contracts.certificates import requests_in
from contracts.tls_check import TlsFacts
from drivers.commands import check_change, unexpected
from drivers.errors import HostBusy, HostUnreachable, RestartNeeded, TlsRefused
from drivers.protocols import (
    CertificateFiles,
    ClientCertificate,
    CommandResult,
    HostAccess,
    RemoteShell,
    TlsAnswer,
    TlsLogin,
)
from drivers.tunnels import LocalTunnel

PORT = 16514
_LOCKED, _RESTART_NEEDED, _BUSY = 75, 78, 79
_EPOCH_FILE = "/etc/hostler/tls/epoch"
_LET_IN = b"\x01"  # what libvirtd sends to a client whose certificate it takes
_ANSWERS_WITHIN_S = 10.0
_PEM_COLUMNS = 64
# Of what `examine` tells, what may be told several times.
_MANY = frozenset({"elsewhere", "said", "old_vnc"})


async def open_tls_tunnel(access: HostAccess, login: TlsLogin) -> LocalTunnel:
    """A tunnel to the host's libvirtd by TLS, for one local connection. The caller closes it.

    Raises HostUnreachable, TlsRefused (what answers is not the host, or does not let us in).
    """
    reader, writer = await _connect(access, login.authorities, login.client)
    stack = AsyncExitStack()
    stack.callback(writer.transport.abort)
    try:
        if await _first_byte(reader) != _LET_IN:
            raise TlsRefused(
                f"libvirtd on {access.name} does not let Hostler in by its certificate.",
                remedy=f"hostler cert provision {access.name}",
            )
        tunnel = LocalTunnel(lambda: reader.at_eof() or writer.is_closing(), stack)
        try:
            await tunnel.open(reader, writer, hang_up=writer.transport.abort)
        except OSError:
            await tunnel.close()
            raise
    except BaseException:
        await stack.aclose()
        raise
    return tunnel


class ScriptCertificates:
    """HostCertificates with a shell script.

    Args:
        shell: runs it on the host.
        command_timeout: seconds for one run, a restart of libvirtd included.
    """

    def __init__(self, shell: RemoteShell, *, command_timeout: float = 180.0) -> None:
        self._shell = shell
        self._command_timeout = command_timeout

    async def prepare(
        self, access: HostAccess, name: str, epoch: int, *, key_bits: int, restart: bool = True
    ) -> tuple[str, str]:
        """Make the keys of a new set, there; signing requests (PEM) of libvirt's and QEMU's."""
        words = (_may(restart=restart), access.name, str(key_bits))
        said = await self._change(access, "prepare", name, epoch, *words)
        found = requests_in(said)
        if len(found) != len(("libvirt", "qemu")):
            raise unexpected(access, "tls prepare", said)
        return found[0], found[1]

    async def place(
        self,
        access: HostAccess,
        name: str,
        epoch: int,
        *,
        libvirt: CertificateFiles,
        qemu: CertificateFiles,
    ) -> None:
        """Write the certificates beside their keys, and check that they belong together."""
        text = _parts(
            (f"{part}/{file}", pem)
            for part, files in (("libvirt", libvirt), ("qemu", qemu))
            for file, pem in (
                ("cert.pem", files.certificate),
                ("ca.pem", files.authorities),
                ("crl.pem", files.crls),
            )
        )
        await self._change(access, "place", name, epoch, stdin=text)

    async def switch(
        self,
        access: HostAccess,
        name: str,
        epoch: int,
        *,
        allowed: Sequence[str],
        restart: bool = True,
    ) -> None:
        """Have libvirt and QEMU go by the set from now on."""
        words = (_may(restart=restart), access.address, *allowed)
        await self._change(access, "switch", name, epoch, *words)

    async def restore(
        self, access: HostAccess, name: str, epoch: int, *, restart: bool = True
    ) -> bool:
        """What counted before the switch counts again, and the set is deleted."""
        may = _may(restart=restart)
        return bool((await self._change(access, "restore", name, epoch, may)).strip())

    async def confirm(self, access: HostAccess, epoch: int) -> None:
        """What was restored has been proven."""
        await self._change(access, "confirm", "-", epoch)

    async def finish(self, access: HostAccess, name: str, epoch: int) -> None:
        """The switch stays: delete what it has replaced."""
        await self._change(access, "finish", name, epoch)

    async def secure(self, access: HostAccess, epoch: int, *, restart: bool = True) -> None:
        """Have libvirt refuse migrations that are not by TLS, in and out."""
        await self._change(access, "secure", "-", epoch, _may(restart=restart))

    async def update_crls(self, access: HostAccess, epoch: int, crls: str) -> None:
        """Have libvirt and QEMU go by these revocation lists from now on."""
        await self._change(access, "crl", "-", epoch, stdin=crls)

    async def update_trust(
        self, access: HostAccess, epoch: int, *, libvirt: str, qemu: str
    ) -> None:
        """Have libvirt and QEMU trust these CAs from now on, and no others."""
        text = _parts((("libvirt/ca.pem", libvirt), ("qemu/ca.pem", qemu)))
        await self._change(access, "trust", "-", epoch, access.address, stdin=text)

    async def examine(self, access: HostAccess) -> TlsFacts:
        """What is so of all that, and of libvirtd."""
        said = await self._change(access, "examine", "-", 0)
        found: dict[str, list[str]] = {}
        for line in said.splitlines():
            name, _, value = line.partition(" ")
            found.setdefault(name, []).append(value.strip())
        try:
            return TlsFacts.model_validate(
                {name: _field(name, values) for name, values in found.items()}
            )
        except ValidationError as error:
            raise unexpected(access, "tls examine", said) from error

    async def look(self, access: HostAccess) -> list[str]:
        """What of all that is there, one line each."""
        return (await self._change(access, "look", "-", 0)).splitlines()

    async def remove(self, access: HostAccess) -> list[str]:
        """Take all of it off; what was there."""
        return (await self._change(access, "remove", "-", 0)).splitlines()

    async def ask(
        self, access: HostAccess, authorities: str, client: ClientCertificate | None = None
    ) -> TlsAnswer:
        """Connect from here, without a certificate or with that: by TLS 1.3 a client learns whether
        it was let in only from what comes after the handshake."""
        reader, writer = await _connect(access, authorities, client)
        try:
            serial = writer.get_extra_info("peercert")["serialNumber"]
            said = await _first_byte(reader)
        finally:
            writer.transport.abort()
        return TlsAnswer(serial=serial.lower().lstrip("0"), lets_in=said == _LET_IN)

    async def _change(
        self,
        access: HostAccess,
        action: str,
        name: str,
        epoch: int,
        *words: str,
        stdin: str | None = None,
    ) -> str:
        command = ["sh", "-c", _SCRIPT, "tls", action, name, str(epoch), *words]
        result = await self._shell.run(access, command, stdin=stdin, timeout=self._command_timeout)
        _check_busy(access, result)
        check_change(access, f"tls {action}", result, epoch, counter=_EPOCH_FILE)
        return result.stdout


async def _connect(
    access: HostAccess, authorities: str, client: ClientCertificate | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """By TLS 1.3 a client learns whether it was let in only from what comes after this."""
    context = ssl.create_default_context(cadata=authorities)
    if client is not None:
        _show(context, client)
    try:
        async with asyncio.timeout(_ANSWERS_WITHIN_S):
            return await asyncio.open_connection(
                access.address, PORT, ssl=context, server_hostname=access.address
            )
    except ssl.SSLError as error:
        raise TlsRefused(
            f"What answers at {access.address}:{PORT} is not {access.name} by the CA's word: "
            f"{getattr(error, 'verify_message', None) or error.reason}."
        ) from error
    except (OSError, TimeoutError) as error:
        raise HostUnreachable(
            f"{access.name} does not answer at {access.address}:{PORT}: {error or 'timed out'}.",
            remedy="Is a firewall in between? Hostler opens that port in firewalld and ufw alone; "
            "hosts of its cluster reach its libvirtd there, too.",
        ) from error


async def _first_byte(reader: asyncio.StreamReader) -> bytes:
    with suppress(OSError, ssl.SSLError, TimeoutError):
        async with asyncio.timeout(_ANSWERS_WITHIN_S):
            return await reader.read(1)
    return b""


def _show(context: ssl.SSLContext, client: ClientCertificate) -> None:
    """OpenSSL takes it from a file only: of memory, which is gone with its last reader."""
    descriptor = os.memfd_create("client")
    try:
        path = Path(f"/proc/self/fd/{descriptor}")
        path.write_text(client.certificate + client.key, encoding="ascii")
        context.load_cert_chain(path)
    finally:
        os.close(descriptor)


def _field(name: str, values: list[str]) -> object:
    if name == "certificate":
        body = "\n".join(textwrap.wrap(values[0], _PEM_COLUMNS))
        return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"
    return tuple(values) if name in _MANY else values[0]


def _parts(files: Iterable[tuple[str, str]]) -> str:
    """Files of a set, by their names in it, as the script reads them."""
    return "".join(f"== {name}\n{pem.strip()}\n" for name, pem in files)


def _may(*, restart: bool) -> str:
    return "restart" if restart else "stay"


def _check_busy(access: HostAccess, result: CommandResult) -> None:
    if result.exit_status == _LOCKED:
        raise HostBusy(f"On {access.name}, {result.stderr.strip()}.")
    if result.exit_status == _RESTART_NEEDED:
        raise RestartNeeded(f"libvirtd on {access.name} has to be restarted.")
    if result.exit_status == _BUSY:
        raise HostBusy(
            f"libvirtd on {access.name} has to be restarted, and {result.stderr.strip()}."
        )


_SCRIPT = importlib.resources.files("drivers.hooks").joinpath("tls").read_text(encoding="utf-8")
