"""Authorities, revocation lists and certificates as the databases keep them."""

import asyncio
import itertools
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlmodel import select

from contracts.certificates import (
    AuthorityOrigin,
    Certificate,
    CertificateRole,
    CertificateState,
    RevocationReason,
)
from contracts.errors import Conflict, NotFound, Unavailable
from inventory import Database, Inventory, SecretBox
from inventory.authorities import Authorities, NewAuthority, NewCrl
from inventory.certificates import Certificates, NewCertificate
from inventory.models import CertificateAuthorityRow, SecretVersionRow

ROOT = Path(__file__).parents[2]
NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
_FOUNDERS = 2
_ROUNDS = 2


def authority(number: int = 1, **more: object) -> NewAuthority:
    values: dict[str, object] = {
        "provider": "root",
        "origin": AuthorityOrigin.GENERATED,
        "subject": f"CN=CA {number}",
        "sha256": f"{number:064x}",
        "not_before": NOW - DAY,
        "not_after": NOW + 100 * DAY,
        "chain": (f"PEM {number}\n",),
        **more,
    }
    return NewAuthority(**values)  # type: ignore[arg-type] # a table of values


def certificate(number: int, **more: object) -> NewCertificate:
    values: dict[str, object] = {
        "request": f"request-{number}",
        "provider": "root",
        "generation": 1,
        "serial": f"{number:x}",
        "host": "kvm-1",
        "role": CertificateRole.HOST,
        "subject": "CN=kvm-1",
        "dns_names": ("kvm-1",),
        "ip_addresses": ("198.18.0.11",),
        "key_sha256": f"key-{number}",
        "not_before": NOW - DAY,
        "not_after": NOW + 10 * DAY,
        "issued_by": "signing/kvm-1",
        "pem": "PEM\n",
        **more,
    }
    return NewCertificate(**values)  # type: ignore[arg-type] # a table of values


async def add(database: Database, new: NewAuthority, after: int = 0, unused: bool = True) -> int:
    found = await Authorities(database).add(new, after=after, unused=unused, operation="test")
    return found.authority.generation


@pytest.mark.parametrize("_round", range(_ROUNDS))
async def test_two_processes_that_start_together_make_one_ca(
    database: Database, url: str, _round: int
) -> None:
    key = SecretBox.new_key()
    founders = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.inventory.authority_founder", url, key),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(_FOUNDERS)
    ]
    for founder in founders:
        assert founder.stdout is not None
        assert await founder.stdout.readline() == b"ready\n"
    answers = await asyncio.gather(*(founder.communicate(b"\n") for founder in founders))
    said = [out.decode().splitlines() for out, _ in answers]
    assert [founder.returncode for founder in founders] == [0] * _FOUNDERS
    anchor, generation = said[0]
    assert anchor.startswith("-----BEGIN CERTIFICATE-----")
    assert (said, generation) == ([[anchor, "1"]] * _FOUNDERS, "1")
    async with database.reading() as session:
        (row,) = (await session.exec(select(CertificateAuthorityRow))).all()
        (secret,) = (await session.exec(select(SecretVersionRow))).all()
    assert (row.key_secret_id, secret.kind) == (secret.id, "ca_key")
    events = await Inventory(database, SecretBox(key)).events.list(subject="ca/root")
    assert [event.kind for event in events] == ["ca.generated"]


async def test_of_many_that_add_at_once_one_counts(database: Database) -> None:
    authorities = Authorities(database)
    found = await asyncio.gather(
        *(
            authorities.add(authority(number), after=0, unused=True, operation="test")
            for number in range(10)
        )
    )
    assert len({one.authority.sha256 for one in found}) == 1
    assert await authorities.find("root") == found[0]
    assert await authorities.find("vault") is None
    assert [(one.provider, one.generation) for one in await authorities.live()] == [("root", 1)]


async def test_a_key_in_use_is_not_discarded(inventory: Inventory) -> None:
    secret = await inventory.secrets.store("ca_key", "key", actor="test")
    await inventory.authorities.add(
        authority(key_secret_id=secret), after=0, unused=True, operation="test"
    )
    await inventory.secrets.discard(secret)
    assert (await inventory.secrets.reveal(secret)).plaintext == "key"


async def test_one_that_has_issued_is_replaced_only_on_purpose(database: Database) -> None:
    certificates = Certificates(database)
    await add(database, authority(1))
    assert await add(database, authority(2), after=1) == 2
    await certificates.record(certificate(1, generation=2), actor="test")
    with pytest.raises(Conflict, match="has issued 1 certificates"):
        await add(database, authority(3), after=2)
    assert await add(database, authority(3), after=2, unused=False) == 3
    # What the former one has signed meanwhile was given to nobody.
    with pytest.raises(Unavailable, match="has just been replaced"):
        await certificates.record(certificate(2, generation=2), actor="test")
    assert [one.serial for one in await certificates.list()] == ["1"]


async def test_recording_and_replacing_at_once_never_leave_a_certificate_of_the_former_one(
    database: Database,
) -> None:
    certificates = Certificates(database)
    for number in range(1, 11):
        provider = f"root-{number}"
        await add(database, authority(1, provider=provider))
        outcomes = await asyncio.gather(
            certificates.record(certificate(number, provider=provider), actor="test"),
            add(database, authority(2, provider=provider), after=1),
            return_exceptions=True,
        )
        recorded = [isinstance(one, Certificate) for one in outcomes]
        assert sum((recorded[0], outcomes[1] == 2)) == 1, outcomes


async def test_a_step_that_is_repeated_records_nothing_more(
    inventory: Inventory, database: Database
) -> None:
    await add(database, authority())
    notices = (("certificate.names_dropped", "DNS:x"),)
    first = await inventory.certificates.record(certificate(1, notices=notices), actor="a")
    again = await inventory.certificates.record(
        certificate(2, request="request-1", notices=notices), actor="a"
    )
    assert again == first
    assert await inventory.certificates.find_request("request-1") == first
    assert await inventory.certificates.find_request("request-2") is None
    events = await inventory.events.list(subject="host/kvm-1", operation="signing/kvm-1")
    assert [event.kind for event in events] == ["certificate.names_dropped", "certificate.issued"]


async def test_a_serial_of_two_cas_is_not_guessed(database: Database) -> None:
    certificates = Certificates(database)
    await add(database, authority(1))
    await add(database, authority(2, provider="vault"))
    await certificates.record(certificate(1), actor="test")
    with pytest.raises(Conflict, match="has issued another certificate of serial 1"):
        await certificates.record(certificate(1, request="other"), actor="test")
    await certificates.record(
        certificate(1, request="other", provider="vault", host="kvm-2"), actor="test"
    )
    with pytest.raises(Conflict, match="Name the host: kvm-1, kvm-2"):
        await certificates.get("1")
    with pytest.raises(NotFound):
        await certificates.get("2")


async def test_certificates_are_found_by_host_state_and_time(database: Database) -> None:
    certificates = Certificates(database)
    await add(database, authority())
    for number, host, days in ((1, "kvm-1", 10), (2, "kvm-2", 20), (3, "kvm-2", -1)):
        await certificates.record(
            certificate(number, host=host, not_after=NOW + days * DAY), actor="test"
        )
    await certificates.revoke(
        await certificates.get("2"), RevocationReason.SUPERSEDED, operation="r", actor="test"
    )

    async def serials(**query: object) -> list[str]:
        found = await certificates.list(**query)  # type: ignore[arg-type] # a table of values
        return [one.serial for one in found]

    assert await serials() == ["1", "2", "3"]
    assert await serials(host="kvm-2") == ["2", "3"]
    assert await serials(state=CertificateState.VALID) == ["1"]
    assert await serials(state=CertificateState.REVOKED) == ["2"]
    assert await serials(state=CertificateState.EXPIRED) == ["3"]
    assert await serials(expires_before=NOW + 15 * DAY) == ["1", "3"]
    assert await serials(limit=1, after="1") == ["2"]
    for one in await certificates.list():
        assert await serials(state=one.state(NOW)) == [one.serial]


async def test_revoking_again_tells_it_once(inventory: Inventory, database: Database) -> None:
    certificates = inventory.certificates
    await add(database, authority())
    one = await certificates.record(certificate(1), actor="test")
    assert not await certificates.is_compromised("key-1")
    for reason in (RevocationReason.KEY_COMPROMISE, RevocationReason.UNSPECIFIED) * 2:
        await certificates.revoke(one, reason, operation="revocation/1", actor="token:anna")
    with pytest.raises(Conflict, match="revoked already: keyCompromise"):
        await certificates.revoke(one, RevocationReason.SUPERSEDED, operation="r", actor="x")
    found = await certificates.get("1")
    assert found.revocation_reason is RevocationReason.KEY_COMPROMISE
    assert found.revoked_at is not None
    assert await certificates.is_compromised("key-1")
    (event,) = await inventory.events.list(operation="revocation/1")
    assert (event.actor, event.message) == ("token:anna", "host certificate 1: keyCompromise")


async def test_a_stolen_key_takes_the_place_of_another_reason(
    inventory: Inventory, database: Database
) -> None:
    certificates = inventory.certificates
    await add(database, authority())
    one = await certificates.record(certificate(1), actor="test")
    for reason in (RevocationReason.SUPERSEDED, RevocationReason.KEY_COMPROMISE):
        await certificates.revoke(one, reason, operation="revocation/1", actor="token:anna")
    assert await certificates.is_compromised("key-1")
    events = await inventory.events.list(operation="revocation/1")
    assert [event.message for event in events] == [
        "host certificate 1: keyCompromise",
        "host certificate 1: superseded",
    ]


async def test_a_key_is_never_followed_by_none(inventory: Inventory, database: Database) -> None:
    """Whoever reads the chain of a CA, and then its row, may have missed an import between."""
    secret = await inventory.secrets.store("ca_key", "key", actor="test")
    await add(database, authority(1, key_secret_id=secret))
    with pytest.raises(Conflict, match="can't be replaced without a key"):
        await add(database, authority(2, origin=AuthorityOrigin.EXTERNAL), after=1, unused=False)
    found = await inventory.authorities.find("root")
    assert found is not None
    assert (found.authority.generation, found.key_secret_id) == (1, secret)


async def test_numbers_of_lists_go_on_in_the_next_generation(database: Database) -> None:
    authorities = Authorities(database)
    await add(database, authority(1))
    first = await authorities.begin_crl("root", 1, kept=DAY)
    await add(database, authority(2), after=1)
    assert (await authorities.begin_crl("root", 2, kept=DAY)).number == first.number + 1


async def test_a_list_is_kept_with_the_authority_that_signed_it(database: Database) -> None:
    authorities = Authorities(database)
    await add(database, authority(1))
    crl = NewCrl(b"of 1", "1", NOW, NOW + DAY, entries=0)
    await add(database, authority(2), after=1)
    await authorities.store_crl("root", 1, crl, operation="test")
    assert await authorities.crl("root", 1) == b"of 1"
    with pytest.raises(NotFound, match="Generation 2 of 'root' has no revocation list yet"):
        await authorities.crl("root", 2)


async def test_a_ca_that_was_restored_starts_from_a_lower_number(inventory: Inventory) -> None:
    authorities = inventory.authorities
    external = authority(1, provider="vault", origin=AuthorityOrigin.EXTERNAL)
    await authorities.add(external, after=0, unused=False, operation="test")
    later = NOW + timedelta(minutes=5)
    for number, at in (("9", NOW), ("3", later), ("8", NOW)):
        kept = await authorities.store_crl(
            "vault", 1, NewCrl(number.encode(), number, at, at + DAY, entries=0), operation="test"
        )
    assert (kept.number, kept.this_update) == (3, later)
    (event,) = await inventory.events.list(kind="ca.crl_number_went_back")
    assert event.message.startswith("from 9 to 3")


async def test_authorities_live_as_long_as_what_they_have_issued(database: Database) -> None:
    authorities, certificates = Authorities(database), Certificates(database)
    for number in (1, 2, 3):
        await add(database, authority(number), after=number - 1, unused=False)
        days = (1, -1, 1)[number - 1]
        await certificates.record(
            certificate(number, generation=number, not_after=NOW + days * DAY), actor="test"
        )
    await add(database, authority(4), after=3, unused=False)
    assert [one.generation for one in await authorities.live()] == [1, 3, 4]


async def test_of_two_lists_the_later_number_names_all_that_the_other_does(
    database: Database,
) -> None:
    authorities, certificates = Authorities(database), Certificates(database)
    await add(database, authority())
    for number in range(1, 13):
        await certificates.record(certificate(number), actor="test")

    async def revoke_and_list(number: int) -> tuple[int, set[str]]:
        one = await certificates.get(f"{number:x}")
        await certificates.revoke(one, RevocationReason.UNSPECIFIED, operation="r", actor="test")
        draft = await authorities.begin_crl("root", 1, kept=DAY)
        serials = {entry.serial for entry in draft.revoked}
        assert one.serial in serials
        return draft.number, serials

    drafts = sorted(await asyncio.gather(*(revoke_and_list(number) for number in range(1, 13))))
    assert [number for number, _ in drafts] == list(range(1, 13))
    for (_, earlier), (_, later) in itertools.pairwise(drafts):
        assert earlier <= later
    assert len(drafts[-1][1]) == 12


async def test_an_entry_stays_for_a_while_after_its_certificate_has_expired(
    database: Database,
) -> None:
    authorities, certificates = Authorities(database), Certificates(database)
    await add(database, authority())
    for number, days in ((1, -1), (2, -9)):
        one = await certificates.record(
            certificate(number, not_after=NOW + days * DAY), actor="test"
        )
        await certificates.revoke(one, RevocationReason.UNSPECIFIED, operation="r", actor="test")
    draft = await authorities.begin_crl("root", 1, kept=7 * DAY)
    assert [entry.serial for entry in draft.revoked] == ["1"]


async def test_an_older_list_never_takes_the_place_of_a_newer_one(inventory: Inventory) -> None:
    def crl(number: int) -> NewCrl:
        return NewCrl(f"list {number}".encode(), str(number), NOW, NOW + DAY, entries=number % 7)

    authorities = inventory.authorities
    with pytest.raises(NotFound):
        await authorities.store_crl("root", 1, crl(1), operation="test")
    secret = await inventory.secrets.store("ca_key", "key", actor="test")
    await authorities.add(authority(key_secret_id=secret), after=0, unused=True, operation="test")
    with pytest.raises(NotFound, match="no revocation list yet"):
        await authorities.crl("root", 1)
    highest = 2**159  # an external CA's may be that long
    for number in (9, 10, 9, highest, 10):
        kept = await authorities.store_crl("root", 1, crl(number), operation="test")
    assert kept.number == highest
    assert await authorities.crl("root", 1) == f"list {highest}".encode()
    told = [event.message for event in await inventory.events.list(subject="ca/root")]
    assert [message.split(",")[0] for message in told if "number" in message] == [
        f"generation 1: number {highest}",
        "generation 1: number 10",
        "generation 1: number 9",
    ]
