# SPDX-License-Identifier: Apache-2.0
"""Layers of Llama: token embedding, rotary position tables, feed-forward. Maths only.

Legend: B batch, S sequence, T = B * S, H hidden, F feed-forward size, N heads, D head dim, V vocabulary.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from mindformers.modules.initial import ParallelNormal
from mindformers.modules.kernels import swiglu
from mindformers.modules.linear import Linear


class LlamaEmbedding(nn.Cell):
    """Token embedding.

    Args:
        vocab_size: rows, V.
        hidden_size: columns, H.
        param_init_type: type the table is stored in.
        init_std: standard deviation of the normal initialisation.
    """

    def __init__(
        self, vocab_size: int, hidden_size: int, param_init_type: ms.Type = ms.float32, init_std: float = 0.01
    ) -> None:
        super().__init__()
        self.embedding_weight = Parameter(
            initializer(ParallelNormal(init_std), (vocab_size, hidden_size), param_init_type), name="embedding_weight"
        )
        self.gather = ops.Gather()

    def construct(self, tokens: Tensor) -> Tensor:
        """int32 (B, S) -> (B, S, H) in the table's type."""
        return self.gather(self.embedding_weight, tokens, 0)


def rotary_frequencies(
    head_dim: int,
    theta: float,
    length: int,
    *,
    pretrain_length: int,
    extend_method: str,
    scaling_factor: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of the rotary position embedding (Su et al. 2021), half-rotation layout.

    Args:
        head_dim: D, even.
        theta: base of the frequencies, ``f_i = theta^(-2i/D)``.
        length: number of positions.
        pretrain_length: positions the model was pretrained with.
        extend_method: "None"; "PI", positions are divided by the extension ratio (Chen et al. 2023); "NTK", the base
            is multiplied by it. Both act only when ``length > pretrain_length`` or a scaling factor is given.
        scaling_factor: the extension ratio; 1.0 means ``length / pretrain_length``.

    Returns:
        (length, D/2) cosines and sines, float64.
    """
    ratio = scaling_factor if scaling_factor != 1.0 else max(1.0, length / pretrain_length)
    step = 1.0
    if extend_method == "NTK":
        theta *= ratio
    elif extend_method == "PI":
        step = 1.0 / ratio
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    angles = np.outer(np.arange(length) * step, frequencies)
    return np.cos(angles), np.sin(angles)


def _rotation_entries(half: int) -> np.ndarray:
    """(D, D*D): how a row of cosines and sines fills the matrix that turns pairs (x_i, x_{i+D/2})."""
    entries = np.zeros((2 * half, 2 * half, 2 * half))
    i = np.arange(half)
    entries[i, i, i] = entries[i, i + half, i + half] = 1.0  # both halves keep cos of their part
    entries[i + half, i + half, i] = -1.0  # first half: - x_{i+D/2} sin
    entries[i + half, i, i + half] = 1.0  # second half: + x_i sin
    return entries.reshape(2 * half, -1)


class RotaryTables(nn.Cell):
    """Rows of the rotary tables for given positions, spread over the heads.

    Args:
        cos, sin: (length, D/2) tables.
        rotary_dtype: type the rotation is computed in.

    The tables for queries carry the attention scale 1/sqrt(D), so scores need no multiplication of their own.
    """

    def __init__(self, cos: np.ndarray, sin: np.ndarray, rotary_dtype: ms.Type = ms.float32) -> None:
        super().__init__()
        self.half = cos.shape[1]
        self.broadcasts = False
        self.table = Tensor(np.concatenate((cos, sin), -1), rotary_dtype)
        self.scale = float((2 * self.half) ** -0.5)
        self.gather = ops.Gather()
        self.to_matrix = Tensor(_rotation_entries(self.half), rotary_dtype)
        self.matmul = ops.MatMul()

    def rows(self, positions: Tensor) -> Tensor:
        """int32 (B, S) -> cosines and sines (B, S, D) of the positions, not scaled."""
        return self.gather(self.table, positions, 0)

    def matrices(self, positions: Tensor) -> tuple:
        """Rotations of single positions as matrices, for row vectors: ``x @ matrix``.

        One product then turns all heads, where eight elementwise ops would each cost more to launch than to compute.

        Args:
            positions: int32 (B, 1).

        Returns:
            (B, D, D) for queries, scaled by 1/sqrt(D), and for keys.
        """
        rows = ops.reshape(self.gather(self.table, positions, 0), (-1, 2 * self.half))  # (B, D): cosines, sines
        turn = ops.reshape(self.matmul(rows, self.to_matrix), (-1, 2 * self.half, 2 * self.half))
        return turn * self.scale, turn

    def _spread(self, rows: Tensor, heads: int) -> Tensor:
        if self.broadcasts:
            return rows
        b, _, s, half = rows.shape
        return ops.broadcast_to(rows, (b, heads, s, half))

    def construct(self, positions: Tensor, num_heads: int, num_kv_heads: int) -> tuple:
        """int32 (B, S) -> cos_q, sin_q (B, N, S, D/2) scaled by 1/sqrt(D), cos_k, sin_k (B, K, S, D/2)."""
        rows = ops.expand_dims(self.gather(self.table, positions, 0), 1)  # (B, 1, S, D)
        cos, sin = ops.split(rows, self.half, -1)
        return (
            self._spread(cos * self.scale, num_heads),
            self._spread(sin * self.scale, num_heads),
            self._spread(cos, num_kv_heads),
            self._spread(sin, num_kv_heads),
        )


class RotaryEmbedding(nn.Cell):
    """Turns pairs (x_i, x_{i+D/2}) by the angle of their position."""

    def __init__(self, rotary_dtype: ms.Type = ms.float32) -> None:
        super().__init__()
        self.rotary_dtype = rotary_dtype
        self.split = ops.Split(-1, 2)
        self.mul = ops.Mul()
        self.sub = ops.Sub()
        self.add = ops.Add()
        self.concat = ops.Concat(-1)

    def construct(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (B, N, S, D), cos and sin (B, N, S, D/2) -> (B, N, S, D) in the type of x."""
        first, second = self.split(ops.cast(x, self.rotary_dtype))
        turned = self.concat(
            (
                self.sub(self.mul(first, cos), self.mul(second, sin)),
                self.add(self.mul(second, cos), self.mul(first, sin)),
            )
        )
        return ops.cast(turned, x.dtype)


class LlamaFeedForward(nn.Cell):
    """SwiGLU feed-forward, ``w2(silu(w1 x) * w3 x)`` (Shazeer 2020).

    Args:
        hidden_size: H.
        intermediate_size: F.
        compute_dtype, param_init_type, init_std: as in :class:`Linear`.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        compute_dtype: ms.Type = ms.float32,
        param_init_type: ms.Type = ms.float32,
        init_std: float = 0.01,
    ) -> None:
        super().__init__()
        types = {"compute_dtype": compute_dtype, "param_init_type": param_init_type, "init_std": init_std}
        self.w1 = Linear(hidden_size, intermediate_size, **types)
        self.w2 = Linear(intermediate_size, hidden_size, **types)
        self.w3 = Linear(hidden_size, intermediate_size, **types)
        self.gate = swiglu(compute_dtype)

    def construct(self, x: Tensor) -> Tensor:
        """(T, H) -> (T, H)."""
        return self.w2(self.gate(self.w1(x), self.w3(x)))
