#!/usr/bin/env bash
# Installs what is missing, runs every check and every test, cleans up. Arguments go to pytest;
# --matrix instead runs all of the fault matrix (about one and a half hours), writes docs/fault-matrix.md, kills a worker at
# each step of the other operations, before its effect and after, terminates them there, and runs all of
# docs/password-matrix.md.
set -euo pipefail
# shellcheck source=deploy/install.sh
source "$(dirname "$0")/install.sh"

require_debian_root
cd "$REPO"
forget_settings
# Where it is set, each of some hundred processes compiles all of Hostler again.
unset PYTHONDONTWRITEBYTECODE
install_packages "${BUILD_PACKAGES[@]}" curl git ipmitool openipmi postgresql shellcheck sshpass sudo
# Both, since the quickstart would change the environment under the tests that run beside it.
install_python requirements.lock
install_python requirements-dev.lock
export PATH="$VENV/bin:$PATH"

# shellcheck disable=SC2317 # called by `begin`
check() {
    ruff format --check .
    ruff check .
    lint-imports --no-cache
    mypy
    MYPYPATH=deploy/bench mypy deploy/demo.py deploy/lab/simulated_bmcs.py deploy/bench/_*.py
    shellcheck -x deploy/quickstart.sh deploy/test.sh deploy/lab/apart deploy/lab/chassis .ci/run
}

outputs=$(mktemp -d)
declare -A beside
# begin NAME COMMAND...: beside what follows.
begin() {
    "${@:2}" >"$outputs/$1" 2>&1 &
    beside[$1]=$!
}
# end NAME...: what they have written; fails if one of them did.
end() {
    local name failed=0
    for name in "$@"; do
        wait "${beside[$name]}" || failed=1
        unset "beside[$name]"
        say "$name"
        cat "$outputs/$name"
    done
    return "$failed"
}
# shellcheck disable=SC2317 # called by the trap
at_the_end() {
    local pid
    for pid in "${beside[@]}"; do kill "$pid" 2>/dev/null || true; done
    rm -rf "$outputs"
    deploy/lab/lab down >/dev/null 2>&1 || true
}
trap at_the_end EXIT
# On labs of their own, side by side: what works on a lab mostly waits. FILES of pytest.
on_a_lab() {
    exec deploy/lab/apart bash -c 'deploy/lab/lab up && exec pytest -m lab "$@"' pytest "$@"
}
# The first lab's; whatever else is marked `lab` is the second one's.
FIRST=(tests/activities tests/deploy tests/matrix tests/e2e/test_[a-h]*.py)
# Those of workflows mostly wait too: all others run beside them.
LAB="Tests on a second lab" WORKFLOWS="Tests of workflows" OTHERS="Tests of all else without the lab" CHECKS="Checks"
if [[ $# -eq 0 ]]; then
    begin "$WORKFLOWS" nice -n 10 pytest -m "not lab" tests/workflows
    begin "$OTHERS" nice -n 10 pytest -m "not lab" --ignore tests/workflows
fi
say "What a newcomer runs first, and checks beside it"
begin "$CHECKS" check
deploy/quickstart.sh --once
end "$CHECKS"
deploy/lab/lab down

if [[ ${1:-} == --matrix ]]; then
    set -- tests/matrix tests/e2e tests/simulation tests/workflows -k "test_matrix or killed_at_each_step or terminated or test_rotation_matrix" "$@"
fi
if [[ $# -gt 0 ]]; then
    deploy/lab/lab up
    say "Tests"
    pytest "$@"
    exit
fi

begin "$LAB" on_a_lab "${FIRST[@]/#/--ignore=}"
say "Tests on a lab"
failed=0
(on_a_lab "${FIRST[@]}") || failed=$?
end "$LAB" "$WORKFLOWS" "$OTHERS" || failed=$?
exit "$failed"
