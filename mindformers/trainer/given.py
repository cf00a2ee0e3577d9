# SPDX-License-Identifier: Apache-2.0
"""What a script hands to the Trainer as objects, in place of what the config describes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
from mindspore import nn

from mindformers.errors import ConfigError

__all__ = ["Given", "metric_section"]


@dataclass
class Given:
    """Objects a script made itself.

    Args:
        network: a model; its weights are kept unless ``load_checkpoint`` names others.
        optimizer: over parameters of ``network``.
        wrapper: the train step of ``network``, with an optimizer of its own.
        callbacks: one or several, in addition to the config's; one of the same class replaces the config's.

    Raises:
        ConfigError: one is of the wrong kind, or was made for another model.
    """

    network: nn.Cell | None = None
    optimizer: nn.Optimizer | None = None
    wrapper: nn.Cell | None = None
    callbacks: Any = ()

    def __post_init__(self) -> None:
        one = self.callbacks is not None and not isinstance(self.callbacks, Sequence)
        self.callbacks = [self.callbacks] if one else list(self.callbacks or ())
        for callback in self.callbacks:
            if not isinstance(callback, ms.Callback):
                raise ConfigError(f"callbacks hold a {type(callback).__name__}: give objects of mindspore.Callback")
        self._check("optimizers", self.optimizer, nn.Optimizer)
        self._check("wrapper", self.wrapper, nn.Cell)
        if self.optimizer is not None and self.wrapper is not None:
            raise ConfigError("a wrapper has an optimizer of its own: give optimizers or wrapper, not both")

    def _check(self, argument: str, value: Any, kind: type) -> None:
        """An optimizer and a wrapper only mean something with the model they were made for."""
        if value is None:
            return
        if not isinstance(value, kind):
            raise ConfigError(f"{argument} is {type(value).__name__}: give a {kind.__name__}")
        if self.network is None:
            raise ConfigError(f"{argument} belongs to the parameters of a model: give the model object it was made for")
        own = {id(parameter) for parameter in self.network.get_parameters()}
        weights = value.parameters if isinstance(value, nn.Optimizer) else value.trainable_params()
        if not any(id(parameter) in own for parameter in weights):
            raise ConfigError(f"{argument} was made for another model than the one given")


def metric_section(metric: Any) -> dict[str, Any]:
    """The config section of a metric given by name or as a mapping.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(metric, str):
        return {"type": metric}
    if isinstance(metric, Mapping):
        return dict(metric)
    raise ConfigError(
        f"compute_metrics is {type(metric).__name__}: give the name of a registered metric, or a section with 'type'. "
        "One of your own: decorate its class with MindFormerRegister.register(MindFormerModuleType.METRIC)"
    )
