#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run one process per device of this server; usage: bash run_distribute.sh --help
#   bash run_distribute.sh RANK_TABLE CONFIG [FIRST,END] MODE [RANK_SIZE] [PREDICT_DATA] [options]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/python.sh"
exec "$MF_PYTHON" -m mindformers.launch distribute "$@"
