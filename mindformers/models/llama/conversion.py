# SPDX-License-Identifier: Apache-2.0
"""Weights from one layout to another, tensor by tensor: sources under our names, and the three layouts to write.

The command is ``convert_weight``; the names come from ``checkpoint/foreign/table``.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mindformers.atomic import flush
from mindformers.checkpoint.ckpt_file import CkptFile
from mindformers.checkpoint.foreign import WeightSource, foreign_kind
from mindformers.checkpoint.foreign.arrays import FLOATS, Raw, cast, nbytes
from mindformers.checkpoint.foreign.detect import HF_CONFIG, META_PARAMS
from mindformers.checkpoint.foreign.files import SafetensorsFile, listed
from mindformers.checkpoint.foreign.table import EMBEDDING, HEAD, entry_of, expected_shapes, foreign_name, permute
from mindformers.checkpoint.foreign.torch_writer import TorchWriter
from mindformers.checkpoint.layout import temp_path
from mindformers.checkpoint.names import is_weight_name, shape_hint
from mindformers.checkpoint.stream import CheckpointStream, Planned, SafetensorsWriter, check_space
from mindformers.errors import CheckpointError
from mindformers.models.llama.foreign_config import hf_config_dict, meta_params_dict
from mindformers.models.llama.llama_config import LlamaConfig

__all__ = [
    "Checked",
    "OwnWeights",
    "Written",
    "check_shards",
    "check_target",
    "check_weights",
    "write_hf",
    "write_meta",
    "write_ours",
]


class Written(NamedTuple):
    """Weights somewhere on the disk.

    Args:
        kind: ``mindspore``, ``interleaved`` (an old checkpoint of MindFormers), ``huggingface`` or ``meta``.
        path: the file or folder.
    """

    kind: str
    path: Path


class OwnWeights(WeightSource):
    """The weights of a checkpoint of ours, without optimizer state and counters.

    Args:
        path: a ``.ckpt`` or ``.safetensors`` file that was found whole.
        interleaved: (query heads, key/value heads) when wq and wk have the order of neighbouring pairs, as in
            checkpoints of MindFormers before its rotary embedding was changed; they are then read in today's order.
    """

    kind = "mindspore"
    tied = False

    def __init__(self, path: Path, interleaved: tuple[int, int] | None = None) -> None:
        super().__init__(path)
        file = CkptFile(path) if path.suffix == ".ckpt" else SafetensorsFile(path)
        self._file = file
        self._facts = {name: facts for name, facts in file.facts.items() if is_weight_name(name)}
        self._heads = dict(zip(("num_heads", "num_kv_heads"), interleaved, strict=True)) if interleaved else {}

    def raw(self, name: str) -> Raw:
        """The value as an array in memory of its own."""
        value = self._file.read(name)
        entry = entry_of(name)
        if entry is not None and entry.heads in self._heads:
            return Raw(permute(value.data, self._heads[entry.heads]), value.dtype)
        return value


class Checked:
    """Weights that fit a config, with the output layer settled and values in the type that is wanted.

    Args:
        weights: the source.
        config: the model's config.
        dtype: type of every floating point value; None keeps each as it is.
    """

    def __init__(self, weights: WeightSource, config: LlamaConfig, dtype: str | None) -> None:
        self.weights, self.config, self.dtype = weights, config, dtype

    def plan(self, head: bool) -> list[Planned]:
        """Everything to write, in order.

        Args:
            head: with an output layer; where the model has none of its own it is the embedding.
        """
        return [Planned(name, shape, self._dtype(name)) for name, shape in expected_shapes(self.config, head).items()]

    def _dtype(self, name: str) -> str:
        return self.dtype or self.weights.dtype(self._origin(name))

    def _origin(self, name: str) -> str:
        """Where a value comes from: the embedding for an output layer that the source or the model has not."""
        return EMBEDDING if name == HEAD and (self.config.tie_word_embeddings or HEAD not in self.weights) else name

    def raw(self, name: str) -> Raw:
        """The value in the type that is wanted."""
        return cast(self.weights.raw(self._origin(name)), self.dtype, name)

    def values(self, plan: Sequence[Planned]) -> Iterator[tuple[Planned, Raw]]:
        """The values of a plan in its order; the next one is read while the caller writes the last."""
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self.raw, plan[0].name)
            for place, item in enumerate(plan, 1):
                value = ahead.result()
                if place < len(plan):
                    ahead = reader.submit(self.raw, plan[place].name)
                yield item, value


def check_weights(weights: WeightSource, config: LlamaConfig, dtype: str | None = None) -> Checked:
    """Compare every name and shape with the config, before anything is written.

    Raises:
        CheckpointError: names are missing or unknown, shapes differ, a type is no floating point type, or the output
            layer differs from the embedding of a model that has one weight for both.
    """
    tied = config.tie_word_embeddings
    want = expected_shapes(config)
    given = set(weights)
    missing = [name for name in want if name not in given and not (name == HEAD and weights.tied)]
    unknown = sorted(given - set(want) - ({HEAD} if tied else set()))
    lines = []
    if missing:
        lines.append(f"{len(missing)} weights are missing: {listed(missing)}")
        if missing == [HEAD]:
            lines.append("the output layer may be the embedding: set model_config.tie_word_embeddings True")
    if unknown:
        lines.append(f"{len(unknown)} names are unknown: {listed(unknown)}")
        if any("delta" in name or "lora" in name for name in unknown):
            lines.append("these are adapters; merge them into the weights first")
    for name, shape in want.items():
        if name in given and weights.shape(name) != shape:
            hint = shape_hint(name, weights.shape(name), shape).replace("checkpoint ", "weights ")
            lines.append(f"{name} has shape {list(weights.shape(name))}, the config says {list(shape)} ({hint})")
        if name in given and weights.dtype(name) not in (*FLOATS, *(("float64",) if dtype else ())):
            lines.append(f"{name} has element type {weights.dtype(name)}; allowed: {', '.join(FLOATS)} (see --dtype)")
    if lines:
        more = [f"... and {len(lines) - 12} more"] if len(lines) > 12 else []
        text = "\n".join(f"  {line}" for line in [*lines[:12], *more])
        raise CheckpointError(f"{weights.path} does not fit the config; nothing was written\n{text}")
    if tied and HEAD in given and weights.raw(HEAD).data.tobytes() != weights.raw(EMBEDDING).data.tobytes():
        raise CheckpointError(
            f"{weights.path}: {HEAD} is not equal to the embedding, but the config has one weight for both. "
            "Set tie_word_embeddings to False; nothing was written"
        )
    return Checked(weights, config, dtype)


@contextmanager
def _progress(plan: list[Planned], label: str) -> Iterator[Callable[[int], object]]:
    """A bar over the bytes of a plan, on terminals only."""
    with tqdm(total=sum(item.nbytes for item in plan), unit="B", unit_scale=True, desc=label, disable=None) as bar:
        yield bar.update


def write_ours(checked: Checked, path: Path, fmt: str) -> int:
    """Write a checkpoint of ours; returns its number of weights.

    Raises:
        CheckpointError: a value does not fit the type, or the disk is full. Nothing remains under the name.
    """
    plan = checked.plan(head=not checked.config.tie_word_embeddings)
    with _progress(plan, path.name) as advance, CheckpointStream(path, plan, fmt) as stream:
        for item, value in checked.values(plan):
            stream.add(item, value)
            advance(item.nbytes)
    return len(plan)


def check_target(folder: Path, overwrite: bool) -> None:
    """Refuse a result folder that holds something.

    Args:
        folder: the folder to make.
        overwrite: a folder of foreign weights may be there and will be replaced.

    Raises:
        CheckpointError: something else is there.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise CheckpointError(f"{folder} exists and is not empty; name another folder, or give --overwrite")
    if not folder.is_dir() or foreign_kind(folder) is None or any(p.is_dir() for p in folder.iterdir()):
        raise CheckpointError(f"{folder} holds other things than converted weights; --overwrite does not replace it")


@contextmanager
def new_folder(folder: Path, needed: int, overwrite: bool) -> Iterator[Path]:
    """A folder that appears under its name when the block has ended well, or not at all.

    Args:
        folder: the name.
        needed: bytes that will be written.
        overwrite: see :func:`check_target`.

    Raises:
        CheckpointError: something is there, or the disk is full.
    """
    check_target(folder, overwrite)
    check_space(folder.parent, needed)
    temp, old = temp_path(folder), temp_path(folder.with_name(folder.name + ".old"))
    try:
        shutil.rmtree(temp, ignore_errors=True)  # left by a conversion that was killed
        temp.mkdir(parents=True)
        yield temp
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        temp.rename(folder)
        flush(folder.parent)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def write_hf(checked: Checked, folder: Path, max_shard_size: int, overwrite: bool = False) -> int:
    """Write a Hugging Face folder: config.json and safetensors, in shards with an index when it is large.

    Args:
        checked: the weights.
        folder: the folder to make.
        max_shard_size: most bytes in a file, unless one tensor alone has more.
        overwrite: replace such a folder.

    Returns:
        Number of files of weights.
    """
    config = checked.config
    plan = checked.plan(head=not config.tie_word_embeddings)
    shards: list[list[Planned]] = [[]]
    for item in plan:
        if shards[-1] and sum(other.nbytes for other in shards[-1]) + item.nbytes > max_shard_size:
            shards.append([])
        shards[-1].append(item)
    total = sum(item.nbytes for item in plan)
    with new_folder(folder, total, overwrite) as temp, _progress(plan, folder.name) as advance:
        index = {}
        values = checked.values(plan)
        for number, shard in enumerate(shards, 1):
            name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            theirs = [item._replace(name=foreign_name(item.name, "huggingface")) for item in shard]
            writer = SafetensorsWriter(temp / name, theirs, {"format": "pt"})
            for item in theirs:
                writer.add(item, next(values)[1])
                index[item.name] = name
                advance(item.nbytes)
            writer.finish()
        if len(shards) > 1:
            _write_json(temp / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
        _write_json(temp / HF_CONFIG, hf_config_dict(config, plan[0].dtype))
        eos = config.eos_token_id
        _write_json(
            temp / "generation_config.json",
            {"bos_token_id": config.bos_token_id, "eos_token_id": eos, "pad_token_id": config.pad_token_id},
        )
    return len(shards)


def check_shards(config: LlamaConfig, num_shards: int) -> None:
    """Refuse a number of model-parallel shards that does not divide the heads and widths of the model.

    Raises:
        CheckpointError: with the sizes that are not divisible.
    """
    sizes = {"num_heads": config.num_heads, "n_kv_heads": config.num_kv_heads, "vocab_size": config.vocab_size}
    sizes["intermediate_size"] = config.ffn_size
    wrong = [f"{name} {size}" for name, size in sizes.items() if size % num_shards]
    if wrong:
        raise CheckpointError(f"--shards {num_shards} does not divide {', '.join(wrong)}")


def write_meta(checked: Checked, folder: Path, num_shards: int = 1, overwrite: bool = False) -> int:
    """Write a folder in Meta's layout: params.json and ``num_shards`` files consolidated.NN.pth.

    Returns:
        Number of files.

    Raises:
        CheckpointError: the shards do not divide the heads or widths of the model.
    """
    config = checked.config
    check_shards(config, num_shards)
    heads = {"num_heads": config.num_heads, "num_kv_heads": config.num_kv_heads}
    plan = checked.plan(head=True)
    params = meta_params_dict(config)
    parts = [_meta_part(item, num_shards) for item in plan]
    needed = num_shards * sum(nbytes(shape, dtype) for _, shape, dtype in parts)
    with (
        new_folder(folder, needed, overwrite) as temp,
        _progress(plan, folder.name) as advance,
        ExitStack() as unfinished,
    ):
        writers = [TorchWriter(temp / f"consolidated.{number:02d}.pth", parts) for number in range(num_shards)]
        for writer in writers:
            unfinished.callback(writer.close)
        for item, value in checked.values(plan):
            entry = entry_of(item.name)
            data = permute(value.data, heads[entry.heads], to_meta=True) if entry.heads else value.data
            pieces = [data] * num_shards if entry.split is None else np.split(data, num_shards, axis=entry.split)
            for writer, piece in zip(writers, pieces, strict=True):
                writer.add(Raw(piece, value.dtype))
            advance(item.nbytes)
        for writer in writers:
            writer.finish()
        _write_json(temp / META_PARAMS, params)
    return num_shards


def _meta_part(item: Planned, num_shards: int) -> tuple[str, tuple[int, ...], str]:
    """Meta's name, the shape in one shard, and the type of a weight of ours."""
    axis, shape = entry_of(item.name).split, list(item.shape)
    if axis is not None:
        shape[axis] //= num_shards
    return foreign_name(item.name, "meta"), tuple(shape), item.dtype


def _write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
