# SPDX-License-Identifier: Apache-2.0
"""How time and memory grow with layers, sequence length, batch, vocabulary and the size of the text.

``python benchmarks/scaling_laws.py [--laws layers sequence ...] [--picture FILE] [--json out.jsonl]``

Training steps (plain operators, fp32, AdamW) of a small model of which one number is changed, every point in a
process of its own; ``text`` is the command that makes records of a text, with 10, 30 and 100 MB, and the sizes of
``--megabytes``. For each law the exponent of a cost is fitted over its larger half, where what is constant no longer
counts: seconds of a step, of the first step (compilation), and memory beyond the imports. Exponents up to 1 are linear
growth or less; for the length of a sequence attention itself is quadratic. ``worse`` names what grows faster than
LIMIT says.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import REPO, emit, peak_memory_mb

BASE = {"layers": 4, "sequence": 256, "batch": 2, "vocabulary": 4000}
POINTS = {
    "layers": [2, 4, 8, 16, 32],
    "sequence": [128, 256, 512, 1024, 2048, 4096],
    "batch": [1, 2, 4, 8, 16, 32],
    "vocabulary": [1000, 4000, 16000, 64000],
    "text": [10, 30, 100],
}
COSTS = ("step_s", "first_step_s", "memory_mb")
LIMIT = {"sequence": 2.1}  # of an exponent; 1.2 for the others
WARM_UP, STEPS = 1, 3


def train_point(sizes: dict[str, int]) -> dict[str, float]:
    """Worker: cost of one training step of a small model."""
    import mindspore as ms

    from benchmarks.common import our_config
    from mindformers.core.context import init_context
    from mindformers.core.optim import AdamW
    from mindformers.core.param_groups import group_parameters
    from mindformers.models.llama.llama import LlamaForCausalLM
    from mindformers.wrapper import MFTrainOneStepCell

    init_context(context_config={"device_target": "CPU", "native_kernels": False})
    before = peak_memory_mb()
    length = sizes["sequence"]
    network = LlamaForCausalLM(
        our_config(
            "T", hidden_size=128, intermediate_size=352, num_heads=4, n_kv_heads=4, num_layers=sizes["layers"],
            seq_length=length, pretrain_seqlen=length, vocab_size=sizes["vocabulary"],
        )
    ).set_train()  # fmt: skip
    optimizer = AdamW(group_parameters(network, 0.1), learning_rate=1e-4, eps=1e-8)
    cell = MFTrainOneStepCell(network, optimizer, use_clip_grad=True).set_train()
    rng = np.random.default_rng(0)
    batch = ms.Tensor(rng.integers(3, sizes["vocabulary"], (sizes["batch"], length + 1)).astype(np.int32))
    seconds = []
    for _ in range(1 + WARM_UP + STEPS):
        begin = time.perf_counter()
        cell(batch)[0].asnumpy()
        seconds.append(time.perf_counter() - begin)
    step = statistics.median(seconds[1 + WARM_UP :])
    return {"step_s": step, "first_step_s": seconds[0], "memory_mb": peak_memory_mb() - before}


def measure(law: str, value: int) -> dict[str, float]:
    """The point of a law in a process of its own."""
    command = [sys.executable, __file__, "--worker", json.dumps(BASE | {law: value})]
    environment = os.environ | {"PYTHONPATH": str(REPO), "MINDFORMERS_NATIVE": "0", "GLOG_v": "3"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{law} {value}: the process failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def make_text(folder: Path) -> tuple[Path, Path]:
    """About 0.35 MB of text that every Python has, and a tokenizer trained on it."""
    script = REPO / "scripts" / "quickstart_data.py"
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    text, model = folder / "train.txt", folder / "tokenizer.model"
    learn = ["tokenizer", "--input", str(text), "--output", str(model), "--vocab_size", "1024"]
    for words in (["text", "--output_dir", str(folder)], learn):
        subprocess.run([sys.executable, str(script), *words], env=environment, check=True, capture_output=True)
    return text, model


def text_point(megabytes: int, text: Path, model: Path, folder: Path) -> dict[str, float]:
    """Cost of making records of so much text (the same chapters again and again)."""
    source, target = folder / f"{megabytes}.txt", folder / f"{megabytes}.mindrecord"
    content = text.read_bytes() + b"\n\n"
    with open(source, "wb") as file:
        for _ in range(round(megabytes * 1e6 / len(content))):
            file.write(content)
    tool = REPO / "mindformers/tools/dataset_preprocess/llama/llama_preprocess.py"
    words = [
        sys.executable,
        str(tool),
        "--dataset_type",
        "wiki",
        "--input_glob",
        str(source),
        "--model_file",
        str(model),
    ]
    words += ["--seq_length", "512", "--output_file", str(target), "--num_workers", "2"]
    begin = time.perf_counter()
    said = folder / f"{megabytes}.log"
    with open(said, "w", encoding="utf-8") as log:
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        code = os.waitstatus_to_exitcode(status)
        raise SystemExit(f"text {megabytes}: the command ended with exit code {code}\n{said.read_text()[-2000:]}")
    for file in folder.glob(f"{megabytes}.*"):
        file.unlink()
    return {"step_s": seconds, "memory_mb": usage.ru_maxrss / 1024}


def exponent(values: list[int], costs: list[float]) -> float:
    """Slope of the logarithms over the larger half of the values."""
    half = len(values) // 2
    return float(np.polyfit(np.log(values[half:]), np.log(costs[half:]), 1)[0])


def draw(results: dict[str, dict[int, dict[str, float]]], path: str) -> None:
    """Seconds and memory against each number, logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        2, len(results), figsize=(3 * len(results), 5.2), layout="constrained", squeeze=False
    )
    for column, (law, points) in enumerate(results.items()):
        values = list(points)
        for row, (cost, unit) in enumerate((("step_s", "seconds"), ("memory_mb", "MB"))):
            axis = axes[row, column]
            measured = [points[value][cost] for value in values]
            axis.loglog(values, measured, "o-", markersize=4)
            linear = [measured[-1] * value / values[-1] for value in values]
            axis.loglog(values, linear, ":", color="gray", linewidth=1)
            axis.set_title(f"{law}: exponent {exponent(values, measured):.2f}", fontsize=9)
            axis.set_ylabel(unit, fontsize=8)
            axis.tick_params(labelsize=7)
            axis.minorticks_off()
            axis.set_xticks(values, labels=[str(value) for value in values], fontsize=6)
    figure.suptitle("a training step (text: the whole command); dotted: linear", fontsize=10)
    figure.savefig(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", nargs="+", choices=list(POINTS), default=list(POINTS))
    parser.add_argument("--megabytes", nargs="+", type=int, default=[], help="further sizes of text, such as 300 1000")
    parser.add_argument("--picture", metavar="FILE", help=".png or .svg (needs matplotlib)")
    parser.add_argument("--json", help="file the records are appended to")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(train_point(json.loads(args.worker))))
        return
    results: dict[str, dict[int, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text, model = make_text(folder) if "text" in args.laws else (folder, folder)
        for law in args.laws:
            values = sorted({*POINTS[law], *(args.megabytes if law == "text" else ())})
            points: dict[int, dict[str, float]] = {}
            for value in values:
                points[value] = text_point(value, text, model, folder) if law == "text" else measure(law, value)
                print(f"{law} {value}: {points[value]}", file=sys.stderr, flush=True)
            results[law] = points
            emit(record_of(law, points), args.json)
    if args.picture:
        draw(results, args.picture)


def record_of(law: str, points: dict[int, dict[str, float]]) -> dict[str, Any]:
    """Points and exponents of a law, and the costs that grow faster than they should."""
    values = list(points)
    record: dict[str, Any] = {"benchmark": "scaling_laws", "law": law, "values": values}
    worse = []
    for cost in COSTS:
        if cost in points[values[0]]:
            record[cost] = [round(points[value][cost], 4) for value in values]
            record[f"{cost}_exponent"] = exponent(values, record[cost])
            if record[f"{cost}_exponent"] > LIMIT.get(law, 1.2):
                worse.append(cost)
    return record | {"worse": worse}


if __name__ == "__main__":
    main()
