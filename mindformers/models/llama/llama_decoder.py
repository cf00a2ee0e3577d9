# SPDX-License-Identifier: Apache-2.0
"""Generation of a Llama by native CPU kernels: a prompt, or a step of all sequences, is one operator.

Legend: B rows, S positions of this call, L positions of the cache, K key/value heads, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn

from mindformers.errors import ConfigError, DeviceError
from mindformers.modules.kernels import use_native_kernels
from mindformers.modules.linear import Linear
from mindformers.modules.native_kernels import sized_op
from mindformers.modules.packed_linear import PackedLinear
from mindformers.native import library
from mindformers.tools.logger import get_logger

__all__ = ["NativeDecoder", "decoding_cell", "is_packed", "pack_weights"]

logger = get_logger(__name__)

_PLACES = (
    ("attention", "wq"), ("attention", "wk"), ("attention", "wv"), ("attention", "wo"),
    ("feed_forward", "w1"), ("feed_forward", "w3"), ("feed_forward", "w2"),
)  # fmt: skip
_FLOAT_TYPES = ("layernorm_compute_type", "softmax_compute_type", "rotary_dtype")


class NativeDecoder(nn.Cell):
    """``prefill`` and ``increment`` of a LlamaForCausalLM, with the same arguments and results.

    Args:
        model: the model; its parameters are shared, not copied.
    """

    greedy_steps = 32  # of a call of greedy at most: kGreedyTokens of native/src/decode.cc

    def __init__(self, model: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        config = model.config
        self.weights = ParameterTuple(_weights_of(model))
        self.table = model.model.rotary_tables.table
        self.eps = Tensor([config.rms_norm_eps], ms.float32)
        self.zero = Tensor([0], ms.int32)
        self.one = Tensor([1], ms.int32)
        cache = [ms.float32] * (2 * config.num_layers)
        kinds = [ms.int32] * 5 + [ms.float32, self.weights[0].dtype, ms.float32]
        kinds += [weight.dtype for weight in self.weights[1:]] + cache
        self.logits = sized_op("LlamaLogits", kinds, ms.float32)
        self.tokens = sized_op("LlamaGreedy", [ms.int32] * 2 + kinds, ms.int32)
        for operator in (self.logits, self.tokens):
            operator.add_prim_attr("side_effect_mem", True)  # it writes into the caches

    def prefill(self, tokens: Tensor, valid_length: Tensor, caches: tuple) -> Tensor:
        """int32 (B, S), int32 (B,), caches -> fp32 (B, V); see LlamaForCausalLM.prefill."""
        return self._append(tokens, self.zero, valid_length, caches)

    def increment(self, tokens: Tensor, positions: Tensor, caches: tuple) -> Tensor:
        """int32 (B, 1), int32 (B,), caches -> fp32 (B, V); see LlamaForCausalLM.increment."""
        return self._append(tokens, positions, self.one, caches)

    def greedy(self, tokens: Tensor, positions: Tensor, steps: Tensor, ends: Tensor, caches: tuple) -> Tensor:
        """Several steps that take the likeliest token each time, until every row has ended.

        Args:
            tokens: int32 (B, 1), the last of each row; a row whose last token is one of ``ends`` has ended.
            positions: int32 (B,), theirs.
            steps: int32 (1,), how many, at most greedy_steps.
            ends: int32 (E,), end tokens; -1 for none.
            caches: see LlamaForCausalLM.increment.

        Returns:
            int32 (B, greedy_steps), -1 behind the last step made. An ended row repeats its end token.
        """
        return self.tokens(steps, ends, *self._arguments(tokens, positions, self.one, caches))

    def _append(self, tokens: Tensor, begin: Tensor, lengths: Tensor, caches: tuple) -> Tensor:
        return self.logits(*self._arguments(tokens, begin, lengths, caches))

    def _arguments(self, tokens: Tensor, begin: Tensor, lengths: Tensor, caches: tuple) -> tuple:
        first = caches[3] if len(caches) == 4 else self.zero
        length = Tensor([caches[2]], ms.int32)
        embedding, *rest = self.weights
        return (tokens, begin, lengths, first, length, self.eps, embedding, self.table, *rest, *caches[0], *caches[1])


def decoding_cell(model: nn.Cell) -> nn.Cell:
    """What reads prompts and makes steps for a model: its native kernels, or the model itself.

    The weights are packed first when the config asks for it (:func:`pack_weights`). Native are a model on CPU without
    adapters that is not split over ranks, computes in float32 and keeps its weights in float32 or bfloat16, or packed.
    """
    pack_weights(model)
    if is_packed(model) or (use_native_kernels() and _is_plain(model)):
        return NativeDecoder(model)
    return model


def is_packed(model: nn.Cell) -> bool:
    """Whether the weights have been packed."""
    return isinstance(model.lm_head, PackedLinear)


def pack_weights(model: nn.Cell) -> nn.Cell:
    """Keep the weights of linear layers in ``config.weight_dtype`` from now on; the float ones are given up.

    The embedding stays as it is; an output layer tied to it gets a packed weight of its own.

    Args:
        model: a LlamaForCausalLM with its weights; changed in place. Nothing happens when its config does not ask for
            it, or when it has been done.

    Returns:
        The model.

    Raises:
        DeviceError: the native kernels cannot be used.
        ConfigError: a type in which the model computes, or adapters, stand in the way.
    """
    weight_dtype = getattr(model.config, "weight_dtype", None)
    if weight_dtype in (None, "float32") or is_packed(model):
        return model
    _require_packable(model, weight_dtype)
    before = _megabytes(model)
    for path, parent, leaf in list(_linear_layers(model)):
        layer = PackedLinear(getattr(parent, leaf).weight, weight_dtype, path)
        _replace(parent, leaf, layer)
    if model.tied:
        layer = PackedLinear(model.model.tok_embeddings.embedding_weight, weight_dtype, "lm_head")
        model.tied = False
        _replace(model, "lm_head", layer)
    model.head_loss = None  # it needs a float weight
    model.compile_cache.clear()  # graphs compiled so far hold the float weights
    logger.info(
        "weights are %s now: %.1f MB instead of %.1f MB, the embedding included",
        weight_dtype, _megabytes(model), before,
    )  # fmt: skip
    return model


def _require_packable(model: nn.Cell, weight_dtype: str) -> None:
    wanted = f"model.model_config.weight_dtype: {weight_dtype}"
    reason = library.refusal()
    if ms.get_context("device_target") != "CPU":
        reason = f"they run on CPU only, this is {ms.get_context('device_target')}"
    if reason:
        raise DeviceError(f"{wanted} needs the native kernels, and {reason}. Or leave it out")
    if model.config.compute_dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"{wanted} needs compute_dtype float32, got {model.config.compute_dtype}")
    _require_float32(model.config, wanted)
    if not all(type(getattr(parent, leaf)) is Linear for _, parent, leaf in _linear_layers(model)):
        raise ConfigError(
            f"{wanted}: the model has adapters. Merge them into the weights first (mindformers/tools/merge_lora.py), "
            "or leave it out"
        )


def _require_float32(config: Any, wanted: str) -> None:
    wrong = [f"{name} {getattr(config, name)}" for name in _FLOAT_TYPES if getattr(config, name) != "float32"]
    if wrong:
        raise ConfigError(f"{wanted} needs float32 for {', '.join(_FLOAT_TYPES)}, got {', '.join(wrong)}")


def _is_plain(model: nn.Cell) -> bool:
    config = model.config
    types = {getattr(config, name) for name in _FLOAT_TYPES}
    layers = [getattr(parent, leaf) for _, parent, leaf in _linear_layers(model)]
    kinds = {layer.weight.dtype for layer in layers if type(layer) is Linear}
    return (
        types == {"float32"}
        and config.compute_dtype in ("float32", "bfloat16")
        and all(type(layer) is Linear for layer in layers)
        and len(kinds) == 1
        and kinds <= {ms.float32, ms.bfloat16}
        and (not model.tied or model.model.tok_embeddings.embedding_weight.dtype in kinds)
    )


def _linear_layers(model: nn.Cell) -> Iterator[tuple[str, nn.Cell, str]]:
    """(path, parent, name in it) of every linear layer."""
    for i, layer in enumerate(model.model.layers):
        for part, leaf in _PLACES:
            yield f"model.layers.{i}.{part}.{leaf}", getattr(layer, part), leaf
    if not model.tied:
        yield "lm_head", model, "lm_head"


def _weights_of(model: nn.Cell) -> list[Parameter]:
    """The weights in the order of the operator (native/src/decode.cc)."""
    embedding = model.model.tok_embeddings.embedding_weight
    weights = [embedding, model.model.norm_out.weight]
    if model.tied:
        weights.append(embedding)
    else:
        weights += _tensors_of([model.lm_head])
    for layer in model.model.layers:
        weights += [layer.attention_norm.weight, layer.ffn_norm.weight]
        weights += _tensors_of([getattr(getattr(layer, part), leaf) for part, leaf in _PLACES])
    return weights


def _tensors_of(layers: list[nn.Cell]) -> list[Parameter]:
    """The weights of some layers, then the scales of those that have them."""
    if not isinstance(layers[0], PackedLinear):
        return [layer.weight for layer in layers]
    return [layer.packed for layer in layers] + [layer.scale for layer in layers if layer.scale is not None]


def _replace(parent: nn.Cell, leaf: str, layer: PackedLinear) -> None:
    """Put a layer into its parent; its parameters keep their names, which MindSpore would prefix anew."""
    names = [parameter.name for parameter in layer.get_parameters()]
    setattr(parent, leaf, layer)
    for parameter, name in zip(layer.get_parameters(), names, strict=True):
        parameter.name = name


def _megabytes(model: nn.Cell) -> float:
    return sum(parameter.nbytes for parameter in model.get_parameters()) / 1e6
