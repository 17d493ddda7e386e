"""How many files a worker may have open, and who may look into its memory."""

import subprocess
import sys

import pytest

_PROGRAM = """
import logging, resource, sys
from workers.limits import allow_open_files
logging.basicConfig(level="WARNING", format="%(levelname)s %(message)s", stream=sys.stdout)
allow_open_files(int(sys.argv[1]))
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("limits", "hosts", "says"),
    [
        ("512:2048", 200, ["2048 2048"]),
        ("2048:2048", 200, ["2048 2048"]),
        (
            "512:2048",
            300,
            [
                "WARNING 2048 open files are allowed, 300 hosts may need 2656: raise "
                "the hard limit (LimitNOFILE= of the systemd unit, or ulimit -Hn), then "
                "start the worker again",
                "2048 2048",
            ],
        ),
    ],
)
def test_all_that_is_allowed_is_taken(limits: str, hosts: int, says: list[str]) -> None:
    done = subprocess.run(
        ["prlimit", f"--nofile={limits}", sys.executable, "-c", _PROGRAM, str(hosts)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == says


_PRIVATE = """
import ctypes, resource, sys
from contextlib import suppress
from cli.main import main
sys.argv = ["hostler", "--version"]
with suppress(SystemExit):
    main()
print(ctypes.CDLL(None).prctl(3), *resource.getrlimit(resource.RLIMIT_CORE))  # PR_GET_DUMPABLE
"""


def test_nobody_looks_into_its_memory() -> None:
    done = subprocess.run(
        ["prlimit", "--core=unlimited:unlimited", sys.executable, "-c", _PRIVATE],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "0 0 0"
