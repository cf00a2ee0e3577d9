# SPDX-License-Identifier: Apache-2.0
"""SlotModel: a static cache cut into slots; a prompt is read into one of them, a step advances all.

Legend: B slots, n tokens of a prompt, L positions of a slot, K key/value heads, V vocabulary.
"""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindformers.generation.session import OftenCalled, SameShapes
from mindformers.modules.dtypes import to_ms_dtype
from mindformers.modules.kernels import activation_type
from mindformers.modules.kv_cache import new_cache

__all__ = ["SlotModel"]


class _ReadPrompt(OftenCalled):
    """One prompt -> its slot's cache filled, logits of the token after it."""

    def __init__(self, model: nn.Cell, caches: tuple, num_heads: int) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.keys, self.values, self.length = caches
        self.rows = num_heads * self.length

    def construct(self, tokens: Tensor, length: Tensor, slot: Tensor) -> Tensor:
        """int32 (1, n), int32 (1,), int32 (1,) -> fp32 (1, V)."""
        return self.model.prefill(tokens, length, (self.keys, self.values, self.length, slot * self.rows))


class _Advance(SameShapes):
    """One token per slot -> the next token, or logits."""

    def __init__(self, model: nn.Cell, caches: tuple, choose: bool) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.caches = caches
        self.choose = choose
        self.argmax = ops.Argmax(-1, ms.int32)

    def construct(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """int32 (B, 1), int32 (B,) -> int32 (B,) when it chooses, else fp32 (B, V)."""
        logits = self.model.increment(tokens, positions, self.caches)
        return self.argmax(logits) if self.choose else logits


class SlotModel:
    """The compiled graphs and the cache of a service. Use it from one thread only.

    Args:
        model: a LlamaForCausalLM with its weights.
        num_slots: B, sequences generated together.
        length: L; None takes the model's seq_length.

    Slots that hold no sequence are computed along with the others and write to position 0 of their own cache, which
    the next prompt overwrites.
    """

    def __init__(self, model: nn.Cell, num_slots: int, length: int | None = None) -> None:
        config = model.config
        self.num_slots = num_slots
        self.length = min(length or config.seq_length, config.seq_length)
        self.vocab_size = config.vocab_size
        shape = (config.num_layers, num_slots, config.num_kv_heads, self.length, config.head_dim)
        dtype = activation_type(to_ms_dtype(config.compute_dtype))
        caches = (new_cache("slot_key", *shape, dtype), new_cache("slot_value", *shape, dtype), self.length)
        model.set_train(False)
        decoder = model.decoding_cell()
        self._read = _ReadPrompt(decoder, caches, config.num_kv_heads)
        self._read.set_inputs(
            Tensor(shape=[1, None], dtype=ms.int32),
            Tensor(shape=[1], dtype=ms.int32),
            Tensor(shape=[1], dtype=ms.int32),
        )
        self._greedy = _Advance(decoder, caches, True)
        self._logits = _Advance(decoder, caches, False)
        for graph in (self._read, self._greedy, self._logits):
            graph.set_train(False)

    def compile(self) -> None:
        """Compile every graph now, so that no request waits for it."""
        self.read_prompt(np.ones(2, np.int32), 0)
        tokens = positions = np.zeros(self.num_slots, np.int32)
        self.next_tokens(tokens, positions)
        self.next_logits(tokens, positions)

    def read_prompt(self, ids: np.ndarray, slot: int) -> np.ndarray:
        """Fill a slot.

        Args:
            ids: int32 (n,), n at most L.
            slot: which.

        Returns:
            fp32 (V,) logits of the token after the prompt.
        """
        length = Tensor(np.array([len(ids)], np.int32))
        return self._read(Tensor(ids[None].astype(np.int32)), length, Tensor(np.array([slot], np.int32))).asnumpy()[0]

    def next_tokens(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """The likeliest next token of every slot.

        Args:
            tokens: int32 (B,), the last token of each slot.
            positions: int32 (B,), its position.

        Returns:
            int32 (B,).
        """
        return self._greedy(Tensor(tokens[:, None]), Tensor(positions)).asnumpy()

    def next_logits(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """As :meth:`next_tokens`; fp32 (B, V)."""
        return self._logits(Tensor(tokens[:, None]), Tensor(positions)).asnumpy()


def graph_mode(device_target: str | None = None, **context: Any) -> None:
    """Set the device and the mode for the calling thread."""
    from mindformers.core.context import default_device_target, init_context

    init_context(False, {"mode": 0, "device_target": device_target or default_device_target(), **context})
