# SPDX-License-Identifier: Apache-2.0
"""The text that ``python -m mindformers plan`` prints."""

from collections.abc import Iterator, Sequence

from mindformers.config import RunConfig
from mindformers.config.schema.parallel import layer_stages
from mindformers.simulate.memory import GIB, bubble, in_flight
from mindformers.simulate.plan import RESERVED, StagePlan, advice, fits
from mindformers.tools.rank_table import spans

_MIB = 1 << 20


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of text as lines with aligned columns; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()


def layout_lines(cfg: RunConfig) -> Iterator[str]:
    """What is split how."""
    layout, config = cfg.parallel_config, cfg.model.config
    if not cfg.use_parallel:
        yield "layout: one device (use_parallel False)"
        return
    dp, mp, stages = layout.data_parallel, layout.model_parallel, layout.pipeline_stage
    yield f"layout: {layout.ranks} devices = data {dp} x model {mp} x pipeline {stages}"
    yield f"  heads            {config.num_heads} query and {config.num_kv_heads} key/value heads over {mp}"
    yield f"  feed-forward     {config.ffn_size} columns over {mp}"
    embedding = "whole on each rank" if layout.vocab_emb_dp or mp == 1 else f"{config.vocab_size} rows over {mp}"
    yield f"  embedding, head  {embedding}"
    copies = "sliced over the ranks that hold the same part" if cfg.parallel.enable_parallel_optimizer else "not sliced"
    yield f"  optimizer        {copies}"
    if layout.use_seq_parallel:
        yield f"  norms, residuals {config.seq_length} positions over {mp}"
    if stages > 1:
        places = layer_stages(config.num_layers, stages, config.offset)
        counts = ", ".join(str(places.count(stage)) for stage in range(stages))
        yield f"  layers           {counts}; {layout.micro_batch_num} micro batches"
        yield f"  pipeline bubble  {bubble(cfg):.1%} of the time"


def memory_lines(cfg: RunConfig, plans: Sequence[StagePlan]) -> Iterator[str]:
    """Memory of a device of each stage."""
    unit, name = (GIB, "GiB") if max(plan.memory.total for plan in plans) >= GIB else (_MIB, "MiB")
    rows = [
        (
            "stage",
            "layers",
            "in flight",
            "weights",
            "optimizer",
            "gradients",
            "gathered",
            "activations",
            "total " + name,
        )
    ]
    for plan in plans:
        m = plan.memory
        sizes = (plan.weight_bytes, plan.state_bytes, m.gradients, m.gathered, m.activations)
        flying = str(in_flight(cfg, m.stage))
        shown = [f"{size / unit:.2f}" for size in (*sizes, m.total)]
        rows.append((str(m.stage), str(m.layers), flying, *shown))
    yield from table(rows)


def communication_lines(plans: Sequence[StagePlan]) -> Iterator[str]:
    """Messages of the first rank of each different stage in one optimizer step."""
    rows = [("stage", "operation", "ranks", "messages", "MiB a step")]
    for model in dict.fromkeys(plan.model for plan in plans):
        equal = [plan for plan in plans if plan.model == model]
        stages = spans(plan.memory.stage for plan in equal)
        for item in equal[0].compiled["communication"]:
            ranks = item["ranks"]
            shown = ",".join(map(str, ranks)) if len(ranks) <= 8 else f"{len(ranks)} ranks ({ranks[0]} .. {ranks[-1]})"
            if item["operation"] in ("Send", "Receive"):
                shown = f"{'to' if item['operation'] == 'Send' else 'from'} {ranks[0]}"
            rows.append((stages, item["operation"], shown, str(item["count"]), f"{item['bytes'] / _MIB:.1f}"))
    if len(rows) == 1:
        yield "communication: none"
        return
    equal_stages = len({row[0] for row in rows[1:]}) < len(plans)
    yield "messages of the first rank of a stage" + (", the ranks those of the first of equal stages" * equal_stages)
    yield from table(rows)


def verdict(cfg: RunConfig, plans: Sequence[StagePlan], available: int) -> str:
    """Fits or not, and what would make it fit."""
    memory = max((plan.memory for plan in plans), key=lambda m: m.total)
    need = f"stage {memory.stage} needs {memory.total / GIB:.1f} of {available / GIB:.1f} GiB"
    need += f" (of which {RESERVED:.0%} is kept for the runtime)"
    if fits(memory, available):
        return f"fits: {need}"
    return f"does not fit: {need}\ncheapest change: {advice(cfg, available)}"


def report(cfg: RunConfig, plans: Sequence[StagePlan], available: int) -> str:
    """The whole text."""
    config = cfg.model.config
    billions = config.num_parameters / 1e9
    count = f"{billions:.2f} billion" if billions >= 0.1 else f"{billions * 1e3:.2f} million"
    first = f"{cfg.trainer.model_name}: {count} parameters, {config.seq_length} tokens"
    seconds = sum(plan.compiled["seconds"] for stage, plan in enumerate(plans) if plan.model == stage)
    peak = max(plan.compiled["peak_bytes"] for plan in plans)
    last = f"compiled in processes of {seconds:.0f} s together, at most {peak / GIB:.1f} GiB each"
    parts = (layout_lines(cfg), memory_lines(cfg, plans), communication_lines(plans))
    return "\n\n".join([first, *("\n".join(part) for part in parts), verdict(cfg, plans, available), last])
