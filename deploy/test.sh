#!/usr/bin/env bash
# Installs what is missing, runs every check and every test, cleans up. Arguments go to pytest;
# --matrix instead runs all of the fault matrix (about one and a half hours) and writes docs/fault-matrix.md.
set -euo pipefail
# shellcheck source=deploy/install.sh
source "$(dirname "$0")/install.sh"

require_debian_root
cd "$REPO"
forget_settings
install_packages "${BUILD_PACKAGES[@]}" curl git ipmitool openipmi postgresql shellcheck
install_python requirements-dev.lock
export PATH="$VENV/bin:$PATH"

say "Checks"
ruff format --check .
ruff check .
lint-imports --no-cache
mypy
mypy deploy/demo.py deploy/lab/simulated_bmcs.py
MYPYPATH=deploy/lab mypy -p hostlerlab
shellcheck -x deploy/quickstart.sh deploy/test.sh .ci/run

trap 'deploy/lab/lab down >/dev/null 2>&1 || true' EXIT
say "What a newcomer runs first"
deploy/quickstart.sh --once
say "Lab"
deploy/lab/lab down
deploy/lab/lab up

say "Tests"
if [[ ${1:-} == --matrix ]]; then
    set -- tests/matrix "$@"
fi
pytest --cov --cov-report=term "$@"
