"""Whether a host that is not back from its reboot answers: without hosts."""

from typing import Any, cast

import pytest
from temporalio.testing import ActivityEnvironment

from activities.directory import HostDirectory
from activities.hooks import HookActivities, RebootTimedOut
from contracts.cluster_maintenance import RebootHostInput
from contracts.leases import Owner
from drivers.errors import HostUnreachable
from drivers.protocols import Boot, RemoteShell, ServiceManager
from inventory import Inventory


class Host:
    """Is asked for its boot; `answers`: one for each time, then the last of them again."""

    def __init__(self, *answers: str | None) -> None:
        self._answers = list(answers)

    async def access(self, _name: str) -> str:
        return "how to reach it"

    async def boot(self, _access: Any) -> Boot:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if answer is None:
            raise HostUnreachable("kvm-1 does not answer.")
        return Boot(boot_id=answer, complete=answer.endswith("complete"))


async def timed_out(host: Host) -> RebootTimedOut:
    activities = HookActivities(
        cast(Inventory, None),
        cast(HostDirectory, host),
        cast(RemoteShell, None),
        cast(ServiceManager, host),
    )
    request = RebootHostInput(
        host="kvm-1",
        maintenance=Owner(workflow_id="maintenance/kvm-1", first_run_id="run-1"),
        boot_id="old",
        timeout=1,
    )
    with pytest.raises(RebootTimedOut) as late:
        await ActivityEnvironment().run(activities.reboot_host, request)
    return late.value


@pytest.mark.parametrize(
    ("answers", "told"),
    [((None,), False), (("new",), True), (("new", None), False), ((None, "new"), True)],
)
async def test_it_says_whether_the_host_answers(
    answers: tuple[str | None, ...], told: bool
) -> None:
    assert (await timed_out(Host(*answers))).details == {"answers": told}
