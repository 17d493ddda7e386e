"""HostAccounts whose worker is killed where a file says so: `HOST.before-set`, `HOST.after-set`,
and so on, in a folder. The file goes with it: each is one death."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from contracts.passwords import Proof
from drivers.passwords import ScriptAccounts
from drivers.protocols import AccountReport, HostAccess, LoginShell

# In the order in which a host comes to them.
POINTS = (
    *("before-look", "before-set", "after-set"),
    *("before-new", "after-new", "before-old", "after-old"),
)


class MortalAccounts(ScriptAccounts):
    """The driver, which dies."""

    def __init__(self, shell: LoginShell, folder: Path) -> None:
        super().__init__(shell)
        self._folder = folder
        self._last_set: dict[str, str] = {}

    async def look(
        self,
        access: HostAccess,
        account: str,
        new_password: str,
        passwords: Sequence[str] = (),
    ) -> AccountReport:
        self._die(access, "before-look")
        return await super().look(access, account, new_password, passwords)

    async def set(self, access: HostAccess, account: str, password: str, epoch: int) -> None:
        self._die(access, "before-set")
        await super().set(access, account, password, epoch)
        self._last_set[access.name] = password
        self._die(access, "after-set")

    async def takes(self, access: HostAccess, account: str, password: str, proof: Proof) -> bool:
        which = "new" if self._last_set.get(access.name) == password else "old"
        is_proof = access.name in self._last_set
        if is_proof:
            self._die(access, f"before-{which}")
        taken = await super().takes(access, account, password, proof)
        if is_proof:
            self._die(access, f"after-{which}")
        return taken

    async def first_taken(
        self, access: HostAccess, account: str, passwords: Sequence[str]
    ) -> int | None:
        """Both proofs on one connection."""
        for which in ("new", "old"):
            self._die(access, f"before-{which}")
        first = await super().first_taken(access, account, passwords)
        for which in ("new", "old"):
            self._die(access, f"after-{which}")
        return first

    def _die(self, access: HostAccess, point: str) -> None:
        death = self._folder / f"{access.name}.{point}"
        if death.exists():
            death.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
