"""What hosts and guests boot from: built once, cached under the hash of its recipe."""

import hashlib
import shutil
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from .paths import CACHE, GATEWAY, MAX_HOSTS, host_address
from .shell import LabError, clean_environment, run, say

SUITE = "bookworm"
PACKAGES = (
    "systemd-sysv", "dbus", "libpam-systemd", "libvirt-daemon-system", "libvirt-clients",
    "qemu-system-x86", "qemu-utils", "openssh-server", "iproute2", "ca-certificates", "openssl",
    "nftables", "procps", "libfaketime", "sudo",
)  # fmt: skip
KERNEL = "linux-image-cloud-amd64"
BUSYBOX = "busybox-static"
# In the order of their loading. The ACPI power button and the device that reports it: without them
# a guest ignores a shutdown. virtio's: for a guest's disk.
MODULES = (
    "button", "evdev",
    "virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci",
    "virtio_blk",
)  # fmt: skip

MASKED = (
    "libvirt-guests.service",  # would suspend or stop guests behind Hostler's back
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
    "e2scrub_reap.service", "fstrim.timer", "console-getty.service", "systemd-timesyncd.service",
)  # fmt: skip

QEMU_CONF = """
# --- Hostler's lab: a container has no SELinux, AppArmor or cgroups of its own to hand out.
security_driver = "none"
user = "root"
group = "root"
cgroup_controllers = []
namespaces = []
dynamic_ownership = 0
remember_owner = 0
# QEMU writes the consoles itself: virtlogd would rotate them after 2 MiB.
stdio_handler = "file"
"""

SSHD_CONF = "PermitRootLogin yes\nUseDNS no\n"

HOST_KEYS_UNIT = """[Unit]
Description=Make this host's own SSH keys at its first boot
Before=ssh.service
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A

[Install]
RequiredBy=ssh.service
"""

POOL_XML = """<pool type='dir'>
  <name>default</name>
  <target><path>/var/lib/libvirt/images</path></target>
</pool>
"""

GUEST_INIT = """#!/bin/busybox sh
# A guest that proves it is alive: it counts on its console, and goes when asked politely.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in /modules/*.ko; do insmod "$module"; done

for name in /sys/class/input/event*/device/name; do
  [ "$(cat "$name")" = "Power Button" ] || continue
  event=${name#/sys/class/input/}
  (
    dd if="/dev/input/${event%%/*}" of=/dev/null bs=24 count=1 2>/dev/null
    echo "power button"
    poweroff -f
  ) &
done

# dirty=MiB: rewrite that much memory for ever (what is random travels whole at each pass).
dirty=$(sed -n 's/.*\\bdirty=\\([0-9][0-9]*\\).*/\\1/p' /proc/cmdline)
if [ -n "$dirty" ]; then
  mkdir -p /dirty
  mount -t tmpfs -o size=$((dirty + 2))m dirty /dirty
  dd if=/dev/urandom of=/dirty/seed bs=1M count=1 2>/dev/null
  while :; do
    i=0
    while [ "$i" -lt "$dirty" ]; do
      dd if=/dirty/seed of=/dirty/memory bs=1M seek="$i" conv=notrunc 2>/dev/null
      i=$((i + 1))
    done
    sleep 0.05
  done &
fi

n=1
while :; do
  # A disk has the number before the console: what is copied under a writer must still be whole.
  [ -b /dev/vda ] && echo "tick $n" | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null
  echo "tick $n"
  n=$((n + 1))
  sleep 0.25
done
"""

_CUSTOM = "\n".join((*PACKAGES, KERNEL, BUSYBOX, *MODULES, *MASKED, QEMU_CONF, SSHD_CONF,
                     HOST_KEYS_UNIT, POOL_XML, GUEST_INIT, Path(__file__).read_text()))  # fmt: skip


@dataclass(frozen=True)
class Image:
    """A finished build."""

    folder: Path

    @property
    def rootfs(self) -> Path:
        """The hosts' root: the lower layer of every overlay, never written to."""
        return self.folder / "rootfs"

    @property
    def guest(self) -> Path:
        """vmlinuz and initrd.img of the guests."""
        return self.folder / "guest"


def recipe() -> str:
    """The name of the build that this file describes: change the recipe, get another build."""
    return hashlib.sha256(_CUSTOM.encode()).hexdigest()[:16]


def cached() -> Image | None:
    """The finished build, if there is one; the rename at its end is what makes it finished."""
    image = Image(CACHE / recipe())
    return image if image.folder.is_dir() else None


def build() -> Image:
    """Build it beside its place, then rename: a killed build is never used."""
    CACHE.mkdir(parents=True, exist_ok=True)
    _remove_old_builds()
    temporary = CACHE / f"tmp-{recipe()}"
    temporary.mkdir(mode=0o755)
    started = time.monotonic()
    say("building the hosts' root file system (once, about a minute)")
    _build_rootfs(temporary)
    _build_guest(temporary)
    finished = Image(CACHE / recipe())
    temporary.rename(finished.folder)
    say(f"built {finished.folder} in {time.monotonic() - started:.0f} s")
    return finished


def _remove_old_builds() -> None:
    """Half-built ones, and those of other recipes that no host stands on."""
    mounted = Path("/proc/self/mountinfo").read_text()
    for folder in CACHE.iterdir():
        if str(folder) not in mounted:
            shutil.rmtree(folder, ignore_errors=True)


def _sources() -> str:
    """The machine's own Debian sources for the suite, to be handed over on standard input."""
    fields = "$(CREATED_BY)|$(ORIGIN)|$(REPO_URI)|$(CODENAME)|$(COMPONENT)|$(SIGNED_BY)"
    targets = run(["apt-get", "indextargets", "--format", fields]).stdout.splitlines()
    suites = {SUITE, f"{SUITE}-updates", f"{SUITE}-security"}
    lines = set()
    for target in targets:
        created_by, origin, uri, codename, component, signed_by = target.split("|")
        if created_by == "Packages" and origin == "Debian" and codename in suites:
            option = f"[signed-by={signed_by}] " if signed_by.startswith("/") else ""
            lines.add(f"deb {option}{uri} {codename} {component}")
    return "\n".join(sorted(lines)) + "\n" if lines else ""


def _build_rootfs(temporary: Path) -> None:
    root = temporary / "rootfs"
    log = temporary / "build.log"
    sources = _sources()
    options = [
        f"--aptopt={line.rstrip(';')}"
        for line in run(["apt-config", "dump"]).stdout.splitlines()
        if line.startswith(("Acquire::Check-", "Acquire::http", "Acquire::Retries"))
    ]
    run(
        # In namespaces of its own: if this process is killed, all of the build dies, mounts too.
        [
            "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
            "mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory",
            f"--include={','.join(PACKAGES)}", *options, "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            SUITE, root, *(["-"] if sources else []),
        ],
        stdin=sources, timeout=1800, log=log, tied=True,
        env=clean_environment(DEBIAN_FRONTEND="noninteractive"),
    )  # fmt: skip
    _customize(root)


def _customize(root: Path) -> None:
    """From a plain Debian to a lab host; what differs between hosts is written in host.py."""
    etc = root / "etc"
    for source in (etc / "apt/sources.list", *(etc / "apt/sources.list.d").glob("*")):
        source.unlink(missing_ok=True)  # hosts have no way out, and nothing to fetch
    for key in (etc / "ssh").glob("ssh_host_*"):
        key.unlink()
    for unit in MASKED:
        link = etc / "systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    with (etc / "libvirt/qemu.conf").open("a") as conf:
        conf.write(QEMU_CONF)
    (etc / "ssh/sshd_config.d").mkdir(exist_ok=True)
    (etc / "ssh/sshd_config.d/50-hostler-lab.conf").write_text(SSHD_CONF)
    (etc / "systemd/system/ssh-host-keys.service").write_text(HOST_KEYS_UNIT)
    wants = etc / "systemd/system/ssh.service.requires"
    wants.mkdir(exist_ok=True)
    (wants / "ssh-host-keys.service").symlink_to("../ssh-host-keys.service")
    # A pool, as on any real host: libvirt makes a copied disk at the destination through it.
    autostart = etc / "libvirt/storage/autostart"
    autostart.mkdir(parents=True, exist_ok=True)
    (etc / "libvirt/storage/default.xml").write_text(POOL_XML)
    (autostart / "default.xml").symlink_to("/etc/libvirt/storage/default.xml")
    names = [f"{host_address(n)} kvm-{n}" for n in range(1, MAX_HOSTS + 1)]
    hosts = ["127.0.0.1 localhost", "::1 localhost", f"{GATEWAY} lab", *names]
    (etc / "hosts").write_text("\n".join(hosts) + "\n")
    (etc / "resolv.conf").unlink(missing_ok=True)
    (etc / "resolv.conf").write_text("")
    (etc / "machine-id").write_text("")
    (root / "shared").mkdir(exist_ok=True)
    shutil.rmtree(root / "var/lib/apt/lists", ignore_errors=True)
    if not stat.S_ISCHR((root / "dev/null").stat().st_mode):
        raise LabError("the built root has no /dev/null")


def _build_guest(temporary: Path) -> None:
    packages = temporary / "packages"
    packages.mkdir()
    depends = run(["apt-cache", "depends", KERNEL]).stdout
    real = next(
        (ln.split()[-1] for ln in depends.splitlines() if "Depends: linux-image-" in ln), KERNEL
    )
    run(
        ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", real, BUSYBOX],
        cwd=packages, timeout=600, tied=True,
    )  # fmt: skip
    tree = temporary / "tree"
    for package in packages.glob("*.deb"):
        run(["dpkg-deb", "-x", package, tree], timeout=300)
    guest = temporary / "guest"
    guest.mkdir()
    shutil.copy(next((tree / "boot").glob("vmlinuz-*")), guest / "vmlinuz")
    release = next((tree / "boot").glob("vmlinuz-*")).name.removeprefix("vmlinuz-")
    modules = tree / "lib/modules" / release
    builtin = (modules / "modules.builtin").read_text()
    busybox = next(p for p in (tree / "bin/busybox", tree / "usr/bin/busybox") if p.exists())
    archive = _Cpio()
    for folder in ("bin", "dev", "modules", "proc", "sys"):
        archive.add(folder, b"", stat.S_IFDIR | 0o755)
    archive.add("bin/busybox", busybox.read_bytes(), stat.S_IFREG | 0o755)
    archive.add("init", GUEST_INIT.encode(), stat.S_IFREG | 0o755)
    for order, module in enumerate(MODULES):
        found = next(modules.rglob(f"{module}.ko"), None)
        if found is not None:
            archive.add(f"modules/{order}-{module}.ko", found.read_bytes(), stat.S_IFREG | 0o644)
        elif f"/{module}.ko" not in builtin:
            raise LabError(f"kernel {release} has no module {module}")
    archive.device("dev/console", 5, 1)
    (guest / "initrd.img").write_bytes(archive.finish())
    for leftover in (packages, tree):
        shutil.rmtree(leftover)


class _Cpio:
    """A 'newc' archive, the form of an initramfs: too little to ask for the cpio program."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0

    def add(self, name: str, body: bytes, mode: int, device: tuple[int, int] = (0, 0)) -> None:
        """Append one entry; its parents must have been added before."""
        self._inode += 1
        path = name.encode() + b"\0"
        numbers = (self._inode, mode, 0, 0, 1, 0, len(body), 0, 0, *device, len(path), 0)
        self._data += b"070701" + b"".join(b"%08X" % n for n in numbers) + path
        self._pad()
        self._data += body
        self._pad()

    def device(self, name: str, major: int, minor: int) -> None:
        """Append a character device."""
        self.add(name, b"", stat.S_IFCHR | 0o600, (major, minor))

    def finish(self) -> bytes:
        """The whole archive."""
        self.add("TRAILER!!!", b"", 0)
        return bytes(self._data)

    def _pad(self) -> None:
        self._data += b"\0" * (-len(self._data) % 4)


def update_package_lists() -> None:
    """apt-get update; another one may be running at the same time."""
    for attempt in range(60):
        done = run(["apt-get", "update", "-q"], check=False, timeout=900)
        if done.returncode == 0:
            return
        if "Could not get lock" not in done.stderr or attempt == 59:
            raise LabError(f"apt-get update failed: {done.stderr.strip().splitlines()[-1]}")
        time.sleep(3)


def install(packages: list[str]) -> None:
    """Install on this machine what the lab needs to run."""
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends",
               "-o", "DPkg::Lock::Timeout=600", *packages]  # fmt: skip
    # Not tied to this process: a package manager killed half-way leaves a broken machine.
    run(command, timeout=1800, env=clean_environment(DEBIAN_FRONTEND="noninteractive"))
