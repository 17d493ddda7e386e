"""The `hostler` command on simulated hosts: `python -m tests.simulation.hostler up`.

Everything is as in `hostler`, except that the three drivers of `workers.worker` lead to a Cluster
in this process. It is described by SIMULATION_HOSTS, SIMULATION_VMS, SIMULATION_SEED and
SIMULATION_JOURNAL (a file that gets one line per migration).
"""

import os
from pathlib import Path
from typing import Any
from unittest import mock

from cli.main import main
from tests.simulation.cluster import Cluster, SimulatedFence, SimulatedHypervisor, SimulatedShell


def simulated_drivers() -> Any:
    """A patch that puts them in the place of the real ones."""
    cluster = Cluster(
        hosts=int(os.environ["SIMULATION_HOSTS"]),
        vms=int(os.environ["SIMULATION_VMS"]),
        seed=int(os.environ["SIMULATION_SEED"]),
        journal=Path(os.environ["SIMULATION_JOURNAL"]),
    )
    return mock.patch.multiple(
        "workers.worker",
        AsyncSshShell=lambda **_: SimulatedShell(cluster),
        LibvirtHypervisor=lambda _shell, **_: SimulatedHypervisor(cluster),
        HookFence=lambda _shell, **_: SimulatedFence(cluster),
    )


if __name__ == "__main__":
    with simulated_drivers():
        main()
