# SPDX-License-Identifier: Apache-2.0
"""A checkpoint and a model that disagree on whether the output layer is the embedding."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mindformers.checkpoint.foreign.table import EMBEDDING, HEAD
from mindformers.errors import CheckpointError
from mindformers.tools.logger import get_logger

__all__ = ["match_output_layer"]

logger = get_logger(__name__)


def match_output_layer(
    params: Mapping[str, Any], targets: Mapping[str, Any], origin: dict[str, str], source: Any
) -> None:
    """Adapt which value goes where, when one side has an output layer of its own and the other has not.

    Args:
        params: the checkpoint.
        targets: the model's parameters.
        origin: our name to name in ``params``; changed in place. A model with an output layer takes the embedding of
            a foreign checkpoint without one; a model without one leaves out a layer equal to the embedding.
        source: where ``params`` came from, for messages.

    Raises:
        CheckpointError: the model has no output layer of its own, and that of the checkpoint is not its embedding.
    """
    if HEAD in targets and HEAD not in origin and EMBEDDING in origin and getattr(params, "tied", False):
        origin[HEAD] = origin[EMBEDDING]
        logger.info("%s has no output layer of its own: the model's %s is a copy of the embedding", source, HEAD)
    elif HEAD in origin and HEAD not in targets and EMBEDDING in targets and EMBEDDING in origin:
        if not _same_bits(params[origin[HEAD]], params[origin[EMBEDDING]]):
            raise CheckpointError(
                f"{source}: {HEAD} is not equal to the embedding, but the model has one weight for both. "
                "Set model_config.tie_word_embeddings to False."
            )
        del origin[HEAD]
        logger.info("%s: %s equals the embedding, which the model uses for both", source, HEAD)


def _same_bits(one: Any, other: Any) -> bool:
    """Whether two tensors or arrays are equal in shape, type and every bit."""
    a, b = (np.ascontiguousarray(v.asnumpy() if hasattr(v, "asnumpy") else v) for v in (one, other))
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a.view(np.uint8), b.view(np.uint8))
