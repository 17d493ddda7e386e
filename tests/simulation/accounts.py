"""A worker that is killed where a file in a folder says so; the file goes with it: each is one
death.

    HOST.POINT             the next time that HOST comes to POINT of POINTS
    HOST.POINT@ACTIVITY    the same, in that activity alone
    ACTIVITY.before        when a call of it has come, and nothing has begun
    ACTIVITY.after         when it has done its work, and Temporal does not know yet
"""

import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from contracts.leases import LeaseRef
from drivers.passwords import ScriptAccounts
from drivers.protocols import AccountReport, HostAccess, LoginShell
from inventory.cluster_passwords import ClusterPasswords

# In the order in which a host comes to them. "new" is what was set last there, "old" what it is to
# refuse: a login is tried with the one, then, on the same connection, with the other.
POINTS = (
    *("before-look", "before-set", "after-set"),
    *("before-old", "after-old", "after-new", "after-record"),
)


class Deaths:
    """The folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def at(self, name: str) -> None:
        """The process ends here, if that is said."""
        death = self._folder / name
        if death.exists():
            death.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    def at_point(self, host: str, point: str) -> None:
        """The same, of a host."""
        self.at(f"{host}.{point}")
        if activity.in_activity():
            self.at(f"{host}.{point}@{activity.info().activity_type}")


class MortalAccounts(ScriptAccounts):
    """The driver, which dies."""

    def __init__(self, shell: LoginShell, deaths: Deaths) -> None:
        super().__init__(shell)
        self._deaths = deaths

    async def look(
        self,
        access: HostAccess,
        account: str,
        new_password: str,
        passwords: Sequence[str] = (),
    ) -> AccountReport:
        self._deaths.at_point(access.name, "before-look")
        return await super().look(access, account, new_password, passwords)

    async def set(self, access: HostAccess, account: str, password: str, epoch: int) -> None:
        self._deaths.at_point(access.name, "before-set")
        await super().set(access, account, password, epoch)
        self._deaths.at_point(access.name, "after-set")

    async def first_taken(
        self, access: HostAccess, account: str, passwords: Sequence[str]
    ) -> int | None:
        """Both proofs."""
        self._deaths.at_point(access.name, "before-old")
        refused = partial(self._deaths.at_point, access.name, "after-old")
        first = await super().first_taken(access, account, _Tried(passwords, refused))
        self._deaths.at_point(access.name, "after-new")
        return first


class _Tried(Sequence[str]):
    """Passwords, of which the later ones are read when the first was refused."""

    def __init__(self, passwords: Sequence[str], refused: Callable[[], None], done: int = 0):
        self._passwords, self._refused, self._done = passwords, refused, done

    def __len__(self) -> int:
        return len(self._passwords)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            begin, _, _ = index.indices(len(self))
            return _Tried(self._passwords[index], self._refused, self._done + begin)
        if self._done + index > 0:
            self._refused()
        return self._passwords[index]


class MortalPasswords(ClusterPasswords):
    """The inventory's part, which dies after the commit that ends an attempt."""

    deaths: Deaths

    async def record(self, secret_id: str, *, account: str, lease: LeaseRef) -> None:
        attempted = (await self.holding(lease.host, account=account)).attempted
        await super().record(secret_id, account=account, lease=lease)
        if attempted:
            self.deaths.at_point(lease.host, "after-record")


class MortalActivities(Interceptor):
    """Dies before activities, and after them."""

    def __init__(self, deaths: Deaths) -> None:
        self._deaths = deaths

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002 - the SDK's name
        """Wrap activities."""
        return _Activities(next, self._deaths)


class _Activities(ActivityInboundInterceptor):
    def __init__(self, following: ActivityInboundInterceptor, deaths: Deaths) -> None:
        super().__init__(following)
        self._deaths = deaths

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002 - the SDK's name
        name = activity.info().activity_type
        self._deaths.at(f"{name}.before")
        result = await self.next.execute_activity(input)
        self._deaths.at(f"{name}.after")
        return result
