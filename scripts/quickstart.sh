#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From nothing to a trained small Llama 2 on this machine's CPU: environment, install, train, evaluate, generate.
#   bash scripts/quickstart.sh [--fresh] [--reinstall] [--venv DIR]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

usage() {
    cat <<'TEXT'
usage: bash scripts/quickstart.sh [--fresh] [--reinstall] [--venv DIR]

  --fresh       throw away quickstart/ and output/quickstart/ and run every step again
  --reinstall   make the virtual environment anew
  --venv DIR    where the environment lives (default: .venv in the repository; also MINDFORMERS_VENV)

Without options, steps that are finished and whose inputs did not change are kept.
MINDFORMERS_PYTHON=/path/to/python uses an interpreter that has everything installed, and makes no environment.
TEXT
}

rebuild=""
fresh=""
while [ $# -gt 0 ]; do
    case "$1" in
    --fresh) fresh="--fresh" ;;
    --reinstall) rebuild="rebuild" ;;
    --venv)
        [ $# -ge 2 ] || mf_die "--venv needs a folder" 2
        case "$2" in /*) MINDFORMERS_VENV="$2" ;; *) MINDFORMERS_VENV="$PWD/$2" ;; esac
        shift
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        usage >&2
        mf_die "unknown option: $1" 2
        ;;
    esac
    shift
done

cd "$MF_ROOT"
mf_environment quickstart "$rebuild"
# The commands shown by quickstart.py start with "python": let that be this interpreter when they are typed by it.
exec "$MF_PYTHON" scripts/quickstart.py ${fresh:+"$fresh"}
