"""One account on one host: which password it has, another one set and proven.

What is wrong with the host is a Trouble, or an Absence: it ends that host's part of a sweep. What
is wrong with the inventory, or with the lease, ends the whole activity.
"""

import asyncio
import secrets
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from temporalio import activity

from activities.directory import HostDirectory
from activities.execution import surprises_of, uninterrupted
from contracts.errors import HostlerError, LeaseLost, NotFound, Unavailable
from contracts.leases import LeaseRef
from contracts.passwords import Held, HostOutcome, Proof
from contracts.secrets import HostPassword
from contracts.settings import (
    PASSWORD_ATTEMPT_INTERVAL,
    PASSWORD_CHARACTERS,
    PASSWORD_LENGTH,
    PASSWORD_REFUSED_INTERVAL,
    PASSWORD_REFUSED_MAX,
    ResolvedSettings,
)
from drivers.errors import CommandFailed, LoginCutOff
from drivers.protocols import AccountReport, HostAccess, HostAccounts
from inventory import Inventory
from inventory.cluster_passwords import Known
from inventory.secrets import Credential

T = TypeVar("T")

_MOST_CHARACTERS = 500  # of a problem, which goes into histories for each host
_PAUSE_S = 3.0  # between two attempts at a host that does not answer
_REFUSED_AT_ONCE = 2  # logins, at most, of a proof that tries both passwords on one connection


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


@dataclass(frozen=True)
class Stored:
    """What the inventory has of an account of a host, read with that of many others."""

    access: HostAccess
    passwords: Known
    credentials: Mapping[str, Credential] = field(repr=False)


@dataclass(frozen=True)
class _Proven:
    """Whether a host takes a password, and whether it takes the other one, too."""

    taken: bool
    other_taken: bool


class HostAccount:
    """An account on a host that is reached by a key.

    `stored`: what the inventory has; None: it is read when it is needed.
    """

    def __init__(
        self,
        inventory: Inventory,
        accounts: HostAccounts,
        settings: ResolvedSettings,
        access: HostAccess,
        account: str,
        stored: Stored | None = None,
    ) -> None:
        self._inventory = inventory
        self._accounts = accounts
        self._settings = settings
        self._access = access
        self._account = account
        self._stored = stored
        self._report: AccountReport | None = None
        # What the last look was to compare its hash with.
        self._compared: tuple[Candidate, ...] | None = None

    @property
    def host(self) -> str:
        """Its host."""
        return self._access.name

    # --- look -----------------------------------------------------------------------------------

    async def look(self, new_password: str, candidates: Sequence[Candidate] = ()) -> AccountReport:
        """What the host tells of it; nothing changes. `find` takes no more then for these
        candidates."""
        with _of_host(self.host):
            self._report = await self._accounts.look(
                *(self._access, self._account, new_password),
                [one.plaintext for one in candidates],
            )
        self._compared = tuple(candidates)
        return self._report

    async def holding(self) -> HostPassword:
        """What it is known to have."""
        if self._stored is not None:
            return self._stored.passwords.holding
        return await self._inventory.cluster_passwords.holding(self.host, account=self._account)

    async def likely(self, new: Candidate) -> list[Candidate]:
        """`new` and `candidates`; first what it is known to have, if nothing was attempted since:
        each that does not match takes the host a hash."""
        others = [one for one in await self.candidates() if one.secret != new.secret]
        found, holding = [new, *others], await self.holding()
        if not holding.attempted:
            found.sort(key=lambda one: one.secret != holding.secret)
        return found

    async def candidates(self, first: Sequence[str] = ()) -> list[Candidate]:
        """The passwords that it may have, the likeliest first, after those named here. One that
        can't be read is none, unless it is named."""
        known: Sequence[str]
        if self._stored is not None:
            known = self._stored.passwords.candidates
        else:
            known = await self._inventory.cluster_passwords.candidates(
                self.host, account=self._account
            )
        found = []
        for secret in dict.fromkeys([*first, *known]):
            try:
                with _of_host(self.host):
                    credential = await self._reveal(secret)
            except Trouble as trouble:
                if secret in first or isinstance(trouble, Absence):
                    raise
                activity.logger.warning("%s: %s", self.host, trouble)
                continue
            found.append(Candidate(secret, credential.plaintext))
        return found

    async def _reveal(self, secret: str) -> Credential:
        read = self._stored.credentials.get(secret) if self._stored is not None else None
        return read or await self._inventory.secrets.reveal(secret)

    async def find(self, candidates: Sequence[Candidate]) -> Candidate | None:
        """Which of them it has; None: none of them. By its hash, which counts as no login; where
        the host can't compare, by logins, as many as may be refused."""
        if not candidates:
            return None
        report = self._report or await self.look(candidates[0].plaintext, candidates)
        if report.compares:
            number = report.matches
            if self._compared != tuple(candidates):
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
        refused = await self._wait_for_turn() if proof is not Proof.HASH else 0
        async with self._logging_in():
            taken = await self._accounts.takes(
                self._access, self._account, candidate.plaintext, proof
            )
        if proof is not Proof.HASH:
            await self._count(refused, taken, 0 if taken else 1)
        return taken

    @asynccontextmanager
    async def _logging_in(self) -> AsyncIterator[None]:
        """Around logins: what the host was shown in one that was cut off, it may count."""
        try:
            with _of_host(self.host):
                yield
        except Absence as absence:
            if isinstance(absence.__cause__, LoginCutOff):
                await self._inventory.password_checks.count_refusal(
                    self.host, self._account, times=absence.__cause__.tried
                )
            raise

    async def _count(self, before: int, taken: bool, refused: int) -> None:
        """So many logins more were refused, or the last one was `taken`; `before`: as many had been
        refused in a row."""
        checks = self._inventory.password_checks
        if not taken:
            await checks.count_refusal(self.host, self._account, times=refused)
        elif before:
            await checks.forget_refusals(self.host, self._account)

    async def _prove(self, new: Candidate, former: Candidate | None, proof: Proof) -> "_Proven":
        """Whether it takes `new`, and then whether it takes `former`, too."""
        if former is not None and proof is Proof.SSH:
            # One connection for both; the refusal first: a success ends what the host counts.
            refused = await self._wait_for_turn()
            if refused + _REFUSED_AT_ONCE <= self._settings[PASSWORD_REFUSED_MAX]:
                async with self._logging_in():
                    first = await self._accounts.first_taken(
                        self._access, self._account, [former.plaintext, new.plaintext]
                    )
                await self._count(refused, first is not None, _REFUSED_AT_ONCE)
                if first != 0:
                    return _Proven(first is not None, False)
        if not await self.takes(new, proof):
            return _Proven(False, False)
        return _Proven(True, former is not None and await self.takes(former, proof))

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
        holding = await self.holding()
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
        former = next((one for one in candidates if one.secret == holding.secret), None)
        if former is None or former.plaintext == new.plaintext:
            former = None
        proven = await self._prove(new, former, proof)
        if not proven.taken:
            return self._failed(
                Held.UNKNOWN, f"it has taken the new password, and refuses it ({proof})"
            )
        if proven.other_taken:
            return self._failed(Held.NEW, f"it takes the old password, too ({proof})")
        await passwords.record(new.secret, account=self._account, lease=lease)
        return HostOutcome(host=self.host, held=Held.NEW, proof=proof)

    async def put_back(self, new: Candidate, proof: Proof, lease: LeaseRef) -> HostOutcome:
        """Give it what it had before `new`, and prove both."""
        passwords = self._inventory.cluster_passwords
        holding = await self.holding()
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
        proven = await self._prove(
            former, new if former.plaintext != new.plaintext else None, proof
        )
        if not proven.taken:
            return self._failed(Held.UNKNOWN, f"it refuses what it had before ({proof})")
        if proven.other_taken:
            return self._failed(Held.FORMER, f"it takes the new password, too ({proof})")
        await passwords.record(former_id, account=self._account, lease=lease)
        return HostOutcome(host=self.host, held=Held.FORMER, proof=proof)

    async def _set(self, wanted: Candidate, lease: LeaseRef) -> str | None:
        """What the host has said against it. Committed before: whoever dies here leaves word of
        it."""
        self._compared = None
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

    async def _wait_for_turn(self) -> int:
        """Logins in a row that it has refused so far, and may count."""
        checks, settings = self._inventory.password_checks, self._settings
        counted = self._report.refused if self._report is not None else 0
        if counted >= settings[PASSWORD_REFUSED_MAX]:
            raise Trouble(
                f"it counts {counted} refused logins of {self._account} itself: another one may "
                "lock it (faillock there)"
            )
        refused = await checks.refusals(self.host, self._account)
        if refused.last_at is None:
            return counted
        age = datetime.now(UTC) - refused.last_at
        counts_for = timedelta(seconds=settings[PASSWORD_REFUSED_INTERVAL])
        if age >= counts_for:
            await checks.forget_refusals(self.host, self._account)
            return counted
        if refused.number >= settings[PASSWORD_REFUSED_MAX]:
            again = refused.last_at + counts_for
            raise Trouble(
                f"it has refused {refused.number} logins of {self._account} in a row: no more are "
                f"tried before {again:%H:%M:%S} UTC, since hosts lock accounts"
            )
        pause = timedelta(seconds=settings[PASSWORD_ATTEMPT_INTERVAL]) - age
        await asyncio.sleep(max(pause.total_seconds(), 0))
        return max(counted, refused.number)


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
        return self._account(access, account, settings, None)

    async def open_all(
        self, hosts: Sequence[str], account: str, settings: ResolvedSettings
    ) -> "AccountsAtOnce":
        """What is stored of all these hosts, some hundreds at most, is read now: for whoever holds
        their leases of trust, without which none of their passwords changes."""
        inventory = self._inventory
        passwords = await inventory.cluster_passwords.known(hosts, account=account)
        credentials = await inventory.secrets.reveal_all(
            {secret for known in passwords.values() for secret in known.candidates}
        )
        stored = {
            host: Stored(access, passwords[host], credentials)
            for host, access in (await self._directory.access_to_all(hosts)).items()
            if host in passwords
        }
        return AccountsAtOnce(self, account, settings, stored)

    def open_stored(self, stored: Stored, account: str, settings: ResolvedSettings) -> HostAccount:
        """The same without a look into the inventory. Raises Trouble."""
        return self._account(stored.access, account, settings, stored)

    def _account(
        self,
        access: HostAccess,
        account: str,
        settings: ResolvedSettings,
        stored: Stored | None,
    ) -> HostAccount:
        if access.private_key is None:
            raise Trouble(
                "Hostler logs in there with the password itself: without a key there is no way "
                "back in if a change fails"
            )
        return HostAccount(self._inventory, self._accounts, settings, access, account, stored)


class AccountsAtOnce:
    """An account on many hosts; what is stored of each serves one time: after a failure, it is read
    anew."""

    def __init__(
        self,
        directory: HostAccountDirectory,
        account: str,
        settings: ResolvedSettings,
        stored: dict[str, Stored],
    ) -> None:
        self._directory = directory
        self._account = account
        self._settings = settings
        self._stored = stored

    async def open(self, host: str) -> HostAccount:
        """As HostAccountDirectory.open."""
        stored = self._stored.pop(host, None)
        if stored is None:
            return await self._directory.open(host, self._account, self._settings)
        return self._directory.open_stored(stored, self._account, self._settings)


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
