# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Source it: sets MF_PYTHON, the interpreter of the launch scripts, and makes this checkout importable. In order:
# MINDFORMERS_PYTHON, the active virtual or conda environment, .venv of the checkout, python on PATH.

MF_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [ -n "${MINDFORMERS_PYTHON:-}" ]; then
    MF_PYTHON="$MINDFORMERS_PYTHON"
elif [ -n "${VIRTUAL_ENV:-${CONDA_PREFIX:-}}" ]; then
    MF_PYTHON="${VIRTUAL_ENV:-$CONDA_PREFIX}/bin/python"
elif [ -x "$MF_ROOT/.venv/bin/python" ]; then
    MF_PYTHON="$MF_ROOT/.venv/bin/python"
else
    MF_PYTHON="$(command -v python || command -v python3 || true)"
fi
if ! command -v "$MF_PYTHON" >/dev/null 2>&1; then
    printf 'error: no Python interpreter (%s); name one: MINDFORMERS_PYTHON=/path/to/python\n' "${MF_PYTHON:-none on PATH}" >&2
    exit 2
fi
export PYTHONPATH="$MF_ROOT${PYTHONPATH:+:$PYTHONPATH}"
ulimit -u unlimited 2>/dev/null || true # one rank of an NPU job compiles with many processes
