# SPDX-License-Identifier: Apache-2.0
"""Stop strings over pieces, and an engine whose model fails."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindformers.generation.generation_config import GenerationConfig
from mindformers.serve.engine import Engine, QueueFullError
from mindformers.serve.request import Sequence, StopText


@given(
    st.lists(st.text("ab\u4f60", max_size=4), max_size=12),
    st.lists(st.text("ab\u4f60", min_size=1, max_size=4), max_size=3),
)
def test_stop_text_cuts_where_the_whole_text_would_be_cut(pieces, stops):
    stopper = StopText(tuple(stops))
    out, stopped = "", False
    for piece in pieces:
        text, stopped = stopper.put(piece)
        out += text
        if stopped:
            break
    out += "" if stopped else stopper.flush()
    seen = ""
    for piece in pieces:  # the first moment at which a stop string is complete decides
        seen += piece
        found = [place for stop in stops if (place := seen.find(stop)) >= 0]
        if found:
            assert stopped
            assert out == seen[: min(found)]
            return
    assert (out, stopped) == (seen, False)


class Words:
    """A decoder that gives a word per token."""

    def put(self, ids):
        return "".join(f"{i} " for i in ids)

    def flush(self):
        return ""


class FakeModel:
    """Counts upwards; token 13 brings it down."""

    num_slots = 2
    vocab_size = 50

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()

    def read_prompt(self, ids, slot):
        self.gate.wait(20)
        logits = np.zeros(50, np.float32)
        logits[ids[-1] + 1] = 1
        return logits

    def next_tokens(self, tokens, positions):
        self.gate.wait(20)
        if 13 in tokens:
            raise RuntimeError("device fault")
        return tokens + 1


def sequence(start: int, new: int, **kwargs):
    pieces: list = []
    done = threading.Event()

    def deliver(piece):
        pieces.append(piece)
        if piece.finish:
            done.set()

    config = GenerationConfig(max_new_tokens=new, eos_token_id=40)
    made = Sequence(np.array([start], np.int32), config, Words(), deliver, **kwargs)
    made.wait = lambda: done.wait(20) and pieces
    return made


@pytest.fixture
def model():
    return FakeModel()


@pytest.fixture
def engine(model):
    engine = Engine(lambda: model, max_waiting=3)
    engine.start()
    yield engine
    model.gate.set()
    engine.stop()


def test_more_sequences_than_slots(engine):
    made = [sequence(start, 4) for start in (1, 5, 20, 25)]
    engine.submit(*made)
    for start, one in zip((1, 5, 20, 25), made, strict=True):
        pieces = one.wait()
        assert [piece.token for piece in pieces] == [start + i for i in (1, 2, 3, 4)]
        assert "".join(piece.text for piece in pieces) == "".join(f"{start + i} " for i in (1, 2, 3, 4))
        assert pieces[-1].finish == "length"
    assert engine.counters.generated_tokens == 16
    assert engine.counters.prompt_tokens == 4


def test_end_token_has_no_text(engine):
    one = sequence(37, 20)
    engine.submit(one)
    pieces = one.wait()
    assert [piece.token for piece in pieces] == [38, 39, 40]
    assert "".join(piece.text for piece in pieces) == "38 39 "
    assert pieces[-1].finish == "stop"


def test_a_fault_ends_the_answers_and_not_the_service(engine):
    broken, bystander = sequence(10, 20), sequence(20, 8)
    engine.submit(broken, bystander)
    assert broken.wait()[-1].finish == "error"
    bystander.wait()
    later = sequence(1, 3)
    engine.submit(later)
    assert later.wait()[-1].finish == "length"
    assert engine.alive
    assert engine.counters.failed >= 1


def test_cancel_and_queue_limit(engine, model):
    model.gate.clear()  # the engine stands still in its first prompt
    first = sequence(1, 3)
    engine.submit(first)
    waiting = [sequence(20 + i, 3) for i in range(4)]
    engine.submit(*waiting)
    with pytest.raises(QueueFullError):
        engine.submit(*(sequence(1, 1) for _ in range(5)))
    assert engine.counters.rejected == 5
    waiting[0].cancel()
    waiting[1].deadline = 0.0
    model.gate.set()
    assert [waiting[i].wait()[-1].finish for i in range(4)] == ["cancelled", "timeout", "length", "length"]
    assert first.wait()[-1].finish == "length"
    assert (engine.counters.cancelled, engine.counters.timeouts) == (1, 1)
    assert engine.num_waiting == 0


def test_a_model_that_cannot_be_built_is_told_to_the_caller():
    def fail():
        raise ValueError("no weights")

    with pytest.raises(ValueError, match=r"no weights"):
        Engine(fail).start()


def test_stopping_ends_what_waits(model):
    engine = Engine(lambda: model)
    engine.start()
    model.gate.clear()
    made = [sequence(1, 30), sequence(5, 30), sequence(8, 30)]
    engine.submit(*made)
    stopper = threading.Thread(target=engine.stop)
    stopper.start()
    model.gate.set()
    stopper.join(20)
    assert all(one.wait()[-1].finish == "cancelled" for one in made)
