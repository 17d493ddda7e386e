"""Programs of Hostler, as processes that are forked from one that has imported them.

To import them takes 0.6 s of CPU for a command and 2.5 s for a worker, longer than most of what
they do then, and end-to-end tests start some thousand. All else is as on a command line: arguments,
environment, files, signals, the exit code. What others see of the process (its arguments and its
environment in /proc) is not.
"""

import asyncio
import atexit
import logging
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

MODULES = ("tests.matrix.worker", "tests.simulation.hostler")
"""Those that can be forked: they do all of their work in `__main__`."""

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *("cli.main", "workers.processes", "workers.stores", "workers.worker", "api.app"),
        *("tests.forked", *MODULES),
    ]
)


class Forked:
    """`hostler ARGUMENTS...`, or `python -m MODULE ARGUMENTS...`, as subprocess.Popen has it.

    Args:
        command: of these two.
        environment: all of it.
        stdout, stderr: files to be written anew; without `stderr`, both go to the same.
        stdin: a file; without, there is nothing to be read.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        stdout: Path,
        stderr: Path | None = None,
        stdin: Path | None = None,
    ) -> None:
        files = (stdin or Path(os.devnull), stdout, stderr)
        arguments = (tuple(command), str(directory), dict(environment), files)
        self._process = _CONTEXT.Process(target=_run, args=arguments)
        # A child would run what started the tests, or a benchmark, as its own main module.
        with mock.patch.dict(sys.modules, {"__main__": types.ModuleType("__main__")}):
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.sentinel = self._process.sentinel

    def poll(self) -> int | None:
        """Its exit code, if it has ended; -N: by signal N."""
        return self._process.exitcode

    def wait(self) -> int:
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    status: int
    stdout: str
    stderr: str


async def command(
    *command: str, directory: Path, environment: Mapping[str, str], stdin: str = ""
) -> Said:
    """Run it to its end."""
    with tempfile.TemporaryDirectory() as files:
        read, stdout, stderr = (Path(files, name) for name in ("stdin", "stdout", "stderr"))
        read.write_text(stdin)
        process = Forked(
            command,
            directory=directory,
            environment=environment,
            stdout=stdout,
            stderr=stderr,
            stdin=read,
        )
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_reader(process.sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(process.sentinel)
        return Said(process.wait(), *(path.read_text() for path in (stdout, stderr)))


def _run(
    command: tuple[str, ...],
    directory: str,
    environment: dict[str, str],
    files: tuple[Path, Path, Path | None],
) -> None:
    atexit._clear()  # noqa: SLF001 - those of the process that was forked
    logging.disable(logging.NOTSET)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    anew = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    for number, path in enumerate(files):
        if path is None:
            os.dup2(1, number)
        else:
            file = os.open(path, anew if number else os.O_RDONLY, 0o644)
            os.dup2(file, number)
            os.close(file)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - multiprocessing puts another one there
    program, *arguments = command
    try:
        if program == "hostler":
            from cli.main import main

            sys.argv = ["hostler", *arguments]
            main()
        else:
            _, module, *arguments = arguments
            sys.argv = [module, *arguments]
            sys.modules.pop(module, None)
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()  # noqa: SLF001 - multiprocessing's own end leaves them out
