# SPDX-License-Identifier: Apache-2.0
"""ConfigArguments: sections of a run's config as typed objects, for scripts that build a config piece by piece.

Each class stands for one section of docs/config.md and takes its keys; what is not given keeps the value of the model's
config. Unknown keys and wrong values are refused by the same schema as those of a YAML.
"""

from typing import Any

from mindformers.config.problems import unknown_key
from mindformers.config.schema.run import RunConfig
from mindformers.config.tree import choose_section, field_of, find_spot, is_open
from mindformers.errors import ConfigError

__all__ = [
    "BaseArgsConfig",
    "CheckpointConfig",
    "CloudConfig",
    "ConfigArguments",
    "DataLoaderConfig",
    "DatasetConfig",
    "LRConfig",
    "OptimizerConfig",
    "RunnerConfig",
    "WrapperConfig",
]


class BaseArgsConfig:
    """Keys of one section and their values; None means "as it is".

    Args:
        **values: keys of the section, or nested objects of this kind.

    Raises:
        ConfigError: an unknown key, with the nearest one.
    """

    _path: tuple[str | int, ...] = ()
    _fixed: dict[str, Any] = {}
    _type_names: tuple[str, ...] = ()

    def __init__(self, **values: Any) -> None:
        for name in self._type_names:  # the old library called the key type so
            if name in values and "type" not in values:
                values["type"] = values.pop(name)
        kept = {key: value for key, value in values.items() if value is not None}
        section = self._section({**self._fixed, **{key: value for key, value in kept.items() if key == "type"}})
        for key in kept:
            if section is not None and not is_open(section) and field_of(section, key) is None:
                raise ConfigError(f"{type(self).__name__}.{key}: {unknown_key(RunConfig, section, (*self._path, key))}")
        self.__dict__.update(kept)

    def _section(self, values: dict[str, Any]) -> Any:
        annotation = find_spot(RunConfig, self._path, {}).annotation
        return choose_section(annotation, values)

    def to_dict(self) -> dict[str, Any]:
        """The given values, nested objects as dicts."""
        return {k: v.to_dict() if isinstance(v, BaseArgsConfig) else v for k, v in self.__dict__.items()}


class RunnerConfig(BaseArgsConfig):
    """Section ``runner_config``: epochs, batch_size, sink_mode, ..."""

    _path = ("runner_config",)


class OptimizerConfig(BaseArgsConfig):
    """Section ``optimizer``: type (optim_type), learning_rate, weight_decay, ..."""

    _path = ("optimizer",)
    _type_names = ("optim_type",)


class LRConfig(BaseArgsConfig):
    """Section ``lr_schedule``: type (lr_type), learning_rate, warmup_steps, ..."""

    _path = ("lr_schedule",)
    _type_names = ("lr_type",)


class WrapperConfig(BaseArgsConfig):
    """Section ``runner_wrapper``: scale_sense, use_clip_grad, ..."""

    _path = ("runner_wrapper",)
    _type_names = ("wrapper_type",)


class DataLoaderConfig(BaseArgsConfig):
    """Key ``data_loader`` of a dataset: dataset_dir, shuffle, ..."""

    _path = ("train_dataset", "data_loader")


class DatasetConfig(BaseArgsConfig):
    """Sections ``train_dataset`` and ``eval_dataset``: data_loader, input_columns, ..."""

    _path = ("train_dataset",)


class CheckpointConfig(BaseArgsConfig):
    """The callback CheckpointMonitor: prefix, save_checkpoint_steps, keep_checkpoint_max, ..."""

    _path = ("callbacks", 0)
    _fixed = {"type": "CheckpointMonitor"}


class CloudConfig(BaseArgsConfig):
    """The callback ObsMonitor: target_dir, step_upload_frequence, ..."""

    _path = ("callbacks", 0)
    _fixed = {"type": "ObsMonitor"}


class ConfigArguments:
    """The sections of a run that are to differ from the model's config.

    Args:
        output_dir, profile, auto_tune, filepath_prefix, autotune_per_step, seed: keys of the top level.
        train_dataset, eval_dataset: DatasetConfig.
        runner_config: RunnerConfig.
        optimizer: OptimizerConfig; another ``type`` drops the arguments of the old one.
        lr_schedule: LRConfig.
        runner_wrapper: WrapperConfig.
        save_checkpoint: CheckpointConfig.
        cloud_config: CloudConfig.

    Raises:
        ConfigError: an argument is not of the class named here.
    """

    _SECTIONS = {
        "train_dataset": (DatasetConfig, "train_dataset"),
        "eval_dataset": (DatasetConfig, "eval_dataset"),
        "runner_config": (RunnerConfig, "runner_config"),
        "optimizer": (OptimizerConfig, "optimizer"),
        "lr_schedule": (LRConfig, "lr_schedule"),
        "runner_wrapper": (WrapperConfig, "runner_wrapper"),
        "save_checkpoint": (CheckpointConfig, "callbacks.CheckpointMonitor"),
        "cloud_config": (CloudConfig, "callbacks.ObsMonitor"),
    }

    def __init__(
        self,
        output_dir: str | None = None,
        profile: bool | None = None,
        auto_tune: bool | None = None,
        filepath_prefix: str | None = None,
        autotune_per_step: int | None = None,
        seed: int | None = None,
        **sections: BaseArgsConfig | None,
    ) -> None:
        self.plain = {
            "output_dir": output_dir,
            "profile": profile,
            "auto_tune": auto_tune,
            "filepath_prefix": filepath_prefix,
            "autotune_per_step": autotune_per_step,
            "seed": seed,
        }
        for name, section in sections.items():
            if name not in self._SECTIONS:
                raise ConfigError(f"ConfigArguments: unknown argument {name!r} (allowed: {', '.join(self._SECTIONS)})")
            wanted = self._SECTIONS[name][0]
            if section is not None and not isinstance(section, wanted):
                raise ConfigError(f"ConfigArguments.{name} must be a {wanted.__name__}, got {type(section).__name__}")
        self.sections = {name: section for name, section in sections.items() if section is not None}

    def overrides(self) -> list[tuple[str, Any]]:
        """(config key, value), a ``type`` before the keys beside it."""
        found = [(key, value) for key, value in self.plain.items() if value is not None]
        for name, section in self.sections.items():
            found += _flat(self._SECTIONS[name][1], section.to_dict())
        return found


def _flat(prefix: str, values: dict[str, Any]) -> list[tuple[str, Any]]:
    found = []
    for key in sorted(values, key=lambda key: key != "type"):
        value = values[key]
        nested = isinstance(value, dict) and value and key not in ("ascend_config",)
        found += _flat(f"{prefix}.{key}", value) if nested else [(f"{prefix}.{key}", value)]
    return found
