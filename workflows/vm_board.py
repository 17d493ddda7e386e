"""The VMs of an evacuation: where each stands, and which of them wait for an answer."""

from collections.abc import Iterable

from contracts.maintenance import MigrationMode, VmAction, VmStatus
from contracts.vms import MigrationState, Vm

_OPEN = frozenset({MigrationState.WAITING, MigrationState.MIGRATING, MigrationState.FAILED})


class VmBoard:
    """One status per VM, by name, in the order in which they came to be known."""

    def __init__(self, statuses: Iterable[VmStatus] = ()) -> None:
        self._statuses = {status.vm: status for status in statuses}
        self._answers: dict[str, VmAction] = {}
        self._ever_answered: set[str] = set()

    # --- what is known --------------------------------------------------------------------------

    @property
    def statuses(self) -> tuple[VmStatus, ...]:
        """All of them."""
        return tuple(self._statuses.values())

    @property
    def questions(self) -> tuple[str, ...]:
        """VMs that wait for an operator's answer."""
        return self._in(MigrationState.FAILED)

    @property
    def kept(self) -> tuple[str, ...]:
        """VMs that stay on purpose."""
        return self._in(MigrationState.KEPT)

    def find(self, vm: str) -> VmStatus | None:
        """The VM's status, or None."""
        return self._statuses.get(vm)

    def is_open(self, vm: str) -> bool:
        """Whether something is still to happen to it."""
        return vm in self._statuses and self._statuses[vm].state in _OPEN

    def is_kept(self, vm: str) -> bool:
        """Whether it stays on purpose."""
        return vm in self._statuses and self._statuses[vm].state is MigrationState.KEPT

    def attempts(self, vm: str) -> int:
        """How often its migration was begun."""
        return self._statuses[vm].attempt if vm in self._statuses else 0

    # --- what happens ---------------------------------------------------------------------------

    def note(
        self,
        vm: str,
        uuid: str,
        state: MigrationState,
        *,
        destination: str | None = None,
        attempt: int | None = None,
        mode: MigrationMode | None = None,
        error: str | None = None,
        seconds: float | None = None,
        actions: tuple[VmAction, ...] = (),
        start_again: bool = False,
    ) -> None:
        """The VM stands so now; what is not given stays as it was."""
        known = {
            "destination": destination,
            "attempt": attempt,
            "mode": mode,
            "error": error,
            "seconds": seconds,
        }
        before = self._statuses.get(vm) or VmStatus(vm=vm, uuid=uuid, state=state)
        self._statuses[vm] = before.model_copy(
            update={key: value for key, value in known.items() if value is not None}
            | {"state": state, "actions": actions, "start_again": start_again}
        )

    def ask(self, vm: Vm, reason: str, actions: tuple[VmAction, ...]) -> None:
        """The VM waits for an answer, one of `actions`."""
        self._answers.pop(vm.name, None)
        self.note(vm.name, vm.uuid, MigrationState.FAILED, error=reason, actions=actions)

    def answer(self, vm: str, action: VmAction) -> None:
        """An operator has answered."""
        self._answers[vm] = action
        self._ever_answered.add(vm)

    def has_answer(self, vm: str) -> bool:
        """Whether an answer waits to be taken."""
        return vm in self._answers

    def take_answer(self, vm: str) -> VmAction | None:
        """The answer, once."""
        return self._answers.pop(vm, None)

    def was_answered(self, vm: str) -> bool:
        """Whether an operator has ever answered for this very VM."""
        return vm in self._ever_answered

    def note_absent(self, present: set[str]) -> None:
        """VMs that their owners stopped or moved themselves need nothing more of us.

        `present`: UUIDs of those that are still there.
        """
        for status in self.statuses:
            if status.uuid not in present and (self.is_open(status.vm) or self.is_kept(status.vm)):
                self.note(status.vm, status.uuid, MigrationState.GONE)

    def withdraw(self) -> None:
        """Nobody waits for an answer any more, and nothing is to happen to them."""
        for status in self.statuses:
            if self.is_open(status.vm):
                self.note(status.vm, status.uuid, MigrationState.CANCELED)

    def _in(self, state: MigrationState) -> tuple[str, ...]:
        return tuple(status.vm for status in self._statuses.values() if status.state is state)
