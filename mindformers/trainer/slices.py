# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run whose network is split: loaded after compilation, which makes the parameters slices."""

import time
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, communication, nn, ops

from mindformers.checkpoint.cluster import rank_folders
from mindformers.checkpoint.layout import OutputLayout
from mindformers.checkpoint.load import load_into, read_checkpoint, resolve_checkpoint
from mindformers.checkpoint.meeting import Meeting
from mindformers.checkpoint.reshard import load_slices, own_layout, own_parameters, resume_slices
from mindformers.checkpoint.resume import ResumePoint, find_resume, restore
from mindformers.checkpoint.strategy import ClusterLayout
from mindformers.config import RunConfig
from mindformers.core.parallel_context import is_split
from mindformers.errors import CheckpointError, ConfigError
from mindformers.tools.logger import get_logger
from mindformers.trainer.evaluate import EvalCell
from mindformers.trainer.network import build_network
from mindformers.trainer.parallel import compile_step, lay_out, split_records
from mindformers.trainer.state import train_state

logger = get_logger(__name__)


def meeting(cfg: RunConfig, layout: OutputLayout) -> Meeting:
    """The ranks of a run with auto_trans_ckpt, which wait for each other; of another run, one alone."""
    ranks = communication.get_group_size() if cfg.use_parallel and cfg.auto_trans_ckpt else 1
    token = ""
    if ranks > 1:
        now = float(int(time.time()) % 2**24) if layout.rank == 0 else 0.0  # exact in fp32, which CPU ranks can add
        token = str(int(ops.AllReduce()(Tensor([now], ms.float32)).asnumpy()[0]))
    return Meeting(layout.events_dir, layout.rank, ranks, token, cfg.auto_trans_timeout)


def find_slices(cfg: RunConfig, layout: OutputLayout, prefix: str | None) -> ResumePoint:
    """The checkpoint that a split run goes on from.

    With auto_trans_ckpt it may be of any layout, else it is that of this rank, of the newest step all ranks have.
    """
    if cfg.auto_trans_ckpt:
        return resume_slices(
            cfg.load_checkpoint or layout.root, layout.rank, strategy=cfg.src_strategy_path_or_dir, prefix=prefix,
            output_strategies=layout.strategy_dir,
        )  # fmt: skip
    ranks = communication.get_group_size() if cfg.use_parallel else 1
    return find_resume(cfg.load_checkpoint or layout, prefix, layout.rank, ranks)


def loads_slices(cfg: RunConfig) -> bool:
    """Whether weights have to wait for compilation: the network is split, and the source is, or may be, too."""
    source = cfg.load_checkpoint
    if not source or not is_split():
        return False
    return cfg.auto_trans_ckpt or len(rank_folders(Path(source).expanduser())) > 1


def load_parts(network: nn.Cell, cfg: RunConfig, layout: OutputLayout, parts: ClusterLayout | None) -> None:
    """Load this rank's part of ``load_checkpoint`` into a compiled network.

    Args:
        network: the network.
        cfg: the run's config.
        layout: of the run's files.
        parts: how the network is split; None when this process holds all of it.
    """
    if cfg.auto_trans_ckpt:
        load_slices(
            network, cfg.load_checkpoint, strategy=cfg.src_strategy_path_or_dir, layout=parts, rank=layout.rank,
            strict=cfg.load_checkpoint_strict, output_strategies=layout.strategy_dir,
        )  # fmt: skip
        return
    path = resolve_checkpoint(cfg.load_checkpoint, layout.rank)
    try:
        load_into(own_parameters(network, parts, layout.rank), read_checkpoint(path), strict=cfg.load_checkpoint_strict)
    except CheckpointError as error:
        raise CheckpointError(f"{error}\nIf {path} was cut for another layout, set auto_trans_ckpt to True") from error


def compile_split(cell: nn.Cell, cfg: RunConfig, rank: int) -> ClusterLayout | None:
    """Compile a split train cell now: its parameters become slices, which a checkpoint of this rank can then fill.

    Returns:
        How they are cut; None when nothing is split.
    """
    if not is_split():
        return None
    begin = time.time()
    compile_step(cell, cfg)
    return own_layout(rank, begin)


def restore_part(
    cell: nn.Cell, resume: ResumePoint, manifest: dict[str, Any], parts: ClusterLayout | None, rank: int
) -> None:
    """Put a checkpoint into a train cell, or this rank's part of it into a split one."""
    if resume.tensors is not None:
        resume.tensors = resume.tensors.of(parts)
    restore(own_parameters(train_state(cell), parts, rank), resume, manifest)


def compile_parts(network: nn.Cell, cfg: RunConfig, rank: int) -> ClusterLayout:
    """Compile the loss of a network that is split, so that its parameters become slices; how, is the result."""
    begin = time.time()
    tokens = np.zeros((cfg.runner_config.batch_size * split_records(cfg), cfg.model.config.seq_length + 1))
    EvalCell(network).compile(Tensor(tokens, ms.int32))
    return own_layout(rank, begin)


def write_strategy(cfg: RunConfig, layout: OutputLayout) -> None:
    """Compile the network of an evaluation or prediction, and report where its strategy lies.

    Raises:
        ConfigError: the run splits nothing.
    """
    if is_split():
        network = lay_out(build_network(cfg, layout.rank), cfg)
        compile_parts(network.set_train(False), cfg, layout.rank)
    report_strategy(layout)


def report_strategy(layout: OutputLayout) -> None:
    """The end of a run with only_save_strategy.

    Raises:
        ConfigError: the run splits nothing.
    """
    if not is_split():
        raise ConfigError(
            "only_save_strategy: nothing is split, so there is no strategy. It needs use_parallel True and "
            "parallel.parallel_mode 1 (semi-auto)"
        )
    logger.info("only_save_strategy: rank %d wrote its strategy to %s", layout.rank, layout.strategy_dir)
