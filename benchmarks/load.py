# SPDX-License-Identifier: Apache-2.0
"""Loading: from a directory on disk to the first generated token, beside transformers; and reading a large checkpoint.

``python benchmarks/load.py --models T S --json out.jsonl``      first token
``python benchmarks/load.py --gigabytes 1.5 --json out.jsonl``   one checkpoint against reading its file once

``first_token``: a Hugging Face directory with random weights of one of the sizes of common.py. Each round starts new
processes, ours and theirs in turn, and measures from the start of the interpreter to the first new token: imports,
weights, compilation. ``ratio`` is our time over theirs, the median of the rounds: below 1 we are faster.

``checkpoint``: a file of the given size is read through once, hashed once, and loaded into a network (which checks its
sum), in turn. ``ratio`` is loading over reading, ``hash_ratio`` loading over hashing; ``memory_ratio`` is what
loading adds to the process over the size of the file.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import MODELS, REPO, THREADS, emit, our_config, peak_memory_mb, spread

PROMPT = [1, 306, 5360, 1522, 823, 292]


def first_token(kind: str, folder: str) -> dict[str, Any]:
    """Load a directory and generate one token; seconds since this process began its imports, and peak memory."""
    begin = time.perf_counter()
    if kind == "mindformers":
        from mindformers import AutoModel

        imported = time.perf_counter()
        model = AutoModel.from_pretrained(folder)
        loaded = time.perf_counter()
        length = len(model.generate(PROMPT, max_new_tokens=1, do_sample=False)[0])
    else:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(THREADS)
        imported = time.perf_counter()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        loaded = time.perf_counter()
        ids = torch.tensor([PROMPT])
        length = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False, pad_token_id=0
        ).shape[1]
    if length != len(PROMPT) + 1:
        raise RuntimeError(f"{kind} generated {length - len(PROMPT)} tokens instead of 1")
    end = time.perf_counter()
    return {
        "import_s": imported - begin,
        "load_s": loaded - imported,
        "generate_s": end - loaded,
        "peak_mb": peak_memory_mb(),
    }


def large_config(gigabytes: float) -> Any:
    """A config whose fp32 weights take so many gigabytes."""
    config = our_config("M", hidden_size=1024, num_layers=1)
    layer = config.num_parameters
    two = our_config("M", hidden_size=1024, num_layers=2).num_parameters
    layers = max(1, round((gigabytes * 1e9 / 4 - layer) / (two - layer)) + 1)
    return our_config("M", hidden_size=1024, num_layers=layers)


def load_checkpoint(folder: str, file: str) -> dict[str, Any]:
    """Read a file once, then make a network with its weights: seconds of both, and the memory the loading added."""
    import mindspore as ms

    from mindformers import AutoConfig, AutoModel
    from mindformers.checkpoint.manifest import file_digest

    ms.set_device("CPU")
    config = AutoConfig.from_pretrained(folder)
    config.checkpoint_name_or_path = file
    begin = time.perf_counter()
    with open(file, "rb", buffering=0) as stream:
        buffer = bytearray(1 << 24)
        while stream.readinto(buffer):
            pass
    read = time.perf_counter()
    file_digest(Path(file))
    hashed = time.perf_counter()
    before = peak_memory_mb()
    AutoModel.from_config(config)
    end = time.perf_counter()
    return {
        "read_s": read - begin,
        "hash_s": hashed - read,
        "load_s": end - hashed,
        "added_mb": peak_memory_mb() - before,
    }


def child(*arguments: str) -> dict[str, Any]:
    """One measurement in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--child", *arguments],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    )
    seconds = time.perf_counter() - start
    line = next(line for line in done.stdout.splitlines() if line.startswith("{"))
    return {"seconds": seconds, **json.loads(line)}


def hf_directory(name: str, folder: Path) -> None:
    """Write a Hugging Face directory with random weights."""
    from benchmarks.common import peer_model

    peer_model(name).save_pretrained(folder)


def compare_first_token(name: str, reps: int, path: str | None) -> None:
    """Measure one size and emit its record."""
    folder = Path(tempfile.mkdtemp(prefix="mindformers_load_"))
    try:
        hf_directory(name, folder)
        rounds = [[child(kind, str(folder)) for kind in ("mindformers", "transformers")] for _ in range(reps)]
    finally:
        shutil.rmtree(folder)
    record: dict[str, Any] = {"benchmark": "first_token", "model": name, "reps": reps, "dtype": "float32"}
    for index, kind in enumerate(("mindformers", "transformers")):
        for key in ("seconds", "import_s", "load_s", "generate_s", "peak_mb"):
            record[f"{kind}_{key}"] = spread([answers[index][key] for answers in rounds])["median"]
    record["ratio"] = spread([ours["seconds"] / theirs["seconds"] for ours, theirs in rounds])
    emit(record, path)


def compare_checkpoint(gigabytes: float, fmt: str, reps: int, path: str | None) -> None:
    """Write a checkpoint of a size, measure, and emit the record."""
    from mindspore import Tensor

    from mindformers.checkpoint.save import save_network

    folder = Path(tempfile.mkdtemp(prefix="mindformers_load_"))
    try:
        config = large_config(gigabytes)
        config.save_pretrained(folder)
        file = folder / f"large.{fmt}"
        rng = np.random.default_rng(0)
        shapes = _shapes(config)
        save_network({n: Tensor(rng.standard_normal(s, np.float32)) for n, s in shapes.items()}, file, fmt=fmt)
        size = file.stat().st_size
        rounds = [child("checkpoint", str(folder), str(file)) for _ in range(reps)]
    finally:
        shutil.rmtree(folder)
    record = {"benchmark": "checkpoint", "format": fmt, "file_gb": size / 1e9, "reps": reps}
    for key in ("read_s", "hash_s", "load_s", "added_mb"):
        record[key] = spread([answer[key] for answer in rounds])["median"]
    record["ratio"] = spread([answer["load_s"] / answer["read_s"] for answer in rounds])
    record["hash_ratio"] = spread([answer["load_s"] / answer["hash_s"] for answer in rounds])
    record["memory_ratio"] = record["added_mb"] * 2**20 / size
    emit(record, path)


def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's weights, without giving them values."""
    from mindspore.nn.utils import no_init_parameters

    from mindformers import LlamaForCausalLM

    with no_init_parameters():
        return {p.name: tuple(p.shape) for p in LlamaForCausalLM(config).get_parameters()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=[], help="sizes to load")
    parser.add_argument("--gigabytes", type=float, help="size of the checkpoint to load")
    parser.add_argument("--formats", nargs="+", choices=["ckpt", "safetensors"], default=["ckpt", "safetensors"])
    parser.add_argument("--reps", type=int, default=5, help="rounds, taken in turn")
    parser.add_argument("--json", help="file the records are appended to")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, *rest = args.child
        print(json.dumps(load_checkpoint(*rest) if kind == "checkpoint" else first_token(kind, *rest)), flush=True)
        return
    if not args.models and args.gigabytes is None:
        parser.error("give --models, or --gigabytes")
    for name in args.models:
        compare_first_token(name, args.reps, args.json)
    for fmt in args.formats if args.gigabytes else ():
        compare_checkpoint(args.gigabytes, fmt, args.reps, args.json)


if __name__ == "__main__":
    main()
