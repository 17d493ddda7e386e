"""The script that takes Hostler off a host, run by sh under a root of its own, killed anywhere."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from drivers.errors import CommandFailed, EpochRefused
from drivers.protocols import CommandResult, HostAccess, HostKey
from drivers.removal import ScriptCleaner
from tests.authorities.certified_host import CertifiedHost

HOST = "kvm-1"
KEY = "AAAAC3NzaC1lZDI1NTE5AAAAI"
OWN = f"ssh-ed25519 {KEY}own hostler:kvm-1"
OTHERS = f"""# hostler:kvm-1 is Hostler's
ssh-ed25519 {KEY}one admin@example
from="198.18.0.0/15,10.0.0.1" ssh-rsa {KEY}two of hostler:kvm-10
command="echo hostler:kvm-1" ssh-rsa {KEY}three
ssh-ed25519 {KEY}four hostler:kvm-2
"""
FILES = (
    "unit hostler-job-m-1.service",
    "folder /var/lib/hostler/jobs",
    "folder /var/lib/hostler",
    "file /etc/libvirt/hooks/qemu.d/hostler",
    "file /etc/hostler/fence",
    "file /etc/hostler/closed",
    "file /etc/hostler/epoch",
    "file /etc/hostler/lock",
    "file /run/hostler-disks.lock",
    "folder /etc/hostler",
)
KEY_LINE = "key hostler:kvm-1 in /root/.ssh/authorized_keys"

# Units are files of a directory; `slow` makes every command wait, for the kills.
SYSTEMCTL = """#!/bin/sh
cd "$0.units" || exit
case $1 in
list-units) for unit in hostler-job-*; do [ ! -e "$unit" ] || echo "$unit loaded active"; done ;;
stop) shift; rm -f "$@" ;;
reset-failed) exit 1 ;;
*) exit 64 ;;
esac
"""


class Root:
    """A host's file system under `path`, with Hostler on it; a RemoteShell that runs there."""

    def __init__(self, path: Path) -> None:
        self.path = path / "root"
        self.programs = path / "programs"
        self.programs.mkdir()
        self.program("systemctl", SYSTEMCTL)
        home = self.at("/root")
        self.program("getent", f"#!/bin/sh\necho root:x:0:0:root:{home}:/bin/sh\n")
        (self.programs / "systemctl.units").mkdir()

    def program(self, name: str, text: str) -> None:
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def fill(self, keys: str = f"{OTHERS}{OWN}\n") -> None:
        """Everything that Hostler may have put there, and what others have."""
        (self.programs / "systemctl.units" / "hostler-job-m-1.service").touch()
        (self.programs / "systemctl.units" / "hostler-worker.service").touch()
        for name, text in {
            "/etc/libvirt/hooks/qemu.d/hostler": "#!/bin/sh\n",
            "/etc/hostler/closed": "zone-1\n",
            "/etc/hostler/epoch": "4\n",
            "/etc/hostler/fence": "maintenance/kvm-1\n",
            "/etc/hostler/lock": "",
            "/var/lib/hostler/jobs/m-1/output": "said\n",
            "/run/hostler-disks.lock": "",
            "/root/.ssh/authorized_keys": keys,
        }.items():
            self.at(name).parent.mkdir(parents=True, exist_ok=True)
            self.at(name).write_text(text)
        self.at("/root/.ssh/authorized_keys").chmod(0o640)

    def at(self, name: str) -> Path:
        return self.path / name.removeprefix("/")

    def files(self) -> set[str]:
        return {
            "/" + str(path.relative_to(self.path))
            for path in self.path.rglob("*")
            if not path.is_dir()
        }

    def units(self) -> set[str]:
        return {path.name for path in (self.programs / "systemctl.units").iterdir()}

    def start(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """The script with this root in its paths, and these programs first in its PATH."""
        shell, option, script, *words = command
        assert (shell, option) == ("sh", "-c")
        script = re.sub(
            r"^PATH=.*$", f"PATH='{self.programs}:{os.environ['PATH']}'", script, flags=re.M
        )
        script, changed = re.subn(r"(?<==)(?=/(?:etc|var|run)/)", str(self.path), script)
        assert changed == {"clean": 4, "own-key": 1}[words[0]], "there are paths unknown here"
        return subprocess.Popen(
            [shell, option, script, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    async def run(
        self,
        access: HostAccess,
        command: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: float = 30.0,  # noqa: ASYNC109 - the protocol's
    ) -> CommandResult:
        process = self.start(command)
        out, err = process.communicate(timeout=timeout)
        return CommandResult(process.returncode, out.replace(str(self.path), ""), err)

    async def scan_host_key(self, address: str, port: int) -> HostKey:
        raise AssertionError("nobody asks for a key")

    async def forget(self, host: str) -> None: ...

    async def close(self) -> None: ...


ACCESS = HostAccess(
    name=HOST, address="198.18.0.11", port=22, user="root", host_key="ssh-ed25519 AAAA"
)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = Root(tmp_path)
    root.fill()
    return root


async def test_looking_lists_all_and_changes_nothing(root: Root) -> None:
    before = root.files()
    for _ in range(2):
        assert await ScriptCleaner(root, CertifiedHost()).look(ACCESS, HOST) == [*FILES, KEY_LINE]
    assert root.files() == before


async def test_files_then_key_and_nothing_is_left(root: Root) -> None:
    cleaner = ScriptCleaner(root, CertifiedHost())
    assert await cleaner.remove_files(ACCESS, 4) == [*FILES]
    assert root.files() == {"/root/.ssh/authorized_keys"}
    assert not root.at("/etc/hostler").exists()
    assert not root.at("/etc/libvirt/hooks").exists()
    assert root.units() == {"hostler-worker.service"}
    assert await cleaner.look(ACCESS, HOST) == [KEY_LINE]
    assert await cleaner.remove_key(ACCESS, HOST, 4) == [KEY_LINE]
    assert await cleaner.look(ACCESS, HOST) == []
    keys = root.at("/root/.ssh/authorized_keys")
    assert keys.read_text() == OTHERS
    assert keys.stat().st_mode & 0o777 == 0o640
    assert await cleaner.remove_files(ACCESS, 4) == []
    assert await cleaner.remove_key(ACCESS, HOST, 4) == []
    assert root.files() == {"/root/.ssh/authorized_keys"}


async def test_a_job_that_is_spared_goes_on_and_is_named(root: Root) -> None:
    cleaner, job = ScriptCleaner(root, CertifiedHost()), "/var/lib/hostler/jobs/m-1/output"
    removed = [line for line in FILES if "job" not in line and "/var/lib" not in line]
    for there in (removed, []):
        assert await cleaner.remove_files(ACCESS, 4, spare_jobs=True) == [
            "running hostler-job-m-1.service",
            *there,
        ]
        assert root.files() == {job, "/root/.ssh/authorized_keys"}
    (root.programs / "systemctl.units" / "hostler-job-m-1.service").unlink()
    await cleaner.remove_files(ACCESS, 4, spare_jobs=True)
    assert root.files() == {"/root/.ssh/authorized_keys"}


async def test_what_others_have_put_there_stays(root: Root) -> None:
    mine = {
        "/etc/hostler/hooks/pre_flight",
        "/etc/hostler/of-the-operator",
        "/var/lib/hostler/master-key",
        "/etc/libvirt/hooks/qemu.d/other",
        "/etc/libvirt/hooks/network",
    }
    for name in mine:
        root.at(name).parent.mkdir(parents=True, exist_ok=True)
        root.at(name).write_text("#!/bin/sh\n")
    cleaner = ScriptCleaner(root, CertifiedHost())
    for _ in range(2):
        await cleaner.remove_files(ACCESS, 5)
        await cleaner.remove_key(ACCESS, HOST, 5)
        assert await cleaner.look(ACCESS, HOST) == []
        assert root.files() == mine | {"/root/.ssh/authorized_keys"}


def test_whatever_scripts_write_into_the_folder_is_taken_away() -> None:
    """A name that is new there has to be told to hooks/clean too."""
    scripts = Path(__file__).parents[2] / "drivers/hooks"
    written = set()
    for script in scripts.iterdir():
        if script.is_file() and "home=/etc/hostler" in (text := script.read_text()):
            written |= set(re.findall(r"\$home/([a-z.-]+)", text))
    (names,) = re.findall(r"^names='(.*)'$", (scripts / "clean").read_text(), flags=re.M)
    assert written - {"hooks", "tls"} <= set(names.split())


async def test_a_file_of_keys_that_is_empty_then_goes(root: Root) -> None:
    root.fill(keys=f"{OWN}\n{OWN}\n")
    cleaner = ScriptCleaner(root, CertifiedHost())
    assert await cleaner.remove_key(ACCESS, HOST, 4) == [KEY_LINE, KEY_LINE]
    assert not root.at("/root/.ssh/authorized_keys").exists()


async def test_a_link_to_the_keys_stays_a_link(root: Root) -> None:
    keys = root.at("/root/.ssh/authorized_keys")
    keys.rename(root.at("/root/keys"))
    keys.symlink_to(root.at("/root/keys"))
    assert await ScriptCleaner(root, CertifiedHost()).remove_key(ACCESS, HOST, 4) == [KEY_LINE]
    assert keys.is_symlink()
    assert root.at("/root/keys").read_text() == OTHERS
    assert {path for path in root.files() if "hostler-new" in path} == set()


async def test_the_new_file_of_keys_lies_beside_the_real_one(root: Root) -> None:
    """On another file system a rename would be a copy, without which nobody logs in any more."""
    keys = root.at("/root/.ssh/authorized_keys")
    root.at("/srv").mkdir()
    keys.rename(root.at("/srv/keys"))
    keys.symlink_to(root.at("/srv/keys"))
    root.program("mv", f'#!/bin/sh\nprintf "%s " "$@" >{root.programs}/moved\nexec /bin/mv "$@"\n')
    await ScriptCleaner(root, CertifiedHost()).remove_key(ACCESS, HOST, 4)
    _, source, target = (root.programs / "moved").read_text().split()
    assert Path(source).parent == Path(target).parent == root.at("/srv")


async def test_the_keys_are_changed_by_one_at_a_time(root: Root) -> None:
    held = os.open(root.at("/root/.ssh"), os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    process = root.start(_command("key"))
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    os.close(held)
    assert process.communicate(timeout=20)[0]
    assert process.returncode == 0


async def test_half_of_a_new_file_of_keys_is_found_and_goes(root: Root) -> None:
    half = root.at("/root/.ssh/authorized_keys.hostler-new")
    half.write_text(OWN)
    cleaner = ScriptCleaner(root, CertifiedHost())
    # It goes with the key, so nothing but the key is left.
    found = (await cleaner.look(ACCESS, HOST))[-1]
    assert found == "key half written in /root/.ssh/authorized_keys.hostler-new"
    await cleaner.remove_key(ACCESS, HOST, 4)
    assert not half.exists()


async def test_a_host_that_was_never_touched(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.path.mkdir()
    cleaner = ScriptCleaner(root, CertifiedHost())
    assert await cleaner.look(ACCESS, HOST) == []
    assert await cleaner.remove_files(ACCESS, 2) == []
    assert await cleaner.remove_key(ACCESS, HOST, 2) == []
    assert root.files() == set()


async def test_a_lower_epoch_than_the_hosts_is_refused(root: Root) -> None:
    before = root.files()
    cleaner = ScriptCleaner(root, CertifiedHost())
    for change in (cleaner.remove_files(ACCESS, 3), cleaner.remove_key(ACCESS, HOST, 3)):
        with pytest.raises(EpochRefused) as refused:
            await change
        assert refused.value.details == {"held": 4, "own": 3}
    assert root.files() == before


async def test_an_epoch_that_rises_while_it_waits_for_the_lock_counts(root: Root) -> None:
    with root.at("/etc/hostler/lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = root.start(_command("files"))
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        root.at("/etc/hostler/epoch").write_text("6\n")
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (77, "6\n")
    assert root.at("/etc/hostler/fence").exists()


async def test_a_damaged_epoch_is_not_taken_for_none(root: Root) -> None:
    root.at("/etc/hostler/epoch").write_text("x\n")
    with pytest.raises(CommandFailed, match="damaged"):
        await ScriptCleaner(root, CertifiedHost()).remove_files(ACCESS, 9)
    assert root.at("/etc/hostler/fence").exists()


async def test_what_stays_is_a_failure_that_names_it(root: Root) -> None:
    root.program(
        "rm", '#!/bin/sh\ncase $* in */var/lib/hostler/jobs) ;; *) exec /bin/rm "$@" ;; esac\n'
    )
    with pytest.raises(CommandFailed, match=r"still there: folder .*/jobs"):
        await ScriptCleaner(root, CertifiedHost()).remove_files(ACCESS, 4)


SLOW = ("rm", "rmdir", "find", "mv", "cp", "sync", "awk")


@pytest.mark.parametrize("number", range(1, 15))
async def test_killed_at_any_step_the_next_run_ends_it(root: Root, number: int) -> None:
    """The `number`-th program that the script calls hangs, and all of it is killed there."""
    counter = root.programs / "calls"
    for name in SLOW:
        real = shutil.which(name)
        root.program(
            name,
            f'#!/bin/sh\necho x >>{counter}\n[ "$(wc -l <{counter})" -ne {number} ] || sleep 60\n'
            f'exec {real} "$@"\n',
        )
    for action in ("files", "key"):
        counter.unlink(missing_ok=True)
        script = _command(action)
        process = root.start(script)
        while process.poll() is None and _lines(counter) < number:
            time.sleep(0.01)  # noqa: ASYNC251 - nothing else runs
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        # The larger numbers are only reached by the longer one of the two.
        assert process.wait() == (0 if _lines(counter) < number else -signal.SIGKILL)
        for stream in (process.stdout, process.stderr):
            assert stream
            stream.close()
    for name in SLOW:
        (root.programs / name).unlink()
    cleaner = ScriptCleaner(root, CertifiedHost())
    await cleaner.remove_files(ACCESS, 4)
    await cleaner.remove_key(ACCESS, HOST, 4)
    assert await cleaner.look(ACCESS, HOST) == []
    assert root.files() == {"/root/.ssh/authorized_keys"}
    assert root.at("/root/.ssh/authorized_keys").read_text() == OTHERS


def _command(action: str) -> list[str]:
    name, *words = {
        "files": ("clean", "files", "4"),
        "key": ("own-key", "remove", "root", f"hostler:{HOST}", "4"),
    }[action]
    script = (Path(__file__).parents[2] / "drivers/hooks" / name).read_text()
    return ["sh", "-c", script, name, *words]


def _lines(counter: Path) -> int:
    return len(counter.read_text().splitlines()) if counter.exists() else 0
