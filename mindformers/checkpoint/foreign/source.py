# SPDX-License-Identifier: Apache-2.0
"""Foreign weights under our names: a mapping whose values are read, joined and reordered when they are asked for."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mindformers.checkpoint.foreign.arrays import Raw, to_tensor
from mindformers.checkpoint.foreign.detect import (
    HF_CONFIG,
    META_PARAMS,
    foreign_hint,
    foreign_kind,
    meta_shards,
    read_json,
    weight_files,
)
from mindformers.checkpoint.foreign.files import Facts, SafetensorsFile, TensorFile, TorchFile, listed, open_file
from mindformers.checkpoint.foreign.table import EMBEDDING, HEAD, entry_of, is_derived, our_name, permute
from mindformers.errors import CheckpointError
from mindformers.tools.logger import get_logger

__all__ = ["ForeignTensors", "WeightSource", "open_foreign"]

logger = get_logger(__name__)


def open_foreign(path: str | Path) -> "ForeignTensors":
    """Open weights of Hugging Face or Meta; see :func:`~mindformers.checkpoint.foreign.foreign_kind` for what it takes.

    Raises:
        CheckpointError: no such weights there, a file is missing or damaged, a name is unknown, or the shards of Meta
            do not fit each other.
    """
    path = Path(path).expanduser()
    kind = foreign_kind(path)
    if kind is None:
        hint = foreign_hint(path) if path.is_dir() else "" if path.exists() else "it does not exist"
        raise CheckpointError(
            f"{path}: no weights of Hugging Face (config.json and model.safetensors or pytorch_model.bin) or Meta "
            f"(params.json and consolidated.NN.pth){': ' + hint if hint else ''}"
        )
    if kind == "meta":
        return MetaTensors(path if path.is_dir() else path.parent)
    return HuggingFaceTensors(path)


class WeightSource(ABC):
    """Weights of a file under our names, with shapes and types known before a value is read.

    Attributes:
        path: what was opened.
        kind: layout of the values: ``mindspore``, ``huggingface`` or ``meta``.
    """

    kind = ""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._facts: dict[str, Facts] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)

    def __contains__(self, name: object) -> bool:
        return name in self._facts

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a value, without reading it."""
        return self._facts[name].shape

    def dtype(self, name: str) -> str:
        """Element type of a value, without reading it."""
        return self._facts[name].dtype

    @abstractmethod
    def raw(self, name: str) -> Raw:
        """The value as an array in memory of its own."""

    @property
    def tied(self) -> bool:
        """Whether the output layer is the embedding: it has no weight of its own, and nothing says it should."""
        return HEAD not in self._facts and EMBEDDING in self._facts


class ForeignTensors(WeightSource, Mapping[str, Any]):
    """Our name to ``ms.Tensor``; each access reads the value anew, into memory of its own.

    Attributes:
        dropped: foreign names that are no weights (rotary tables) and are left out.
        concurrent: whether several threads may read at once.
    """

    concurrent = False

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.dropped: list[str] = []

    def _rename(self, name: str, unknown: list[str]) -> str | None:
        """Our name; a name to drop or an unknown one is noted instead."""
        ours = our_name(name, self.kind)
        if ours is None:
            (self.dropped if is_derived(name, self.kind) else unknown).append(name)
        return ours

    def _refuse_unknown(self, unknown: list[str], total: int) -> None:
        if unknown:
            raise CheckpointError(
                f"{self.path}: {len(unknown)} of {total} names are not those of a Llama in the layout of {self.kind}: "
                f"{listed(sorted(unknown))}"
            )

    def __getitem__(self, name: str) -> Any:
        return to_tensor(self.raw(name))


class HuggingFaceTensors(ForeignTensors):
    """A folder or file in the layout of transformers; names change, values stay as they are."""

    kind = "huggingface"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._places: dict[str, tuple[TensorFile, str]] = {}
        unknown: list[str] = []
        files: list[TensorFile] = []
        total = 0
        for file_path, expected in weight_files(path):
            file = open_file(file_path)
            files.append(file)
            total += len(file.facts)
            absent = sorted((expected or set()) - set(file.facts))
            if absent:
                raise CheckpointError(f"{file_path} lacks weights its index promises: {listed(absent)}")
            for name, facts in file.facts.items():
                ours = self._rename(name, unknown)
                if ours is not None:
                    self._facts[ours] = facts
                    self._places[ours] = (file, name)
        self._refuse_unknown(unknown, total)
        if not self._facts:
            raise CheckpointError(f"{path} holds no weights")
        self.concurrent = all(isinstance(file, SafetensorsFile) for file in files)

    def raw(self, name: str) -> Raw:
        """The value as an array in memory of its own."""
        file, theirs = self._places[name]
        return file.read(theirs)

    @property
    def tied(self) -> bool:
        """Whether the output layer is the embedding; a config.json that says otherwise means a weight is missing."""
        config = self.path / HF_CONFIG
        said = read_json(config).get("tie_word_embeddings", False) if config.is_file() else True
        return bool(said) and super().tied


class MetaTensors(ForeignTensors):
    """A folder in the layout of Meta: model-parallel shards are joined, and wq and wk put into our order."""

    kind = "meta"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.params = read_json(path / META_PARAMS)
        self._heads = _meta_heads(self.params, path / META_PARAMS)
        paths = meta_shards(path)
        if [int(p.name.split(".")[1]) for p in paths] != list(range(len(paths))):
            raise CheckpointError(f"{path}: the numbers of the shards have gaps: {listed([p.name for p in paths])}")
        self._shards = [TorchFile(p) for p in paths]
        self._names: dict[str, str] = {}
        unknown: list[str] = []
        for name in self._shards[0].facts:
            ours = self._rename(name, unknown)
            if ours is not None:
                self._names[ours] = name
        self._refuse_unknown(unknown, len(self._shards[0].facts))
        for ours, name in self._names.items():
            self._facts[ours] = self._joined_facts(ours, name)
        self._check_width()

    def _joined_facts(self, ours: str, name: str) -> Facts:
        """Shape and type of the whole weight."""
        absent = [shard.path.name for shard in self._shards if name not in shard.facts]
        if absent:
            raise CheckpointError(f"{self.path}: {name} is not in {listed(absent)}")
        parts = [shard.facts[name] for shard in self._shards]
        if len(set(parts)) > 1:
            shapes = ", ".join(f"{list(part.shape)} {part.dtype}" for part in dict.fromkeys(parts))
            raise CheckpointError(f"{self.path}: the shards of {name} differ: {shapes}")
        axis, shape = entry_of(ours).split, list(parts[0].shape)
        if len(shape) != len(entry_of(ours).axes):
            raise CheckpointError(f"{self.path}: {name} has shape {shape}, not {len(entry_of(ours).axes)} axes")
        if axis is not None:
            shape[axis] *= len(parts)
        return Facts(tuple(shape), parts[0].dtype)

    def _check_width(self) -> None:
        """A missing last shard shows only in the width: the shards together must give params.json's."""
        width = self.params["dim"]
        kv_width = width // self._heads["num_heads"] * self._heads["num_kv_heads"]
        sizes = {"hidden_size": width, "n_kv_heads * head_dim": kv_width}
        for ours, name in self._names.items():
            shape = self._facts[ours].shape
            for axis, size in zip(entry_of(ours).axes, shape, strict=True):
                if size != sizes.get(axis, size):
                    raise CheckpointError(
                        f"{self.path}: {name} joined from {len(self._shards)} shards has shape {list(shape)}, but by "
                        f"{META_PARAMS} {axis} is {sizes[axis]}: is a shard missing?"
                    )

    def raw(self, name: str) -> Raw:
        """The value as an array in memory of its own."""
        entry, theirs = entry_of(name), self._names[name]
        dtype = self._facts[name].dtype
        if entry.split is None:
            parts = [shard.read(theirs) for shard in self._shards]
            if any(part.data.tobytes() != parts[0].data.tobytes() for part in parts[1:]):
                raise CheckpointError(f"{self.path}: {theirs} must be equal in all shards, but is not")
            return parts[0]
        parts = [shard.read(theirs).data for shard in self._shards]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=entry.split)
        del parts
        return Raw(permute(whole, self._heads[entry.heads]) if entry.heads else whole, dtype)


def _meta_heads(params: dict[str, Any], path: Path) -> dict[str, int]:
    """Head counts from params.json."""
    values = {key: params.get(key) for key in ("dim", "n_layers", "n_heads")}
    wrong = [f"{key} {value!r}" for key, value in values.items() if type(value) is not int or value < 1]
    kv_heads = params.get("n_kv_heads") or values["n_heads"]
    if wrong or type(kv_heads) is not int:
        raise CheckpointError(f"{path}: {listed(wrong) or f'n_kv_heads {kv_heads!r}'}: a number above 0 is needed")
    if values["dim"] % (2 * values["n_heads"]) or kv_heads < 1 or values["n_heads"] % kv_heads:
        raise CheckpointError(
            f"{path}: dim {values['dim']}, n_heads {values['n_heads']} and n_kv_heads {kv_heads} do not fit: "
            "heads must have an even size, and key/value heads divide query heads"
        )
    return {"num_heads": values["n_heads"], "num_kv_heads": kv_heads}
