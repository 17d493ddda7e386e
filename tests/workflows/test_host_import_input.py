"""HostImportInput as Temporal carries it: ten thousand hosts in one, and defaults."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from contracts.addition import HostAdditionInput
from contracts.host_import import (
    CarriedImport,
    HostImportInput,
    ImportedHost,
    ImportState,
    with_defaults,
)
from contracts.leases import Owner
from tests.samples import FINGERPRINT, WHEN
from workers.converter import HOSTLER_DATA_CONVERTER

_LIMIT = 2 * 2**20


def host(number: int, **more: object) -> HostAdditionInput:
    return HostAdditionInput.model_validate(
        {
            "name": f"kvm-{number:05}",
            "cluster": "cluster-1",
            "address": f"198.18.{number // 250}.{number % 250}",
            "secret": f"5ab1f0c4-0000-4000-8000-{number:012}",
            "host_key_sha256": FINGERPRINT[:-5] + f"{number:05}",
            **more,
        }
    )


def carried(request: HostImportInput) -> tuple[HostImportInput, int]:
    """What comes out at the other end, and the bytes on the way."""
    converter = HOSTLER_DATA_CONVERTER.payload_converter
    (payload,) = converter.to_payloads([request])
    (found,) = converter.from_payloads([payload], [HostImportInput])
    assert isinstance(found, HostImportInput)
    return found, len(payload.data)


def test_ten_thousand_hosts_fit_in_one_input() -> None:
    request = HostImportInput(name="all", hosts=tuple(host(n) for n in range(10_000)))
    found, size = carried(request)
    assert found == request
    assert size < 1700 * 1024


@pytest.mark.parametrize("done", [1, 1000, 5000, 9999])
def test_they_still_fit_with_what_is_carried_along(done: int) -> None:
    failed, adding = min(done, 1000), min(100, 10_000 - done)
    ended = {
        number: ImportedHost(host=f"kvm-{number:05}", state=ImportState.FAILED, error="e" * 250)
        if number < failed
        else ImportedHost(host=f"kvm-{number:05}", state=ImportState.PRESENT)
        for number in range(done)
    }
    request = HostImportInput(
        name="all",
        hosts=tuple(host(number) for number in range(done, 10_000)),
        continued=CarriedImport(
            since=WHEN,
            ended=ended,
            adding={
                f"kvm-{number:05}": Owner(
                    workflow_id=f"addition/kvm-{number:05}", first_run_id="0" * 36
                )
                for number in range(done, done + adding)
            },
        ),
    )
    found, size = carried(request)
    assert found == request
    assert size < _LIMIT


def test_what_hosts_share_is_written_once() -> None:
    request = HostImportInput(
        name="some",
        hosts=(host(1, user="admin", ssh_port=2222), host(2, user="admin", enabled=False)),
    )
    written: dict[str, Any] = json.loads(request.model_dump_json())
    assert written["defaults"] == {"cluster": "cluster-1", "user": "admin"}
    assert [sorted(one) for one in written["hosts"]] == [
        ["address", "host_key_sha256", "name", "secret", "ssh_port"],
        ["address", "enabled", "host_key_sha256", "name", "secret"],
    ]
    assert carried(request)[0] == request


def test_people_may_give_defaults() -> None:
    short = {"name": "kvm-1", "address": "198.18.0.1", "secret": "s"}
    request = HostImportInput.model_validate(
        {"name": "x", "defaults": {"cluster": "c", "ssh_port": 1}, "hosts": [short]}
    )
    assert (request.hosts[0].cluster, request.hosts[0].ssh_port) == ("c", 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hosts": []}, "at least 1"),
        ({"hosts": 5}, "valid tuple"),
        ({"defaults": 5}, "Extra inputs"),
        ({"parallel": 0}, "greater than or equal to 1"),
        ({"hosts": [{"name": "a", "address": "198.18.0.1"}]}, "Field required"),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, Any], says: str) -> None:
    given = {"name": "x", "hosts": [host(1).model_dump(mode="json")]} | change
    with pytest.raises(ValidationError, match=says):
        HostImportInput.model_validate(given)


def test_a_host_that_is_given_twice_is_named() -> None:
    with pytest.raises(ValidationError, match="the host kvm-00001 is given twice"):
        HostImportInput(name="x", hosts=(host(1), host(2), host(1)))


def test_a_list_that_is_too_large_is_refused() -> None:
    long = "n" * 58
    with pytest.raises(ValidationError, match="make several imports"):
        HostImportInput(name="x", hosts=tuple(host(n, name=f"{long}{n}") for n in range(10_000)))


def test_a_hosts_own_credential_replaces_one_of_the_other_kind() -> None:
    defaults = {"cluster": "c", "password": "p"}
    assert with_defaults(defaults, {"private_key": "k"}) == {"cluster": "c", "private_key": "k"}
    assert with_defaults(defaults, {"name": "a"}) == {"cluster": "c", "password": "p", "name": "a"}
    assert with_defaults(defaults, 5) == 5
