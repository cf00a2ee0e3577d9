# SPDX-License-Identifier: Apache-2.0
"""build_lr and its siblings, and the names old scripts import from sub-packages."""

import importlib

import pytest

import mindformers
from mindformers import MindFormerConfig
from mindformers.errors import ConfigError


def test_objects_from_sections() -> None:
    schedule = {"type": "linear", "learning_rate": 0.1, "warmup_steps": 1, "total_steps": 10}
    assert type(mindformers.build_lr(schedule)).__name__ == "LinearWithWarmUpLR"
    assert type(mindformers.build_metric({"type": "PerplexityMetric"})).__name__ == "PerplexityMetric"
    assert type(mindformers.build_loss({"type": "CrossEntropyLoss"})).__name__ == "CrossEntropyLoss"
    callbacks = mindformers.build_callback([{"type": "MFLossMonitor"}, {"type": "ObsMonitor"}])
    assert [type(callback).__name__ for callback in callbacks] == ["MFLossMonitor", "ObsMonitor"]
    with pytest.raises(ConfigError, match="Did you mean 'PerplexityMetric'"):
        mindformers.build_metric({"type": "PerplexityMetrics"})
    with pytest.raises(ConfigError, match="mapping"):
        mindformers.build_lr("linear")


def test_context_and_parallel_sections() -> None:
    config = MindFormerConfig(
        use_parallel=False, context={"device_target": "CPU"}, parallel_config={"data_parallel": 2}
    )
    assert mindformers.build_context(config) == (0, 1)
    mindformers.build_parallel_config(config)
    assert (config.parallel_config.data_parallel, config.parallel_config.model_parallel) == (2, 1)
    config.parallel_config["model_parallel"] = 0
    with pytest.raises(ConfigError, match="model_parallel"):
        mindformers.build_parallel_config(config)


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("core", ("init_context", "build_lr", "PerplexityMetric", "CheckpointMointor", "CosineWithWarmUpLR")),
        ("models", ("LlamaConfig", "LlamaForCausalLM", "LlamaTokenizer", "BaseModel", "build_model", "Tokenizer")),
    ],
)
def test_names_of_sub_packages(package: str, names: tuple[str, ...]) -> None:
    module = importlib.import_module(f"mindformers.{package}")
    for name in names:
        assert getattr(module, name) is getattr(mindformers, name)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = module.nothing_of_the_kind
