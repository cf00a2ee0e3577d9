# SPDX-License-Identifier: Apache-2.0
"""Attention and decoder layer of Llama. Maths only.

Legend: B batch, S new positions, L cached positions, T = B * S, H hidden, N query heads, K key/value heads,
G = N / K queries per key/value head, D head dim.
"""

from typing import Any

from mindspore import Tensor, nn, ops

from mindformers.models.llama.llama_layer import LlamaFeedForward, RotaryEmbedding
from mindformers.modules.alike import AlikeCell
from mindformers.modules.dtypes import to_ms_dtype
from mindformers.modules.kernels import PlainAttention, rms_norm, rope_attention
from mindformers.modules.linear import Linear


class LlamaAttention(nn.Cell):
    """Grouped-query self-attention (Ainslie et al. 2023) with rotary positions.

    Args:
        config: a LlamaConfig.

    Query head j reads key/value head j // G; the G heads of a group are folded into the rows of one batched
    product, so keys and values are never repeated.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        self.group = self.num_heads // self.num_kv_heads
        self.head_dim = config.head_dim
        self.width = self.num_heads * self.head_dim
        types = {
            "compute_dtype": to_ms_dtype(config.compute_dtype),
            "param_init_type": to_ms_dtype(config.param_init_type),
            "init_std": config.initializer_range,
        }
        kv_width = self.num_kv_heads * self.head_dim
        self.wq = Linear(config.hidden_size, self.width, **types)
        self.wk = Linear(config.hidden_size, kv_width, **types)
        self.wv = Linear(config.hidden_size, kv_width, **types)
        self.wo = Linear(self.width, config.hidden_size, **types)
        self.rotary = RotaryEmbedding(to_ms_dtype(config.rotary_dtype))
        self.attend = PlainAttention(self.head_dim, to_ms_dtype(config.softmax_compute_type))
        self.fused = rope_attention(
            types["compute_dtype"], to_ms_dtype(config.rotary_dtype), to_ms_dtype(config.softmax_compute_type)
        )
        self.turn = ops.BatchMatMul()
        self.split_heads = ops.Transpose()
        self.merge_heads = ops.Transpose()
        self.scatter = ops.ScatterUpdate()

    def _heads(self, x: Tensor, batch_size: int, num_heads: int) -> Tensor:
        return self.split_heads(ops.reshape(x, (batch_size, -1, num_heads, self.head_dim)), (0, 2, 1, 3))

    def _project_one(self, x: Tensor, turns: tuple, batch_size: int) -> tuple:
        """q, k, v of one position per sequence: nothing to transpose, and rotations are single products."""
        turn_q, turn_k = turns  # (B, D, D)
        q = ops.reshape(self.wq(x), (batch_size, self.num_heads, self.head_dim))
        k = ops.reshape(self.wk(x), (batch_size, self.num_kv_heads, self.head_dim))
        q = ops.cast(self.turn(ops.cast(q, turn_q.dtype), turn_q), x.dtype)
        k = ops.cast(self.turn(ops.cast(k, turn_k.dtype), turn_k), x.dtype)
        return ops.reshape(q, (batch_size, self.num_kv_heads, self.group, self.head_dim)), k, self.wv(x)

    def _project(self, x: Tensor, tables: tuple, batch_size: int) -> tuple:
        cos_q, sin_q, cos_k, sin_k = tables
        q = self.rotary(self._heads(self.wq(x), batch_size, self.num_heads), cos_q, sin_q)  # (B, N, S, D)
        k = self.rotary(self._heads(self.wk(x), batch_size, self.num_kv_heads), cos_k, sin_k)  # (B, K, S, D)
        v = self._heads(self.wv(x), batch_size, self.num_kv_heads)
        q = ops.reshape(q, (batch_size, self.num_kv_heads, -1, self.head_dim))  # (B, K, G*S, D)
        return q, k, v

    def _merge(self, context: Tensor, batch_size: int) -> Tensor:
        context = ops.reshape(context, (batch_size, self.num_heads, -1, self.head_dim))
        return self.wo(ops.reshape(self.merge_heads(context, (0, 2, 1, 3)), (-1, self.width)))

    def construct(
        self,
        x: Tensor,
        tables: tuple,
        mask: Tensor,
        batch_size: int,
        cache: tuple | None = None,
        read: bool = False,
    ) -> Tensor:
        """Attention of the new positions.

        Args:
            x: (T, H).
            tables: rotary tables as made by RotaryTables; its matrices when ``read``; without cache its rows when
                ``fused`` is there.
            mask: (B, K, G*S, S), additive; (B, K, G*S, L) when ``read``; bool (B or 1, S, S) with the rows.
            batch_size: B.
            cache: key and value caches (B*K*L, D) and the rows (B*K*S,) of the new positions, which are written.
            read: one new position per sequence, S = 1, that attends to everything the cache holds.

        Returns:
            (T, H) in compute_dtype.
        """
        if read:
            q, k, v = self._project_one(x, tables, batch_size)
            keys, values = self._write(k, v, cache)
            shape = (batch_size, self.num_kv_heads, -1, self.head_dim)
            k = ops.cast(ops.reshape(keys, shape), q.dtype)
            v = ops.cast(ops.reshape(values, shape), q.dtype)
            return self.wo(ops.reshape(self.attend(q, k, v, mask), (batch_size, self.width)))
        if cache is None and self.fused is not None:
            return self.wo(self.fused(self.wq(x), self.wk(x), self.wv(x), tables, mask))
        q, k, v = self._project(x, tables, batch_size)
        if cache is not None:
            q = ops.depend(q, self._write(k, v, cache))
        return self._merge(self.attend(q, k, v, mask), batch_size)

    def _write(self, k: Tensor, v: Tensor, cache: tuple) -> tuple:
        key_past, value_past, rows = cache
        k = ops.reshape(ops.cast(k, key_past.dtype), (-1, self.head_dim))
        v = ops.reshape(ops.cast(v, value_past.dtype), (-1, self.head_dim))
        return self.scatter(key_past, rows, k), self.scatter(value_past, rows, v)


class LlamaDecodeLayer(AlikeCell):
    """One decoder layer: ``h = x + attention(norm(x)); out = h + feed_forward(norm(h))``.

    Args:
        config: a LlamaConfig.
        fused: use the device's fused kernels.
    """

    def __init__(self, config: Any, fused: bool) -> None:
        super().__init__()
        norm_type = to_ms_dtype(config.layernorm_compute_type)
        self.attention_norm = rms_norm(config.hidden_size, config.rms_norm_eps, norm_type, fused)
        self.ffn_norm = rms_norm(config.hidden_size, config.rms_norm_eps, norm_type, fused)
        self.attention = LlamaAttention(config)
        self.feed_forward = LlamaFeedForward(
            config.hidden_size,
            config.ffn_size,
            compute_dtype=to_ms_dtype(config.compute_dtype),
            param_init_type=to_ms_dtype(config.param_init_type),
            init_std=config.initializer_range,
        )
        self.add = ops.Add()

    def construct(
        self,
        x: Tensor,
        tables: tuple,
        mask: Tensor,
        batch_size: int,
        cache: tuple | None = None,
        read: bool = False,
    ) -> Tensor:
        """(T, H) -> (T, H); arguments as in LlamaAttention."""
        h = self.add(x, self.attention(self.attention_norm(x), tables, mask, batch_size, cache, read))
        return self.add(h, self.feed_forward(self.ffn_norm(h)))
