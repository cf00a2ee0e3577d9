# SPDX-License-Identifier: Apache-2.0
"""Turn Stanford Alpaca records into conversations, the input of ``llama_preprocess.py --dataset_type qa``.

    python mindformers/tools/dataset_preprocess/llama/alpaca_converter.py --data_path alpaca_data.json
        --output_path alpaca-data-conversation.json

Reads a JSON list or JSON Lines. Records that are conversations already (ShareGPT's form) are checked and taken over.
The prompts are those of Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca, "Data Release").
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the code of the same checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from mindformers.atomic import replacing
from mindformers.errors import DataError, run_cli
from mindformers.tools.dataset_preprocess.llama.arguments import positive, terminated
from mindformers.tools.dataset_preprocess.llama.conversations import checked_text, dialogue_of
from mindformers.tools.dataset_preprocess.llama.job import byte_progress
from mindformers.tools.dataset_preprocess.llama.json_records import BadRecordError, Skipped, batches, read_json_records
from mindformers.tools.dataset_preprocess.llama.record_output import check_output
from mindformers.tools.dataset_preprocess.llama.worker_pool import ordered_map

PREAMBLE = {
    True: "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.",
    False: "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
}
_BATCH = 256


def alpaca_prompt(instruction: str, text: str = "") -> str:
    """The prompt of a record, with or without an input."""
    middle = f"\n\n### Input:\n{text}" if text else ""
    return f"{PREAMBLE[bool(text)]}\n\n### Instruction:\n{instruction}{middle}\n\n### Response:"


def conversation_of(number: int, record: Any) -> dict[str, Any]:
    """The conversation of a record.

    Args:
        number: of the record in its file, from 0; an id is counted from 1 unless the record has one.
        record: ``{"instruction", "input", "output"}``, or ``{"conversations": [...]}``.

    Raises:
        BadRecordError: it is neither, or a text is missing, empty or not valid Unicode.
    """
    if isinstance(record, dict) and ("conversations" in record or "messages" in record):
        dialogue = dialogue_of(record)
        identity = record.get("id")
        messages = [("system", dialogue.system)] if dialogue.system is not None else []
        for question, answer in dialogue.turns:
            messages += [("human", question), ("gpt", answer)]
    else:
        question, answer = _question_and_answer(record)
        identity, messages = None, [("human", question), ("gpt", answer)]
    return {
        "id": identity if isinstance(identity, str) else str(number + 1),
        "conversations": [{"from": name, "value": text} for name, text in messages],
    }


def _question_and_answer(record: Any) -> tuple[str, str]:
    if isinstance(record, BadRecordError):
        raise record
    if not isinstance(record, dict):
        raise BadRecordError(f"must be an object, got {type(record).__name__}")
    missing = [name for name in ("instruction", "output") if name not in record]
    if missing:
        keys = ", ".join(map(repr, list(record)[:8])) or "none"
        raise BadRecordError(f"has neither {missing[0]!r} nor 'conversations' (keys: {keys})")
    text = record.get("input") or ""
    if text:
        text = checked_text(text, "input") if not isinstance(text, str) or text.strip() else ""
    prompt = alpaca_prompt(checked_text(record["instruction"], "instruction"), text)
    return prompt, checked_text(record["output"], "output")


def _converted(batch: list[tuple[int, Any]]) -> tuple[list[str], list[tuple[int, str]]]:
    """JSON texts of the conversations of numbered records, and number and reason of the bad ones."""
    texts, bad = [], []
    for number, record in batch:
        try:
            texts.append(json.dumps(conversation_of(number, record), indent=2).replace("\n", "\n  "))
        except BadRecordError as error:
            bad.append((number, str(error)))
    return texts, bad


def _converter() -> Any:
    return _converted


def convert(data_path: Path, output_path: Path, num_workers: int = 1, show: bool | None = None) -> tuple[int, Skipped]:
    """Write the conversations of a file.

    Args:
        data_path: JSON list or JSON Lines.
        output_path: gets a JSON list; an old file stays until the new one is complete.
        num_workers: processes that convert.
        show: show a progress bar; None: when stderr is a terminal.

    Returns:
        Number of conversations, and what was left out.

    Raises:
        DataError: the file cannot be read, or none of its records can be used.
    """
    count, skipped = 0, Skipped()
    with (
        byte_progress([str(data_path)], "convert", show) as advance,
        replacing(output_path) as name,
        open(name, "w", encoding="utf-8") as file,
    ):
        numbered = batches(enumerate(read_json_records(data_path, advance)), _BATCH)
        file.write("[")
        for texts, bad in ordered_map(numbered, _converter, num_workers):
            for text in texts:
                file.write(f"{',' if count else ''}\n  {text}")
                count += 1
            for number, reason in bad:
                skipped.add(f"record {number}", reason)
        file.write("\n]\n")
        if not count:
            shown = "".join(f"\n  {line}" for line in skipped.lines())
            raise DataError(f"{data_path}: none of its {skipped.count} records can be used{shown}")
    return count, skipped


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Turn Alpaca records into conversations.", allow_abbrev=False)
    parser.add_argument(
        "--data_path", default="alpaca-data.json", help="JSON list or JSON Lines (default: %(default)s)"
    )
    parser.add_argument(
        "--output_path", default="alpaca-data-conversation.json", help="file to write (default: %(default)s)"
    )
    parser.add_argument("--num_workers", type=positive, default=1, help="converting processes (default: 1)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command; prints counts, and index and reason of the first records that were left out."""
    args = build_parser().parse_args(argv)
    source, target = Path(args.data_path), Path(args.output_path)
    if not source.is_file():
        raise DataError(f"--data_path {source}: no such file (current folder: {os.getcwd()})")
    check_output(target, "--output_path")
    if target.exists() and target.samefile(source):
        raise DataError(f"--output_path {target} is the input itself; give another name")
    started = time.perf_counter()
    count, skipped = convert(source, target, args.num_workers)
    for line in skipped.lines():
        print(f"left out: {line}")
    print(
        f"{count} conversations, {skipped.count} bad records left out, {time.perf_counter() - started:.1f} s: {target}"
    )
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminated)
    run_cli(main)
