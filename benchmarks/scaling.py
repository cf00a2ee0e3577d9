# SPDX-License-Identifier: Apache-2.0
"""Training over two ranks beside one process with the same global batch, on this machine's cores.

``python benchmarks/scaling.py [--steps 30] [--rounds 3] [--quick] [--json out.jsonl]``

The model of size T (``benchmarks/common.py``) is trained on random records through the real launcher: in one process,
which uses all cores; with data_parallel 2 and half the batch each; with model_parallel 2 and the whole batch. A round
is one run of each, one after the other; the time of a run is the median of its steps without the first five.
``speedup`` is that of one process over that of the layout within a round: least, median and greatest of the rounds.
Below 1 the messages cost more than the second process gains: one process uses both cores already. How fast checkpoints
are cut and joined, beside copying them: ``benchmarks/reshard.py``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import MODELS, REPO, emit, spread

WARM = 5
# name -> (ranks, share of the batch a rank is given, flags)
LAYOUTS = {
    "one": (1, 1, []),
    "dp2": (2, 2, ["--parallel_config.data_parallel", "2"]),
    "mp2": (2, 1, ["--parallel_config.model_parallel", "2"]),
}


def write_records(path: Path, count: int, length: int, vocabulary: int) -> None:
    """Random records of ``length`` ids."""
    from mindformers.dataset.mindrecord import MindRecordWriter

    writer = MindRecordWriter(path, {"input_ids": length})
    writer.write(input_ids=np.random.default_rng(0).integers(3, vocabulary, (count, length)).astype(np.int32))
    writer.close()


def flags_of(size: dict[str, int], share: int) -> list[str]:
    """The flags that make a model of a size out of the tiny config."""
    model = {
        "hidden_size": size["hidden"], "intermediate_size": size["ffn"], "num_layers": size["layers"],
        "num_heads": size["heads"], "n_kv_heads": size["kv_heads"], "vocab_size": size["vocab"],
        "seq_length": size["seq"], "pretrain_seqlen": size["seq"], "max_decode_length": size["seq"],
    }  # fmt: skip
    words = [word for key, value in model.items() for word in (f"--model.model_config.{key}", str(value))]
    words += ["--epochs", "1", "--batch_size", str(size["batch"] // share), "--do_eval", "False"]
    return [*words, "--callbacks.MFLossMonitor.per_print_times", "1"]


def step_seconds(name: str, size: dict[str, int], records: Path, folder: Path) -> float:
    """Median step of one run of a layout."""
    ranks, share, extra = LAYOUTS[name]
    output = folder / name
    words = [*flags_of(size, share), *extra, "--train_dataset_dir", str(records), "--output_dir", str(output)]
    config = str(REPO / "configs/llama2/run_llama2_tiny.yaml")
    if ranks == 1:
        head = ["standalone", config, "0", "train"]
    else:
        head = ["distribute", str(folder / "table.json"), config, f"[0,{ranks}]", "train", "--port", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "mindformers.launch", *head, *words], env=os.environ | {"PYTHONPATH": str(REPO)},
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{name}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    (output / "metrics.jsonl").unlink()
    return statistics.median(json.loads(line)["step_seconds"] for line in lines[WARM:])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="of each run, more than 5")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of 10 steps")
    parser.add_argument("--json", help="append the record to this file")
    args = parser.parse_args()
    steps, rounds = (10, 1) if args.quick else (args.steps, args.rounds)
    if steps <= WARM or rounds < 1:
        parser.error(f"more than {WARM} steps and at least one round are needed")
    size = MODELS["T"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_records(folder / "train.mindrecord", steps * size["batch"], size["seq"] + 1, size["vocab"])
        table = [sys.executable, str(REPO / "mindformers/tools/hccl_tools.py"), "--device_num", "[0,2)", "--cpu"]
        subprocess.run([*table, "--output", str(folder / "table.json")], check=True, stdout=subprocess.DEVNULL)
        found = [
            {layout: step_seconds(layout, size, folder / "train.mindrecord", folder) for layout in LAYOUTS}
            for _ in range(rounds)
        ]
    record: dict = {"benchmark": "scaling", "model": "T", "batch": size["batch"], "steps": steps, "rounds": rounds,
                    "cores": len(os.sched_getaffinity(0))}  # fmt: skip
    for layout in LAYOUTS:
        record[f"{layout}_step_s"] = spread([item[layout] for item in found])
        if layout != "one":
            record[f"{layout}_speedup"] = spread([item["one"] / item[layout] for item in found])
    emit(record, args.json)


if __name__ == "__main__":
    main()
