# SPDX-License-Identifier: Apache-2.0
"""Instruction data for the benchmarks: the Alpaca subset, a plain loop over SentencePiece, memory of a command."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mindformers.tools.dataset_preprocess.llama import alpaca_converter, llama_preprocess
from mindformers.tools.dataset_preprocess.llama.job import Job
from mindformers.tools.dataset_preprocess.llama.token_stream import TokenizerFile
from mindformers.tools.sentencepiece_model import load_sentencepiece

_ENDING = " ASSISTANT:"


def alpaca_conversations(source: Path, folder: Path) -> Path:
    """Convert Alpaca records; gives the file of conversations."""
    target = folder / "conversations.json"
    alpaca_converter.convert(source, target, show=False)
    return target


def qa_job(conversations: Path, model: str, seq_length: int, output: Path, pack: bool, workers: int = 1) -> Job:
    """The conversion the benchmarks measure."""
    job = Job("qa", [str(conversations)], str(output), TokenizerFile.open(model), seq_length)
    job.pack, job.num_workers, job.show_progress = pack, workers, False
    return job


def plain_loop(conversations: Path, model: str, seq_length: int, folder: Path) -> Callable[[], int]:
    """What one writes without us: template, tokens of each sample and of its prompt, padding, MindSpore's FileWriter.

    The function gives the number of records.
    """
    processor = load_sentencepiece(model)
    length, turn = seq_length + 1, iter(range(1000))

    def row(record: dict[str, Any]) -> dict[str, np.ndarray]:
        from fastchat.conversation import get_conv_template

        conversation = get_conv_template("vicuna_v1.1")
        for message in record["conversations"]:
            conversation.append_message(conversation.roles[message["from"] == "gpt"], message["value"])
        ids, labels = [1], [-100]
        for part in conversation.get_prompt().split("</s>")[:-1]:
            tokens = [*processor.encode(part), 2]
            prompt = len(processor.encode(part[: part.index(_ENDING) + len(_ENDING)]))
            ids += tokens
            labels += [-100] * prompt + tokens[prompt:]
        fill = [0] * (length - len(ids))
        return {
            "input_ids": np.array((ids + fill)[:length], np.int32),
            "labels": np.array((labels + [-100] * len(fill))[:length], np.int32),
        }

    def run() -> int:
        from mindspore.mindrecord import FileWriter

        rows = [row(record) for record in json.loads(conversations.read_text(encoding="utf-8"))]
        writer = FileWriter(str(folder / f"plain{next(turn)}"), 1)
        writer.add_schema({name: {"type": "int32", "shape": [length]} for name in rows[0]})
        writer.write_raw_data(rows)
        writer.commit()
        return len(rows)

    return run


def command_memory(job: Job) -> tuple[float, float]:
    """Seconds and peak megabytes of ``llama_preprocess.py``, all its processes together (shared pages counted once)."""
    words = [sys.executable, llama_preprocess.__file__, "--dataset_type", "qa", "--input_glob", *job.inputs]
    words += ["--model_file", job.tokenizer.path, "--seq_length", str(job.seq_length), "--pack", str(job.pack)]
    words += ["--output_file", job.output_file, "--num_workers", str(job.num_workers)]
    start, peak = time.perf_counter(), 0.0
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None:
        peak = max(peak, _session_megabytes(process.pid))
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {' '.join(words)}")
    return time.perf_counter() - start, peak


def _session_megabytes(session: int) -> float:
    """Proportional set size of the processes of a session."""
    total = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == session:
                    text = Path(entry.path, "smaps_rollup").read_text(encoding="ascii")
                    total += int(text.split("Pss:")[1].split()[0])
            except (OSError, IndexError):  # it has ended
                continue
    return total / 1024
