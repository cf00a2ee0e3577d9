# SPDX-License-Identifier: Apache-2.0
"""How much memory one device of a pipeline stage needs in training: the formulas of docs/parallel.md, no MindSpore.

Letters as in the documentation: b records per data parallel rank and micro batch, S tokens of a record, T = b * S,
H hidden, F feed-forward, N query heads, K key/value heads, D head size, V vocabulary, c bytes of the compute type.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mindformers.config import RunConfig
from mindformers.config.schema.parallel import layer_stages

BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
GIB = 1 << 30
# Fitted to measured runs on CPU (docs/parallel.md): all results of a layer as a multiple of those kept for the backward
# pass, those of the size of the scores, those of the size of the logits in fp32, and the compiled graph itself.
CPU_LAYER, CPU_SCORES, CPU_HEAD, CPU_GRAPH = 1.5, 0.9, 1.6, 143 << 20


@dataclass(frozen=True)
class Weight:
    """One parameter of a stage.

    Args:
        name: as in checkpoints.
        shape: of the whole parameter.
        split: parts each dimension is cut into by model parallel.
        dtype: it is kept in.
        layer: decoder layer it belongs to; None for embedding, last norm and head.
        trained: it has a gradient and moments; False for the weights under an adapter.
    """

    name: str
    shape: tuple[int, ...]
    split: tuple[int, ...]
    dtype: str
    layer: int | None = None
    trained: bool = True

    @property
    def slice_shape(self) -> tuple[int, ...]:
        """Shape on one rank, before the optimizer's slicing."""
        return tuple(length // parts for length, parts in zip(self.shape, self.split, strict=True))


@dataclass(frozen=True)
class StageMemory:
    """Bytes on one device of a stage."""

    stage: int
    layers: int
    parameters: int
    optimizer: int
    gradients: int
    gathered: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.optimizer + self.gradients + self.gathered + self.activations


def weights_of(cfg: RunConfig, stage: int) -> Iterator[Weight]:
    """The parameters of one stage, in the order of the network, an adapter's after the weight it is for."""
    config, layout = cfg.model.config, cfg.parallel_config
    mp, stages = layout.model_parallel, layout.pipeline_stage
    hidden, ffn = config.hidden_size, config.ffn_size
    kv_width = hidden // config.num_heads * config.num_kv_heads
    vocabulary = (1 if layout.vocab_emb_dp else mp, 1)
    adapted = config.pet_config is not None

    def weight(name: str, shape: tuple[int, ...], split: tuple[int, ...], layer: int | None = None) -> Weight:
        kind = "float32" if len(shape) == 1 else config.param_init_type  # norms are always kept so
        return Weight(name, shape, split, kind, layer, not adapted)

    if stage == 0 or (stage == stages - 1 and config.tie_word_embeddings):
        yield weight("model.tok_embeddings.embedding_weight", (config.vocab_size, hidden), vocabulary)
    for layer in _layers(cfg, stage):
        prefix = f"model.layers.{layer}."
        yield weight(prefix + "attention_norm.weight", (hidden,), (1,), layer)
        yield weight(prefix + "ffn_norm.weight", (hidden,), (1,), layer)
        for name, rows, columns, split in (
            ("attention.wq", hidden, hidden, (mp, 1)),
            ("attention.wk", kv_width, hidden, (mp, 1)),
            ("attention.wv", kv_width, hidden, (mp, 1)),
            ("attention.wo", hidden, hidden, (1, mp)),
            ("feed_forward.w1", ffn, hidden, (mp, 1)),
            ("feed_forward.w2", hidden, ffn, (1, mp)),
            ("feed_forward.w3", ffn, hidden, (mp, 1)),
        ):
            yield weight(f"{prefix}{name}.weight", (rows, columns), split, layer)
            if adapted:
                yield from _adapter(config.pet_config, prefix + name, rows, columns, split, layer)
    if stage == stages - 1:
        yield weight("model.norm_out.weight", (hidden,), (1,))
        if not config.tie_word_embeddings:
            yield weight("lm_head.weight", (config.vocab_size, hidden), vocabulary)


def _adapter(lora: Any, path: str, rows: int, columns: int, split: tuple[int, ...], layer: int) -> Iterator[Weight]:
    """Matrices A and B of a linear layer, cut as the layer is; none where ``target_modules`` leaves it out."""
    from mindformers.pet.adapter import is_excluded  # imports MindSpore

    if not re.match(lora.target_modules, path.rsplit(".", 1)[1]) or is_excluded(path, lora.exclude_layers):
        return
    kind = lora.param_init_type
    yield Weight(f"{path}.mindpet_delta_lora_a", (lora.lora_rank, columns), (1, split[1]), kind, layer)
    yield Weight(f"{path}.mindpet_delta_lora_b", (rows, lora.lora_rank), (split[0], 1), kind, layer)


def optimizer_parts(cfg: RunConfig, weight: Weight) -> int:
    """Ranks over which the optimizer spreads a parameter: all of the stage that hold the same slice, or 1."""
    section, layout = cfg.parallel, cfg.parallel_config
    if not section.enable_parallel_optimizer:
        return 1
    copies = layout.data_parallel * layout.model_parallel // math.prod(weight.split)
    wanted = section.parallel_optimizer_config.optimizer_weight_shard_size or -1
    copies = copies if wanted < 1 else min(copies, wanted)
    size = math.prod(weight.slice_shape) * BYTES[weight.dtype]
    too_small = size < section.parallel_optimizer_config.parallel_optimizer_threshold * 1024
    return 1 if too_small or weight.slice_shape[0] % copies else copies


def stage_memory(cfg: RunConfig, stage: int) -> StageMemory:
    """What one device of a stage holds at the worst moment of a step."""
    config, layout = cfg.model.config, cfg.parallel_config
    parameters = optimizer = gradients = 0
    gathered: Counter[int | None] = Counter()
    shard = cfg.parallel.parallel_optimizer_config.gradient_accumulation_shard
    accumulates = layout.pipeline_stage == 1 and cfg.runner_config.gradient_accumulation_steps > 1
    for weight in weights_of(cfg, stage):
        elements = math.prod(weight.slice_shape)
        mine = elements // optimizer_parts(cfg, weight)
        parameters += mine * BYTES[weight.dtype]
        gathered[weight.layer] += (elements - mine) * BYTES[config.compute_dtype]
        if weight.trained:
            optimizer += 2 * 4 * mine
            gradients += (mine if shard or layout.pipeline_stage == 1 else elements) * BYTES[weight.dtype]
            gradients += mine * 4 if accumulates else 0
    layers = _layers(cfg, stage)
    if cfg.recompute_config.parallel_optimizer_comm_recompute:
        whole = gathered[None] + max((gathered[layer] for layer in layers), default=0)  # one layer at a time
    else:
        whole = gathered.total()
    activations = activation_bytes(cfg, stage)
    return StageMemory(stage, len(layers), parameters, optimizer, gradients, whole, activations)


def _layers(cfg: RunConfig, stage: int) -> Sequence[int]:
    config = cfg.model.config
    places = layer_stages(config.num_layers, cfg.parallel_config.pipeline_stage, config.offset)
    return [layer for layer, place in enumerate(places) if place == stage]


def in_flight(cfg: RunConfig, stage: int) -> int:
    """Micro batches whose activations a stage holds at once, one forward and one backward alternating."""
    layout = cfg.parallel_config
    return min(layout.pipeline_stage - stage, layout.micro_batch_num) if layout.pipeline_stage > 1 else 1


def layer_bytes(cfg: RunConfig) -> tuple[int, int]:
    """(kept for the backward pass, needed only inside a layer) of one decoder layer and micro batch."""
    config, layout = cfg.model.config, cfg.parallel_config
    mp = layout.model_parallel
    rows = mp if layout.use_seq_parallel else 1
    c, soft = BYTES[config.compute_dtype], BYTES[config.softmax_compute_type]
    norm = BYTES[config.layernorm_compute_type]
    b, s = cfg.runner_config.batch_size * cfg.micro_batch_interleave_num, config.seq_length
    t, hidden, ffn = b * s, config.hidden_size, config.ffn_size
    kv_width = hidden // config.num_heads * config.num_kv_heads
    norms = 2 * t * hidden * ((4 if c != 4 else 0) + 2 * norm) // rows  # x in fp32, x and the factor as multiplied
    inputs = 2 * t * hidden * c + 2 * t * hidden * c // rows  # of wq.. and w1.., and the two residual sums
    attention = t * (4 * hidden + 2 * kv_width) * c // mp  # q, k, v; result, turned result; rotated q
    selected = cfg.recompute_config.select_recompute
    norms = 0 if selected else norms
    feed_forward = (2 if selected else 4) * t * ffn * c // mp
    scores = b * config.num_heads // mp * s * s
    inside = scores * (2 * soft + 2 * c)
    return norms + inputs + attention + feed_forward, inside


def activation_bytes(cfg: RunConfig, stage: int) -> int:
    """Activations of the micro batches in flight, the working set of one layer or of the head, the mask.

    On CPU nothing is reused within a step: every result of the forward and the backward pass counts.
    """
    config, layout = cfg.model.config, cfg.parallel_config
    recompute = cfg.recompute_config
    c = BYTES[config.compute_dtype]
    t = cfg.runner_config.batch_size * cfg.micro_batch_interleave_num * config.seq_length
    kept, inside = layer_bytes(cfg)
    layers, flying = len(_layers(cfg, stage)), in_flight(cfg, stage)
    if cfg.context.device_target == "CPU":
        scores = inside // (2 * BYTES[config.softmax_compute_type] + 2 * c) * 4
        held = CPU_LAYER * kept + CPU_SCORES * scores
        return int(layers * held + CPU_HEAD * t * config.vocab_size * 4 + CPU_GRAPH)
    if recompute.recompute and not recompute.select_recompute:
        slices = layout.model_parallel if recompute.recompute_slice_activation or layout.use_seq_parallel else 1
        total = flying * layers * t * config.hidden_size * c // slices
        inside += kept
    else:
        total = flying * layers * kept
    head = 0
    if stage == layout.pipeline_stage - 1:
        split = 1 if layout.vocab_emb_dp else layout.model_parallel
        head = t * config.vocab_size // split * (2 * c + 2 * 4)
    mask = config.seq_length**2 * BYTES[config.softmax_compute_type]
    return total + max(inside, head) + mask


def bubble(cfg: RunConfig) -> float:
    """Share of the time in which a device of the pipeline waits: (p - 1) / (m + p - 1) (Narayanan et al. 2021)."""
    stages, micro = cfg.parallel_config.pipeline_stage, cfg.parallel_config.micro_batch_num
    return (stages - 1) / (micro + stages - 1) if stages > 1 else 0.0
