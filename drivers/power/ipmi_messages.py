"""What IpmiDriver and its process say to each other.

Both directions are lines of JSON. To the process, a list of any of

    {"bmc": 7, "key": ["192.0.2.1", 623, "USER", "PASSWORD", 4, 3]}
                                        a BMC, before it is asked: the fields of BmcKey
    {"id": 1, "bmc": 7, "ask": [NETFN, COMMAND, [DATA, ...]], "once": false, "fresh": false,
     "seconds": 9.5, "guid": null}      a request; "ask" null: log in, if there is no session;
                                        "guid": that the BMC must have
    {"forget": 7}                       end its session
    {"ping": 3}

and back, a list of any of

    {"id": 1, "code": 0, "data": [1, 0, 0], "guid": "..."}     what the BMC has answered
    {"id": 1, "problem": "login", "text": "..."}               why it has not: Problem
    {"pong": 3}

They also share a page of memory, in whose first four bytes stands the number of the BMC that the
process works on: so it is known which one has made it hang.
"""

import struct
from enum import StrEnum
from typing import NamedTuple

NOBODY = 0
CURRENT = struct.Struct("I")


class BmcKey(NamedTuple):
    """What makes a session one of its own: never logged, it has the password. `address` is numeric,
    `privilege` IPMI's number."""

    address: str
    port: int
    user: str
    password: str
    privilege: int
    suite: int | None

    def __repr__(self) -> str:
        return f"BmcKey({self.address}, {self.port}, {self.user})"


class Problem(StrEnum):
    """Why a request has no answer."""

    UNREACHABLE = "unreachable"
    LATE = "late"
    BUSY = "busy"
    LOGIN = "login"
    ACCOUNT = "account"
    PRIVILEGE = "privilege"
    SUITE = "suite"
    WRONG = "wrong"  # its text is the GUID that it has
    UNIDENTIFIED = "unidentified"
    SILENT = "silent"  # it was sent, and is sent once
    DEFECT = "defect"
