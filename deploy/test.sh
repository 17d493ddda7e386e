#!/usr/bin/env bash
# Installs what is missing, runs every check and every test, cleans up. Arguments go to pytest;
# --matrix instead runs all of the fault matrix (about one and a half hours), writes docs/fault-matrix.md, kills a worker at
# each step of the other operations, before its effect and after, and runs all of docs/password-matrix.md.
set -euo pipefail
# shellcheck source=deploy/install.sh
source "$(dirname "$0")/install.sh"

require_debian_root
cd "$REPO"
forget_settings
install_packages "${BUILD_PACKAGES[@]}" curl git ipmitool openipmi postgresql shellcheck sshpass sudo
install_python requirements-dev.lock
export PATH="$VENV/bin:$PATH"

say "Checks"
ruff format --check .
ruff check .
lint-imports --no-cache
mypy
mypy deploy/demo.py deploy/lab/simulated_bmcs.py
MYPYPATH=deploy/lab mypy -p hostlerlab
shellcheck -x deploy/quickstart.sh deploy/test.sh deploy/lab/chassis .ci/run

without_lab=
# shellcheck disable=SC2317 # called by the trap
at_the_end() {
    [[ -z $without_lab ]] || kill "$without_lab" 2>/dev/null || true
    deploy/lab/lab down >/dev/null 2>&1 || true
}
trap at_the_end EXIT
say "What a newcomer runs first"
deploy/quickstart.sh --once
say "Lab"
deploy/lab/lab down
deploy/lab/lab up

say "Tests"
if [[ ${1:-} == --matrix ]]; then
    set -- tests/matrix tests/e2e tests/simulation -k "test_matrix or killed_at_each_step or test_rotation_matrix" "$@"
fi
if [[ $# -gt 0 ]]; then
    pytest --cov --cov-report=term "$@"
    exit
fi

# Those that work on the lab mostly wait: the others run beside them.
output=$(mktemp)
COVERAGE_FILE=.coverage.without-lab nice -n 10 pytest -m "not lab" --cov --cov-report= >"$output" 2>&1 &
without_lab=$!
failed=0
COVERAGE_FILE=.coverage.lab pytest -m lab --cov --cov-report= || failed=$?
say "Tests without the lab"
wait "$without_lab" || failed=$?
without_lab=
cat "$output"
rm "$output"
coverage combine --quiet .coverage.lab .coverage.without-lab
coverage report
exit "$failed"
