# SPDX-License-Identifier: Apache-2.0
"""Where a run goes on: the newest step that every rank has saved."""

from pathlib import Path

from mindformers.checkpoint.agree import common_step, complete_steps, saving_options
from mindformers.checkpoint.layout import OutputLayout
from mindformers.checkpoint.resume import ResumePoint, find_resume, rank_folder, resume_at
from mindformers.config import RunConfig
from mindformers.core.distributed import data_parallel_ranks, gather_numbers
from mindformers.core.parallel_context import is_split
from mindformers.errors import CheckpointError
from mindformers.tools.logger import get_logger
from mindformers.trainer.adapters import resume_source
from mindformers.trainer.slices import find_slices

__all__ = ["find_run"]

logger = get_logger(__name__)

_STEPS_COMPARED = 64  # saved steps of a rank that are compared with those of the others


def find_run(cfg: RunConfig, layout: OutputLayout) -> ResumePoint | None:
    """The checkpoint to go on from; with several ranks, that of the newest step which all of them have.

    None when the run does not resume. With ``auto_trans_ckpt`` the checkpoint may be of any layout.
    """
    if not cfg.resume_training or cfg.only_save_strategy:
        return None
    if cfg.auto_trans_ckpt or is_split():
        return find_slices(cfg, layout, saving_options(cfg)[0])
    where, prefix = resume_source(cfg, layout), saving_options(cfg)[0]
    rank, ranks = data_parallel_ranks()
    if ranks == 1 or (isinstance(where, str) and Path(where).is_file()):
        return find_resume(where, prefix, layout.rank)
    root = layout.root if where is layout else Path(where)
    folder = rank_folder(root, rank)
    if folder.name != f"rank_{rank}":  # a run with fewer ranks wrote it: they all hold the same state
        folder = rank_folder(root, 0)
    steps = complete_steps(folder, prefix)[-_STEPS_COMPARED:]
    everybody = gather_numbers(steps + [-1] * (_STEPS_COMPARED - len(steps)))
    lists = [[int(step) for step in row if step >= 0] for row in everybody]
    step = common_step(lists)
    if step is None:
        listed = "; ".join(f"rank {i}: {', '.join(map(str, found)) or 'none'}" for i, found in enumerate(lists))
        raise CheckpointError(
            f"nothing to resume from: no step is complete on all {ranks} ranks below {root} ({listed}). "
            "Start anew without --resume_training"
        )
    logger.info("resuming from step %d, the newest that all %d ranks have", step, ranks)
    if lists[0][-1] != step:
        logger.warning("rank 0 also has step %d, which is not complete on all ranks", lists[0][-1])
    return resume_at(folder, prefix, step)
