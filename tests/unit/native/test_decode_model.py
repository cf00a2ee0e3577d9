# SPDX-License-Identifier: Apache-2.0
"""``generate`` by native kernels beside the plain model: tokens, types of weights, and what is refused."""

import numpy as np
import pytest
from mindspore import Tensor

from mindformers.errors import ConfigError, DeviceError
from mindformers.generation.sampling import Choice
from mindformers.models.llama.llama import LlamaForCausalLM
from mindformers.models.llama.llama_decoder import NativeDecoder, pack_weights
from mindformers.native import library
from mindformers.pet import get_pet_model
from mindformers.serve.slot_model import SlotModel
from tests.parity.llama_cases import formula_weight, tiny_config

PROMPTS = [np.random.default_rng(5).integers(3, 101, length).tolist() for length in (1, 5, 9, 17)]
GREEDY = {"do_sample": False, "max_new_tokens": 12, "use_past": True, "eos_token_id": []}


def lively(case: str = "gqa", **changes) -> LlamaForCausalLM:
    """A model whose greedy text does not fall into one repeated token."""
    network = LlamaForCausalLM(tiny_config(case, **changes))
    for parameter in network.get_parameters():
        scale = 1.0 if len(parameter.shape) == 1 else 4.0
        parameter.set_data(Tensor(scale * formula_weight(parameter.name, parameter.shape)))
    return network


def texts(network, prompts=PROMPTS, **settings) -> list[list[int]]:
    return [row.tolist() for row in network.generate(prompts, **{**GREEDY, **settings})]


@pytest.fixture(scope="module")
def plain():
    """A model without native kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.ENVIRONMENT, "0")
        network = lively()
        network.expected = texts(network)
        network.drawn = texts(network, do_sample=True, top_k=5, seed=3)
        network.penalised = texts(network, PROMPTS[3], repetition_penalty=1.5)
        assert not isinstance(network.decoding_cell(), NativeDecoder)
    return network


@pytest.fixture(scope="module")
def native_model(native_library):
    """The same model, native."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.ENVIRONMENT, "1")
        return lively()


@pytest.fixture
def native(native_model, native_on):
    """It, with native kernels for new numbers of rows too."""
    assert isinstance(native_model.decoding_cell(), NativeDecoder)
    return native_model


def test_tokens_of_the_plain_model_in_a_batch_and_alone(plain, native):
    assert texts(native) == plain.expected
    assert texts(native, PROMPTS[2])[0] == plain.expected[2]
    assert len({tuple(row[-4:]) for row in plain.expected}) == len(PROMPTS)


def test_draws_are_the_same_and_repeat(plain, native):
    for _ in range(2):
        assert texts(native, do_sample=True, top_k=5, seed=3) == plain.drawn
    assert plain.drawn != plain.expected


def test_rows_end_at_their_own_end_token(plain, native):
    ended = plain.expected[0][len(PROMPTS[0]) + 3]
    found = texts(native, eos_token_id=ended)
    for row, prompt, whole in zip(found, PROMPTS, plain.expected, strict=True):
        new = whole[len(prompt) :]
        stop = new.index(ended) + 1 if ended in new else len(new)
        assert row == whole[: len(prompt) + stop]


class Listener:
    """A streamer that keeps what it gets."""

    def __init__(self) -> None:
        self.ids, self.ended = [], 0

    def put(self, ids) -> None:
        self.ids.append(ids.tolist())

    def end(self) -> None:
        self.ended += 1


def test_a_stream_and_a_stop_see_every_token_once_though_several_come_in_a_launch(plain, native):
    whole, prompt = plain.expected[2], PROMPTS[2]
    new = whole[len(prompt) :]
    assert native.decode_session(1, len(whole)).makes_several(Choice("greedy"))
    for _ in range(3):  # the later ones know the pace of the first
        listener, asked = Listener(), []

        def stop(ids, asked=asked):
            asked.append(list(ids))
            return len(ids) == 6

        assert texts(native, prompt, streamer=listener, stop=stop) == [whole[: len(prompt) + 6]]
        assert listener.ids == [prompt, *([token] for token in new[:6])]
        assert listener.ended == 1
        assert asked == [new[: i + 1] for i in range(6)]


def test_a_full_window_ends_there(native):
    rows = texts(native, [PROMPTS[0], PROMPTS[3]], max_new_tokens=100)
    assert [len(row) for row in rows] == [native.config.seq_length] * 2


def test_the_penalty_sees_the_whole_prompt(plain, native):
    assert texts(native, PROMPTS[3], repetition_penalty=1.5) == plain.penalised


@pytest.mark.parametrize("case", ["mha", "gqa"])
def test_tied_output_layer_and_two_models_in_a_process(case, native_on):
    network = lively(case, tie_word_embeddings=True, num_layers=1)
    found = texts(network, PROMPTS[1])
    assert isinstance(network.decoding_cell(), NativeDecoder)
    assert found == texts(network, PROMPTS[1], use_past=False)


@pytest.mark.parametrize("weight_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("tied", [False, True])
def test_packed_weights(weight_dtype, tied, native_library, monkeypatch):
    monkeypatch.delenv(library.ENVIRONMENT, raising=False)  # asking for the type is asking for the kernels
    network = lively(weight_dtype=weight_dtype, tie_word_embeddings=tied)
    network.set_train(False)
    tokens = Tensor(np.array([PROMPTS[3]], np.int32))
    exact = network(tokens)[0].asnumpy()
    floats = sum(parameter.nbytes for parameter in network.get_parameters())
    found = texts(network, PROMPTS[1])
    assert found == texts(network, PROMPTS[1], use_past=False)
    names = [parameter.name for parameter in network.get_parameters()]
    assert "model.layers.1.feed_forward.w2.packed" in names
    assert not any("wq.weight" in name for name in names)
    assert sum(parameter.nbytes for parameter in network.get_parameters()) < 0.8 * floats
    error = np.abs(network(tokens)[0].asnumpy() - exact).max() / np.abs(exact).max()
    assert 1e-5 < error < (0.03 if weight_dtype == "bfloat16" else 0.08)
    with pytest.raises(ConfigError, match=f"are {weight_dtype} now, so it cannot be saved"):
        network.save_pretrained("unused")
    with pytest.raises(ConfigError, match="no weights can be loaded into it"):
        network.load_checkpoint("unused")
    assert pack_weights(network) is network


def test_slots_of_a_service(plain, native_on):
    slots = SlotModel(lively(), 3)
    assert isinstance(slots._greedy.model, NativeDecoder)
    token = []
    for slot, prompt in ((2, PROMPTS[3]), (0, PROMPTS[1])):
        logits = slots.read_prompt(np.array(prompt, np.int32), slot)
        token.append((slot, int(logits.argmax()), len(prompt)))
    tokens, positions = np.zeros(3, np.int32), np.zeros(3, np.int32)
    for slot, first, length in token:
        tokens[slot], positions[slot] = first, length
    second = slots.next_tokens(tokens, positions)
    np.testing.assert_array_equal(second, slots.next_logits(tokens, positions).argmax(1))
    assert [int(tokens[2]), int(second[2])] == plain.expected[3][17:19]
    assert [int(tokens[0]), int(second[0])] == plain.expected[1][5:7]


def test_what_native_kernels_do_not_do_stays_plain(native_on):
    assert not isinstance(lively(softmax_compute_type="float16").decoding_cell(), NativeDecoder)
    adapted = get_pet_model(lively(), {"lora_rank": 2, "target_modules": "wq"})
    assert adapted.decoding_cell() is adapted


def test_packing_that_cannot_be_is_refused_with_the_way_out(native_library, monkeypatch):
    monkeypatch.delenv(library.ENVIRONMENT, raising=False)
    adapted = get_pet_model(lively(weight_dtype="int8"), {"lora_rank": 2, "target_modules": "wq"})
    with pytest.raises(ConfigError, match=r"adapters. Merge them .*merge_lora"):
        adapted.generate(PROMPTS[0], **GREEDY)
    with pytest.raises(ConfigError, match=r"needs float32 for .* got softmax_compute_type float16"):
        lively(weight_dtype="int8", softmax_compute_type="float16").decoding_cell()
    with pytest.raises(ConfigError, match="compute_dtype float32, got float16"):
        lively(weight_dtype="int8", compute_dtype="float16").decoding_cell()
    with pytest.raises(ConfigError, match="weight_dtype"):
        tiny_config("gqa", weight_dtype="int4")
    monkeypatch.setenv(library.ENVIRONMENT, "0")
    with pytest.raises(DeviceError, match=r"weight_dtype: int8 needs the native kernels, and MINDFORMERS_NATIVE=0"):
        lively(weight_dtype="int8").generate(PROMPTS[0], **GREEDY)
