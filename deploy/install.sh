# shellcheck shell=bash
# Sourced by quickstart.sh and test.sh: brings the machine and the virtual environment up to the
# lock file. Does nothing where nothing is missing.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV="$REPO/.venv"
BUILD_PACKAGES=(gcc libvirt-dev pkg-config python3 python3-dev python3-venv)

# Plain `su` keeps a user's PATH, without the programs of the system.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

die() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

require_debian_root() {
    [ "$(id -u)" = 0 ] || die "must run as root: it builds network namespaces and containers."
    [ -r /etc/debian_version ] || die "needs Debian 12 (bookworm); this machine has no /etc/debian_version."
}

# forget_settings: those of Hostler that the caller's shell exports.
forget_settings() {
    local name
    for name in "${!HOSTLER_@}"; do unset "$name"; done
}

# install_packages NAME...: those that are missing, by apt.
install_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "Installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# install_python LOCK: the virtual environment, as LOCK says, and Hostler itself in place.
install_python() {
    local lock="$REPO/$1" stamp="$VENV/.installed-$1" made_for="$VENV/.made-for"
    local wanted
    wanted=$(cat "$lock" "$REPO/pyproject.toml" | sha256sum)
    # One that was moved here, or was never finished, is of no use: its programs name other paths.
    if [ "$(cat "$made_for" 2>/dev/null)" != "$REPO" ]; then
        # Not whichever python3 comes first in PATH: libvirt-python is built against Debian's headers.
        /usr/bin/python3 -m venv --clear "$VENV"
        printf '%s\n' "$REPO" >"$made_for"
    fi
    [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || return 0
    say "Installing Python packages from $1"
    "$VENV/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$lock"
    # The build backend comes from the lock file too, so nothing is fetched beside it.
    "$VENV/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e "$REPO"
    printf '%s' "$wanted" >"$stamp"
}
