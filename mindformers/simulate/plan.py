# SPDX-License-Identifier: Apache-2.0
"""Does a layout fit a cluster: compile one rank of every stage, estimate its memory, and say what would make it fit."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mindformers.atomic import replacing
from mindformers.checkpoint.names import is_unsaved_name
from mindformers.config import RunConfig, save_config
from mindformers.errors import ConfigError, DeviceError
from mindformers.simulate.memory import GIB, StageMemory, stage_memory

# What compiling takes, measured: GiB of a process, and per layer and micro batch of a stage's graph; the sum allowed.
_COMPILE_BASE, _COMPILE_GRAPH, _COMPILE_LIMIT = 0.6, 0.052, 8.0
RESERVED = 0.06  # share of a device's memory that its runtime, its communication and fragmentation take
_ERROR_LINES = 6


@dataclass
class StagePlan:
    """What is known of one stage.

    Args:
        memory: the estimate.
        compiled: the worker's answer, see ``plan_worker.compile_rank``.
        model: the stage that was compiled; another one where that has the same graph.
    """

    memory: StageMemory
    compiled: dict[str, Any] = field(default_factory=dict)
    model: int = 0

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights on a device as compiled; moments and buffers left out."""
        return sum(size for name, (size, _) in self.compiled["parameters"].items() if _is_weight(name))

    @property
    def state_bytes(self) -> int:
        """Bytes of the optimizer's moments as compiled."""
        states = ("adam_m.", "adam_v.", "moments.")
        return sum(size for name, (size, _) in self.compiled["parameters"].items() if name.startswith(states))


def _is_weight(name: str) -> bool:
    return name.startswith(("model.", "lm_head.")) and not is_unsaved_name(name)


def parse_memory(text: str) -> int:
    """``"64GB"``, ``"31 GiB"`` or ``"500MB"`` to bytes; G and M are powers of 1024, as MindSpore reads them.

    Raises:
        ConfigError: it is something else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([GM])i?B?\s*", text, re.IGNORECASE)
    if not found or float(found.group(1)) <= 0:
        raise ConfigError(f"memory must be a size such as 64GB or 500MB, got {text!r}")
    return int(float(found.group(1)) * (GIB if found.group(2).upper() == "G" else 1 << 20))


def compile_stages(
    cfg: RunConfig, workers: int | None, strategy_dir: Path | None, report: Callable[[str], None] = print
) -> list[StagePlan]:
    """Compile the first rank of every different stage, each in a process of its own.

    The other ranks of a stage have the same graph with other ranks in it, and so have inner stages of as many layers.

    Args:
        cfg: the run's config.
        workers: processes at once; None for one per core, as long as all together stay below 8 GiB of memory.
        strategy_dir: where ``ckpt_strategy_rank_N.ckpt`` of every rank is left; None leaves none.
        report: takes lines about what is being done.

    Raises:
        DeviceError: MindSpore refuses the layout; its reason is in the message.
    """
    layout = cfg.parallel_config if cfg.use_parallel else cfg.parallel_config.model_copy(update=_ALONE)
    size, stages = layout.ranks, layout.pipeline_stage
    per_stage = size // stages
    plans = [StagePlan(stage_memory(cfg, stage)) for stage in range(stages)]
    models = list(range(stages)) if strategy_dir else [_model_of(plans, stage) for stage in range(stages)]
    wanted = sorted(set(models))
    compiled = compiled_config(cfg)
    graphs = max(plan.memory.layers for plan in plans) * compiled.parallel_config.micro_batch_num
    if workers is None:
        needed = _COMPILE_BASE + _COMPILE_GRAPH * graphs
        workers = max(1, min(os.cpu_count() or 1, int(_COMPILE_LIMIT / needed)))
    workers = min(workers, len(wanted))
    report(f"compiling {len(wanted)} of {size} ranks, {workers} at a time")
    answers: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="mindformers_plan_") as folder, ThreadPoolExecutor(workers) as pool:
        config_file = save_config(compiled, Path(folder) / "config.yaml")
        submit = pool.submit
        jobs = {submit(_compile, folder, config_file, size, s * per_stage, strategy_dir): s for s in wanted}
        try:
            for job in tqdm(as_completed(jobs), total=len(jobs), desc="ranks", unit="rank", disable=None):
                answers[jobs[job]] = job.result()
        except BaseException:
            for job in jobs:
                job.cancel()
            raise
    factor = cfg.parallel_config.micro_batch_num / compiled.parallel_config.micro_batch_num
    for stage, model in enumerate(models):
        plans[stage].compiled = _as_stage(answers[model], (stage - model) * per_stage, factor, size)
        plans[stage].model = model
    if strategy_dir:
        _copy_strategies(strategy_dir, per_stage, size)
    return plans


def _model_of(plans: list[StagePlan], stage: int) -> int:
    """The stage whose graph is the same: inner stages differ only by the number of their layers."""
    if stage in (0, len(plans) - 1):
        return stage
    layers = plans[stage].memory.layers
    return next(other for other in range(1, len(plans) - 1) if plans[other].memory.layers == layers)


def _as_stage(answer: dict[str, Any], shift: int, factor: float, size: int) -> dict[str, Any]:
    """What was compiled for an equal stage ``shift`` ranks before, for ``factor`` times as many micro batches.

    Messages of one kind among the same ranks are added up, those of the whole step with those of micro batches.
    """
    sums: dict[tuple, list[float]] = {}
    for item in answer["communication"]:
        everybody = item["everybody"] or len(item["ranks"]) == size
        ranks = tuple(range(size)) if everybody else tuple(rank + shift for rank in item["ranks"])
        entry = sums.setdefault((item["operation"], ranks), [0, 0])
        for index, key in enumerate(("count", "bytes")):
            entry[index] += item[key] * (factor if item["per_micro_batch"] else 1)
    messages = [
        {"operation": operation, "ranks": list(ranks), "count": round(count), "bytes": round(volume)}
        for (operation, ranks), (count, volume) in sums.items()
    ]
    return answer | {"communication": messages}


def _copy_strategies(folder: Path, per_stage: int, size: int) -> None:
    """All ranks of a stage have the same strategy file."""
    for rank in range(size):
        source = folder / f"ckpt_strategy_rank_{rank - rank % per_stage}.ckpt"
        target = folder / f"ckpt_strategy_rank_{rank}.ckpt"
        if target != source:
            with replacing(target) as temporary:
                shutil.copyfile(source, temporary)


_ALONE = {"data_parallel": 1, "model_parallel": 1, "pipeline_stage": 1, "micro_batch_num": 1}


def compiled_config(cfg: RunConfig) -> RunConfig:
    """The config as it is compiled: with as many micro batches as stages, since each more repeats the same graph."""
    layout = cfg.parallel_config
    changes = {"micro_batch_num": layout.pipeline_stage} if cfg.use_parallel else _ALONE
    return cfg.model_copy(
        update={"parallel_config": layout.model_copy(update=changes), "load_checkpoint": "", "run_mode": "train"}
    )


def _compile(folder: str, config_file: Path, size: int, rank: int, strategy_dir: Path | None) -> dict[str, Any]:
    request, answer = Path(folder) / f"request_{rank}.json", Path(folder) / f"answer_{rank}.json"
    strategy = str(strategy_dir / f"ckpt_strategy_rank_{rank}.ckpt") if strategy_dir else None
    words = {"config": str(config_file), "size": size, "rank": rank, "strategy_file": strategy, "answer": str(answer)}
    request.write_text(json.dumps(words), encoding="utf-8")
    env = dict(os.environ, MS_SIMULATION_LEVEL="0", GLOG_v="3", OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", "mindformers.simulate.plan_worker", str(request)]
    done = subprocess.run(command, env=env, text=True, capture_output=True, cwd=folder)
    if done.returncode or not answer.exists():
        lines = [line for line in done.stderr.splitlines() if re.match(r"\w*(Error|Exception)\b", line)]
        reason = "\n  ".join((lines or done.stderr.splitlines())[-_ERROR_LINES:]) or f"exit code {done.returncode}"
        raise DeviceError(f"rank {rank} of {size} does not compile:\n  {reason}")
    return json.loads(answer.read_text(encoding="utf-8"))


def worst(cfg: RunConfig) -> StageMemory:
    """The stage that needs most memory."""
    stages = cfg.parallel_config.pipeline_stage if cfg.use_parallel else 1
    return max((stage_memory(cfg, stage) for stage in range(stages)), key=lambda memory: memory.total)


def fits(memory: StageMemory, available: int) -> bool:
    """Whether a stage fits a device with ``available`` bytes."""
    return memory.total <= available * (1 - RESERVED)


def remedies(cfg: RunConfig) -> Iterator[tuple[str, str, RunConfig]]:
    """Changes that save memory, cheapest first: (what to set, what it costs, the changed config)."""
    layout, recompute, section = cfg.parallel_config, cfg.recompute_config, cfg.parallel
    dp, mp, stages = layout.data_parallel, layout.model_parallel, layout.pipeline_stage
    shard = section.parallel_optimizer_config.gradient_accumulation_shard

    def changed(**sections: Any) -> RunConfig:
        return cfg.model_copy(update=sections)

    if cfg.use_parallel and dp > 1 and not section.enable_parallel_optimizer:
        new = changed(parallel=section.model_copy(update={"enable_parallel_optimizer": True}))
        yield "parallel.enable_parallel_optimizer True", "an AllGather of the weights a step", new
    if (
        cfg.use_parallel
        and dp > 1
        and not recompute.parallel_optimizer_comm_recompute
        and recompute.recompute
        and not shard
    ):
        new = changed(recompute_config=recompute.model_copy(update={"parallel_optimizer_comm_recompute": True}))
        yield "recompute_config.parallel_optimizer_comm_recompute True", "the weights are gathered twice a step", new
    if mp > 1 and recompute.recompute and not recompute.recompute_slice_activation:
        new = changed(recompute_config=recompute.model_copy(update={"recompute_slice_activation": True}))
        yield "recompute_config.recompute_slice_activation True", "an AllGather per layer", new
    if not recompute.recompute:
        new = changed(recompute_config=recompute.model_copy(update={"recompute": True, "select_recompute": False}))
        yield "recompute_config.recompute True", "about a third more computing", new
    if cfg.runner_config.batch_size > 1:
        new = changed(runner_config=cfg.runner_config.model_copy(update={"batch_size": 1}))
        yield "runner_config.batch_size 1", "smaller matrices; raise micro_batch_num or accumulation instead", new
    for ways in (2, 4, 8):
        keys = {"data_parallel": dp // ways, "model_parallel": mp * ways}
        heads = cfg.model.config.num_kv_heads % keys["model_parallel"] == 0 and cfg.model.config.ffn_size % ways == 0
        if cfg.use_parallel and dp % ways == 0 and heads:
            new = changed(parallel_config=layout.model_copy(update=keys))
            yield f"data_parallel {dp // ways}, model_parallel {mp * ways}", "AllReduces in every layer", new
    for ways in (2, 4, 8):
        total = stages * ways
        if cfg.use_parallel and total <= cfg.model.config.num_layers:
            keys = {"pipeline_stage": total, "micro_batch_num": max(layout.micro_batch_num, total)}
            new = changed(parallel_config=layout.model_copy(update=keys))
            yield f"pipeline_stage {total} on {layout.ranks * ways} devices", f"{ways} times the devices", new


def advice(cfg: RunConfig, available: int) -> str:
    """The cheapest single change, or else the cheapest run of changes, after which every stage fits."""
    for what, cost, new in remedies(cfg):
        if fits(worst(new), available):
            return f"set {what} (costs: {cost}); then {worst(new).total / GIB:.1f} GiB"
    current, taken = cfg, []
    while True:
        options = [(worst(new).total, what, new) for what, _, new in remedies(current)]
        better = [option for option in options if option[0] < worst(current).total]
        if not better:
            need = worst(current).total / GIB
            return (
                f"nothing known here is enough ({need:.1f} GiB after {', '.join(taken) or 'no change'}): more devices"
            )
        _, what, current = better[0]
        taken.append(what)
        if fits(worst(current), available):
            return f"set {'; '.join(taken)}; then {worst(current).total / GIB:.1f} GiB"
