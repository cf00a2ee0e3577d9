# SPDX-License-Identifier: Apache-2.0
"""Preprocessing of WikiText beside bare SentencePiece: cleaning, tokenizing and writing against tokenizing alone.

``python benchmarks/preprocess.py [--text FILE] [--model FILE] [--rounds 3] [--quick] [--json out.jsonl]``

Bare: ``encode`` of the cleaned paragraphs as one list, on one thread, and one int32 array of the result. Ours: from the
text file to finished MindRecord files, with MindSpore imported before. ``command_s`` is the whole command,
imports included.
``ratio`` is our seconds over the bare seconds of the same round, the median over rounds: below 1 we are faster.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import emit, spread
from mindformers.tools.dataset_preprocess.llama import llama_preprocess
from mindformers.tools.dataset_preprocess.llama.token_stream import TokenizerFile
from mindformers.tools.dataset_preprocess.llama.wiki_text import paragraphs_of, read_blocks
from mindformers.tools.sentencepiece_model import load_sentencepiece

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
QUICK_BYTES = 1_500_000


def bare(text: Path, model: str) -> tuple[Callable[[], None], int]:
    """A function that tokenizes the cleaned paragraphs, and the number of tokens."""
    processor = load_sentencepiece(model)
    paragraphs = [part for block in read_blocks(text) for part in paragraphs_of(block)[0]]

    def run() -> np.ndarray:
        rows = processor.encode(paragraphs, num_threads=1, add_bos=True, add_eos=True)
        return np.concatenate([np.array(row, np.int32) for row in rows])

    return run, len(run())


def ours(text: Path, model: str, seq_length: int, folder: Path, workers: int) -> Callable[[], None]:
    """A function that makes the dataset with so many workers."""
    job = llama_preprocess.Job(
        "wiki", [str(text)], str(folder / f"{workers}.mindrecord"), TokenizerFile.open(model), seq_length
    )
    job.num_workers, job.show_progress = workers, False
    return lambda: llama_preprocess.convert(job)


def command(text: Path, model: str, seq_length: int, folder: Path, workers: int) -> Callable[[], None]:
    """A function that runs the command line tool."""
    words = [sys.executable, llama_preprocess.__file__, "--input_glob", str(text), "--model_file", model]
    words += ["--seq_length", str(seq_length), "--output_file", str(folder / f"c{workers}.mindrecord")]
    words += ["--num_workers", str(workers)]
    return lambda: subprocess.run(words, check=True, capture_output=True)


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, default=DATA / "wikitext2" / "wiki.train.tokens")
    parser.add_argument("--model", default=str(DATA / "llama2_tokenizer" / "tokenizer.model"))
    parser.add_argument("--seq_length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help=f"only the first {QUICK_BYTES} bytes of the text")
    parser.add_argument("--json", help="append the record to this file")
    args = parser.parse_args()
    import mindspore.mindrecord  # noqa: F401  (its import is not what is measured)

    with tempfile.TemporaryDirectory() as name:
        folder, text = Path(name), args.text
        if args.quick:
            text = folder / "part.txt"
            text.write_text(args.text.read_bytes()[:QUICK_BYTES].decode("utf-8", "ignore"), encoding="utf-8")
        run_bare, tokens = bare(text, args.model)
        runs: dict[str, Callable[[], object]] = {"bare_s": run_bare}
        for workers in (1, 2):
            runs[f"workers_{workers}_s"] = ours(text, args.model, args.seq_length, folder, workers)
            runs[f"command_{workers}_s"] = command(text, args.model, args.seq_length, folder, workers)
        taken: dict[str, list[float]] = {key: [] for key in runs}
        for _ in range(args.rounds):
            for key, function in runs.items():
                taken[key].append(seconds(function))
        size = text.stat().st_size / 1e6
    record = {"benchmark": "preprocess", "megabytes": round(size, 2), "tokens": tokens, "rounds": args.rounds}
    for key, values in taken.items():
        record[key] = spread(values)
        record[key.replace("_s", "_mb_per_s")] = round(size / statistics.median(values), 2)
        if key != "bare_s":
            pairs = [ours / base for ours, base in zip(values, taken["bare_s"], strict=True)]
            record[key.replace("_s", "_ratio")] = round(statistics.median(pairs), 3)
    emit(record, args.json)


if __name__ == "__main__":
    main()
