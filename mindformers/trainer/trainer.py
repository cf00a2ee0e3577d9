# SPDX-License-Identifier: Apache-2.0
"""Trainer: the verbs train, finetune, evaluate and predict over one config."""

from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import nn

from mindformers.checkpoint.layout import OutputLayout
from mindformers.checkpoint.load import get_last_checkpoint
from mindformers.config import RunConfig, TransformerOpParallelConfig, TransformerRecomputeConfig, save_config
from mindformers.config.schema.checks import launch_findings
from mindformers.config.schema.train import RunnerSection
from mindformers.core.callback import CheckpointMonitor, StopMonitor
from mindformers.core.context import init_context, set_seed
from mindformers.errors import CheckpointError, ConfigError
from mindformers.models.build import pretrained_tokenizer
from mindformers.models.llama.llama_decoder import pack_weights
from mindformers.tools.logger import get_logger
from mindformers.trainer.build import TrainTask, build_training, try_run
from mindformers.trainer.compile_cache import compile_cache
from mindformers.trainer.evaluate import EvalCell, build_eval_dataset, evaluate
from mindformers.trainer.given import Given, metric_section
from mindformers.trainer.network import build_network, load_weights
from mindformers.trainer.parallel import gather_weights_again, lay_out, parallel_section
from mindformers.trainer.predict import predict
from mindformers.trainer.setup import context_section, make_run_config, use_path
from mindformers.trainer.slices import compile_parts, load_parts, loads_slices, meeting, report_strategy, write_strategy
from mindformers.trainer.train_data import training_data
from mindformers.trainer.training_args import TrainingArguments

logger = get_logger(__name__)


class Trainer:
    """Trains, finetunes, evaluates and generates.

    Args:
        args: settings: a :class:`TrainingArguments`, a dict or MindFormerConfig with the keys of a YAML, a
            ConfigArguments (all laid over the settings that belong to the model); or the path of a YAML or a loaded
            RunConfig, which are complete by themselves.
        task: 'text_generation'; 'general' leaves it to the config.
        model: a registered name, a YAML, a directory (ours or Hugging Face's), or a model object. None takes the
            section ``model`` of ``args``.
        model_name: with a model object the registered name whose settings are the base.
        train_dataset: path of MindRecord files, or a MindSpore dataset of batches.
        eval_dataset: the same for evaluation.
        tokenizer: a tokenizer, or what to load one from; None takes the config's.
        optimizers: an optimizer over the parameters of the model object.
        wrapper: a train step made of the model object.
        pet_method: 'lora' trains low-rank adapters.
        callbacks: callbacks of training besides the config's; one of the same class replaces the config's.
        eval_callbacks: not supported: evaluation is one pass without callbacks.
        compute_metrics: name or section of a metric, in place of the config's.
        save_config: write the complete config to ``output_dir`` in evaluate and predict too; train always does.

    Nothing is written, downloaded or set up before the first verb. A verb that names a checkpoint loads it; evaluate
    and predict without one use the weights trained last, else those of the config.

    Raises:
        ConfigError: with every problem of the settings.
    """

    def __init__(
        self,
        args: Any = None,
        task: str = "general",
        model: Any = None,
        model_name: str | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        tokenizer: Any = None,
        optimizers: Any = None,
        wrapper: Any = None,
        pet_method: str = "",
        callbacks: Any = None,
        eval_callbacks: Any = None,
        compute_metrics: Any = None,
        save_config: bool = False,
    ) -> None:
        self.config = make_run_config(args, task, model, model_name, pet_method)
        self.train_dataset = use_path(self.config, train_dataset, "train_dataset")
        self.eval_dataset = use_path(self.config, eval_dataset, "eval_dataset")
        self.tokenizer = tokenizer
        self.save_config = save_config
        own = None if model is None or isinstance(model, str | Path) else model
        self._given = Given(own, optimizers, wrapper, callbacks)
        if eval_callbacks:
            raise ConfigError(
                "eval_callbacks are not supported: evaluation is one pass; evaluate() returns the metrics"
            )
        if compute_metrics is not None:
            self.config.metric = metric_section(compute_metrics)
        self._eval_batch = args.per_device_eval_batch_size if isinstance(args, TrainingArguments) else None
        self._network: nn.Cell | None = own
        adapters = self.config.model.config.pet_config
        self._adapted = own is None or adapters is None or own.config.pet_config is not None
        self._layout: OutputLayout | None = None

    def train(
        self,
        train_checkpoint: bool | str | Path | None = None,
        resume_training: bool | str | Path | None = None,
        auto_trans_ckpt: bool | None = None,
        do_eval: bool | None = None,
    ) -> None:
        """Train from random weights, from a checkpoint's, or go on where a run stopped.

        Args:
            train_checkpoint: weights to start from: a file, a folder, a name; True is the newest checkpoint of
                ``output_dir``; None or False takes the config's ``load_checkpoint``, else random weights (of a model
                object: its own).
            resume_training: go on at the exact step of the run in ``output_dir`` (or of ``load_checkpoint``); a path is
                the run or checkpoint to go on from.
            auto_trans_ckpt: slice the checkpoint anew for this run's layout.
            do_eval: evaluate while training.
        """
        cfg = self._config_for(
            "train", train_checkpoint, resume_training, auto_trans_ckpt=auto_trans_ckpt, do_eval=do_eval
        )
        self._train(cfg)

    def finetune(
        self,
        finetune_checkpoint: bool | str | Path | None = None,
        resume_training: bool | str | Path | None = None,
        auto_trans_ckpt: bool | None = None,
        do_eval: bool | None = None,
    ) -> None:
        """As :meth:`train`, but weights to start from are required.

        Raises:
            CheckpointError: neither the call, nor the config, nor the model object names any.
        """
        cfg = self._config_for(
            "finetune", finetune_checkpoint, resume_training, auto_trans_ckpt=auto_trans_ckpt, do_eval=do_eval
        )
        model = self._given.network
        if model is not None and not (
            cfg.load_checkpoint or cfg.resume_training or model.config.checkpoint_name_or_path
        ):
            raise CheckpointError(
                "finetune needs weights to start from, and the model object was built without any: give "
                "finetune_checkpoint=FILE_OR_FOLDER, or call train() when the values it has now are the ones meant"
            )
        self._train(cfg)

    def evaluate(
        self, eval_checkpoint: bool | str | Path | None = None, auto_trans_ckpt: bool | None = None
    ) -> dict[str, dict[str, float]]:
        """Metric values of the eval dataset, ``{metric: {name: value}}``.

        Args:
            eval_checkpoint: as ``train_checkpoint`` of :meth:`train`; None evaluates the weights trained last, else the
                config's.
            auto_trans_ckpt: slice the checkpoint anew for this run's layout.
        """
        cfg = self._config_for("eval", eval_checkpoint, auto_trans_ckpt=auto_trans_ckpt)
        if self._eval_batch:
            cfg.runner_config.batch_size = self._eval_batch
        if cfg.only_save_strategy:
            write_strategy(cfg, self._start())
            return {}
        cell = EvalCell(pack_weights(self._ready(cfg, eval_checkpoint)))
        return evaluate(cfg, cell, self.eval_dataset, tokenizer=self._own_tokenizer())

    def predict(
        self,
        predict_checkpoint: bool | str | Path | None = None,
        auto_trans_ckpt: bool | None = None,
        input_data: Any = None,
        batch_size: int | None = None,
        save_file: str | Path | None = None,
        **settings: Any,
    ) -> list[dict[str, list[str]]]:
        """Generated texts, prompts included, ``[{"text_generation_text": [...]}, ...]``, one entry per batch.

        Args:
            predict_checkpoint: as ``eval_checkpoint`` of :meth:`evaluate`.
            auto_trans_ckpt: slice the checkpoint anew for this run's layout.
            input_data: a text, a file with one prompt per line, a list of these, an iterable of texts, or a dataset
                with a column ``text``; None takes the config's ``input_data``.
            batch_size: prompts generated together; default ``predict_batch_size``, else 1.
            save_file: file the texts are written to; default the config's, ``text_generation_result.txt``.
            **settings: settings of ``generate`` (max_length, do_sample, top_k, streamer, ...), for this call.
        """
        cfg = self._config_for("predict", predict_checkpoint, auto_trans_ckpt=auto_trans_ckpt)
        cfg.save_file = str(save_file or cfg.save_file)
        given = input_data if input_data is not None else cfg.input_data
        if given is None:
            raise ConfigError("predict needs prompts: input_data='a text', a list, a file or a dataset")
        if cfg.only_save_strategy:
            write_strategy(cfg, self._start())
            return []
        network = self._ready(cfg, predict_checkpoint)
        return predict(cfg, network, given, self._own_tokenizer(), batch_size, **settings)

    def set_parallel_config(self, micro_batch_interleave_num: int | None = None, **values: Any) -> None:
        """Set how the model is split over the ranks.

        Args:
            micro_batch_interleave_num: 2 overlaps computing and communication of model parallel.
            **values: keys of ``parallel_config`` (data_parallel, model_parallel, pipeline_stage, micro_batch_num, ...);
                those not given get their defaults.

        Raises:
            ConfigError: an unknown key or a wrong value.
        """
        self.config.parallel_config = TransformerOpParallelConfig(**values)
        if micro_batch_interleave_num is not None:
            self.config.micro_batch_interleave_num = micro_batch_interleave_num

    def set_recompute_config(self, **values: Any) -> None:
        """Set which activations are computed again in the backward pass; keys of ``recompute_config``.

        Raises:
            ConfigError: an unknown key or a wrong value.
        """
        self.config.recompute_config = TransformerRecomputeConfig(**values)

    def get_train_dataloader(self) -> Any:
        """The MindSpore dataset of batches that train() would feed, all epochs in one stream."""
        if self.train_dataset is not None:
            return self.train_dataset
        return training_data(self._config_for("train"))

    def get_eval_dataloader(self) -> Any:
        """The MindSpore dataset of batches that evaluate() would feed."""
        if self.eval_dataset is not None:
            return self.eval_dataset
        cfg = self._config_for("eval")
        cfg.runner_config.batch_size = self._eval_batch or cfg.runner_config.batch_size
        return build_eval_dataset(cfg)[0]

    def get_last_checkpoint(self) -> str | None:
        """Newest checkpoint of ``output_dir``; None when there is none."""
        rank = self._layout.rank if self._layout else 0
        folder = OutputLayout(self.config.output_dir, rank).checkpoint_dir
        return get_last_checkpoint(folder) if folder.is_dir() else None

    def _config_for(self, mode: str, checkpoint: Any = None, resume: Any = None, **changes: Any) -> RunConfig:
        """A copy of the config for one verb, with everything a run needs checked."""
        cfg = self.config.model_copy(deep=True)
        cfg.run_mode = mode
        for key, value in changes.items():
            if value is not None:
                setattr(cfg, key, value)
        if checkpoint is True:
            cfg.load_checkpoint = self._own_checkpoints()
        elif checkpoint:
            cfg.load_checkpoint = str(checkpoint)
        if resume is not None:
            cfg.resume_training = bool(resume)
            if isinstance(resume, str | Path):
                cfg.load_checkpoint = str(resume)
        objects = {"train_dataset": self.train_dataset, "eval_dataset": self.eval_dataset}
        passed = ("input_data", *(name for name, value in objects.items() if value is not None))
        found = [f for f in (*cfg.findings(), *launch_findings(cfg)) if not f.key.startswith(passed)]
        if found:
            lines = [f"  {finding.key}: {finding.message}" for finding in found]
            raise ConfigError("\n".join([f"Trainer cannot {mode}:", *lines]))
        return cfg

    def _own_checkpoints(self) -> str:
        newest = self.get_last_checkpoint()
        if newest is None:
            folder = OutputLayout(self.config.output_dir).checkpoint_root
            raise CheckpointError(f"there is no checkpoint in {folder} to start from: give the path of one")
        return str(Path(newest).parent.parent)

    def _start(self) -> OutputLayout:
        if self._layout is None:
            cfg = self.config
            context = context_section(cfg)
            rank, _ = init_context(cfg.use_parallel, context, parallel_section(cfg), cfg.output_dir)
            gather_weights_again(cfg)
            set_seed(cfg.seed)
            self._layout = OutputLayout(cfg.output_dir, rank)
        return self._layout

    def _train(self, cfg: RunConfig) -> None:
        layout = self._start()
        self._adapt()
        eval_dataset = self.eval_dataset
        if cfg.do_eval and eval_dataset is None and self._eval_batch:
            evaluated = cfg.model_copy(deep=True)
            evaluated.runner_config.batch_size = self._eval_batch
            eval_dataset = build_eval_dataset(evaluated)[0]
        task = build_training(cfg, layout, self.train_dataset, eval_dataset, self._given)
        if cfg.only_save_strategy:
            report_strategy(layout)
            return
        described = self._given == Given() and self.train_dataset is None
        with compile_cache(cfg, task.progress, task.cell, described):
            try_run(task, cfg, eval_dataset)
            save_config(cfg, layout.resolved_config)
            run(task, cfg)
        self._network = task.cell.network

    def _ready(self, cfg: RunConfig, checkpoint: Any) -> nn.Cell:
        """The network with the weights that are meant, in evaluation mode."""
        layout = self._start()
        self._adapt()
        if self.save_config:
            save_config(cfg, layout.resolved_config)
        fresh, later = self._network is None, loads_slices(cfg)
        if fresh:
            self._network = build_network(cfg, layout.rank, weights_follow=not later)
        if (fresh or checkpoint) and not later:
            load_weights(self._network, cfg, required=True, rank=layout.rank)
        if fresh:
            self._network = lay_out(self._network, cfg)
        if (fresh or checkpoint) and later:
            self._network.set_train(False)
            with meeting(cfg, layout).step("load"):
                load_parts(self._network, cfg, layout, compile_parts(self._network, cfg, layout.rank))
        self._network.set_train(False)
        return self._network

    def _own_tokenizer(self) -> Any:
        """The tokenizer given at construction, loaded when it was named; None for the config's."""
        if isinstance(self.tokenizer, str | Path):
            self.tokenizer = pretrained_tokenizer(self.tokenizer)
        return self.tokenizer

    def _adapt(self) -> None:
        """Put adapters around a model object that is to have them."""
        if not self._adapted:
            from mindformers.pet import get_pet_model

            self._given.network = self._network = get_pet_model(
                self._given.network, self.config.model.config.pet_config
            )
            self._adapted = True


def run(task: TrainTask, cfg: RunConfig) -> None:
    """Feed the task's stream to ``mindspore.Model``."""
    progress, runner = task.progress, cfg.runner_config
    logger.info(
        "training from step %d to %d (%d a pass, %d epochs), %d records a step",
        progress.start_step + 1, progress.total_steps, progress.steps_per_epoch, progress.epochs,
        progress.global_batch_size,
    )  # fmt: skip
    stop = StopMonitor(progress)
    _feed(task, runner, [stop, *task.callbacks])
    saved = [callback.last_saved for callback in task.callbacks if isinstance(callback, CheckpointMonitor)]
    stop.raise_if_stopped(saved[-1] if saved else None)


def _feed(task: TrainTask, runner: RunnerSection, callbacks: list[Any]) -> None:
    model = ms.Model(task.cell)
    if not runner.sink_mode or ms.get_context("device_target") == "CPU":  # the CPU has no sink mode
        model.train(1, task.dataset, callbacks=callbacks, dataset_sink_mode=False)
        return
    sink_size = runner.sink_size if runner.sink_size > 0 else task.steps_left
    chunks, rest = divmod(task.steps_left, sink_size)
    if not chunks:
        raise ConfigError(
            f"sink_size {sink_size} is more than the {task.steps_left} steps left: lower runner_config.sink_size"
        )
    if rest:
        logger.warning("the last %d steps do not fill a sink of %d and are not run", rest, sink_size)
    model.train(chunks, task.dataset, callbacks=callbacks, dataset_sink_mode=True, sink_size=sink_size)
