# SPDX-License-Identifier: Apache-2.0
"""The key/value cache of incremental decoding: allocation, and the index arithmetic of an in-place update."""

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, ops
from mindspore.common.initializer import initializer

CACHE_SUFFIXES = ("key_past", "value_past")


def new_cache(
    kind: str, num_layers: int, batch_size: int, num_heads: int, length: int, head_dim: int, dtype: ms.Type
) -> ParameterTuple:
    """Zero caches, one per layer, named ``model.layers.{i}.{kind}``.

    Args:
        kind: ``key_past`` or ``value_past``.
        num_layers: layers of the model.
        batch_size: sequences held, B.
        num_heads: key/value heads, K.
        length: positions held, L.
        head_dim: D.
        dtype: type of the entries.

    Each is stored (B, K, L, D), as the attention product reads it: a reshape of a cache would copy it.
    """
    shape = (batch_size, num_heads, length, head_dim)
    return ParameterTuple(
        [
            Parameter(initializer("zeros", shape, dtype), name=f"model.layers.{i}.{kind}", requires_grad=False)
            for i in range(num_layers)
        ]
    )


def cache_places(positions: Tensor, num_heads: int, first: Tensor | None = None) -> Tensor:
    """Where the caches hold the given positions.

    Args:
        positions: (B, S) int32, position of each new token in its sequence; S may be unknown at compile time.
        num_heads: K.
        first: int32 (1,), which of the caches' sequences is the first of these; None is the first of all.

    Returns:
        (B, K, S, 3) int32, the sequence, head and position of each entry, for ScatterNdUpdate.
    """
    batch_size = positions.shape[0]
    spread = ops.zeros((batch_size, num_heads, 1), ms.int32)
    place = ops.expand_dims(positions, 1) + spread  # (B, K, S)
    sequences = ops.reshape(ops.arange(0, batch_size, dtype=ms.int32), (batch_size, 1, 1))
    if first is not None:
        sequences = sequences + first
    heads = ops.reshape(ops.arange(0, num_heads, dtype=ms.int32), (1, num_heads, 1))
    nothing = ops.zeros_like(place)
    return ops.stack((nothing + sequences, nothing + heads, place), -1)
