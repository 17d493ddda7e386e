"""What ipmitool 1.8.19 prints with -v, and what it stands for: from real runs, and its source."""

import pytest

from contracts.errors import HostlerError
from drivers.errors import (
    AccountRefused,
    BmcCommandRejected,
    BmcUnreachable,
    CallTimedOut,
    InsufficientPrivilege,
    LoginRefused,
)
from drivers.power.ipmitool import Output, session_failure
from drivers.protocols import BmcAccess

ACCESS = BmcAccess("kvm-1", "192.0.2.1", "role-admin", "password")
BEGIN = "Loading IANA PEN Registry...\n"
END = "Error: Unable to establish IPMI v2 / RMCP+ session\n"
LOGGED_IN = f"{BEGIN}Discovered IPMB address 0x0\n"
RAW = "RAW REQ (channel=0x0 netfn=0x6 lun=0x0 cmd=0x37 data_len=0)\n"


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (f"{BEGIN}> RAKP 2 HMAC is invalid\n{END}", LoginRefused),
        (
            f"{BEGIN}RAKP 2 message indicates an error : unauthorized name\n{END}",
            AccountRefused,
        ),
        (
            f"{BEGIN}RAKP 2 message indicates an error : "
            f"unauthorized role or privilege level requested\n{END}",
            InsufficientPrivilege,
        ),
        (
            f"{BEGIN}Set Session Privilege Level to ADMINISTRATOR failed\n{END}",
            InsufficientPrivilege,
        ),
        (
            f"{BEGIN}Error in open session response message : invalid authentication algorithm\n\n"
            f"{END}",
            BmcCommandRejected,
        ),
        (
            f"{BEGIN}Get Auth Capabilities error\n"
            f"Error issuing Get Channel Authentication Capabilities request\n{END}",
            BmcUnreachable,
        ),
        (
            f"{BEGIN}Address lookup for bmc.invalid failed\nCould not open socket!\n{END}",
            BmcUnreachable,
        ),
        # It has sent RAKP 1 twice, and takes the answer to the first for one to the second.
        (
            f"{BEGIN}> Error: no response from RAKP 1 message\n> RAKP 2 HMAC is invalid\n{END}",
            CallTimedOut,
        ),
        (f"{LOGGED_IN}Unable to get Chassis Power Status\n", CallTimedOut),
        (
            f"{LOGGED_IN}{RAW}"
            "Unable to send RAW command (channel=0x0 netfn=0x6 lun=0x0 cmd=0x37)\n",
            CallTimedOut,
        ),
    ],
)
def test_a_session_that_failed(said: str, kind: type[HostlerError]) -> None:
    assert type(session_failure(ACCESS, Output("", said, complete=True))) is kind


def test_one_that_was_ended_at_the_deadline() -> None:
    assert isinstance(session_failure(ACCESS, Output("", BEGIN, complete=False)), BmcUnreachable)
    late = session_failure(ACCESS, Output("", LOGGED_IN, complete=False))
    assert isinstance(late, CallTimedOut)


def test_a_refused_request_is_no_failure_of_the_session() -> None:
    said = (
        f"{LOGGED_IN}{RAW}Unable to send RAW command "
        "(channel=0x0 netfn=0x6 lun=0x0 cmd=0x37 rsp=0xc1): Invalid command\n"
    )
    output = Output("Chassis Power is on\n", said, complete=True)
    assert session_failure(ACCESS, output) is None
    assert output.code == 0xC1


@pytest.mark.parametrize(
    ("output", "proven"),
    [
        (Output("", f"{BEGIN}> RAKP 2 HMAC is invalid\n{END}", complete=True, status=1), True),
        (Output("", f"{BEGIN}{END}", complete=False, status=-9), False),
        (Output("", LOGGED_IN + RAW + END, complete=True, status=1), False),
        (Output("", LOGGED_IN, complete=False, status=-9), False),
        (Output("", "", complete=True, status=1), False),
        (Output("", "", complete=True), False),
    ],
)
def test_what_proves_that_nothing_was_sent(output: Output, proven: bool) -> None:
    assert output.sent_nothing == proven


def test_answers_of_several_lines() -> None:
    line = " a1 23 45 67 89 ab cd ef a1 23 45 67 89 ab cd ef"
    output = Output(f"{line}\n 01 02\n\nChassis Power is on\n 3f 03\n", "", complete=True)
    assert [len(answer) for answer in output.raw_answers] == [18, 2]
