# SPDX-License-Identifier: Apache-2.0
"""Turn text into MindRecord files for Llama.

    python mindformers/tools/dataset_preprocess/llama/llama_preprocess.py --dataset_type wiki --seq_length 4096
        --input_glob wiki.train.tokens --model_file tokenizer.model --output_file wiki4096.mindrecord
    python mindformers/tools/dataset_preprocess/llama/llama_preprocess.py --dataset_type qa --seq_length 2048
        --input_glob conversations.json --model_file tokenizer.model --output_file alpaca2048.mindrecord --pack True

Runs from any folder, as a script or with ``python -m``.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # run as a script: the code of the same checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from mindformers.errors import DataError, run_cli
from mindformers.tools.dataset_preprocess.llama.arguments import boolean, positive, terminated
from mindformers.tools.dataset_preprocess.llama.job import Job, byte_progress, file_names, input_files
from mindformers.tools.dataset_preprocess.llama.qa_records import QaCounts, convert_qa, qa_columns
from mindformers.tools.dataset_preprocess.llama.record_output import (
    DatasetOutput,
    check_output,
    fixed_length_records,
    repeated,
)
from mindformers.tools.dataset_preprocess.llama.token_stream import TokenizerFile, tokenize_blocks
from mindformers.tools.dataset_preprocess.llama.wiki_text import paragraphs_of, read_blocks


@dataclass
class Counts:
    """What a conversion did; ``tokens`` counts one pass over the text, the others all of it."""

    paragraphs: int = 0
    headings: int = 0
    tokens: int = 0
    records: int = 0
    dropped_tokens: int = 0

    def summary(self, job: Job) -> str:
        """One line of numbers."""
        return (
            f"{self.paragraphs} paragraphs ({self.headings} headings left out), {self.tokens} tokens x {job.repeat}, "
            f"{self.records} records of {job.record_length}, {self.dropped_tokens} tokens dropped in the tail"
        )

    def hints(self, job: Job) -> list[str]:
        """What the user has to know next: nothing."""
        return []

    def facts(self, job: Job) -> dict[str, Any]:
        """What the description of the files says about this kind of data: nothing more."""
        return {}


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
        raise DataError(f"no text to convert in {file_names(job.inputs)}: {counts.headings} headings and no paragraphs")
    if not counts.records:
        raise DataError(
            f"{file_names(job.inputs)}: {counts.tokens} tokens do not fill one record of {job.record_length} "
            f"(--seq_length {job.seq_length} + 1). Choose a smaller --seq_length, or give more text"
        )
    return counts


# --dataset_type -> (the columns, the function that writes them)
DATASET_TYPES: dict[str, tuple[Callable[[Job], tuple[str, ...]], Callable[[Job, DatasetOutput], Counts | QaCounts]]] = {
    "qa": (qa_columns, convert_qa),
    "wiki": (lambda job: ("input_ids",), convert_wiki),
}


def convert(job: Job) -> tuple[Counts | QaCounts, list[str]]:
    """Run one conversion.

    Returns:
        What was done, and the MindRecord files.
    """
    columns, function = DATASET_TYPES[job.dataset_type]
    lengths = dict.fromkeys(columns(job), job.record_length)
    with DatasetOutput(job.output_file, lengths, job.file_partition) as output:
        counts = function(job, output)
        return counts, output.commit(_description(job, counts, list(lengths)))


def _description(job: Job, counts: Counts | QaCounts, columns: list[str]) -> dict[str, Any]:
    facts = {
        "format": 1,
        "dataset_type": job.dataset_type,
        "columns": columns,
        "seq_length": job.seq_length,
        "record_length": job.record_length,
        "repeat": job.repeat,
        **counts.facts(job),
        **asdict(counts),
    }
    tokenizer = {f"tokenizer_{name}": getattr(job.tokenizer, name) for name in ("path", "sha256")}
    ids = {name: getattr(job.tokenizer, name) for name in ("vocab_size", "bos_id", "eos_id")}
    return {**facts, **tokenizer, **ids, "sources": [os.path.abspath(path) for path in job.inputs]}


def _text_blocks(job: Job) -> Iterator[str]:
    with byte_progress(job.inputs, "tokenize", job.show_progress) as advance:
        for path in job.inputs:
            yield from read_blocks(Path(path), advance)


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
        type=positive,
        default=2048,
        help="of the model; records get one token more (default: 2048)",
    )
    add("--repeat", type=positive, default=1, help="times the text is taken (default: 1)")
    add("--file_partition", type=positive, default=1, help="number of output files (default: 1)")
    add("--num_workers", type=positive, default=1, help="tokenizing processes (default: 1)")
    add("--template", help="qa: FastChat's template, for instance llama-2 (default: vicuna_v1.1)")
    add("--pack", type=boolean, metavar="BOOL", help="qa: True lays several samples into a record (default: False)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command; prints counts and the files written."""
    args = build_parser().parse_args(argv)
    inputs = input_files(args.input_glob)
    tokenizer = TokenizerFile.open(args.model_file)
    check_output(args.output_file, "--output_file")
    job = Job(args.dataset_type, inputs, args.output_file, tokenizer, args.seq_length)
    job.repeat, job.file_partition, job.num_workers = args.repeat, args.file_partition, args.num_workers
    for name in ("template", "pack"):
        if getattr(args, name) is not None:
            if args.dataset_type != "qa":
                raise DataError(f"--{name} belongs to --dataset_type qa, not to {args.dataset_type}")
            setattr(job, name, getattr(args, name))
    started = time.perf_counter()
    counts, paths = convert(job)
    seconds = time.perf_counter() - started
    rate = f"{job.megabytes / seconds:.1f} MB/s, {counts.records / seconds:.0f} records/s"
    print(f"{len(inputs)} files, {job.megabytes:.1f} MB: {counts.summary(job)}, {seconds:.1f} s, {rate}")
    for line in counts.hints(job):
        print(line)
    print(f"Transformed {counts.records} records.")
    print(f"Transform finished, output files refer: {paths[0]}")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminated)
    run_cli(main)
