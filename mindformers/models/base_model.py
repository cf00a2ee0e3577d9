# SPDX-License-Identifier: Apache-2.0
"""BaseModel: what every model can do besides its mathematics: get its weights, and be saved."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mindspore import nn
from mindspore.nn.utils import no_init_parameters

from mindformers.checkpoint.layout import check_format
from mindformers.checkpoint.load import (
    LoadReport,
    checkpoint_being_checked,
    load_into,
    read_checkpoint,
    resolve_checkpoint,
)
from mindformers.checkpoint.save import save_network
from mindformers.errors import ConfigError
from mindformers.models.pretrained import SAVE_NAME, save_folder
from mindformers.modules.packed_linear import PackedLinear

__all__ = ["BaseModel"]


class BaseModel(nn.Cell):
    """A model with a config.

    Args:
        config: its config; kept as ``model.config``.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_dir: str | Path, download_checkpoint: bool = True, **kwargs: Any
    ) -> Any:
        """As ``AutoModel.from_pretrained``, for this class of model.

        Raises:
            ConfigError: the source describes another class of model.
        """
        from mindformers.models.build import pretrained_model

        return pretrained_model(pretrained_model_name_or_dir, download_checkpoint, kwargs, cls)

    def load_checkpoint(self, source: str | Path) -> LoadReport:
        """Load weights: a file, a directory, or a registered name.

        Raises:
            CheckpointError: nothing there, damaged, or not the weights of this model.
        """
        self._require_floats("no weights can be loaded into it")
        return load_into(self, read_checkpoint(resolve_checkpoint(source)))

    def save_pretrained(
        self,
        save_directory: str | Path | None = None,
        save_name: str = SAVE_NAME,
        checkpoint_format: str = "ckpt",
    ) -> tuple[str, str]:
        """Write config and weights; ``from_pretrained`` of the directory makes the model again, anywhere.

        Args:
            save_directory: made if absent; None is ``./checkpoint_save`` (or CHECKPOINT_SAVE_FOLDER).
            save_name: name of both files without suffix; an existing YAML keeps its other sections.
            checkpoint_format: 'ckpt' or 'safetensors'.

        Returns:
            Paths of the YAML and of the weights.

        Raises:
            CheckpointError, ConfigError: a file cannot be written; nothing half-written stays.
        """
        self._require_floats("it cannot be saved")
        folder = save_folder(save_directory)
        weights = folder / f"{save_name}.{check_format(checkpoint_format)}"
        save_network({p.name: p for p in self.get_parameters()}, weights, fmt=checkpoint_format)
        config = self.config.model_copy(deep=True)
        config.checkpoint_name_or_path = ""  # the directory may move: the weights are found beside the YAML
        return config.save_pretrained(folder, save_name), str(weights)

    def _require_floats(self, consequence: str) -> None:
        if any(isinstance(cell, PackedLinear) for cell in self.cells()):
            raise ConfigError(
                f"the weights of this model are {self.config.weight_dtype} now, so {consequence}: make the model again "
                "without model_config.weight_dtype"
            )

    @contextlib.contextmanager
    def _weights_of(self, source: str | Path | None) -> Iterator[None]:
        """Parameters made inside get the values of a checkpoint, opened before and loaded at the end.

        Without a source they keep their random values. With one, drawing these is left out: it takes seconds for every
        hundred million weights.
        """
        if not source:
            yield
            return
        with checkpoint_being_checked(resolve_checkpoint(source)) as weights:
            with no_init_parameters():
                yield
            load_into(self, weights)


def check_class(found: type, wanted: type, given: Any) -> None:
    """Refuse a source that describes another class of model than the one asked for.

    Raises:
        ConfigError: names both.
    """
    if not issubclass(found, wanted):
        raise ConfigError(
            f"{given} describes a {found.__name__}, not a {wanted.__name__}: use AutoModel, or that class"
        )
