"""One account on one host: which password it has, another one set and proven.

What is wrong with the host is a Trouble, or an Absence: it ends that host's part of a sweep. What
is wrong with the inventory, or with the lease, ends the whole activity.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from temporalio import activity

from activities.directory import HostDirectory
from activities.execution import surprises_of, uninterrupted
from contracts.errors import HostlerError, LeaseLost, NotFound, Unavailable
from contracts.leases import LeaseRef
from contracts.passwords import Held, HostOutcome, Proof
from contracts.settings import (
    PASSWORD_ATTEMPT_INTERVAL,
    PASSWORD_CHARACTERS,
    PASSWORD_LENGTH,
    PASSWORD_REFUSED_INTERVAL,
    PASSWORD_REFUSED_MAX,
    ResolvedSettings,
)
from drivers.errors import CommandFailed
from drivers.protocols import AccountReport, HostAccess, HostAccounts
from inventory import Inventory

T = TypeVar("T")

_MOST_CHARACTERS = 500  # of a problem, which goes into histories for each host
_PAUSE_S = 3.0  # between two attempts at a host that does not answer


class Trouble(Exception):
    """Something is wrong with that host, in words."""


class Absence(Trouble):
    """It does not answer."""


@contextmanager
def _of_host(host: str) -> Iterator[None]:
    """Around what drivers and the directory do for a host."""
    try:
        with surprises_of(host):
            yield
    except LeaseLost:
        raise
    except Unavailable as error:
        raise Absence(_short(error)) from error
    except (HostlerError, TimeoutError) as error:
        raise Trouble(_short(error)) from error


@dataclass(frozen=True)
class Candidate:
    """A password that the account may have."""

    secret: str
    plaintext: str


class HostAccount:
    """An account on a host that is reached by a key."""

    def __init__(
        self,
        inventory: Inventory,
        accounts: HostAccounts,
        settings: ResolvedSettings,
        access: HostAccess,
        account: str,
    ) -> None:
        self._inventory = inventory
        self._accounts = accounts
        self._settings = settings
        self._access = access
        self._account = account
        self._report: AccountReport | None = None

    @property
    def host(self) -> str:
        """Its host."""
        return self._access.name

    # --- look -----------------------------------------------------------------------------------

    async def look(self, new_password: str) -> AccountReport:
        """What the host tells of it; nothing changes."""
        with _of_host(self.host):
            self._report = await self._accounts.look(self._access, self._account, new_password)
        return self._report

    async def candidates(self, first: Sequence[str] = ()) -> list[Candidate]:
        """The passwords that it may have, the likeliest first, after those named here. One that
        can't be read is none, unless it is named."""
        known = await self._inventory.cluster_passwords.candidates(self.host, account=self._account)
        found = []
        for secret in dict.fromkeys([*first, *known]):
            try:
                with _of_host(self.host):
                    credential = await self._inventory.secrets.reveal(secret)
            except Trouble as trouble:
                if secret in first or isinstance(trouble, Absence):
                    raise
                activity.logger.warning("%s: %s", self.host, trouble)
                continue
            found.append(Candidate(secret, credential.plaintext))
        return found

    async def find(self, candidates: Sequence[Candidate]) -> Candidate | None:
        """Which of them it has; None: none of them. By its hash, which counts as no login; where
        the host can't compare, by logins, as many as may be refused."""
        if not candidates:
            return None
        report = self._report or await self.look(candidates[0].plaintext)
        if report.compares:
            with _of_host(self.host):
                number = await self._accounts.match(
                    self._access, self._account, [one.plaintext for one in candidates]
                )
            return None if number is None else candidates[number]
        for candidate in candidates:
            for proof in report.proofs:
                if await self.takes(candidate, proof):
                    return candidate
        return None

    async def takes(self, candidate: Candidate, proof: Proof) -> bool:
        """Whether it lets in with that password. Refused logins are counted and spaced: the host
        counts them too."""
        if proof is not Proof.HASH:
            await self._wait_for_turn()
        with _of_host(self.host):
            taken = await self._accounts.takes(
                self._access, self._account, candidate.plaintext, proof
            )
        if proof is not Proof.HASH:
            checks = self._inventory.password_checks
            count = checks.forget_refusals if taken else checks.count_refusal
            await count(self.host, self._account)
        return taken

    async def choose_proof(self, present: Candidate | None, new: Candidate) -> Proof:
        """What proves a password there: what lets in with the present one."""
        report = self._report or await self.look(new.plaintext)
        for proof in report.proofs:
            if present is None or await self.takes(present, proof):
                return proof
        raise Trouble(
            f"no password of {self._account} can be proven there: neither sshd nor PAM lets it in, "
            "and nothing compares its hash"
        )

    # --- change ---------------------------------------------------------------------------------

    async def change(self, new: Candidate, proof: Proof, lease: LeaseRef) -> HostOutcome:
        """Give it `new`, prove that, and that the one before is refused. Finds out first what it
        has if an attempt may have been cut off."""
        passwords = self._inventory.cluster_passwords
        holding = await passwords.holding(self.host, account=self._account)
        if holding.secret == new.secret and not holding.attempted:
            return HostOutcome(host=self.host, held=Held.NEW, proof=proof)
        candidates = await self.candidates()
        present = None
        if holding.attempted:
            present = await self.find([new, *candidates])
        if present is None or present.secret != new.secret:
            problem = await self._set(new, lease)
            if problem is not None:
                return await self._not_taken(new, candidates, problem, lease)
        if not await self.takes(new, proof):
            return self._failed(
                Held.UNKNOWN, f"it has taken the new password, and refuses it ({proof})"
            )
        former = next((one for one in candidates if one.secret == holding.secret), None)
        if former is None or former.plaintext == new.plaintext:
            former = None
        if former is not None and await self.takes(former, proof):
            return self._failed(Held.NEW, f"it takes the old password, too ({proof})")
        await passwords.record(new.secret, account=self._account, lease=lease)
        return HostOutcome(host=self.host, held=Held.NEW, proof=proof)

    async def put_back(self, new: Candidate, proof: Proof, lease: LeaseRef) -> HostOutcome:
        """Give it what it had before `new`, and prove both."""
        passwords = self._inventory.cluster_passwords
        holding = await passwords.holding(self.host, account=self._account)
        former_id = holding.former if holding.secret == new.secret else holding.secret
        if former_id is None or former_id == new.secret:
            raise Trouble("what it had before is not known: it can't be put back")
        candidates = await self.candidates((new.secret, former_id))
        former = candidates[1]
        if holding.secret == former_id and not holding.attempted:
            return HostOutcome(host=self.host, held=Held.FORMER, proof=proof)
        present = await self.find(candidates)
        if present is not None and present.secret == new.secret:
            # Else its only trace would be the attempt, in the place of which comes the next one.
            await passwords.record(new.secret, account=self._account, lease=lease)
        if present is None or present.secret != former_id:
            problem = await self._set(former, lease)
            if problem is not None:
                return self._failed(Held.UNKNOWN, problem)
        if not await self.takes(former, proof):
            return self._failed(Held.UNKNOWN, f"it refuses what it had before ({proof})")
        if former.plaintext != new.plaintext and await self.takes(new, proof):
            return self._failed(Held.FORMER, f"it takes the new password, too ({proof})")
        await passwords.record(former_id, account=self._account, lease=lease)
        return HostOutcome(host=self.host, held=Held.FORMER, proof=proof)

    async def _set(self, wanted: Candidate, lease: LeaseRef) -> str | None:
        """What the host has said against it. Committed before: whoever dies here leaves word of
        it."""
        await self._inventory.cluster_passwords.attempt(
            wanted.secret, account=self._account, lease=lease
        )
        try:
            with surprises_of(self.host):
                await uninterrupted(
                    self._accounts.set(self._access, self._account, wanted.plaintext, lease.epoch)
                )
        except CommandFailed as failed:
            return _short(failed)
        except Unavailable as error:
            raise Absence(_short(error)) from error
        return None

    async def _not_taken(
        self,
        new: Candidate,
        candidates: Sequence[Candidate],
        problem: str,
        lease: LeaseRef,
    ) -> HostOutcome:
        """A command that has failed may have done it all the same."""
        present = await self.find([new, *candidates])
        if present is None:
            return self._failed(Held.UNKNOWN, problem)
        await self._inventory.cluster_passwords.record(
            present.secret, account=self._account, lease=lease
        )
        held = Held.NEW if present.secret == new.secret else Held.FORMER
        return self._failed(held, problem)

    def _failed(self, held: Held, problem: str) -> HostOutcome:
        return HostOutcome(host=self.host, held=held, problem=problem)

    async def _wait_for_turn(self) -> None:
        checks, settings = self._inventory.password_checks, self._settings
        counted = self._report.refused if self._report is not None else 0
        if counted >= settings[PASSWORD_REFUSED_MAX]:
            raise Trouble(
                f"it counts {counted} refused logins of {self._account} itself: another one may "
                "lock it (faillock there)"
            )
        refused = await checks.refusals(self.host, self._account)
        if refused.last_at is None:
            return
        age = datetime.now(UTC) - refused.last_at
        counts_for = timedelta(seconds=settings[PASSWORD_REFUSED_INTERVAL])
        if age >= counts_for:
            await checks.forget_refusals(self.host, self._account)
        elif refused.number >= settings[PASSWORD_REFUSED_MAX]:
            again = refused.last_at + counts_for
            raise Trouble(
                f"it has refused {refused.number} logins of {self._account} in a row: no more are "
                f"tried before {again:%H:%M:%S} UTC, since hosts lock accounts"
            )
        else:
            pause = timedelta(seconds=settings[PASSWORD_ATTEMPT_INTERVAL]) - age
            await asyncio.sleep(max(pause.total_seconds(), 0))


class HostAccountDirectory:
    """Opens accounts on hosts."""

    def __init__(
        self, inventory: Inventory, directory: HostDirectory, accounts: HostAccounts
    ) -> None:
        self._inventory = inventory
        self._directory = directory
        self._accounts = accounts

    async def open(self, host: str, account: str, settings: ResolvedSettings) -> HostAccount:
        """Raises Trouble: its credential can't be read, is no key, or its trust was withdrawn."""
        with _of_host(host):
            access = await self._directory.access(host)
        if access.private_key is None:
            raise Trouble(
                "Hostler logs in there with the password itself: without a key there is no way "
                "back in if a change fails"
            )
        return HostAccount(self._inventory, self._accounts, settings, access, account)


async def patiently(work: Callable[[], Awaitable[T]], patience_s: float) -> T:
    """Do `work` again while the host does not answer, for so long. Raises Absence."""
    until = time.monotonic() + patience_s
    while True:
        try:
            return await work()
        except Absence:
            if time.monotonic() >= until:
                raise
        await asyncio.sleep(_PAUSE_S)


async def sweep(
    hosts: Collection[str], concurrency: int, work: Callable[[str], Awaitable[HostOutcome]]
) -> tuple[HostOutcome, ...]:
    """Do `work` for each host, so many at a time. Of a host that is in trouble the outcome says so;
    what else is raised ends all of it."""
    slots = asyncio.Semaphore(concurrency)

    async def one(host: str) -> HostOutcome:
        async with slots:
            try:
                return await work(host)
            except (Trouble, NotFound) as trouble:  # or it was removed meanwhile
                return HostOutcome(host=host, held=Held.UNKNOWN, problem=str(trouble))

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(host)) for host in hosts]
    except ExceptionGroup as several:
        raise several.exceptions[0] from several
    return tuple(task.result() for task in tasks)


def random_password(settings: ResolvedSettings) -> str:
    """To the policy."""
    characters, length = settings[PASSWORD_CHARACTERS], settings[PASSWORD_LENGTH]
    kinds = [
        kind
        for test in (str.islower, str.isupper, str.isdigit, lambda one: not one.isalnum())
        if (kind := [one for one in characters if test(one)])
    ]
    while True:
        made = "".join(secrets.choice(characters) for _ in range(length))
        if all(set(made) & set(kind) for kind in kinds):
            return made


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:_MOST_CHARACTERS]
