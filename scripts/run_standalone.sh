#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run on one device, watched over and logged as run_distribute.sh does; usage: bash run_standalone.sh --help
#   bash run_standalone.sh CONFIG DEVICE_ID MODE [PREDICT_DATA] [options]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/python.sh"
exec "$MF_PYTHON" -m mindformers.launch standalone "$@"
