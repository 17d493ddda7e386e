#!/usr/bin/env bash
# Hostler's main job on real hosts, from nothing: a host goes into maintenance, its VMs move away
# live, it is ready to be worked on, and comes back.
#
#   deploy/quickstart.sh          runs it, then stays in the foreground until Ctrl-C
#   deploy/quickstart.sh --once   runs it, then leaves nothing behind
#   deploy/quickstart.sh --keep   runs it, then leaves everything running in the background
#   deploy/quickstart.sh --down   takes down what --keep left
set -euo pipefail
# shellcheck source=deploy/install.sh
source "$(dirname "$0")/install.sh"

mode=${1:-}
[ $# -le 1 ] || mode=usage
case "$mode" in
    "" | --once | --keep | --down) ;;
    *)
        sed -n '5,8s/^# *//p' "$0" >&2
        exit 2
        ;;
esac

require_debian_root
cd "$REPO"
# A Hostler of its own: settings of the operator's shell may name one in production.
forget_settings
export HOSTLER_HOME=$REPO/deploy/.state/quickstart
lab=$REPO/deploy/lab/lab
pid_file=$HOSTLER_HOME/up.pid

# The process whose id the file holds, if it still is `hostler up`.
running_pid() {
    local pid
    pid=$(cat "$pid_file" 2>/dev/null) || return 1
    tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q 'hostler up' && echo "$pid"
}

take_down() {
    trap '' INT TERM HUP
    local pid
    if pid=$(running_pid); then
        say "Taking Hostler down"
        kill -TERM "$pid" 2>/dev/null || true
        for _ in $(seq 600); do
            [ -d "/proc/$pid" ] || break
            sleep 0.1
        done
        [ ! -d "/proc/$pid" ] || kill -KILL "$pid" 2>/dev/null || true
    fi
    "$lab" down
    rm -rf "$REPO/deploy/.state"
}

if [ "$mode" = --down ]; then
    take_down
    echo "Everything is down."
    exit 0
fi

exec 9>/run/lock/hostler-quickstart
flock -n 9 || die "another quickstart is at it: wait for it, or end it."

install_packages "${BUILD_PACKAGES[@]}" curl
install_python requirements.lock
export PATH="$VENV/bin:$PATH"

# From here on a failure or Ctrl-C cleans up too; --keep disarms it at the end.
trap take_down EXIT
trap 'exit 130' INT TERM HUP

say "The lab: three hosts with their own systemd, sshd and libvirtd"
# Hosts and inventory know each other: neither goes on without the other.
if ! { running_pid && "$lab" status --json | grep -q '"state": "running"'; } >/dev/null 2>&1; then
    take_down
    trap 'exit 130' INT TERM HUP
fi
"$lab" up 9>&-

say "Hostler: Temporal, inventory, worker and API in one process"
(umask 077 && mkdir -p "$HOSTLER_HOME")
if ! running_pid >/dev/null; then
    setsid hostler up >"$HOSTLER_HOME/up.log" 2>&1 </dev/null 9>&- &
    echo $! >"$pid_file"
fi
python deploy/demo.py "$HOSTLER_HOME"

cat <<TEXT

Temporal's Web UI   http://127.0.0.1:8233/namespaces/default/workflows
Hostler's API       http://127.0.0.1:8480/docs   (token: $HOSTLER_HOME/admin-token)
The command         export HOSTLER_HOME='$HOSTLER_HOME' PATH='$VENV/bin':\$PATH
                    hostler maintenance enter kvm-1 --watch
TEXT

case "$mode" in
    --keep)
        trap - EXIT
        echo "It all runs on in the background. deploy/quickstart.sh --down takes it down."
        ;;
    --once) ;;
    *)
        echo "Ctrl-C takes everything down."
        while running_pid >/dev/null; do sleep 1; done
        die "hostler up has ended: see $HOSTLER_HOME/up.log"
        ;;
esac
