"""The columns: what is killed or cut, for how long, and how it is put right again."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.matrix.bench import SOURCE, Bench
from tests.matrix.failpoints import Moment


@dataclass(frozen=True)
class Fault:
    """One column. `strike` and `repair` are told the destination of the maintenance's VMs.

    Attributes:
        key: in the ids of tests.
        title: in the document.
        does: what is done to the victim, in a sentence about the column.
        moment: where in an activity it strikes.
        lasts_s: from the strike to the repair.
        copying_lasts_s: the same, in the middle of migrations.
        brief_s: the same, in a maintenance with many faults.
        kills_destination: what runs there is lost with it.
    """

    key: str
    title: str
    does: str
    moment: Moment
    strike: Callable[[Bench, str], Awaitable[None]]
    repair: Callable[[Bench, str], Awaitable[None]]
    lasts_s: float
    brief_s: float
    copying_lasts_s: float | None = None
    kills_destination: bool = False

    def lasts(self, *, copying: bool, brief: bool) -> float:
        """Seconds from the strike to the repair."""
        if brief:
            return self.brief_s
        return (copying and self.copying_lasts_s) or self.lasts_s


async def _kill_worker(bench: Bench, _destination: str) -> None:
    bench.system.kill(bench.worker)


async def _start_worker(bench: Bench, _destination: str) -> None:
    await bench.start_worker()


async def _kill_temporal(bench: Bench, _destination: str) -> None:
    bench.system.kill(bench.temporal)


async def _start_temporal(bench: Bench, _destination: str) -> None:
    await bench.start_temporal()


async def _stop_database(bench: Bench, _destination: str) -> None:
    bench.database.stop()


async def _start_database(bench: Bench, _destination: str) -> None:
    bench.database.start()


async def _kill_source_libvirtd(bench: Bench, _destination: str) -> None:
    await bench.kill_libvirtd(SOURCE)


async def _start_source_libvirtd(bench: Bench, _destination: str) -> None:
    await bench.start_libvirtd(SOURCE)


async def _kill_destination_libvirtd(bench: Bench, destination: str) -> None:
    await bench.kill_libvirtd(destination)


async def _start_destination_libvirtd(bench: Bench, destination: str) -> None:
    await bench.start_libvirtd(destination)


async def _cut_source(bench: Bench, _destination: str) -> None:
    await bench.lab.cut(SOURCE)


async def _heal_source(bench: Bench, _destination: str) -> None:
    await bench.lab.heal(SOURCE)


async def _kill_destination(bench: Bench, destination: str) -> None:
    await bench.lab.kill(destination)


async def _boot_destination(bench: Bench, _destination: str) -> None:
    await bench.lab.power_on()


FAULTS = (
    Fault(
        "worker-before",
        "worker, before",
        "kill -9 of the worker before the step has its effect; another one is started 1 s later",
        Moment.BEFORE,
        _kill_worker,
        _start_worker,
        lasts_s=1,
        brief_s=1,
    ),
    Fault(
        "worker-after",
        "worker, after",
        "kill -9 of the worker after the step has had its effect, before Temporal knows; another "
        "one is started 1 s later",
        Moment.AFTER,
        _kill_worker,
        _start_worker,
        lasts_s=1,
        brief_s=1,
    ),
    Fault(
        "temporal",
        "Temporal",
        "kill -9 of Temporal after the step has had its effect, before it could be told; started "
        "again 5 s later on the same file",
        Moment.AFTER,
        _kill_temporal,
        _start_temporal,
        lasts_s=5,
        brief_s=5,
    ),
    Fault(
        "database",
        "database",
        "PostgreSQL ends at once before the step; started again 15 s later",
        Moment.BEFORE,
        _stop_database,
        _start_database,
        lasts_s=15,
        brief_s=10,
    ),
    Fault(
        "source-libvirtd",
        "source libvirtd",
        "kill -9 of libvirtd on kvm-1 before the step; started again 10 s later",
        Moment.BEFORE,
        _kill_source_libvirtd,
        _start_source_libvirtd,
        lasts_s=10,
        brief_s=5,
    ),
    Fault(
        "destination-libvirtd",
        "destination libvirtd",
        "kill -9 of libvirtd on a host that VMs go to before the step; started again 10 s later",
        Moment.BEFORE,
        _kill_destination_libvirtd,
        _start_destination_libvirtd,
        lasts_s=10,
        brief_s=5,
    ),
    Fault(
        "source-network",
        "source's network",
        "the cable of kvm-1 is cut before the step; mended 20 s later, in the middle of "
        "migrations 120 s later",
        Moment.BEFORE,
        _cut_source,
        _heal_source,
        lasts_s=20,
        brief_s=15,
        copying_lasts_s=120,
    ),
    Fault(
        "destination-host",
        "destination host",
        "a host that VMs go to loses its power before the step; switched on 25 s later",
        Moment.BEFORE,
        _kill_destination,
        _boot_destination,
        lasts_s=25,
        brief_s=15,
        kills_destination=True,
    ),
)
