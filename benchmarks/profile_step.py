# SPDX-License-Identifier: Apache-2.0
"""Where the time of a training step and of a decoding step goes, operator by operator.

``python benchmarks/profile_step.py --model M --picture docs/images/profile.svg --json out.jsonl``

Each case (training and decoding, plain MindSpore operators and native kernels) runs in a process of its own under
MindSpore's profiler, after a warm-up. Printed are the kinds of operators by their time; the picture has a bar for
each case, cut by phase, by part of the model and by kind of operator. Times are those of kernels: what a step takes
beyond their sum (launches, the host) is printed as ``outside``. Operators of one step may run side by side, so their
sum can also exceed the step. The profiler itself makes steps slower, the short ones by half.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import MODELS, REPO, emit

CASES = [("train", False), ("train", True), ("decode", False), ("decode", True)]
STEPS = {"train": 3, "decode": 64}
PROMPT = 32
# part of the model -> what the path of its operators holds; the first that fits
PARTS = {
    "rotary": ("rotary",),
    "norms": ("_norm-", "norm_out"),
    "attention": ("attention-", "attend-"),
    "feed-forward": ("feed_forward", "_SiLU"),
    "head and loss": ("lm_head", "loss"),
    "embedding": ("tok_embeddings",),
    "optimizer": ("optimizer-", "/Adam-"),
}
KINDS = 4  # of operators shown within a part

Rows = list[tuple[str, str, int, float]]


def phase_of(path: str) -> str:
    """forward, backward or update."""
    if path.startswith("Gradients/") or "Grad" in path:
        return "backward"
    return "forward" if "network-" in path or "Llama" in path or path.startswith("Expand/") else "update"


def part_of(path: str) -> str:
    """The part of the model whose operator has this path."""
    return next((part for part, marks in PARTS.items() if any(mark in path for mark in marks)), "other")


def read_operators(folder: Path) -> Rows:
    """(kind, path, calls, seconds of all calls) of every operator the profiler saw."""
    (file,) = folder.rglob("cpu_op_detail_info_*.csv")
    with open(file, encoding="utf-8", newline="") as lines:
        return [
            (kind_of(row), row["full_op_name"], int(row["op_occurrences"]), float(row["op_total_time(ms)"]) / 1e3)
            for row in csv.DictReader(lines)
        ]


def kind_of(row: dict[str, str]) -> str:
    """The kind of an operator; of a native kernel the cell it belongs to."""
    if row["op_type"] != "Custom":
        return row["op_type"]
    cell = row["full_op_name"].split("/")[-2].rpartition("-")[2].strip("_").removesuffix("Function")
    return "whole steps" if cell == "Default" else cell


def train_steps(model: str, native: bool) -> Callable[[Any], float]:
    """A function that takes a profiler and returns the seconds of a step under it."""
    from benchmarks.train import our_step

    step = our_step(model, "float32", native)
    for _ in range(3):
        step()

    def run(profiler: Any) -> float:
        profiler.start()
        begin = time.perf_counter()
        for _ in range(STEPS["train"]):
            step()
        seconds = (time.perf_counter() - begin) / STEPS["train"]
        profiler.stop()
        return seconds

    return run


def decode_steps(model: str, native: bool) -> Callable[[Any], float]:
    """The same for greedy decoding of one row; the prompt is left out."""
    import mindspore as ms

    from benchmarks.common import our_config
    from mindformers.core.context import init_context
    from mindformers.generation.streamers import BaseStreamer
    from mindformers.models.llama.llama import LlamaForCausalLM

    init_context(context_config={"device_target": "CPU", "native_kernels": native})
    ms.set_context(mode=ms.GRAPH_MODE)
    network = LlamaForCausalLM(our_config(model))
    prompt = np.random.default_rng(0).integers(3, MODELS[model]["vocab"], (1, PROMPT))
    settings = {"do_sample": False, "use_past": True, "eos_token_id": [], "repetition_penalty": 1.0}

    class FromFirstToken(BaseStreamer):
        """Starts the profiler after the prompt."""

        def __init__(self, profiler: Any) -> None:
            self.profiler, self.puts, self.begin, self.end_time = profiler, 0, 0.0, 0.0

        def put(self, value: np.ndarray) -> None:
            self.puts += 1
            if self.puts == 2:
                self.profiler.start()
                self.begin = time.perf_counter()

        def end(self) -> None:
            self.end_time = time.perf_counter()
            self.profiler.stop()

    network.generate(prompt, max_new_tokens=STEPS["decode"] + 1, **settings)

    def run(profiler: Any) -> float:
        streamer = FromFirstToken(profiler)
        network.generate(prompt, max_new_tokens=STEPS["decode"] + 1, streamer=streamer, **settings)
        return (streamer.end_time - streamer.begin) / STEPS["decode"]

    return run


def work(args: argparse.Namespace) -> None:
    """Worker: profile one case into a folder and write the seconds of a step beside it."""
    os.environ["MINDFORMERS_NATIVE"] = "1" if args.native else "0"
    from mindspore.profiler import ProfilerActivity, profile, tensorboard_trace_handler

    run = (train_steps if args.worker == "train" else decode_steps)(args.model, args.native)
    folder = Path(args.folder)
    profiler = profile(
        activities=[ProfilerActivity.CPU], start_profile=False, on_trace_ready=tensorboard_trace_handler(str(folder))
    )
    (folder / "seconds").write_text(str(run(profiler)), encoding="utf-8")


def measure(case: str, native: bool, model: str) -> tuple[float, Rows]:
    """Seconds of a step, and its operators (seconds of all steps)."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--worker", case, "--model", model, "--folder", folder]
        command += ["--native"] if native else []
        environment = os.environ | {"PYTHONPATH": str(REPO), "GLOG_v": "3"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{case}, native {native}: the profiled process failed:\n{done.stdout}{done.stderr}")
        return float((Path(folder) / "seconds").read_text(encoding="utf-8")), read_operators(Path(folder))


def table(title: str, seconds: float, rows: Rows, steps: int) -> str:
    """Kinds of operators of one step by time, as Markdown."""
    times, calls = Counter(), Counter()
    for kind, _, count, total in rows:
        times[kind] += total / steps
        calls[kind] += count / steps
    whole = sum(times.values())
    outside = 1e3 * (seconds - whole)
    head = f"{title}: {1e3 * seconds:.2f} ms a step, {1e3 * whole:.2f} ms in operators, {outside:.2f} ms outside"
    lines = [head, "", "| operator | calls | ms | share |", "|---|---|---|---|"]
    lines += [f"| {kind} | {calls[kind]:.3g} | {1e3 * t:.2f} | {t / whole:.0%} |" for kind, t in times.most_common(12)]
    return "\n".join(lines)


def blocks_of(rows: Rows, steps: int) -> list[tuple[int, str, float, float]]:
    """(level, label, begin, milliseconds) of the boxes of a flame picture: phase, part, kind of operator."""
    tree: dict[str, dict[str, Counter]] = {}
    for kind, path, _, total in rows:
        part = tree.setdefault(phase_of(path), {}).setdefault(part_of(path), Counter())
        part[kind] += 1e3 * total / steps
    blocks, phase_begin = [], 0.0
    for phase, parts in tree.items():
        part_begin = phase_begin
        for part, kinds in sorted(parts.items(), key=lambda item: -sum(item[1].values())):
            begin = part_begin
            for kind, length in kinds.most_common(KINDS):
                blocks.append((2, kind, begin, length))
                begin += length
            length = sum(kinds.values())
            blocks.append((1, part, part_begin, length))
            part_begin += length
        blocks.append((0, phase, phase_begin, part_begin - phase_begin))
        phase_begin = part_begin
    return blocks


def draw(cases: dict[str, tuple[Rows, int]], path: str, title: str) -> None:
    """A flame picture of each case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(cases), 1, figsize=(11, 1.9 * len(cases)), layout="constrained")
    for axis, (name, (rows, steps)) in zip(np.atleast_1d(axes), cases.items(), strict=True):
        blocks = blocks_of(rows, steps)
        whole = sum(length for level, _, _, length in blocks if level == 0)
        for level, label, begin, length in blocks:
            color = pyplot.cm.YlOrRd(0.15 + 0.18 * level)
            axis.barh(level, length, left=begin, height=0.96, color=color, edgecolor="white", linewidth=0.6)
            if length > 0.055 * whole:
                axis.text(begin + length / 2, level, label, ha="center", va="center", fontsize=7, clip_on=True)
        axis.set(xlim=(0, whole), ylim=(-0.5, 2.5), yticks=[], xlabel="ms of operators")
        axis.set_title(name, fontsize=9, loc="left")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="M")
    parser.add_argument("--picture", metavar="FILE", help="flame picture, .svg or .png (needs matplotlib)")
    parser.add_argument("--json", help="file the records are appended to")
    parser.add_argument("--worker", choices=["train", "decode"], help=argparse.SUPPRESS)
    parser.add_argument("--native", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    drawn = {}
    for case, native in CASES:
        name = f"{case}, {'native kernels' if native else 'plain operators'}"
        seconds, rows = measure(case, native, args.model)
        steps = STEPS[case]
        print(table(f"{args.model} {name}", seconds, rows, steps), end="\n\n", flush=True)
        kinds = Counter()
        for kind, _, _, total in rows:
            kinds[kind] += total / steps
        largest = {kind: round(t, 6) for kind, t in kinds.most_common(12)}
        record = {"benchmark": "profile_step", "model": args.model, "case": case, "native": native}
        record |= {"step_s": seconds, "operators_s": sum(kinds.values()), "kinds": largest}
        emit(record, args.json)
        drawn[name] = (rows, steps)
    if args.picture:
        draw(drawn, args.picture, f"operators of one step, model {args.model}, fp32")


if __name__ == "__main__":
    main()
