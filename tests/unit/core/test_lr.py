# SPDX-License-Identifier: Apache-2.0
"""Every schedule against a closed form in float64, at every step; and the assembly of a schedule from a config."""

import logging
import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from mindformers.core import lr
from mindformers.core.lr import resolve_schedule
from mindformers.errors import ConfigError
from mindformers.registry import MindFormerModuleType, MindFormerRegister

PEAK, WARMUP, TOTAL = 3e-4, 7, 60


@pytest.fixture(autouse=True)
def _graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


def rates(schedule, steps):
    return schedule(Tensor(np.asarray(steps), ms.int32)).asnumpy().astype(np.float64)


def with_warmup(after, init=0.0, warmup=WARMUP):
    return lambda step: init + PEAK * step / warmup if step < warmup else after(step)


def progress(step):
    return (step - WARMUP) / (TOTAL - WARMUP)


def restarts(step, cycles, end):
    if progress(step) >= 1:
        return 0.0
    return end + (PEAK - end) * 0.5 * (1 + math.cos(math.pi * ((cycles * progress(step)) % 1.0)))


CASES = [
    (lr.ConstantWarmUpLR(PEAK, WARMUP), with_warmup(lambda s: PEAK)),
    (lr.ConstantWarmUpLR(PEAK, WARMUP, 1e-5), with_warmup(lambda s: PEAK, init=1e-5)),
    (lr.ConstantWarmUpLR(PEAK), lambda s: PEAK),
    (lr.LinearWithWarmUpLR(PEAK, WARMUP, TOTAL), with_warmup(lambda s: PEAK * max(0.0, 1 - progress(s)))),
    (
        lr.CosineWithWarmUpLR(PEAK, WARMUP, TOTAL, lr_end=3e-5),
        with_warmup(lambda s: 3e-5 + 2.7e-4 * 0.5 * (1 + math.cos(math.pi * progress(s)))),
    ),
    (
        lr.CosineWithWarmUpLR(PEAK, WARMUP, TOTAL, num_cycles=1.5, warmup_lr_init=2e-5),
        with_warmup(lambda s: PEAK * 0.5 * (1 + math.cos(3 * math.pi * progress(s))), init=2e-5),
    ),
    (
        lr.CosineWithRestartsAndWarmUpLR(PEAK, TOTAL, WARMUP, num_cycles=3, lr_end=1e-5),
        with_warmup(lambda s: restarts(s, 3, 1e-5)),
    ),
    (lr.CosineWithRestartsAndWarmUpLR(PEAK, TOTAL, WARMUP), with_warmup(lambda s: restarts(s, 0.5, 0.0))),
    (
        lr.PolynomialWithWarmUpLR(PEAK, WARMUP, TOTAL, lr_end=1e-6, power=2.5),
        with_warmup(lambda s: 1e-6 + (PEAK - 1e-6) * max(0.0, 1 - progress(s)) ** 2.5),
    ),
    (
        lr.WarmUpDecayLR(PEAK, 1e-5, WARMUP, 40, power=2.0),
        with_warmup(lambda s: 1e-5 + (PEAK - 1e-5) * (1 - min(s, 40) / 40) ** 2),
    ),
    (
        lr.WarmUpDecayLR(PEAK, 1e-5, WARMUP, 40, use_cosine=True),
        with_warmup(lambda s: 1e-5 + (PEAK - 1e-5) * 0.5 * (1 + math.cos(math.pi * min(s, 40) / 40))),
    ),
    (lr.LearningRateWiseLayer(lr.ConstantWarmUpLR(PEAK), 0.25), lambda s: PEAK / 4),
]


@pytest.mark.parametrize(
    ("schedule", "formula"), CASES, ids=[type(c[0]).__name__ + str(i) for i, c in enumerate(CASES)]
)
def test_closed_form_at_every_step(schedule, formula):
    steps = range(TOTAL + 15)
    # the third cycle boundary of a restart falls between steps, so rounding cannot land on the other side of a jump
    np.testing.assert_allclose(rates(schedule, steps), [formula(s) for s in steps], rtol=2e-6, atol=2e-7 * PEAK)


def test_first_update_has_rate_of_step_zero():
    assert rates(lr.CosineWithWarmUpLR(PEAK, 10, 100), [0]) == 0.0
    assert rates(lr.CosineWithWarmUpLR(PEAK, 0, 100), [0]) == pytest.approx(PEAK, rel=1e-6)


@pytest.mark.parametrize("total", [2**25, 2**30])
def test_long_schedules_keep_their_last_steps(total):
    """fp32 cannot tell 2^25 - 1 from 2^25; near the end the rate must still fall at every step."""
    schedule = lr.LinearWithWarmUpLR(1.0, 100, total)
    last = rates(schedule, [total - 3, total - 2, total - 1, total])
    np.testing.assert_allclose(last, np.array([3, 2, 1, 0]) / (total - 100), rtol=1e-6, atol=0)
    edge = rates(lr.ConstantWarmUpLR(1.0, total), [total - 1, total])
    np.testing.assert_allclose(edge, [1 - 1 / total, 1.0], rtol=1e-7)


def test_schedule_drives_an_optimizer():
    param = ms.Parameter(Tensor([0.0], ms.float32), name="w")
    optimizer = nn.SGD([param], learning_rate=lr.LinearWithWarmUpLR(1.0, 2, 4))
    seen = []
    for _ in range(5):
        before = float(param.asnumpy()[0])
        optimizer((Tensor([1.0], ms.float32),))
        seen.append(before - float(param.asnumpy()[0]))
    np.testing.assert_allclose(seen, [0.0, 0.5, 1.0, 0.5, 0.0], atol=1e-6)


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
def test_result_keeps_the_shape_of_the_step(mode):
    ms.set_context(mode=mode)
    schedule = lr.CosineWithWarmUpLR(1.0, 2, 4)
    assert schedule(Tensor([1], ms.int32)).shape == (1,)
    assert schedule(Tensor(1, ms.int32)).shape == ()
    assert schedule(Tensor([1], ms.int32)).dtype == ms.float32


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: lr.CosineWithWarmUpLR(-1.0, 1, 10), "learning_rate must be a number, not negative, got -1.0"),
        (lambda: lr.CosineWithWarmUpLR("3e-4", 1, 10), "learning_rate .* got '3e-4'"),
        (lambda: lr.CosineWithWarmUpLR(math.nan, 1, 10), "learning_rate"),
        (lambda: lr.CosineWithWarmUpLR(1.0, 11, 10), "warmup_steps 11 is more than total_steps 10"),
        (lambda: lr.CosineWithWarmUpLR(1.0, -1, 10), "warmup_steps must be a whole number of at least 0"),
        (lambda: lr.CosineWithWarmUpLR(1.0, 1.5, 10), "warmup_steps"),
        (lambda: lr.CosineWithWarmUpLR(1.0, True, 10), "warmup_steps"),
        (lambda: lr.CosineWithWarmUpLR(1.0, 1, -1), "total_steps must be a whole number of at least 1, got -1"),
        (lambda: lr.CosineWithWarmUpLR(1.0, 1, 10, num_cycles=0), "num_cycles"),
        (lambda: lr.PolynomialWithWarmUpLR(1e-8, 1, 10), "lr_end 1e-07 is above learning_rate 1e-08"),
        (lambda: lr.WarmUpDecayLR(1.0, 0.0, 1, 0), "decay_steps"),
        (lambda: lr.LearningRateWiseLayer(lr.ConstantWarmUpLR(1.0), -2), "lr_scale"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


ALIASES = {
    "constant_with_warmup": lr.ConstantWarmUpLR,
    "linear": lr.LinearWithWarmUpLR,
    "cosine": lr.CosineWithWarmUpLR,
    "cosine_with_restarts": lr.CosineWithRestartsAndWarmUpLR,
    "polynomial": lr.PolynomialWithWarmUpLR,
    "WarmUpDecayLR": lr.WarmUpDecayLR,
}


@pytest.mark.parametrize("name", ALIASES)
def test_registered_under_old_names(name):
    assert MindFormerRegister.get_cls(MindFormerModuleType.LR, name) is ALIASES[name]
    assert MindFormerRegister.get_cls(MindFormerModuleType.LR, ALIASES[name].__name__) is ALIASES[name]


class TestResolveSchedule:
    def test_ratio_and_run_length(self):
        options = {"type": "cosine", "learning_rate": 1e-3, "warmup_ratio": 0.03, "total_steps": -1, "lr_end": 1e-5}
        kept = dict(options)
        assert resolve_schedule(options, 1999) == {
            "type": "cosine", "learning_rate": 1e-3, "lr_end": 1e-5, "warmup_steps": 59, "total_steps": 1999,
        }  # fmt: skip
        assert options == kept

    @pytest.mark.parametrize("kind", [*ALIASES][:5])
    def test_result_builds_each_schedule(self, kind):
        kwargs = resolve_schedule({"type": kind, "warmup_ratio": 0.5, "warmup_lr_init": 0.0}, 10, learning_rate=1.0)
        schedule = MindFormerRegister.get_instance_from_cfg(kwargs, MindFormerModuleType.LR)
        np.testing.assert_allclose(rates(schedule, [0, 1, 5]), [0.0, 0.2, 1.0], rtol=1e-5)

    def test_fixed_length_schedule_gets_no_total_steps(self):
        options = {"type": "WarmUpDecayLR", "learning_rate": 1.0, "end_learning_rate": 0.0, "warmup_steps": 2}
        assert "total_steps" not in resolve_schedule(options | {"decay_steps": 5}, 10)

    def test_mindspore_schedule_is_left_alone(self):
        options = {"type": "CosineDecayLR", "min_lr": 0.0, "max_lr": 1.0, "decay_steps": 4}
        assert resolve_schedule(options, 10, learning_rate=0.5) == options

    def test_own_learning_rate_wins_over_the_optimizers(self):
        assert resolve_schedule({"learning_rate": 2.0}, 10, learning_rate=1.0)["learning_rate"] == 2.0
        assert resolve_schedule({"learning_rate": None}, 10, learning_rate=1.0)["learning_rate"] == 1.0

    def test_warmup_epochs(self):
        assert resolve_schedule({"type": "cosine", "warmup_epochs": 1.5}, 100, 20)["warmup_steps"] == 30
        with pytest.raises(ConfigError, match="warmup_epochs needs"):
            resolve_schedule({"type": "cosine", "warmup_epochs": 1}, 100)

    def test_given_total_steps_stay_and_a_short_schedule_is_told(self, caplog):
        logging.getLogger("mindformers").propagate = True
        try:
            with caplog.at_level(logging.WARNING):
                assert resolve_schedule({"total_steps": 50, "warmup_ratio": 0.1}, 40)["warmup_steps"] == 5
                assert not caplog.records
                assert resolve_schedule({"total_steps": 30}, 40)["total_steps"] == 30
        finally:
            logging.getLogger("mindformers").propagate = False
        assert "total_steps is 30, the run has 40" in caplog.text

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"warmup_ratio": 0.1, "warmup_steps": 5}, "warmup_steps and warmup_ratio exclude each other"),
            ({"warmup_ratio": 1.5}, r"warmup_ratio must be a number in \[0, 1\], got 1.5"),
            ({"warmup_ratio": "a"}, "warmup_ratio"),
            ({"warmup_steps": 11}, "warm-up of 11 steps is longer than the 10 steps"),
            ({"total_steps": 0}, "total_steps"),
            ({"type": "cosin"}, "cosin"),
        ],
    )
    def test_refusals(self, options, message):
        with pytest.raises(ConfigError, match=message):
            resolve_schedule(options, 10)
