# SPDX-License-Identifier: Apache-2.0
"""BaseProcessor: loading and saving of a processor with its tokenizer."""

from pathlib import Path
from typing import Any

from mindformers.errors import ConfigError

__all__ = ["BaseProcessor"]


class BaseProcessor:
    """A processor has a ``tokenizer`` and, as attributes, the other arguments of its constructor."""

    tokenizer: Any
    _saved = ("max_length", "padding", "return_tensors")

    @classmethod
    def from_pretrained(cls, yaml_name_or_path: str | Path, **kwargs: Any) -> Any:
        """The processor of a name, a YAML or a directory; see ``AutoProcessor.from_pretrained``.

        Raises:
            ConfigError: as there, and when the source names another class.
        """
        from mindformers.models.build import pretrained_processor

        processor = pretrained_processor(yaml_name_or_path, **kwargs)
        if not isinstance(processor, cls):
            raise ConfigError(f"{yaml_name_or_path} describes a {type(processor).__name__}, not a {cls.__name__}")
        return processor

    def save_pretrained(self, save_directory: str | Path | None = None, save_name: str = "") -> tuple[str, str]:
        """Write the tokenizer and the section ``processor`` of ``{save_name}.yaml``.

        Args:
            save_directory: made if absent; None is ``./checkpoint_save`` (or CHECKPOINT_SAVE_FOLDER).
            save_name: name of the YAML without suffix, default ``mindspore_model``; its other sections stay.

        Returns:
            Paths of the YAML and of the vocabulary.
        """
        import yaml

        from mindformers.models.pretrained import SAVE_NAME, save_folder, update_yaml

        folder = save_folder(save_directory)
        file, vocabulary = self.tokenizer.save_pretrained(folder, save_name or SAVE_NAME)
        section = yaml.safe_load(Path(file).read_text(encoding="utf-8"))["processor"]
        options = {name: getattr(self, name) for name in self._saved}
        section = {"type": type(self).__name__, **options, "tokenizer": section["tokenizer"]}
        return str(update_yaml(Path(file), {"processor": section})), vocabulary
