# SPDX-License-Identifier: Apache-2.0
"""What the argument of ``from_pretrained`` means, and what a directory of ours looks like.

A *source* is a registered name (``llama2_7b``), a YAML file, a directory of ours (``save_pretrained``, or the output
folder of a run) or somebody else's directory as it is (Hugging Face, Meta).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mindformers.checkpoint.foreign import foreign_kind
from mindformers.checkpoint.layout import FORMATS
from mindformers.checkpoint.load import resolve_checkpoint
from mindformers.config import RunConfig, load_config
from mindformers.config.save import save_text, to_yaml
from mindformers.errors import CheckpointError, ConfigError
from mindformers.model_zoo import MODELS, MindFormerBook, known_name
from mindformers.tools.utils import did_you_mean, listing

__all__ = ["SAVE_NAME", "Source", "find_source", "run_config_of", "save_folder", "saved_weights", "update_yaml"]

SAVE_NAME = "mindspore_model"
"""First part of the file names that ``save_pretrained`` writes, unless told another."""

_YAML = (".yaml", ".yml")
_HOW = (
    "Give a registered name ({names}), a YAML file, a directory made by save_pretrained or by a run, or a Hugging Face "
    "directory (config.json beside the weights)"
)


@dataclass(frozen=True)
class Source:
    """Where a model, its config and its tokenizer come from.

    Args:
        given: what the user wrote.
        kind: 'name', 'yaml', 'ours' (a directory with a YAML of ours) or 'foreign' (a directory of another format).
        path: the YAML; for 'foreign' the directory.
        folder: the directory that holds weights and tokenizer; None for a name.
    """

    given: str
    kind: str
    path: Path
    folder: Path | None


def find_source(name_or_path: Any) -> Source:
    """Tell what a name or path means; a directory that holds a model wins over a registered name.

    Raises:
        ConfigError: neither a known name, nor something a model can be made from; says what is allowed.
    """
    if not isinstance(name_or_path, str | Path) or not str(name_or_path).strip():
        raise ConfigError(f"{name_or_path!r} is not a model. {_allowed()}")
    given, path = str(name_or_path), Path(name_or_path).expanduser()
    name = known_name(given)
    if path.is_dir():
        if foreign_kind(path) or (path / "config.json").is_file():
            return Source(given, "foreign", path, path)
        files = _model_yamls(path)
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise ConfigError(f"{path} holds several configs ({names}): give the path of the one you mean")
        if files:
            return Source(given, "ours", files[0], path)
        if name is None:
            held = listing(sorted(entry.name for entry in path.iterdir()))
            raise ConfigError(
                f"{path} holds no model: no YAML with a section 'model', no config.json with weights beside it. "
                f"It holds: {held or 'nothing'}. {_allowed()}"
            )
    elif path.is_file():
        if path.suffix in _YAML:
            return Source(given, "yaml", path, path.parent)
        raise ConfigError(
            f"{path} is a file, but no YAML. For a file of weights: config = AutoConfig.from_pretrained(YAML or name); "
            f"config.checkpoint_name_or_path = {str(path)!r}; AutoModel.from_config(config)"
        )
    if name is not None:
        return Source(given, "name", _shipped(name), None)
    if path.suffix in _YAML:  # a shipped one, by its path or with the right name suggested
        from mindformers.config.files import find_config

        return Source(given, "yaml", find_config(path), None)
    raise ConfigError(
        f"{given!r} is no model and no such directory.{did_you_mean(given, MODELS, 'names')} {_allowed()}"
    )


def run_config_of(source: Source) -> RunConfig:
    """The run config of a source that has a YAML.

    Raises:
        ConfigError: with every problem of the YAML.
    """
    return load_config(source.path)


def saved_weights(source: Source) -> Path | None:
    """The weights beside the YAML of a directory of ours; None when there are none.

    The file named like the YAML wins (``save_pretrained``), then the newest complete checkpoint (output of a run).
    """
    beside = [source.path.with_suffix(f".{fmt}") for fmt in FORMATS]
    found = [file for file in beside if file.is_file()]
    if found:
        return max(found, key=lambda file: file.stat().st_mtime_ns)
    try:
        return resolve_checkpoint(source.folder)
    except CheckpointError:
        return None


def save_folder(save_directory: str | Path | None) -> Path:
    """The folder ``save_pretrained`` writes to, made when it is absent.

    Raises:
        ConfigError: it is a file, or cannot be made.
    """
    folder = Path(save_directory or MindFormerBook.get_default_checkpoint_save_folder()).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"save_directory {folder}: {error.strerror or error}; give a folder") from error
    return folder


def update_yaml(file: Path, sections: Mapping[str, Any]) -> Path:
    """Replace top-level sections of a YAML file, or make it; its other sections stay.

    Raises:
        ConfigError: the file there is no YAML, or cannot be written.
    """
    document = _document(file) if file.exists() else {}
    if document is None:
        raise ConfigError(f"{file} is there and is no YAML of keys: remove it, or give another save_name")
    return save_text(file, to_yaml({**document, **sections}))


def _shipped(name: str) -> Path:
    from mindformers.config.files import find_config

    return find_config(MODELS[name].config)


def _allowed() -> str:
    return _HOW.format(names=", ".join(MODELS))


def _model_yamls(folder: Path) -> list[Path]:
    """YAML files of a folder that describe a model."""
    found = []
    for file in sorted(entry for entry in folder.iterdir() if entry.suffix in _YAML and not entry.name.startswith(".")):
        document = _document(file)
        if document and ("model" in document or "base_config" in document):
            found.append(file)
    return found


def _document(file: Path) -> dict[str, Any] | None:
    """The keys of a YAML file; None when it is no such file."""
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    return document if isinstance(document, dict) else None
