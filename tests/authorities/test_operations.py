"""The whole way: the `hostler` command, the API, Temporal, and a worker with the real providers."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from cryptography.x509 import load_pem_x509_crl
from sqlmodel import col, select
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from activities.authorities import Directory
from activities.bmcs import BmcDirectory
from activities.controller import ControllerCertificates
from activities.crl_delivery import CrlDeliveryActivities
from activities.directory import HostDirectory
from activities.holders import Holders
from activities.leases import LeaseActivities
from activities.provisioning import ProvisioningActivities
from activities.renewal import RenewalActivities
from activities.restarts import Restarts
from activities.rollover import RolloverActivities
from activities.schedules import ScheduleActivities
from activities.securing import SecuringActivities
from activities.tls_check import TlsCheckActivities
from api.app import create_app
from contracts.access import Role
from contracts.certificate_renewal import (
    CERTIFICATE_RENEWAL,
    CERTIFICATE_RENEWAL_SCHEDULE,
    CertificateRenewalInput,
    CertificateRenewalResult,
)
from contracts.certificates import (
    AUTHORITY_UPKEEP,
    AUTHORITY_UPKEEP_SCHEDULE,
    AuthorityUpkeepInput,
    AuthorityUpkeepResult,
    CertificateRole,
    CertificateState,
)
from contracts.leases import LeaseScope
from contracts.settings import CA_PROVIDER
from contracts.states import HostStatus, TlsState
from drivers.authorities.profiles import new_request
from drivers.authorities.protocols import ExternalAccess
from drivers.authorities.providers import provider
from drivers.power.registry import PowerDrivers
from inventory import Inventory
from inventory.certificates import NewCertificate
from inventory.models import CertificateAuthorityRow, CertificateRow
from tests import forked
from tests.api.conftest import start_temporal
from tests.authorities.certified_host import CertifiedFleet, CertifiedHost
from tests.authorities.conftest import prepared_inventory
from tests.authorities.issuing import activities
from tests.authorities.samples import KEYS, ca, contents, csr, key_pem, openssl, write
from tests.authorities.test_issuing import new
from tests.forked import Said
from workers.home import listen
from workers.interceptors import HostlerInterceptor
from workers.parts import running_api
from workers.schedules import ensure_schedules
from workers.worker import activities_of
from workflows.registry import WORKFLOWS

ROOT = Path(__file__).parents[2]
QUEUE = "certificates"
_HISTORIES = ROOT / "tests" / "histories"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class System:
    """Hostler without hosts to reach, at `url`."""

    client: Client
    inventory: Inventory
    fleet: CertifiedFleet
    url: str
    admin: str
    operator: str
    record: bool

    @property
    def machine(self) -> CertifiedHost:
        return self.fleet.hosts["kvm-1"]

    async def hostler(self, *arguments: str, token: str | None = None, stdin: str = "") -> Said:
        """Run the command."""
        return await forked.command(
            *("hostler", *arguments),
            directory=ROOT,
            environment={
                "PATH": os.environ["PATH"],
                "HOSTLER_API_URL": self.url,
                "HOSTLER_TOKEN": token or self.admin,
            },
            stdin=stdin,
        )

    async def done(self, *arguments: str, stdin: str = "") -> str:
        """Run a command that has to succeed: what it prints."""
        said = await self.hostler(*arguments, stdin=stdin)
        assert said.status == 0, said.stderr
        return said.stdout

    def http(self, token: str | None = None) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False)

    async def histories(self) -> dict[str, str]:
        """All that Temporal has of every run, as JSON, by workflow id."""
        return {
            run.id: (
                await self.client.get_workflow_handle(run.id, run_id=run.run_id).fetch_history()
            ).to_json()
            async for run in self.client.list_workflows("")
        }

    async def keep(self, workflow_id: str, name: str) -> None:
        """Keep the history for the replay tests, when that was asked for."""
        if self.record:
            history = await self.client.get_workflow_handle(workflow_id).fetch_history()
            (_HISTORIES / f"{name}-1.json").write_text(history.to_json() + "\n")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def temporal() -> AsyncIterator[WorkflowEnvironment]:
    async with await start_temporal() as environment:
        yield environment


@pytest_asyncio.fixture(loop_scope="module")
async def system(
    temporal: WorkflowEnvironment, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[System]:
    client, fleet = temporal.client, CertifiedFleet("kvm-1", "kvm-2")
    async with AsyncExitStack() as stack:
        inventory = await stack.enter_async_context(prepared_inventory(tmp_path))
        certificates = activities(inventory)
        listener = stack.enter_context(listen("127.0.0.1", 0, "the API", "none"))
        app = create_app(
            client, inventory, BmcDirectory(inventory, PowerDrivers()), task_queue=QUEUE
        )
        await stack.enter_async_context(running_api(app, listener))
        directory = HostDirectory(inventory)
        own = ControllerCertificates(inventory, certificates, new_request)
        holders = Holders(inventory, client)
        leases, restarts = LeaseActivities(inventory, holders), Restarts(inventory, holders)
        await stack.enter_async_context(
            Worker(
                client,
                task_queue=QUEUE,
                workflows=WORKFLOWS,
                activities=activities_of(
                    certificates,
                    ScheduleActivities(client),
                    leases,
                    ProvisioningActivities(inventory, directory, fleet, restarts),  # type: ignore[arg-type]
                    CrlDeliveryActivities(inventory, directory, fleet, leases),  # type: ignore[arg-type]
                    RenewalActivities(inventory),
                    RolloverActivities(
                        inventory, Directory(inventory, provider, ExternalAccess()), own
                    ),
                    SecuringActivities(inventory, directory, fleet, own, restarts),  # type: ignore[arg-type]
                    TlsCheckActivities(inventory, directory, fleet, own),  # type: ignore[arg-type]
                ),
                interceptors=[HostlerInterceptor()],
            )
        )
        yield System(
            client,
            inventory,
            fleet,
            f"http://127.0.0.1:{listener.getsockname()[1]}",
            admin=await inventory.tokens.create("anna", Role.ADMIN),
            operator=await inventory.tokens.create("olga", Role.OPERATOR),
            record=bool(request.config.getoption("--record-histories")),
        )


async def test_a_certificate_from_request_to_revocation(system: System, tmp_path: Path) -> None:
    key = write(tmp_path / "key.pem", key_pem(KEYS["P-256"]))
    request = tmp_path / "request.pem"
    made = openssl("req", "-new", "-key", str(key), "-subj", "/CN=kvm-1", "-out", str(request))
    assert made.returncode == 0, made.stderr
    leaf, anchor, listed = tmp_path / "leaf.pem", tmp_path / "ca.pem", tmp_path / "crl.pem"

    signed = await system.hostler(
        *("cert", "sign", "kvm-1", "--csr-file", str(request), "--out", str(leaf))
    )
    assert (signed.status, signed.stdout) == (0, ""), signed.stderr
    await system.keep("signing/kvm-1", "certificate_signing")
    ((row,),) = [await system.inventory.certificates.list()]
    assert signed.stderr == f"Certificate {row.serial} is issued.\n"
    assert leaf.read_text() == row.pem
    assert await system.done("ca", "chain", "--out", str(anchor)) == ""
    verified = openssl("verify", "-verify_ip", "198.18.1.11", "-CAfile", str(anchor), str(leaf))
    assert verified.returncode == 0, verified.stderr

    table = await system.done("cert", "list", "--host", "kvm-1", "--state", "valid")
    assert row.serial in table
    colons = ":".join(f"{int(row.serial, 16):040x}"[at : at + 2] for at in range(0, 40, 2))
    shown = await system.done("cert", "show", colons.upper())
    for says in ("kvm-1, 198.18.0.11, 198.18.1.11", row.subject, row.pem):
        assert says in shown

    said = await system.done("cert", "revoke", row.serial, "--reason", "keyCompromise")
    assert f"Revoked: {row.serial}." in said
    assert "Revocation list 2 of root/1 has 1 entries." in said
    await system.keep(f"revocation/{row.serial}", "certificate_revocation")
    assert await system.done("ca", "crl", "--out", str(listed)) == ""
    verified = openssl(
        *("verify", "-crl_check", "-CAfile", str(anchor), "-CRLfile", str(listed), str(leaf))
    )
    assert "certificate revoked" in verified.stderr
    assert row.serial in await system.done("cert", "list", "--state", "revoked")
    # Whatever became of the first one, it may be repeated; another reason is no repetition.
    assert f"Revoked: {row.serial}." in await system.done("cert", "revoke", "--host", "kvm-1")
    again = await system.hostler("cert", "revoke", row.serial, "--reason", "superseded")
    assert (again.status, "revoked already: keyCompromise" in again.stderr) == (1, True)
    none = await system.hostler("cert", "revoke", "--host", "kvm-9")
    assert (none.status, "No certificate of kvm-9 was issued" in none.stderr) == (1, True)
    refused = await system.hostler("cert", "sign", "kvm-1", "--csr-file", str(request))
    assert refused.status == 1
    assert "others may have the key" in refused.stderr

    async with system.http() as nobody:
        der = await nobody.get("/v1/ca/crl")
        assert der.headers["content-type"] == "application/pkix-crl"
        assert der.content == await system.inventory.authorities.crl("root", 1)
        named = await nobody.get("/v1/ca/root/1/crl")
        assert named.content == der.content, named.text
        assert (await nobody.get("/v1/ca/root/2/crl")).status_code == 404
        assert (await nobody.get("/v1/ca/chain")).text == anchor.read_text()
        assert (await nobody.get("/v1/ca")).status_code == 401
    events = {
        event.kind: event.actor
        for event in await system.inventory.events.list(subject="host/kvm-1")
    }
    assert events["certificate.signing_requested"] == "token:anna"
    assert events["certificate.issued"] == events["certificate.revoked"] == "token:anna"


async def test_an_operators_ca_is_imported_and_its_key_seen_nowhere(
    system: System, tmp_path: Path
) -> None:
    top = ca("top")
    middle = ca("middle", top)
    pem = key_pem(middle.key)
    chain = write(tmp_path / "chain.pem", middle.pem + top.pem)
    before = await system.inventory.events.newest()
    said = await system.done(
        *("ca", "import", "--key-file", "-", "--chain-file", str(chain)), stdin=pem
    )
    await system.keep("ca-setup/root", "authority_setup")
    for says in ("imported", "CN=middle", "number 1, 0 revoked"):
        assert says in said
    leaf = await system.done("cert", "sign", "kvm-1", "--csr-file", "-", stdin=csr())
    assert leaf.endswith(middle.pem)
    assert top.pem not in leaf
    assert await system.done("ca", "chain") == middle.pem + top.pem

    # Of the two copies that were stored, the one that came in is gone.
    stored = [
        event.subject
        for event in await system.inventory.events.list()
        if event.kind == "secret.stored" and event.id > before
    ]
    assert len(stored) == 2
    body = "".join(pem.splitlines()[1:-1])[20:60]
    seen = "".join((await system.histories()).values())
    assert "ca-setup" in seen
    seen += "".join(event.message for event in await system.inventory.events.list(limit=1000))
    database = contents(tmp_path)
    assert b"CN=middle" in database
    assert body not in seen
    assert body.encode() not in database
    assert b"PRIVATE KEY" not in database


async def test_a_ca_is_made_and_shown(system: System) -> None:
    none = await system.hostler("ca", "show")
    assert none.status == 1
    assert "no certificate authority yet" in none.stderr
    first = await system.done("ca", "create")
    assert "CN=Hostler CA" in first
    shown = await system.done("ca", "show")
    assert first.splitlines()[:-1] == shown.splitlines()[:-1]
    again = await system.done("ca", "create")
    assert again.splitlines()[:-1] == first.splitlines()[:-1]


async def test_what_is_wrong_is_said_in_one_line(system: System, tmp_path: Path) -> None:
    own = ca("own")
    chain = write(tmp_path / "chain.pem", own.pem)
    other = write(tmp_path / "other.pem", key_pem(KEYS["P-384"]))
    request = write(tmp_path / "request.pem", csr(dns=["evil.x"]))
    for status, says, arguments in (
        (1, "asks for what the inventory does not know of kvm-1: DNS:evil.x", "cert sign kvm-1"),
        (1, "There is no host 'kvm-9'", "cert sign kvm-9"),
        (2, "Every role needs a HOST", "cert sign"),
        (2, "Every role needs a HOST", "cert sign kvm-1 --role controller"),
        (1, "no such certificate|No certificate with the serial abc", "cert revoke abc"),
        (2, "must match", "cert revoke xyz"),
        (2, "either a SERIAL or --host", "cert revoke"),
        (1, "No certificate of kvm-7 was issued", "cert revoke --host kvm-7"),
        (1, "not that of the chain's first certificate", "ca import"),
        (2, "--csr-file: has a private key", "cert sign kvm-1 --csr-file KEY"),
        (2, "--chain-file: has a private key", "ca import --key-file CHAIN --chain-file KEY"),
    ):
        more = {
            "cert sign": ("--csr-file", str(request)),
            "ca import": ("--key-file", str(other), "--chain-file", str(chain)),
        }
        files = {"KEY": str(other), "CHAIN": str(chain)}
        words = [files.get(word, word) for word in arguments.split()]
        said = await system.hostler(
            *words, *(more.get(" ".join(words[:2]), ()) if "KEY" not in arguments else ())
        )
        assert said.status == status, (arguments, said)
        assert any(one in said.stderr for one in says.split("|")), (arguments, said.stderr)
        assert len(said.stderr.splitlines()) == 1, said.stderr


async def test_only_admins_sign_revoke_and_set_up(system: System) -> None:
    async with system.http(system.operator) as operator:
        for path, body in (
            ("/v1/certificates", {"host": "kvm-1", "csr": csr()}),
            ("/v1/certificates/ab/revocation", {}),
            ("/v1/hosts/kvm-1/certificate/revocation", {}),
            ("/v1/ca", {}),
        ):
            assert (await operator.post(path, json=body)).status_code == 403
        assert (await operator.get("/v1/certificates")).json() == {"items": [], "next": None}


async def test_the_controllers_certificate_is_signed(system: System) -> None:
    pem = await system.done(
        *("cert", "sign", "--role", "controller", "--csr-file", "-"), stdin=csr()
    )
    (one,) = await system.inventory.certificates.list()
    assert (one.pem, one.host, one.subject) == (pem, None, "O=Hostler,CN=hostler controller")
    shown = await system.done("operation", "show", "signing", "hostler controller")
    assert one.serial in shown


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"csr": csr()}, "every role needs a host"),
        ({"host": "kvm-1", "csr": "x"}, "csr: there must be one signing request"),
        ({"host": "kvm-1", "csr": csr() + key_pem(KEYS["P-256"])}, "csr: has a private key"),
        ({"host": "kvm-1"}, "csr"),
        ({"host": "kvm-1", "csr": "x", "role": "king"}, "role"),
        ({"host": "kvm-1", "csr": "x", "dns_names": ["y"]}, "dns_names"),
    ],
)
async def test_a_wrong_request_names_the_field(
    system: System, body: dict[str, Any], field: str
) -> None:
    async with system.http(system.admin) as admin:
        answer = await admin.post("/v1/certificates", json=body)
    assert answer.status_code == 422
    assert field in answer.json()["detail"]


async def test_all_of_a_host_are_revoked(system: System) -> None:
    for host in ("kvm-1", "kvm-1", "kvm-2"):
        await system.done("cert", "sign", host, "--csr-file", "-", stdin=csr())
    said = await system.done(
        *("cert", "revoke", "--host", "kvm-1", "--reason", "cessationOfOperation")
    )
    assert "has 2 entries" in said
    (left,) = await system.inventory.certificates.list(state=CertificateState.VALID)
    assert left.host == "kvm-2"


async def test_lists_have_pages(system: System) -> None:
    for number in range(3):
        await system.done("cert", "sign", f"kvm-{number % 2 + 1}", "--csr-file", "-", stdin=csr())
    async with system.http(system.admin) as admin:
        found: list[str] = []
        after: str | None = None
        for _ in range(3):
            query = {"limit": "1"} | ({"after": after} if after else {})
            page = (await admin.get("/v1/certificates", params=query)).json()
            found += [one["serial"] for one in page["items"]]
            after = page["next"]
    assert after is None
    assert sorted(found) == found
    assert len({*found}) == 3


async def test_the_schedule_makes_lists_anew_before_they_end(system: System) -> None:
    await system.done("ca", "create")
    await system.inventory.settings.set("ca.framework.background.task.delay", 30, actor="test")
    await ensure_schedules(system.client, system.inventory, QUEUE)
    schedule = system.client.get_schedule_handle(AUTHORITY_UPKEEP_SCHEDULE)
    await system.inventory.settings.set("ca.framework.background.task.delay", 60, actor="test")

    async def round_of(name: str) -> AuthorityUpkeepResult:
        result: AuthorityUpkeepResult = await system.client.execute_workflow(
            AUTHORITY_UPKEEP,
            AuthorityUpkeepInput(),
            id=name,
            task_queue=QUEUE,
            result_type=AuthorityUpkeepResult,
        )
        return result

    assert (await round_of("upkeep-1")).crls == {}
    (every,) = (await schedule.describe()).schedule.spec.intervals
    assert every.every.total_seconds() == 60
    # One that was made with a validity of which more than half is over by now.
    await system.inventory.settings.set("ca.framework.crl.validity.period", 1, actor="test")
    authority = await system.inventory.authorities.get("root")
    assert authority.crl is not None
    await age(system.inventory)
    assert (await round_of("upkeep-2")).crls["root/1"].number == authority.crl.number + 1
    await system.keep("upkeep-2", "authority_upkeep")
    await schedule.delete()


def revoked(pem: str) -> set[int]:
    """Serials of all lists in the text."""
    blocks = [f"{block}-----END X509 CRL-----\n" for block in pem.split("-----END X509 CRL-----")]
    return {
        entry.serial_number for block in blocks[:-1] for entry in load_pem_x509_crl(block.encode())
    }


async def age(inventory: Inventory, provider: str = "root") -> None:
    """The list is five days old."""
    async with inventory.database.writing() as session:
        row = await session.get(CertificateAuthorityRow, (provider, 1))
        assert row is not None
        assert row.crl_this_update is not None
        assert row.crl_next_update is not None
        row.crl_this_update -= timedelta(days=5)
        row.crl_next_update -= timedelta(days=5)
        session.add(row)


async def test_a_provider_that_is_gone_holds_up_no_other(system: System) -> None:
    """Of a stolen host, what can be revoked is; and lists of the others are kept fresh."""
    await system.done("cert", "sign", "kvm-1", "--csr-file", "-", stdin=csr())
    (one,) = await system.inventory.certificates.list()
    gone = ca("gone")
    await system.inventory.authorities.add(
        new("acme", gone.pem), after=0, unused=False, operation="test"
    )
    await system.inventory.certificates.record(
        NewCertificate(
            request="elsewhere",
            provider="acme",
            generation=1,
            serial="1",
            host="kvm-1",
            role=one.role,
            subject=one.subject,
            dns_names=(),
            ip_addresses=(),
            key_sha256="x",
            not_before=one.not_before,
            not_after=one.not_after,
            issued_by="test",
            pem=one.pem,
        ),
        actor="test",
    )
    said = await system.hostler("cert", "revoke", "--host", "kvm-1")
    assert (said.status, "no CA provider 'acme'" in said.stderr) == (1, True)
    (left,) = await system.inventory.certificates.list(state=CertificateState.VALID)
    assert left.provider == "acme"
    crl = (await system.inventory.authorities.get("root")).crl
    assert crl is not None
    assert crl.revoked == 1

    await age(system.inventory, "root")
    await ensure_schedules(system.client, system.inventory, QUEUE)
    with pytest.raises(WorkflowFailureError) as caught:
        await system.client.execute_workflow(
            AUTHORITY_UPKEEP, AuthorityUpkeepInput(), id="upkeep-gone", task_queue=QUEUE
        )
    assert "no CA provider 'acme'" in str(caught.value.cause)
    newer = (await system.inventory.authorities.get("root")).crl
    assert newer is not None
    assert newer.number == crl.number + 1
    await system.client.get_schedule_handle(AUTHORITY_UPKEEP_SCHEDULE).delete()


async def test_a_host_gets_certificates_of_its_own(system: System) -> None:
    said = await system.done("cert", "provision", "kvm-1", "--reason", "first ones")
    await system.keep("provisioning/kvm-1", "certificate_provisioning")
    installed = {
        one.role: one
        for one in await system.inventory.certificates.list(host="kvm-1")
        if one.installed_at is not None
    }
    assert {*installed} == {CertificateRole.HOST, CertificateRole.QEMU}
    for one in installed.values():
        assert one.serial in said
    first = system.machine.in_force
    await system.done("cert", "provision", "kvm-1")
    assert system.machine.in_force != first
    assert {*system.machine.sets} == {system.machine.in_force}
    async with system.http(system.operator) as operator:
        shown = (await operator.get("/v1/hosts/kvm-1/certificate")).json()["items"]
    assert len(shown) == 2
    assert not {one["serial"] for one in shown} & {one.serial for one in installed.values()}
    assert await system.inventory.leases.find("kvm-1", LeaseScope.TRUST) is None


async def test_a_revocation_gets_to_all_hosts(system: System) -> None:
    for host in ("kvm-1", "kvm-2"):
        await system.done("cert", "provision", host)
    await system.done("cert", "sign", "kvm-1", "--csr-file", "-", stdin=csr())
    signed = next(
        one
        for one in await system.inventory.certificates.list(host="kvm-1")
        if one.installed_at is None
    )
    other = system.fleet.hosts["kvm-2"]
    assert revoked(other.crls["kvm-2"]) == set()
    system.machine.silent.add("kvm-1")
    said = await system.done("cert", "revoke", signed.serial)
    await system.keep(f"revocation/{signed.serial}", "certificate_revocation")
    assert "Hosts that have got it: kvm-2." in said
    assert "kvm-1 has not got it yet: kvm-1 does not answer." in said
    assert revoked(system.machine.crls["kvm-1"]) == set()
    assert revoked(other.crls["kvm-2"]) == {int(signed.serial, 16)}
    table = await system.done("ca", "hosts")
    assert ["root/1: 2" in line for line in table.splitlines()[1:]] == [False, True]
    missing = await system.done("ca", "hosts", "--missing", "--json")
    assert [one["problem"] for one in json.loads(missing)] == ["kvm-1 does not answer."]
    async with system.http(system.operator) as operator:
        page = (await operator.get("/v1/ca/crl/hosts", params={"limit": "1"})).json()
        assert [one["host"] for one in page["items"]] == ["kvm-1"]
        page = (
            await operator.get("/v1/ca/crl/hosts", params={"limit": "1", "after": page["next"]})
        ).json()
    assert page["next"] is None
    (there,) = page["items"]
    of_qemus = f"{await system.inventory.certificates.unit('kvm-2')}-qemu/1"
    assert (there["host"], there["current"]) == ("kvm-2", True)
    assert there["lists"] == {"root/1": 2, of_qemus: 1}
    events = await system.inventory.events.list(kind="certificate.crl_delivered")
    assert {event.subject: event.message for event in reversed(events)} == {
        "host/kvm-1": f"{of_qemus}: number 1, root/1: number 1",
        "host/kvm-2": f"{of_qemus}: number 1, root/1: number 2",
    }


async def test_the_doctor_says_what_is_wrong_with_tls(system: System) -> None:
    none = await system.hostler("doctor", "tls", "kvm-1")
    assert none.status == 1
    assert "[no-certificates]" in none.stdout
    assert "hostler cert provision kvm-1" in none.stdout
    await system.done("cert", "provision", "kvm-1")
    serial = next(
        one.serial
        for one in await system.inventory.certificates.list(host="kvm-1")
        if one.role is CertificateRole.HOST
    )
    system.machine.old_vnc = ("vm-7",)
    said = await system.done("doctor", "tls", "kvm-1")
    await system.keep("tls-check/kvm-1", "tls_check")
    assert "warning [old-vnc-certificate]" in said
    assert "vm-7" in said
    assert f"TLS of kvm-1 works: it shows the certificate {serial}, until" in said
    system.machine.lets_in, system.machine.allowed = True, '["CN=*"]'
    wrong = await system.hostler("doctor", "tls", "kvm-1")
    assert wrong.status == 1
    assert "does not work: allow-list, lets-in-anybody (2 errors, 1 warning)" in wrong.stderr
    async with system.http(system.operator) as operator:
        answer = (await operator.post("/v1/hosts/kvm-1/certificate/check")).json()
        assert {one["code"] for one in answer["findings"]} == {
            "allow-list",
            "lets-in-anybody",
            "old-vnc-certificate",
        }
        assert answer["shown_serial"] == serial
        assert (await operator.post("/v1/hosts/kvm-9/certificate/check")).status_code == 404


async def test_what_expires_is_renewed_by_the_schedules_round(system: System) -> None:
    for host in ("kvm-1", "kvm-2"):
        await system.done("cert", "provision", host)
    before = {one.serial for one in await system.inventory.certificates.list(host="kvm-1")}
    assert before.isdisjoint(
        (await system.done("cert", "list", "--expires-within", "30")).replace("\n", " ").split()
    )
    async with system.inventory.database.writing() as session:
        for row in await session.exec(
            select(CertificateRow).where(col(CertificateRow.host) == "kvm-1")
        ):
            row.not_after = datetime.now(UTC) + timedelta(days=3)
            row.not_before = row.not_after - timedelta(days=90)
            session.add(row)
    soon = await system.done("cert", "list", "--expires-within", "30")
    assert before <= {*soon.split()}
    await ensure_schedules(system.client, system.inventory, QUEUE)
    result: CertificateRenewalResult = await system.client.execute_workflow(
        CERTIFICATE_RENEWAL,
        CertificateRenewalInput(),
        id="certificate-renewal-test",
        task_queue=QUEUE,
        result_type=CertificateRenewalResult,
    )
    await system.keep("certificate-renewal-test", "certificate_renewal")
    for schedule in (AUTHORITY_UPKEEP_SCHEDULE, CERTIFICATE_RENEWAL_SCHEDULE):
        await system.client.get_schedule_handle(schedule).delete()
    assert result == CertificateRenewalResult(renewed=("kvm-1",), failed={})
    installed = {
        one.serial
        for one in await system.inventory.certificates.list(host="kvm-1")
        if one.installed_at is not None
    }
    assert len(installed) == 2
    assert installed.isdisjoint(before)
    provisioning = await system.client.get_workflow_handle("provisioning/kvm-1").describe()
    assert provisioning.parent_id == "certificate-renewal-test"


@pytest.mark.parametrize("step", ["prepare", "place", "switch", "ask"])
async def test_what_fails_is_put_back(system: System, step: str) -> None:
    await system.done("cert", "provision", "kvm-1")
    before = (system.machine.in_force, dict(system.machine.sets))
    valid = await system.inventory.certificates.list(state=CertificateState.VALID)
    system.machine.fails_at = step
    said = await system.hostler("cert", "provision", "kvm-1")
    assert said.status == 1
    assert "No space left. kvm-1 has what it had before." in said.stderr
    assert (system.machine.in_force, system.machine.sets) == before
    assert await system.inventory.certificates.list(state=CertificateState.VALID) == valid
    assert await system.inventory.leases.find("kvm-1", LeaseScope.TRUST) is None


@pytest.mark.parametrize(
    ("step", "then"),
    [
        ("restore", ["restore", "restore", "ask", "confirm"]),
        ("ask", ["restore", "ask", "restore", "ask", "confirm"]),
        ("confirm", ["restore", "ask", "confirm", "restore"]),
    ],
)
async def test_what_was_put_back_is_proven_whatever_comes_between(
    system: System, step: str, then: list[str]
) -> None:
    await system.done("cert", "provision", "kvm-1")
    system.machine.fails_at, system.machine.away_at = "switch", step
    system.machine.steps.clear()
    said = await system.hostler("cert", "provision", "kvm-1")
    assert "No space left. kvm-1 has what it had before." in said.stderr
    assert system.machine.steps[system.machine.steps.index("restore") :] == then


@pytest.mark.parametrize("step", ["trust", "crl"])
async def test_what_fails_after_that_leaves_the_inventory_right_about_it(
    system: System, step: str
) -> None:
    system.machine.fails_at = step
    said = await system.hostler("cert", "provision", "kvm-1")
    assert said.status == 1
    assert "No space left" in said.stderr
    assert system.machine.in_force is not None
    assert (await system.inventory.hosts.get("kvm-1")).tls is TlsState.READY
    valid = await system.inventory.certificates.list(host="kvm-1", state=CertificateState.VALID)
    assert len(valid) == 2
    assert all(one.installed_at is not None for one in valid)


async def test_one_that_lets_in_anybody_is_put_back(system: System) -> None:
    system.machine.lets_in = True
    said = await system.hostler("cert", "provision", "kvm-1")
    assert said.status == 1
    assert "lets in who has no certificate" in said.stderr
    assert system.machine.in_force is None


async def test_a_cancel_puts_back_until_they_are_proven(system: System) -> None:
    system.machine.stops_at = "switch"
    running = asyncio.create_task(system.hostler("cert", "provision", "kvm-1"))
    await system.machine.stopped.wait()
    await system.client.get_workflow_handle("provisioning/kvm-1").cancel()
    said = await running
    assert said.status == 1
    assert (system.machine.in_force, system.machine.sets) == (None, {})
    assert await system.inventory.certificates.list(state=CertificateState.VALID) == []
    status = await system.client.get_workflow_handle("provisioning/kvm-1").describe()
    assert status.status is WorkflowExecutionStatus.CANCELED


async def test_a_cluster_is_secured_by_one_command(system: System) -> None:
    system.machine.fails_at = "place"
    failed = await system.hostler("cert", "secure", "cluster-1")
    assert failed.status == 1
    assert "1 of 2 hosts of cluster-1 are without certificates: kvm-1 (" in failed.stderr
    assert (await system.inventory.hosts.get("kvm-2")).tls is TlsState.READY
    system.machine.fails_at = None
    said = await system.hostler("cert", "secure", "cluster-1", "--reason", "audit")
    assert (said.status, said.stdout) == (
        0,
        "2 hosts of cluster-1 take and give VMs by TLS only.\n",
    )
    await system.keep("cluster-certificates/cluster-1", "cluster_certificates")
    shown = await system.done("host", "show", "kvm-1", "--json")
    assert json.loads(shown)["tls"] == "secured"
    events = await system.inventory.events.list(subject="cluster/cluster-1")
    kind = "certificate.cluster-certificates_requested"
    assert [event.actor for event in events if event.kind == kind] == ["token:anna"] * 2
    # Hostler's own key is in no history, and in the database only encrypted.
    found = await system.inventory.certificates.newest_of_hostler()
    assert found is not None
    key = (await system.inventory.secrets.reveal(found[1])).plaintext.splitlines()[1]
    assert key not in "".join((await system.histories()).values())
    none = await system.hostler("cert", "secure", "cluster-9")
    assert (none.status, "cluster-9" in none.stderr) == (1, True)
    async with system.http(system.operator) as operator:
        started = await operator.post("/v1/clusters/cluster-1/certificates", json={})
        assert started.status_code == 202
        assert started.headers["location"] == "/v1/operations/cluster-certificates/cluster-1"
    # The other tests have the same Temporal.
    await system.client.get_workflow_handle("cluster-certificates/cluster-1").result()


async def test_a_secured_host_is_revoked_and_looked_at_like_others(system: System) -> None:
    await system.done("cert", "secure", "cluster-1")
    assert "works: it shows the certificate" in await system.done("doctor", "tls", "kvm-1")
    await system.done("cert", "revoke", "--host", "kvm-1")
    assert (await system.inventory.hosts.get("kvm-1")).tls is TlsState.SECURED
    for name, host in system.fleet.hosts.items():
        assert len(revoked(host.crls[name])) >= 2
    checked = await system.hostler("doctor", "tls", "kvm-1")
    assert "[revoked]" in checked.stdout
    await system.done("cert", "provision", "kvm-1")
    assert (await system.inventory.hosts.get("kvm-1")).tls is TlsState.SECURED
    system.machine.by_tls_only, system.machine.knows_hostler = False, False
    checked = await system.hostler("doctor", "tls", "kvm-1")
    assert "does not work: not-forced, hostler-kept-out (2 errors, 0 warnings)" in checked.stderr


async def test_a_ca_is_replaced_by_another_one(system: System, tmp_path: Path) -> None:
    """kvm-2 is away, and left out in the end."""
    none = await system.hostler("ca", "rollover", "--dry-run")
    assert (none.status, "no certificate authority yet" in none.stderr) == (1, True)
    for host in ("kvm-1", "kvm-2"):
        await system.done("cert", "provision", host)
    former = await system.done("ca", "chain")
    refused = await system.hostler("ca", "rollover", token=system.operator)
    assert (refused.status, "admin" in refused.stderr) == (1, True)
    for wrong, says in (
        (("--leave-out", "kvm-9"), "There is no host 'kvm-9'"),
        (("--key-file", "x"), "go together"),
        (("pause",), "No rollover of the CA of root is open"),
    ):
        refused = await system.hostler("ca", "rollover", *wrong)
        assert refused.status != 0
        assert says in refused.stderr
    planned = await system.done("ca", "rollover", "--dry-run")
    assert _fields(planned)["hosts"] == "2"
    watched = await system.done("ca", "rollover", "status", "--watch")
    assert "No rollover of the CA of root is open; the last one was a dry run." in watched
    assert [one.generation for one in await system.inventory.authorities.of("root")] == [1]

    await system.inventory.hosts.set_status("kvm-2", HostStatus.DOWN, actor="test", reason="x")
    started = await system.done("ca", "rollover", "--reason", "it is old")
    assert "hostler ca rollover status --watch" in started
    again = await system.hostler("ca", "rollover")
    assert (again.status, "rollover/root" in again.stderr) == (1, True)
    while "it is Down" not in (shown := await system.done("ca", "rollover", "status")):
        pass
    assert (_fields(shown)["stage"], _fields(shown)["waited for"]) == ("trust", "1")
    assert "hostler ca rollover leave-out kvm-2 --reason ..." in shown
    both = await system.done("ca", "chain", "--trusted")
    assert both.count("BEGIN CERTIFICATE") == 2
    assert await system.done("ca", "chain") == former

    # It is found, whichever provider the settings name meanwhile.
    await system.inventory.settings.set(CA_PROVIDER.name, "vault", actor="test")
    await system.done("ca", "rollover", "pause")
    assert "stands still" in await system.done("ca", "rollover", "status")
    await system.inventory.settings.set(CA_PROVIDER.name, "root", actor="test")
    twice = await system.hostler("ca", "rollover", "pause")
    assert (twice.status, "paused already" in twice.stderr) == (1, True)
    shown = await system.done("ca", "rollover", "status")
    assert _fields(shown)["paused"] == "yes"
    gone = await system.hostler("ca", "rollover", "leave-out", "kvm-9", "--reason", "x")
    assert (gone.status, "There is no host 'kvm-9'" in gone.stderr) == (1, True)
    await system.done("ca", "rollover", "leave-out", "kvm-2", "--reason", "in repair")
    await system.done("ca", "rollover", "resume")
    said = await system.done("ca", "rollover", "status", "--watch")
    assert "Generation 2 of root issues, and hosts trust no other one, but for 1 that" in said
    assert "were left out: kvm-2." in said
    await system.keep("rollover/root", "authority_rollover")
    assert await system.done("ca", "chain") != former
    assert _fields(await system.done("ca", "rollover", "status"))["stage"] == "none"
    assert _fields(await system.done("ca", "show"))["generation"] == "2"
    async with system.http(system.admin) as api:
        view = (await api.get("/v1/ca/rollover")).json()
        assert (view["status"], view["progress"]["current"]) == (None, 2)
    events = {
        event.kind: event.actor for event in await system.inventory.events.list(subject="ca/root")
    }
    for kind in ("requested", "pause_requested", "leave_out_requested", "resume_requested"):
        assert events[f"ca.rollover_{kind}"] == "token:anna"

    # A cancel after that is no way back, and an operator's own is taken as well.
    own = ca("of the operator")
    key, chain = write(tmp_path / "key.pem", key_pem(own.key)), write(tmp_path / "c.pem", own.pem)
    await system.inventory.hosts.set_status("kvm-2", HostStatus.UP, actor="test", reason="x")
    await system.done("cert", "provision", "kvm-2")
    files = ("--key-file", str(key), "--chain-file", str(chain))
    said = await system.done("ca", "rollover", *files, "--watch")
    assert "Generation 3 of root issues" in said
    assert await system.done("ca", "chain") == own.pem
    body = "".join(key_pem(own.key).splitlines()[1:-1])[20:60]
    assert body not in "".join((await system.histories()).values())
    used = await system.hostler("ca", "rollover", *files, "--watch")
    assert (used.status, "is in use now" in used.stderr) == (1, True)


async def test_the_ca_of_a_clusters_qemus_is_steered_by_the_clusters_name(
    system: System, tmp_path: Path
) -> None:
    of_qemus = ("--cluster", "cluster-1")
    for command in (("show",), ("chain",), ("rollover",), ("rollover", "status")):
        none = await system.hostler("ca", *command, *of_qemus)
        assert none.status == 1
        assert "with the first certificates in its cluster" in none.stderr, command
    for host in ("kvm-1", "kvm-2"):
        await system.done("cert", "provision", host)
    shown = _fields(await system.done("ca", "show", *of_qemus))
    assert (shown["provider"][-5:], shown["generation"]) == ("-qemu", "1")
    assert await system.done("ca", "chain", *of_qemus) != await system.done("ca", "chain")
    for options, lists in (((), 1), (of_qemus, 2)):
        assert (await system.done("ca", "crl", *options)).count("BEGIN X509 CRL") == lists

    own = ca("own")
    key, chain = write(tmp_path / "key.pem", key_pem(own.key)), write(tmp_path / "c.pem", own.pem)
    for wrong, says in (
        (("--cluster", "cluster-9"), "There is no cluster 'cluster-9'"),
        ((*of_qemus, "--key-file", str(key), "--chain-file", str(chain)), "made by Hostler"),
        ((*of_qemus, "status"), "comes after status"),
        (("pause", *of_qemus), "See `hostler ca rollover status --cluster cluster-1`"),
    ):
        refused = await system.hostler("ca", "rollover", *wrong)
        assert refused.status != 0
        assert says in refused.stderr

    await system.inventory.hosts.set_status("kvm-2", HostStatus.DOWN, actor="test", reason="x")
    started = await system.done("ca", "rollover", *of_qemus)
    assert "hostler ca rollover status --watch --cluster cluster-1" in started
    while "it is Down" not in (status := await system.done("ca", "rollover", "status", *of_qemus)):
        pass
    assert _fields(status)["QEMUs of"] == "cluster-1"
    assert "hostler ca rollover leave-out kvm-2 --reason ... --cluster cluster-1" in status
    assert _fields(await system.done("ca", "rollover", "status"))["stage"] == "none"
    both = await system.done("ca", "chain", "--trusted", *of_qemus)
    assert both.count("BEGIN CERTIFICATE") == 2
    paused = await system.done("ca", "rollover", "pause", *of_qemus)
    assert "Go on: hostler ca rollover resume --cluster cluster-1" in paused
    await system.done("ca", "rollover", "leave-out", "kvm-2", "--reason", "in repair", *of_qemus)
    await system.done("ca", "rollover", "resume", *of_qemus)
    said = await system.done("ca", "rollover", "status", "--watch", *of_qemus)
    assert "-qemu issues, and hosts trust no other one, but for 1 that were left out" in said
    assert _fields(await system.done("ca", "show", *of_qemus))["generation"] == "2"
    assert _fields(await system.done("ca", "show"))["generation"] == "1"


def _fields(text: str) -> dict[str, str]:
    """What `say_fields` has printed."""
    lines = (line.split("  ", 1) for line in text.splitlines() if "  " in line)
    return {name.strip().rstrip(":"): value.strip() for name, value in lines}
