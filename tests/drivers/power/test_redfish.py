"""The driver `redfish` against sushy-tools' emulator."""

import asyncio
import datetime
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from contracts.errors import InvalidInput
from contracts.power import BmcPrivilege, PowerCommand, PowerState
from drivers.errors import (
    BmcCertificateRefused,
    BmcCommandRejected,
    BmcUnidentified,
    BmcUnreachable,
    CallTimedOut,
    InsufficientPrivilege,
    LoginRefused,
    PowerOutcomeUnknown,
    WrongBmc,
)
from drivers.power.redfish import RedfishDriver
from drivers.protocols import BmcAccess, NetworkBooter
from tests.drivers.power.servers import (
    PASSWORD,
    READER,
    SYSTEMS,
    USER,
    fields_of,
    running,
    until_ready,
)
from tests.ports import free_port

ENOUGH = 30.0


@dataclass
class Emulator:
    directory: Path
    port: int
    certificate: str

    def access(self, user: str = USER, password: str = PASSWORD) -> BmcAccess:
        return BmcAccess(
            "kvm-1",
            "127.0.0.1",
            user,
            password,
            port=self.port,
            guid=SYSTEMS[0],
            certificate=self.certificate,
        )

    def commands(self) -> list[str]:
        log = self.directory / "commands"
        return log.read_text().split() if log.exists() else []


@asynccontextmanager
async def emulator(directory: Path) -> AsyncIterator[Emulator]:
    port = free_port()
    certificate, files = own_certificate(directory)
    module = ("-m", "tests.drivers.power.redfish_emulator")
    async with running(sys.executable, *module, str(directory), str(port), *files):
        await until_ready(port, "127.0.0.1", "tcp")
        yield Emulator(directory, port, certificate)


def own_certificate(directory: Path) -> tuple[str, list[str]]:
    """The certificate, and the files with it and its key."""
    certificate, key = self_signed("bmc.example")
    files = [directory / "certificate", directory / "key"]
    for file, text in zip(files, (certificate, key), strict=True):
        file.write_text(text)
    return certificate, [str(file) for file in files]


@asynccontextmanager
async def served(
    directory: Path,
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[BmcAccess]:
    """Something else than the emulator, by TLS."""
    certificate, files = own_certificate(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        yield BmcAccess(
            "kvm-1", "127.0.0.1", "admin", "password", port=port, certificate=certificate
        )


def self_signed(name: str) -> tuple[str, str]:
    """Certificate and key, as a BMC comes with them."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode(),
    )


@pytest.fixture
async def bmc(tmp_path: Path) -> AsyncIterator[Emulator]:
    async with emulator(tmp_path) as server:
        yield server


@pytest.fixture
async def redfish() -> AsyncIterator[RedfishDriver]:
    driver = RedfishDriver()
    yield driver
    await driver.close()


async def test_power_is_switched_and_read(redfish: RedfishDriver, bmc: Emulator) -> None:
    access = bmc.access()
    assert await redfish.power_state(access, timeout=ENOUGH) is PowerState.ON
    for command, then in [
        (PowerCommand.RESET, PowerState.ON),
        (PowerCommand.OFF, PowerState.OFF),
        (PowerCommand.ON, PowerState.ON),
        (PowerCommand.SOFT, PowerState.OFF),
    ]:
        await redfish.set_power(access, command, timeout=ENOUGH)
        assert await redfish.power_state(access, timeout=ENOUGH) is then
    assert bmc.commands() == ["ForceRestart", "ForceOff", "On", "GracefulShutdown"]
    # The other machine of the same service was told nothing.
    other = replace(access, guid=SYSTEMS[1])
    assert await redfish.power_state(other, timeout=ENOUGH) is PowerState.ON


async def test_what_a_bmc_does_not_offer_is_refused(redfish: RedfishDriver, bmc: Emulator) -> None:
    with pytest.raises(BmcCommandRejected, match="PowerCycle"):
        await redfish.set_power(bmc.access(), PowerCommand.CYCLE, timeout=ENOUGH)
    assert bmc.commands() == []


async def test_it_boots_from_the_network_once(redfish: RedfishDriver, bmc: Emulator) -> None:
    assert isinstance(redfish, NetworkBooter)
    await redfish.check_network_boot(bmc.access(), timeout=ENOUGH)
    assert bmc.commands() == []
    await redfish.set_network_boot(bmc.access(), timeout=ENOUGH)
    await redfish.set_network_boot(bmc.access(), timeout=ENOUGH)
    assert bmc.commands() == ["Once:Pxe", "Once:Pxe"]


async def test_a_bmc_that_says_yes_and_boots_as_before(
    redfish: RedfishDriver, bmc: Emulator
) -> None:
    (bmc.directory / "forgetful").touch()
    with pytest.raises(BmcCommandRejected, match="does not show that it does"):
        await redfish.set_network_boot(bmc.access(), timeout=ENOUGH)


async def test_a_boot_from_the_network_is_taken_back(redfish: RedfishDriver, bmc: Emulator) -> None:
    await redfish.clear_network_boot(bmc.access(), timeout=ENOUGH)
    assert bmc.commands() == []  # nothing is there to take back
    await redfish.set_network_boot(bmc.access(), timeout=ENOUGH)
    for _ in range(2):
        await redfish.clear_network_boot(bmc.access(), timeout=ENOUGH)
    assert bmc.commands() == ["Once:Pxe", "Disabled"]
    await redfish.set_network_boot(bmc.access(), timeout=ENOUGH)
    (bmc.directory / "forgetful").touch()
    with pytest.raises(BmcCommandRejected, match="shows that it does"):
        await redfish.clear_network_boot(bmc.access(), timeout=ENOUGH)


async def test_a_machine_that_has_no_network_to_boot_from(
    redfish: RedfishDriver, bmc: Emulator
) -> None:
    (bmc.directory / "no_pxe").touch()
    for call in (redfish.check_network_boot, redfish.set_network_boot):
        with pytest.raises(BmcCommandRejected, match="does not offer to boot it from the network"):
            await call(bmc.access(), timeout=ENOUGH)
    assert bmc.commands() == []


async def test_a_bmc_tells_who_it_is(redfish: RedfishDriver, bmc: Emulator) -> None:
    report = await redfish.examine(bmc.access(), timeout=ENOUGH)
    assert (report.guid, report.state) == (SYSTEMS[0], PowerState.ON)
    shown = await redfish.power_state_and_guid(bmc.access(), timeout=ENOUGH)
    assert shown == (PowerState.ON, SYSTEMS[0])


@pytest.mark.parametrize(
    ("user", "privilege"),
    [(USER, BmcPrivilege.ADMINISTRATOR), (READER, BmcPrivilege.USER)],
)
async def test_what_the_login_may_do_is_its_accounts_role(
    redfish: RedfishDriver, bmc: Emulator, user: str, privilege: BmcPrivilege
) -> None:
    access = replace(bmc.access(user=user), privilege=BmcPrivilege.OPERATOR)
    assert (await redfish.examine(access, timeout=ENOUGH)).privilege is privilege
    (bmc.directory / "secretive").touch()
    report = await redfish.examine(access, timeout=ENOUGH)
    assert (report.privilege, report.state) == (None, PowerState.ON)


async def test_another_machines_bmc_is_told_nothing(redfish: RedfishDriver, bmc: Emulator) -> None:
    stranger = replace(bmc.access(), guid="6f1f9a3e-4c1b-4f61-9d5a-1b6b6a0000ff")
    for call in (
        redfish.power_state(stranger, timeout=ENOUGH),
        redfish.set_power(stranger, PowerCommand.OFF, timeout=ENOUGH),
        redfish.change_password(stranger, "another", timeout=ENOUGH),
        redfish.check_network_boot(stranger, timeout=ENOUGH),
        redfish.set_network_boot(stranger, timeout=ENOUGH),
        redfish.clear_network_boot(stranger, timeout=ENOUGH),
    ):
        with pytest.raises(WrongBmc):
            await call
    assert bmc.commands() == []
    await redfish.examine(bmc.access(), timeout=ENOUGH)


@pytest.mark.parametrize("wrong", [{"password": "another"}, {"user": "nobody"}])
async def test_a_refused_login_is_told(
    redfish: RedfishDriver, bmc: Emulator, wrong: dict[str, str]
) -> None:
    with pytest.raises(LoginRefused) as refused:
        await redfish.power_state(bmc.access(**wrong), timeout=ENOUGH)
    assert "another" not in str(refused.value)


async def test_who_only_reads_does_not_switch(redfish: RedfishDriver, bmc: Emulator) -> None:
    reader = bmc.access(user=READER)
    assert await redfish.power_state(reader, timeout=ENOUGH) is PowerState.ON
    with pytest.raises(InsufficientPrivilege, match="Not with that role"):
        await redfish.set_power(reader, PowerCommand.OFF, timeout=ENOUGH)
    with pytest.raises(InsufficientPrivilege):
        await redfish.change_password(reader, "another", timeout=ENOUGH)
    with pytest.raises(InsufficientPrivilege):
        await redfish.set_network_boot(reader, timeout=ENOUGH)
    assert bmc.commands() == []


async def test_a_new_password_lets_in_and_the_old_one_does_not(
    redfish: RedfishDriver, bmc: Emulator
) -> None:
    old, new = bmc.access(), bmc.access(password="a-much-longer-password-than-ipmi-has")
    assert await redfish.power_state(old, timeout=ENOUGH) is PowerState.ON
    await redfish.change_password(old, new.password, timeout=ENOUGH)
    assert (await redfish.examine(new, timeout=ENOUGH)).state is PowerState.ON
    with pytest.raises(LoginRefused):
        await redfish.power_state(old, timeout=ENOUGH)
    # As after a crash that has lost the answer.
    await redfish.change_password(old, new.password, timeout=ENOUGH)
    with pytest.raises(LoginRefused):
        await redfish.change_password(old, "a-third-one", timeout=ENOUGH)


async def test_a_new_password_that_the_bmc_quotes_is_not_told(
    redfish: RedfishDriver, bmc: Emulator
) -> None:
    (bmc.directory / "picky").touch()
    with pytest.raises(BmcCommandRejected, match="HTTP 400") as refused:
        await redfish.change_password(bmc.access(), "canary", timeout=ENOUGH)
    assert "canary" not in str(refused.value)


async def test_an_answer_that_does_not_come_is_an_unknown_outcome(
    redfish: RedfishDriver, bmc: Emulator
) -> None:
    (bmc.directory / "swallow").touch()
    with pytest.raises(PowerOutcomeUnknown):
        await redfish.set_power(bmc.access(), PowerCommand.RESET, timeout=4)
    assert bmc.commands() == ["ForceRestart"]


async def test_a_busy_service_may_have_done_it(redfish: RedfishDriver, bmc: Emulator) -> None:
    (bmc.directory / "overload").touch()
    with pytest.raises(PowerOutcomeUnknown):
        await redfish.set_power(bmc.access(), PowerCommand.RESET, timeout=ENOUGH)
    assert bmc.commands() == ["ForceRestart"]


async def test_of_several_systems_none_is_taken_by_chance(
    redfish: RedfishDriver, bmc: Emulator
) -> None:
    unknown = replace(bmc.access(), guid=None)
    for call in (
        redfish.examine(unknown, timeout=ENOUGH),
        redfish.power_state(unknown, timeout=ENOUGH),
        redfish.set_power(unknown, PowerCommand.OFF, timeout=ENOUGH),
    ):
        with pytest.raises(BmcCommandRejected) as refused:
            await call
        assert all(system in refused.value.message for system in SYSTEMS)
    assert bmc.commands() == []


@pytest.mark.parametrize(
    "shared",
    [
        "",
        "none",
        "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
        "03000200-0400-0500-0006-000700080009",
        "00020003-0004-0005-0006-000700080009",
    ],
)
async def test_a_system_without_a_uuid_of_its_own_is_not_taken_for_another_one(
    redfish: RedfishDriver, bmc: Emulator, shared: str
) -> None:
    (bmc.directory / "nameless").write_text(shared)
    with pytest.raises(BmcUnidentified):
        await redfish.set_power(bmc.access(), PowerCommand.OFF, timeout=ENOUGH)
    assert bmc.commands() == []


async def test_a_closed_port_and_an_unknown_name_are_unreachable(redfish: RedfishDriver) -> None:
    port = free_port()
    nobody = BmcAccess("kvm-1", "127.0.0.1", "admin", "password", port=port)
    for access in (nobody, replace(nobody, address="bmc.invalid")):
        with pytest.raises(BmcUnreachable):
            await redfish.power_state(access, timeout=ENOUGH)
        with pytest.raises(BmcUnreachable):
            await redfish.set_power(access, PowerCommand.OFF, timeout=ENOUGH)


async def test_who_accepts_a_connection_and_says_nothing_is_too_slow(
    tmp_path: Path, redfish: RedfishDriver
) -> None:
    async def keep_quiet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with served(tmp_path, keep_quiet) as access:
        with pytest.raises(CallTimedOut):
            await redfish.power_state(access, timeout=0.5)
        await redfish.close()


async def test_a_connection_that_nobody_uses_is_not_kept(tmp_path: Path) -> None:
    opened, closed = 0, asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        with suppress(asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")
        writer.close()
        closed.release()

    driver = RedfishDriver(idle=1)
    async with served(tmp_path, serve) as access:
        for _ in range(2):
            for _ in range(2):
                with pytest.raises(BmcCommandRejected, match="no Redfish service"):
                    await driver.power_state(access, timeout=ENOUGH)
            async with asyncio.timeout(ENOUGH):
                await closed.acquire()
    assert opened == 2
    await driver.close()


async def test_no_password_goes_without_tls(redfish: RedfishDriver) -> None:
    got = bytearray()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.extend(await reader.read(4096))
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        plain = {"scheme": "http"}
        access = BmcAccess("kvm-1", "127.0.0.1", "admin", "password", port=port, options=plain)
        with pytest.raises(BmcUnreachable):
            await redfish.power_state(access, timeout=ENOUGH)
    handshake = 0x16
    assert got[0] == handshake
    assert b"Authorization" not in got


@pytest.mark.parametrize(
    "answer", ["[]", "no JSON", '{"Systems": {"@odata.id": "http://198.18.0.1/systems"}}']
)
async def test_what_is_no_redfish_is_told_and_gets_no_password_elsewhere(
    tmp_path: Path, redfish: RedfishDriver, answer: str
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer)}\r\nConnection: close\r\n\r\n"
        writer.write((head + answer).encode())
        await writer.drain()
        writer.close()

    async with served(tmp_path, serve) as access:
        with pytest.raises(BmcCommandRejected, match="no Redfish service"):
            await redfish.power_state(access, timeout=ENOUGH)


async def test_only_the_configured_certificate_is_trusted(
    redfish: RedfishDriver, bmc: Emulator
) -> None:
    access = bmc.access()
    assert await redfish.power_state(access, timeout=ENOUGH) is PowerState.ON
    another, _ = self_signed("bmc.example")
    for certificate in (None, another):
        stranger = replace(access, certificate=certificate)
        with pytest.raises(BmcCertificateRefused) as refused:
            await redfish.power_state(stranger, timeout=ENOUGH)
        assert refused.value.remedy
        with pytest.raises(BmcCertificateRefused):
            await redfish.set_power(stranger, PowerCommand.OFF, timeout=ENOUGH)
    assert bmc.commands() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("address", "https://bmc"),
        ("user", "a:b"),
        ("password", ""),
        ("certificate", "no certificate"),
    ],
)
def test_what_can_be_no_bmc_is_refused(field: str, value: str) -> None:
    access = BmcAccess("kvm-1", "192.0.2.1", "admin", "password")
    RedfishDriver().validate(access)
    with pytest.raises(InvalidInput) as refused:
        RedfishDriver().validate(replace(access, **{field: value}))  # type: ignore[arg-type]
    assert fields_of(refused.value) == [field]
