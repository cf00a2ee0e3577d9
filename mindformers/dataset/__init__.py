# SPDX-License-Identifier: Apache-2.0
"""Datasets: MindRecord files in a reproducible order."""

from mindformers.dataset.causal_language_model import (
    CausalLanguageModelDataset,
    build_dataset,
    check_record_length,
    check_vocab,
    create_causal_lm_dataset,
)
from mindformers.dataset.mindrecord import RecordInfo, find_mindrecord_files, inspect_mindrecord
from mindformers.dataset.order import epoch_order, rank_records, steps_per_epoch

__all__ = [
    "CausalLanguageModelDataset",
    "RecordInfo",
    "build_dataset",
    "check_record_length",
    "check_vocab",
    "create_causal_lm_dataset",
    "epoch_order",
    "find_mindrecord_files",
    "inspect_mindrecord",
    "rank_records",
    "steps_per_epoch",
]
