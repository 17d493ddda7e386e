"""The hosts' BMCs: IPMI over LAN by ipmi_sim, one process for all of them.

Each host's is a management controller with an address, a user, and a password of its own. Its
chassis is `deploy/lab/chassis`, which tells what is and hands on what is to be done; `serve` does
it. A BMC belongs to the machine: it lives on while its host is off, and when that is rebuilt.
"""

import fcntl
import json
import os
import queue
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from . import image, paths
from .host import Host
from .processes import Process
from .shell import LabError, clean_environment, die_with_parent, run, say, write_secret

PORT = 623
LOG = paths.STATE / "bmc.log"
RECORD = paths.BMC / "process"
_LOCK = paths.BMC / "lock"
_ORDERS = paths.BMC / "orders"
_CHASSIS = paths.BMC / "chassis"  # a path without a checkout's spaces and quotes
_CONFIG = paths.BMC / "lan.conf"
_COMMANDS = paths.BMC / "sim.emu"
_SIMULATOR_STATE = paths.BMC / "state"  # among it a password that was changed through IPMI
_PASSWORD_BYTES = 12  # 16 characters: more does not fit the password of IPMI 1.5
_ADMINISTRATOR = 2  # user 1 is IPMI's anonymous one
_SESSIONS = 20
_PRESENCE_PING = bytes.fromhex("0600ff06 000011be 80010000")  # RMCP, ASF: "are you there?"
_PONG = 0x40
_START_TIMEOUT = 20.0
_SAVED_AFTER = 1.5  # once a second ipmi_sim writes what was changed through IPMI, not at its end


@dataclass(frozen=True)
class Bmc:
    """How to log in to a host's BMC."""

    host: str
    user: str
    password: str

    @property
    def address(self) -> str:
        """An address of the machine, outside the hosts' network: a cut cable is not its own."""
        return paths.bmc_address(paths.host_number(self.host))

    @property
    def password_file(self) -> Path:
        """Where people and scripts read the password."""
        return paths.STATE / "bmc" / self.host / "password"

    @classmethod
    def load(cls, host: str) -> "Bmc | None":
        """The BMC of a host, if it has been made."""
        try:
            return cls(**json.loads((paths.BMC / f"{host}.json").read_text()))
        except FileNotFoundError:
            return None

    @classmethod
    def ensure(cls, host: str) -> "Bmc":
        """The BMC of a host, its password shown."""
        bmc = cls.load(host)
        if bmc is None:
            bmc = cls(host, f"{host}-admin", secrets.token_urlsafe(_PASSWORD_BYTES))
            write_secret(paths.BMC / f"{host}.json", json.dumps(asdict(bmc)))
        bmc.password_file.parent.mkdir(parents=True, exist_ok=True)
        write_secret(bmc.password_file, f"{bmc.password}\n")
        return bmc

    def answers(self) -> bool:
        """True if it answers a presence ping within a second."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(1)
            try:
                client.connect((self.address, PORT))
                client.send(_PRESENCE_PING)
                answer = client.recv(64)
            except OSError:
                return False
        return len(answer) > 8 and answer[8] == _PONG


def ensure(hosts: Sequence[Host]) -> None:
    """All these hosts, whose disks are made, have a BMC that answers; nothing if they have."""
    _CHASSIS.parent.mkdir(mode=0o700, exist_ok=True)
    _SIMULATOR_STATE.mkdir(exist_ok=True)
    if not _CHASSIS.is_symlink():
        _CHASSIS.symlink_to(paths.LAB_DIR / "chassis")
    if not _ORDERS.exists():
        os.mkfifo(_ORDERS, 0o600)
    bmcs = {host: Bmc.ensure(host.name) for host in hosts}
    for bmc in bmcs.values():
        run(["ip", "address", "replace", f"{bmc.address}/32", "dev", paths.BRIDGE])
    config, commands = _config(bmcs), _commands(hosts)
    changed = not _CONFIG.exists() or _CONFIG.read_text() != config
    if not changed and Process.load(RECORD) and all(bmc.answers() for bmc in bmcs.values()):
        return
    if Process.load(RECORD) is not None:
        time.sleep(_SAVED_AFTER)
        stop()
    write_secret(_CONFIG, config)
    _COMMANDS.write_text(commands)
    with LOG.open("a") as log:
        subprocess.Popen(
            [sys.executable, str(paths.LAB_PROGRAM), "_bmc"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=clean_environment(),
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_TIMEOUT
    while (mute := [bmc for bmc in bmcs.values() if not bmc.answers()]) or not Process.load(RECORD):
        if time.monotonic() > deadline:
            who = ", ".join(bmc.host for bmc in mute) or "nobody"
            raise LabError(f"BMCs that do not answer: {who} (their log: {LOG})")
        time.sleep(0.05)
    say(f"the BMCs of {', '.join(bmc.host for bmc in bmcs.values())} answer")


def stop() -> None:
    """End the process of all BMCs; what it was told before is still done."""
    process = Process.load(RECORD)
    if process is not None:
        process.send(signal.SIGTERM)
        if not process.gone(30):
            process.kill()


def _controller(host: Host) -> str:
    """The address of its controller on ipmi_sim's own bus: even numbers from 0x20 on."""
    return f"{0x20 + 2 * (host.number - 1):#x}"


def _config(bmcs: dict[Host, Bmc]) -> str:
    """See ipmi_lan(5)."""
    lines = ['name "lab"']
    for host, bmc in bmcs.items():
        # A BMC's GUID is the machine's own UUID, as in its libvirt; IPMI has its last byte first.
        identity = uuid.UUID(host.machine_uuid()).bytes[::-1].hex()
        levels = ("callback", "user", "operator", "admin")
        lines += [
            f"set_working_mc {_controller(host)}",
            "  startlan 1",
            f"    addr {bmc.address} {PORT}",
            "    priv_limit admin",
            *(f"    allowed_auths_{level} md5" for level in levels),
            f"    guid {identity}",
            "  endlan",
            f'  chassis_control "{_CHASSIS} {host.name}"',
            f'  user {_ADMINISTRATOR} true "{bmc.user}" "{bmc.password}" admin {_SESSIONS} md5',
        ]
    return "\n".join(lines) + "\n"


def _commands(hosts: Sequence[Host]) -> str:
    """See ipmi_sim_cmd(5)."""
    lines = [f"mc_setbmc {_controller(hosts[0])}"]
    for host in hosts:
        controller = _controller(host)
        lines += [
            f"mc_add {controller} 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02",
            f"mc_enable {controller}",
        ]
    return "\n".join(lines) + "\n"


# --- the process


def serve() -> int:
    """Run ipmi_sim, and do what the chassis are told, until SIGTERM or ipmi_sim's end."""
    if not _ORDERS.exists():
        return 1  # `lab down` was faster
    lock = _LOCK.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0  # another one is at it
    me = Process.of(os.getpid())
    if me is None:
        return 1
    orders = os.fdopen(os.open(_ORDERS, os.O_RDWR))  # never at its end, whoever else writes
    simulator = subprocess.Popen(
        ["ipmi_sim", "-n", "-c", _CONFIG, "-f", _COMMANDS, "-s", _SIMULATOR_STATE],
        stdin=subprocess.DEVNULL,
        cwd="/",
        env=clean_environment(),
        preexec_fn=die_with_parent(),
    )
    signal.signal(signal.SIGTERM, lambda _signal, _frame: simulator.terminate())
    me.save(RECORD)
    chassis = _AllChassis()
    threading.Thread(target=chassis.follow, args=(orders,), daemon=True).start()
    status = simulator.wait()
    _log(f"ipmi_sim ended with {status}")
    chassis.finish()
    return 0


def _log(text: str) -> None:
    sys.stderr.write(f"bmc: {text}\n")
    sys.stderr.flush()


class _AllChassis:
    """Does what it is told: for one host in order, for several at once."""

    def __init__(self) -> None:
        self._queues: dict[str, queue.SimpleQueue[str | None]] = {}
        self._threads: list[threading.Thread] = []

    def follow(self, orders: Sequence[str]) -> None:
        """Take orders, lines of "HOST ORDER", for as long as there are any."""
        for line in orders:
            host, order = line.split()
            if host not in self._queues:
                self._queues[host] = queue.SimpleQueue()
                thread = threading.Thread(target=self._work, args=(Host(host), self._queues[host]))
                self._threads.append(thread)
                thread.start()
            self._queues[host].put(order)

    def finish(self) -> None:
        """Return when all is done that was ordered."""
        for each in self._queues.values():
            each.put(None)
        for thread in self._threads:
            thread.join()

    @staticmethod
    def _work(host: Host, orders: "queue.SimpleQueue[str | None]") -> None:
        actions: dict[str, Callable[[], None]] = {
            "on": lambda: None if host.running() else _boot(host, host.power_on),
            "off": host.power_loss,
            "reset": lambda: _boot(host, host.power_reset),
            "soft": host.power_button,
        }
        while (order := orders.get()) is not None:
            _log(f"{host.name}: {order}")
            try:
                actions[order]()
            except (LabError, OSError) as error:
                _log(f"{host.name}: {order}: {error}")


def _boot(host: Host, from_disk: Callable[[], None]) -> None:
    """From its disk; or, once if it was told so, from the network, where an installer is."""
    try:
        (paths.BMC / f"{host.name}.boot-device").unlink()
    except FileNotFoundError:
        from_disk()
        return
    installation = image.cached()
    if installation is None:
        raise LabError("there is nothing on the network to boot from: lab up makes it")
    _log(f"{host.name}: is installed from the network")
    host.rebuild(installation)
