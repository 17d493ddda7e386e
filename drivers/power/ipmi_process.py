"""The process that pyghmi runs in. IpmiDriver starts `python -m drivers.power.ipmi_process FD`.

pyghmi is not for threads, waits without an end in some cases, and keeps its state in its classes
(docs/decisions/0018-power-drivers.md). So it has a process of its own, which can be killed, and
here it never waits: this loop reads its sockets, and sends every request of an open session
itself, without pyghmi's timers. Those remain for logins, which pyghmi repeats without waiting.

It is told and answers what ipmi_messages says, on standard input and output. FD is the shared page.
"""

import itertools
import json
import mmap
import os
import selectors
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pyghmi.ipmi.private import session as pyghmi

from drivers.power.ipmi_commands import (
    GET_DEVICE_ID,
    SYSTEM_GUID,
    Ask,
    session_privilege,
    system_guid,
)
from drivers.power.ipmi_messages import CURRENT, NOBODY, BmcKey, Problem

# Seconds without an answer after which a request that may be repeated is, each time.
REPEATS = (0.7, 1.0, 1.5)
# BMCs end a session after 60 seconds without a request (IPMI 2.0, 6.12.15).
KEEPALIVE_S = 25.0
# Sessions that nobody has used for so long are closed.
KEEP_S = 900.0
# Logins at once, which are much more work than requests. One whose BMC has said nothing for
# SILENT_S is not counted: the mute ones would keep all others waiting.
LOGINS = 128
SILENT_S = 0.5
TICK_S = 0.05
# pyghmi's words for the hashes of cipher suites. From 256 it falls back to SHA-1; other numbers
# than 1 and 256 are SHA-256 alone.
HASHES = {3: 1, 17: 257}
_SESSION_IDS = itertools.count(1, 64)  # pyghmi counts on from each


def login_problem(text: str) -> Problem:
    """What pyghmi's text for a login that has failed means."""
    lowered = text.lower()
    if "resources to create new session" in lowered:
        return Problem.BUSY
    if "timeout" in lowered or "failed to initialize" in lowered or "no longer" in lowered:
        return Problem.UNREACHABLE
    if "algorithm" in lowered or "integrity payload" in lowered or "cipher suite" in lowered:
        return Problem.SUITE
    if "role" in lowered or "privilege" in lowered:
        return Problem.PRIVILEGE
    if "unauthorized name" in lowered:
        return Problem.ACCOUNT
    return Problem.LOGIN


class OwnKey(bytes):
    """A session's key, equal to no other: pyghmi gives out the session of whoever asks with the
    same address, user, password and key, although it may differ in its privilege."""

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


class Session(pyghmi.Session):  # type: ignore[misc] # pyghmi has no types
    """pyghmi's, with the steps of a login in which it would wait made asynchronous."""

    def __new__(cls, bmc: "Bmc", on_login: Callable[[Mapping[str, Any]], None]) -> "Session":
        """pyghmi registers it by these."""
        key = OwnKey(bmc.key.password.encode())
        session: Session = super().__new__(
            cls, bmc.key.address, bmc.key.user.encode(), key, port=bmc.key.port, kg=key
        )
        session.own_key = key
        return session

    def __init__(self, bmc: "Bmc", on_login: Callable[[Mapping[str, Any]], None]) -> None:
        """Begin a login. User and password go as bytes: as texts, pyghmi hangs with the second."""
        self.number = bmc.number
        self.cipher_suite = bmc.key.suite
        super().__init__(
            bmc.key.address,
            bmc.key.user.encode(),
            self.own_key,
            port=bmc.key.port,
            kg=self.own_key,
            onlogon=on_login,
            privlevel=bmc.key.privilege,
        )

    def _initsession(self) -> None:
        super()._initsession()
        # pyghmi begins each login with the same one: a late answer to the one before would be taken
        # for a wrong password.
        self.localsid = next(_SESSION_IDS)
        if self.cipher_suite is not None:
            self.attemptedhash = HASHES[self.cipher_suite]

    def _req_priv_level(self) -> None:
        self.logged = 1
        self.logoutexpiry = None
        self.logontries = 0
        self.incommand = False
        ask = session_privilege(self.privlevel)
        self.raw_command(ask.netfn, ask.command, data=ask.data, callback=self._got_privilege)

    def _got_privilege(self, response: Mapping[str, Any]) -> None:
        self.incommand = False
        self.logging = False
        if "error" in response:
            self.logged = 0
            self.onlogon({"error": response["error"]})
        elif response["code"]:
            self.logged = 0
            self.onlogon({"error": f"privilege level refused (0x{response['code']:02x})"})
        else:
            self.onlogon({"success": True})

    def logout(self, sessionok: bool = True) -> None:
        """End it. pyghmi counts it off its socket twice."""
        if self.broken:
            return
        users = self.socketpool[self.socket]
        super().logout(sessionok)
        self.socketpool[self.socket] = users - 1

    @property
    def heard(self) -> bool:
        """Whether the BMC has answered anything."""
        return self.sockaddr is not None

    def send(self, ask: Ask, answered: Callable[[Mapping[str, Any]], None]) -> None:
        """Send it once."""
        self.incommand = False
        self.raw_command(ask.netfn, ask.command, data=ask.data, retry=False, callback=answered)

    def end(self) -> None:
        """Tell the BMC, if there is a session, and let pyghmi forget it."""
        self.incommand = False
        self.logonwaiters.clear()
        self._mark_broken()


def refuse_to_wait(*_: object) -> NoReturn:
    """In the place of pyghmi's waiting, which nothing in this process would end."""
    raise RuntimeError("pyghmi would wait here")


@dataclass
class Request:
    """What one BMC is asked. `number` None: for the sake of the session alone."""

    number: int | None
    ask: Ask | None
    deadline: float
    once: bool = False
    fresh: bool = False
    guid: str | None = None  # that the BMC must have
    again: bool = False  # a new session was opened for it already
    sent: int = 0


@dataclass
class Bmc:
    """A BMC, its session, and who waits for it. One request at a time: BMCs are simple."""

    number: int
    key: BmcKey
    shown: str | None = None
    session: Session | None = None
    opening: bool = False
    opened: float = 0.0
    used: float = 0.0  # by the driver
    spoken: float = 0.0  # by either
    current: Request | None = None
    repeat: float | None = None
    waiting: deque[Request] = field(default_factory=deque)


class Loop:
    """All BMCs, in one thread."""

    def __init__(self, incoming: int, outgoing: int, current: mmap.mmap) -> None:
        self._in = incoming
        self._out = outgoing
        self._current = current
        self._bmcs: dict[int, Bmc] = {}
        self._active: set[int] = set()
        self._to_open: deque[Bmc] = deque()
        self._opening: set[int] = set()
        self._answers: list[dict[str, Any]] = []
        # What sends, after an answer: once pyghmi has finished with that, or it forgets that
        # anything was sent.
        self._then: deque[tuple[Bmc, Callable[[Bmc], None]]] = deque()
        self._selector = selectors.DefaultSelector()
        self._selector.register(incoming, selectors.EVENT_READ)
        self._watched: set[int] = set()
        self._rest = b""
        self._ended = False

    def run(self) -> None:
        """Until the driver closes its end."""
        os.set_blocking(self._in, False)
        ticked = kept = time.monotonic()
        while not self._ended:
            busy = self._active or self._to_open
            ready = self._selector.select(TICK_S if busy else 1.0)
            for key, _ in ready:
                if key.fd == self._in:
                    self._read()
            sockets = [key.fileobj for key, _ in ready if key.fd != self._in]
            if sockets:
                self._receive(sockets)
            now = time.monotonic()
            if now - ticked >= TICK_S:
                ticked = now
                self._tick()
            if now - kept >= 1.0:
                kept = now
                self._keep(now)
            self._open_some(now)
            while self._then:
                bmc, work = self._then.popleft()
                self._guarded(bmc, work)
            self._watch_new_sockets()
            self._write()

    # What the driver says.

    def _read(self) -> None:
        while True:
            try:
                chunk = os.read(self._in, 1 << 20)
            except BlockingIOError:
                break
            if not chunk:
                self._ended = True
                for bmc in self._bmcs.values():
                    if bmc.session is not None:
                        bmc.session.end()
                return
            self._rest += chunk
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            for message in json.loads(line):
                self._take(message)

    def _take(self, message: Mapping[str, Any]) -> None:
        if "ping" in message:
            self._answers.append({"pong": message["ping"]})
        elif "forget" in message:
            bmc = self._bmcs.pop(message["forget"], None)
            if bmc is not None:
                self._fail_all(bmc, Problem.UNREACHABLE, "The session was ended.")
        elif "id" in message:
            bmc = self._bmcs[message["bmc"]]
            ask = message.get("ask")
            bmc.waiting.append(
                Request(
                    message["id"],
                    None if ask is None else Ask(ask[0], ask[1], tuple(ask[2])),
                    time.monotonic() + message["seconds"],
                    message["once"],
                    message["fresh"],
                    message["guid"],
                )
            )
            self._guarded(bmc, self._next)
        else:
            number = message["bmc"]
            self._bmcs[number] = Bmc(number, BmcKey(*message["key"]))

    # One BMC.

    def _guarded(self, bmc: Bmc, work: Callable[[Bmc], None]) -> None:
        """Do it, with the BMC's number where the driver can see it. What goes wrong is its own."""
        CURRENT.pack_into(self._current, 0, bmc.number)
        try:
            work(bmc)
        except Exception as error:
            self._fail_all(bmc, Problem.DEFECT, _place_of(error))
        finally:
            CURRENT.pack_into(self._current, 0, NOBODY)

    def _next(self, bmc: Bmc) -> None:
        """Go on with what waits."""
        if bmc.opening or bmc.current is not None:
            return
        now = time.monotonic()
        while bmc.waiting and bmc.waiting[0].deadline <= now:
            self._give_up(bmc, bmc.waiting.popleft())
        if not bmc.waiting:
            self._active.discard(bmc.number)
            return
        self._active.add(bmc.number)
        request = bmc.waiting[0]
        if bmc.session is not None and (request.fresh or bmc.session.broken):
            self._drop(bmc)
        if bmc.session is None:
            request.fresh = False
            request.again = True
            bmc.opening = True
            bmc.opened = 0.0
            self._to_open.append(bmc)
            return
        bmc.waiting.popleft()
        if request.guid is not None and bmc.shown != request.guid:
            self._drop(bmc)
            if not request.again:  # what was shown is as old as the session
                bmc.waiting.appendleft(request)
            elif bmc.shown is not None:
                self._answer_problem(request, Problem.WRONG, bmc.shown)
            else:
                self._answer_problem(request, Problem.UNIDENTIFIED, "")
            self._next(bmc)
            return
        if request.number is not None:
            bmc.used = now
        if request.ask is None:
            self._answer(bmc, request, 0, [])
            self._next(bmc)
            return
        bmc.current = request
        self._send(bmc)

    def _send(self, bmc: Bmc) -> None:
        request, session = bmc.current, bmc.session
        if request is None or request.ask is None or session is None:
            raise RuntimeError("nothing to send")

        def answered(response: Mapping[str, Any]) -> None:
            session.incommand = False
            if bmc.session is not session or bmc.current is not request:
                return  # the answer to an earlier sending
            bmc.current = bmc.repeat = None
            bmc.spoken = time.monotonic()
            self._answer(bmc, request, response["code"], list(response["data"]))
            self._then.append((bmc, self._next))

        session.send(request.ask, answered)
        request.sent += 1
        bmc.repeat = None if request.once else time.monotonic() + REPEATS[request.sent - 1]

    def _open(self, bmc: Bmc) -> None:
        bmc.opened = time.monotonic()

        def logged_in(outcome: Mapping[str, Any]) -> None:
            if not bmc.opening:
                return
            if "error" in outcome:
                problem = login_problem(str(outcome["error"]))
                self._opening.discard(bmc.number)
                self._fail_all(bmc, problem, str(outcome["error"]))
            else:
                self._then.append((bmc, self._ask_guid))

        bmc.session = Session(bmc, logged_in)

    def _ask_guid(self, bmc: Bmc) -> None:
        """The last step of a login: whose BMC is it?"""
        session = bmc.session
        if session is None or not bmc.opening:
            return  # nobody waits for it any more

        def shown(response: Mapping[str, Any]) -> None:
            session.incommand = False
            if bmc.session is not session or not bmc.opening:
                return
            answered = "error" not in response and response["code"] == 0
            bmc.shown = system_guid(bytes(response["data"])) if answered else None
            bmc.opening = False
            bmc.repeat = None
            bmc.spoken = bmc.used = time.monotonic()
            self._opening.discard(bmc.number)
            self._then.append((bmc, self._next))

        session.send(SYSTEM_GUID, shown)
        bmc.repeat = time.monotonic() + REPEATS[0]

    def _drop(self, bmc: Bmc) -> None:
        if bmc.session is not None:
            bmc.session.end()
        bmc.session = None
        bmc.repeat = None
        self._opening.discard(bmc.number)
        bmc.opening = False

    def _fail_all(self, bmc: Bmc, problem: Problem, text: str) -> None:
        """End the session and all who wait: what is wrong with it is wrong for each of them."""
        self._drop(bmc)
        requests = list(bmc.waiting)
        if bmc.current is not None:
            requests.insert(0, bmc.current)
        bmc.waiting.clear()
        bmc.current = None
        self._active.discard(bmc.number)
        for request in requests:
            silent = request.once and request.sent
            self._answer_problem(request, Problem.SILENT if silent else problem, text)

    def _give_up(self, bmc: Bmc, request: Request) -> None:
        """Its time is over."""
        if request.once and request.sent:
            self._answer_problem(request, Problem.SILENT, "")
        elif bmc.session is not None and bmc.session.heard:
            self._answer_problem(request, Problem.LATE, "")
        else:
            self._answer_problem(request, Problem.UNREACHABLE, "no answer")

    # All of them.

    def _receive(self, sockets: list[Any]) -> None:
        pyghmi._io_graball(sockets, {})
        while pyghmi.sessionqueue:
            session = pyghmi.sessionqueue.popleft()
            owner = self._owner(session)
            if owner is None:
                session.pktqueue.clear()  # of one that has ended
            else:
                self._guarded(owner, _process_packets)

    def _owner(self, session: Any) -> Bmc | None:
        bmc = self._bmcs.get(session.number)
        return bmc if bmc is not None and bmc.session is session else None

    def _tick(self) -> None:
        """Everybody's timers."""
        for number in list(self._active):
            bmc = self._bmcs.get(number)
            if bmc is not None:
                self._guarded(bmc, self._look_at_clock)
            else:
                self._active.discard(number)
        # pyghmi's own, by its own clock, which it has for logins alone.
        waiting = pyghmi.Session.waiting_sessions
        clock = pyghmi._monotonic_time()
        late = [session for session, what in waiting.items() if what["timeout"] < clock]
        for session in late:
            waiting.pop(session, None)
            owner = self._owner(session)
            if owner is not None:
                self._guarded(owner, _repeat_login)

    def _look_at_clock(self, bmc: Bmc) -> None:
        now = time.monotonic()
        request = bmc.current
        if request is not None and request.deadline <= now:
            bmc.current = None
            self._give_up(bmc, request)
            self._drop(bmc)  # what has not answered once may never
            self._next(bmc)
        elif bmc.repeat is not None and bmc.repeat <= now:
            self._repeat(bmc)
        for late in [r for r in bmc.waiting if r.deadline <= now]:
            bmc.waiting.remove(late)
            self._give_up(bmc, late)
        if bmc.opening and not bmc.waiting:
            self._drop(bmc)
        if not bmc.opening and bmc.current is None:
            self._next(bmc)

    def _repeat(self, bmc: Bmc) -> None:
        request = bmc.current
        if request is None:
            self._ask_guid(bmc)
        elif request.sent < len(REPEATS):
            self._send(bmc)
        elif request.again:
            bmc.repeat = None  # it is slow: its time ends at the deadline
        else:  # the BMC may have forgotten the session
            bmc.current = None
            request.sent = 0
            self._drop(bmc)
            bmc.waiting.appendleft(request)

    def _open_some(self, now: float) -> None:
        if not self._to_open:
            return
        silent = {
            number
            for number in self._opening
            if (bmc := self._bmcs.get(number)) is None
            or (now - bmc.opened > SILENT_S and not (bmc.session and bmc.session.heard))
        }
        free = LOGINS - len(self._opening) + len(silent)
        while self._to_open and free > 0:
            bmc = self._to_open.popleft()
            if bmc.opening and bmc.session is None and self._bmcs.get(bmc.number) is bmc:
                free -= 1
                self._opening.add(bmc.number)
                self._guarded(bmc, self._open)

    def _keep(self, now: float) -> None:
        """Sessions that are used stay open, the others are closed."""
        for bmc in self._bmcs.values():
            if bmc.session is None or bmc.opening or bmc.current is not None or bmc.waiting:
                continue
            if now - bmc.used > KEEP_S:
                self._guarded(bmc, self._drop)
            elif now - bmc.spoken > KEEPALIVE_S:
                bmc.spoken = now
                bmc.waiting.append(Request(None, GET_DEVICE_ID, now + sum(REPEATS), again=True))
                self._guarded(bmc, self._next)

    def _watch_new_sockets(self) -> None:
        for socket in pyghmi.iosockets:
            if socket.fileno() not in self._watched:
                self._watched.add(socket.fileno())
                self._selector.register(socket, selectors.EVENT_READ)

    # What the driver is told.

    def _answer(self, bmc: Bmc, request: Request, code: int, data: list[int]) -> None:
        if request.number is not None:
            self._answers.append(
                {"id": request.number, "code": code, "data": data, "guid": bmc.shown}
            )

    def _answer_problem(self, request: Request, problem: Problem, text: str) -> None:
        if request.number is not None:
            self._answers.append({"id": request.number, "problem": problem, "text": text})

    def _write(self) -> None:
        if self._answers:
            line = json.dumps(self._answers, separators=(",", ":")).encode() + b"\n"
            self._answers.clear()
            while line:
                line = line[os.write(self._out, line) :]


def _place_of(error: Exception) -> str:
    """Where it comes from; its own text may have the password in it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {frame.name} ({Path(frame.filename).name}:{frame.lineno})"


def _process_packets(bmc: Bmc) -> None:
    if bmc.session is not None:
        bmc.session.process_pktqueue()


def _repeat_login(bmc: Bmc) -> None:
    if bmc.session is not None:
        bmc.session._timedout()


def main() -> None:
    """Serve the driver on standard input and output."""
    outgoing = os.dup(sys.stdout.fileno())
    # pyghmi prints: not into the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # Its thread, which would read the sockets, and whatever waits for that thread.
    pyghmi.iothread, pyghmi.iothreadready = object(), True
    pyghmi._io_wait = refuse_to_wait
    with mmap.mmap(int(sys.argv[1]), mmap.PAGESIZE) as current:
        Loop(sys.stdin.fileno(), outgoing, current).run()


if __name__ == "__main__":
    main()
