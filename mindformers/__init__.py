# SPDX-License-Identifier: Apache-2.0
"""Llama 2 for MindSpore: the public names, each imported from its module when it is first used."""

import importlib
from typing import Any

from mindformers.version import __version__

# module -> the public names that live there
_MODULES: dict[str, tuple[str, ...]] = {
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
    "mindformers.models.base_tokenizer": ("BaseTokenizer",),
    "mindformers.models.llama.llama": ("LlamaForCausalLM", "LlamaModel"),
    "mindformers.models.llama.llama_config": ("LlamaConfig",),
    "mindformers.models.llama.llama_processor": ("LlamaProcessor",),
    "mindformers.models.llama.llama_tokenizer": ("LlamaTokenizer",),
    "mindformers.core.clip_grad": ("ClipGradNorm",),
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
    "mindformers.trainer": ("Trainer",),
}
_TABLE = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", *sorted(_TABLE)]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _TABLE:
        raise AttributeError(f"module 'mindformers' has no attribute {name!r}")
    value = getattr(importlib.import_module(_TABLE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__})
