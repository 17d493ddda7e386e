"""Passwords of accounts on hosts, by the script hooks/password and by logins over SSH."""

import dataclasses
import importlib.resources
from collections.abc import Sequence

from contracts.passwords import Proof
from drivers.commands import check, check_change, unexpected
from drivers.errors import LoginRefused
from drivers.protocols import AccountReport, CommandResult, HostAccess, LoginShell

_EPOCH_FILE = "/etc/hostler/password-epoch"
# In place of a password, should a program of the host's ever say it.
_HIDDEN = "[password]"


class ScriptAccounts:
    """HostAccounts with a shell script.

    Args:
        shell: runs it, as root, and logs in.
        command_timeout: seconds for one command, waiting for another one's end included.
    """

    def __init__(self, shell: LoginShell, *, command_timeout: float = 60.0) -> None:
        self._shell = shell
        self._command_timeout = command_timeout

    async def look(
        self,
        access: HostAccess,
        account: str,
        new_password: str,
        passwords: Sequence[str] = (),
    ) -> AccountReport:
        """What is there, what the host's rules say to `new_password`, and which of `passwords` it
        has; nothing changes. Raises CommandFailed."""
        lines = _lines([*passwords, new_password])
        result = await self._run(access, "look", account, str(len(passwords)), stdin=lines)
        check(access, "password look", _without(new_password, result))
        report, matches = _report([line.split(" ", 1) for line in result.stdout.splitlines()])
        number = _number(access, "password look", matches, len(passwords))
        return dataclasses.replace(report, matches=number)

    async def match(self, access: HostAccess, account: str, passwords: Sequence[str]) -> int | None:
        """Which of them the account has, by the stored hash alone. Raises CommandFailed."""
        result = await self._run(
            access, "match", account, str(len(passwords)), stdin=_lines(passwords)
        )
        check(access, "password match", result)
        return _number(access, "password match", result.stdout.strip(), len(passwords))

    async def takes(self, access: HostAccess, account: str, password: str, proof: Proof) -> bool:
        """Whether a new login gets in with it. Raises CommandFailed."""
        if proof is Proof.HASH:
            return await self.match(access, account, (password,)) == 0
        if proof is Proof.PAM:
            result = await self._run(access, "pam", account, stdin=f"{password}\n")
            check(access, "password pam", result)
            if result.stdout.strip() not in ("yes", "no"):
                raise unexpected(access, "password pam", result.stdout)
            return result.stdout.strip() == "yes"
        login = dataclasses.replace(
            access, user=account, password=password, private_key=None, own_key=False
        )
        try:
            await self._shell.log_in(login)
        except LoginRefused:
            return False
        return True

    async def first_taken(
        self, access: HostAccess, account: str, passwords: Sequence[str]
    ) -> int | None:
        """Which of them gets in first, tried one after another on one new connection; None: none of
        them."""
        return await self._shell.first_login(dataclasses.replace(access, user=account), passwords)

    async def set(self, access: HostAccess, account: str, password: str, epoch: int) -> None:
        """Set it. Raises CommandFailed, with what the host said; EpochRefused."""
        line = f"{account}:{password}\n"
        result = await self._run(access, "set", account, str(epoch), stdin=line)
        check_change(access, "password set", _without(password, result), epoch, counter=_EPOCH_FILE)

    async def _run(
        self, access: HostAccess, action: str, account: str, *words: str, stdin: str
    ) -> CommandResult:
        command = ["sh", "-c", _SCRIPT, "password", action, account, *words]
        return await self._shell.run(access, command, stdin=stdin, timeout=self._command_timeout)


def _lines(passwords: Sequence[str]) -> str:
    return "".join(f"{password}\n" for password in passwords)


def _number(access: HostAccess, what: str, said: str, most: int) -> int | None:
    """Which of so many the host has named."""
    if said == "none":
        return None
    if not said.isdecimal() or int(said) >= most:
        raise unexpected(access, what, said)
    return int(said)


def _report(lines: list[list[str]]) -> tuple[AccountReport, str]:
    """And which password it has, as it says it."""
    said = {line[0]: line[1] if len(line) > 1 else "" for line in lines}
    problems = [line[1] for line in lines if line[0] == "problem" and len(line) > 1]
    verdict, _, words = said.get("rules", "yes").partition(" ")
    if verdict == "no":
        problems.append(f"its rules refuse the new password: {words or 'it does not say why'}")
    proofs = {
        Proof.SSH: said.get("ssh") != "no",
        Proof.PAM: "pam" in said,
        Proof.HASH: "compares" in said,
    }
    refused = said.get("refused", "0")
    report = AccountReport(
        problems=tuple(problems),
        locked="locked" in said,
        hash=said.get("hash"),
        compares="compares" in said,
        proofs=tuple(proof for proof, possible in proofs.items() if possible),
        refused=int(refused) if refused.isdecimal() else 0,
    )
    return report, said.get("matches", "none")


def _without(password: str, result: CommandResult) -> CommandResult:
    return dataclasses.replace(result, stderr=result.stderr.replace(password, _HIDDEN))


_SCRIPT = importlib.resources.files("drivers.hooks").joinpath("password").read_text("utf-8")
