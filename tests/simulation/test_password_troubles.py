"""One host of three fails in the middle of a change of passwords: what each policy ends with."""

from dataclasses import dataclass
from typing import Any

import pytest

from tests.simulation.ssh_system import CLUSTER
from tests.simulation.test_password_rotation import OLD, Rotation, rotation

__all__ = ["rotation"]

pytestmark = pytest.mark.timeout(900)

NEW = "new-in-times-of-trouble"


@dataclass(frozen=True)
class Trouble:
    """`announced`: the file that has it begin; `there`: the one that ends it when it is deleted.
    `held`: which password the host has by then, as far as Hostler can know."""

    announced: str
    there: str
    held: str


TROUBLES = {
    "read-only shadow": Trouble("read-only-at-set", "read-only", "former"),
    "sshd dies": Trouble("dead-after-set", "dead", "unknown"),
    "cable cut": Trouble("cut-after-set", "cut", "unknown"),
}


class Course:
    """Of a change, with a trouble on the second host."""

    def __init__(self, rotation: Rotation, trouble: Trouble) -> None:
        self.rotation = rotation
        self.system = rotation.system
        self.trouble = trouble
        self.host = rotation.hosts[1]

    async def begin(self, policy: str) -> Any:
        await self.system.done("setting", "set", "password.unreachable.timeout", "5")
        (self.rotation.directory(self.host) / self.trouble.announced).touch()
        said = await self.rotation.rotate("--on-failure", policy, password=NEW)
        assert said.status == 1, said
        assert (self.rotation.directory(self.host) / self.trouble.there).exists()
        return said

    def mend(self) -> None:
        (self.rotation.directory(self.host) / self.trouble.there).unlink()

    async def held(self) -> tuple[tuple[str, str], set[tuple[str, str]]]:
        """What is said of that host, and of the others."""
        hosts = (await self.rotation.status())["hosts"]
        held = {one["host"]: (one["state"], one["held"]) for one in hosts}
        return held.pop(self.host.name), set(held.values())

    async def end(self, command: str) -> Any:
        """Answer the question, and watch it to its end."""
        await self.system.done("passwords", command, CLUSTER)
        return await self.system.hostler("passwords", "status", CLUSTER, "--watch")

    async def require_all(self, password: str, other: str) -> None:
        """From outside: all take that one, and none the other."""
        assert await self.rotation.all_take(password)
        assert not any([await self.rotation.takes(host, other) for host in self.rotation.hosts])


@pytest.fixture(params=TROUBLES)
def course(rotation: Rotation, request: pytest.FixtureRequest) -> Course:
    return Course(rotation, TROUBLES[request.param])


async def test_by_revert_all_have_what_they_had(course: Course) -> None:
    said = await course.begin("revert")
    if course.trouble.held == "former":
        # It has said so itself: there is nothing to put back on it.
        assert f"{course.host.name}: " in said.stderr
        course.mend()
    else:
        assert "waits" in said.stderr
        held, others = await course.held()
        assert held == ("failed", course.trouble.held)
        assert others == {("put back", "former")}
        course.mend()
        assert await course.rotation.takes(course.host, NEW), "it had taken it"
        said = await course.end("retry")
    assert "have the password that they had before" in said.stderr
    await course.require_all(OLD, NEW)


@pytest.mark.parametrize("answer", ["retry", "revert"])
async def test_by_hold_both_are_kept_until_somebody_answers(course: Course, answer: str) -> None:
    said = await course.begin("hold")
    assert "waits" in said.stderr
    held, others = await course.held()
    assert held == ("failed", course.trouble.held)
    assert others == {("proven", "new")}
    assert await course.rotation.all_take(NEW, but=[course.host.name])
    course.mend()
    said = await course.end(answer)
    if answer == "retry":
        assert said.status == 0, said
        await course.require_all(NEW, OLD)
        assert (await course.system.hostler("passwords", "verify", CLUSTER)).status == 0
    else:
        assert "have the password that they had before" in said.stderr
        await course.require_all(OLD, NEW)


async def test_what_can_be_seen_beforehand_changes_nothing(rotation: Rotation) -> None:
    (rotation.directory(rotation.hosts[1]) / "read-only").touch()
    said = await rotation.rotate("--on-failure", "hold", password=NEW)
    assert said.status == 1
    assert "Nothing was changed." in said.stderr
    assert f"{rotation.hosts[1].name}: /etc/shadow can't be written" in said.stderr
    assert await rotation.all_take(OLD)
