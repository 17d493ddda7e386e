"""Programs of Hostler, as processes that are forked from one that has imported them.

To import them takes 0.6 s of CPU for a command and 2.5 s for a worker, longer than most of what
they do then, and end-to-end tests start some thousand. All else is as on a command line: arguments,
environment, files, signals, the exit code. What others see of the process (its arguments and its
environment in /proc) is not.
"""

import atexit
import logging
import multiprocessing
import os
import runpy
import signal
import sys
import types
from collections.abc import Mapping, Sequence
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
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        stdout: Path,
        stderr: Path | None = None,
    ) -> None:
        arguments = (tuple(command), str(directory), dict(environment), stdout, stderr)
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


def _run(
    command: tuple[str, ...],
    directory: str,
    environment: dict[str, str],
    stdout: Path,
    stderr: Path | None,
) -> None:
    atexit._clear()  # noqa: SLF001 - those of the process that was forked
    logging.disable(logging.NOTSET)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    for number, path in ((1, stdout), (2, stderr)):
        if path is not None:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
            os.dup2(file, number)
            os.close(file)
    if stderr is None:
        os.dup2(1, 2)
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
