# SPDX-License-Identifier: Apache-2.0
"""Turn SQuAD 1.1 into MindRecord files of prompts and answers, for training or for EM/F1.

    python mindformers/tools/dataset_preprocess/llama/squad_data_process.py --input_file dev-v1.1.json
        --output_file squad2048.mindrecord --mode eval --max_length 2048 --model_file tokenizer.model

Records of mode eval: ``input_ids`` is the prompt, ``labels`` the first reference answer, both (max_length,), padded
with the tokenizer's padding id. Records of mode train: ``input_ids`` is prompt, answer and eos, (max_length + 1,);
``labels`` is -100 but at the answer and its eos. ``NAME.references.jsonl`` has a line per record with all answers.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

if not __package__:  # run as a script: the code of the same checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from mindformers.errors import DataError, run_cli
from mindformers.tools.dataset_preprocess.llama.answer_tokens import SpanEncoder
from mindformers.tools.dataset_preprocess.llama.arguments import positive, terminated
from mindformers.tools.dataset_preprocess.llama.conversations import checked_text
from mindformers.tools.dataset_preprocess.llama.json_records import BadRecordError, Skipped, batches
from mindformers.tools.dataset_preprocess.llama.packing import IGNORED
from mindformers.tools.dataset_preprocess.llama.record_output import DatasetOutput, check_output
from mindformers.tools.dataset_preprocess.llama.token_stream import TokenizerFile
from mindformers.tools.dataset_preprocess.llama.worker_pool import ordered_map

_HEAD = "Read the passage and answer the question below.\n\n### Instruction:\n"
_BATCH = 64
_TOKENIZER = "tokenizer.model"


class Question(NamedTuple):
    """One question with its passage and reference answers; ``where`` names it in messages."""

    where: str
    identity: str
    passage: str
    question: str
    answers: tuple[str, ...]


class Row(NamedTuple):
    """A record and the line about it in the references; ``shortened`` when the passage did not fit."""

    input_ids: np.ndarray
    labels: np.ndarray
    reference: str
    shortened: bool


@dataclass
class SquadCounts:
    """What a conversion did."""

    paragraphs: int = 0
    questions: int = 0
    shortened_passages: int = 0
    left_out: int = 0
    first_left_out: list[str] = field(default_factory=list)
    records: int = 0


def squad_prompt(passage: str, question: str) -> str:
    """What the model is asked; the answer follows."""
    return f"{_HEAD}{passage}\n\n### Input:\n{question}\n\n### Response:"


class SquadTokenizer:
    """Batches of questions to records.

    Args:
        tokenizer: the SentencePiece model.
        mode: 'train' or 'eval'.
        max_length: tokens of a prompt with its answer. The end of a longer passage is left out, so that the question
            stays and the longest reference answer has room.
    """

    def __init__(self, tokenizer: TokenizerFile, mode: str, max_length: int) -> None:
        self._encoder = SpanEncoder(tokenizer.path)
        self._tokenizer = tokenizer
        self._train = mode == "train"
        self._max_length = max_length

    def __call__(self, batch: list[Question]) -> tuple[list[Row], list[tuple[str, str]]]:
        """Rows, and name and reason of each question that cannot be asked in ``max_length`` tokens."""
        prompts = self._encoder.encode([squad_prompt(item.passage, item.question) for item in batch])
        rows, bad = [], []
        for item, prompt in zip(batch, prompts, strict=True):
            try:
                rows.append(self._row(item, prompt))
            except BadRecordError as error:
                bad.append((item.where, str(error)))
        return rows, bad

    def _row(self, item: Question, prompt: np.ndarray) -> Row:
        answers = self._encoder.encode(list(item.answers))
        room = self._max_length - 1 - max(map(len, answers))  # 1 for bos
        shortened = len(prompt) > room
        if shortened:
            prompt = self._shorter(item, prompt, room)
        tokenizer, answer = self._tokenizer, answers[0]
        line = {"id": item.identity, "question": item.question, "answers": list(item.answers)}
        reference = json.dumps(line, ensure_ascii=False)
        if self._train:
            ids = [np.array([tokenizer.bos_id], np.int32), prompt, answer, np.array([tokenizer.eos_id], np.int32)]
            labels = [np.full(1 + len(prompt), IGNORED, np.int32), *ids[2:]]
            length = self._max_length + 1
            return Row(_fill(ids, length, tokenizer.pad_id), _fill(labels, length, IGNORED), reference, shortened)
        asked = [np.array([tokenizer.bos_id], np.int32), prompt]
        filled = (_fill(column, self._max_length, tokenizer.pad_id) for column in (asked, [answer]))
        return Row(*filled, reference, shortened)

    def _shorter(self, item: Question, prompt: np.ndarray, room: int) -> np.ndarray:
        """The prompt with as much of the passage's beginning as fits."""
        passage, surplus = item.passage, len(prompt) - room
        while surplus > 0:
            text = squad_prompt(passage, item.question)
            ends = self._encoder.end_offsets(text)
            inside = ends[(ends > len(_HEAD)) & (ends <= len(_HEAD) + len(passage.encode()))]
            if len(inside) <= surplus:
                raise BadRecordError(
                    f"question and answer leave no room for a passage in --max_length {self._max_length}"
                )
            kept = inside[len(inside) - surplus - 1] - len(_HEAD)
            passage = passage.encode()[:kept].decode("utf-8", "ignore")
            prompt = self._encoder.encode([squad_prompt(passage, item.question)])[0]
            surplus = len(prompt) - room
        return prompt


def _fill(parts: list[np.ndarray], length: int, fill: int) -> np.ndarray:
    row = np.full(length, fill, np.int32)
    whole = np.concatenate(parts)
    row[: len(whole)] = whole
    return row


def read_squad(path: Path) -> list[Any]:
    """The paragraphs of a SQuAD file, each with the title of its article.

    Raises:
        DataError: the file is no SQuAD.
    """
    try:
        articles = json.loads(path.read_text(encoding="utf-8-sig"))["data"]
        return [(article.get("title", ""), paragraph) for article in articles for paragraph in article["paragraphs"]]
    except (ValueError, RecursionError) as error:
        raise DataError(f"--input_file {path} is not JSON in UTF-8: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"--input_file {path} is not a SQuAD file: it must hold data[].paragraphs[] with context and qas "
            f"({type(error).__name__}: {error})"
        ) from error


def questions_of(paragraphs: list[Any], every: bool, counts: SquadCounts, skipped: Skipped) -> Iterator[Question]:
    """The questions of paragraphs: every one, or each paragraph's first."""
    for index, (title, paragraph) in enumerate(paragraphs):
        where = f"{title or 'article'}, paragraph {index}"
        counts.paragraphs += 1
        try:
            passage = checked_text(paragraph.get("context"), "context")
            entries = paragraph["qas"]
            if not isinstance(entries, list) or not entries:
                raise BadRecordError("has no questions (qas)")
        except BadRecordError as error:
            skipped.add(where, str(error))
            continue
        except (AttributeError, TypeError, KeyError) as error:
            skipped.add(where, f"is not {{'context', 'qas'}} ({type(error).__name__}: {error})")
            continue
        for number, entry in enumerate(entries if every else entries[:1]):
            counts.questions += 1
            name = f"{where}, question {number}"
            try:
                yield _question(name, passage, entry)
            except BadRecordError as error:
                skipped.add(name, str(error))


def _question(where: str, passage: str, entry: Any) -> Question:
    if not isinstance(entry, dict):
        raise BadRecordError(f"must be an object, got {type(entry).__name__}")
    question = checked_text(entry.get("question"), "question")
    answers = entry.get("answers")
    if not isinstance(answers, list) or not answers:
        raise BadRecordError("has no answers")
    texts = [checked_text(a.get("text") if isinstance(a, dict) else None, "answers[].text") for a in answers]
    return Question(where, str(entry.get("id", where)), passage, question, tuple(texts))


def convert(args: argparse.Namespace, tokenizer: TokenizerFile, show: bool | None = None) -> tuple[SquadCounts, str]:
    """Run one conversion; gives what was done, and the MindRecord file.

    Args:
        args: the parsed command line.
        tokenizer: the SentencePiece model.
        show: show a progress bar; None: when stderr is a terminal.

    Raises:
        DataError: no record could be made.
    """
    from tqdm import tqdm

    counts, skipped = SquadCounts(), Skipped()
    paragraphs = read_squad(Path(args.input_file))
    length = args.max_length + (args.mode == "train")
    with (
        DatasetOutput(args.output_file, dict.fromkeys(("input_ids", "labels"), length)) as output,
        (output.folder / f"{output.path.name}.references.jsonl").open("w", encoding="utf-8") as references,
        tqdm(paragraphs, "tokenize", unit="paragraph", disable=None if show is None else not show) as bar,
    ):
        stream = batches(questions_of(bar, args.questions == "all", counts, skipped), _BATCH)
        factory = partial(SquadTokenizer, tokenizer, args.mode, args.max_length)
        for rows, bad in ordered_map(stream, factory, args.num_workers):
            for name, reason in bad:
                skipped.add(name, reason)
            if rows:
                output.write(
                    input_ids=np.stack([row.input_ids for row in rows]), labels=np.stack([row.labels for row in rows])
                )
                references.writelines(row.reference + "\n" for row in rows)
            counts.records += len(rows)
            counts.shortened_passages += sum(row.shortened for row in rows)
        counts.left_out, counts.first_left_out = skipped.count, skipped.first
        if not counts.records:
            shown = "".join(f"\n  {line}" for line in skipped.lines())
            raise DataError(f"--input_file {args.input_file}: no record could be made{shown}")
        references.flush()
        return counts, output.commit(_description(args, counts, tokenizer, length))[0]


def _description(
    args: argparse.Namespace, counts: SquadCounts, tokenizer: TokenizerFile, length: int
) -> dict[str, Any]:
    facts = {"format": 1, "dataset_type": f"squad_{args.mode}", "columns": ["input_ids", "labels"]}
    sizes = {"seq_length": args.max_length, "record_length": length, "question_choice": args.questions}
    names = ("vocab_size", "bos_id", "eos_id", "pad_id")
    ids = {"tokenizer_path": tokenizer.path, "tokenizer_sha256": tokenizer.sha256}
    ids |= {name: getattr(tokenizer, name) for name in names}
    return {**facts, **sizes, **asdict(counts), **ids, "sources": [os.path.abspath(args.input_file)]}


def tokenizer_file(tokenizer_type: str, model_file: str | None) -> str:
    """Path of the SentencePiece model.

    Args:
        tokenizer_type: a directory with ``tokenizer.model``, the file itself, or a name such as llama2_7b, whose file
            lies where downloads go: ``checkpoint_download/llama2`` (environment: CHECKPOINT_DOWNLOAD_FOLDER).
        model_file: the file; wins over ``tokenizer_type``.

    Raises:
        DataError: there is no such file.
    """
    if model_file:
        return model_file
    path = Path(tokenizer_type)
    if path.is_file():
        return str(path)
    if not path.is_dir():
        root = Path(os.environ.get("CHECKPOINT_DOWNLOAD_FOLDER") or "checkpoint_download")
        path = root / tokenizer_type.partition("_")[0]
    if not (path / _TOKENIZER).is_file():
        raise DataError(
            f"--tokenizer_type {tokenizer_type}: no tokenizer at {path / _TOKENIZER}. Give a directory that holds "
            f"{_TOKENIZER}, or the file by --model_file"
        )
    return str(path / _TOKENIZER)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Turn SQuAD 1.1 into MindRecord files.", allow_abbrev=False)
    add = parser.add_argument
    add("--input_file", default="./squad/train-v1.1.json", help="SQuAD file (default: %(default)s)")
    add("--output_file", default="./squad/recode_train.mindrecord", help="file to write (default: %(default)s)")
    add("--mode", choices=["train", "eval"], default="train", help="kind of records (default: train)")
    add("--max_length", type=positive, default=2048, help="tokens of prompt and answer (default: 2048)")
    add("--tokenizer_type", default="llama_7b", metavar="NAME|DIR", help="name, or a directory (default: %(default)s)")
    add("--model_file", help="SentencePiece model, in place of --tokenizer_type")
    add("--questions", choices=["first", "all"], default="first", help="of each paragraph (default: first)")
    add("--num_workers", type=positive, default=1, help="tokenizing processes (default: 1)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command; prints counts and the file written."""
    args = build_parser().parse_args(argv)
    if not Path(args.input_file).is_file():
        raise DataError(f"--input_file {args.input_file}: no such file (current folder: {os.getcwd()})")
    tokenizer = TokenizerFile.open(tokenizer_file(args.tokenizer_type, args.model_file))
    check_output(args.output_file, "--output_file")
    started = time.perf_counter()
    counts, path = convert(args, tokenizer)
    for line in counts.first_left_out:
        print(f"left out: {line}")
    print(
        f"{counts.paragraphs} paragraphs, {counts.questions} questions, {counts.shortened_passages} passages shortened "
        f"to {args.max_length} tokens, {counts.left_out} left out, {counts.records} records, "
        f"{time.perf_counter() - started:.1f} s"
    )
    print(f"Transformed {counts.records} records.")
    print(f"Transform finished, output files refer: {path}")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminated)
    run_cli(main)
