# SPDX-License-Identifier: Apache-2.0
"""Loading: from a directory on disk to the first generated token, beside transformers; and reading a large checkpoint.

``python benchmarks/load.py --models T S --json out.jsonl``      first token
``python benchmarks/load.py --gigabytes 1.5 --json out.jsonl``   one checkpoint against reading it once; the default

``first_token``: a Hugging Face directory with random weights of one of the sizes of common.py. Each round starts new
processes, ours and theirs in turn, and measures from the start of the interpreter to the first new token: imports,
weights, compilation. ``ratio`` is our time over theirs, the median of the rounds: below 1 we are faster.

``checkpoint``: a directory with weights of the given size: of Hugging Face (``hf``), or of ``save_pretrained`` with a
``.ckpt`` or ``.safetensors`` and its manifest. New processes take turns: one reads the file once into its memory
(``bytes``), one hashes it, one calls ``AutoModel.from_pretrained`` of the directory, which for ours checks the sum.
``ratio`` is loading over reading, ``hash_ratio`` loading over hashing; ``memory_ratio`` is what loading adds to the
process over what reading adds. The time of imports is left out, the network's construction is not.
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

FORMATS = ["hf", "safetensors", "ckpt"]
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


def read_once(kind: str, folder: str) -> dict[str, Any]:
    """Read, hash or load the weights of a directory: seconds, and the memory it added."""
    from mindformers import AutoModel
    from mindformers.checkpoint.digest import file_digest

    file = next(path for path in Path(folder).iterdir() if path.suffix in (".ckpt", ".safetensors"))
    if kind == "load":  # what the first use of the library makes once
        from mindformers import LlamaForCausalLM  # noqa: F401
    before, begin = peak_memory_mb(), time.perf_counter()
    if kind == "read":
        result: Any = file.read_bytes()
    elif kind == "hash":
        result = file_digest(file)
    else:
        result = AutoModel.from_pretrained(folder)
    seconds = time.perf_counter() - begin
    del result
    return {"taken_s": seconds, "added_mb": peak_memory_mb() - before}


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


def write_directory(config: Any, fmt: str, folder: Path) -> int:
    """A directory of random fp32 weights; returns the bytes of their file."""
    from mindformers.checkpoint.foreign.arrays import Raw
    from mindformers.checkpoint.foreign.table import foreign_name
    from mindformers.checkpoint.stream import CheckpointStream, Planned, SafetensorsWriter
    from mindformers.models.pretrained import SAVE_NAME

    rng = np.random.default_rng(0)
    ours = fmt != "hf"
    names = {name: name if ours else foreign_name(name, "huggingface") for name in _shapes(config)}
    plan = [Planned(names[name], shape, "float32") for name, shape in _shapes(config).items()]
    if ours:
        config.save_pretrained(folder, SAVE_NAME)
        file = folder / f"{SAVE_NAME}.{fmt}"
        with CheckpointStream(file, plan, fmt) as stream:
            for item in plan:
                stream.add(item, Raw(rng.standard_normal(item.shape, np.float32), "float32"))
        return file.stat().st_size
    file = folder / "model.safetensors"
    (folder / "config.json").write_text(json.dumps(foreign_config(config)))
    writer = SafetensorsWriter(file, plan, {"format": "pt"})
    for item in plan:
        writer.add(item, Raw(rng.standard_normal(item.shape, np.float32), "float32"))
    writer.finish()
    return file.stat().st_size


def foreign_config(config: Any) -> dict[str, Any]:
    """The ``config.json`` of transformers for a config of ours."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.seq_length,
        "rms_norm_eps": config.rms_norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def compare_checkpoint(gigabytes: float, fmt: str, reps: int, path: str | None) -> None:
    """Write a checkpoint of a size, measure, and emit the record."""
    kinds = ("read", "hash", "load")
    folder = Path(tempfile.mkdtemp(prefix="mindformers_load_"))
    try:
        size = write_directory(large_config(gigabytes), fmt, folder)
        child("read", str(folder))  # the file is in the page cache from here on
        rounds = [{kind: child(kind, str(folder)) for kind in kinds} for _ in range(reps)]
    finally:
        shutil.rmtree(folder)
    record: dict[str, Any] = {"benchmark": "checkpoint", "format": fmt, "file_gb": size / 1e9, "reps": reps}
    for kind in kinds:
        record[f"{kind}_s"] = spread([answer[kind]["taken_s"] for answer in rounds])["median"]
    record["load_added_mb"] = spread([answer["load"]["added_mb"] for answer in rounds])["median"]
    record["ratio"] = spread([answer["load"]["taken_s"] / answer["read"]["taken_s"] for answer in rounds])
    record["hash_ratio"] = spread([answer["load"]["taken_s"] / answer["hash"]["taken_s"] for answer in rounds])
    record["memory_ratio"] = spread([a["load"]["added_mb"] / a["read"]["added_mb"] for a in rounds])["median"]
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
    parser.add_argument("--gigabytes", type=float, help="size of the checkpoint to load; 1.5 without --models")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--reps", type=int, default=5, help="rounds, taken in turn")
    parser.add_argument("--json", help="file the records are appended to")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, *rest = args.child
        print(json.dumps((read_once if kind in ("read", "hash", "load") else first_token)(kind, *rest)), flush=True)
        return
    if not args.models and args.gigabytes is None:
        args.gigabytes = 1.5
    for name in args.models:
        compare_first_token(name, args.reps, args.json)
    for fmt in args.formats if args.gigabytes else ():
        compare_checkpoint(args.gigabytes, fmt, args.reps, args.json)


if __name__ == "__main__":
    main()
