"""How BMCs' addresses are written."""

import pytest
from pydantic import TypeAdapter, ValidationError

from contracts.oobm import BmcAddress, endpoint

ADDRESS: TypeAdapter[str] = TypeAdapter(BmcAddress)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("198.18.1.11", "198.18.1.11"),
        ("BMC-1.Example", "bmc-1.example"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("::1", "::1"),
        ("::ffff:198.18.1.11", "198.18.1.11"),
        ("rack-7", "rack-7"),
    ],
)
def test_there_is_one_way_to_write_it(given: str, kept: str) -> None:
    assert ADDRESS.validate_python(given) == kept


@pytest.mark.parametrize("given", ["127.1", "2130706433", "0x7f000001", "010.0.0.1", "1:2", "a:b"])
def test_what_only_some_take_for_an_ip_address_is_refused(given: str) -> None:
    with pytest.raises(ValidationError):
        ADDRESS.validate_python(given)


def test_a_driver_that_is_not_known_here_has_a_port_of_its_own() -> None:
    assert endpoint("ipmi", "a", None) == endpoint("ipmitool", "A", 623) == "a 623"
    assert endpoint("other", "a", None) == "a other"
