"""What quickstart.sh shows: one whole maintenance in the lab, told as it happens.

Runs the same `hostler` command that an operator would, and proves with the guests' own consoles
that they moved without a gap.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
LAB = REPO / "deploy" / "lab" / "lab"
CONSOLES = REPO / "deploy" / "lab" / ".state" / "consoles"
HOST = "kvm-1"
START_WITHIN_S = 90.0
TICK_WITHIN_S = 60.0
LISTEN_EVERY_S = 0.02


class DemoFailed(Exception):
    """A step did not do what it should; the message says which."""


def main(home: Path) -> None:
    """Add the lab's hosts, take HOST out, show that it is empty, put it back."""
    os.environ["HOSTLER_HOME"] = str(home)
    wait_for_api(home)
    lab = lab_status()
    add_everything(lab)
    if host_state() not in ("Enabled", "Disabled"):
        step(f"{HOST} is out of service: it comes back first")
        hostler("maintenance", "leave", HOST)
    guests = sorted(guest["name"] for guest in lab["guests"])
    before = {name: where(name) for name in guests}
    first = {name: wait_for_tick(name, 1) for name in guests}

    step(f"{HOST} goes into maintenance: its VMs move away while they run")
    with listening(guests) as pauses:
        hostler("maintenance", "enter", HOST, "--reason", "quickstart", "--watch")
    maintenance = json.loads(hostler("maintenance", "status", HOST, "--json", quiet=True))
    seconds = {vm["vm"]: vm["seconds"] for vm in maintenance["vms"]}
    after = {name: where(name) for name in guests}
    # Ticks that come after the move, so that the moment itself lies between two of them.
    last = {name: wait_for_tick(name, last_tick(name) + 3) for name in guests}
    print(f"\n{'VM':8} {'was on':8} {'runs on':8} {'seconds':>8} {'longest pause':>14}   ticks")
    for name in guests:
        ticks = f"{first[name]} to {last[name]}, {gaps(name)}"
        took = seconds.get(name)
        print(
            f"{name:8} {before[name]:8} {after[name]:8} "
            f"{'-' if took is None else f'{took:.1f}':>8} {f'{pauses[name]:.1f} s':>14}   {ticks}"
        )
        if after[name] == HOST:
            raise DemoFailed(f"{name} still runs on {HOST}")
    print(f"\n{HOST}: {host_state()}   Ready for maintenance")

    step(f"While it is out, {HOST} itself refuses VMs, whoever asks")
    refusal = subprocess.run(
        [LAB, "exec", HOST, "--", "virsh", "-q", "create", "/dev/stdin", "--paused"],
        input=probe_xml(),
        capture_output=True,
        text=True,
        check=False,
    )
    if refusal.returncode == 0:
        raise DemoFailed(f"{HOST} started a VM in maintenance")
    print(f"$ virsh create ...\n{refusal.stderr.strip()}")

    step(f"{HOST} comes back")
    hostler("maintenance", "leave", HOST)
    print(f"{HOST}: {host_state()}")
    if host_state() != "Enabled":
        raise DemoFailed(f"{HOST} did not come back")


def add_everything(lab: dict[str, Any]) -> None:
    """Zone, pod, cluster and the lab's hosts; what is there already stays."""
    step("The inventory: zone-1, pod-1, cluster-1 and the hosts")
    known = {kind: names(kind) for kind in ("zone", "pod", "cluster", "host")}
    for kind, name, more in (
        ("zone", "zone-1", []),
        ("pod", "pod-1", ["--zone", "zone-1"]),
        ("cluster", "cluster-1", ["--pod", "pod-1"]),
    ):
        if name not in known[kind]:
            hostler(kind, "create", name, *more)
        hostler(kind, "enable", name)
    for host in lab["hosts"]:
        if host["name"] in known["host"]:
            continue
        hostler(
            *("host", "add", host["name"], "--cluster", "cluster-1", "--address", host["address"]),
            *("--password-file", host["password_file"]),
            *("--accept-host-key", host["host_key_sha256"]),
        )


def names(kind: str) -> set[str]:
    """The names of what is in the inventory."""
    return {row["name"] for row in json.loads(hostler(kind, "list", "--json", quiet=True))}


def host_state() -> str:
    """HOST's resource state, as the inventory has it."""
    shown: dict[str, Any] = json.loads(hostler("host", "show", HOST, "--json", quiet=True))
    return str(shown["resource_state"])


def hostler(*arguments: str, quiet: bool = False) -> str:
    """Run the command as an operator would; its output is shown unless it is for us."""
    if not quiet:
        print(f"$ hostler {' '.join(arguments)}", flush=True)
    done = subprocess.run(
        ["hostler", *arguments], stdout=subprocess.PIPE if quiet else None, text=True, check=False
    )
    if done.returncode != 0:
        raise DemoFailed(f"hostler {arguments[0]} {arguments[1]} ended with {done.returncode}")
    return done.stdout or ""


def wait_for_api(home: Path) -> None:
    """Until the API answers; a `hostler up` that ended has said why in its log."""
    up, log = Path("/proc") / (home / "up.pid").read_text().strip(), home / "up.log"
    deadline = time.monotonic() + START_WITHIN_S
    while up.exists() and time.monotonic() < deadline:
        answer = subprocess.run(["hostler", "zone", "list"], capture_output=True, check=False)
        if answer.returncode == 0:
            return
        time.sleep(0.5)
    raise DemoFailed(f"Hostler did not come up; the end of {log}:\n{log.read_text()[-2000:]}")


def lab_status() -> dict[str, Any]:
    """What the lab says of itself."""
    done = subprocess.run([LAB, "status", "--json"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise DemoFailed("the lab does not say how it is")
    status: dict[str, Any] = json.loads(done.stdout)
    return status


def where(guest: str) -> str:
    """The one host on which the guest is active, by libvirt's word on all of them."""
    places = next(one["hosts"] for one in lab_status()["guests"] if one["name"] == guest)
    if len(places) != 1:
        raise DemoFailed(f"{guest} runs on {places or 'no host'}, not on exactly one")
    return str(places[0])


def ticks_of(guest: str) -> list[int]:
    """All tick numbers on the guest's console so far."""
    text = (CONSOLES / f"{guest}.log").read_text(errors="replace")
    return [int(number) for number in re.findall(r"tick (\d+)\r?\n", text)]


def last_tick(guest: str) -> int:
    """The newest tick, 0 before the first."""
    ticks = ticks_of(guest)
    return ticks[-1] if ticks else 0


def wait_for_tick(guest: str, number: int) -> int:
    """Until the guest has counted to `number`; returns the newest tick."""
    deadline = time.monotonic() + TICK_WITHIN_S
    while (newest := last_tick(guest)) < number:
        if time.monotonic() > deadline:
            raise DemoFailed(f"{guest} stopped ticking at {newest}")
        time.sleep(0.2)
    return newest


@contextmanager
def listening(guests: list[str]) -> Iterator[dict[str, float]]:
    """Each guest's longest time between two ticks during the block, as heard on its console."""
    pauses = dict.fromkeys(guests, 0.0)
    over = threading.Event()

    def listen() -> None:
        heard = {name: (last_tick(name), time.monotonic()) for name in guests}
        while not over.wait(LISTEN_EVERY_S):
            for name, (tick, at) in heard.items():
                newest, now = last_tick(name), time.monotonic()
                if newest != tick:
                    pauses[name] = max(pauses[name], now - at)
                    heard[name] = (newest, now)

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        yield pauses
    finally:
        over.set()
        listener.join()


def gaps(guest: str) -> str:
    """ "no gap" if the tick numbers are consecutive and unique since the guest's last boot."""
    ticks = ticks_of(guest)
    boot = max(index for index, number in enumerate(ticks) if number == 1)
    run = ticks[boot:]
    for one, following in itertools.pairwise(run):
        if following != one + 1:
            raise DemoFailed(f"{guest} went from tick {one} to tick {following}")
    return "no gap"


def probe_xml() -> str:
    """A VM that would start anywhere."""
    return (
        "<domain type='qemu'><name>quickstart-probe</name><memory unit='MiB'>16</memory>"
        "<os><type arch='x86_64'>hvm</type></os></domain>"
    )


def step(text: str) -> None:
    """A headline."""
    print(f"\n\033[1m{text}\033[0m", flush=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except DemoFailed as failure:
        sys.exit(f"quickstart: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
