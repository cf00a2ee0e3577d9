# SPDX-License-Identifier: Apache-2.0
"""Names of floating point types in configs, and what they are in MindSpore."""

import mindspore as ms

from mindformers.errors import ConfigError

_DTYPES = {"float32": ms.float32, "float16": ms.float16, "bfloat16": ms.bfloat16}


def to_ms_dtype(name: str) -> ms.Type:
    """The MindSpore type of a config's dtype name.

    Raises:
        ConfigError: the name is none of float32, float16, bfloat16.
    """
    if name not in _DTYPES:
        raise ConfigError(f"dtype {name!r} is unknown. Allowed: {', '.join(_DTYPES)}")
    return _DTYPES[name]
