#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Style checks, then pytest, in the environment of quickstart.sh plus the test extras.
#   bash scripts/test.sh [PYTEST ARGUMENTS]      default: tests
# Files of tests are spread over three processes, those of the longest folders first (most of their time is single-threaded compiling, or waiting for processes of their own); -n 0 turns that off.
# MINDFORMERS_EXTRAS=unit installs without torch and transformers (their parity tests then skip).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

cd "$MF_ROOT"
mf_environment "${MINDFORMERS_EXTRAS:-test}"
[ $# -gt 0 ] || set -- tests
export HF_HUB_OFFLINE=1 # no test needs the network: a try to use it must fail at once

failed=""
step() { # NAME COMMAND...: run it, remember its name if it fails
    local name="$1"
    shift
    mf_say "== $name"
    "$@" || failed="$failed $name"
}

step ruff-check "$MF_PYTHON" -m ruff check .
step ruff-format "$MF_PYTHON" -m ruff format --check .
step codespell "$MF_PYTHON" -m codespell_lib .
step pytest "$MF_PYTHON" -m pytest --timeout 1500 -n 3 --dist loadfile --no-loadscope-reorder "$@"

[ -z "$failed" ] || mf_die "failed:$failed"
mf_say "all checks passed in $SECONDS s"
