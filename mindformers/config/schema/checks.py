# SPDX-License-Identifier: Apache-2.0
"""Rules between the keys of a run: divisibility, devices, learning rates, what a run mode needs."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindformers.config.schema.base import Finding, Section
from mindformers.config.schema.parallel import layer_stages
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
    yield from _parallel(cfg)
    yield from _device(cfg)
    yield from _learning_rate(cfg)
    yield from _run_mode(cfg)
    yield from _columns(cfg)


def _run_mode(cfg: "RunConfig") -> Iterator[Finding]:
    weights = cfg.load_checkpoint or cfg.adapter_checkpoint or cfg.model.config.checkpoint_name_or_path
    if cfg.run_mode == "finetune" and not weights and not cfg.resume_training:
        message = f"run_mode finetune needs weights to start from; give it, or {_MODEL}.checkpoint_name_or_path"
        yield Finding("load_checkpoint", message, (f"{_MODEL}.checkpoint_name_or_path", "run_mode"))
    if cfg.run_mode == "predict" and _is_split(cfg) and cfg.parallel_config.data_parallel != 1:
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


def _is_split(cfg: "RunConfig") -> bool:
    """Whether the model is laid out over the ranks by parallel_config (semi-auto or auto parallel)."""
    return cfg.use_parallel and cfg.parallel.parallel_mode not in (0, "DATA_PARALLEL", "STAND_ALONE")


def batches_of_a_call(cfg: "RunConfig") -> int:
    """Batches of ``runner_config.batch_size`` records that one call of a split network takes, over all ranks."""
    layout = cfg.parallel_config
    in_flight = layout.micro_batch_num if layout.pipeline_stage > 1 else 1
    return layout.data_parallel * in_flight * cfg.micro_batch_interleave_num


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


def _parallel(cfg: "RunConfig") -> Iterator[Finding]:
    if not cfg.use_parallel:
        return
    yield from _modes(cfg)
    layout = cfg.parallel_config
    ways, stages = layout.model_parallel, layout.pipeline_stage
    config = cfg.model.config
    mine = "parallel_config.model_parallel"
    near = working_layouts(cfg, layout.ranks)
    for key, number, what in (
        ("num_heads", config.num_heads, "attention heads are"),
        ("n_kv_heads", config.num_kv_heads, "key/value heads are"),
        ("intermediate_size", config.ffn_size, "feed-forward columns are"),
    ):
        if number % ways:
            message = f"{number} {what} not divisible by model_parallel {ways}"
            message += f"; layouts of {layout.ranks} ranks that work: {', '.join(near)}" if near else ""
            near = []  # said once
            yield Finding(mine, message, (f"{_MODEL}.{key}",))
    if not layout.vocab_emb_dp and config.vocab_size % ways:
        message = f"vocab_size {config.vocab_size} is not divisible by model_parallel {ways}; set vocab_emb_dp True"
        yield Finding(mine, message, (f"{_MODEL}.vocab_size", "parallel_config.vocab_emb_dp"))
    if stages > 1 and cfg.run_mode in ("train", "finetune") and layout.micro_batch_num < stages:
        message = f"{layout.micro_batch_num} is below pipeline_stage {stages}; a stage would always wait"
        yield Finding("parallel_config.micro_batch_num", message, ("parallel_config.pipeline_stage",))
    if stages > config.num_layers:
        message = f"{stages} stages for num_layers {config.num_layers}"
        yield Finding("parallel_config.pipeline_stage", message, (f"{_MODEL}.num_layers",))
    if isinstance(config.offset, list) and len(config.offset) != stages:
        message = f"has {len(config.offset)} entries for pipeline_stage {stages}"
        yield Finding(f"{_MODEL}.offset", message, ("parallel_config.pipeline_stage",))
    given = cfg.parallel.pipeline_stages
    if given is not None and given != stages:
        message = f"{given} does not agree with parallel_config.pipeline_stage {stages}; leave it out"
        yield Finding("parallel.pipeline_stages", message, ("parallel_config.pipeline_stage",))
    if layout.use_seq_parallel and config.seq_length % ways:
        message = f"seq_length {config.seq_length} is not divisible by model_parallel {ways}"
        yield Finding("parallel_config.use_seq_parallel", message, (mine, f"{_MODEL}.seq_length"))
    if stages > 1 and config.num_layers >= stages:
        places = layer_stages(config.num_layers, stages, config.offset)
        empty = [stage for stage in range(stages) if stage not in places]
        if empty and not isinstance(config.offset, list):
            message = f"offset {config.offset} leaves stage {empty[0]} of {stages} without a layer"
            yield Finding(f"{_MODEL}.offset", message, ("parallel_config.pipeline_stage",))
    if stages > 1 and cfg.runner_config.gradient_accumulation_steps > 1:
        message = "a pipeline accumulates over parallel_config.micro_batch_num already; set it to 1 and raise that"
        yield Finding("runner_config.gradient_accumulation_steps", message, ("parallel_config.pipeline_stage",))
    if stages > 1 and cfg.micro_batch_interleave_num > 1:
        message = (
            "interleaved halves and pipeline stages together do not compile in MindSpore 2.10; set one of them to 1"
        )
        yield Finding("micro_batch_interleave_num", message, ("parallel_config.pipeline_stage",))
    if layout.pipeline_stage > 1 and not cfg.parallel.full_batch:
        message = "MindSpore does not compile a pipeline behind a batch that ranks read in parts; set it True"
        yield Finding("parallel.full_batch", message, ("parallel_config.pipeline_stage",))
    details = cfg.parallel.parallel_optimizer_config
    if cfg.recompute_config.parallel_optimizer_comm_recompute and details.gradient_accumulation_shard:
        message = "MindSpore has it without parallel_optimizer_config.gradient_accumulation_shard only; set one False"
        key = "parallel.parallel_optimizer_config.gradient_accumulation_shard"
        yield Finding("recompute_config.parallel_optimizer_comm_recompute", message, (key,))
    if cfg.parallel.device_num is not None:
        yield from rank_findings(cfg, cfg.parallel.device_num, "parallel.device_num")
    yield from _split_on_cpu(cfg)


def _modes(cfg: "RunConfig") -> Iterator[Finding]:
    """Ways to run on several ranks that MindSpore has and this model has not, with the nearest one that works."""
    mode, layout = cfg.parallel.parallel_mode, cfg.parallel_config
    whole = layout.model_parallel == layout.pipeline_stage == 1
    near = "0 (data parallel)" if whole else "1 (semi-auto parallel)"
    key = "parallel.parallel_mode"
    if mode in (3, "HYBRID_PARALLEL"):
        message = f"hybrid parallel needs a model that sends its own messages, and Llama has none; take {near}"
        yield Finding(key, f"{message}, or the ranks would train apart", ("use_parallel",))
    if mode == "STAND_ALONE":
        message = f"every rank would do the same run into the same files; set use_parallel False, or take {near}"
        yield Finding(key, message, ("use_parallel",))
    if mode in (2, "AUTO_PARALLEL"):
        message = "MindSpore 2.10 does not compile the training step in auto parallel; take 1 (semi-auto parallel)"
        yield Finding(key, message, ("use_parallel",))


def _split_on_cpu(cfg: "RunConfig") -> Iterator[Finding]:
    """What a CPU can compile but not execute."""
    if cfg.context.device_target != "CPU" or not _is_split(cfg):
        return
    layout = cfg.parallel_config
    if layout.pipeline_stage > 1:
        message = f"{layout.pipeline_stage} stages cannot run on CPU (it has no Send and Receive); 1, or use plan"
        yield Finding("parallel_config.pipeline_stage", message, ("context.device_target",))
    if layout.use_seq_parallel and layout.data_parallel > 1:
        message = f"on CPU it needs data_parallel 1, got {layout.data_parallel} (no AllGather among some ranks)"
        yield Finding("parallel_config.use_seq_parallel", message, ("parallel_config.data_parallel",))
    if not layout.vocab_emb_dp and layout.model_parallel > 1:
        message = "a CPU cannot look up an embedding split over model_parallel; set vocab_emb_dp True"
        yield Finding("parallel_config.vocab_emb_dp", message, ("parallel_config.model_parallel",))


def working_layouts(cfg: "RunConfig", ranks: int, count: int = 3) -> list[str]:
    """The layouts for ``ranks`` that this model can have, nearest to the given one first, as texts."""
    layout, config = cfg.parallel_config, cfg.model.config
    found = []
    for stages in (n for n in range(1, min(ranks, config.num_layers) + 1) if ranks % n == 0):
        for ways in (n for n in range(1, ranks // stages + 1) if ranks // stages % n == 0):
            sizes = [config.num_heads, config.num_kv_heads, config.ffn_size, config.hidden_size]
            sizes += [] if layout.vocab_emb_dp else [config.vocab_size]
            on_cpu = cfg.context.device_target == "CPU" and stages > 1
            if any(size % ways for size in sizes) or on_cpu:
                continue
            groups = ranks // stages // ways
            pairs = zip(
                (groups, ways, stages),
                (layout.data_parallel, layout.model_parallel, layout.pipeline_stage),
                strict=True,
            )
            distance = sum(abs(math.log2(mine / given)) for mine, given in pairs)
            found.append((distance, f"{groups} * {ways} * {stages}"))
    return [text for _, text in sorted(found)[:count]]


def without_cache(cfg: "RunConfig") -> str | None:
    """Turn ``use_past`` off where generation is split over ranks: MindSpore 2.10 finds no strategy for the cut of a
    cache whose length it does not know ("operator Slice init failed").

    Returns:
        What was changed, as a text for the user; None when nothing was.
    """
    config = cfg.model.config
    generates = cfg.run_mode == "predict" or _answers_questions(cfg)
    if not (generates and _is_split(cfg) and config.use_past):
        return None
    config.use_past = False
    return (
        f"{_MODEL}.use_past: False instead of True: a cache cannot be split over ranks; the texts are the same, "
        "each token takes longer"
    )


def fill_ranks(cfg: "RunConfig", ranks: int) -> str | None:
    """Let a ``data_parallel`` that is left at 1 take the ranks that the rest of the layout does not use.

    For prediction, which has no data parallelism, a ``model_parallel`` left at 1 takes them.

    Args:
        cfg: the config; its ``parallel_config`` is replaced.
        ranks: how many there are.

    Returns:
        What was changed, as a text for the user; None when nothing was.
    """
    layout = cfg.parallel_config
    key = "model_parallel" if cfg.run_mode == "predict" else "data_parallel"
    if not _is_split(cfg) or getattr(layout, key) != 1 or layout.ranks == ranks or ranks % layout.ranks:
        return None
    cfg.parallel_config = layout.model_copy(update={key: ranks // layout.ranks})
    new = cfg.parallel_config
    return (
        f"parallel_config.{key}: {ranks // layout.ranks} instead of 1, to use all {ranks} ranks "
        f"({new.data_parallel} data * {new.model_parallel} model * {new.pipeline_stage} pipeline)"
    )


def rank_findings(cfg: "RunConfig", ranks: int, source: str) -> Iterator[Finding]:
    """The layout must use every rank.

    Args:
        cfg: the config.
        ranks: how many there are.
        source: where that number comes from, for the message.
    """
    layout = cfg.parallel_config
    records = cfg.runner_config.batch_size * batches_of_a_call(cfg)
    trains = cfg.run_mode in ("train", "finetune")
    if trains and _is_split(cfg) and not cfg.parallel.full_batch and records % ranks:
        message = f"False, but {ranks} ranks cannot read equal parts of the {records} records of a batch; True, or a "
        message += "runner_config.batch_size that makes them divisible"
        yield Finding("parallel.full_batch", message, ("runner_config.batch_size", "parallel_config.data_parallel"))
    if _is_split(cfg) and layout.ranks != ranks:
        product = f"{layout.data_parallel} * {layout.model_parallel} * {layout.pipeline_stage} = {layout.ranks}"
        message = f"data_parallel * model_parallel * pipeline_stage is {product}, but {source} is {ranks}"
        near = working_layouts(cfg, ranks)
        message += f"; layouts that work: {', '.join(near)}" if near else "; this model has no layout for so many"
        keys = ("data_parallel", "model_parallel", "pipeline_stage")
        yield Finding("parallel_config", message, tuple(f"parallel_config.{key}" for key in keys))


def _device(cfg: "RunConfig") -> Iterator[Finding]:
    if cfg.context.device_target != "CPU":
        return
    config = cfg.model.config
    native = library.wanted(cfg.context.native_kernels)
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
