"""How the VMs of a maintenance stand, in words, and which commands move it on."""

import shlex
from datetime import datetime

from cli.output import one_line
from contracts.maintenance import MaintenanceView, MigrationMode, VmStatus
from contracts.vms import MigrationState, VmMigration

_MODES = {
    MigrationMode.AUTO_CONVERGE: "with auto-converge",
    MigrationMode.UNBOUNDED: "without a time limit",
    MigrationMode.PAUSED: "pausing the guest to finish",
}
_ON_THE_WAY = frozenset({MigrationState.WAITING, MigrationState.MIGRATING})
_SECONDS_UP_TO = 100
_MINUTES_UP_TO = 100


def migration_of(view: MaintenanceView, vm: VmStatus) -> VmMigration | None:
    """The live migration of the VM that runs now."""
    running = [
        migration
        for migration in view.migrations
        if migration.vm == vm.vm and migration.state is MigrationState.MIGRATING
    ]
    if vm.state is not MigrationState.MIGRATING or not running:
        return None
    return max(running, key=lambda migration: migration.started_at)


def in_words(
    vm: VmStatus, migration: VmMigration | None, now: datetime, *, percent: bool = True
) -> str:
    """One line: state, destination, progress, what is wrong. `percent` False: a bar shows it."""
    words = state_in_words(vm)
    if vm.destination is not None and vm.state in (*_ON_THE_WAY, MigrationState.MOVED):
        words += f" to {vm.destination}"
    progress = progress_in_words(vm, migration, now, percent=percent)
    if progress:
        words += f", {progress}"
    if vm.seconds is not None and vm.state is MigrationState.MOVED:
        words += f" in {vm.seconds:.1f} s"
    if vm.error is not None and vm.state in (
        MigrationState.WAITING,
        MigrationState.FAILED,
        MigrationState.STAYED,
    ):
        words += f" ({vm.error})"
    return one_line(words)


def state_in_words(vm: VmStatus) -> str:
    """Its state, and whether it comes to life again by itself."""
    return f"{vm.state}, starts again when the host is back" if vm.start_again else str(vm.state)


def progress_in_words(
    vm: VmStatus, migration: VmMigration | None, now: datetime, *, percent: bool = True
) -> str:
    """How its migration goes, and how it is to come to an end if that is not the usual way."""
    words = []
    if migration is not None and percent:
        words.append(f"{migration.percent} %")
    if migration is not None:
        words.append(f"{migration.rate_mib_s:.1f} MiB/s")
    if migration is not None and migration.dirty_rate_mib_s:
        words.append(f"dirty rate {migration.dirty_rate_mib_s:.1f} MiB/s")
    if migration is not None:
        words += _end_in_words(migration, now)
    if vm.state in _ON_THE_WAY and vm.mode in _MODES:
        words.append(_MODES[vm.mode])
    if migration is not None and migration.throttle_percent:
        words.append(f"guest throttled by {migration.throttle_percent} %")
    return ", ".join(words)


def answers(host: str, vm: VmStatus) -> list[str]:
    """One command per answer that applies to the VM's question. Never several in one line: a shell
    takes the `|` between `retry` and `shutdown` for a pipe."""
    return [f"{_resolve(host, vm)}{action}" for action in vm.actions]


def other_commands(view: MaintenanceView) -> list[str]:
    """What can be run now beside the answers to questions."""
    answered = tuple(_resolve(view.host, vm) for vm in view.vms if vm.actions)
    return [command for command in view.commands if not command.startswith(answered)]


def _resolve(host: str, vm: VmStatus) -> str:
    return f"hostler maintenance resolve {host} {shlex.quote(vm.vm)} "


def _end_in_words(migration: VmMigration, now: datetime) -> list[str]:
    if migration.expected_end_at is not None:
        left = (migration.expected_end_at - now).total_seconds()
        return [f"ends in {_about(left)}" if left >= 1 else "about to end"]
    # Before the first figures, there is nothing to conclude from.
    known = migration.rate_mib_s > 0 or migration.iteration > 1
    return ["no end in sight"] if known else []


def _about(seconds: float) -> str:
    if seconds < _SECONDS_UP_TO:
        return f"about {seconds:.0f} s"
    if seconds < 60 * _MINUTES_UP_TO:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.0f} h"
