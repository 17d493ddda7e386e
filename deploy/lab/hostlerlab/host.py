"""One lab host: its disk, its cable, its life."""

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import cgroups, paths
from .image import Image
from .processes import Process
from .shell import LabError, clean_environment, is_mounted, quietly, run, say, write_secret

DISK_SIZE = "1g"  # each host its own, so that one full disk is one host's trouble
DROPPED = ("CAP_SYS_TIME", "CAP_SYS_MODULE")  # the clock and the kernel are the machine's
_POWER_OFF = signal.SIGRTMIN + 4  # systemd: poweroff.target
_PASSWORD_BYTES = 18
_PREPARED = "prepared.json"  # on the host's tmpfs: gone whenever that disk is


class Host:
    """kvm-N. Everything that exists of it is named after it, so any leftover can be found."""

    def __init__(self, name: str) -> None:
        self.number = paths.host_number(name)
        self.name = name
        self.address = paths.host_address(self.number)
        self.run_dir = paths.RUN / "hosts" / name
        self.disk = self.run_dir / "disk"
        self.root = self.run_dir / "root"
        self.state_dir = paths.STATE / "hosts" / name
        self.password_file = self.state_dir / "password"
        self.boot_log = self.state_dir / "boot.log"
        self.netns = f"{paths.NETNS_PREFIX}{name}"
        self.link = f"{paths.LINK_PREFIX}{name}"
        self.cut_mark = self.run_dir / "cut"
        self.supervisor_record = self.run_dir / "supervisor"
        self.nspawn_record = self.run_dir / "nspawn"
        self.leader_record = self.run_dir / "leader"

    # --- disk

    def prepare_disk(self, image: Image, machine_uuid: str | None = None) -> None:
        """Mount the overlay; give a new one the identity of this host, and `machine_uuid`, if it is
        the disk of a machine that was there before."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.state_dir.mkdir(parents=True, exist_ok=True)
        for folder in (self.disk, self.root):
            folder.mkdir(exist_ok=True)
        if not is_mounted(self.disk):
            run(["mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE},mode=0700",
                 f"hostler-{self.name}", self.disk])  # fmt: skip
        prepared = self.disk / _PREPARED
        if not prepared.exists():
            self._unmount(self.root)
            for folder in (self.disk / "upper", self.disk / "work"):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(mode=0o755)
        if not is_mounted(self.root):
            # A disk keeps the build it was made from: an overlay's lower layer must not change.
            lower = self._lower(prepared, image)
            layers = f"lowerdir={lower},upperdir={self.disk / 'upper'},workdir={self.disk / 'work'}"
            run(["mount", "-t", "overlay", "-o", layers, f"hostler-{self.name}", self.root])
        if not prepared.exists():
            password = secrets.token_urlsafe(_PASSWORD_BYTES)
            machine = machine_uuid or str(uuid.uuid4())
            self._write_identity(password, machine)
            identity = {"password": password, "lower": str(image.rootfs), "machine": machine}
            temporary = prepared.with_suffix(".new")
            temporary.write_text(json.dumps(identity))
            temporary.replace(prepared)
        write_secret(self.password_file, f"{json.loads(prepared.read_text())['password']}\n")

    def machine_uuid(self) -> str | None:
        """The machine's own UUID, as its libvirt reports it; None without a finished disk."""
        try:
            machine: str = json.loads((self.disk / _PREPARED).read_text())["machine"]
        except FileNotFoundError:
            return None
        return machine

    @staticmethod
    def _lower(prepared: Path, image: Image) -> Path:
        if prepared.exists():
            return Path(json.loads(prepared.read_text())["lower"])
        return image.rootfs

    def _write_identity(self, password: str, machine_uuid: str) -> None:
        etc = self.root / "etc"
        (etc / "hostname").write_text(f"{self.name}\n")
        (etc / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
        with (etc / "libvirt/libvirtd.conf").open("a") as conf:
            conf.write(f'\nhost_uuid = "{machine_uuid}"\n')
        # From standard input: a command line can be read by anybody.
        run(["chpasswd", "-R", self.root], stdin=f"root:{password}\n")

    @staticmethod
    def _unmount(path: Path) -> None:
        for _ in range(50):
            if not is_mounted(path):
                return
            if not quietly(["umount", path]):
                time.sleep(0.1)
        quietly(["umount", "--lazy", path])

    # --- cable

    def plug_in(self) -> None:
        """A new network namespace with a cable to the bridge, as at every power-on."""
        self.unplug()
        peer = f"02:00:c6:12:00:{10 + self.number:02x}"
        run(["ip", "netns", "add", self.netns])
        # The MAC is fixed: after a reboot the neighbours' ARP entries are still right.
        run(["ip", "link", "add", self.link, "type", "veth",
             "peer", "name", "eth0", "address", peer, "netns", self.netns])  # fmt: skip
        self.attach()
        for command in (
            ["link", "set", "lo", "up"],
            ["address", "add", f"{self.address}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
        ):
            run(["ip", "-n", self.netns, *command])

    def attach(self) -> None:
        """The machine's end of the cable: on the bridge, up unless it was cut."""
        state = "down" if self.cut_mark.exists() else "up"
        run(["ip", "link", "set", self.link, "master", paths.BRIDGE, state])

    def unplug(self) -> None:
        """Remove cable and namespace: a machine without power does not even refuse to answer."""
        quietly(["ip", "link", "delete", self.link])
        if (paths.NETNS_DIR / self.netns).exists():
            quietly(["ip", "netns", "delete", self.netns])

    def cut(self) -> None:
        """Unreachable from now on, also across a reboot, until healed."""
        self.cut_mark.touch()
        if self.link_exists():
            self.attach()

    def heal(self) -> None:
        """Undo a cut."""
        self.cut_mark.unlink(missing_ok=True)
        if self.link_exists():
            self.attach()

    def link_exists(self) -> bool:
        """True while there is a cable."""
        return Path("/sys/class/net", self.link).exists()

    # --- life

    def leader(self) -> Process | None:
        """The container's pid 1, while it runs."""
        return Process.load(self.leader_record)

    def running(self) -> bool:
        """True while the container runs."""
        return self.leader() is not None

    def start(self) -> None:
        """Start the supervisor, which boots the host; nothing if it is already there."""
        if Process.load(self.supervisor_record) is not None:
            return
        with self.boot_log.open("a") as log:
            supervisor = subprocess.Popen(
                [sys.executable, str(paths.LAB_PROGRAM), "_supervise", self.name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=clean_environment(),
                start_new_session=True,
            )
        # Until it is recorded nobody could end it.
        while Process.load(self.supervisor_record) is None and supervisor.poll() is None:
            time.sleep(0.02)

    def stop(self, grace: float = 4) -> None:
        """End supervisor and container; whatever does not go within the grace is killed."""
        supervisor = Process.load(self.supervisor_record)
        if supervisor is not None:
            supervisor.send(signal.SIGTERM)
            if not supervisor.gone(grace):
                supervisor.kill()
        self.kill_container()

    def kill_container(self) -> None:
        """The power cable is pulled: no process of the host lives on."""
        for record in (self.leader_record, self.nspawn_record):
            process = Process.load(record)
            if process is not None:
                process.kill()
        # A container outlives a killed nspawn: what was not recorded yet is found by its group.
        supervisor = Process.load(self.supervisor_record)
        spared = {os.getpid(), supervisor.pid if supervisor else 0}
        for pid in cgroups.members(self.name) - spared:
            process = Process.of(pid)
            if process is not None:
                process.kill()

    def power_loss(self) -> None:
        """As by a dead power supply: gone at once, and it stays off."""
        with self._power():
            self._cut_power()

    def power_on(self) -> None:
        """Boot it; nothing if it is on."""
        with self._power():
            if not self.running():
                self.start()

    def power_reset(self) -> None:
        """A new boot without a shutdown."""
        with self._power():
            self._cut_power()
            self.start()

    def power_button(self) -> None:
        """Ask it to shut down in good order, as a press of its power button does."""
        leader = self.leader()
        if leader is not None:
            leader.send(_POWER_OFF)

    def _cut_power(self) -> None:
        supervisor = Process.load(self.supervisor_record)
        if supervisor is not None:
            supervisor.kill()  # first, or it boots what is killed under it
        self.kill_container()
        self.unplug()

    @contextlib.contextmanager
    def _power(self) -> Iterator[None]:
        """One at a time switches the power of this host: its BMC, or a `lab` command."""
        with (paths.RUN / f"{self.name}.power").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def reboot(self, timeout: float = 120) -> None:
        """An orderly reboot; returns when the host answers again, with another boot id."""
        before = self.boot_id()
        if before is None:
            raise LabError(f"{self.name} does not run: lab up starts it")
        self.run(["systemctl", "reboot"], check=False, timeout=30)
        deadline = time.monotonic() + timeout
        while self.boot_id() in (None, before):
            if time.monotonic() > deadline:
                raise LabError(f"{self.name} did not boot again within {timeout:.0f} s")
            time.sleep(0.1)
        self.wait_ready(deadline - time.monotonic())

    def remove(self) -> None:
        """Leave nothing of a stopped host."""
        self.unplug()
        if is_mounted(self.root):  # a killed nspawn leaves its lock behind
            root = self.root.stat()
            (paths.NSPAWN_DIR / f"locks/inode-{root.st_dev}:{root.st_ino}").unlink(missing_ok=True)
        self._unmount(self.root)
        self._unmount(self.disk)
        cgroups.remove(self.name)
        for leftover in paths.NSPAWN_DIR.glob(f"*/{self.name}"):
            quietly(["umount", "--lazy", leftover])
            shutil.rmtree(leftover, ignore_errors=True)
        shutil.rmtree(self.run_dir, ignore_errors=True)
        shutil.rmtree(self.state_dir, ignore_errors=True)

    def rebuild(self, image: Image) -> None:
        """Re-install it from the bare root file system: another disk, other keys, another password,
        the same machine. Whatever runs on it is lost. Returns while it boots."""
        machine = self.machine_uuid()
        with self._power():
            self.stop(grace=0)
            self.remove()
            self.prepare_disk(image, machine)
            self.start()

    # --- talking to it

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command line that runs a command in the host, network or not."""
        leader = self.leader()
        if leader is None:
            raise LabError(f"{self.name} does not run: lab up starts it")
        environment = [f"{key}={value}" for key, value in clean_environment().items()]
        if "TERM" in os.environ:
            environment.append(f"TERM={os.environ['TERM']}")
        spaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        enter = ["nsenter", "--target", str(leader.pid), *spaces]
        # What comes in from outside brings all capabilities: take the same ones from it.
        less = ",".join(f"-{name.removeprefix('CAP_').lower()}" for name in DROPPED)
        limit = ["setpriv", f"--bounding-set={less}", f"--inh-caps={less}", "--"]
        return [*enter, "env", "-i", "-C", "/root", *environment, *limit, *command]

    def run(
        self,
        command: Sequence[str],
        *,
        check: bool = True,
        stdin: str | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the host."""
        name = f"{self.name}: {' '.join(command[:6])}"
        done = run(self.inside(command), check=False, stdin=stdin, timeout=timeout, name=name)
        if check and done.returncode != 0:
            said = [ln for ln in (done.stderr or done.stdout).splitlines() if ln.strip()]
            reason = said[-1] if said else f"exit {done.returncode}"
            raise LabError(f"{name}: {reason}")
        return done

    def virsh(self, *arguments: str, check: bool = True, timeout: float = 60) -> str:
        """Output of virsh in the host."""
        command = ["virsh", "-q", "-c", "qemu:///system", *arguments]
        return self.run(command, check=check, timeout=timeout).stdout

    def path_inside(self, path: str) -> Path | None:
        """A file of the running host, seen from outside."""
        leader = self.leader()
        return Path(f"/proc/{leader.pid}/root{path}") if leader else None

    def boot_id(self) -> str | None:
        """The kernel's name for this boot; None while the host is off or just starting."""
        path = self.path_inside("/proc/sys/kernel/random/boot_id")
        with contextlib.suppress(OSError):
            return path.read_text().strip() if path else None
        return None

    def host_key_fingerprint(self) -> str | None:
        """As `ssh-keygen -lf` prints it, from the host's own file: nobody in between."""
        try:
            key = (self.root / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[1]
        except (OSError, IndexError):
            return None
        digest = hashlib.sha256(base64.b64decode(key)).digest()
        return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"

    def sees_shared_folder(self) -> bool:
        """False if .state was deleted under a running host: it then writes into nowhere."""
        path = self.path_inside("/shared/consoles")
        try:
            return path is not None and path.stat().st_ino == paths.CONSOLES.stat().st_ino
        except OSError:
            return False

    def missing(self) -> str | None:
        """What the host still lacks to be usable; None when it is ready."""
        if self.leader() is None:
            return "the container does not run"
        try:
            with socket.create_connection((self.address, 22), timeout=3) as connection:
                if connection.recv(4) != b"SSH-":
                    return "sshd does not answer"
        except OSError:
            return "sshd does not answer"
        try:
            self.virsh("list", timeout=20)
        except LabError as error:
            return str(error)
        return None

    def wait_ready(self, timeout: float) -> None:
        """Return when sshd and libvirtd answer, else say what is missing."""
        deadline = time.monotonic() + timeout
        while (missing := self.missing()) is not None:
            if time.monotonic() > deadline:
                raise LabError(f"{self.name} is not ready: {missing} (its boot: {self.boot_log})")
            time.sleep(0.2)

    def bring_up(self, image: Image) -> None:
        """Make it run and answer, whatever state it is in."""
        if self.cut_mark.exists():
            say(f"{self.name}: its cable was cut, healing it")
            self.heal()
        if self.running():
            trouble = self._trouble()
            if trouble is None:
                self.prepare_disk(image)
                return
            say(f"{self.name}: {trouble}; starting it again")
        with self._power():
            self.stop()
            self.prepare_disk(image)
            self.start()
        self.wait_ready(120)

    def _trouble(self) -> str | None:
        """Why a host that runs must be started again to be of use; None if it is fine."""
        if Process.load(self.supervisor_record) is None:
            return "its supervisor died, nobody would boot it again after a reboot"
        if not self.sees_shared_folder():
            return "its shared folder was deleted"
        if not self.link_exists():
            return "its cable is gone"
        self.attach()
        try:
            self.wait_ready(15)
        except LabError as error:
            return str(error)
        return None


def known_hosts() -> list[Host]:
    """Every host of which anything exists, in order."""
    names = set()
    for folder, prefix in (
        (paths.RUN / "hosts", ""),
        (paths.STATE / "hosts", ""),
        (Path("/sys/class/net"), paths.LINK_PREFIX),
        (paths.NETNS_DIR, paths.NETNS_PREFIX),
    ):
        if folder.is_dir():
            names |= {p.name.removeprefix(prefix) for p in folder.glob(f"{prefix}kvm-*")}
    hosts = []
    for name in names:
        with contextlib.suppress(ValueError):
            hosts.append(Host(name))
    return sorted(hosts, key=lambda host: host.number)
