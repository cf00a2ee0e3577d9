# SPDX-License-Identifier: Apache-2.0
"""Sections ``parallel``, ``parallel_config``, ``recompute_config`` and ``moe_config``."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from mindformers.config.schema.base import Finding, NonNegativeFloat, NonNegativeInt, PositiveInt, Section, inert


class ParallelOptimizerConfig(Section):
    """Key ``parallel.parallel_optimizer_config``."""

    gradient_accumulation_shard: bool = Field(
        False, description="Shard the buffers of accumulated gradients over the data parallel ranks."
    )
    parallel_optimizer_threshold: NonNegativeInt = Field(
        64, description="Smallest parameter, in KB, whose optimizer state is sharded."
    )
    optimizer_weight_shard_size: int | None = Field(
        None, ge=-1, description="Ranks one optimizer state is spread over; all of them if absent or -1."
    )


class StrategyCkptConfig(Section):
    """Key ``parallel.strategy_ckpt_config``."""

    save_file: str = Field("./ckpt_strategy.ckpt", description="File name of the sharding strategy of each rank.")
    load_file: str | None = Field(None, description="Strategy file to take the sharding from.")
    only_trainable_params: bool = Field(False, description="Write the strategy of trainable parameters only.")


class ParallelSection(Section):
    """Section ``parallel``: MindSpore's parallel context."""

    parallel_mode: Literal[
        0, 1, 2, 3, "STAND_ALONE", "DATA_PARALLEL", "SEMI_AUTO_PARALLEL", "AUTO_PARALLEL", "HYBRID_PARALLEL"
    ] = Field(1, description="0 data, 1 semi-auto, 2 auto, 3 hybrid parallel, or the name; runs take 0, 1 or 2.")
    device_num: PositiveInt | None = Field(None, description="Number of ranks; RANK_SIZE of the environment if absent.")
    global_rank: NonNegativeInt | None = Field(None, description="Rank of this process; RANK_ID if absent.")
    gradients_mean: bool = Field(
        False,
        description="Average gradients over ranks instead of adding them. Data parallel (mode 0) always takes the "
        "mean over the label tokens of all ranks.",
    )
    gradient_fp32_sync: bool = Field(True, description="Exchange gradients in fp32.")
    enable_alltoall: bool = Field(False, description="Allow AllToAll when tensors change their layout.")
    full_batch: bool = Field(
        True,
        description="Modes 1 and 2: every rank reads the global batch of a training step; False: an equal part of it. "
        "The training is the same.",
    )
    search_mode: Literal["sharding_propagation", "recursive_programming", "dynamic_programming"] = Field(
        "sharding_propagation",
        description="How auto parallel (mode 2) finds the strategies of operations that have none; dynamic_programming "
        "does not take this model.",
    )
    auto_parallel_search_mode: str = inert("recursive_programming", "older name of search_mode", "use search_mode")
    parameter_broadcast: bool = Field(False, description="Rank 0 sends its parameters to all before training.")
    enable_parallel_optimizer: bool = Field(
        False, description="Shard optimizer state and update over the data parallel ranks."
    )
    parallel_optimizer_config: ParallelOptimizerConfig = Field(
        default_factory=ParallelOptimizerConfig, description="Details of enable_parallel_optimizer."
    )
    strategy_ckpt_save_file: str = Field(
        "./ckpt_strategy.ckpt", description="File name of the sharding strategy; written to <output_dir>/strategy."
    )
    strategy_ckpt_load_file: str | None = Field(None, description="Strategy file to take the sharding from.")
    strategy_ckpt_config: StrategyCkptConfig | None = Field(
        None, description="Newer form of the two strategy_ckpt keys; wins over them."
    )
    pipeline_stages: PositiveInt | None = Field(
        None, description="Set from parallel_config.pipeline_stage; given here it must agree."
    )
    grad_accumulation_step: int = inert(1, "gradient accumulation", "use runner_config.gradient_accumulation_steps")
    all_reduce_fusion_config: list[int] | None = Field(
        None, description="Parameters at which fused AllReduces are cut; MindSpore decides if absent."
    )
    comm_fusion: dict[str, Any] | None = Field(None, description="MindSpore's fusion of communication, passed on.")


class TransformerRecomputeConfig(Section):
    """Section ``recompute_config``: which activations are computed again in the backward pass to save memory."""

    recompute: bool = Field(False, description="Recompute every decoder layer.")
    select_recompute: bool = Field(False, description="Recompute only the cheap, large activations of a layer.")
    parallel_optimizer_comm_recompute: bool = Field(
        False, description="Gather weights sharded by the parallel optimizer again in the backward pass."
    )
    mp_comm_recompute: bool = Field(True, description="Recompute model parallel communication as well.")
    recompute_slice_activation: bool = Field(False, description="Keep the recomputation's inputs sliced over ranks.")


class MoEConfig(Section):
    """Section ``moe_config``; Llama 2 has one expert, so only ``expert_num: 1`` is of use."""

    expert_num: PositiveInt = Field(1, description="Experts per layer; Llama 2 has 1.")
    capacity_factor: NonNegativeFloat = inert(1.1, "tokens per expert", "Llama 2 has no experts")
    aux_loss_factor: NonNegativeFloat = inert(0.05, "balance loss", "Llama 2 has no experts")
    num_experts_chosen: PositiveInt = inert(1, "experts per token", "Llama 2 has no experts")
    expert_group_size: int | None = inert(None, "tokens per group", "Llama 2 has no experts")
    group_wise_a2a: bool = inert(False, "AllToAll within groups", "Llama 2 has no experts")
    comp_comm_parallel: bool = inert(False, "overlap of communication", "Llama 2 has no experts")
    comp_comm_parallel_degree: PositiveInt = inert(2, "overlap of communication", "Llama 2 has no experts")

    def findings(self) -> Iterator[Finding]:
        """More than one expert is not supported."""
        if self.expert_num > 1:
            yield Finding("expert_num", f"Llama 2 has no mixture of experts; must be 1, got {self.expert_num}")


class TransformerOpParallelConfig(Section):
    """Section ``parallel_config``: how the model is split over the ranks. Pure data: nothing global is set."""

    data_parallel: PositiveInt = Field(1, description="Groups of ranks that work on different records.")
    model_parallel: PositiveInt = Field(1, description="Ranks one layer's matrices are split over.")
    expert_parallel: PositiveInt = inert(1, "ranks for experts", "Llama 2 has no experts")
    pipeline_stage: PositiveInt = Field(1, description="Stages the layers are divided into.")
    micro_batch_num: PositiveInt = Field(
        1, description="Micro batches per step in a pipeline; at least pipeline_stage. Unused with one stage."
    )
    use_seq_parallel: bool = Field(False, description="Split norms and residuals over the sequence (needs mp > 1).")
    vocab_emb_dp: bool = Field(
        True, description="Keep the whole embedding on each rank; False splits it over model_parallel."
    )
    gradient_aggregation_group: PositiveInt = Field(
        4, description="Messages the gradients of all layers are put into (with one pipeline stage)."
    )
    optimizer_shard: bool | None = inert(None, "sharded optimizer", "use parallel.enable_parallel_optimizer")
    recompute: TransformerRecomputeConfig = Field(
        default_factory=TransformerRecomputeConfig,
        exclude=True,
        description="Recomputation, for scripts; a run takes section recompute_config.",
    )

    @property
    def ranks(self) -> int:
        """Number of ranks this layout needs."""
        return self.data_parallel * self.model_parallel * self.pipeline_stage


def layer_stages(num_layers: int, stages: int, offset: int | list[int] = 0) -> list[int]:
    """The pipeline stage of each decoder layer.

    Each stage takes ``(num_layers + 1) // stages`` layers, the last what remains. ``offset`` moves layers towards later
    stages: one number for all layers, or one per stage.
    """
    per_stage = max((num_layers + 1) // stages, 1)
    result = []
    for layer in range(num_layers):
        shift = offset if isinstance(offset, int) else offset[min(layer // per_stage, len(offset) - 1)]
        result.append(min(max((layer + shift) // per_stage, 0), stages - 1))
    return result
