# SPDX-License-Identifier: Apache-2.0
"""What ``chat`` talks to: the model and tokenizer behind an argument, and whether it is a chat model."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindformers.config.files import shipped_configs
from mindformers.errors import DataError

__all__ = ["Partner", "load_partner", "speaks_llama2"]

_TEMPLATE_FILES = ("chat_template.jinja", "tokenizer_config.json")


@dataclass(frozen=True)
class Partner:
    """A model that is ready to generate.

    Args:
        model: has ``generate`` and ``config``.
        tokenizer: its tokenizer.
    """

    model: Any
    tokenizer: Any


def load_partner(source: str, load_checkpoint: str = "", weight_dtype: str | None = None) -> Partner:
    """Build the model with its weights, and its tokenizer.

    Args:
        source: what ``AutoModel.from_pretrained`` takes, or the name of a shipped config.
        load_checkpoint: weights that replace those of the source.
        weight_dtype: type the weights are kept in; None as the source says.

    Raises:
        MindFormersError: there is no such model, or it has no weights or no vocabulary.
    """
    from mindformers.auto_class import AutoConfig, AutoModel, AutoTokenizer

    if not Path(source).expanduser().exists():
        source = str(shipped_configs().get(source, source))
    tokenizer = AutoTokenizer.from_pretrained(source)  # first: it is quick, and may be missing
    changes = {"weight_dtype": weight_dtype} if weight_dtype else {}
    if not load_checkpoint:
        return Partner(AutoModel.from_pretrained(source, **changes), tokenizer)
    config = AutoConfig.from_pretrained(source, **changes)
    config.checkpoint_name_or_path = load_checkpoint
    return Partner(AutoModel.from_config(config), tokenizer)


def speaks_llama2(source: str) -> tuple[bool, str]:
    """Whether a source is a chat model of the Llama 2 format, and how one can tell.

    A chat template decides: it is of this format when it writes ``[INST]``. Without one, a name with "chat" in it does.

    Raises:
        DataError: tokenizer_config.json is no JSON.
    """
    path = Path(source)
    template = _template(path) if path.is_dir() else ""
    if "[INST]" in template:
        return True, "its chat template writes [INST]"
    if template:
        return False, "its chat template is not that of Llama 2; --chat forces the format of Llama 2"
    if "chat" in (path.stem if path.suffix in (".yaml", ".yml") else path.resolve().name).lower():
        return True, "its name has 'chat' in it; --no-chat continues text"
    return False, "it has no chat template; --chat forces the format of Llama 2"


def _template(folder: Path) -> str:
    """The chat template of a Hugging Face directory; empty without one."""
    for name in _TEMPLATE_FILES:
        file = folder / name
        if not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8")
            template = json.loads(text).get("chat_template") if file.suffix == ".json" else text
        except (ValueError, AttributeError) as error:
            raise DataError(f"{file} cannot be read: {error}") from error
        if isinstance(template, list):  # several templates, each with a name
            template = "\n".join(str(entry.get("template", "")) for entry in template if isinstance(entry, dict))
        if template:
            return str(template)
    return ""
