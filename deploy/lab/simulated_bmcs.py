"""BMCs by the thousand: pyghmi's IPMI server, many in one process, each with its own faults.

    python deploy/lab/simulated_bmcs.py --count 200 --first 127.2.0.1:623 --control /tmp/bmcs.sock

BMC 0 has the first address, each further one the next. They know cipher suite 3, and sessions that
never end. Standard output has the line "ready" once all are there.

The control socket takes lines of JSON, and answers each by one: `{"error": "..."}`, or a list of
the state of the BMCs that were named. A line may have

    "bmcs"       their numbers; left out: all
    "set"        any of the fields of Switches
    "power"      true or false: as if somebody had pressed the button
    "password"   another one, as if somebody had set it there
    "forget"     true: end all sessions without a word, as a BMC does that boots
    "address"    ["127.2.1.1", 623]: answer there from now on, of one BMC

It is a process of its own, never that of a client: pyghmi's state is global.
"""

import argparse
import heapq
import ipaddress
import itertools
import json
import resource
import selectors
import socket
import time
import traceback
import uuid
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pyghmi.ipmi.bmc import Bmc
from pyghmi.ipmi.private import constants
from pyghmi.ipmi.private import session as pyghmi
from pyghmi.ipmi.private.serversession import ServerSession

# RAKP messages' status codes (IPMI 2.0, table 13-15).
UNAUTHORIZED_ROLE, UNAUTHORIZED_NAME, NO_CIPHER_SUITE = 0x0A, 0x0D, 0x11
HMAC_SHA1 = 1  # an authentication algorithm (table 13-17)
OPEN_SESSION = 0x10  # a type of payload
BOOT_FLAGS = 5  # a parameter of the boot options (table 28-14)
NETWORK = 0x04
ACCOUNTS = 4
USER, OPERATOR, ADMINISTRATOR = 2, 3, 4  # levels of privilege


@dataclass(frozen=True)
class Switches:
    """What is wrong with a BMC.

    Attributes:
        mute: it answers nothing.
        slow: seconds that it takes for each packet.
        reject_login: it knows no user, or has locked the account.
        privilege: the highest level that it lets anybody have.
        reject: the completion code that it answers to every switching of power, 0: none.
        reject_guid: the one that it answers when it is asked for its GUID.
        lie: it accepts what switches power, and does nothing.
        swallow: it does what switches power, and does not answer.
        no_boot_options: it does not know what a machine boots from.
    """

    mute: bool = False
    slow: float = 0.0
    reject_login: bool = False
    privilege: int = 4
    reject: int = 0
    reject_guid: int = 0
    lie: bool = False
    swallow: bool = False
    no_boot_options: bool = False


class LoginSession(ServerSession):  # type: ignore[misc] # pyghmi has no types
    """Answers a login that it refuses, as BMCs do; pyghmi's says nothing."""

    k1 = None
    clientpriv = USER  # until it asks for more

    def create_open_session_response(self, request: bytearray) -> bytearray:
        response: bytearray = super().create_open_session_response(request)
        if request[12] != HMAC_SHA1:  # of cipher suite 3
            return bytearray([request[0], NO_CIPHER_SUITE, 0, 0, *self.clientsessionid])
        return response

    def _got_rakp1(self, data: bytearray) -> None:
        bmc: SimulatedBmc = self.bmc
        name = bytes(data[28 : 28 + data[27]]).decode()
        if bmc.switches.reject_login or name not in bmc.passwords:
            self._refuse(data[0], UNAUTHORIZED_NAME)
        elif data[24] & 0x0F > bmc.switches.privilege:
            self._refuse(data[0], UNAUTHORIZED_ROLE)
        else:
            super()._got_rakp1(data)

    def _refuse(self, tag: int, status: int) -> None:
        message = bytearray([tag, status, 0, 0]) + self.clientsessionid
        self.send_payload(message, constants.payload_types["rakp2"], retry=False)

    def close_server_session(self) -> None:
        self.bmc.sessions.pop(self.sockaddr, None)


class Silent:
    """Where answers go that nobody gets."""

    def send_ipmi_response(self, **_: Any) -> None:
        """Nothing."""


class SimulatedBmc(Bmc):  # type: ignore[misc]
    """One BMC and its machine, which has power or not."""

    serversocket: socket.socket

    def __init__(self, number: int, address: str, port: int, user: str, password: str) -> None:
        self.number = number
        self.passwords = {user: password}
        self.switches = Switches()
        self.on = True
        self.boots = 1
        self.boot_flags = bytes(5)
        self.network_boots = 0
        self.logins = 0
        self.requests = 0
        self.commands: list[str] = []
        self.sessions: dict[Any, LoginSession] = {}
        self.address = address
        machine = uuid.uuid5(uuid.NAMESPACE_OID, f"simulated BMC {address}:{port}")
        super().__init__(self.passwords, port=port, bmcuuid=machine, address=address)

    def move(self, address: str, port: int) -> None:
        """Answer there."""
        family = socket.getaddrinfo(address, port, 0, socket.SOCK_DGRAM)[0]
        former, self.serversocket = self.serversocket, pyghmi.Session._assignsocket(family)
        pyghmi.iosockets.remove(former)
        former.close()
        self.address, self.port = address, port
        self.sessions.clear()

    def state(self) -> dict[str, Any]:
        """What a test may want to know."""
        return {
            "bmc": self.number,
            "address": [self.address, self.port],
            "guid": str(self.uuid),
            "on": self.on,
            "boots": self.boots,
            "boot_flags": self.boot_flags.hex(),
            "network_boots": self.network_boots,
            "logins": self.logins,
            "sessions": len(self.sessions),
            "requests": self.requests,
            "commands": self.commands,
            "passwords": self.passwords,
            "switches": asdict(self.switches),
        }

    def receive(self, data: bytes, client: Any) -> None:
        """A packet, to whatever it belongs to."""
        session = self.sessions.get(client)
        if len(data) < 16 or data[4] != 6 or data[5] & 0x3F == OPEN_SESSION or session is None:
            self.sessionless_data(data, client)
        else:
            session._handle_ipmi_packet(bytearray(data), sockaddr=client, qent=None)

    def sessionless_data(self, data: bytes, client: Any) -> None:
        if len(data) > 16 and data[4] == 6 and data[5] & 0x3F == OPEN_SESSION:
            self.logins += 1
            self.sessions[client] = LoginSession(
                self.authdata, self.kg, client, self.serversocket, data[16:], self.uuid, bmc=self
            )
            # Where pyghmi looks sessions up by the client alone, which speaks with many BMCs.
            pyghmi.Session.bmc_handlers.pop(client, None)
        else:
            super().sessionless_data(data, client)

    def handle_raw_request(self, request: Any, session: Any) -> None:
        self.requests += 1
        data = request["data"]
        match request["netfn"], request["command"]:
            case 0, 2 if self.switches.reject:
                self.commands.append(f"rejected {data[0]}")
                session.send_ipmi_response(code=self.switches.reject)
            case 6, 0x37 if self.switches.reject_guid:
                session.send_ipmi_response(code=self.switches.reject_guid)
            case (0, 2) if session.clientpriv < OPERATOR:
                session.send_ipmi_response(code=0xD4)
            case (6, 0x47) if session.clientpriv < ADMINISTRATOR:
                session.send_ipmi_response(code=0xD4)
            case (0, 8) | (0, 9) if self.switches.no_boot_options:
                session.send_ipmi_response(code=0xC1)
            case (0, 8) if session.clientpriv < OPERATOR:
                session.send_ipmi_response(code=0xD4)
            case 0, 8 if data[0] == BOOT_FLAGS:
                if not self.switches.lie:
                    self.boot_flags = bytes(data[1:6])
                session.send_ipmi_response()
            case 0, 9 if data[0] == BOOT_FLAGS:
                session.send_ipmi_response(data=[1, BOOT_FLAGS, *self.boot_flags])
            case 0, 2 if self.switches.swallow:
                self.control_chassis(request, Silent())
            case 6, 0x44:
                session.send_ipmi_response(data=[ACCOUNTS, 1, 1, 0x34])
            case 6, 0x46:
                # The second account is the one that is there, as on most BMCs.
                name = next(iter(self.passwords)) if data[0] == 2 else ""
                session.send_ipmi_response(data=name.encode().ljust(16, b"\0"))
            case 6, 0x47 if data[0] & 0x3F == 2 and data[1] == 2:
                name = next(iter(self.passwords))
                self.passwords[name] = bytes(data[2:]).rstrip(b"\0").decode()
                session.send_ipmi_response()
            case _:
                super().handle_raw_request(request, session)

    def get_system_guid(self) -> uuid.UUID:
        guid: uuid.UUID = self.uuid
        return guid

    def get_power_state(self) -> int:
        return int(self.on)

    def power_on(self) -> None:
        self._do("on", boots=not self.on, on=True)

    def power_off(self) -> None:
        self._do("off", on=False)

    def power_cycle(self) -> int | None:
        if not self.on:
            self.commands.append("cycle without power")
            return 0xD5
        self._do("cycle", boots=True, on=True)
        return None

    def power_reset(self) -> int | None:
        if not self.on:
            self.commands.append("reset without power")
            return 0xD5
        self._do("reset", boots=True, on=True)
        return None

    def power_shutdown(self) -> None:
        self._do("soft", on=False)

    def _do(self, command: str, *, on: bool, boots: bool = False) -> None:
        self.commands.append(command)
        if not self.switches.lie:
            self.on = on
            if boots:
                self.boot()

    def boot(self) -> None:
        """From the network, if it was told to."""
        self.boots += 1
        valid, persistent = self.boot_flags[0] & 0x80, self.boot_flags[0] & 0x40
        self.network_boots += bool(valid and self.boot_flags[1] & 0x3C == NETWORK)
        if not persistent:
            self.boot_flags = bytes(5)


class Servers:
    """All of them, in one thread. Not pyghmi's loop: that one ends at 1,024 descriptors, and mixes
    up BMCs that have the same port."""

    def __init__(self, bmcs: list[SimulatedBmc], control: Path) -> None:
        self._bmcs = bmcs
        self._selector = selectors.DefaultSelector()
        for bmc in bmcs:
            self._selector.register(bmc.serversocket, selectors.EVENT_READ, bmc)
        control.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(control))
        listener.listen()
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._later: list[tuple[float, int, SimulatedBmc, bytes, Any]] = []
        self._order = itertools.count()

    def run(self) -> None:
        """For ever."""
        while True:
            now = time.monotonic()
            wait = max(0.0, self._later[0][0] - now) if self._later else None
            for key, _ in self._selector.select(wait):
                if isinstance(key.data, SimulatedBmc):
                    self._receive(key.data)
                else:
                    key.data(key.fileobj)
            now = time.monotonic()
            while self._later and self._later[0][0] <= now:
                _, _, bmc, data, client = heapq.heappop(self._later)
                self._deliver(bmc, data, client)

    def _receive(self, bmc: SimulatedBmc) -> None:
        while True:
            try:
                data, client = bmc.serversocket.recvfrom(3000, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            if bmc.switches.mute:
                continue
            if bmc.switches.slow:
                due = time.monotonic() + bmc.switches.slow
                heapq.heappush(self._later, (due, next(self._order), bmc, data, client))
            else:
                self._deliver(bmc, data, client)

    def _deliver(self, bmc: SimulatedBmc, data: bytes, client: Any) -> None:
        try:
            bmc.receive(data, client)
        except Exception:
            traceback.print_exc()  # one packet, which this server can't take: the others go on

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        self._selector.register(connection, selectors.EVENT_READ, self._obey)

    def _obey(self, connection: socket.socket) -> None:
        with connection.makefile("rw") as stream:
            # One line each: its sender waits for the answer.
            line = stream.readline()
            if line:
                try:
                    answer: Any = self._control(json.loads(line))
                except (ValueError, LookupError, TypeError, OSError) as error:
                    answer = {"error": str(error)}
                stream.write(json.dumps(answer) + "\n")
                return
        self._selector.unregister(connection)
        connection.close()

    def _control(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        chosen = [self._bmcs[n] for n in message.get("bmcs", range(len(self._bmcs)))]
        for bmc in chosen:
            bmc.switches = replace(bmc.switches, **message.get("set", {}))
            if "power" in message:
                if message["power"] and not bmc.on:
                    bmc.boot()
                bmc.on = message["power"]
            if "password" in message:
                bmc.passwords.update(dict.fromkeys(bmc.passwords, message["password"]))
            if message.get("forget"):
                bmc.sessions.clear()
            if "address" in message:
                self._selector.unregister(bmc.serversocket)
                try:
                    bmc.move(*message["address"])
                finally:
                    self._selector.register(bmc.serversocket, selectors.EVENT_READ, bmc)
        return [bmc.state() for bmc in chosen]


def main() -> None:
    """Serve until killed."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    arguments.add_argument("--count", type=int, default=1)
    arguments.add_argument("--first", default="127.2.0.1:623", help="ADDRESS:PORT of BMC 0")
    arguments.add_argument("--control", type=Path, required=True)
    arguments.add_argument("--user", default="admin")
    arguments.add_argument("--password", default="password", help="no secret: all see it")
    for switch in fields(Switches):
        arguments.add_argument(
            f"--{switch.name.replace('_', '-')}", type=json.loads, default=switch.default
        )
    given = arguments.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # pyghmi's thread, which would read the sockets too.
    pyghmi.iothread, pyghmi.iothreadready = object(), True
    address, port = given.first.rsplit(":", 1)
    first = ipaddress.ip_address(address)
    bmcs = [
        SimulatedBmc(n, str(first + n), int(port), given.user, given.password)
        for n in range(given.count)
    ]
    for bmc in bmcs:
        bmc.switches = Switches(**{s.name: getattr(given, s.name) for s in fields(Switches)})
    servers = Servers(bmcs, given.control)
    print("ready", flush=True)
    servers.run()


if __name__ == "__main__":
    main()
