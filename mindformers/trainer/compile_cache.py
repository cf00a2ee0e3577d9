# SPDX-License-Identifier: Apache-2.0
"""Compiled training steps that are kept on disk, apart for every configuration.

MindSpore finds a graph in its compile cache by the order of compilation and by the Python sources. It does not look at
what an attribute of a cell has become in the graph: after ``rms_norm_eps`` or a schedule was changed it would run the
old graph without a word. So each configuration has a folder of its own, and only the training step of a run that its
config describes completely is kept.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import nn

from mindformers.checkpoint.manifest import config_hash
from mindformers.config import RunConfig
from mindformers.core.progress import TrainProgress
from mindformers.modules.kernels import use_native_kernels
from mindformers.native import library
from mindformers.tools.logger import get_logger
from mindformers.version import __version__

__all__ = ["compile_cache", "without_compile_cache"]

logger = get_logger(__name__)

_SWITCHES = ("save_compile_cache", "load_compile_cache", "enable_compile_cache")
# what no graph depends on
_OUTSIDE = (
    "load_checkpoint",
    "output_dir",
    "resume_training",
    "auto_trans_ckpt",
    "callbacks",
    "input_data",
    "save_file",
)


def without_compile_cache(context: Any) -> Any:
    """A context section that leaves the compile cache to :func:`compile_cache`."""
    return context.model_copy(update=dict.fromkeys(_SWITCHES, False))


@contextmanager
def compile_cache(cfg: RunConfig, progress: TrainProgress, cell: nn.Cell, described: bool) -> Iterator[Path | None]:
    """Inside, the compiled step is taken from disk, or kept there; around the compilation of the first graph.

    Args:
        cfg: the run's config.
        progress: the run's steps, on which the schedule in the graph depends.
        cell: the train cell; what its weights are may follow from a checkpoint (an output layer tied to the embedding).
        described: the config says all: no model, optimizer, data or callback is an object of a script.

    Yields:
        The folder; None when the cache is not asked for, or cannot be used.
    """
    asked = any(getattr(cfg.context, name) for name in _SWITCHES)
    if asked and (cfg.use_parallel or cfg.do_eval or not described):
        logger.warning(
            "the compile cache is not used: it keeps training steps of one process, without do_eval and without "
            "objects given to the Trainer"
        )
        asked = False
    if not asked:
        yield None
        return
    values = {key: value for key, value in cfg.model_dump(mode="json").items() if key not in _OUTSIDE}
    key = config_hash(
        {
            "config": values,
            "steps": [progress.total_steps, progress.steps_per_epoch, progress.global_batch_size],
            "weights": [[p.name, list(p.shape), str(p.dtype), p.requires_grad] for p in cell.get_parameters()],
            "native": [use_native_kernels(), library.has_onednn()],
            "versions": [__version__, ms.__version__],
        }
    )
    folder = Path(cfg.context.compile_cache_path or Path(cfg.output_dir) / "compile_cache") / key
    logger.info("compile cache: %s", folder)
    os.environ |= {"MS_COMPILER_CACHE_ENABLE": "1", "MS_COMPILER_CACHE_PATH": str(folder)}
    try:
        yield folder
    finally:  # what the process compiles later is found by its order too
        for name in ("MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"):
            os.environ.pop(name, None)
