# SPDX-License-Identifier: Apache-2.0
"""Llama 2 for MindSpore: the public names, each imported from its module when it is first used."""

import importlib
import os
from typing import Any

from mindformers.version import __version__

# MindSpore, which reads this when it is imported, warns of every graph for generation on CPU (generation/session.py)
if "GLOG_v" not in os.environ:
    os.environ.setdefault("MS_SUBMODULE_LOG_v", "{RUNTIME_FRAMEWORK:3}")

# module -> the public names that live there
_MODULES: dict[str, tuple[str, ...]] = {
    "mindformers.auto_class": ("AutoConfig", "AutoModel", "AutoProcessor", "AutoTokenizer"),
    "mindformers.pipeline": ("TextGenerationPipeline", "build_pipeline", "pipeline"),
    "mindformers.config": (
        "ActionDict",
        "MindFormerConfig",
        "MoEConfig",
        "RunConfig",
        "TransformerOpParallelConfig",
        "TransformerRecomputeConfig",
        "load_config",
        "save_config",
    ),
    "mindformers.model_zoo": ("MindFormerBook",),
    "mindformers.registry": ("MindFormerModuleType", "MindFormerRegister"),
    "mindformers.tools.logger": ("logger",),
    "mindformers.models.base_config": ("BaseConfig",),
    "mindformers.models.base_model": ("BaseModel",),
    "mindformers.models.base_processor": ("BaseProcessor",),
    "mindformers.models.base_tokenizer": ("BaseTokenizer", "SpecialTokensMixin", "Tokenizer"),
    "mindformers.models.build": ("build_model", "build_model_config", "build_processor", "build_tokenizer"),
    "mindformers.models.llama.llama": ("LlamaForCausalLM", "LlamaModel"),
    "mindformers.models.llama.llama_config": ("LlamaConfig",),
    "mindformers.models.llama.llama_processor": ("LlamaProcessor",),
    "mindformers.models.llama.llama_tokenizer": ("LlamaTokenizer",),
    "mindformers.core.clip_grad": ("ClipGradNorm",),
    "mindformers.core.build": (
        "build_callback",
        "build_context",
        "build_loss",
        "build_lr",
        "build_metric",
        "build_optim",
        "build_parallel_config",
    ),
    "mindformers.core.context": ("init_context",),
    "mindformers.core.context_config": ("ContextConfig", "ParallelContextConfig"),
    "mindformers.core.optim": ("AdamW", "FP32StateAdamWeightDecay"),
    "mindformers.core.lr": (
        "ConstantWarmUpLR",
        "CosineWithRestartsAndWarmUpLR",
        "CosineWithWarmUpLR",
        "LearningRateWiseLayer",
        "LinearWithWarmUpLR",
        "PolynomialWithWarmUpLR",
        "WarmUpDecayLR",
    ),
    "mindformers.core.loss": ("CrossEntropyLoss",),
    "mindformers.core.metric": ("EmF1Metric", "PerplexityMetric", "SquadMetric"),
    "mindformers.core.callback": (
        "CheckpointMointor",
        "CheckpointMonitor",
        "EvalCallBack",
        "MFLossMonitor",
        "ObsMonitor",
        "ProfileMonitor",
        "SummaryMonitor",
    ),
    "mindformers.dataset": ("CausalLanguageModelDataset",),
    "mindformers.wrapper": ("MFTrainOneStepCell",),
    "mindformers.generation": (
        "BaseStreamer",
        "GenerationConfig",
        "GeneratorMixin",
        "LogitNormalization",
        "LogitsProcessor",
        "LogitsProcessorList",
        "LogitsWarper",
        "RepetitionPenaltyLogitsProcessor",
        "TemperatureLogitsWarper",
        "TextIteratorStreamer",
        "TextStreamer",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
    ),
    "mindformers.pet": ("LoRADense", "LoraConfig", "get_pet_model"),
    "mindformers.inference": ("InferConfig", "InferTask", "get_mslite_pipeline"),
    "mindformers.trainer": (
        "BaseArgsConfig",
        "CheckpointConfig",
        "CloudConfig",
        "ConfigArguments",
        "DataLoaderConfig",
        "DatasetConfig",
        "LRConfig",
        "OptimizerConfig",
        "RunnerConfig",
        "Trainer",
        "TrainingArguments",
        "WrapperConfig",
    ),
}
_TABLE = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", *sorted(_TABLE)]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _TABLE:
        raise AttributeError(f"module 'mindformers' has no attribute {name!r}")
    module = importlib.import_module(_TABLE[name])
    if module.__name__ == f"{__name__}.{name}":  # pipeline: a package that can be called; it must stay the package
        return module
    value = getattr(module, name)
    globals()[name] = value
    return value


def _of_package(package: str, name: str) -> Any:
    """A public name of a sub-package, which old scripts import from there (``from mindformers.models import ...``)."""
    if not _TABLE.get(name, "").startswith(f"{package}."):
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_TABLE[name]), name)


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__})
