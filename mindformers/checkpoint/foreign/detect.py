# SPDX-License-Identifier: Apache-2.0
"""Whose weights lie at a path: found from file names, and from the names inside where those do not tell."""

import json
import re
from pathlib import Path
from typing import Any

from mindformers.checkpoint.foreign.files import TORCH_MAGIC, TORCH_SUFFIXES, SafetensorsFile, listed
from mindformers.checkpoint.foreign.table import our_name
from mindformers.errors import CheckpointError

__all__ = ["META_PARAMS", "foreign_hint", "foreign_kind", "meta_shards", "read_json", "weight_files"]

HF_CONFIG, META_PARAMS = "config.json", "params.json"
HF_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there is taken
_META_SHARD = re.compile(r"consolidated\.(\d\d+)\.pth")
_HF_SHARD = re.compile(r".+-(\d{5})-of-(\d{5})\.(safetensors|bin)")


def foreign_kind(path: str | Path) -> str | None:
    """Which library's weights lie at a path.

    Args:
        path: a folder or a file.

    Returns:
        ``huggingface`` for a folder with config.json and model.safetensors or pytorch_model.bin, whole or in shards
        with an index, for a file of PyTorch, and for a ``.safetensors`` file with Hugging Face's names; ``meta`` for
        a folder with params.json and consolidated.NN.pth, and for one of these files; else None.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        if (path / HF_CONFIG).is_file() and any(_weights_present(path, name) for name in HF_WEIGHTS):
            return "huggingface"
        return "meta" if (path / META_PARAMS).is_file() and meta_shards(path) else None
    if not path.is_file():
        return None
    if _META_SHARD.fullmatch(path.name) and (path.parent / META_PARAMS).is_file():
        return "meta"
    if path.suffix in TORCH_SUFFIXES:
        with open(path, "rb") as file:
            return "huggingface" if file.read(4).startswith(TORCH_MAGIC) else None
    if path.suffix != ".safetensors":
        return None
    try:
        names = SafetensorsFile(path).facts
    except CheckpointError:  # whoever reads the file says what is wrong with it
        return None
    return "huggingface" if _looks_like_hf(names) else None


def _looks_like_hf(names: Any) -> bool:
    """Whether some names are Hugging Face's and not ours as well (lm_head.weight is both)."""
    return any(our_name(name, "huggingface") and not our_name(name, "ours") for name in names)


def _weights_present(folder: Path, name: str) -> bool:
    return (folder / name).is_file() or (folder / f"{name}.index.json").is_file()


def meta_shards(folder: Path) -> list[Path]:
    """The files consolidated.NN.pth of a folder, in order of their numbers."""
    found = {int(m[1]): p for p in folder.iterdir() if (m := _META_SHARD.fullmatch(p.name))}
    return [found[number] for number in sorted(found)]


def weight_files(path: Path) -> list[tuple[Path, set[str] | None]]:
    """The files of a Hugging Face folder or file, each with the names an index expects in it (None: no index).

    Raises:
        CheckpointError: the index is damaged, or files it names are missing.
    """
    if path.is_file():
        shard = _HF_SHARD.fullmatch(path.name)
        if shard and int(shard[2]) > 1:
            raise CheckpointError(f"{path} is one of {int(shard[2])} shards; give their folder {path.parent}")
        return [(path, None)]
    for name in HF_WEIGHTS:
        if (path / name).is_file():
            return [(path / name, None)]
        index = path / f"{name}.index.json"
        if index.is_file():
            return _indexed_files(index)
    raise CheckpointError(f"{path} holds no weights: neither {' nor '.join(HF_WEIGHTS)}, whole or with an index")


def _indexed_files(index: Path) -> list[tuple[Path, set[str] | None]]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: no weight_map (name of a weight: name of its file) in it")
    files: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{index}: {name} is said to be in {file!r}, which is no file name")
        files.setdefault(file, set()).add(name)
    missing = sorted(file for file in files if not (index.parent / file).is_file())
    if missing:
        raise CheckpointError(
            f"{index.parent}: {len(missing)} of {len(files)} files named in {index.name} are missing: "
            f"{listed(missing)}. Complete the download."
        )
    return [(index.parent / file, names) for file, names in sorted(files.items())]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        CheckpointError: it cannot be read, or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds one {type(values).__name__}, not an object with keys")
    return values


def foreign_hint(folder: Path) -> str:
    """What is lacking in a folder that looks like foreign weights but is not complete; empty when it does not."""
    if (folder / META_PARAMS).is_file():
        return f"{META_PARAMS} is there, but no consolidated.NN.pth"
    if (folder / HF_CONFIG).is_file():
        return f"{HF_CONFIG} is there, but neither {' nor '.join(HF_WEIGHTS)}, whole or with an index"
    if meta_shards(folder):
        return f"consolidated.*.pth are there, but not {META_PARAMS}, which says how many heads they have"
    if any(_weights_present(folder, name) for name in HF_WEIGHTS):
        return f"Hugging Face weights are there, but not {HF_CONFIG}"
    return ""
