# SPDX-License-Identifier: Apache-2.0
"""Datasets, tokenizer, processor, metric and export: sections around the data."""

from typing import Any, Literal

from pydantic import Field

from mindformers.config.schema.base import (
    Component,
    NonNegativeInt,
    PositiveInt,
    Section,
    by_type,
    inert,
    other_component,
)
from mindformers.registry import MindFormerModuleType as Kind


class MindDataset(Component):
    """Records of MindRecord files."""

    type: Literal["MindDataset"] = Field("MindDataset", description="Class of the data loader.")
    dataset_dir: str = Field("", description="A MindRecord file, or a folder with MindRecord files.")
    dataset_files: str | list[str] | None = Field(None, description="MindRecord files; wins over dataset_dir.")
    shuffle: bool = Field(False, description="A new order of the records in every epoch, fixed by the seed.")
    num_samples: PositiveInt | None = Field(None, description="Use only this many records; all if absent.")


OtherLoader = other_component(Kind.DATASET_LOADER, "OtherLoader")
DataLoader = by_type(Kind.DATASET_LOADER, (MindDataset,), OtherLoader)


class DatasetSection(Section):
    """Sections ``train_dataset`` and ``eval_dataset``."""

    data_loader: DataLoader = Field(default_factory=MindDataset, description="Where the records come from.")
    input_columns: list[str] = Field(
        default_factory=lambda: ["input_ids"],
        min_length=1,
        description="Columns given to the model: input_ids; with labels for instruction data; "
        "with labels and segment_ids for packed instruction data.",
    )
    seed: NonNegativeInt | None = Field(None, description="Seed of the record order; the run's seed if absent.")
    num_parallel_workers: PositiveInt = Field(
        8, description="Threads that read and batch; at most one per core is used."
    )
    python_multiprocessing: bool = inert(False, "processes instead of threads", "the reader is not written in Python")
    drop_remainder: bool = Field(True, description="Leave out the last records that do not fill a batch.")
    batch_size: PositiveInt = inert(4, "records per batch", "runner_config.batch_size decides")
    repeat: PositiveInt = Field(1, description="Passes over the data in one epoch.")
    numa_enable: bool = Field(False, description="Bind each process to its memory node.")
    prefetch_size: PositiveInt = Field(1, description="Batches prepared ahead.")


class DatasetTaskSection(Component):
    """Sections ``train_dataset_task`` and ``eval_dataset_task``."""

    type: str = Field("CausalLanguageModelDataset", description="Class that turns records into batches.")
    dataset_config: DatasetSection | None = Field(
        None, description="Leave it out: it is the section train_dataset or eval_dataset."
    )


class LlamaTokenizerSection(Component):
    """Key ``processor.tokenizer`` with type LlamaTokenizer."""

    type: Literal["LlamaTokenizer"] = Field("LlamaTokenizer", description="Class of the tokenizer.")
    vocab_file: str = Field("", description="SentencePiece model (tokenizer.model).")
    unk_token: str = Field("<unk>", description="Token for text outside the vocabulary.")
    bos_token: str = Field("<s>", description="Token put before a text.")
    eos_token: str = Field("</s>", description="Token that ends a text.")
    pad_token: str = Field("<unk>", description="Token that fills short sequences.")
    add_bos_token: bool = Field(True, description="Put bos_token before each text.")
    add_eos_token: bool = Field(False, description="Put eos_token after each text.")
    model_max_length: PositiveInt | None = Field(None, description="Longest sequence; no limit if absent.")
    padding_side: Literal["right", "left"] = Field("right", description="Side that is filled.")
    truncation_side: Literal["right", "left"] = Field("right", description="Side that is cut.")
    clean_up_tokenization_spaces: bool = Field(False, description="Join spaces before punctuation when decoding.")
    additional_special_tokens: list[str] | None = Field(None, description="Further tokens never split.")
    sp_model_kwargs: dict[str, Any] | None = Field(None, description="Arguments for SentencePiece, passed on.")


OtherTokenizer = other_component(Kind.TOKENIZER, "OtherTokenizer")
Tokenizer = by_type(Kind.TOKENIZER, (LlamaTokenizerSection,), OtherTokenizer)


class ProcessorSection(Component):
    """Section ``processor``."""

    type: str = Field("LlamaProcessor", description="Class of the processor.")
    return_tensors: Literal["ms", "np"] | None = Field("ms", description="Tensors the processor returns.")
    tokenizer: Tokenizer = Field(default_factory=LlamaTokenizerSection, description="The tokenizer.")


class PerplexityMetric(Component):
    """Token-weighted loss and its exponential."""

    type: Literal["PerplexityMetric"] = Field("PerplexityMetric", description="Class of the metric.")


class EmF1Metric(Component):
    """Exact match and F1 of generated answers; the eval data needs a column labels."""

    type: Literal["EmF1Metric"] = Field("EmF1Metric", description="Class of the metric.")


OtherMetric = other_component(Kind.METRIC, "OtherMetric")
Metric = by_type(Kind.METRIC, (PerplexityMetric, EmF1Metric), OtherMetric)


class InferSection(Section):
    """Section ``infer``: what tools/export.py writes."""

    prefill_model_path: str = Field("", description="MindIR of the graph that reads the prompt.")
    increment_model_path: str = Field("", description="MindIR of the graph for one more token; one graph if empty.")
    infer_seq_length: PositiveInt = Field(512, description="Sequence length; must equal the model's seq_length.")
    model_type: Literal["mindir", "mindir_lite"] = Field("mindir", description="Format of the export.")
    device_id: NonNegativeInt = Field(0, description="Device used by the export.")
