# SPDX-License-Identifier: Apache-2.0
"""Trainer: the verbs train, finetune, evaluate and predict over one config."""

from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import nn

from mindformers.checkpoint.layout import OutputLayout
from mindformers.config import RunConfig, load_config, save_config
from mindformers.core.context import init_context, set_seed
from mindformers.core.parallel_context import is_split
from mindformers.errors import ConfigError
from mindformers.tools.logger import get_logger
from mindformers.trainer.build import TrainTask, build_network, build_training, load_weights
from mindformers.trainer.evaluate import EvalCell, evaluate
from mindformers.trainer.parallel import lay_out, parallel_section
from mindformers.trainer.predict import predict
from mindformers.trainer.slices import compile_parts, load_parts, loads_slices, meeting, report_strategy

logger = get_logger(__name__)


class Trainer:
    """Runs what a config describes.

    Args:
        args: a loaded RunConfig or the path of a YAML.
        train_dataset: path of the training records, or a MindSpore dataset of batches; default: the config's.
        eval_dataset: the same for evaluation.

    Constructing one has no side effect; the device is set up by the first verb.
    """

    def __init__(self, args: RunConfig | str | Path, train_dataset: Any = None, eval_dataset: Any = None) -> None:
        self.config = args if isinstance(args, RunConfig) else _load(args)
        self.train_dataset = _use_path(self.config.train_dataset, train_dataset, "train_dataset")
        self.eval_dataset = _use_path(self.config.eval_dataset, eval_dataset, "eval_dataset")
        self._network: nn.Cell | None = None
        self._layout: OutputLayout | None = None

    def train(self) -> None:
        """Train from random weights, or from ``load_checkpoint``, or go on where a run stopped (resume_training)."""
        layout = self._start()
        task = build_training(self.config, layout, self.train_dataset, self.eval_dataset)
        save_config(self.config, layout.resolved_config)
        if self.config.only_save_strategy:
            report_strategy(layout)
            return
        run(task, self.config)
        self._network = task.cell.network

    def finetune(self) -> None:
        """As train, but weights to start from are required."""
        self.config.run_mode = "finetune"
        self.train()

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Metric values of the eval dataset, ``{metric: {name: value}}``."""
        if self.config.only_save_strategy:
            self._write_strategy()
            return {}
        return evaluate(self.config, EvalCell(self._trained_network()), self.eval_dataset)

    def predict(self, input_data: Any = None) -> list[dict]:
        """Generated texts, ``[{"text_generation_text": [...]}, ...]``, for input_data or the config's."""
        if self.config.only_save_strategy:
            self._write_strategy()
            return []
        return predict(self.config, self._trained_network(), input_data)

    def _start(self) -> OutputLayout:
        if self._layout is None:
            cfg = self.config
            rank, _ = init_context(cfg.use_parallel, cfg.context, parallel_section(cfg), cfg.output_dir)
            set_seed(cfg.seed)
            self._layout = OutputLayout(cfg.output_dir, rank)
        return self._layout

    def _write_strategy(self) -> None:
        layout = self._start()
        if is_split():
            network = lay_out(build_network(self.config), self.config)
            compile_parts(network.set_train(False), self.config, layout.rank)
        report_strategy(layout)

    def _trained_network(self) -> nn.Cell:
        layout = self._start()
        if self._network is None:
            network = build_network(self.config)
            later = loads_slices(self.config)
            if not later:
                load_weights(network, self.config, required=True, rank=layout.rank)
            self._network = lay_out(network, self.config)
            if later:
                ranks = meeting(self.config, layout)
                network.set_train(False)
                with ranks.step("load"):
                    load_parts(network, self.config, layout, compile_parts(network, self.config, layout.rank))
        self._network.set_train(False)
        return self._network


def run(task: TrainTask, cfg: RunConfig) -> None:
    """Feed the task's stream to ``mindspore.Model``."""
    progress, runner = task.progress, cfg.runner_config
    logger.info(
        "training from step %d to %d (%d a pass, %d epochs), %d records a step",
        progress.start_step + 1, progress.total_steps, progress.steps_per_epoch, progress.epochs,
        progress.global_batch_size,
    )  # fmt: skip
    model = ms.Model(task.cell)
    if not runner.sink_mode or ms.get_context("device_target") == "CPU":  # the CPU has no sink mode
        model.train(1, task.dataset, callbacks=task.callbacks, dataset_sink_mode=False)
        return
    sink_size = runner.sink_size if runner.sink_size > 0 else task.steps_left
    chunks, rest = divmod(task.steps_left, sink_size)
    if not chunks:
        raise ConfigError(
            f"sink_size {sink_size} is more than the {task.steps_left} steps left: lower runner_config.sink_size"
        )
    if rest:
        logger.warning("the last %d steps do not fill a sink of %d and are not run", rest, sink_size)
    model.train(chunks, task.dataset, callbacks=task.callbacks, dataset_sink_mode=True, sink_size=sink_size)


def _load(path: str | Path) -> RunConfig:
    cfg = load_config(path)
    for warning in cfg.warnings:
        logger.warning("%s", warning)
    return cfg


def _use_path(section: Any, dataset: Any, name: str) -> Any:
    """Write a path into the config's section and give None, or give the dataset object back."""
    if dataset is None or not isinstance(dataset, str | Path):
        return dataset
    if section is None:
        raise ConfigError(f"{name} is given as a path, but the config has no section {name} to say how to read it")
    section.data_loader.dataset_dir = str(dataset)
    return None
