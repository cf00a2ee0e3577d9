# SPDX-License-Identifier: Apache-2.0
"""Reading and writing a tokenizer's directory: ``tokenizer.model`` and the settings beside it."""

import json
from pathlib import Path
from typing import Any

import yaml

from mindformers.atomic import write_bytes, write_text
from mindformers.errors import DataError
from mindformers.tools.logger import get_logger
from mindformers.tools.utils import listing

__all__ = ["PretrainedFilesMixin"]

logger = get_logger(__name__)
VOCAB_NAME = "tokenizer.model"
HF_CONFIG_NAME = "tokenizer_config.json"
# What a settings file may set; Hugging Face files hold many keys more, which do not concern us.
SETTINGS = (
    "unk_token",
    "bos_token",
    "eos_token",
    "pad_token",
    "sp_model_kwargs",
    "add_bos_token",
    "add_eos_token",
    "clean_up_tokenization_spaces",
    "model_max_length",
    "padding_side",
    "truncation_side",
    "additional_special_tokens",
)
DEFAULT_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}


class PretrainedFilesMixin:
    """``from_pretrained`` and ``save_pretrained`` of a SentencePiece tokenizer."""

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **kwargs: Any) -> Any:
        """Make the tokenizer from a directory (or from the SentencePiece model file itself).

        Settings are taken, the later winning, from: a YAML file with a ``processor.tokenizer`` section,
        ``special_tokens_map.json``, ``tokenizer_config.json`` (Hugging Face's or ours), ``added_tokens.json``,
        ``kwargs``.

        Args:
            name_or_path: directory with ``tokenizer.model``, or that file.
            **kwargs: arguments of the tokenizer's constructor.

        Raises:
            DataError: no such directory, no ``tokenizer.model`` in it, or a settings file that cannot be used.
        """
        path = Path(name_or_path)
        if path.is_file():
            return cls(str(path), **{"name_or_path": str(path), **kwargs})
        if not path.is_dir():
            raise DataError(f"no tokenizer directory {path}; give a directory that holds '{VOCAB_NAME}'")
        if not (path / VOCAB_NAME).is_file():
            names = listing(sorted(entry.name for entry in path.iterdir()))
            raise DataError(f"{path} holds no '{VOCAB_NAME}'. It holds: {names or 'nothing'}")
        settings, added = _read_settings(path)
        tokenizer = cls(str(path / VOCAB_NAME), **{"name_or_path": str(path), **settings, **kwargs})
        for token, index in added.items():
            known = tokenizer.special_token_to_id.get(token)
            if known is not None and known != index:
                raise DataError(
                    f"{path}: token {token!r} is declared with id {index}, but the vocabulary gives it {known}"
                )
        return tokenizer

    def save_pretrained(
        self,
        save_directory: str | Path | None = None,
        save_name: str = "mindspore_model",
        file_format: str = "yaml",
    ) -> tuple[str, str]:
        """Write ``tokenizer.model`` and the settings, for :meth:`from_pretrained` to read.

        Args:
            save_directory: made if absent; None means ``./checkpoint_save``.
            save_name: name of the YAML file without its suffix; an existing file keeps its other sections.
            file_format: 'yaml' for ``{save_name}.yaml``, 'json' for ``tokenizer_config.json``.

        Returns:
            Paths of the settings file and of ``tokenizer.model``.
        """
        if file_format not in ("yaml", "json"):
            raise DataError(f"file_format={file_format!r} is not one of 'yaml', 'json'")
        directory = Path(save_directory or "./checkpoint_save")
        if directory.is_file():
            raise DataError(f"save_directory {directory} is a file; give a directory")
        directory.mkdir(parents=True, exist_ok=True)
        write_bytes(directory / VOCAB_NAME, self.serialized_vocabulary())
        settings = self.settings()
        if file_format == "json":
            target = directory / HF_CONFIG_NAME
            content = (
                json.dumps({"tokenizer_class": type(self).__name__, **settings}, indent=2, ensure_ascii=False) + "\n"
            )
        else:
            target = directory / f"{save_name}.yaml"
            document = _read_yaml(target) if target.exists() else {}
            section = {**settings, "vocab_file": VOCAB_NAME, "type": type(self).__name__}
            processor = {"type": "LlamaProcessor", **(document.get("processor") or {}), "tokenizer": section}
            content = yaml.safe_dump({**document, "processor": processor}, sort_keys=False, allow_unicode=True)
        write_text(target, content)
        return str(target), str(directory / VOCAB_NAME)


def _read_settings(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Constructor arguments found in a directory, and the ids it declares for added tokens."""
    found: dict[str, Any] = _yaml_settings(path)
    for name in ("special_tokens_map.json", HF_CONFIG_NAME):
        if (path / name).is_file():
            found.update(_read_json(path / name))
    added = _read_json(path / "added_tokens.json") if (path / "added_tokens.json").is_file() else {}
    for index, entry in (found.get("added_tokens_decoder") or {}).items():
        added[_token_text(entry, path)] = int(index)
    if found.get("legacy") is False:
        logger.warning(
            "%s says legacy: false; this tokenizer keeps the legacy rule (text after a special token starts "
            "with a space), "
            "so ids differ from transformers' there",
            path / HF_CONFIG_NAME,
        )
    settings = {name: found[name] for name in SETTINGS if found.get(name) is not None}
    for name in DEFAULT_TOKENS:
        if name in settings:
            settings[name] = _token_text(settings[name], path)
    extra = [_token_text(entry, path) for entry in settings.get("additional_special_tokens", [])]
    named = {settings.get(name, default) for name, default in DEFAULT_TOKENS.items()}
    extra += [token for token in sorted(added, key=added.__getitem__) if token not in named and token not in extra]
    if extra:
        settings["additional_special_tokens"] = extra
    return settings, added


def _token_text(entry: Any, path: Path) -> str:
    """The text of a token given as a string or in the AddedToken form of Hugging Face."""
    if isinstance(entry, dict):
        flags = [flag for flag in ("lstrip", "rstrip", "single_word") if entry.get(flag)]
        if flags:
            raise DataError(
                f"{path}: token {entry.get('content')!r} asks for {', '.join(flags)}, which is not supported"
            )
        entry = entry.get("content")
    if not isinstance(entry, str) or not entry:
        raise DataError(f"{path}: a special token must be a string or have a 'content' string, got {entry!r}")
    return entry


def _yaml_settings(path: Path) -> dict[str, Any]:
    """The ``processor.tokenizer`` section of the YAML files of a directory; several must agree."""
    sections: dict[str, dict[str, Any]] = {}
    for file in sorted([*path.glob("*.yaml"), *path.glob("*.yml")]):
        section = (_read_yaml(file).get("processor") or {}).get("tokenizer")
        if isinstance(section, dict):
            sections[file.name] = {name: value for name, value in section.items() if name in SETTINGS}
    first = next(iter(sections.values()), {})
    if any(section != first for section in sections.values()):
        raise DataError(f"{path}: the tokenizer sections of {', '.join(sections)} differ; keep one of these files")
    return first


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid YAML: {error}") from error
    return document if isinstance(document, dict) else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise DataError(f"{path} must hold a JSON object, found {type(document).__name__}")
    return document
