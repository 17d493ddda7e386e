"""One host of three fails in the middle of a change of passwords: what each policy ends with.

All tests share one installation, unless one of them did not come to its end.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from tests.simulation.ssh_system import CLUSTER, SshSystem
from tests.simulation.test_password_rotation import HOSTS, OLD, Rotation

pytestmark = [pytest.mark.timeout(900), pytest.mark.asyncio(loop_scope="module")]

_PAUSE_S = 0.1


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
    """Of changes, of which the last has a trouble on the second host."""

    def __init__(self, rotation: Rotation) -> None:
        self.rotation = rotation
        self.system = rotation.system
        self.host = rotation.hosts[1]
        self.trouble = TROUBLES["read-only shadow"]
        self.current, self.new = OLD, ""
        self.is_at_rest = True
        self._numbers = itertools.count(1)

    def next_password(self) -> str:
        """For a change that is to come; `require_all` says how it has ended."""
        self.is_at_rest = False
        self.new = f"new-in-times-of-trouble-{next(self._numbers)}"
        return self.new

    async def begin(self, policy: str) -> Any:
        """A change that does not get by the trouble."""
        (self.rotation.directory(self.host) / self.trouble.announced).touch()
        said = await self.rotation.rotate("--on-failure", policy, password=self.next_password())
        assert said.status == 1, said
        assert (self.rotation.directory(self.host) / self.trouble.there).exists()
        return said

    async def mend(self) -> None:
        """End the trouble; the host lets in by then."""
        (self.rotation.directory(self.host) / self.trouble.there).unlink()
        while not await self._is_there():
            await asyncio.sleep(_PAUSE_S)

    async def _is_there(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(self.host.address, self.host.port)
        except ConnectionRefusedError:
            return False
        writer.close()
        return True

    async def held(self) -> tuple[tuple[str, str], set[tuple[str, str]]]:
        """What is said of that host, and of the others."""
        hosts = (await self.rotation.status())["hosts"]
        held = {one["host"]: (one["state"], one["held"]) for one in hosts}
        return held.pop(self.host.name), set(held.values())

    async def end(self, command: str) -> Any:
        """Answer the question, and watch it to its end."""
        await self.system.done("passwords", command, CLUSTER)
        return await self.system.hostler("passwords", "status", CLUSTER, "--watch")

    async def require_all(self, password: str) -> None:
        """From outside: of the password before and the new one, all take that one alone; and
        Hostler says so."""
        assert await self.rotation.all_take(password)
        (other,) = {self.current, self.new} - {password}
        assert not any([await self.rotation.takes(host, other) for host in self.rotation.hosts])
        shown = await self.system.done(
            *("secret", "show", "--cluster", CLUSTER, "--reason", "the test")
        )
        assert shown.strip() == password
        verified = await self.system.hostler("passwords", "verify", CLUSTER)
        assert verified.status == 0, verified
        self.current, self.is_at_rest = password, True


class Courses:
    """One at a time."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._course: Course | None = None

    async def course(self) -> Course:
        """At rest."""
        if self._course is not None and not self._course.is_at_rest:
            self.stop()
        if self._course is None:
            self._course = Course(await self._build())
            said = await self._course.rotation.rotate(password=self._course.next_password())
            assert said.status == 0, said
            await self._course.require_all(self._course.new)
        return self._course

    def stop(self) -> None:
        if self._course is not None:
            self._course.system.stop()
        self._course = None

    async def _build(self) -> Rotation:
        directory = self._factory.mktemp("troubles")
        simulation = SshSystem(directory, hosts=HOSTS, forked=True)
        hosts = await simulation.start_hosts()
        await simulation.up()
        worker = await simulation.worker()
        system = simulation.system
        await system.done("host", "import", str(simulation.write_list(hosts)))
        await system.done("setting", "set", "password.unreachable.timeout", "5")
        return Rotation(simulation, hosts, worker, directory)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def courses(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Courses]:
    courses = Courses(tmp_path_factory)
    yield courses
    courses.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def quiet(courses: Courses) -> Course:
    return await courses.course()


@pytest.fixture(params=TROUBLES)
def course(quiet: Course, request: pytest.FixtureRequest) -> Course:
    quiet.trouble = TROUBLES[request.param]
    return quiet


async def test_by_revert_all_have_what_they_had(course: Course) -> None:
    said = await course.begin("revert")
    if course.trouble.held == "former":
        # It has said so itself: there is nothing to put back on it.
        assert f"{course.host.name}: " in said.stderr
        await course.mend()
    else:
        assert "waits" in said.stderr
        held, others = await course.held()
        assert held == ("failed", course.trouble.held)
        assert others == {("put back", "former")}
        await course.mend()
        assert await course.rotation.takes(course.host, course.new), "it had taken it"
        said = await course.end("retry")
    assert "have the password that they had before" in said.stderr
    await course.require_all(course.current)


@pytest.mark.some_a_day("answer", ["retry", "revert"])
async def test_by_hold_both_are_kept_until_somebody_answers(course: Course, answer: str) -> None:
    said = await course.begin("hold")
    assert "waits" in said.stderr
    held, others = await course.held()
    assert held == ("failed", course.trouble.held)
    assert others == {("proven", "new")}
    assert await course.rotation.all_take(course.new, but=[course.host.name])
    await course.mend()
    said = await course.end(answer)
    if answer == "retry":
        assert said.status == 0, said
        await course.require_all(course.new)
    else:
        assert "have the password that they had before" in said.stderr
        await course.require_all(course.current)


async def test_what_can_be_seen_beforehand_changes_nothing(quiet: Course) -> None:
    trouble = quiet.rotation.directory(quiet.host) / "read-only"
    trouble.touch()
    said = await quiet.rotation.rotate("--on-failure", "hold", password=quiet.next_password())
    trouble.unlink()
    assert said.status == 1
    assert "Nothing was changed." in said.stderr
    assert f"{quiet.host.name}: /etc/shadow can't be written" in said.stderr
    await quiet.require_all(quiet.current)
