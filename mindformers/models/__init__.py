# SPDX-License-Identifier: Apache-2.0
"""Models, tokenizers and processors."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Public names of the modules below, each imported when it is first used."""
    from mindformers import _of_package

    return _of_package(__name__, name)
