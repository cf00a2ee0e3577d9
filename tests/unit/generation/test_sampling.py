# SPDX-License-Identifier: Apache-2.0
"""The choice inside the graph against the numpy processors."""

import gc

import numpy as np
import pytest
from mindspore import Tensor, nn

from mindformers.generation import GenerationConfig
from mindformers.generation.logits_process import build_processors, draw
from mindformers.generation.sampling import RANKED_CANDIDATES, Choice, TokenChooser, controls_of

B, V = 3, 1500


class OneChoice(nn.Cell):
    """Forgets, then chooses."""

    def __init__(self, choice: Choice) -> None:
        super().__init__()
        self.chooser = TokenChooser(choice, B, V)

    def construct(self, logits: Tensor, tokens: Tensor, controls: Tensor) -> Tensor:
        """See TokenChooser."""
        self.chooser.forget()
        return self.chooser(logits, tokens, controls)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("greedy", [{}]),
        ("all", [{"top_k": 0}, {"top_k": 0, "temperature": 0.3}, {"top_k": 0, "temperature": 1e-40}]),
        ("top", [{"top_k": 1}, {"top_k": 40, "temperature": 1.7}, {"top_k": 1024, "top_p": 0.9}, {"top_p": 1e-30}]),
        ("sorted", [{"top_k": 0, "top_p": 0.95}, {"top_k": 1400}, {"top_k": 9999, "top_p": 0.5, "temperature": 2.0}]),
    ],
)
@pytest.mark.parametrize("penalty", [1.0, 1.6])
def test_same_tokens_as_numpy_from_one_graph(method: str, settings: list[dict], penalty: float) -> None:
    rng = np.random.default_rng(11)
    gc.collect()  # a cell that dies later takes the argument keys of its look-alikes with it: they compile again
    cell = OneChoice(Choice(method, penalty != 1.0))
    for setting in settings:
        config = GenerationConfig(do_sample=method != "greedy", repetition_penalty=penalty, **setting)
        assert Choice.of(config) == Choice(method, penalty != 1.0)
        agreed = 0
        for _ in range(8):
            logits = (4 * rng.standard_normal((B, V))).astype(np.float32)
            tokens = np.argsort(-logits, axis=1)[:, 0:20:4].astype(np.int32)  # penalise tokens that matter
            uniform = rng.random(B, dtype=np.float32)
            ours = cell(Tensor(logits), Tensor(tokens), Tensor(controls_of(config, V, uniform))).asnumpy()[:, 0]
            scores = build_processors(config, [])(tokens, logits)
            by_rank = method != "all"
            theirs = draw(scores, uniform, by_rank) if config.do_sample else scores.argmax(-1)
            agreed += (ours == theirs).sum()
        assert agreed >= 8 * B - (1 if method in ("all", "sorted") else 0)  # a sum of 1500 fp32 may tip over an edge
    assert len(cell.compile_cache) == 1


def test_extreme_random_numbers_stay_among_the_kept() -> None:
    logits = np.linspace(0, -5, B * V, dtype=np.float32).reshape(B, V)
    logits[:, 5:] = -np.float32(60000)
    cell = OneChoice(Choice("all"))
    config = GenerationConfig(do_sample=True, top_k=0)
    for value, place in ((0.0, 0), (1.0 - 2.0**-22, 4)):
        controls = controls_of(config, V, np.full(B, value, np.float32))
        ids = cell(Tensor(logits), Tensor(np.zeros((B, 1), np.int32)), Tensor(controls)).asnumpy()
        assert (ids == place).all()


def test_graphs_by_setting() -> None:
    def method(**kwargs: object) -> str:
        return Choice.of(GenerationConfig(**kwargs)).method

    assert method() == method(temperature=0.1, top_k=7) == "greedy"
    assert method(do_sample=True, top_k=RANKED_CANDIDATES) == "top"
    assert method(do_sample=True, top_k=RANKED_CANDIDATES + 1) == "sorted"
    assert method(do_sample=True, top_k=0, top_p=0.9) == "sorted"
    assert method(do_sample=True, top_k=0) == "all"
