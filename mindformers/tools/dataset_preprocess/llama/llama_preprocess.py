# SPDX-License-Identifier: Apache-2.0
"""Turn text into MindRecord files for Llama.

    python mindformers/tools/dataset_preprocess/llama/llama_preprocess.py --dataset_type wiki --seq_length 4096
        --input_glob wiki.train.tokens --model_file tokenizer.model --output_file wiki4096.mindrecord

Runs from any folder, as a script or with ``python -m``.
"""

import argparse
import glob
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

if importlib.util.find_spec("mindformers") is None:  # run as a script from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from mindformers.errors import DataError, run_cli
from mindformers.tools.dataset_preprocess.llama.record_output import (
    DatasetOutput,
    fixed_length_records,
    repeated,
)
from mindformers.tools.dataset_preprocess.llama.token_stream import TokenizerFile, tokenize_blocks
from mindformers.tools.dataset_preprocess.llama.wiki_text import paragraphs_of, read_blocks


@dataclass
class Job:
    """One conversion, all of it checked."""

    dataset_type: str
    inputs: list[str]
    output_file: str
    tokenizer: TokenizerFile
    seq_length: int
    repeat: int = 1
    file_partition: int = 1
    num_workers: int = 1
    show_progress: bool | None = None  # None: when stderr is a terminal

    @property
    def record_length(self) -> int:
        """Tokens per record: the model predicts each token but the first."""
        return self.seq_length + 1


@dataclass
class Counts:
    """What a conversion did; ``tokens`` counts one pass over the text, the others all of it."""

    paragraphs: int = 0
    headings: int = 0
    tokens: int = 0
    records: int = 0
    dropped_tokens: int = 0


def convert_wiki(job: Job, output: DatasetOutput) -> Counts:
    """Paragraphs separated by blank lines -> consecutive records of ``seq_length + 1`` tokens."""
    counts = Counts()

    def tokens() -> Iterator[np.ndarray]:
        for block in tokenize_blocks(_text_blocks(job), paragraphs_of, job.tokenizer.path, job.num_workers):
            counts.paragraphs += block.paragraphs
            counts.headings += block.headings
            counts.tokens += len(block.ids)
            yield block.ids

    rest: list[int] = []
    for records in fixed_length_records(repeated(tokens(), job.repeat, output.folder), job.record_length, rest):
        counts.records += len(records)
        output.write(input_ids=records)
    counts.dropped_tokens = rest[0]
    if not counts.tokens:
        raise DataError(f"no text to convert in {_names(job.inputs)}: {counts.headings} headings and no paragraphs")
    if not counts.records:
        raise DataError(
            f"{_names(job.inputs)}: {counts.tokens} tokens do not fill one record of {job.record_length} "
            f"(--seq_length {job.seq_length} + 1). Choose a smaller --seq_length, or give more text"
        )
    return counts


# --dataset_type -> (columns, the function that writes them)
DATASET_TYPES: dict[str, tuple[tuple[str, ...], Callable[[Job, DatasetOutput], Counts]]] = {
    "wiki": (("input_ids",), convert_wiki),
}


def convert(job: Job) -> tuple[Counts, list[str]]:
    """Run one conversion.

    Returns:
        What was done, and the MindRecord files.
    """
    columns, function = DATASET_TYPES[job.dataset_type]
    lengths = dict.fromkeys(columns, job.record_length)
    with DatasetOutput(job.output_file, lengths, job.file_partition) as output:
        counts = function(job, output)
        return counts, output.commit(_description(job, counts))


def _description(job: Job, counts: Counts) -> dict[str, Any]:
    facts = {
        "format": 1,
        "dataset_type": job.dataset_type,
        "seq_length": job.seq_length,
        "record_length": job.record_length,
        "repeat": job.repeat,
        **asdict(counts),
    }
    tokenizer = {f"tokenizer_{name}": getattr(job.tokenizer, name) for name in ("path", "sha256")}
    ids = {name: getattr(job.tokenizer, name) for name in ("vocab_size", "bos_id", "eos_id")}
    return {**facts, **tokenizer, **ids, "sources": [os.path.abspath(path) for path in job.inputs]}


def _text_blocks(job: Job) -> Iterator[str]:
    from tqdm import tqdm

    total = sum(os.path.getsize(path) for path in job.inputs)
    disable = None if job.show_progress is None else not job.show_progress
    with tqdm(total=total, unit="B", unit_scale=True, desc="tokenize", disable=disable) as bar:
        for path in job.inputs:
            yield from read_blocks(Path(path), bar.update)


def input_files(patterns: list[str]) -> list[str]:
    """The files that names and glob patterns (``**`` too) stand for, each once.

    Raises:
        DataError: a pattern matches no file.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        names = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        files = [name for name in names if os.path.isfile(name)]
        if not files:
            what = "is a folder; give its files, for instance" if os.path.isdir(pattern) else "matches no file"
            example = f" '{os.path.join(pattern, '*.txt')}'" if os.path.isdir(pattern) else ""
            raise DataError(f"--input_glob {pattern} {what}{example} (current folder: {os.getcwd()})")
        found.update(dict.fromkeys(files))
    return list(found)


def _names(paths: list[str]) -> str:
    return ", ".join(paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return value


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Turn text into MindRecord files for Llama.", allow_abbrev=False)
    add = parser.add_argument
    add("--dataset_type", choices=sorted(DATASET_TYPES), default="wiki", help="kind of text (default: wiki)")
    add(
        "--input_glob",
        nargs="+",
        required=True,
        metavar="PATTERN",
        help="files or glob patterns, quoted or not",
    )
    add(
        "--output_file",
        default="./dataset/wiki2048/wiki2048",
        help="MindRecord file to write (default: %(default)s)",
    )
    add("--tokenizer", choices=["llama"], default="llama", help="kind of tokenizer (default: llama)")
    add("--model_file", required=True, help="SentencePiece model, tokenizer.model")
    add(
        "--seq_length",
        type=_positive,
        default=2048,
        help="of the model; records get one token more (default: 2048)",
    )
    add("--repeat", type=_positive, default=1, help="times the text is taken (default: 1)")
    add("--file_partition", type=_positive, default=1, help="number of output files (default: 1)")
    add("--num_workers", type=_positive, default=1, help="tokenizing processes (default: 1)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command; prints counts and the files written."""
    args = build_parser().parse_args(argv)
    inputs = input_files(args.input_glob)
    tokenizer = TokenizerFile.open(args.model_file)
    DatasetOutput.check(args.output_file)
    job = Job(
        args.dataset_type,
        inputs,
        args.output_file,
        tokenizer,
        args.seq_length,
        args.repeat,
        args.file_partition,
        args.num_workers,
    )
    started = time.perf_counter()
    counts, paths = convert(job)
    seconds = time.perf_counter() - started
    megabytes = sum(os.path.getsize(path) for path in inputs) / 1e6
    print(
        f"{len(inputs)} files, {megabytes:.1f} MB: {counts.paragraphs} paragraphs ({counts.headings} "
        "headings left out), "
        f"{counts.tokens} tokens x {job.repeat}, {counts.records} records of {job.record_length}, "
        f"{counts.dropped_tokens} tokens dropped in the tail, {seconds:.1f} s, {megabytes / seconds:.1f} MB/s"
    )
    print(f"Transformed {counts.records} records.")
    print(f"Transform finished, output files refer: {paths[0]}")
    return 0


def _terminated(*_: Any) -> None:
    raise SystemExit(143)  # lets the half-written files be removed


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    run_cli(main)
