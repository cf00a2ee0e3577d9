# SPDX-License-Identifier: Apache-2.0
"""Every public name resolves, and importing the package does not import MindSpore."""

import subprocess
import sys

import pytest

import mindformers
from tests.helpers import REPO


@pytest.mark.parametrize("name", mindformers.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(mindformers, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="LlamaForCausaLM"):
        mindformers.LlamaForCausaLM  # noqa: B018


def test_import_is_light() -> None:
    code = "import sys, mindformers; from mindformers import MindFormerConfig; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO, check=False).returncode == 0
