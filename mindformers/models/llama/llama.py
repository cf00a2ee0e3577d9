# SPDX-License-Identifier: Apache-2.0
"""LlamaModel and LlamaForCausalLM: embeddings, decoder layers, head and loss. Maths only.

Legend: B batch, S positions of this call, L cached positions, T = B * S, H hidden, N query heads, K key/value
heads, G = N / K, V vocabulary.
"""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindformers.core.frozen_head import FrozenHeadLoss
from mindformers.core.loss import CrossEntropyLoss
from mindformers.core.parallel_context import is_split
from mindformers.generation import GeneratorMixin
from mindformers.models.base_model import BaseModel
from mindformers.models.llama.llama_config import LlamaConfig
from mindformers.models.llama.llama_decoder import decoding_cell
from mindformers.models.llama.llama_layer import LlamaEmbedding, RotaryTables, rotary_frequencies
from mindformers.models.llama.llama_transformer import LlamaDecodeLayer
from mindformers.modules.dtypes import to_ms_dtype
from mindformers.modules.kernels import activation_type, head_loss, require_dtypes, rms_norm, use_fused_kernels
from mindformers.modules.kv_cache import cache_rows, new_cache
from mindformers.modules.linear import Linear
from mindformers.modules.native_kernels import at_compile_time
from mindformers.registry import MindFormerModuleType, MindFormerRegister


@MindFormerRegister.register(MindFormerModuleType.MODELS)
class LlamaModel(nn.Cell):
    """Embedding, decoder layers and final norm.

    Args:
        config: the model's configuration.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        config.check()
        require_dtypes(config)
        self.broadcasts = False
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        self.hidden_size = config.hidden_size
        fused = use_fused_kernels()
        self.compute_dtype = activation_type(to_ms_dtype(config.compute_dtype))
        self.score_dtype = to_ms_dtype(config.softmax_compute_type)
        # -10000 is below every real score yet far from the end of fp16's range
        self.hidden_score = -10000.0 if self.score_dtype == ms.float16 else -1.0e9
        self.tok_embeddings = LlamaEmbedding(
            config.vocab_size,
            config.hidden_size,
            to_ms_dtype(config.param_init_type),
            config.initializer_range,
        )
        cos, sin = rotary_frequencies(
            config.head_dim,
            config.rope_theta,
            config.seq_length,
            pretrain_length=config.pretrain_seqlen,
            extend_method=config.extend_method,
            scaling_factor=config.scaling_factor,
        )
        self.rotary_tables = RotaryTables(cos, sin, to_ms_dtype(config.rotary_dtype))
        self.layers = nn.CellList([LlamaDecodeLayer(config, fused) for _ in range(config.num_layers)])
        self.fused_attention = self.layers[0].attention.fused is not None
        self.norm_out = rms_norm(
            config.hidden_size, config.rms_norm_eps, to_ms_dtype(config.layernorm_compute_type), fused
        )

    def _spread_mask(self, visible: Tensor, b: int) -> Tensor:
        """bool (B, S, L) or (1, S, L) -> additive mask (B, K, G*S, L), whole: a layer that had to spread it over the
        batch would keep index lists of four times its size (CPU, see modules/kernels.py)."""
        shared, s, length = visible.shape
        hidden = ops.cast(ops.logical_not(visible), self.score_dtype) * self.hidden_score
        hidden = ops.reshape(hidden, (shared, 1, s, length))
        if self.broadcasts:
            return hidden
        hidden = ops.broadcast_to(hidden, (b, self.num_heads, s, length))
        return ops.reshape(hidden, (b, self.num_kv_heads, -1, length))

    def construct(
        self,
        tokens: Tensor,
        positions: Tensor,
        visible: Tensor,
        input_embeds: Tensor | None = None,
        caches: tuple | None = None,
        read: bool = False,
    ) -> Tensor:
        """Hidden states of the last layer.

        Args:
            tokens: int32 (B, S).
            positions: int32 (B, S), for the rotary embedding and the cache.
            visible: bool (B, S, S), or (B, S, L) when ``read``: which keys each position may see.
            input_embeds: (B, S, H) in place of the embedding of tokens.
            caches: key caches, value caches (one (B*K*L, D) parameter per layer each) and L; they are written. A fourth
                item, int32 (1,), is the first row to write when the caches hold more sequences than this call.
            read: S = 1, attending to the caches instead of among the given positions.

        Returns:
            (T, H) in compute_dtype.
        """
        b = tokens.shape[0]
        embedded = self.tok_embeddings(tokens) if input_embeds is None else input_embeds
        h = ops.reshape(ops.cast(embedded, self.compute_dtype), (-1, self.hidden_size))  # (T, H)
        if read:
            tables = self.rotary_tables.matrices(positions)
        elif caches is None and self.fused_attention:
            tables = self.rotary_tables.rows(positions)
        else:
            tables = self.rotary_tables(positions, self.num_heads, self.num_kv_heads)
        mask = visible if caches is None and self.fused_attention else self._spread_mask(visible, b)
        if caches is None:
            for layer in self.layers:
                h = layer(h, tables, mask, b)
        else:
            keys, values, length = caches[:3]
            rows = cache_rows(positions, self.num_kv_heads, length)
            if len(caches) == 4:
                rows = rows + caches[3]
            for i, layer in enumerate(self.layers):
                h = layer(h, tables, mask, b, (keys[i], values[i], rows), read)
        return self.norm_out(h)


@MindFormerRegister.register(MindFormerModuleType.MODELS)
class LlamaForCausalLM(BaseModel, GeneratorMixin):
    """Llama with the language modelling head.

    Args:
        config: the model's configuration. Weights are loaded from its ``checkpoint_name_or_path`` when that is set;
            without it they are random.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        with self._weights_of(config.checkpoint_name_or_path):
            self._build(config)

    def _build(self, config: LlamaConfig) -> None:
        self.pad_token_id = config.pad_token_id
        self.ignore_token_id = config.ignore_token_id
        self.tied = config.tie_word_embeddings
        self.model = LlamaModel(config)
        types = {
            "compute_dtype": to_ms_dtype(config.compute_dtype),
            "param_init_type": to_ms_dtype(config.param_init_type),
            "init_std": config.initializer_range,
        }
        self.lm_head = None if self.tied else Linear(config.hidden_size, config.vocab_size, **types)
        self.head_dtype = activation_type(types["compute_dtype"])
        self.head_loss = head_loss(self._head_weight(), types["compute_dtype"])
        self.head_matmul = ops.MatMul(transpose_b=True)
        self.positions = Tensor(np.arange(config.seq_length).reshape(1, -1), ms.int32)
        self.first_row = ops.Slice()
        self.cut = ops.Slice()
        self.not_equal = ops.NotEqual()
        self.count = ops.ReduceSum()
        self.loss = CrossEntropyLoss()
        self.frozen_head_loss = FrozenHeadLoss()
        self.head_is_frozen = at_compile_time(self._is_head_frozen)
        self.is_first_iteration = True
        self.cache_length = 0

    def allocate_cache(self) -> None:
        """Give the model a key/value cache of its own, config.batch_size x config.seq_length.

        Cached calls of construct, as an exported graph makes them, need it; ``generate`` does not: it keeps caches that
        fit each request.
        """
        config = self.config
        shape = (config.num_layers, config.batch_size, config.num_kv_heads, config.seq_length, config.head_dim)
        self.key_past = new_cache("key_past", *shape, self.head_dtype)
        self.value_past = new_cache("value_past", *shape, self.head_dtype)
        self.cache_length = config.seq_length

    def construct(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        input_position: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_embeds: Tensor | None = None,
        init_reset: Any = True,
        batch_valid_length: Tensor | None = None,
        segment_ids: Tensor | None = None,
    ) -> Any:
        """Loss in training, logits otherwise.

        Args:
            input_ids: int32 (B, S+1) in training, (B, S) else; (B, 1) for a cached step.
            labels: int32, shape of input_ids, aligned with it (the model shifts); ignore_token_id where no loss is due.
            input_position: int32 (B,), flat index i*S + len_i - 1 of the last token of each sequence: only those
                logits are returned.
            position_ids: int32 (B, S); default 0, 1, 2, ...
            attention_mask: (B, S), 0 where a token is padding no other token may see; default all 1 (right padding
                needs none: the mask is causal).
            input_embeds: (B, S, H) used in place of the embedding of input_ids.
            init_reset: kept for callers of the old interface; the cache is overwritten, so nothing needs a reset.
            batch_valid_length: int32 (B,) or (1, B), tokens of each sequence so far; selects the cached path, which
                :meth:`allocate_cache` makes possible. The flag ``is_first_iteration`` tells the prefill from a step.
            segment_ids: training, see :meth:`loss_and_count`.

        Returns:
            Training: scalar fp32 loss. Evaluation: (logits fp32 (B, S, V), input_ids, mask fp32 (B, S)), mask 1 where
            input_ids is not padding. With input_position or on a cached prefill: logits (B, V). Cached step: (B, 1, V).
        """
        if self.training:
            total, count = self.loss_and_count(
                input_ids, labels, segment_ids, position_ids, attention_mask, input_embeds
            )
            return total / ops.maximum(count, Tensor(1.0, ms.float32))
        if self.cache_length and batch_valid_length is not None:
            valid = ops.reshape(batch_valid_length, (-1,))
            caches = (self.key_past, self.value_past, self.cache_length)
            if self.is_first_iteration:
                return self.prefill(input_ids, valid, caches)
            return ops.expand_dims(self.increment(input_ids, valid - 1, caches), 1)
        hidden = self._hidden(input_ids, position_ids, attention_mask, input_embeds)
        if input_position is not None:
            return self._logits(ops.gather(hidden, input_position, 0))
        b, s = input_ids.shape
        logits = ops.reshape(self._logits(hidden), (b, s, -1))
        return logits, input_ids, ops.cast(ops.not_equal(input_ids, self.pad_token_id), ms.float32)

    def loss_and_count(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        segment_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_embeds: Tensor | None = None,
    ) -> tuple:
        """Summed loss and number of label tokens of records (B, S+1); the last token is only a label.

        Args:
            input_ids: int32 (B, S+1). Without labels the tokens are their own labels and padding is no label.
            labels: as in construct.
            segment_ids: int32 (B, S+1) for records that hold several texts: tokens of one text share a number. A token
                sees only its own text, positions count from the text's beginning, and the first token of a text is no
                label.
            position_ids, attention_mask, input_embeds: as in construct.

        The first three are the columns of a dataset in the order of ``input_columns``.
        """
        b, length = input_ids.shape
        tokens = self.cut(input_ids, (0, 0), (b, length - 1))
        targets, mask = self._targets(input_ids, labels)
        segments = None
        if segment_ids is not None:
            segments, mask = self._segments(segment_ids, mask)
        hidden = self._hidden(tokens, position_ids, attention_mask, input_embeds, segments)
        if self.head_loss is not None:
            return self.head_loss(hidden, self._head_weight(), targets, mask), self.count(mask)
        if self.head_is_frozen():
            return self.frozen_head_loss(hidden, self._head_weight(), targets, mask)[0], self.count(mask)
        return self.loss.total(self._logits(hidden), targets, mask), self.count(mask)

    def num_label_tokens(
        self, input_ids: Tensor, labels: Tensor | None = None, segment_ids: Tensor | None = None
    ) -> Tensor:
        """fp32 scalar: label tokens of records (B, S+1); arguments as in :meth:`loss_and_count`."""
        _, mask = self._targets(input_ids, labels)
        if segment_ids is not None:
            _, mask = self._segments(segment_ids, mask)
        return self.count(mask)

    def _segments(self, segment_ids: Tensor, mask: Tensor) -> tuple:
        """int32 (B, S+1) and fp32 (B*S,) -> segments of the tokens (B, S), and the mask without first tokens."""
        b, length = segment_ids.shape
        segments = self.cut(segment_ids, (0, 0), (b, length - 1))
        following = self.cut(segment_ids, (0, 1), (b, length - 1))
        return segments, mask * ops.reshape(ops.cast(ops.equal(segments, following), ms.float32), (-1,))

    def decoding_cell(self) -> nn.Cell:
        """As GeneratorMixin says; packs the weights first where ``config.weight_dtype`` asks for it."""
        return decoding_cell(self)

    def prefill(self, tokens: Tensor, valid_length: Tensor, caches: tuple) -> Tensor:
        """Process whole prompts and fill the caches.

        Args:
            tokens: int32 (B, S), padded on the right.
            valid_length: int32 (B,), tokens of each prompt.
            caches: key caches, value caches, L and perhaps the first row (see LlamaModel).

        Returns:
            (B, V) fp32 logits of the token after each prompt.
        """
        b, s = tokens.shape
        index = self._index(tokens)
        hidden = self.model(tokens, index, self._causal(index), None, caches, False)
        last = ops.arange(0, b, dtype=ms.int32) * s + valid_length - 1
        return self._logits(ops.gather(hidden, last, 0))

    def increment(self, tokens: Tensor, positions: Tensor, caches: tuple) -> Tensor:
        """Process one new token per sequence.

        Args:
            tokens: int32 (B, 1).
            positions: int32 (B,), position of each new token.
            caches: key caches, value caches, L, filled up to positions - 1.

        Returns:
            (B, V) fp32 logits of the token after.
        """
        b = tokens.shape[0]
        slots = ops.reshape(ops.arange(0, caches[2], dtype=ms.int32), (1, 1, -1))
        positions = ops.reshape(positions, (b, 1))
        visible = ops.less_equal(slots, ops.expand_dims(positions, 2))  # (B, 1, L)
        return self._logits(self.model(tokens, positions, visible, None, caches, True))

    def _index(self, tokens: Tensor) -> Tensor:
        """0, 1, 2, ... along S for every row (for one row that serves all, when the model broadcasts).

        A cumulative sum also serves a length unknown at compile time.
        """
        if self.model.broadcasts:
            return self.first_row(self.positions, (0, 0), (1, tokens.shape[1]))
        return ops.cumsum(ops.ones_like(tokens), 1) - 1

    def _causal(self, index: Tensor) -> Tensor:
        """(B, S) -> bool (1, S, S), True where the column is not later than the row."""
        s = index.shape[1]
        line = ops.slice(index, (0, 0), (1, s))
        rows = ops.broadcast_to(ops.reshape(line, (1, s, 1)), (1, s, s))
        columns = ops.broadcast_to(ops.reshape(line, (1, 1, s)), (1, s, s))
        return ops.less_equal(columns, rows)

    def _within(self, segments: Tensor, visible: Tensor) -> Tensor:
        """(B, S) and bool (1, S, S) -> bool (B, S, S), True where also the segment is the same."""
        b, s = segments.shape
        shape = (b, s, s)
        rows = ops.broadcast_to(ops.expand_dims(segments, 2), shape)
        columns = ops.broadcast_to(ops.expand_dims(segments, 1), shape)
        return ops.logical_and(ops.broadcast_to(visible, shape), ops.equal(rows, columns))

    def _hidden(
        self,
        tokens: Tensor,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        input_embeds: Tensor | None,
        segments: Tensor | None = None,
    ) -> Tensor:
        index = self._index(tokens)
        visible = self._causal(index)
        if segments is not None:
            visible = self._within(segments, visible)
            # how many tokens of its own text a token sees, without itself
            index = ops.cast(ops.reduce_sum(ops.cast(visible, ms.float32), -1), ms.int32) - 1
        if attention_mask is not None:
            visible = ops.logical_and(visible, ops.expand_dims(ops.not_equal(attention_mask, 0), 1))
        positions = index if position_ids is None else position_ids
        return self.model(tokens, positions, visible, input_embeds)

    def _head_weight(self) -> Parameter:
        return self.model.tok_embeddings.embedding_weight if self.tied else self.lm_head.weight

    def _is_head_frozen(self) -> bool:
        """Whether ``FrozenHeadLoss`` may stand for head and loss: nothing to learn, not split, all of it fp32."""
        if is_split() or self.head_dtype != ms.float32 or not (self.tied or isinstance(self.lm_head, Linear)):
            return False
        return not self._head_weight().requires_grad and self._head_weight().dtype == ms.float32

    def _logits(self, hidden: Tensor) -> Tensor:
        if self.tied:
            weight = ops.cast(self._head_weight(), self.head_dtype)
            logits = self.head_matmul(ops.cast(hidden, self.head_dtype), weight)
        else:
            logits = self.lm_head(hidden)
        return ops.cast(logits, ms.float32)

    def _targets(self, input_ids: Tensor, labels: Tensor | None) -> tuple:
        """Shifted labels (B*S,) int32 and their mask fp32."""
        b, length = input_ids.shape
        source = input_ids if labels is None else labels
        ignored = self.pad_token_id if labels is None else self.ignore_token_id
        targets = ops.reshape(self.cut(source, (0, 1), (b, length - 1)), (-1,))
        return targets, ops.cast(self.not_equal(targets, ignored), ms.float32)
