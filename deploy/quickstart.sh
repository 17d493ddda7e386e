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
export HOSTLER_HOME=${HOSTLER_HOME:-$REPO/deploy/.state/quickstart}
lab=$REPO/deploy/lab/lab
pid_file=$HOSTLER_HOME/up.pid

# The process whose id the file holds, if it still is `hostler up`.
running_pid() {
    local pid
    pid=$(cat "$pid_file" 2>/dev/null) || return 1
    tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q 'hostler up' && echo "$pid"
}

take_down() {
    local pid
    if pid=$(running_pid); then
        kill -TERM "$pid" 2>/dev/null || true
        for _ in $(seq 300); do
            [ -d "/proc/$pid" ] || break
            sleep 0.1
        done
        [ ! -d "/proc/$pid" ] || kill -KILL "$pid" 2>/dev/null || true
    fi
    rm -f "$pid_file"
    "$lab" down
    case "$HOSTLER_HOME" in "$REPO/deploy/.state/"*) rm -rf "$REPO/deploy/.state" ;; esac
}

if [ "$mode" = --down ]; then
    take_down
    echo "Everything is down."
    exit 0
fi

install_packages "${BUILD_PACKAGES[@]}"
install_python requirements.lock
export PATH="$VENV/bin:$PATH"

# From here on a failure or Ctrl-C cleans up too; --keep disarms it at the end.
trap take_down EXIT
trap 'exit 130' INT TERM

say "The lab: three hosts with their own systemd, sshd and libvirtd"
# Hosts remember the Hostler that had them: a new inventory starts with new hosts.
[ -f "$HOSTLER_HOME/inventory.db" ] || "$lab" down
"$lab" up

say "Hostler: Temporal, inventory, worker and API in one process"
(umask 077 && mkdir -p "$HOSTLER_HOME")
if ! running_pid >/dev/null; then
    setsid hostler up >"$HOSTLER_HOME/up.log" 2>&1 </dev/null &
    echo $! >"$pid_file"
fi
python deploy/demo.py "$HOSTLER_HOME"

cat <<TEXT

Temporal's Web UI   http://127.0.0.1:8233/namespaces/default/workflows
Hostler's API       http://127.0.0.1:8480/docs   (token: $HOSTLER_HOME/admin-token)
The command         export HOSTLER_HOME=$HOSTLER_HOME PATH=$VENV/bin:\$PATH
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
