# SPDX-License-Identifier: Apache-2.0
"""The step of a Llama as an operator, on numpy arrays: odd sizes, all types of weights, and refused arguments."""

import numpy as np
import pytest

from mindformers.errors import DeviceError
from mindformers.models.llama.llama_decoder import NativeDecoder
from mindformers.native.calls import call

pytestmark = pytest.mark.usefixtures("native_library")

# H, F, layers, N, K, V: nothing a multiple of a vector; groups of 1, 2 and 3 query heads
SIZES = [(36, 50, 2, 6, 2, 97), (20, 30, 1, 5, 5, 33), (64, 172, 2, 8, 4, 101)]
LENGTH = 90  # more than the operator takes at a time
GREEDY_TOKENS = NativeDecoder.greedy_steps


def bf16(x: np.ndarray) -> np.ndarray:
    """The upper 16 bits, rounded to nearest even."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class TinyLlama:
    """Random weights, the operator's arguments for them, and the same model in float64."""

    def __init__(self, hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, vocab: int) -> None:
        rng = np.random.default_rng(hidden)
        self.heads, self.kv_heads, self.vocab, self.d = heads, kv_heads, vocab, hidden // heads

        def weight(*shape: int) -> np.ndarray:
            return (rng.standard_normal(shape) * 0.15).astype(np.float32)

        self.embedding, self.head, self.norm = weight(vocab, hidden) * 6, weight(vocab, hidden), 1 + weight(hidden)
        angles = np.outer(np.arange(LENGTH), 10000.0 ** (-np.arange(0, self.d, 2) / self.d))
        self.rotary = np.concatenate([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
        width, kv = heads * self.d, kv_heads * self.d
        shapes = [(width, hidden), (kv, hidden), (kv, hidden), (hidden, width)]
        shapes += [(ffn, hidden), (ffn, hidden), (hidden, ffn)]
        self.layers = [[1 + weight(hidden), 1 + weight(hidden), *(weight(*s) for s in shapes)] for _ in range(layers)]

    def arguments(self, slots: int, kind: str = "float32", cache: type = np.float32) -> list[np.ndarray]:
        """Everything after first_row, empty caches included."""

        def pack(weights: list[np.ndarray]) -> list[np.ndarray]:
            if kind == "float32":
                return weights
            if kind == "bfloat16":
                return [bf16(w) for w in weights]
            packed = [np.empty(w.shape, np.int8) for w in weights]
            scales = [np.empty(len(w), np.float32) for w in weights]
            for w, q, scale in zip(weights, packed, scales, strict=True):
                call("QuantizeRows", w, q, scale)
            return packed + scales

        found = [np.array([LENGTH], np.int32), np.array([1e-5], np.float32), self.embedding, self.rotary, self.norm]
        found += pack([self.head])
        for layer in self.layers:
            found += [*layer[:2], *pack(layer[2:])]
        rows = slots * self.kv_heads * LENGTH
        return found + [np.zeros((rows, self.d), cache) for _ in range(2 * len(self.layers))]

    def reference(self, tokens: np.ndarray) -> np.ndarray:
        """float64 logits (S, V) of one sequence."""
        s, d, half = len(tokens), self.d, self.d // 2
        cos, sin = (self.rotary[:s, None, part].astype(np.float64) for part in (slice(half), slice(half, None)))

        def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
            return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight

        def turn(x: np.ndarray) -> np.ndarray:
            a, b = x[..., :half], x[..., half:]
            return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

        x = self.embedding[tokens].astype(np.float64)
        for attention_norm, ffn_norm, wq, wk, wv, wo, w1, w3, w2 in self.layers:
            h = norm(x, attention_norm)
            q = turn((h @ wq.T).reshape(s, self.heads, d))
            k = np.repeat(turn((h @ wk.T).reshape(s, self.kv_heads, d)), self.heads // self.kv_heads, 1)
            v = np.repeat((h @ wv.T).reshape(s, self.kv_heads, d), self.heads // self.kv_heads, 1)
            scores = np.einsum("qnd,knd->nqk", q, k) / np.sqrt(d)
            scores = np.where(np.tri(s) > 0, scores, -np.inf)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            x = x + np.einsum("nqk,knd->qnd", p, v).reshape(s, -1) @ wo.T
            h = norm(x, ffn_norm)
            gate = h @ w1.T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ w3.T)) @ w2.T
        return norm(x, self.norm) @ self.head.T


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def errors_of_a_run(llama: TinyLlama, kind: str, cache: type) -> float:
    """Largest error of prompts of different lengths and steps after them, relative to the largest logit."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, llama.vocab, (3, LENGTH)).astype(np.int32)
    lengths, first = ints(7, 1, 80), ints(llama.kv_heads * LENGTH)  # the first slot of four stays free
    expected = [llama.reference(row) for row in tokens]
    arguments = llama.arguments(4, kind, cache)
    result = np.full((3, llama.vocab), np.nan, np.float32)
    call("LlamaLogits", tokens[:, :80].copy(), ints(0), lengths, first, *arguments, result)
    positions, found = lengths - 1, [result.copy()]
    for _ in range(3):
        positions = positions + 1
        step = tokens[np.arange(3), positions][:, None]
        call("LlamaLogits", step, positions, ints(1), first, *arguments, result)
        chosen = np.empty((3, GREEDY_TOKENS), np.int32)
        call("LlamaGreedy", ints(1), ints(-1), step, positions, ints(1), first, *arguments, chosen)
        np.testing.assert_array_equal(chosen[:, 0], result.argmax(1))
        assert (chosen[:, 1:] == -1).all()
        found.append(result.copy())
    return max(
        np.abs(logits[b] - expected[b][lengths[b] - 1 + i]).max() / np.abs(expected[b]).max()
        for i, logits in enumerate(found)
        for b in range(3)
    )


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("kind", "bound"), [("float32", 2e-6), ("bfloat16", 1e-2), ("int8", 4e-2)])
def test_prompts_and_steps_give_the_logits_of_float64(sizes, kind, bound):
    assert errors_of_a_run(TinyLlama(*sizes), kind, np.float32) < bound


def test_a_bfloat16_cache():
    assert 1e-6 < errors_of_a_run(TinyLlama(*SIZES[0]), "float32", np.uint16) < 1e-2


def greedy_tokens(llama: TinyLlama, tokens: np.ndarray, begin: int, steps: int, *ends: int) -> np.ndarray:
    """What LlamaGreedy makes of tokens (B, S) at a position, with the caches of a model that has read nothing else."""
    found = np.empty((len(tokens), GREEDY_TOKENS), np.int32)
    arguments = llama.arguments(len(tokens))
    length = ints(tokens.shape[1])
    call("LlamaGreedy", ints(steps), ints(*ends), tokens, ints(begin), length, ints(0), *arguments, found)
    return found


def test_several_steps_of_a_call_until_all_rows_have_ended():
    llama = TinyLlama(*SIZES[0])
    tokens = np.random.default_rng(4).integers(0, llama.vocab, (2, 5)).astype(np.int32)
    found = greedy_tokens(llama, tokens, 0, 12, -1)
    assert (found[:, 12:] == -1).all()
    for row in range(2):
        text = tokens[row]
        for token in found[row, :12]:
            assert token == llama.reference(text)[-1].argmax()
            text = np.append(text, token)
    assert len({*found[0, :12]}) > 2
    first, second = found[0, 3], found[1, 7]  # the ends of the two rows, or what comes before them
    ended = greedy_tokens(llama, tokens, 0, 32, first, second)
    made = 0
    for row in range(2):
        stop = next(i for i, token in enumerate(found[row]) if token in (first, second))
        np.testing.assert_array_equal(ended[row, : stop + 1], found[row, : stop + 1])
        assert {*ended[row, stop:]} <= {found[row, stop], -1}
        made = max(made, stop + 1)
    assert ((ended >= 0).sum(1) == made).all()


def test_a_row_at_the_end_of_its_cache_stays_inside():
    llama = TinyLlama(*SIZES[1])
    found = greedy_tokens(llama, np.array([[3], [4]], np.int32), LENGTH - 2, 10, -1)
    assert (found[:, :10] >= 0).all()


@pytest.mark.parametrize("steps", [0, -1, GREEDY_TOKENS + 1])
def test_a_number_of_steps_without_room_is_refused(steps):
    with pytest.raises(DeviceError, match=rf"steps must be 1 to {GREEDY_TOKENS}, got {steps}"):
        greedy_tokens(TinyLlama(*SIZES[1]), np.array([[3]], np.int32), 0, steps, -1)


@pytest.mark.parametrize("rows", [2, 4, 8, 15, 32])
def test_rows_do_not_change_each_other(rows):
    llama = TinyLlama(*SIZES[2])
    tokens = np.random.default_rng(2).integers(0, llama.vocab, (rows, 5)).astype(np.int32)
    together = np.empty((rows, llama.vocab), np.float32)
    call("LlamaLogits", tokens, ints(0), ints(5), ints(0), *llama.arguments(rows), together)
    for row in (0, rows // 2, rows - 1):
        alone = np.empty((1, llama.vocab), np.float32)
        call("LlamaLogits", tokens[row : row + 1], ints(0), ints(5), ints(0), *llama.arguments(1), alone)
        np.testing.assert_allclose(together[row], alone[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: np.array([[97]], np.int32)}, "token 97 is not below the vocabulary 97"),
        ({0: np.array([[-1]], np.int32)}, "token -1"),
        ({1: ints(LENGTH)}, "do not fit into 90 positions"),
        ({1: ints(-1)}, "from position -1"),
        ({2: ints(0)}, "0 of 1 tokens"),
        ({2: ints(2)}, "2 of 1 tokens"),
        ({3: ints(1)}, "do not fit into caches of 180 rows"),
        ({3: ints(-1)}, "from row -1"),
        ({0: np.zeros((1, 1), np.int64)}, "int64"),
        ({6: np.zeros((97, 35), np.float32)}, "must be"),
        ({7: np.zeros((LENGTH, 7), np.float32)}, "head size even"),
        ({10: np.zeros(35, np.float32)}, "attention_norm"),
        ({12: np.zeros((36, 36), np.int8)}, "all weights of a model are of one type"),
        ({-2: np.zeros((180, 6), np.uint16)}, "caches differ in type"),
        ({-2: np.zeros((179, 6), np.float32)}, "cache"),
        ({-1: np.zeros((1, 96), np.float32)}, "logits"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_read(change, words):
    llama = TinyLlama(*SIZES[0])
    arguments = [np.zeros((1, 1), np.int32), ints(0), ints(1), ints(0), *llama.arguments(1)]
    arguments.append(np.empty((1, llama.vocab), np.float32))
    call("LlamaLogits", *arguments)
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(DeviceError, match=words):
        call("LlamaLogits", *arguments)


def test_a_tensor_too_few_is_refused():
    llama = TinyLlama(*SIZES[0])
    arguments = [np.zeros((1, 1), np.int32), ints(0), ints(1), ints(0), *llama.arguments(1)]
    with pytest.raises(DeviceError, match="weights and two caches for each layer"):
        call("LlamaLogits", *arguments[:-1], np.empty((1, llama.vocab), np.float32))


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (37, 131), (64, 64)])
def test_rows_are_quantized_to_the_nearest_integer(shape):
    weight = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    weight[0] = 0.0
    packed, scale = np.empty(shape, np.int8), np.empty(shape[0], np.float32)
    call("QuantizeRows", weight, packed, scale)
    assert scale[0] == 0.0
    assert not packed[0].any()
    np.testing.assert_allclose(scale, np.abs(weight).max(1) / 127, rtol=1e-6)
    assert (np.abs(weight - packed * scale[:, None]) <= 0.5001 * scale[:, None]).all()
    if shape[0] > 1:
        assert (np.abs(packed[1:]).max(1) == 127).all()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_weight_that_is_not_finite_is_refused(bad):
    weight = np.ones((4, 33), np.float32)
    weight[2, 32] = bad
    with pytest.raises(DeviceError, match="row 2 of the weight holds an infinity or not-a-number"):
        call("QuantizeRows", weight, np.empty((4, 33), np.int8), np.empty(4, np.float32))


@pytest.mark.parametrize("rows", [1, 3, 9, 70])
def test_packed_linear_is_the_product_with_the_widened_weight(rows):
    rng = np.random.default_rng(rows)
    x, weight = rng.standard_normal((rows, 45)).astype(np.float32), rng.standard_normal((31, 45)).astype(np.float32)
    packed, scale = np.empty((31, 45), np.int8), np.empty(31, np.float32)
    call("QuantizeRows", weight, packed, scale)
    y = np.empty((rows, 31), np.float32)
    call("PackedLinear", x, packed, scale, y)
    np.testing.assert_allclose(y, x @ (packed * scale[:, None]).T, rtol=0, atol=3e-5)
    call("PackedLinear", x, bf16(weight), y)
    widened = (bf16(weight).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(y, x @ widened.T, rtol=0, atol=3e-5)
