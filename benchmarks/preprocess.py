# SPDX-License-Identifier: Apache-2.0
"""Preprocessing: WikiText beside bare SentencePiece, and Alpaca beside a plain loop over SentencePiece.

``python benchmarks/preprocess.py [--case wiki qa] [--text FILE] [--alpaca FILE] [--model FILE] [--rounds 3] [--quick]
[--json out.jsonl]``

Case wiki: cleaning, tokenizing and writing against tokenizing alone.

Bare: ``encode`` of the cleaned paragraphs as one list, on one thread, and one int32 array of the result. Ours: from the
text file to finished MindRecord files, with MindSpore imported before. ``command_s`` is the whole command,
imports included.
``ratio`` is our seconds over the bare seconds of the same round, the median over rounds: below 1 we are faster.

Case qa: from a file of conversations to MindRecord files in both, with MindSpore imported before. ``speedup`` is the
plain loop's seconds over ours of the same round, the median over rounds: above 1 we are faster; the bar is 2 with two
workers. ``command_peak_mb`` is the memory of the whole command; the bar is 500.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import emit, spread
from benchmarks.qa_case import alpaca_conversations, command_memory, plain_loop, qa_job
from mindformers.tools.dataset_preprocess.llama import llama_preprocess
from mindformers.tools.dataset_preprocess.llama.token_stream import TokenizerFile
from mindformers.tools.dataset_preprocess.llama.wiki_text import paragraphs_of, read_blocks
from mindformers.tools.sentencepiece_model import load_sentencepiece

DATA = Path(os.environ.get("MINDFORMERS_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
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


def measure(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function, the functions in turn."""
    taken: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, function in runs.items():
            taken[key].append(seconds(function))
    return taken


def wiki_case(args: argparse.Namespace, folder: Path) -> dict[str, object]:
    """The record of case wiki."""
    text = args.text
    if args.quick:
        text = folder / "part.txt"
        text.write_text(args.text.read_bytes()[:QUICK_BYTES].decode("utf-8", "ignore"), encoding="utf-8")
    run_bare, tokens = bare(text, args.model)
    runs: dict[str, Callable[[], object]] = {"bare_s": run_bare}
    for workers in (1, 2):
        runs[f"workers_{workers}_s"] = ours(text, args.model, args.seq_length, folder, workers)
        runs[f"command_{workers}_s"] = command(text, args.model, args.seq_length, folder, workers)
    taken = measure(runs, args.rounds)
    size = text.stat().st_size / 1e6
    record = {"benchmark": "preprocess", "megabytes": round(size, 2), "tokens": tokens, "rounds": args.rounds}
    for key, values in taken.items():
        record[key] = spread(values)
        record[key.replace("_s", "_mb_per_s")] = round(size / statistics.median(values), 2)
        if key != "bare_s":
            pairs = [ours / base for ours, base in zip(values, taken["bare_s"], strict=True)]
            record[key.replace("_s", "_ratio")] = round(statistics.median(pairs), 3)
    return record


def qa_case(args: argparse.Namespace, folder: Path) -> dict[str, object]:
    """The record of case qa."""
    source = alpaca_conversations(args.alpaca, folder)
    run_plain = plain_loop(source, args.model, args.qa_seq_length, folder)
    records = run_plain()
    runs: dict[str, Callable[[], object]] = {"plain_s": run_plain}
    for workers in (1, 2):
        for pack in (False, True):
            name = f"{'packed' if pack else 'padded'}_{workers}_s"
            job = qa_job(source, args.model, args.qa_seq_length, folder / name, pack, workers)
            runs[name] = partial(llama_preprocess.convert, job)
    taken = measure(runs, args.rounds)
    command_s, peak = command_memory(qa_job(source, args.model, args.qa_seq_length, folder / "command", False, 2))
    record = {"benchmark": "preprocess_qa", "records": records, "seq_length": args.qa_seq_length}
    record |= {"rounds": args.rounds, "command_2_s": command_s, "command_peak_mb": round(peak, 1)}
    for key, values in taken.items():
        record[key] = spread(values)
        record[key.replace("_s", "_records_per_s")] = round(records / statistics.median(values))
        if key != "plain_s":
            pairs = [base / ours for ours, base in zip(values, taken["plain_s"], strict=True)]
            record[key.replace("_s", "_speedup")] = round(statistics.median(pairs), 3)
    return record


CASES = {"wiki": wiki_case, "qa": qa_case}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--text", type=Path, default=DATA / "wikitext2" / "wiki.train.tokens")
    parser.add_argument("--alpaca", type=Path, default=DATA / "alpaca" / "alpaca_data.subset5000.json")
    parser.add_argument("--model", default=str(DATA / "llama2_tokenizer" / "tokenizer.model"))
    parser.add_argument("--seq_length", type=int, default=256, help="of case wiki")
    parser.add_argument("--qa_seq_length", type=int, default=512, help="of case qa")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help=f"wiki: only the first {QUICK_BYTES} bytes of the text")
    parser.add_argument("--json", help="append the records to this file")
    args = parser.parse_args()
    import mindspore.mindrecord  # noqa: F401  (its import is not what is measured)

    for case in args.case:
        with tempfile.TemporaryDirectory() as name:
            emit(CASES[case](args, Path(name)), args.json)


if __name__ == "__main__":
    main()
