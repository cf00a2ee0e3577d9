# SPDX-License-Identifier: Apache-2.0
"""The whole config of a run: the top level of every YAML file."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, PrivateAttr

from mindformers.config.schema.base import Finding, Float, Int, NonNegativeInt, PositiveInt, Section, inert
from mindformers.config.schema.callbacks import AnyCallback
from mindformers.config.schema.context import ContextSection
from mindformers.config.schema.data import (
    DatasetSection,
    DatasetTaskSection,
    InferSection,
    Metric,
    PerplexityMetric,
    ProcessorSection,
)
from mindformers.config.schema.model import ModelSection
from mindformers.config.schema.parallel import (
    MoEConfig,
    ParallelSection,
    TransformerOpParallelConfig,
    TransformerRecomputeConfig,
)
from mindformers.config.schema.train import (
    FP32StateAdamWeightDecay,
    Optimizer,
    RunnerSection,
    Schedule,
    TrainerSection,
    TrainOneStep,
    Wrapper,
)

RUN_MODES = ("train", "finetune", "eval", "predict", "export")
_NO_TUNER = "MindData has no tuner here; set num_parallel_workers"


class RunConfig(Section):
    """Everything a run needs; read from YAML and the command line by ``load_config``."""

    seed: NonNegativeInt = Field(0, description="Seed of weights, data order, dropout and sampling.")
    run_mode: Literal["train", "finetune", "eval", "predict", "export"] = Field(
        "train", description="What to do: train, finetune, eval, predict or export."
    )
    output_dir: str = Field("./output", min_length=1, description="Folder for everything the run writes.")
    load_checkpoint: str | None = Field(
        "", description="Weights to start from: a file, a folder with rank_N folders, or a known name."
    )
    adapter_checkpoint: str | None = Field(
        "", description="LoRA adapter on top of load_checkpoint: a file, an output folder, or a folder of PEFT."
    )
    load_checkpoint_strict: bool = Field(True, description="A weight missing in load_checkpoint is an error.")
    src_strategy_path_or_dir: str | None = Field(
        "", description="Strategy file or folder that load_checkpoint was sliced with, for auto_trans_ckpt."
    )
    auto_trans_ckpt: bool = Field(False, description="Slice load_checkpoint anew for this run's layout.")
    auto_trans_timeout: NonNegativeInt = Field(
        1800, description="Seconds the ranks wait for the last to load with auto_trans_ckpt; 0 does not wait."
    )
    only_save_strategy: bool = Field(False, description="Compile, write the sharding strategies, and stop.")
    resume_training: bool = Field(False, description="Go on with the run that wrote load_checkpoint, or output_dir.")
    register_path: str | list[str] | None = Field(
        None, description="Python files or folders imported first, so that their classes can be named as type."
    )
    trainer: TrainerSection = Field(default_factory=TrainerSection, description="Trainer and name of the model.")
    runner_config: RunnerSection = Field(default_factory=RunnerSection, description="Length of the run and batches.")
    optimizer: Optimizer = Field(default_factory=FP32StateAdamWeightDecay, description="Optimizer.")
    lr_schedule: Schedule | None = Field(None, description="Learning rate schedule; constant if absent.")
    train_dataset: DatasetSection = Field(default_factory=DatasetSection, description="Training data.")
    train_dataset_task: DatasetTaskSection = Field(
        default_factory=DatasetTaskSection, description="How training records become batches."
    )
    eval_dataset: DatasetSection = Field(default_factory=DatasetSection, description="Evaluation data.")
    eval_dataset_task: DatasetTaskSection = Field(
        default_factory=DatasetTaskSection, description="How evaluation records become batches."
    )
    do_eval: bool = Field(False, description="Evaluate while training.")
    eval_step_interval: Int = Field(100, description="Steps between two evaluations; -1 turns it off.")
    eval_epoch_interval: Int = Field(-1, description="Epochs between two evaluations; -1 turns it off.")
    use_parallel: bool = Field(False, description="Run on several ranks, started by a launcher.")
    parallel: ParallelSection = Field(default_factory=ParallelSection, description="MindSpore's parallel context.")
    parallel_config: TransformerOpParallelConfig = Field(
        default_factory=TransformerOpParallelConfig, description="How the model is split over the ranks."
    )
    micro_batch_interleave_num: PositiveInt = Field(
        1, description="2 halves the batch so that computing and communication of model parallel overlap."
    )
    recompute_config: TransformerRecomputeConfig = Field(
        default_factory=TransformerRecomputeConfig, description="Recomputation of activations."
    )
    moe_config: MoEConfig = Field(default_factory=MoEConfig, description="Mixture of experts; of no use for Llama 2.")
    callbacks: list[AnyCallback] = Field(default_factory=list, description="Callbacks of training.")
    eval_callbacks: list[AnyCallback] = Field(default_factory=list, description="Callbacks of evaluation.")
    context: ContextSection = Field(default_factory=ContextSection, description="Device and compiler.")
    model: ModelSection = Field(default_factory=ModelSection, description="The model.")
    processor: ProcessorSection = Field(default_factory=ProcessorSection, description="Tokenizer and processor.")
    metric: Metric = Field(default_factory=PerplexityMetric, description="What eval measures.")
    runner_wrapper: Wrapper = Field(default_factory=TrainOneStep, description="Loss scale and gradient clipping.")
    infer: InferSection = Field(default_factory=InferSection, description="Files of the export.")
    input_data: str | list[str] | None = Field(
        None, description="Prompts for predict: a text, several, or a file with one per line."
    )
    predict_batch_size: PositiveInt | None = Field(None, description="Prompts generated together; one if absent.")
    save_file: str = Field("text_generation_result.txt", min_length=1, description="File predict writes its texts to.")
    profile: bool = Field(False, description="Profile some steps of the run; the data is not sunk to the device then.")
    profile_start_step: PositiveInt = Field(1, description="First step to profile.")
    profile_stop_step: PositiveInt = Field(10, description="Last step to profile.")
    init_start_profile: bool = Field(False, description="Start the profiler before the first step, with compilation.")
    profile_communication: bool = Field(False, description="Record collective communication as well.")
    profile_memory: bool = Field(True, description="Record memory as well.")
    auto_tune: bool = inert(False, "tuning of the data pipeline", _NO_TUNER)
    filepath_prefix: str = inert("./autotune", "file of auto_tune", _NO_TUNER)
    autotune_per_step: PositiveInt = inert(10, "interval of auto_tune", _NO_TUNER)
    layer_scale: bool = inert(False, "learning rate per layer", "all layers have one learning rate")
    layer_decay: Float = inert(0.65, "learning rate per layer", "all layers have one learning rate")
    lr_scale: bool = inert(False, "learning rate times global batch / lr_scale_factor", "the rate is used as written")
    lr_scale_factor: PositiveInt = inert(256, "divisor of lr_scale", "the rate is used as written")
    remote_save_url: str | None = inert(
        "Please input obs url on AICC platform.",
        "address in Huawei's object store",
        "only ObsMonitor's target_dir is used",
    )

    _warnings: list[str] = PrivateAttr(default_factory=list)
    _source: Any = PrivateAttr(default=None)

    @property
    def warnings(self) -> list[str]:
        """What the reader noticed that is allowed but probably not meant, one line each."""
        return self._warnings

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunConfig) and self.to_dict() == other.to_dict()

    __hash__ = None

    def findings(self) -> Iterator[Finding]:
        """Every rule between the sections, and those within each of them."""
        from mindformers.config.schema.checks import run_findings  # it names RunConfig in its types

        return run_findings(self)
