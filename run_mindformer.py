# SPDX-License-Identifier: Apache-2.0
"""Train, finetune, evaluate or generate: ``python run_mindformer.py --config FILE --run_mode train``."""

from collections.abc import Sequence

from mindformers.config.cli import parse_command_line
from mindformers.errors import run_cli
from mindformers.tools.logger import get_logger

logger = get_logger("mindformers.run")


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, then do what ``run_mode`` says.

    Args:
        argv: the words after the script's name; None takes those of the process.

    Returns:
        The exit code, 0.
    """
    cfg = parse_command_line(argv)
    for warning in cfg.warnings:
        logger.warning("%s", warning)

    from mindformers.trainer import Trainer  # imports MindSpore, seconds: only when the config is right

    trainer = Trainer(cfg)
    verb = {
        "train": trainer.train,
        "finetune": trainer.finetune,
        "eval": trainer.evaluate,
        "predict": trainer.predict,
    }[cfg.run_mode]
    verb()
    return 0


if __name__ == "__main__":
    run_cli(main)
