# SPDX-License-Identifier: Apache-2.0
"""Compiled training steps that are kept on disk, apart for every configuration.

MindSpore finds a graph in its compile cache by the order of compilation and by the Python sources. It does not look at
what an attribute of a cell has become in the graph: after ``rms_norm_eps`` or a schedule was changed it would run the
old graph without a word. So each configuration has a folder of its own, and only a training step, which is always the
first graph of its process, is kept.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mindspore as ms

from mindformers.checkpoint.manifest import config_hash
from mindformers.config import RunConfig
from mindformers.core.progress import TrainProgress
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
def compile_cache(cfg: RunConfig, progress: TrainProgress) -> Iterator[Path | None]:
    """Inside, the compiled step is taken from disk, or kept there; around the compilation of the first graph.

    Args:
        cfg: the run's config.
        progress: the run's steps, on which the schedule in the graph depends.

    Yields:
        The folder; None when the cache is not asked for, or cannot be used.
    """
    asked = any(getattr(cfg.context, name) for name in _SWITCHES)
    if asked and (cfg.use_parallel or cfg.do_eval):
        logger.warning("the compile cache keeps training steps of one process without do_eval only: it is not used")
        asked = False
    if not asked:
        yield None
        return
    values = {key: value for key, value in cfg.model_dump(mode="json").items() if key not in _OUTSIDE}
    steps = [progress.total_steps, progress.steps_per_epoch, progress.global_batch_size]
    key = config_hash({"config": values, "steps": steps, "versions": [__version__, ms.__version__]})
    folder = Path(cfg.context.compile_cache_path or Path(cfg.output_dir) / "compile_cache") / key
    logger.info("compile cache: %s", folder)
    os.environ |= {"MS_COMPILER_CACHE_ENABLE": "1", "MS_COMPILER_CACHE_PATH": str(folder)}
    try:
        yield folder
    finally:  # what the process compiles later is found by its order too
        for name in ("MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"):
            os.environ.pop(name, None)
