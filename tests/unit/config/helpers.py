# SPDX-License-Identifier: Apache-2.0
"""Shared by the config tests: a small valid file, and the lines of an error."""

from pathlib import Path

import pytest

from mindformers.config import load_config
from mindformers.errors import ConfigError

SMALL = """\
model:
  model_config:
    type: LlamaConfig
    hidden_size: 64
    num_layers: 2
    num_heads: 4
    vocab_size: 100
optimizer:
  type: AdamW
  learning_rate: 1e-3
"""


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    """A YAML file in a folder."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems(path, overrides=(), **kwargs) -> list[str]:
    """The lines of the ConfigError that loading raises, without the first."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides, **kwargs)
    head, *lines = str(caught.value).splitlines()
    count = head.rsplit(": ", 1)[1]
    assert count == f"{len(lines)} problem" + ("" if len(lines) == 1 else "s")
    return [line.strip() for line in lines]
