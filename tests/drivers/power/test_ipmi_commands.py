"""IPMI's bytes."""

import uuid

import pytest

from contracts.power import PowerCommand, PowerState
from drivers.errors import BmcCommandRejected, InsufficientPrivilege
from drivers.power import ipmi_commands
from drivers.power.ipmi_messages import Problem
from drivers.power.ipmi_process import login_problem

MACHINE = uuid.UUID("4c4c4544-0034-4d0a-8052-b4c04f4e5932")
DEFAULT = uuid.UUID("03000200-0400-0500-0006-000700080009")


@pytest.mark.parametrize("octets", [MACHINE.bytes_le, MACHINE.bytes[::-1], MACHINE.bytes])
def test_a_guid_is_the_machines_uuid_in_whichever_order(octets: bytes) -> None:
    assert ipmi_commands.system_guid(octets) == str(MACHINE)


@pytest.mark.parametrize(
    "octets",
    [
        *(b"", bytes(15), bytes(16), b"\xff" * 16, b"\1" * 16),
        *(DEFAULT.bytes, DEFAULT.bytes_le, DEFAULT.bytes[::-1]),
    ],
)
def test_a_bmc_may_have_no_guid(octets: bytes) -> None:
    assert ipmi_commands.system_guid(octets) is None


def test_a_guid_that_nobody_made_is_one_all_the_same() -> None:
    octets = bytes.fromhex("11112222333300005555666677778888")
    assert ipmi_commands.system_guid(octets) == "22221111-3333-0000-5555-666677778888"


def test_chassis_control_has_the_specifications_numbers() -> None:
    numbers = {command: ipmi_commands.chassis_control(command).data[0] for command in PowerCommand}
    assert numbers == {
        PowerCommand.OFF: 0,
        PowerCommand.ON: 1,
        PowerCommand.CYCLE: 2,
        PowerCommand.RESET: 3,
        PowerCommand.SOFT: 5,
    }


def test_a_password_is_padded() -> None:
    ask = ipmi_commands.set_password(2, "abc")
    assert ask.data == (2, 2, *b"abc", *[0] * 13)


@pytest.mark.parametrize(
    ("data", "state"),
    [([0x21, 0, 0], PowerState.ON), ([0x60, 0, 0], PowerState.OFF), ([], PowerState.UNKNOWN)],
)
def test_power_is_one_bit(data: list[int], state: PowerState) -> None:
    assert ipmi_commands.power_state(data) is state


@pytest.mark.parametrize(
    ("answered", "flags"),
    [([], 0x80), ([1, 5, 0, 0, 0, 0, 0], 0x80), ([1, 5, 0xE0, 8, 0, 0, 0], 0xA0)],
)
def test_the_next_boot_alone_is_from_the_network_and_stays_bios_or_uefi(
    answered: list[int], flags: int
) -> None:
    ask = ipmi_commands.boot_from_network_once(answered)
    assert (ask.netfn, ask.command, ask.data) == (0, 8, (5, flags, 4, 0, 0, 0))
    assert ipmi_commands.boots_from_network_once([1, *ask.data])


@pytest.mark.parametrize(
    "answered",
    [[], [1, 5, 0x80], [1, 5, 0, 8, 0, 0, 0], [1, 5, 0xC0, 4, 0, 0, 0], [1, 5, 0x80, 8, 0, 0, 0]],
)
def test_what_is_not_the_network_once(answered: list[int]) -> None:
    assert not ipmi_commands.boots_from_network_once(answered)


def test_completion_codes() -> None:
    ipmi_commands.check("kvm-1", "switch power off", 0)
    with pytest.raises(InsufficientPrivilege):
        ipmi_commands.check("kvm-1", "switch power off", 0xD4)
    with pytest.raises(BmcCommandRejected, match=r"0xd5 \(not in its present state\)"):
        ipmi_commands.check("kvm-1", "switch power off", 0xD5)
    with pytest.raises(BmcCommandRejected, match="0x80"):
        ipmi_commands.check("kvm-1", "switch power off", 0x80)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("timeout", Problem.UNREACHABLE),
        ("Session failed to initialize", Problem.UNREACHABLE),
        ("Incorrect password provided", Problem.LOGIN),
        ("Unauthorized name in RAKP2", Problem.ACCOUNT),
        ("Invalid RAKP4 integrity code (wrong Kg?)", Problem.LOGIN),
        ("Invalid role in RAKP2", Problem.PRIVILEGE),
        ("Unauthorized role or privilege level requested in RAKP2", Problem.PRIVILEGE),
        (
            "Insufficient resources to create a session at the requested role in RAKP2",
            Problem.PRIVILEGE,
        ),
        ("privilege level refused (0x81)", Problem.PRIVILEGE),
        (
            "Insufficient resources to create new session (wait for existing sessions to timeout)",
            Problem.BUSY,
        ),
        ("Invalid authentication algorithm", Problem.SUITE),
        ("No Cipher suite match with proposed security algorithms", Problem.SUITE),
    ],
)
def test_pyghmis_words_for_a_failed_login(said: str, problem: Problem) -> None:
    assert login_problem(said) is problem
