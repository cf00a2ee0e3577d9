# SPDX-License-Identifier: Apache-2.0
"""Conversations to records for instruction tuning: only answers are learned."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mindformers.errors import DataError
from mindformers.tools.dataset_preprocess.llama.answer_tokens import SpanEncoder
from mindformers.tools.dataset_preprocess.llama.conversations import Segment, Template, dialogue_of
from mindformers.tools.dataset_preprocess.llama.job import Job, byte_progress, file_names
from mindformers.tools.dataset_preprocess.llama.json_records import BadRecordError, Skipped, batches, read_json_records
from mindformers.tools.dataset_preprocess.llama.packing import IGNORED, PACKED_COLUMNS, Packer, padded
from mindformers.tools.dataset_preprocess.llama.record_output import DatasetOutput
from mindformers.tools.dataset_preprocess.llama.token_stream import TokenizerFile
from mindformers.tools.dataset_preprocess.llama.worker_pool import ordered_map

__all__ = ["QaCounts", "QaTokenizer", "Samples", "convert_qa", "qa_columns"]

_BATCH = 64  # conversations that a worker takes at a time


class Samples(NamedTuple):
    """The samples of one batch of conversations.

    Args:
        ids: int32, the tokens of all samples one behind the other.
        labels: int32, the same shape: the id where a token is learned, -100 elsewhere.
        lengths: (samples,), none above the record length.
        truncated: samples that were longer.
        unlabelled: samples left out because truncation left nothing to learn.
        bad: file and number, and reason, of each conversation left out.
        counted: the first pass over the files, whose numbers are reported.
    """

    ids: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray
    truncated: int
    unlabelled: int
    bad: list[tuple[str, str]]
    counted: bool


class Conversations(NamedTuple):
    """What a worker takes at a time: (file and number, record), and whether it is the first pass."""

    records: list[tuple[str, Any]]
    counted: bool


class QaTokenizer:
    """Batches of conversations to samples.

    Args:
        tokenizer: the SentencePiece model.
        template: name of FastChat's template.
        record_length: tokens of a record; longer samples are cut.
    """

    def __init__(self, tokenizer: TokenizerFile, template: str, record_length: int) -> None:
        self._encoder = SpanEncoder(tokenizer.path)
        self._template = Template(template)
        self._length = record_length
        self._bos, self._eos = tokenizer.bos_id, tokenizer.eos_id

    def __call__(self, batch: Conversations) -> Samples:
        """See the class; a conversation that cannot be used is reported in ``bad``."""
        segments: list[Segment] = []
        bounds, bad = [0], []
        for where, record in batch.records:
            try:
                segments += self._template.segments(dialogue_of(record))
            except BadRecordError as error:
                bad.append((where, str(error)))
            else:
                bounds.append(len(segments))
        encoded = self._encoder.encode_from([s.text for s in segments], [s.answer_start for s in segments])
        parts = [self._part(*part) for part in zip(segments, encoded, strict=True)]
        samples, truncated, unlabelled = [], 0, 0
        for begin, end in pairwise(bounds):
            ids, labels = (np.concatenate(column) for column in zip(*parts[begin:end], strict=True))
            ids, cut = ids[: self._length], len(ids) > self._length
            labels = labels[: self._length]
            if cut and (labels == IGNORED).all():
                unlabelled += 1
                continue
            truncated += cut
            samples.append((ids, labels))
        ids, labels = (_joined([sample[column] for sample in samples]) for column in (0, 1))
        lengths = np.array([len(sample[0]) for sample in samples], np.int64)
        return Samples(ids, labels, lengths, truncated, unlabelled, bad, batch.counted)

    def _part(self, segment: Segment, encoded: tuple[np.ndarray, int]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and labels of one segment, between its special tokens."""
        tokens, first = encoded
        ids = np.empty(segment.bos + len(tokens) + 1, np.int32)
        ids[0] = self._bos
        ids[segment.bos : -1] = tokens
        ids[-1] = self._eos
        labels = ids.copy()
        labels[: segment.bos + first] = IGNORED
        return ids, labels


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0, np.int32)


@dataclass
class QaCounts:
    """What a conversion did; ``label_tokens`` of ``tokens`` are learned, ``records`` hold them all."""

    conversations: int = 0
    samples: int = 0
    truncated: int = 0
    dropped_without_label: int = 0
    bad_records: int = 0
    first_bad_records: list[str] = field(default_factory=list)
    tokens: int = 0
    label_tokens: int = 0
    records: int = 0
    packing_rate: float = 0.0

    def summary(self, job: Job) -> str:
        """One line of numbers."""
        rate = self.tokens * job.repeat / max(1, self.records * job.record_length)
        return (
            f"{self.conversations} conversations, {self.samples} samples ({self.truncated} truncated at "
            f"{job.record_length} tokens, {self.dropped_without_label} dropped because no label was left, "
            f"{self.bad_records} bad records left out), {self.tokens} tokens ({self.label_tokens} labels) "
            f"x {job.repeat}, {self.records} records of {job.record_length}, "
            f"{self.samples * job.repeat / max(1, self.records):.2f} samples a record, {rate:.1%} filled"
        )

    def hints(self, job: Job) -> list[str]:
        """What the user has to know next."""
        lines = [f"left out: {line}" for line in self.first_bad_records]
        if self.bad_records > len(self.first_bad_records):
            lines.append(f"left out: ... and {self.bad_records - len(self.first_bad_records)} more")
        return [*lines, f"train_dataset.input_columns for these files: [{', '.join(qa_columns(job))}]"]

    def facts(self, job: Job) -> dict[str, Any]:
        """What the description of the files says about this kind of data."""
        return {"template": job.template, "pack": job.pack, "pad_id": job.tokenizer.pad_id, "ignore_id": IGNORED}


def qa_columns(job: Job) -> tuple[str, ...]:
    """The columns that are written."""
    return PACKED_COLUMNS if job.pack else PACKED_COLUMNS[:2]


def convert_qa(job: Job, output: DatasetOutput) -> QaCounts:
    """Conversations -> records of ``seq_length + 1`` tokens, one sample each, or several with ``pack``.

    Raises:
        DataError: there is nothing to learn from in the files.
    """
    Template(job.template)  # a wrong name is found before a process is started
    counts, skipped = QaCounts(), Skipped()
    packer = Packer(job.record_length, job.tokenizer.pad_id)
    factory = partial(QaTokenizer, job.tokenizer, job.template, job.record_length)
    for samples in ordered_map(_conversations(job), factory, job.num_workers):
        if samples.counted:
            _count(samples, counts, skipped)
        for columns in _records(job, samples, packer):
            counts.records += len(columns["input_ids"])
            output.write(**columns)
    for columns in _stacked(list(packer.rest())):
        counts.records += len(columns["input_ids"])
        output.write(**columns)
    counts.bad_records, counts.first_bad_records = skipped.count, skipped.first
    if not counts.records:
        shown = "".join(f"\n  {line}" for line in skipped.lines())
        raise DataError(
            f"{file_names(job.inputs)}: no sample to learn from in {counts.conversations} conversations; "
            f"{skipped.count} are bad, {counts.dropped_without_label} have no answer within "
            f"{job.record_length} tokens (--seq_length {job.seq_length} + 1){shown}"
        )
    counts.packing_rate = round(counts.tokens * job.repeat / (counts.records * job.record_length), 4)
    return counts


def _conversations(job: Job) -> Iterator[Conversations]:
    """The records of all files, ``repeat`` times."""
    for turn in range(job.repeat):
        what = f"tokenize {turn + 1}/{job.repeat}" if job.repeat > 1 else "tokenize"
        with byte_progress(job.inputs, what, job.show_progress) as advance:
            for path in job.inputs:
                records = enumerate(read_json_records(Path(path), advance))
                for batch in batches(((f"{path} record {number}", record) for number, record in records), _BATCH):
                    yield Conversations(batch, counted=not turn)


def _count(samples: Samples, counts: QaCounts, skipped: Skipped) -> None:
    counts.samples += len(samples.lengths)
    counts.truncated += samples.truncated
    counts.dropped_without_label += samples.unlabelled
    counts.conversations += len(samples.lengths) + samples.unlabelled + len(samples.bad)
    counts.tokens += len(samples.ids)
    counts.label_tokens += int((samples.labels != IGNORED).sum())
    for where, reason in samples.bad:
        skipped.add(where, reason)


def _records(job: Job, samples: Samples, packer: Packer) -> Iterator[dict[str, np.ndarray]]:
    if not job.pack:
        if len(samples.lengths):
            fills = {"input_ids": job.tokenizer.pad_id, "labels": IGNORED}
            flat = {"input_ids": samples.ids, "labels": samples.labels}
            yield {name: padded(flat[name], samples.lengths, job.record_length, fill) for name, fill in fills.items()}
        return
    ends = np.cumsum(samples.lengths)
    full: list[np.ndarray] = []
    for end, length in zip(ends, samples.lengths, strict=True):
        full += packer.add(samples.ids[end - length : end], samples.labels[end - length : end])
    yield from _stacked(full)


def _stacked(records: list[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    if records:
        columns = np.stack(records, axis=1)
        yield {name: columns[index] for index, name in enumerate(PACKED_COLUMNS)}
