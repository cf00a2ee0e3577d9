# SPDX-License-Identifier: Apache-2.0
"""Rules between the keys of a run: devices, learning rates, what a run mode needs; layouts are in layout_checks."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindformers.config.schema.base import Finding, Section
from mindformers.config.schema.layout_checks import is_split, layout_findings
from mindformers.native import library
from mindformers.tools.utils import nearest

if TYPE_CHECKING:
    from mindformers.config.schema.run import RunConfig

_MODEL = "model.model_config"
_COLUMNS = ("input_ids", "labels", "segment_ids")  # the order of LlamaForCausalLM.loss_and_count
_DTYPES = ("compute_dtype", "layernorm_compute_type", "softmax_compute_type", "rotary_dtype", "param_init_type")


def run_findings(cfg: "RunConfig") -> Iterator[Finding]:
    """Rules that hold for every config, whether or not it is run now."""
    yield from _section_findings(cfg)
    yield from layout_findings(cfg)
    yield from _device(cfg)
    yield from _learning_rate(cfg)
    yield from _run_mode(cfg)
    yield from _columns(cfg)


def _run_mode(cfg: "RunConfig") -> Iterator[Finding]:
    weights = cfg.load_checkpoint or cfg.adapter_checkpoint or cfg.model.config.checkpoint_name_or_path
    if cfg.run_mode == "finetune" and not weights and not cfg.resume_training:
        message = f"run_mode finetune needs weights to start from; give it, or {_MODEL}.checkpoint_name_or_path"
        yield Finding("load_checkpoint", message, (f"{_MODEL}.checkpoint_name_or_path", "run_mode"))
    if cfg.run_mode == "predict" and is_split(cfg) and cfg.parallel_config.data_parallel != 1:
        message = f"run_mode predict on several ranks needs 1, got {cfg.parallel_config.data_parallel}"
        yield Finding("parallel_config.data_parallel", message, ("run_mode", "use_parallel"))
    if cfg.run_mode == "export":
        yield from _export_findings(cfg)
    if _answers_questions(cfg):
        if "labels" not in cfg.eval_dataset.input_columns:
            message = f"{cfg.metric.type} needs [input_ids, labels], got {cfg.eval_dataset.input_columns}"
            yield Finding("eval_dataset.input_columns", message, ("metric", "run_mode"))
        elif cfg.model.config.do_sample:
            message = f"{cfg.metric.type} needs answers that can be repeated; set it False"
            yield Finding(f"{_MODEL}.do_sample", message, ("metric", "run_mode"))


def _answers_questions(cfg: "RunConfig") -> bool:
    """Whether an evaluation of this run generates answers and compares them."""
    return (cfg.run_mode == "eval" or cfg.do_eval) and cfg.metric.type in ("EmF1Metric", "SquadMetric")


def _export_findings(cfg: "RunConfig") -> Iterator[Finding]:
    infer, model = cfg.infer, cfg.model.config
    if infer.infer_seq_length != model.seq_length:
        message = f"{infer.infer_seq_length} is not the model's seq_length {model.seq_length}"
        yield Finding("infer.infer_seq_length", message, (f"{_MODEL}.seq_length", "run_mode"))
    if not infer.prefill_model_path:
        yield Finding("infer.prefill_model_path", "it is empty; name the MindIR file to write", ("run_mode",))
    if infer.increment_model_path and not model.use_past:
        message = "a graph for one more token continues from a cache: it needs use_past True"
        yield Finding("infer.increment_model_path", message, (f"{_MODEL}.use_past", "run_mode"))


def _columns(cfg: "RunConfig") -> Iterator[Finding]:
    """Batches reach Llama by the order of their columns."""
    if cfg.model.arch.type != "LlamaForCausalLM":
        return
    for section in ("train_dataset", "eval_dataset"):
        columns = getattr(cfg, section).input_columns
        if columns != list(_COLUMNS[: len(columns)]):
            orders = ", ".join(f"[{', '.join(_COLUMNS[:count])}]" for count in range(1, len(_COLUMNS) + 1))
            yield Finding(f"{section}.input_columns", f"{columns} is not one of: {orders}", ("model.arch",))


def _section_findings(cfg: "RunConfig") -> Iterator[Finding]:
    """The findings of every section, with the section's name before the keys."""
    for name, info in type(cfg).model_fields.items():
        value = getattr(cfg, name)
        items = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, item in items:
            if isinstance(item, Section):
                prefix = (info.alias or name) + ("" if index is None else f".{index}")
                for found in item.findings():
                    involved = tuple(f"{prefix}.{key}" for key in found.involved)
                    yield Finding(f"{prefix}.{found.key}", found.message, involved)


def without_cache(cfg: "RunConfig") -> str | None:
    """Turn ``use_past`` off where generation is split over ranks: MindSpore 2.10 finds no strategy for the cut of a
    cache whose length it does not know ("operator Slice init failed").

    Returns:
        What was changed, as a text for the user; None when nothing was.
    """
    config = cfg.model.config
    generates = cfg.run_mode == "predict" or _answers_questions(cfg)
    if not (generates and is_split(cfg) and config.use_past):
        return None
    config.use_past = False
    return (
        f"{_MODEL}.use_past: False instead of True: a cache cannot be split over ranks; the texts are the same, "
        "each token takes longer"
    )


def _device(cfg: "RunConfig") -> Iterator[Finding]:
    if cfg.context.device_target != "CPU":
        return
    config = cfg.model.config
    native = library.wanted(library.wish(cfg.context.native_kernels, cfg.use_parallel))
    for key in _DTYPES:
        if getattr(config, key) == "bfloat16" and not (native and key == "compute_dtype"):
            message = "no bfloat16 kernels on CPU; use float32 or float16, or context.device_target Ascend"
            if key == "compute_dtype":
                message += ", or context.native_kernels: True (docs/native.md)"
            yield Finding(f"{_MODEL}.{key}", message, ("context.device_target", "context.native_kernels"))
    if config.pet_config is not None:
        for key in ("param_init_type", "compute_dtype"):
            if getattr(config.pet_config, key) == "bfloat16":
                message = "no bfloat16 kernels on CPU; use float32 or float16"
                yield Finding(f"{_MODEL}.pet_config.{key}", message, ("context.device_target",))


def _learning_rate(cfg: "RunConfig") -> Iterator[Finding]:
    optimizer = cfg.optimizer.options().get("learning_rate")
    schedule = cfg.lr_schedule.options().get("learning_rate") if cfg.lr_schedule is not None else None
    if None not in (optimizer, schedule) and optimizer != schedule:
        message = f"{optimizer} but lr_schedule.learning_rate is {schedule}; give one of them, or the same value"
        yield Finding("optimizer.learning_rate", message, ("lr_schedule.learning_rate",))
    if cfg.lr_schedule is not None and isinstance(schedule, float):
        for key in ("lr_end", "end_learning_rate"):
            end = getattr(cfg.lr_schedule, key, None)
            if isinstance(end, float) and end > schedule:
                message = f"{end} is above the highest learning rate {schedule}"
                yield Finding(f"lr_schedule.{key}", message, ("lr_schedule.learning_rate",))


def launch_findings(cfg: "RunConfig") -> Iterator[Finding]:
    """What must be there when the run starts now: data, prompts, files."""
    if cfg.model.config.weight_dtype not in (None, "float32") and cfg.run_mode not in ("predict", "eval"):
        message = f"{cfg.model.config.weight_dtype} is for run_mode predict and eval; leave it out"
        yield Finding(f"{_MODEL}.weight_dtype", message, ("run_mode",))
    if cfg.run_mode in ("train", "finetune"):
        yield from _data("train_dataset", cfg.train_dataset.data_loader, "--train_dataset_dir")
        if cfg.do_eval:
            yield from _data("eval_dataset", cfg.eval_dataset.data_loader, "--eval_dataset_dir")
        if cfg.optimizer.options().get("learning_rate") is None and (
            cfg.lr_schedule is None or "learning_rate" not in cfg.lr_schedule.options()
        ):
            yield Finding("optimizer.learning_rate", "training needs a learning rate", ("lr_schedule.learning_rate",))
    if cfg.run_mode == "eval":
        yield from _data("eval_dataset", cfg.eval_dataset.data_loader, "--eval_dataset_dir")
    if cfg.run_mode == "predict" and not cfg.input_data:
        yield Finding(
            "input_data", "run_mode predict needs prompts: --predict_data 'TEXT' ..., or a file", ("run_mode",)
        )
    if cfg.run_mode == "export":
        message = "run_mode export is for mindformers/tools/export.py; here: train, finetune, eval or predict"
        yield Finding("run_mode", message)
    vocab_file = getattr(cfg.processor.tokenizer, "vocab_file", "")
    if vocab_file and (cfg.run_mode == "predict" or _answers_questions(cfg)):
        yield from _path("processor.tokenizer.vocab_file", vocab_file, ("run_mode", "metric"))
    answers_file = getattr(cfg.metric, "answers_file", "")
    if answers_file and _answers_questions(cfg):
        yield from _path("metric.answers_file", answers_file, ("metric",))
    for key, path in (
        ("load_checkpoint", cfg.load_checkpoint),
        ("adapter_checkpoint", cfg.adapter_checkpoint),
        (f"{_MODEL}.checkpoint_name_or_path", cfg.model.config.checkpoint_name_or_path),
        ("src_strategy_path_or_dir", cfg.src_strategy_path_or_dir),
    ):
        named = not path or path.startswith("mindspore/")  # old prefix of a model's name, see model_zoo
        if not named and (os.sep in path or Path(path).suffix in (".ckpt", ".safetensors")):
            yield from _path(key, path)


def _data(section: str, loader: Any, flag: str) -> Iterator[Finding]:
    if loader.type != "MindDataset":
        return
    files = loader.dataset_files or []
    paths = [files] if isinstance(files, str) else files
    key = f"{section}.data_loader.{'dataset_files' if paths else 'dataset_dir'}"
    if not paths and not loader.dataset_dir:
        yield Finding(key, f"no data given: {flag} FILE", ("run_mode",))
    for path in paths or [loader.dataset_dir]:
        if path:
            yield from _path(key, path, ("run_mode",))


def _path(key: str, path: str, involved: tuple[str, ...] = ()) -> Iterator[Finding]:
    file = Path(path)
    if file.exists():
        return
    folder = file.parent
    if not folder.is_dir():
        yield Finding(key, f"{path}: no such file (there is no folder {folder})", involved)
        return
    close = nearest(file.name, (entry.name for entry in folder.iterdir()))
    hint = f". Did you mean {str(folder / close)!r}?" if close else ""
    yield Finding(key, f"{path}: no such file{hint}", involved)
