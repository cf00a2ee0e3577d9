# SPDX-License-Identifier: Apache-2.0
"""A tiny Llama with native kernels beside the plain one: losses, gradients, training, generation."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindformers.config import MindFormerConfig
from mindformers.core.lr import CosineWithWarmUpLR
from mindformers.core.optim import AdamW
from mindformers.errors import ConfigError, DeviceError
from mindformers.inference.exporter import export_mindir
from mindformers.models.llama.llama import LlamaForCausalLM
from mindformers.models.llama.llama_config import LlamaConfig
from mindformers.modules.kernels import use_native_kernels
from mindformers.native import library
from mindformers.wrapper import MFTrainOneStepCell
from tests.helpers import REPO
from tests.unit.native.helpers import distance

pytestmark = pytest.mark.usefixtures("native_library")

VOCAB, LENGTH = 61, 19


def config(**changes):
    kinds = ("compute_dtype", "param_init_type", "layernorm_compute_type", "softmax_compute_type", "rotary_dtype")
    fields = {
        "hidden_size": 24, "intermediate_size": 37, "num_layers": 2, "num_heads": 4, "n_kv_heads": 2,
        "vocab_size": VOCAB, "seq_length": LENGTH, "pretrain_seqlen": LENGTH, "initializer_range": 0.1,
        "pad_token_id": 0, **dict.fromkeys(kinds, "float32"),
    }  # fmt: skip
    return LlamaConfig(**{**fields, **changes})


def build(native, monkeypatch, weights=None, **changes):
    """A model in training mode, with or without native kernels, with the weights of another one."""
    monkeypatch.setenv(library.ENVIRONMENT, "1" if native else "0")
    model = LlamaForCausalLM(config(**changes)).set_train()
    assert use_native_kernels() == native
    if weights is not None:
        for own, other in zip(model.get_parameters(), weights.get_parameters(), strict=True):
            own.set_data(other.value())
        return model
    rng = np.random.default_rng(0)
    for own in model.get_parameters():
        own.set_data(Tensor((own.ndim == 1) + 0.1 * rng.standard_normal(own.shape), own.dtype))
    return model


def batches():
    """Name -> columns of loss_and_count: plain, with labels, packed, with padding on the left."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, VOCAB, (2, LENGTH + 1)).astype(np.int32)
    ids[1, -5:] = 0
    labels = np.where(rng.random(ids.shape) < 0.3, -100, ids).astype(np.int32)
    segments = np.repeat([[0, 1, 2]], [7, 1, LENGTH - 7], axis=1).repeat(2, 0).astype(np.int32)
    left = np.ones((2, LENGTH), np.int32)
    left[0, :4] = 0
    tensors = {name: Tensor(x) for name, x in locals().items() if name in ("ids", "labels", "segments", "left")}
    return {
        "plain": (tensors["ids"],),
        "labels": (tensors["ids"], tensors["labels"]),
        "packed": (tensors["ids"], tensors["labels"], tensors["segments"]),
        "left_padding": (tensors["ids"], tensors["labels"], None, None, tensors["left"]),
    }


def loss_and_gradients(model, columns):
    def total_loss(*batch):
        return model.loss_and_count(*batch)[0]

    total, gradients = ms.value_and_grad(total_loss, None, model.trainable_params())(*columns)
    return total.asnumpy(), np.concatenate([g.asnumpy().ravel() for g in gradients])


@pytest.mark.parametrize(("name", "tied"), [*((name, False) for name in batches()), ("packed", True)])
def test_losses_and_gradients(name, tied, monkeypatch):
    plain = build(False, monkeypatch, tie_word_embeddings=tied)
    expected, expected_gradients = loss_and_gradients(plain, batches()[name])
    for dtype, tolerance, of_loss in (("float32", 1e-5, 1e-6), ("bfloat16", 2e-2, 2e-3)):
        native = build(True, monkeypatch, plain, compute_dtype=dtype, tie_word_embeddings=tied)
        loss, gradients = loss_and_gradients(native, batches()[name])
        assert loss == pytest.approx(expected, rel=of_loss)
        assert distance(gradients, expected_gradients) <= tolerance


@pytest.mark.parametrize("accumulation", [1, 2])
def test_training(accumulation, monkeypatch):
    losses = []
    for native in (False, True):
        model = build(native, monkeypatch)
        cell = MFTrainOneStepCell(
            model, AdamW(model.trainable_params(), learning_rate=0.01), use_clip_grad=True, accumulation=accumulation
        ).set_train()
        columns = batches()["packed"]
        losses.append([float(cell(*columns)[0].asnumpy()) for _ in range(6)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)  # Adam's steps magnify the smallest differences
    assert losses[0][-1] < losses[0][0]


def test_the_quickstarts_curve_in_bfloat16(monkeypatch):
    """The bytes of a real text, warm-up and beyond; all 610 steps on its own data: benchmarks/loss_curve.py."""
    steps, values = 90, MindFormerConfig(str(REPO / "configs/llama2/run_llama2_tiny.yaml")).to_run_config()
    text = np.frombuffer((REPO / "docs/config.md").read_bytes(), np.uint8).astype(np.int32) + 3
    starts = np.random.default_rng(0).integers(0, len(text) - 129, (steps, 8, 1))
    records, curves, weights = text[starts + np.arange(129)], [], None
    ms.set_seed(0)
    for dtype in ("float32", "bfloat16"):
        monkeypatch.setenv(library.ENVIRONMENT, "1")
        shape = values.model.config.model_copy(update={"compute_dtype": dtype})
        model = LlamaForCausalLM(LlamaConfig(**shape.model_dump(exclude_unset=True))).set_train()
        weights = weights or [p.asnumpy().copy() for p in model.get_parameters()]
        for parameter, value in zip(model.get_parameters(), weights, strict=True):
            parameter.set_data(Tensor(value))
        rate = CosineWithWarmUpLR(values.lr_schedule.learning_rate, total_steps=610, warmup_steps=30)
        cell = MFTrainOneStepCell(model, AdamW(model.trainable_params(), rate, beta2=0.95), use_clip_grad=True)
        curves.append([float(cell.set_train()(Tensor(ids))[0].asnumpy()) for ids in records])
    np.testing.assert_allclose(curves[1][:40], curves[0][:40], rtol=5e-3)
    assert np.mean(curves[1]) == pytest.approx(np.mean(curves[0]), rel=5e-3)
    assert curves[0][-1] < curves[0][0] - 3


def test_the_same_run_twice_gives_the_same_bits(monkeypatch):
    model = build(True, monkeypatch)
    first = loss_and_gradients(model, batches()["plain"])
    second = loss_and_gradients(model, batches()["plain"])
    np.testing.assert_array_equal(first[1], second[1])


def test_evaluation_and_generation(monkeypatch):
    plain = build(False, monkeypatch)
    ids = batches()["plain"][0]
    answers = {}
    for native, dtype in ((False, "float32"), (True, "float32"), (True, "bfloat16")):
        model = build(native, monkeypatch, plain, compute_dtype=dtype).set_train(False)
        total, count = model.loss_and_count(ids)
        logits = model(Tensor(ids.asnumpy()[:, :-1]))[0].asnumpy()
        tokens = model.generate(np.array([[5, 7, 11]]), do_sample=False, max_new_tokens=6)
        answers[native, dtype] = float(total.asnumpy() / count.asnumpy()), logits, np.asarray(tokens)
    reference = answers[False, "float32"]
    ours = answers[True, "float32"]
    assert ours[0] == pytest.approx(reference[0], rel=1e-6)
    assert distance(ours[1], reference[1]) < 1e-5
    np.testing.assert_array_equal(ours[2], reference[2])
    assert distance(answers[True, "bfloat16"][1], reference[1]) < 2e-2


def test_lora_on_a_frozen_model(monkeypatch):
    from mindformers.pet import get_pet_model

    plain = build(False, monkeypatch)
    results = []
    for native in (False, True):
        model = build(native, monkeypatch, plain)
        options = {"pet_type": "lora", "lora_rank": 2, "lora_alpha": 4, "lora_dropout": 0.0, "target_modules": "w[qv]"}
        model = get_pet_model(model, {**options, "param_init_type": "float32", "compute_dtype": "float32"})
        for parameter in model.trainable_params():
            generator = np.random.default_rng(parameter.size)
            parameter.set_data(Tensor(generator.standard_normal(parameter.shape), parameter.dtype))
        results.append(loss_and_gradients(model, batches()["labels"]))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    assert distance(results[1][1], results[0][1]) <= 1e-5


def test_recomputed_layers(monkeypatch):
    from mindformers.models.llama.llama_parallel import apply_recompute

    class Options:
        recompute, select_recompute = True, False

    model = build(True, monkeypatch)
    expected = loss_and_gradients(model, batches()["plain"])
    again = build(True, monkeypatch, model)
    apply_recompute(again, Options())
    np.testing.assert_array_equal(loss_and_gradients(again, batches()["plain"])[1], expected[1])


def test_a_model_of_native_kernels_is_not_exported(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="native CPU kernels, which a MindIR file cannot hold"):
        export_mindir(build(True, monkeypatch), tmp_path / "all.mindir")
    assert export_mindir(build(False, monkeypatch), tmp_path / "all.mindir")


def test_bfloat16_needs_the_native_kernels(monkeypatch):
    with pytest.raises(DeviceError, match=r"compute_dtype: bfloat16.*context.native_kernels: True"):
        build(False, monkeypatch, compute_dtype="bfloat16")


def test_one_thread_gives_the_same_result(monkeypatch, native_library):
    model = build(True, monkeypatch)
    expected = loss_and_gradients(model, batches()["plain"])
    threads = native_library.mindformers_native_threads()
    native_library.mindformers_native_set_threads(1)
    try:
        alone = loss_and_gradients(model, batches()["plain"])
    finally:
        native_library.mindformers_native_set_threads(threads)
    assert distance(alone[1], expected[1]) < 1e-6
