"""Passwords tried one after another, on SSH servers of this process."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncssh
import pytest

from drivers.errors import HostUnreachable, LoginCutOff, LoginRefused
from drivers.protocols import HostAccess
from drivers.ssh import AsyncSshShell

RIGHT = "right"


class Server(asyncssh.SSHServer):
    """Lets in with `RIGHT`. `seen`: what was tried, by connection."""

    seen: list[list[str]]
    interactive = False
    hangs_up = False

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self.seen.append([])

    def password_auth_supported(self) -> bool:
        return not self.interactive

    def kbdint_auth_supported(self) -> bool:
        return self.interactive

    def get_kbdint_challenge(
        self, username: str, lang: str, submethods: str
    ) -> tuple[str, str, str, list[tuple[str, bool]]]:
        return "", "", "", [("Password: ", False)]

    def validate_kbdint_response(
        self, username: str, responses: Sequence[str]
    ) -> bool | tuple[str, str, str, list[tuple[str, bool]]]:
        return self.validate_password(username, *responses)

    def validate_password(self, username: str, password: str) -> bool:
        self.seen[-1].append(password)
        if password != RIGHT and self.hangs_up:
            self._connection.disconnect(
                asyncssh.DISC_PROTOCOL_ERROR, "Too many authentication failures"
            )
        return password == RIGHT


class Interactive(Server):
    """As PAM asks."""

    interactive = True


class HangsUp(Server):
    """`MaxAuthTries 1`."""

    hangs_up = True


class AsksTwice(Interactive):
    """As PAM does with a second module that asks for itself; the first one knows `RIGHT`."""

    def validate_kbdint_response(
        self, username: str, responses: Sequence[str]
    ) -> bool | tuple[str, str, str, list[tuple[str, bool]]]:
        if super().validate_kbdint_response(username, responses):
            return True
        return "", "", "", [("Other password: ", False)]


@asynccontextmanager
async def serving(kind: type[Server]) -> AsyncIterator[HostAccess]:
    kind.seen = []
    key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.create_server(kind, "127.0.0.1", 0, server_host_keys=[key])
    yield HostAccess(
        name="kvm-1",
        address="127.0.0.1",
        port=server.get_port(),
        user="root",
        host_key=" ".join(key.export_public_key().decode().split()[:2]),
        private_key="not to be used",
    )
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("kind", [Server, Interactive])
@pytest.mark.parametrize(
    ("passwords", "first"),
    [
        (["old", RIGHT], 1),
        ([RIGHT, "old"], 0),
        (["old", "older"], None),
        ([], None),
    ],
)
async def test_passwords_are_tried_on_one_connection(
    kind: type[Server], passwords: list[str], first: int | None
) -> None:
    async with serving(kind) as access:
        assert await AsyncSshShell().first_login(access, passwords) == first
    tried = passwords if first is None else passwords[: first + 1]
    assert kind.seen == ([tried] if tried else [])


async def test_a_server_that_hangs_up_after_a_refusal_gets_one_connection_for_each() -> None:
    async with serving(HangsUp) as access:
        assert await AsyncSshShell().first_login(access, ["old", RIGHT]) == 1
        assert HangsUp.seen == [["old"], [RIGHT]]
        assert await AsyncSshShell().first_login(access, ["old", "older"]) is None
        with pytest.raises(LoginRefused):
            await AsyncSshShell().log_in(by_password(access, "old"))


async def test_each_dialogue_gets_one_password() -> None:
    """Else one would be shown to a module that nobody means."""
    async with serving(AsksTwice) as access:
        assert await AsyncSshShell().first_login(access, ["old", RIGHT]) == 1
    assert AsksTwice.seen == [["old"], [RIGHT]]


async def test_nobody_there_is_no_refusal() -> None:
    async with serving(Server) as access:
        pass
    with pytest.raises(HostUnreachable) as raised:
        await AsyncSshShell().first_login(access, ["old", RIGHT])
    assert not isinstance(raised.value, LoginCutOff)


async def test_one_that_goes_away_in_between_may_have_refused() -> None:
    class Leaves(Server):
        def validate_password(self, username: str, password: str) -> bool:
            if password != "older":
                self._connection.abort()
            return False

    async with asyncio.timeout(20), serving(Leaves) as access:
        for passwords, tried in ((["old", RIGHT], 1), (["older", "old", RIGHT], 2)):
            with pytest.raises(LoginCutOff) as raised:
                await AsyncSshShell().first_login(access, passwords)
            assert raised.value.tried == tried
        with pytest.raises(LoginCutOff):
            await AsyncSshShell().log_in(by_password(access, "old"))


async def test_a_server_that_hangs_up_for_another_reason_has_not_refused() -> None:
    class Fails(Server):
        def validate_password(self, username: str, password: str) -> bool:
            self._connection.disconnect(asyncssh.DISC_PROTOCOL_ERROR, "Packet corrupt")
            return True

    async with serving(Fails) as access:
        with pytest.raises(LoginCutOff):
            await AsyncSshShell().first_login(access, ["old", RIGHT])


def by_password(access: HostAccess, password: str) -> HostAccess:
    return dataclasses.replace(access, private_key=None, password=password)
