# SPDX-License-Identifier: Apache-2.0
"""The two engines that run exported graphs: MindSpore itself, and MindSpore Lite.

Both offer ``input_shapes(kind)`` and ``run(kind, *arrays)``, where kind is ``prefill``, ``increment`` or ``full``.
"""

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mindformers.errors import CheckpointError, ConfigError, DeviceError
from mindformers.inference.mindir_files import input_shapes

__all__ = ["Backend", "LiteBackend", "MindSporeBackend", "open_backend"]

BACKENDS = ("ms", "mslite")
_SMALL_INPUT = 64  # bytes


class Backend(Protocol):
    """What :class:`ExportedModel` needs of an engine."""

    name: str

    def input_shapes(self, kind: str) -> list[tuple[int, ...]]:
        """Shapes of a graph's inputs."""

    def run(self, kind: str, *inputs: np.ndarray) -> np.ndarray:
        """The graph's first output, the logits."""


def open_backend(name: str | None, files: Mapping[str, Path], **options: Any) -> Backend:
    """Open exported files.

    Args:
        name: ``ms``, ``mslite``, or None: Lite where it is installed, else MindSpore.
        files: kind -> MindIR file.
        options: of :class:`LiteBackend`; MindSpore has none, its device is that of the context.

    Raises:
        ConfigError: the name is unknown.
        DeviceError: Lite is asked for and not installed.
    """
    installed = importlib.util.find_spec("mindspore_lite") is not None
    if name not in (None, *BACKENDS):
        raise ConfigError(f"backend {name!r} is not allowed: give one of {', '.join(BACKENDS)}")
    if name == "mslite" and not installed:
        raise DeviceError(
            "backend mslite needs the package mindspore_lite, which is not on PyPI: install the wheel for this device "
            "from MindSpore's download page, or use backend ms, which runs the same files with MindSpore"
        )
    if name == "mslite" or (name is None and installed):
        return LiteBackend(files, **options)
    return MindSporeBackend(files)


class MindSporeBackend:
    """Runs MindIR files as graphs of MindSpore, on the device of its context.

    Args:
        files: kind -> MindIR file.

    The graphs share weights and cache: the second is given the parameters of the first.
    """

    name = "ms"

    def __init__(self, files: Mapping[str, Path]) -> None:
        import mindspore as ms
        from mindspore import nn

        from mindformers.generation.session import OftenCalled

        class LoadedGraph(OftenCalled, nn.GraphCell):
            """A graph of a MindIR file that is launched once per token."""

        self._tensor = ms.Tensor
        self._small = functools.lru_cache(maxsize=4096)(self._new_small)
        self._files = dict(files)
        self._graphs: dict[str, nn.Cell] = {}
        shared: dict[str, ms.Parameter] = {}
        for kind, path in files.items():
            try:
                graph = LoadedGraph(ms.load(str(path)))
            except (RuntimeError, ValueError, TypeError) as error:
                reason = (str(error).strip().splitlines() or [""])[0]
                raise CheckpointError(f"{path} cannot be loaded as MindIR: {reason}") from error
            for name, parameter in graph.parameters_dict().items():
                if name in shared:
                    parameter.set_data(shared[name])
                else:
                    shared[name] = parameter
            self._graphs[kind] = graph

    def input_shapes(self, kind: str) -> list[tuple[int, ...]]:
        """Shapes of a graph's inputs, -1 where a size is open."""
        return input_shapes(self._files[kind])

    def run(self, kind: str, *inputs: np.ndarray) -> np.ndarray:
        """The graph's first output, the logits."""
        return self._graphs[kind](*map(self._as_tensor, inputs))[0].asnumpy()

    def _as_tensor(self, array: np.ndarray) -> Any:
        """An array as an input. Positions, flags and single tokens come again and again: they are kept as Tensors that
        have been on the device already."""
        if array.nbytes > _SMALL_INPUT:
            return self._tensor(array)
        return self._small(array.tobytes(), array.dtype.str, array.shape)

    def _new_small(self, data: bytes, dtype: str, shape: tuple[int, ...]) -> Any:
        return self._tensor(np.frombuffer(data, dtype).reshape(shape))


class LiteBackend:
    """Runs MindIR files with MindSpore Lite.

    Args:
        files: kind -> MindIR file; the graphs of a pair share their weights in a ModelGroup.
        target: ``Ascend`` or ``CPU``.
        device_id: device of this process.
        rank_id: rank of this process.
        config_path: Lite's own configuration (lite.ini), passed on; empty for none.
    """

    name = "mslite"

    def __init__(
        self,
        files: Mapping[str, Path],
        target: str = "Ascend",
        device_id: int = 0,
        rank_id: int = 0,
        config_path: str = "",
    ) -> None:
        import mindspore_lite as mslite

        if config_path and not Path(config_path).is_file():
            raise ConfigError(f"--config_path {config_path}: no such file; configs/llama2/lite_*.ini are examples")
        context = mslite.Context()
        context.target = [target.lower()]
        if target.lower() == "ascend":
            context.ascend.device_id = device_id
            context.ascend.rank_id = rank_id
            context.ascend.provider = "ge"
        self._models = {kind: mslite.Model() for kind in files}
        if len(files) > 1:
            self._group = mslite.ModelGroup(mslite.ModelGroupFlag.SHARE_WEIGHT)
            self._group.add_model(list(self._models.values()))
        for kind, path in files.items():
            try:
                self._models[kind].build_from_file(str(path), mslite.ModelType.MINDIR, context, config_path)
            except RuntimeError as error:
                raise CheckpointError(f"MindSpore Lite cannot load {path}: {error}") from error

    def input_shapes(self, kind: str) -> list[tuple[int, ...]]:
        """Shapes of a graph's inputs."""
        return [tuple(tensor.shape) for tensor in self._models[kind].get_inputs()]

    def run(self, kind: str, *inputs: np.ndarray) -> np.ndarray:
        """The graph's first output, the logits."""
        model = self._models[kind]
        tensors = model.get_inputs()
        if len(tensors) != len(inputs):
            raise CheckpointError(f"the {kind} graph has {len(tensors)} inputs, not {len(inputs)}: export it again")
        for tensor, array in zip(tensors, inputs, strict=True):
            tensor.set_data_from_numpy(np.ascontiguousarray(array))
        return model.predict(tensors)[0].get_data_to_numpy()
