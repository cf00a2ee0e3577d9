# SPDX-License-Identifier: Apache-2.0
"""generate: same tokens alone, in a batch, with and without cache; limits, seeds, bad input."""

import threading
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindformers.errors import ConfigError, DataError
from mindformers.generation import BaseStreamer, GenerationConfig, TextIteratorStreamer
from mindformers.generation.session import window
from mindformers.models.llama.llama import LlamaForCausalLM
from tests.parity.llama_cases import tiny_config

GREEDY = {"do_sample": False, "use_past": True, "eos_token_id": []}
DRAWN = {"do_sample": True, "use_past": True, "eos_token_id": [], "seed": 3}


def same(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    """Equal rows."""
    return len(left) == len(right) and all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def compiled(network: Any) -> int:
    """Graphs compiled by the sessions that exist."""
    return sum(session.num_compiled() for session in network._decode_sessions.values())


def test_batch_equals_single_at_many_lengths(network: Any) -> None:
    rng = np.random.default_rng(0)
    for lengths in ((1, 2, 3, 5), (7, 20, 11, 13), (25, 4, 19, 1)):
        rows = [rng.integers(3, 101, length).tolist() for length in lengths]
        together = network.generate(rows, max_length=32, **GREEDY)
        alone = [network.generate(row, max_length=32, **GREEDY)[0] for row in rows]
        assert same(together, alone)
        assert [len(row) for row in together] == [32] * 4
        assert all(row.dtype == np.int32 for row in together)
    assert len(set(np.concatenate(together).tolist())) > 20  # lively enough to prove something


@pytest.mark.parametrize(
    "settings",
    [GREEDY, {**GREEDY, "repetition_penalty": 1.7}, {**DRAWN, "top_k": 9, "top_p": 0.9, "repetition_penalty": 1.3}],
)
def test_no_cache_gives_the_same_tokens(network: Any, prompts: list, settings: dict) -> None:
    cached = network.generate(prompts, max_new_tokens=9, **settings)
    full = network.generate(prompts, max_new_tokens=9, **{**settings, "use_past": False})
    assert same(cached, full)
    assert [len(row) for row in cached] == [len(prompt) + 9 for prompt in prompts]


def test_compiled_whatever_the_mode(network: Any, prompts: list) -> None:
    expected = network.generate(prompts[:3], max_new_tokens=9, **GREEDY)
    network._decode_sessions.clear()
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        found = network.generate(prompts[:3], max_new_tokens=9, **GREEDY)
        assert ms.get_context("mode") == ms.PYNATIVE_MODE
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    assert same(found, expected)
    assert compiled(network) == 2


def test_short_prompts_of_a_wide_model_are_filled_up() -> None:
    """Products with 9 to 63 rows are slow; what is filled in must change nothing."""
    network = LlamaForCausalLM(tiny_config("gqa", hidden_size=516, seq_length=48, max_decode_length=48))
    rows = [[5, 6, 7, 8, 9, 10, 11], [9, 8, 7]]
    cached = network.generate(rows, max_new_tokens=6, **GREEDY)
    assert same(cached, network.generate(rows, max_new_tokens=6, **{**GREEDY, "use_past": False}))
    session = next(iter(network._decode_sessions.values()))
    widths = {given: session._lengthened(np.ones((2, given), np.int32)).shape[1] for given in (1, 4, 5, 7, 31, 33)}
    assert widths == {1: 1, 4: 4, 5: 32, 7: 32, 31: 32, 33: 33}


def test_nothing_is_compiled_again(network: Any) -> None:
    settings = {**DRAWN, "max_new_tokens": 3}
    network.generate([5, 6, 7], **settings)
    count = compiled(network)
    for length in range(1, 25, 5):
        network.generate(list(range(3, 3 + length)), **settings)
    for changes in ({"temperature": 0.3}, {"top_k": 90}, {"top_p": 0.2}, {"seed": 9}, {"eos_token_id": 4}):
        network.generate([5, 6, 7], **{**settings, **changes})
    assert compiled(network) == count


def test_seed_rules_and_the_global_generator(network: Any) -> None:
    settings = {key: value for key, value in DRAWN.items() if key != "seed"} | {"max_new_tokens": 20, "top_k": 50}
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first = network.generate([5], seed=1, **settings)
    assert same(first, network.generate([5], seed=1, **settings))
    assert same(first, network.generate([5], generation_config=GenerationConfig(seed=1, **settings)))
    assert not same(first, network.generate([5], seed=2, **settings))
    assert not same(network.generate([5], **settings), network.generate([5], **settings))
    np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_rows_of_a_batch_are_drawn_apart(network: Any, prompts: list) -> None:
    settings = {**DRAWN, "max_new_tokens": 10, "top_k": 40}
    rows = network.generate([prompts[2]] * 4, **settings)
    assert not np.array_equal(rows[0], rows[1])
    for prompt in prompts:  # the first row of a batch gets what it gets alone
        batch = network.generate([prompt, *prompts[:3]], **settings)
        assert np.array_equal(batch[0], network.generate(prompt, **settings)[0])


def test_tiny_temperature_and_top_k_one_are_greedy(network: Any) -> None:
    greedy = network.generate([5, 9], max_new_tokens=9, **GREEDY)
    assert same(greedy, network.generate([5, 9], max_new_tokens=9, **DRAWN, temperature=1e-6))
    assert same(greedy, network.generate([5, 9], max_new_tokens=9, **DRAWN, top_k=1))


def test_end_tokens(network: Any, prompts: list) -> None:
    rows = network.generate(prompts, max_new_tokens=12, **GREEDY)
    new = [row[len(prompt) :].tolist() for row, prompt in zip(rows, prompts, strict=True)]
    ends = [new[0][2], new[1][5]]
    stopped = network.generate(prompts, max_new_tokens=12, **{**GREEDY, "eos_token_id": ends})
    for row, prompt, tokens in zip(stopped, prompts, new, strict=True):
        places = [i for i, token in enumerate(tokens) if token in ends]
        expected = tokens[: places[0] + 1] if places else tokens
        assert row[len(prompt) :].tolist() == expected
    assert len(stopped[0]) <= len(prompts[0]) + 3


def test_forms_of_input(network: Any) -> None:
    expected = network.generate([5, 9, 7], max_new_tokens=4, **GREEDY)
    forms = ([[5, 9, 7]], np.array([5, 9, 7]), np.array([[5, 9, 7, 0, 0]]), Tensor([[5, 9, 7]], ms.int32), (5, 9, 7))
    for form in forms:
        assert same(expected, network.generate(form, max_new_tokens=4, **GREEDY))


def test_penalty_does_not_see_padding(network: Any) -> None:
    settings = {**GREEDY, "repetition_penalty": 5.0, "max_new_tokens": 12}
    rows = [[5], [6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], [7] * 3, [8, 9]]
    assert same(network.generate(rows, **settings), [network.generate(row, **settings)[0] for row in rows])
    plain = network.generate([5], max_new_tokens=12, **GREEDY)
    assert not same(plain, network.generate([5], **settings))


def test_own_processor(network: Any) -> None:
    free = network.generate([5, 9], max_new_tokens=6, **GREEDY)[0]
    shapes = []

    def ban(input_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        shapes.append((input_ids.shape, logits.shape))
        logits = logits.copy()
        logits[:, free[2]] = -50000
        return logits

    class Ban:
        """The same as an object."""

        __call__ = staticmethod(ban)

    banned = network.generate([5, 9], max_new_tokens=6, logits_processor=[Ban()], **GREEDY)[0]
    assert free[2] not in banned[2:]
    assert shapes == [((1, n), (1, 101)) for n in range(2, 8)]


def test_host_and_graph_choose_alike(network: Any, prompts: list) -> None:
    class Nothing:
        """Leaves scores alone."""

        def __call__(self, input_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
            """See LogitsProcessor."""
            return logits

    for settings in ({**DRAWN, "top_k": 12, "temperature": 1.4}, {**GREEDY, "repetition_penalty": 1.4}):
        graph = network.generate(prompts, max_new_tokens=8, **settings)
        assert same(graph, network.generate(prompts, max_new_tokens=8, logits_processor=[Nothing()], **settings))


def test_training_flag_names_and_new_weights(network: Any) -> None:
    names = [parameter.name for parameter in network.get_parameters()]
    before = network.generate([5, 9], max_new_tokens=6, **GREEDY)
    network.set_train(True)
    assert same(before, network.generate([5, 9], max_new_tokens=6, **GREEDY))
    assert network.training
    network.set_train(False)
    head = network.lm_head.weight
    old = head.asnumpy().copy()
    head.set_data(Tensor(old[::-1].copy()))
    changed = network.generate([5, 9], max_new_tokens=1, **GREEDY)
    head.set_data(Tensor(old))
    assert changed[0][2] == 100 - before[0][2]
    assert same(before, network.generate([5, 9], max_new_tokens=6, **GREEDY))
    assert names == [parameter.name for parameter in network.get_parameters()]


class Recorder(BaseStreamer):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[list[int]] = []
        self.ended = 0

    def put(self, value: np.ndarray) -> None:
        """See BaseStreamer."""
        self.got.append(value.tolist())

    def end(self) -> None:
        """See BaseStreamer."""
        self.ended += 1


def test_streamer_gets_prompt_then_tokens(network: Any) -> None:
    recorder = Recorder()
    row = network.generate([[5, 9, 0, 0]], max_new_tokens=3, streamer=recorder, **GREEDY)[0].tolist()
    assert recorder.got == [[5, 9], [row[2]], [row[3]], [row[4]]]
    assert recorder.ended == 1
    with pytest.raises(ConfigError, match="one sequence"):
        network.generate([[5], [6]], max_new_tokens=3, streamer=recorder, **GREEDY)


def test_error_in_a_thread_reaches_the_reader(network: Any) -> None:
    streamer = TextIteratorStreamer(timeout=600)
    errors = []

    def produce() -> None:
        try:
            network.generate([5], max_new_token=3, streamer=streamer)
        except ConfigError as error:
            errors.append(error)

    thread = threading.Thread(target=produce)
    thread.start()
    with pytest.raises(ConfigError, match="max_new_tokens"):
        list(streamer)
    thread.join()
    assert len(errors) == 1


@pytest.mark.parametrize(
    ("ids", "settings", "error", "text"),
    [
        ([], {}, DataError, "empty"),
        ([[5], []], {}, DataError, "prompt 1 is empty"),
        ([0, 0], {}, DataError, "empty"),
        ([5, 101], {}, DataError, "101.*0 to 100"),
        ([5, -1], {}, DataError, "-1"),
        ([5.5], {}, DataError, "integer"),
        ("text", {}, DataError, "str"),
        ([[[5]]], {}, DataError, "shape"),
        ([[5, [6]]], {}, DataError, "flat"),
        ([5] * 8, {"max_length": 8}, ConfigError, "max_length 8"),
        ([5] * 32, {"max_new_tokens": 1}, ConfigError, "seq_length 32"),
        ([5], {"temprature": 1.0}, ConfigError, "temperature"),
        ([5], {"top_p": 2.0}, ConfigError, "top_p"),
        ([5], {"generation_config": {"top_p": 0.5}}, ConfigError, "GenerationConfig"),
    ],
)
def test_mistakes(network: Any, ids: Any, settings: dict, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        network.generate(ids, **settings)


def test_too_many_tokens_stop_at_the_window(network: Any) -> None:
    assert len(network.generate([5] * 30, max_new_tokens=500, **GREEDY)[0]) == 32


def test_window() -> None:
    assert [window(256, 20), window(512, 512), window(4096, 20), window(4096, 513), window(4096, 4096)] == [
        256, 512, 512, 1024, 4096,
    ]  # fmt: skip
    assert window(3000, 2500) == 3000


def test_pynative_mode(network: Any) -> None:
    expected = network.generate([5, 9], max_new_tokens=4, **GREEDY)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        assert same(expected, network.generate([5, 9], max_new_tokens=4, **GREEDY))
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
