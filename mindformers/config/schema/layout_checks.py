# SPDX-License-Identifier: Apache-2.0
"""Rules of a layout over ranks: what divides what, what MindSpore and a CPU can do, and the layouts that work."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mindformers.config.schema.base import Finding
from mindformers.config.schema.parallel import layer_stages

if TYPE_CHECKING:
    from mindformers.config.schema.run import RunConfig

_MODEL = "model.model_config"


def is_split(cfg: "RunConfig") -> bool:
    """Whether the model is laid out over the ranks by parallel_config (semi-auto or auto parallel)."""
    return cfg.use_parallel and cfg.parallel.parallel_mode not in (0, "DATA_PARALLEL", "STAND_ALONE")


def batches_of_a_call(cfg: "RunConfig") -> int:
    """Batches of ``runner_config.batch_size`` records that one call of a split network takes, over all ranks."""
    layout = cfg.parallel_config
    in_flight = layout.micro_batch_num if layout.pipeline_stage > 1 else 1
    return layout.data_parallel * in_flight * cfg.micro_batch_interleave_num


def layout_findings(cfg: "RunConfig") -> Iterator[Finding]:
    """Rules that hold for every layout, whatever the number of ranks."""
    if not cfg.use_parallel:
        return
    yield from _modes(cfg)
    layout = cfg.parallel_config
    ways = layout.model_parallel
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
    if layout.use_seq_parallel and config.seq_length % ways:
        message = f"seq_length {config.seq_length} is not divisible by model_parallel {ways}"
        yield Finding("parallel_config.use_seq_parallel", message, (mine, f"{_MODEL}.seq_length"))
    yield from _pipeline(cfg)
    details = cfg.parallel.parallel_optimizer_config
    if cfg.recompute_config.parallel_optimizer_comm_recompute and details.gradient_accumulation_shard:
        message = "MindSpore has it without parallel_optimizer_config.gradient_accumulation_shard only; set one False"
        key = "parallel.parallel_optimizer_config.gradient_accumulation_shard"
        yield Finding("recompute_config.parallel_optimizer_comm_recompute", message, (key,))
    if cfg.parallel.device_num is not None:
        yield from rank_findings(cfg, cfg.parallel.device_num, "parallel.device_num")
    yield from _on_cpu(cfg)


def _pipeline(cfg: "RunConfig") -> Iterator[Finding]:
    layout, config = cfg.parallel_config, cfg.model.config
    stages = layout.pipeline_stage
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
    if stages > 1 and not cfg.parallel.full_batch:
        message = "MindSpore does not compile a pipeline behind a batch that ranks read in parts; set it True"
        yield Finding("parallel.full_batch", message, ("parallel_config.pipeline_stage",))


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
        if layout.pipeline_stage > 1:
            message = f"MindSpore compiles no pipeline ({layout.pipeline_stage} stages) in auto parallel; take {near}"
            yield Finding(key, message, ("parallel_config.pipeline_stage",))
        if cfg.parallel.search_mode == "dynamic_programming":
            message = "MindSpore's search fails on this model; take sharding_propagation or recursive_programming"
            yield Finding("parallel.search_mode", message, (key,))


def _on_cpu(cfg: "RunConfig") -> Iterator[Finding]:
    """What a CPU can compile but not execute."""
    if cfg.context.device_target != "CPU" or not is_split(cfg):
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
    if not is_split(cfg) or getattr(layout, key) != 1 or layout.ranks == ranks or ranks % layout.ranks:
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
    if trains and is_split(cfg) and not cfg.parallel.full_batch and records % ranks:
        message = f"False, but {ranks} ranks cannot read equal parts of the {records} records of a batch; True, or a "
        message += "runner_config.batch_size that makes them divisible"
        yield Finding("parallel.full_batch", message, ("runner_config.batch_size", "parallel_config.data_parallel"))
    if is_split(cfg) and layout.ranks != ranks:
        product = f"{layout.data_parallel} * {layout.model_parallel} * {layout.pipeline_stage} = {layout.ranks}"
        message = f"data_parallel * model_parallel * pipeline_stage is {product}, but {source} is {ranks}"
        near = working_layouts(cfg, ranks)
        message += f"; layouts that work: {', '.join(near)}" if near else "; this model has no layout for so many"
        keys = ("data_parallel", "model_parallel", "pipeline_stage")
        yield Finding("parallel_config", message, tuple(f"parallel_config.{key}" for key in keys))
