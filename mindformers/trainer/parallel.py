# SPDX-License-Identifier: Apache-2.0
"""What a run does differently when the compiler splits its network over ranks (semi-auto and auto parallel)."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindformers.config import RunConfig
from mindformers.config.schema.layout_checks import batches_of_a_call
from mindformers.config.schema.parallel import ParallelSection
from mindformers.core.parallel_context import is_split
from mindformers.models.llama.llama_parallel import apply_parallel, apply_recompute
from mindformers.wrapper import MFTrainOneStepCell


def parallel_section(cfg: RunConfig) -> ParallelSection:
    """Section ``parallel`` as MindSpore's context takes it.

    The number of pipeline stages is given in ``parallel_config`` by a YAML. The compiler is always given the whole
    batch, see :func:`batch_part`.
    """
    stages = cfg.parallel_config.pipeline_stage
    update = {"full_batch": True} | ({"pipeline_stages": stages} if stages > 1 else {})
    return cfg.parallel.model_copy(update=update)


def gather_weights_again(cfg: RunConfig) -> None:
    """With ``parallel_optimizer_comm_recompute``: weights that the parallel optimizer cuts are gathered once more for
    the backward pass instead of being kept; after the parallel context is set, before anything is compiled.

    What ``Cell.recompute`` took for it has no effect in MindSpore 2.10; a level of the parallel optimizer does it.
    """
    wanted = cfg.recompute_config.parallel_optimizer_comm_recompute and cfg.parallel.enable_parallel_optimizer
    if wanted and is_split():  # alone: beside other settings of the optimizer MindSpore refuses it
        ms.set_auto_parallel_context(parallel_optimizer_config={"optimizer_level": "level3"})


def split_records(cfg: RunConfig) -> int:
    """Batches of ``runner_config.batch_size`` records that one call of the split network takes, over all ranks."""
    return batches_of_a_call(cfg) if is_split() else 1


def lay_out(network: nn.Cell, cfg: RunConfig) -> nn.Cell:
    """The network with its recomputation and, where the compiler splits it, its strategies."""
    recompute = cfg.recompute_config if network.training else None
    apply_recompute(network, recompute, cfg.parallel_config.model_parallel)
    if is_split():
        has_reduce_scatter = ms.get_context("device_target") != "CPU"
        apply_parallel(network, cfg.parallel_config, reduce_scatter=has_reduce_scatter)
    return network


def batch_part(cfg: RunConfig) -> tuple[int, int]:
    """(part, parts) of each batch that this rank of a split network reads in training.

    With ``parallel.full_batch`` every rank reads the whole batch. Without it each reads an equal part, and the step
    begins by gathering them.
    """
    if cfg.parallel.full_batch or not is_split():
        return 0, 1
    return ms.get_auto_parallel_context("global_rank"), ms.get_auto_parallel_context("device_num")


def step_inputs(cfg: RunConfig) -> list[Tensor]:
    """Columns as large as those a rank gives to one call of the train cell."""
    records = cfg.runner_config.batch_size * split_records(cfg) // batch_part(cfg)[1]
    column = Tensor(np.zeros((records, cfg.model.config.seq_length + 1)), ms.int32)
    return [column for _ in cfg.train_dataset.input_columns]


def compile_step(cell: MFTrainOneStepCell, cfg: RunConfig) -> None:
    """Compile a train cell before its first batch."""
    cell.compile(*step_inputs(cfg))
