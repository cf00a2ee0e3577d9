# SPDX-License-Identifier: Apache-2.0
"""Decoding from exported MindIR files beside ``model.generate`` of the model they come from.

``python benchmarks/infer.py [--models T S M] [--new 64] [--rounds 10] [--json out.jsonl]``

Greedy, batch 1, the same prompt, both in one process, in turn, the first of one round being the second of the next;
tokens must be equal. A call's seconds per token are the median over its tokens after the first: the exported prompt
graph always computes its full length. ``ratio`` is generate's seconds per token over ours, the median over rounds:
above 1 the exported files are faster. ``open_s`` is the time to open the files.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import MODELS, emit, our_config, spread

PROMPT = 32


class _Clock:
    """A streamer that notes when the first new token and the end came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, ids: np.ndarray) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        self.times.append(time.perf_counter())


def seconds_per_token(model: object, prompt: np.ndarray, new: int) -> tuple[float, np.ndarray]:
    """Seconds of the middle one of the tokens after the first, and all tokens."""
    clock = _Clock()
    (row,) = model.generate(prompt, max_new_tokens=new, do_sample=False, use_past=True, eos_token_id=[], streamer=clock)
    _, *times, _ = clock.times  # without the prompt and the end
    return float(np.median(np.diff(times))), row


def compare(name: str, args: argparse.Namespace) -> None:
    """Export a model, open the files, and measure both in turn."""
    from mindformers.inference import ExportedModel
    from mindformers.inference.exporter import export_mindir
    from mindformers.models.llama.llama import LlamaForCausalLM

    network = LlamaForCausalLM(our_config(name, use_past=True, do_sample=False))
    prompt = np.random.default_rng(0).integers(3, MODELS[name]["vocab"], PROMPT)
    with tempfile.TemporaryDirectory() as folder:
        files = export_mindir(network, Path(folder) / "p.mindir", Path(folder) / "i.mindir")
        begin = time.perf_counter()
        exported = ExportedModel.open(*files, backend="ms")
        opened = time.perf_counter() - begin
        taken: dict[str, list[float]] = {"generate": [], "exported": []}
        for round_ in range(args.rounds + 1):
            rows = {}
            pair = [("generate", network), ("exported", exported)]
            for kind, model in pair if round_ % 2 else reversed(pair):
                seconds, rows[kind] = seconds_per_token(model, prompt, args.new)
                if round_:  # the first compiles
                    taken[kind].append(seconds)
            if not np.array_equal(rows["generate"], rows["exported"]):
                raise RuntimeError(f"{name}: the exported files gave other tokens")
    record = {"benchmark": "infer", "model": name, "new": args.new, "rounds": args.rounds, "open_s": opened}
    for kind, values in taken.items():
        record[f"{kind}_tokens_per_s"] = spread([1 / value for value in values])
    pairs = zip(taken["generate"], taken["exported"], strict=True)
    record["ratio"] = spread([theirs / ours for theirs, ours in pairs])
    emit(record, args.json)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["T", "S"])
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", help="file the records are appended to")
    args = parser.parse_args()
    os.environ["MINDFORMERS_NATIVE"] = "0"  # the files hold MindSpore's own ops: generate with the same
    import mindspore as ms

    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE)
    for name in args.models:
        compare(name, args)


if __name__ == "__main__":
    main()
