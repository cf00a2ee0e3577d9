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

    Each is stored (B*K*L, D): a row per (sequence, head, position), so that a new position is one row scatter
    and (B, K, L, D) for the attention product is a reshape, not a transposition.
    """
    shape = (batch_size * num_heads * length, head_dim)
    return ParameterTuple(
        [
            Parameter(initializer("zeros", shape, dtype), name=f"model.layers.{i}.{kind}", requires_grad=False)
            for i in range(num_layers)
        ]
    )


def cache_rows(positions: Tensor, num_heads: int, length: int) -> Tensor:
    """Rows of the cache that hold the given positions.

    Args:
        positions: (B, S) int32, position of each new token in its sequence.
        num_heads: K.
        length: L.

    Returns:
        (B*K*S,) int32 in the order of a (B, K, S, D) tensor.
    """
    batch_size = positions.shape[0]
    heads = ops.reshape(ops.arange(0, batch_size * num_heads, dtype=ms.int32) * length, (batch_size, num_heads, 1))
    return ops.reshape(heads + ops.expand_dims(positions, 1), (-1,))
