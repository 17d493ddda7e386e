"""Where master keys come from: a file, the environment, a key service."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from contracts.errors import Conflict, Failed, Unavailable
from drivers.protocols import KeyService
from drivers.transit import WRAPPED_PREFIX
from inventory import SecretBox
from inventory.secret_box import key_id
from tests.openbao import OpenBao
from workers.master_keys import FileKeys, master_key_place, master_keys_of
from workers.settings import Settings
from workers.stores import add_master_key, open_inventory, rekey, upgrade_database

ROOT = Path(__file__).parents[2]
ONE, OTHER = SecretBox.new_key(), SecretBox.new_key()


def private(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def by_service(server: OpenBao, master_key_file: Path) -> Settings:
    return Settings(
        key_service_url=server.url,
        key_service_token_file=server.token_file,
        key_service_ca_file=server.ca_file,
        master_key_file=master_key_file,
    )


async def test_one_a_line_the_first_one_first(tmp_path: Path) -> None:
    path = private(tmp_path / "keys", f"# of 2026\n{ONE}\n\n   {OTHER}  \n")
    assert list(await FileKeys(path, None).load()) == [ONE, OTHER]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
async def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = private(tmp_path / "keys", ONE)
    path.chmod(mode)
    with pytest.raises(Failed, match=f"not private: its mode is 0{mode:o}.*chmod 600") as caught:
        await FileKeys(path, None).load()
    assert ONE not in str(caught.value)
    with pytest.raises(Failed, match="not private"):
        await FileKeys(path, None).add()
    assert path.read_text() == ONE


@pytest.mark.parametrize("mode", [0o600, 0o400])
async def test_a_private_file_is_taken(tmp_path: Path, mode: int) -> None:
    path = private(tmp_path / "keys", ONE)
    path.chmod(mode)
    assert list(await FileKeys(path, None).load()) == [ONE]


async def test_a_file_without_a_key_is_named(tmp_path: Path) -> None:
    path = private(tmp_path / "keys", "# none\n")
    with pytest.raises(Failed, match=f"There is no master key: .*{path}"):
        await SecretBox.load(FileKeys(path, None))


async def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="can't be read: No such file"):
        await FileKeys(tmp_path / "none", None).load()


async def test_a_new_key_comes_first_and_the_others_stay(tmp_path: Path) -> None:
    path = private(tmp_path / "keys", f"# mine\n{ONE}\n")
    keys = FileKeys(path, None)
    added = await keys.add()
    loaded = await keys.load()
    assert [key_id(key) for key in loaded] == [added, key_id(ONE)]
    assert path.stat().st_mode & 0o777 == 0o600
    assert "# mine\n" in path.read_text()
    await keys.remove(key_id(ONE))
    assert [key_id(key) for key in await keys.load()] == [added]
    assert "# mine\n" in path.read_text()
    with pytest.raises(Conflict, match="no other master key"):
        await keys.remove(added)


async def test_a_key_that_can_not_be_read_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.symlink_to(tmp_path / "unmounted" / "keys")
    with pytest.raises(Failed, match="can't be used: No such file"):
        await FileKeys(path, None).add()
    assert path.is_symlink()


async def test_the_environment_goes_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTLER_HOME", str(tmp_path))
    private(tmp_path / "master-key", ONE)
    settings = Settings()
    assert list(await master_keys_of(settings).load()) == [ONE]
    assert master_key_place(settings) == str(tmp_path / "master-key")
    monkeypatch.setenv("HOSTLER_MASTER_KEYS", f"{OTHER}  {ONE}")
    settings = Settings()
    assert list(await master_keys_of(settings).load()) == [OTHER, ONE]
    assert master_key_place(settings) == "in HOSTLER_MASTER_KEYS"
    assert OTHER not in repr(settings)


async def test_the_key_service_wraps_new_keys_and_keeps_old_ones(
    key_service: OpenBao, tmp_path: Path
) -> None:
    path = private(tmp_path / "master-key", f"{ONE}\n")
    settings = by_service(key_service, master_key_file=path)
    keys = master_keys_of(settings)
    assert isinstance(keys, FileKeys)
    added = await keys.add()
    first, second = path.read_text().split()
    assert first.startswith(WRAPPED_PREFIX)
    assert second == ONE
    loaded = await keys.load()
    assert [key_id(key) for key in loaded] == [added, key_id(ONE)]
    # What is in the file is not the key, nor does it hold it.
    assert loaded[0] not in path.read_text()
    assert master_key_place(settings) == f"{path}, wrapped by {key_service.url}"
    await keys.remove(key_id(ONE))
    assert path.read_text() == f"{first}\n"
    with pytest.raises(Failed, match=r"is wrapped by a key service\. Set HOSTLER_KEY_SERVICE_URL"):
        await FileKeys(path, None).load()


async def test_a_key_that_was_unwrapped_once_needs_no_service(
    key_service: OpenBao, tmp_path: Path
) -> None:
    path = tmp_path / "master-key"
    settings = by_service(key_service, master_key_file=path)
    keys = master_keys_of(settings)
    assert isinstance(keys, FileKeys)
    await keys.add()
    loaded = await keys.load()
    key_service.stop()
    try:
        assert await keys.load() == loaded
        with pytest.raises(Unavailable, match="does not answer"):
            await master_keys_of(settings).load()
    finally:
        key_service.start()
    # That is another one now: it has lost its key, as dev servers do.
    with pytest.raises(Failed, match="can't decrypt"):
        await master_keys_of(settings).load()


# --- two commands at once, and one that is killed -----------------------------------------------


async def test_only_one_command_at_a_time_changes_the_file(tmp_path: Path) -> None:
    path = private(tmp_path / "keys", f"{ONE}\n")
    with FileKeys(path, None).changing():
        with pytest.raises(Conflict, match="Another command works on"):
            await FileKeys(path, None).add()
        # Who only reads is not in the way.
        assert list(await FileKeys(path, None).load()) == [ONE]
    assert path.read_text() == f"{ONE}\n"
    added = await FileKeys(path, None).add()
    assert [key_id(key) for key in await FileKeys(path, None).load()] == [added, key_id(ONE)]


async def test_no_key_is_taken_out_while_credentials_are_changed_to_it(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    await upgrade_database(settings)
    await add_master_key(settings)
    async with open_inventory(settings) as inventory:
        await inventory.secrets.store("password", "pw", actor="test")
    await add_master_key(settings)
    refused = []

    def progress(_done: int, _left: int) -> None:
        with pytest.raises(Conflict, match="Another command works on") as caught:
            FileKeys(settings.master_key_path, None).changing().__enter__()
        refused.append(caught)

    await rekey(settings, progress)
    assert refused
    with FileKeys(settings.master_key_path, None).changing():
        pass


_ADDS = """
import asyncio, sys
from pathlib import Path
from contracts.errors import Conflict
from workers.master_keys import FileKeys

async def main():
    for _ in range(1000):
        try:
            print(await FileKeys(Path(sys.argv[1]), None).add(), flush=True)
        except Conflict:
            await asyncio.sleep(0.001)

asyncio.run(main())
"""


def test_no_key_is_lost_when_many_add_and_are_killed(tmp_path: Path) -> None:
    path = private(tmp_path / "keys", f"{ONE}\n")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _ADDS, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    told: set[str] = set()
    for process in processes:
        assert process.stdout is not None
        told.add(process.stdout.readline().strip())
    for process in processes:
        process.kill()
        told |= {*process.communicate()[0].split()}
    (tmp_path / ".keys.left.new").write_text("of a writer that was killed")
    told.add(asyncio.run(FileKeys(path, None).add()))
    kept = [key_id(key) for key in asyncio.run(FileKeys(path, None).load())]
    assert told <= {*kept}
    assert kept[-1] == key_id(ONE)
    assert [file.name for file in tmp_path.iterdir()] == ["keys"]


async def test_a_link_stays_one(tmp_path: Path) -> None:
    """The key does not come to lie where the link is: on another disk, say."""
    real = private(tmp_path / "stick", f"{ONE}\n")
    path = tmp_path / "keys"
    path.symlink_to(real)
    added = await FileKeys(path, None).add()
    assert path.is_symlink()
    assert [key_id(key) for key in await FileKeys(real, None).load()] == [added, key_id(ONE)]


async def test_a_file_of_another_account_is_refused(tmp_path: Path) -> None:
    path = private(tmp_path / "keys", ONE)
    os.chown(path, 65534, 65534)
    with pytest.raises(Failed, match=r"belongs to another account, of the number 65534.*chown"):
        await FileKeys(path, None).load()


async def test_a_line_that_is_no_key_is_named_by_its_number(tmp_path: Path) -> None:
    path = private(tmp_path / "keys", f"# mine\n{ONE}\n{OTHER[:-8]}\n")
    with pytest.raises(Failed, match=f"Line 3 of {path}: .*32 bytes in base64") as caught:
        await FileKeys(path, None).load()
    assert OTHER[:-8] not in str(caught.value)
    with pytest.raises(Failed, match="Line 3"):
        await FileKeys(path, None).remove(key_id(ONE))


async def test_a_token_that_may_wrap_alone_adds_no_key(
    key_service: OpenBao, tmp_path: Path
) -> None:
    """From the next start on, nothing would go."""
    path = private(tmp_path / "master-key", f"{ONE}\n")
    settings = by_service(key_service, master_key_file=path)
    token = private(tmp_path / "token", key_service.token_that_may("encrypt"))
    keys = master_keys_of(settings.model_copy(update={"key_service_token_file": token}))
    assert isinstance(keys, FileKeys)
    with pytest.raises(Failed, match="policy that allows to decrypt"):
        await keys.add()
    assert path.read_text() == f"{ONE}\n"


async def test_what_does_not_come_back_as_it_was_is_not_written(tmp_path: Path) -> None:
    class Wrong(KeyService):
        origin = "https://wrong"

        def __init__(self, wrapped: str, unwrapped: str) -> None:
            self._words = wrapped, unwrapped

        async def wrap(self, secret: str) -> str:
            return self._words[0]

        async def unwrap(self, wrapped: str) -> str:
            return self._words[1]

    path = private(tmp_path / "master-key", f"{ONE}\n")
    for wrapped in ("vault:v1:abc", "other:v1:abc"):
        with pytest.raises(Failed, match="https://wrong does not give back what it wraps"):
            await FileKeys(path, Wrong(wrapped, OTHER)).add()
    assert path.read_text() == f"{ONE}\n"
