#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Start predict_custom.py once per device, wait for all of them, and fail when one fails.
#   bash run_predict.sh RANK_TABLE_FILE CHECKPOINT_PATH YAML_FILE MODEL_TYPE RANK_SIZE START_RANK [SCRIPT]
# Device START_RANK + n runs rank n; its output goes to mindformers_n.log in the current folder. SCRIPT is another script
# with the same arguments, such as predict_custom_pipeline.py. PYTHON names the interpreter.
set -euo pipefail

if [ $# -lt 6 ] || [ $# -gt 7 ]; then
    echo "usage: bash run_predict.sh RANK_TABLE_FILE CHECKPOINT_PATH YAML_FILE MODEL_TYPE RANK_SIZE START_RANK [SCRIPT]" >&2
    exit 2
fi
script="${7:-$(dirname "${BASH_SOURCE[0]}")/predict_custom.py}"
for file in "$1" "$2" "$3" "$script"; do
    [ -e "$file" ] || { echo "error: $file: no such file or folder" >&2 && exit 2; }
done
for number in "$5" "$6"; do
    case "$number" in
    '' | *[!0-9]*) echo "error: RANK_SIZE and START_RANK are whole numbers, got '$number'" >&2 && exit 2 ;;
    esac
done
[ "$5" -gt 0 ] || { echo "error: RANK_SIZE is at least 1" >&2 && exit 2; }

RANK_TABLE_FILE="$(cd "$(dirname "$1")" && pwd)/$(basename "$1")"
export RANK_TABLE_FILE RANK_SIZE="$5"
pids=()
stop() {
    [ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null || true
}
trap 'stop; exit 130' INT TERM

for ((rank = 0; rank < RANK_SIZE; rank++)); do
    device=$(($6 + rank))
    echo "rank $rank on device $device: mindformers_$rank.log"
    RANK_ID=$rank DEVICE_ID=$device "${PYTHON:-python3}" "$script" \
        --checkpoint_path "$2" --yaml_file "$3" --model_type "$4" >"mindformers_$rank.log" 2>&1 &
    pids+=($!)
done

failed=0
for ((rank = 0; rank < RANK_SIZE; rank++)); do
    code=0
    wait "${pids[rank]}" || code=$?
    if [ $code -ne 0 ]; then
        echo "error: rank $rank ended with exit code $code; the end of mindformers_$rank.log:" >&2
        tail -n 15 "mindformers_$rank.log" >&2
        [ $failed -ne 0 ] || failed=$code
        [ "$RANK_SIZE" -eq 1 ] || stop # the others would wait for it for ever
    fi
done
exit $failed
