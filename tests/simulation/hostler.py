"""The `hostler` command on simulated hosts: `python -m tests.simulation.hostler up`.

Everything is as in `hostler`, except that the drivers of `workers.worker` lead to a Cluster
in this process. It is described by SIMULATION_HOSTS, SIMULATION_VMS, SIMULATION_SEED,
SIMULATION_JOURNAL (a file that gets one line per migration), and SIMULATION_TROUBLES (JSON: how
many hosts have which trouble; none, if it is not there).

With SIMULATION_SSH, the directory of `tests.simulation.ssh_hosts`, hosts are SSH servers: shell and
fence are the real ones then, and libvirt alone is simulated.

With SIMULATION_DEATHS besides, a folder (`tests.simulation.accounts`), the worker is killed
wherever a file there says so; with SIMULATION_NOTICED_S, Temporal notices that within so many
seconds.

With SIMULATION_BMCS, the control socket of `tests.simulation.bmcs`, hosts boot as their BMCs say;
drivers of BMCs are real, and with SIMULATION_DEATH (JSON: `at` and `calls` of MortalDrivers) they
take their worker with them.
"""

import json
import os
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from cli.main import main
from tests.simulation.accounts import (
    Deaths,
    MortalAccounts,
    MortalActivities,
    MortalPasswords,
)
from tests.simulation.bmcs import MortalDrivers, SimulatedBoots
from tests.simulation.cluster import (
    Cluster,
    SimulatedFence,
    SimulatedHypervisor,
    SimulatedInspector,
    SimulatedNeighbours,
    SimulatedShell,
)
from tests.simulation.ssh_hypervisor import SshHypervisor, SshInspector, ssh_cluster
from workers.worker import build_worker
from workflows import policies


def _make_mortal(patches: ExitStack, deaths: Deaths) -> None:
    MortalPasswords.deaths = deaths
    for target, dies in (
        ("workers.worker.ScriptAccounts", lambda shell: MortalAccounts(shell, deaths)),
        (
            "workers.processes.build_worker",
            partial(build_worker, interceptors=[MortalActivities(deaths)]),
        ),
        ("inventory.ClusterPasswords", MortalPasswords),
    ):
        patches.enter_context(mock.patch(target, dies))
    if (seconds := os.environ.get("SIMULATION_NOTICED_S")) is not None:
        for policy in vars(policies).values():
            if isinstance(policy, dict) and "heartbeat_timeout" in policy:
                policy["heartbeat_timeout"] = timedelta(seconds=float(seconds))


def simulated_drivers() -> Any:
    """A patch that puts them in the place of the real ones."""
    if (directory := os.environ.get("SIMULATION_SSH")) is not None:
        hosts = ssh_cluster(Path(directory))
        patches = ExitStack()
        patches.enter_context(
            mock.patch.multiple(
                "workers.worker",
                LibvirtHypervisor=lambda shell, **_: SshHypervisor(hosts, shell),
                ShellInspector=SshInspector,
            )
        )
        if (folder := os.environ.get("SIMULATION_DEATHS")) is not None:
            _make_mortal(patches, Deaths(Path(folder)))
        return patches
    cluster = Cluster(
        hosts=int(os.environ["SIMULATION_HOSTS"]),
        vms=int(os.environ["SIMULATION_VMS"]),
        seed=int(os.environ["SIMULATION_SEED"]),
        journal=Path(os.environ["SIMULATION_JOURNAL"]),
        troubles=json.loads(os.environ.get("SIMULATION_TROUBLES", "{}")),
    )
    more: dict[str, Any] = {}
    if (bmcs := os.environ.get("SIMULATION_BMCS")) is not None:
        more["Systemd"] = lambda _shell: SimulatedBoots(Path(bmcs))
    if (death := os.environ.get("SIMULATION_DEATH")) is not None:
        more["PowerDrivers"] = lambda: MortalDrivers(**json.loads(death))
    return mock.patch.multiple(
        "workers.worker",
        **more,
        AsyncSshShell=lambda **_: SimulatedShell(cluster),
        LibvirtHypervisor=lambda _shell, **_: SimulatedHypervisor(cluster),
        HookFence=lambda _shell, **_: SimulatedFence(cluster),
        ShellNeighbours=lambda _shell: SimulatedNeighbours(cluster),
        ShellInspector=lambda _shell: SimulatedInspector(cluster),
    )


if __name__ == "__main__":
    with simulated_drivers():
        main()
