# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# The virtual environment of quickstart.sh and test.sh. Source it, then call:  mf_environment EXTRAS
# It sets MF_PYTHON, the interpreter to use. Settings:
#   MINDFORMERS_PYTHON  an interpreter that has everything already; nothing is made or installed
#   MINDFORMERS_VENV    where the environment lives (default: .venv in the repository)
#   PYTHON              the interpreter to make it from (default: the first fit one of python3.11, 3.12, 3.10 ...)

MF_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

mf_say() { printf '%s\n' "$*"; }

mf_die() {
    printf 'error: %s\n' "$1" >&2
    exit "${2:-1}"
}

mf_is_fit() { # COMMAND: is it a Python 3.10-3.12 that can make virtual environments?
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

mf_find_base_python() { # sets MF_BASE
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        mf_is_fit "$PYTHON" || mf_die "PYTHON=$PYTHON is not a Python 3.10, 3.11 or 3.12 with the modules venv and ensurepip"
        MF_BASE="$PYTHON"
        return
    fi
    for candidate in python3.11 python3.12 python3.10 python3 python; do
        if mf_is_fit "$candidate"; then
            MF_BASE="$candidate"
            return
        fi
    done
    mf_die "no Python 3.10, 3.11 or 3.12 with venv and ensurepip was found (MindSpore 2.10 has no build for others).
Install one (Debian and Ubuntu: apt install python3.11 python3.11-venv; macOS: brew install python@3.11; or conda, pyenv, uv),
or name one that is not on PATH:  PYTHON=/path/to/python3.11 bash scripts/quickstart.sh"
}

mf_stamp() { # INTERPRETER EXTRAS: a text that changes when the environment has to be installed again
    "$1" - "$MF_ROOT" "$2" <<'PY'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
digest = hashlib.sha256(repr((sys.argv[1:], sys.version_info[:3])).encode())
for name in ("setup.py", "pyproject.toml", "mindformers/version.py"):
    digest.update((root / name).read_bytes())
print(digest.hexdigest())
PY
}

mf_show_progress() { # LOG: append stdin to LOG; on a terminal, show the line pip is at
    local line
    while IFS= read -r line; do
        printf '%s\n' "$line" >>"$1"
        [ ! -t 1 ] || printf '\r\033[K  %.100s' "$line"
    done
    [ ! -t 1 ] || printf '\r\033[K'
}

mf_install() { # VENV EXTRAS
    local log="$1/install.log" started=$SECONDS
    mf_say "Installing mindformers[$2] into $1 (the first time downloads about 1 GB; log: $log)"
    : >"$log"
    # --use-pep517: fschat needs wavedrom, which exists as source only; pip before 25.3 builds it the old way when the
    # environment has the package wheel, and that way misses a dependency of its build tools.
    if ! PIP_USER=0 "$1/bin/python" -m pip install --disable-pip-version-check --progress-bar off --use-pep517 \
        -e "${MF_ROOT}[$2]" 2>&1 | mf_show_progress "$log"; then
        tail -n 15 "$log" | sed 's/^/  pip: /' >&2
        mf_die "the installation failed; everything pip said is in $log. Run the same command again to go on."
    fi
    mf_say "Installed in $((SECONDS - started)) s"
}

mf_environment() { # EXTRAS [rebuild]: make, complete or reuse the environment; sets MF_PYTHON
    local extras="$1" venv="${MINDFORMERS_VENV:-$MF_ROOT/.venv}" stamp
    if [ -n "${MINDFORMERS_PYTHON:-}" ]; then
        mf_is_fit "$MINDFORMERS_PYTHON" || mf_die "MINDFORMERS_PYTHON=$MINDFORMERS_PYTHON is not a Python 3.10, 3.11 or 3.12"
        MF_PYTHON="$MINDFORMERS_PYTHON"
        # Not installed there, perhaps: commands that are files in a folder of the package must still find it.
        export PYTHONPATH="$MF_ROOT${PYTHONPATH:+:$PYTHONPATH}"
        return
    fi
    case "$venv" in /*) ;; *) venv="$MF_ROOT/$venv" ;; esac
    if [ -d "$venv" ] && [ ! -f "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
        mf_die "$venv is a folder with other things in it, not a virtual environment; name another place" 2
    fi
    if [ "${2:-}" = rebuild ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        mf_find_base_python
        mf_say "Making a virtual environment in $venv with $("$MF_BASE" --version)"
        "$MF_BASE" -m venv --clear "$venv" || mf_die "$MF_BASE could not make a virtual environment in $venv"
    fi
    MF_PYTHON="$venv/bin/python"
    stamp="$(mf_stamp "$MF_PYTHON" "$extras")"
    if [ "$(cat "$venv/.stamp-$extras" 2>/dev/null)" != "$stamp" ]; then
        mf_install "$venv" "$extras"
        printf '%s\n' "$stamp" >"$venv/.stamp-$extras"
    fi
}
