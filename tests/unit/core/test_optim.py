# SPDX-License-Identifier: Apache-2.0
"""Both optimizers against their formulas in float64, in every form a caller can use them in."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from mindformers.core.lr import LinearWithWarmUpLR
from mindformers.core.optim import AdamW, FP32StateAdamWeightDecay
from mindformers.core.param_groups import group_parameters
from mindformers.errors import ConfigError
from mindformers.registry import MindFormerModuleType, MindFormerRegister

SHAPES = {"embedding": (5, 3), "wq": (3, 4), "norm": (4,), "out": (2, 2, 2)}
BETAS = (0.9, 0.95)


@pytest.fixture(autouse=True)
def _graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


def make_params(dtype=ms.float32, seed=0):
    rng = np.random.default_rng(seed)
    return [Parameter(Tensor(rng.standard_normal(s), dtype), name=name) for name, s in SHAPES.items()]


def gradients(step, dtype=ms.float32):
    rng = np.random.default_rng(100 + step)
    return tuple(Tensor(rng.standard_normal(s), dtype) for s in SHAPES.values())


class Reference:
    """Both formulas of the docstrings, one parameter at a time, in float64."""

    def __init__(self, params, eps, corrected):
        self.p = [p.asnumpy().astype(np.float64) for p in params]
        self.m = [np.zeros_like(p) for p in self.p]
        self.v = [np.zeros_like(p) for p in self.p]
        self.eps, self.corrected, self.t = eps, corrected, 0

    def step(self, grads, lrs, decays):
        self.t += 1
        c1, c2 = (1 - BETAS[0] ** self.t, 1 - BETAS[1] ** self.t) if self.corrected else (1.0, 1.0)
        for i, grad in enumerate(g.asnumpy().astype(np.float64) for g in grads):
            self.m[i] = BETAS[0] * self.m[i] + (1 - BETAS[0]) * grad
            self.v[i] = BETAS[1] * self.v[i] + (1 - BETAS[1]) * grad**2
            update = self.m[i] / c1 / (np.sqrt(self.v[i] / c2) + self.eps)
            self.p[i] = self.p[i] - lrs[i] * (update + decays[i] * self.p[i])


def assert_follows(optimizer, params, reference, lr_of_step, decays, steps=6, dtype=ms.float32, tolerance=2e-6):
    for step in range(steps):
        grads = gradients(step, dtype)
        optimizer(grads)
        reference.step(grads, lr_of_step(step), decays)
        for param, expected in zip(params, reference.p, strict=True):
            np.testing.assert_allclose(param.asnumpy(), expected, rtol=tolerance, atol=tolerance, err_msg=param.name)


def both(eps=1e-6):
    return [
        pytest.param(FP32StateAdamWeightDecay, False, id="no bias correction"),
        pytest.param(AdamW, True, id="bias correction"),
    ]


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"])
@pytest.mark.parametrize(("cls", "corrected"), both())
def test_plain_parameters(cls, corrected, mode):
    ms.set_context(mode=mode)
    params = make_params()
    optimizer = cls(params, 1e-2, *BETAS, eps=1e-6, weight_decay=0.1)
    assert_follows(optimizer, params, Reference(params, 1e-6, corrected), lambda _: [1e-2] * 4, [0.1] * 4)


@pytest.mark.parametrize(("cls", "corrected"), both())
def test_groups_with_own_decay_and_schedule(cls, corrected):
    params = make_params()
    groups = [
        {"params": [params[2]], "weight_decay": 0.0},
        {"params": [params[0], params[1]], "weight_decay": 0.1},
        {"params": [params[3]]},
        {"order_params": params},
    ]
    optimizer = cls(groups, LinearWithWarmUpLR(1e-2, 2, 8), *BETAS, eps=1e-6, weight_decay=0.3)
    schedule = [0.0, 5e-3, 1e-2, 1e-2 * 5 / 6, 1e-2 * 4 / 6, 1e-2 * 3 / 6]
    reference = Reference(params, 1e-6, corrected)
    assert_follows(optimizer, params, reference, lambda step: [schedule[step]] * 4, [0.1, 0.1, 0.0, 0.3])


@pytest.mark.parametrize(("cls", "corrected"), both())
def test_groups_with_own_learning_rates(cls, corrected):
    params = make_params()
    groups = [
        {"params": params[:2], "lr": LinearWithWarmUpLR(1e-2, 0, 8), "weight_decay": 0.1},
        {"params": params[2:], "lr": 3e-3},
    ]
    optimizer = cls(groups, 1e-3, *BETAS, eps=1e-6, weight_decay=0.2)
    rates = lambda step: [1e-2 * (1 - step / 8)] * 2 + [3e-3] * 2  # noqa: E731
    assert_follows(optimizer, params, Reference(params, 1e-6, corrected), rates, [0.1, 0.1, 0.2, 0.2])


class HalvingDecay(nn.Cell):
    def construct(self, step):
        return 0.2 / (1.0 + ops.cast(ops.reshape(step, ()), ms.float32))


def test_decay_may_depend_on_the_step():
    params = make_params()
    optimizer = AdamW(params, 1e-2, *BETAS, eps=1e-6, weight_decay=HalvingDecay())
    reference = Reference(params, 1e-6, True)
    for step in range(4):
        optimizer(gradients(step))
        reference.step(gradients(step), [1e-2] * 4, [0.2 / (1 + step)] * 4)
    np.testing.assert_allclose(params[1].asnumpy(), reference.p[1], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("cls", "corrected"), both())
def test_half_precision_parameters_are_updated_in_fp32_and_rounded_once(cls, corrected, grouped):
    """Each step starts from the rounded parameter and must end within half a unit of the exact result."""
    params = make_params(ms.float16)
    decays = [0.1, 0.0, 0.0, 0.0] if grouped else [0.1] * 4
    given = [{"params": params[:1], "weight_decay": 0.1}, {"params": params[1:]}] if grouped else params
    optimizer = cls(given, 1e-2, *BETAS, eps=1e-6, weight_decay=0.0 if grouped else 0.1)
    assert {m.dtype for m in (*optimizer.moments1, *optimizer.moments2)} == {ms.float32}
    reference = Reference(params, 1e-6, corrected)
    for step in range(5):
        grads = gradients(step, ms.float16)
        reference.p = [p.asnumpy().astype(np.float64) for p in params]
        optimizer(grads)
        reference.step(grads, [1e-2] * 4, decays)
        for param, exact in zip(params, reference.p, strict=True):
            assert param.dtype == ms.float16
            got = param.asnumpy()
            half_unit = 0.5 * np.spacing(np.abs(exact).astype(np.float16)).astype(np.float64)
            assert (np.abs(got - exact) <= half_unit * 1.01 + 1e-7).all()
    for moment, exact in zip(optimizer.moments2, reference.v, strict=True):
        np.testing.assert_allclose(moment.asnumpy(), exact, rtol=1e-5)


def test_mixed_types_and_half_gradients_of_fp32_parameters():
    params = make_params()
    params[1] = Parameter(params[1].astype(ms.float16), name="wq")
    optimizer = AdamW(params, 1e-2, *BETAS, eps=1e-6, weight_decay=0.1)
    reference = Reference(params, 1e-6, True)
    for step in range(3):
        optimizer(gradients(step, ms.float16))
        reference.step(gradients(step, ms.float16), [1e-2] * 4, [0.1] * 4)
    np.testing.assert_allclose(params[0].asnumpy(), reference.p[0], rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(params[1].asnumpy(), reference.p[1], rtol=3e-3, atol=3e-3)


@pytest.mark.parametrize("decays", [(0.1, 0.0), (0.0, 0.0)])
def test_ascend_kernel_path_gives_the_same_numbers(decays):
    """The path taken on Ascend, by the same kernel's CPU version."""
    params = make_params()
    groups = [{"params": params[:2], "weight_decay": decays[0]}, {"params": params[2:], "weight_decay": decays[1]}]
    optimizer = FP32StateAdamWeightDecay(groups, 1e-2, *BETAS, eps=1e-6)
    optimizer._use_weight_decay_kernel((True,) * 4)
    reference = Reference(params, 1e-6, False)
    wanted = [decays[0]] * 2 + [decays[1]] * 2
    assert_follows(optimizer, params, reference, lambda _: [1e-2] * 4, wanted, tolerance=1e-5)


def test_equals_mindspores_own_adam_weight_decay():
    ours, theirs = make_params(), make_params()
    first = FP32StateAdamWeightDecay(ours, 1e-2, 0.9, 0.95, 1e-6, 0.1)
    second = nn.AdamWeightDecay(theirs, 1e-2, 0.9, 0.95, 1e-6, 0.1)
    for step in range(4):
        first(gradients(step))
        second(gradients(step))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.asnumpy(), other.asnumpy(), rtol=1e-5, atol=1e-6)


class TrainStep(nn.Cell):
    """An optimizer inside a compiled step, skipped under a condition, as the train cell does."""

    def __init__(self, optimizer):
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer

    def construct(self, grads, skip):
        lr = self.optimizer.get_lr()
        done = ()
        if not skip:
            done = self.optimizer(grads)
        return ops.depend(lr, done)  # without it MindSpore drops the branch when only lr is returned


@pytest.mark.parametrize("cls", [FP32StateAdamWeightDecay, AdamW])
def test_inside_a_compiled_step_and_skipped(cls):
    params, expected = make_params(), make_params()
    cell = TrainStep(cls(params, LinearWithWarmUpLR(1e-2, 0, 8), weight_decay=0.1))
    alone = cls(expected, LinearWithWarmUpLR(1e-2, 0, 8), weight_decay=0.1)
    rates = []
    for step, skip in enumerate([False, True, False]):
        rates.append(float(cell(ms.mutable(gradients(step)), Tensor(skip)).asnumpy()))
        if not skip:
            alone(gradients(step))
    # a skipped step leaves the step count, and with it rate and bias correction, where they were
    np.testing.assert_allclose(rates, [1e-2, 1e-2 * 7 / 8, 1e-2 * 7 / 8], rtol=1e-6)
    assert int(cell.optimizer.global_step.asnumpy()[0]) == 2
    for param, other in zip(params, expected, strict=True):
        np.testing.assert_array_equal(param.asnumpy(), other.asnumpy())


@pytest.mark.parametrize("cls", [FP32StateAdamWeightDecay, AdamW])
def test_state_by_name_resumes_bit_exactly(cls):
    def build():
        params = make_params()
        return params, cls(params, LinearWithWarmUpLR(1e-2, 2, 20), weight_decay=0.1)

    params, optimizer = build()
    names = {name for name, _ in optimizer.parameters_and_names()}
    assert {"global_step", *(f"adam_{x}.{name}" for x in "mv" for name in SHAPES)} <= names
    for step in range(3):
        optimizer(gradients(step))
    saved = {p.name: p.asnumpy().copy() for p in (*params, *optimizer.get_parameters())}
    for step in range(3, 6):
        optimizer(gradients(step))

    resumed, second = build()
    for param in (*resumed, *second.get_parameters()):
        param.set_data(Tensor(saved[param.name]))
    for step in range(3, 6):
        second(gradients(step))
    for param, other in zip(params, resumed, strict=True):
        np.testing.assert_array_equal(param.asnumpy(), other.asnumpy())


@pytest.mark.parametrize(("start", "beta2"), [(0, 0.999999), (0, 0.999), (1, 0.999), (999, 0.999), (100_000, 0.999)])
def test_bias_correction_is_exact(start, beta2):
    """1 - beta2^t computed from fp32 powers would be off by 1% at step 1 of beta2 0.999999."""
    param = Parameter(Tensor([1.0], ms.float32), name="w")
    optimizer = AdamW([param], 1.0, beta1=0.9, beta2=beta2, eps=1e-12, weight_decay=0.0)
    optimizer.global_step.set_data(Tensor([start], ms.int32))
    optimizer((Tensor([1.0], ms.float32),))
    c1, c2 = 1 - 0.9 ** (start + 1), 1 - beta2 ** (start + 1)
    expected = 0.1 / c1 / np.sqrt((1 - beta2) / c2)
    np.testing.assert_allclose(1.0 - param.asnumpy()[0], expected, rtol=3e-5 if start else 1e-6)


def test_zero_betas_are_sign_descent():
    param = Parameter(Tensor([1.0, -1.0], ms.float32), name="w")
    AdamW([param], 0.5, 0.0, 0.0, eps=1e-12, weight_decay=0.0)((Tensor([3.0, -0.01], ms.float32),))
    np.testing.assert_allclose(param.asnumpy(), [0.5, -0.5], rtol=1e-6)


@pytest.mark.parametrize("cls", [FP32StateAdamWeightDecay, AdamW])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta1": 1.0}, r"beta1 must be a number in \[0, 1\), got 1.0"),
        ({"beta2": -0.1}, "beta2"),
        ({"beta1": "0.9"}, "beta1 .* got '0.9'"),
        ({"eps": 0}, "eps must be a positive number, got 0"),
        ({"eps": float("nan")}, "eps"),
        ({"weight_decay": -0.1}, "weight_decay must be a number, not negative, got -0.1"),
        ({"weight_decay": True}, "weight_decay"),
        ({"learning_rate": -1e-3}, "learning_rate"),
        ({"learning_rate": "1e-3"}, "learning_rate .* got '1e-3'"),
        ({"learning_rate": None}, "learning_rate"),
        ({"params": []}, "no parameters to train"),
        ({"params": [{"params": []}]}, "no parameters to train"),
    ],
)
def test_bad_arguments_are_named(cls, change, message):
    with pytest.raises(ConfigError, match=f"{cls.__name__}: {message}"):
        cls(**({"params": make_params()} | change))


def test_bad_group_values_are_named():
    with pytest.raises(ConfigError, match="weight_decay"):
        AdamW([{"params": make_params(), "weight_decay": -1.0}])


def test_betas_replace_beta1_and_beta2():
    optimizer = AdamW(make_params(), betas=(0.5, 0.25))
    assert (float(optimizer.beta1.asnumpy()), float(optimizer.beta2.asnumpy())) == (0.5, 0.25)
    for wrong in (0.9, (0.9,), [0.9, "x"], "ab"):
        with pytest.raises(ConfigError, match="beta"):
            AdamW(make_params(), betas=wrong)


def test_registered_under_old_names():
    get = lambda name: MindFormerRegister.get_cls(MindFormerModuleType.OPTIMIZER, name)  # noqa: E731
    assert get("fp32_adamw") is get("FP32StateAdamWeightDecay") is FP32StateAdamWeightDecay
    assert get("adamw") is get("AdamW") is AdamW
    assert get("AdamWeightDecay") is nn.AdamWeightDecay


class Toy(nn.Cell):
    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(0)
        shapes = {"norm1": (3,), "wq": (3, 3), "proj_bias": (2, 2), "frozen": (3, 3), "wo": (3, 3), "norm2": (3,)}
        for name, shape in shapes.items():
            setattr(self, name, Parameter(Tensor(rng.standard_normal(shape), ms.float32), name=name))
        self.frozen.requires_grad = False


class TestGroupParameters:
    def test_what_decays_and_in_which_order(self):
        network = Toy()
        groups = group_parameters(network, 0.1)
        names = [[p.name for p in group.get("params", ())] for group in groups]
        assert names == [["norm1", "proj_bias", "norm2"], ["wq", "wo"], []]
        assert [group["weight_decay"] for group in groups[:2]] == [0.0, 0.1]  # no decay first must not silence decay
        order = ["norm1", "wq", "proj_bias", "wo", "norm2"]
        assert [p.name for p in groups[2]["order_params"]] == order
        assert [p.name for p in AdamW(groups).parameters] == order

    def test_without_decay_one_group(self):
        assert [g.get("weight_decay") for g in group_parameters(Toy(), 0.0)] == [0.0, None]

    def test_frozen_network_is_an_error_of_the_optimizer(self):
        network = Toy()
        for param in network.get_parameters():
            param.requires_grad = False
        assert group_parameters(network, 0.1) == []
        with pytest.raises(ConfigError, match="frozen"):
            AdamW(group_parameters(network, 0.1))

    def test_decay_reaches_only_its_group(self):
        network = Toy()
        before = {p.name: p.asnumpy().copy() for p in network.get_parameters()}
        optimizer = FP32StateAdamWeightDecay(group_parameters(network, 0.5), 0.1)
        optimizer(tuple(ops.zeros_like(p) for p in optimizer.parameters))
        for param in network.get_parameters():
            factor = 0.95 if param.name in ("wq", "wo") else 1.0
            np.testing.assert_allclose(param.asnumpy(), before[param.name] * factor, rtol=1e-6)
