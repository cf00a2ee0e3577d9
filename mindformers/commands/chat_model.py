# SPDX-License-Identifier: Apache-2.0
"""What ``chat`` talks to: the model and tokenizer behind an argument, and whether it is a chat model."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindformers.config import load_config
from mindformers.config.files import find_config
from mindformers.errors import DataError
from mindformers.model_zoo import MODELS, known_name

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


def load_partner(source: str, load_checkpoint: str = "") -> Partner:
    """Build the model with its weights, and its tokenizer.

    Args:
        source: registered name, YAML (or the name of a shipped one), output folder of a run, folder of Hugging Face.
        load_checkpoint: weights that replace those of the source.

    Raises:
        MindFormersError: there is no such model, or it has no weights or no vocabulary.
    """
    from mindformers.checkpoint.foreign import foreign_kind

    path = Path(source).expanduser()
    if path.is_dir() and foreign_kind(path):
        return _foreign_partner(path, load_checkpoint)
    return _run_partner(path, source, load_checkpoint)


def _foreign_partner(folder: Path, load_checkpoint: str) -> Partner:
    """From a folder of Hugging Face or Meta, used as it is."""
    from mindformers.models.llama.foreign_config import llama_config_from
    from mindformers.models.llama.llama import LlamaForCausalLM
    from mindformers.models.llama.llama_tokenizer import LlamaTokenizer

    tokenizer = LlamaTokenizer.from_pretrained(folder)  # first: it is quick, and may be missing
    config = llama_config_from(folder, checkpoint_name_or_path=load_checkpoint or str(folder))
    return Partner(LlamaForCausalLM(config), tokenizer)


def _run_partner(path: Path, source: str, load_checkpoint: str) -> Partner:
    """From a YAML, a name that stands for one, or the output folder of a run, which holds its ``config.yaml``."""
    from mindformers.trainer.build import build_network, load_weights
    from mindformers.trainer.predict import build_tokenizer

    name = known_name(source)
    saved = path / "config.yaml"
    if saved.is_file():
        source, load_checkpoint = str(saved), load_checkpoint or str(path)
    elif name:
        source = MODELS[name].config
    options = ["use_parallel=False", *([f"load_checkpoint={load_checkpoint}"] if load_checkpoint else [])]
    cfg = load_config(find_config(source), options)
    tokenizer = build_tokenizer(cfg)
    network = build_network(cfg)
    load_weights(network, cfg, required=True)
    return Partner(network, tokenizer)


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
