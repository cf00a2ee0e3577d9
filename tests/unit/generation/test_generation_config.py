# SPDX-License-Identifier: Apache-2.0
"""GenerationConfig: names, checks, precedence."""

import logging
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mindformers.errors import ConfigError
from mindformers.generation import GenerationConfig


def test_defaults_and_alias() -> None:
    config = GenerationConfig(max_decode_length=40)
    assert (config.max_length, config.max_decode_length) == (40, 40)
    assert (config.do_sample, config.top_k, config.top_p, config.temperature) == (False, 50, 1.0, 1.0)
    assert GenerationConfig().max_length == 20


def test_round_trip() -> None:
    config = GenerationConfig(max_new_tokens=3, eos_token_id=[2, 7], seed=np.int64(4), top_p=0.5)
    assert GenerationConfig.from_dict(config.to_dict()) == config
    assert config.to_dict()["seed"] == 4
    assert config.eos_ids() == (2, 7)


def test_unused_names_are_returned() -> None:
    config = GenerationConfig()
    assert config.update(top_k=3, colour="red") == {"colour": "red"}
    assert config.top_k == 3
    same, unused = GenerationConfig.from_dict({"top_k": 4, "x": 1}, return_unused_kwargs=True, top_p=0.5)
    assert (same.top_k, same.top_p, unused) == (4, 0.5, {"x": 1})


@pytest.mark.parametrize(
    "make",
    [
        lambda: GenerationConfig(temprature=1.0),
        lambda: GenerationConfig.from_dict({"temprature": 1.0}),
        lambda: setattr(GenerationConfig(), "temprature", 1.0),
    ],
)
def test_unknown_name_suggests_the_nearest(make: Any) -> None:
    with pytest.raises(ConfigError, match="temperature"):
        make()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0),
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "0.7"),
        ("temperature", True),
        ("temperature", None),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_k", True),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("repetition_penalty", 0),
        ("max_length", 0),
        ("max_length", None),
        ("max_new_tokens", 0),
        ("eos_token_id", -1),
        ("eos_token_id", [2, "a"]),
        ("do_sample", "False"),
        ("do_sample", 1),
        ("seed", -1),
        ("seed", 1.5),
    ],
)
def test_refused_values_leave_the_config_alone(name: str, value: Any) -> None:
    config = GenerationConfig()
    with pytest.raises(ConfigError, match=name):
        config.update(top_p=0.5, **{name: value}) if name != "top_p" else config.update(top_p=value)
    assert config == GenerationConfig()


def test_new_tokens_win_and_it_is_said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("mindformers"), "propagate", True)
    with caplog.at_level(logging.INFO, "mindformers"):
        config = GenerationConfig(max_length=9, max_new_tokens=4)
    assert config.max_new_tokens == 4
    assert "max_new_tokens 4 wins over max_length 9" in caplog.text


def test_a_later_max_length_replaces_new_tokens() -> None:
    config = GenerationConfig(max_new_tokens=4)
    config.update(max_length=12)
    assert (config.max_length, config.max_new_tokens) == (12, None)


def test_both_names_of_max_length_must_agree() -> None:
    with pytest.raises(ConfigError, match="one setting"):
        GenerationConfig(max_length=5, max_decode_length=6)


def test_from_model_config() -> None:
    fields = {"max_decode_length": 64, "top_k": 3, "do_sample": True, "use_past": True}
    model = SimpleNamespace(eos_token_id=2, pad_token_id=0, **fields)
    config = GenerationConfig.from_model_config(model)
    assert (config.max_length, config.top_k, config.do_sample, config.use_past) == (64, 3, True, True)
    assert (config.eos_token_id, config.pad_token_id, config.max_new_tokens) == (2, 0, None)
    assert GenerationConfig.from_model_config({"top_k": 9}).top_k == 9
