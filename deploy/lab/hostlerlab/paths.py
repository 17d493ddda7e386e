"""Where everything of the lab lies, and how it is named."""

from pathlib import Path

LAB_DIR = Path(__file__).resolve().parent.parent
LAB_PROGRAM = LAB_DIR / "lab"
CHECKOUT = LAB_DIR.parent.parent

# What people and scripts read: passwords, logs, consoles. Belongs to the checkout.
STATE = LAB_DIR / ".state"
CONSOLES = STATE / "consoles"

# What the machine runs: mounts, pid records. Exists once, whatever the number of checkouts.
RUN = Path("/run/hostler-lab")
OWNER = RUN / "owner"
BMC = RUN / "bmc"
LOCK = Path("/run/hostler-lab.lock")
CACHE = Path("/var/cache/hostler-lab")

BRIDGE = "hostler0"
NETWORK = "198.18.0"  # of 198.18.0.0/15, set aside for tests of networks: nobody's address
BMC_NETWORK = "198.18.1"
GATEWAY = f"{NETWORK}.1"
MAX_HOSTS = 99

CGROUP = "hostler-lab"
LINK_PREFIX = "hl-"
NETNS_PREFIX = "hostler-"
NETNS_DIR = Path("/run/netns")
NSPAWN_DIR = Path("/run/systemd/nspawn")


def host_number(name: str) -> int:
    """The N of kvm-N, or ValueError."""
    prefix, _, digits = name.partition("-")
    valid = prefix == "kvm" and digits.isdecimal() and str(int(digits)) == digits
    if not valid or not 1 <= int(digits) <= MAX_HOSTS:
        raise ValueError(f"{name} is no lab host: they are kvm-1 to kvm-{MAX_HOSTS}")
    return int(digits)


def host_address(number: int) -> str:
    """kvm-1 is 198.18.0.11, and so on."""
    return f"{NETWORK}.{10 + number}"


def bmc_address(number: int) -> str:
    """The BMC of kvm-1 is 198.18.1.11, and so on."""
    return f"{BMC_NETWORK}.{10 + number}"
