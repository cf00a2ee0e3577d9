# SPDX-License-Identifier: Apache-2.0
"""The models that have a name: one table, and MindFormerBook, the old interface to it. Needs no MindSpore."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindformers.errors import ConfigError
from mindformers.tools.utils import did_you_mean

__all__ = ["MIRROR", "MODELS", "STORE", "MindFormerBook", "ModelEntry", "RemoteFile", "known_name"]

STORE = "https://ascend-repo-modelzoo.obs.cn-east-2.myhuaweicloud.com"
"""Where the published files lie."""

MIRROR = "mindspore"
_TASK = "text_generation"


@dataclass(frozen=True)
class RemoteFile:
    """A file that can be downloaded.

    Args:
        url: where it lies.
        filename: what it is called in the download folder.
        size: its length in bytes; None when nobody has published it.
        sha256: its checksum, 64 hexadecimal digits; None when nobody has published it.
    """

    url: str
    filename: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class ModelEntry:
    """What belongs to the name of a model.

    Args:
        config: name of its shipped config, as ``python -m mindformers ls`` prints it.
        family: folder of its files below the download folder.
        checkpoint: its converted weights; None when they are published nowhere.
        tokenizer: its vocabulary; None when it is published nowhere.
        weights_advice: how to get weights without a download.
        tokenizer_advice: how to get the vocabulary without a download.
        arch: class of the model.
        tokenizer_class: class of the tokenizer.
        processor_class: class of the processor.
    """

    config: str
    family: str
    checkpoint: RemoteFile | None
    tokenizer: RemoteFile | None
    weights_advice: str
    tokenizer_advice: str
    arch: str = "LlamaForCausalLM"
    tokenizer_class: str = "LlamaTokenizer"
    processor_class: str = "LlamaProcessor"


# Size and checksum are those of the Git LFS entry of tokenizer.model in Meta's Hugging Face repositories
# (meta-llama/Llama-2-7b and the others: one file for all sizes). URLs: the model card of Llama 2.
_LLAMA2_TOKENIZER = RemoteFile(
    url=f"{STORE}/MindFormers/llama2/tokenizer.model",
    filename="tokenizer.model",
    size=499723,
    sha256="9e556afd44213b6bd1be2b850ebbbd98f5481437a8021afaf58ee7fb1818d347",
)


def _llama2(size: str, checkpoint: str | None) -> ModelEntry:
    """A published size of Llama 2; ``checkpoint`` is the file's name in the store."""
    name = f"llama2_{size}"
    source = f"https://huggingface.co/meta-llama/Llama-2-{size}-hf"
    return ModelEntry(
        config=f"run_{name}",
        family="llama2",
        checkpoint=RemoteFile(f"{STORE}/MindFormers/llama2/{checkpoint}", f"{name}.ckpt") if checkpoint else None,
        tokenizer=_LLAMA2_TOKENIZER,
        weights_advice=f"get Meta's weights from {source} (after accepting their licence) and convert them: "
        "python mindformers/models/llama/convert_weight.py --torch_ckpt_dir FOLDER --mindspore_ckpt_path FILE",
        tokenizer_advice=f"it is the file tokenizer.model of {source}",
    )


MODELS: dict[str, ModelEntry] = {
    "llama2_7b": _llama2("7b", "llama2_7b.ckpt"),
    "llama2_13b": _llama2("13b", "llama2-13b-fp16.ckpt"),
    "llama2_70b": _llama2("70b", None),
    "llama2_tiny": ModelEntry(
        config="run_llama2_tiny",
        family="llama2",
        checkpoint=None,
        tokenizer=None,
        weights_advice="train it, a matter of minutes on a CPU: bash scripts/quickstart.sh (weights in "
        "output/quickstart/checkpoint)",
        tokenizer_advice="train it: bash scripts/quickstart.sh (vocabulary in quickstart/tokenizer.model)",
    ),
}


def known_name(value: Any) -> str | None:
    """The key of ``MODELS`` that ``value`` means, or None; a leading ``mindspore/`` is accepted."""
    name = str(value).removeprefix(f"{MIRROR}/")
    return name if name in MODELS else None


class MindFormerBook:
    """What is on offer, by the method names of MindFormers r0.8; every answer is derived from ``MODELS``.

    ``get_NAME()`` returns a new dict, list or str each time; each has a ``show_NAME()`` that prints the same.
    """

    _folders: dict[str, str] = {}  # set by the set_ methods

    @classmethod
    def get_trainer_support_task_list(cls) -> dict[str, dict[str, str]]:
        """Task -> model name -> its config file, for Trainer."""
        return {_TASK: cls.get_model_config_url_list()}

    @classmethod
    def get_pipeline_support_task_list(cls) -> dict[str, dict[str, str]]:
        """Task -> model name -> its config file, for ``pipeline``."""
        return {_TASK: cls.get_model_config_url_list()}

    @classmethod
    def get_model_config_url_list(cls) -> dict[str, str]:
        """Model name -> its config file, from the root of the repository."""
        return {name: f"configs/{entry.family}/{entry.config}.yaml" for name, entry in MODELS.items()}

    @classmethod
    def get_model_ckpt_url_list(cls) -> dict[str, list[str]]:
        """Model name -> URLs of its weights; names without any are left out."""
        return {name: [entry.checkpoint.url] for name, entry in MODELS.items() if entry.checkpoint}

    @classmethod
    def get_tokenizer_url_support_list(cls) -> dict[str, list[str]]:
        """Model name -> URLs of its vocabulary; names without any are left out."""
        return {name: [entry.tokenizer.url] for name, entry in MODELS.items() if entry.tokenizer}

    @classmethod
    def get_model_support_list(cls) -> dict[str, list[str]]:
        """Family -> model names; the Auto classes take the same ones."""
        families: dict[str, list[str]] = {}
        for name, entry in MODELS.items():
            families.setdefault(entry.family, []).append(name)
        return families

    get_config_support_list = get_model_support_list
    get_processor_support_list = get_model_support_list
    get_tokenizer_support_list = get_model_support_list

    @classmethod
    def get_tokenizer_name_to_processor(cls) -> dict[str, str]:
        """Model name -> class of its processor."""
        return {name: entry.processor_class for name, entry in MODELS.items()}

    @classmethod
    def get_model_name_support_list(cls) -> list[str]:
        """Every model name."""
        return list(MODELS)

    @classmethod
    def get_project_path(cls) -> str:
        """The folder that holds the package ``mindformers``."""
        return str(Path(__file__).resolve().parent.parent)

    @classmethod
    def get_default_checkpoint_download_folder(cls) -> str:
        """Where downloads go: what was set, else CHECKPOINT_DOWNLOAD_FOLDER, else ``./checkpoint_download``."""
        return cls._folder("download")

    @classmethod
    def set_default_checkpoint_download_folder(cls, download_folder: str | Path) -> None:
        """Use another folder for downloads in this process.

        Raises:
            ConfigError: it is not an existing folder.
        """
        cls._set_folder("download", download_folder)

    @classmethod
    def get_default_checkpoint_save_folder(cls) -> str:
        """Where ``save_pretrained`` writes: what was set, else CHECKPOINT_SAVE_FOLDER, else ``./checkpoint_save``."""
        return cls._folder("save")

    @classmethod
    def set_default_checkpoint_save_folder(cls, save_folder: str | Path) -> None:
        """Save to another folder by default in this process.

        Raises:
            ConfigError: it is not an existing folder.
        """
        cls._set_folder("save", save_folder)

    @classmethod
    def get_xihe_checkpoint_download_folder(cls) -> str:
        """Where r0.8 put the files of ``mindspore/NAME``; they are used when they lie there."""
        return os.path.join(cls._folder("download"), MIRROR)

    @classmethod
    def show_trainer_support_model_list(cls, task: str | None = None) -> None:
        """Print the model names a Trainer takes for one task, or for all.

        Raises:
            ConfigError: no such task.
        """
        _show("trainer_support_model_list", _names_of_task(cls.get_trainer_support_task_list(), task))

    @classmethod
    def show_pipeline_support_model_list(cls, task: str | None = None) -> None:
        """Print the model names ``pipeline`` takes for one task, or for all.

        Raises:
            ConfigError: no such task.
        """
        _show("pipeline_support_model_list", _names_of_task(cls.get_pipeline_support_task_list(), task))

    @classmethod
    def _folder(cls, kind: str) -> str:
        return cls._folders.get(kind) or os.environ.get(f"CHECKPOINT_{kind.upper()}_FOLDER") or f"./checkpoint_{kind}"

    @classmethod
    def _set_folder(cls, kind: str, folder: str | Path) -> None:
        if not isinstance(folder, str | Path) or not Path(folder).is_dir():
            raise ConfigError(f"{kind} folder {folder!r}: not an existing folder; create it first")
        cls._folders[kind] = str(folder)


def _names_of_task(tasks: Mapping[str, Mapping[str, str]], task: str | None) -> dict[str, list[str]]:
    if task is not None and task not in tasks:
        raise ConfigError(f"no task is called {task!r}.{did_you_mean(task, tasks, 'tasks')}")
    return {name: list(models) for name, models in tasks.items() if task in (None, name)}


def _show(title: str, value: Any, depth: int = 0) -> None:
    """Print a nested list of names."""
    if isinstance(value, Mapping):
        print(f"{'  ' * depth}{title}:")
        for key, below in value.items():
            _show(key, below, depth + 1)
    else:
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        print(f"{'  ' * depth}{title}: {text}")


def _shower(name: str) -> Any:
    """The ``show_`` method of a ``get_`` method."""

    def show(cls: type[MindFormerBook]) -> None:
        _show(name, getattr(cls, f"get_{name}")())

    show.__doc__ = f"Print get_{name}()."
    return classmethod(show)


for _name in [name.removeprefix("get_") for name in dir(MindFormerBook) if name.startswith("get_")]:
    setattr(MindFormerBook, f"show_{_name}", _shower(_name))
