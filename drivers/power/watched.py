"""The process that speaks IPMI, as its driver sees it: started, asked, watched, killed."""

import asyncio
import contextlib
import itertools
import json
import logging
import mmap
import os
from collections.abc import Mapping, Sequence
from typing import Any

from drivers.errors import PowerDriverFailed
from drivers.pool import look_at
from drivers.power.ipmi_commands import Ask
from drivers.power.ipmi_messages import CURRENT, BmcKey

_MOST_BYTES = 1 << 26  # in one line of answers
_END_S = 2.0  # that it has to end its sessions
_log = logging.getLogger(__name__)


class ProcessEnded(Exception):
    """The process has ended. `culprit`: the BMC that it worked on, or None."""

    def __init__(self, culprit: BmcKey | None) -> None:
        super().__init__("the process has ended")
        self.culprit = culprit


class WatchedProcess:
    """One run of it: once it has ended it stays so. Requests made in the same turn of the event
    loop go in one message, since a sweep makes thousands."""

    def __init__(self, process: asyncio.subprocess.Process, current: mmap.mmap) -> None:
        self._process = process
        self._current = current
        self._numbers: dict[BmcKey, int] = {}
        self._bmc_numbers = itertools.count(1)
        self._requests = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self._outbox: list[Mapping[str, Any]] = []
        self._pong = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.ended = False

    @classmethod
    async def start(cls, command: Sequence[str], patience: float) -> "WatchedProcess":
        """Raises PowerDriverFailed."""
        shared = os.memfd_create("hostler-ipmi")
        try:
            os.ftruncate(shared, mmap.PAGESIZE)
            current = mmap.mmap(shared, mmap.PAGESIZE)
            process = await asyncio.create_subprocess_exec(
                *command,
                str(shared),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                pass_fds=(shared,),
                limit=_MOST_BYTES,
                start_new_session=True,  # what a terminal sends is for the driver's process
                # Nothing of Hostler's own: the master key may be among it.
                env={k: v for k, v in os.environ.items() if not k.startswith("HOSTLER_")},
            )
        except OSError as error:
            raise PowerDriverFailed(
                f"The IPMI driver's process can't be started: {error.strerror}.",
                remedy="See whether this machine is out of memory or processes.",
            ) from error
        finally:
            os.close(shared)
        started = cls(process, current)
        started._tasks = [
            asyncio.create_task(started._serve()),
            asyncio.create_task(started._watch(patience)),
        ]
        return started

    async def ask(
        self,
        key: BmcKey,
        ask: Ask | None,
        *,
        guid: str | None,
        once: bool,
        fresh: bool,
        seconds: float,
    ) -> Mapping[str, Any]:
        """What it answers (ipmi_messages). Raises ProcessEnded."""
        if self.ended:
            raise ProcessEnded(None)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = next(self._bmc_numbers)
            self._send({"bmc": number, "key": key})
        request = next(self._requests)
        self._send(
            {
                "id": request,
                "bmc": number,
                "ask": None if ask is None else (ask.netfn, ask.command, ask.data),
                "once": once,
                "fresh": fresh,
                "seconds": seconds,
                "guid": guid,
            }
        )
        answer: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[request] = answer
        answer.add_done_callback(look_at)
        try:
            return await answer
        finally:
            self._answers.pop(request, None)

    def forget(self, key: BmcKey) -> None:
        """End its session, if there is one."""
        number = self._numbers.pop(key, None)
        if number is not None and not self.ended:
            self._send({"forget": number})

    async def end(self) -> None:
        """Let it end its sessions and itself, and kill it if it does not."""
        self.ended = True
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._reap()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail_all()

    def _send(self, message: Mapping[str, Any]) -> None:
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(message)

    def _flush(self) -> None:
        line = json.dumps(self._outbox, separators=(",", ":")).encode() + b"\n"
        self._outbox = []
        if self._process.stdin is not None and not self.ended:
            self._process.stdin.write(line)

    async def _serve(self) -> None:
        """Until it ends."""
        try:
            await self._read()
        except ValueError:
            _log.exception("the IPMI driver's process says what can't be read")
        self.ended = True
        await self._reap()
        self._fail_all()

    async def _read(self) -> None:
        if self._process.stdout is None:
            raise RuntimeError("started without a pipe")
        async for line in self._process.stdout:
            for message in json.loads(line):
                if "pong" in message:
                    self._pong.set()
                    continue
                answer = self._answers.get(message["id"])
                if answer is not None and not answer.done():
                    answer.set_result(message)

    async def _watch(self, patience: float) -> None:
        """Kill it when it does not answer twice: once may be because we ourselves were stopped."""
        missed = 0
        while not self.ended:
            self._pong.clear()
            self._send({"ping": missed})
            try:
                async with asyncio.timeout(patience / 2):
                    await self._pong.wait()
            except TimeoutError:
                missed += 1
                if missed == 2:
                    _log.error("the IPMI driver's process hangs and is killed")
                    self._kill()
                    return
            else:
                missed = 0
                await asyncio.sleep(patience / 2)

    async def _reap(self) -> None:
        """Wait for its end, not for long."""
        try:
            async with asyncio.timeout(_END_S):
                await self._process.wait()
        except TimeoutError:
            self._kill()
            await self._process.wait()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def _fail_all(self) -> None:
        """Tell all who wait; what it worked on last is still in the shared memory."""
        (current,) = CURRENT.unpack_from(self._current, 0)
        culprit = next((key for key, number in self._numbers.items() if number == current), None)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ProcessEnded(culprit))
