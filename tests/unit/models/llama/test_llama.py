# SPDX-License-Identifier: Apache-2.0
"""Names, shapes, dtypes and the forward contract of the Llama model."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindformers.config.schema.parallel import TransformerRecomputeConfig
from mindformers.errors import MindFormersError
from mindformers.models.llama.llama import LlamaForCausalLM
from mindformers.models.llama.llama_config import LlamaConfig
from mindformers.models.llama.llama_layer import rotary_frequencies
from mindformers.models.llama.llama_parallel import apply_recompute
from tests.parity.llama_cases import fill, records, tiny_config


def build(name: str = "gqa", **changes: object) -> LlamaForCausalLM:
    network = LlamaForCausalLM(tiny_config(name, **changes))
    fill(network)
    return network.set_train(False)


def logits_of(network: LlamaForCausalLM, ids: np.ndarray) -> np.ndarray:
    return network(Tensor(ids))[0].asnumpy()


def test_parameter_names_and_shapes() -> None:
    shapes = {p.name: p.shape for p in build(num_layers=1).get_parameters()}
    assert shapes == {
        "model.tok_embeddings.embedding_weight": (101, 72),
        "model.layers.0.attention_norm.weight": (72,),
        "model.layers.0.ffn_norm.weight": (72,),
        "model.layers.0.attention.wq.weight": (72, 72),
        "model.layers.0.attention.wk.weight": (24, 72),
        "model.layers.0.attention.wv.weight": (24, 72),
        "model.layers.0.attention.wo.weight": (72, 72),
        "model.layers.0.feed_forward.w1.weight": (100, 72),
        "model.layers.0.feed_forward.w2.weight": (72, 100),
        "model.layers.0.feed_forward.w3.weight": (100, 72),
        "model.norm_out.weight": (72,),
        "lm_head.weight": (101, 72),
    }


def test_tied_embeddings_have_no_head() -> None:
    assert "lm_head.weight" not in {p.name for p in build("tied").get_parameters()}


@pytest.mark.parametrize(
    ("hidden", "multiplier", "ffn"), [(4096, None, 11008), (5120, None, 13824), (8192, 1.3, 28672)]
)
def test_feed_forward_width_of_the_published_sizes(hidden: int, multiplier: float | None, ffn: int) -> None:
    config = LlamaConfig(hidden_size=hidden, num_heads=hidden // 128, ffn_dim_multiplier=multiplier, multiple_of=256)
    assert config.ffn_size == ffn


def test_fields_stay_assignable_and_checked() -> None:
    config = tiny_config("gqa")
    config.use_past = True
    assert config.use_past is True
    with pytest.raises(MindFormersError, match="use_past"):
        config.use_psat = True
    with pytest.raises(MindFormersError, match="bfloat16"):
        config.compute_dtype = "bfloat8"


def test_every_dtype_field_is_honoured() -> None:
    network = build(compute_dtype="float16", param_init_type="float16", softmax_compute_type="float16")
    types = {p.name: p.dtype for p in LlamaForCausalLM(network.config).get_parameters()}
    assert types["lm_head.weight"] == ms.float16
    assert types["model.tok_embeddings.embedding_weight"] == ms.float16
    assert types["model.norm_out.weight"] == ms.float32
    assert network.model.layers[0].attention.wq(Tensor(np.ones((2, 72)), ms.float32)).dtype == ms.float16


@pytest.mark.parametrize(
    "field",
    ["compute_dtype", "param_init_type", "softmax_compute_type", "rotary_dtype", "layernorm_compute_type"],
)
def test_half_precision_in_one_place_changes_little_but_something(field: str) -> None:
    ids = records(False)[:, :-1]
    exact = logits_of(build(), ids)
    half = LlamaForCausalLM(tiny_config("gqa", **{field: "float16"}))
    ms.load_param_into_net(half, {p.name: ms.Parameter(p.astype(ms.float32)) for p in build().get_parameters()})
    error = np.abs(logits_of(half.set_train(False), ids) - exact).max()
    assert 0 < error < 1e-2


def test_bfloat16_on_cpu_is_refused_before_compiling() -> None:
    with pytest.raises(MindFormersError, match="bfloat16"):
        LlamaForCausalLM(tiny_config("gqa", compute_dtype="bfloat16"))


@pytest.mark.parametrize("method", ["None", "PI", "NTK"])
def test_rotary_extension(method: str) -> None:
    cos, sin = rotary_frequencies(8, 10000.0, 64, pretrain_length=16, extend_method=method, scaling_factor=1.0)
    theta = 40000.0 if method == "NTK" else 10000.0
    position = 50 / 4 if method == "PI" else 50
    angles = [position / theta ** (2 * i / 8) for i in range(4)]
    np.testing.assert_allclose(cos[50], np.cos(angles), atol=1e-12)
    np.testing.assert_allclose(sin[50], np.sin(angles), atol=1e-12)


def test_extension_within_the_pretrained_length_changes_nothing() -> None:
    plain = rotary_frequencies(8, 1e4, 16, pretrain_length=16, extend_method="None", scaling_factor=1.0)
    for method in ("PI", "NTK"):
        same = rotary_frequencies(8, 1e4, 16, pretrain_length=16, extend_method=method, scaling_factor=1.0)
        np.testing.assert_array_equal(same, plain)


def test_input_position_picks_rows() -> None:
    network, ids = build(), records(False)[:, :-1]
    full = logits_of(network, ids)
    picked = network(Tensor(ids), None, Tensor([4, 32 + 9], ms.int32)).asnumpy()
    np.testing.assert_allclose(picked, full[[0, 1], [4, 9]], rtol=1e-5, atol=1e-6)


def test_cached_calls_equal_the_full_forward() -> None:
    network, ids = build(use_past=True, batch_size=2), records(False)[:, :-1]
    network.allocate_cache()
    full = logits_of(network, ids)
    valid = np.array([5, 9], np.int32)
    first = network(Tensor(ids), None, None, None, None, None, Tensor([False]), Tensor(valid)).asnumpy()
    np.testing.assert_allclose(first, full[[0, 1], valid - 1], rtol=1e-5, atol=1e-6)
    network.add_flags_recursive(is_first_iteration=False)
    for _ in range(3):
        token = ids[[0, 1], valid][:, None]
        valid = valid + 1
        step = network(Tensor(token), None, None, None, None, None, Tensor([True]), Tensor(valid)).asnumpy()
        np.testing.assert_allclose(step[:, 0], full[[0, 1], valid - 1], rtol=1e-5, atol=1e-6)


def test_loss_is_zero_when_every_label_is_ignored() -> None:
    network = build().set_train(True)
    ids = records(False)
    assert float(network(Tensor(ids), Tensor(np.full_like(ids, -100))).asnumpy()) == 0.0


def test_eval_returns_logits_tokens_and_padding_mask() -> None:
    ids = records(True)[:, :-1]
    logits, tokens, mask = build()(Tensor(ids))
    assert logits.shape == (2, 32, 101)
    assert logits.dtype == ms.float32
    np.testing.assert_array_equal(tokens.asnumpy(), ids)
    np.testing.assert_array_equal(mask.asnumpy(), ids != 0)


@pytest.mark.parametrize("kind", ["recompute", "select_recompute"])
def test_recompute_changes_no_gradient(kind: str) -> None:
    ids = Tensor(records(False))
    grads = []
    for used in (False, True):
        network = build().set_train(True)
        apply_recompute(network, TransformerRecomputeConfig(**{kind: used}))
        _, grad = ms.value_and_grad(network, None, network.trainable_params())(ids)
        grads.append([g.asnumpy() for g in grad])
    for plain, again in zip(*grads, strict=True):
        np.testing.assert_allclose(again, plain, rtol=1e-5, atol=1e-7)
