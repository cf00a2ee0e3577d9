# SPDX-License-Identifier: Apache-2.0
"""Adapters: which layers, which values, what is trained, and what stays as it is."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from mindspore.graph.api import _cell_graph_executor
from mindspore.train.mind_ir_pb2 import ModelProto

from mindformers.checkpoint.names import is_weight_name
from mindformers.core.optim import AdamW
from mindformers.core.param_groups import group_parameters
from mindformers.errors import ConfigError
from mindformers.models.llama.llama import LlamaForCausalLM
from mindformers.modules.linear import Linear
from mindformers.pet import LoraConfig, LoRADense, get_pet_model
from mindformers.pet.adapter import adapted_layers, base_fingerprint, is_adapter_name
from mindformers.pet.dropout import POOL_ROWS, PooledDropout, kept_share, mask_pool
from mindformers.pet.lora import DroppedLowRank
from mindformers.trainer.state import frozen_weights, train_state
from mindformers.wrapper import MFTrainOneStepCell
from tests.parity.llama_cases import fill, records, tiny_config

FP32 = {"param_init_type": "float32", "compute_dtype": "float32"}


def adapted(layers: int = 1, **fields: object) -> LlamaForCausalLM:
    """A tiny model with adapters; weights by formula."""
    ms.set_seed(11)
    network = LlamaForCausalLM(tiny_config("gqa", num_layers=layers))
    fill(network)
    return get_pet_model(network, LoraConfig(**{"lora_rank": 4, "lora_dropout": 0.0, **FP32, **fields}))


def values(network: nn.Cell, wanted: object = None) -> dict[str, np.ndarray]:
    return {p.name: p.asnumpy().copy() for p in network.get_parameters() if wanted is None or wanted(p.name)}


def trainer(network: nn.Cell, **options: object) -> MFTrainOneStepCell:
    optimizer = AdamW(group_parameters(network, 0.0), 1e-2)
    return MFTrainOneStepCell(network.set_train(), optimizer, **options).set_train()


@pytest.fixture(scope="module")
def trained() -> tuple:
    """A network with dropout after three steps: weights before, cell, losses."""
    network = adapted(2, lora_dropout=0.25)
    before = values(network)
    cell = trainer(network, use_clip_grad=True)
    losses = [float(cell(Tensor(records(False)))[0].asnumpy()) for _ in range(3)]
    return before, cell, losses


def test_names_shapes_and_what_is_trained() -> None:
    network = adapted(1)
    plain = values(LlamaForCausalLM(tiny_config("gqa", num_layers=1)))
    shapes = {name: value.shape for name, value in values(network).items()}
    for leaf, rows in (("wq", 72), ("wk", 24), ("wv", 24), ("wo", 72)):
        place = f"model.layers.0.attention.{leaf}"
        assert shapes.pop(f"{place}.mindpet_delta_lora_a") == (4, 72)
        assert shapes.pop(f"{place}.mindpet_delta_lora_b") == (rows, 4)
    assert shapes == {name: value.shape for name, value in plain.items()}
    assert all(is_adapter_name(p.name) for p in network.trainable_params())
    assert len(network.trainable_params()) == 8


def test_new_adapters_change_nothing() -> None:
    plain = LlamaForCausalLM(tiny_config("gqa", num_layers=1))
    fill(plain)
    ids = Tensor(records(False)[:, :-1])
    expected = plain.set_train(False)(ids)[0].asnumpy()
    np.testing.assert_array_equal(adapted(1).set_train(False)(ids)[0].asnumpy(), expected)


def test_training_moves_adapters_only_and_the_base_stays_bit_identical(trained: tuple) -> None:
    before, cell, losses = trained
    after = values(cell.network)
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert changed == {name for name in before if is_adapter_name(name)} | {"dropout_step"}
    assert losses[2] < losses[0]


def test_optimizer_state_and_checkpoints_hold_adapters_only(trained: tuple) -> None:
    _, cell, _ = trained
    state = train_state(cell)
    weights = {name for name in state if is_weight_name(name)}
    assert weights == {name for name in values(cell.network) if is_adapter_name(name)}
    moments = {name for name in state if name.startswith("adam_")}
    assert moments == {f"{kind}.{name}" for name in weights for kind in ("adam_m", "adam_v")}
    assert set(state) - weights - moments == {"global_step", "scale_sense", "dropout_step", "learning_rate"}
    base = values(LlamaForCausalLM(tiny_config("gqa")))
    assert set(frozen_weights(cell)) == set(base)
    assert frozen_weights(LlamaForCausalLM(tiny_config("gqa"))) == {}


def matrix_products(network: nn.Cell) -> int:
    """Matrix products in the compiled graph of one training step."""
    cell = trainer(network)
    phase, _ = _cell_graph_executor.compile(cell, Tensor(records(False)))
    model = ModelProto()
    model.ParseFromString(_cell_graph_executor._get_func_graph_proto(cell, phase, "mind_ir"))
    return sum("::MatMul:" in f"::{node.op_type}" for graph in (model.graph, *model.functions) for node in graph.node)


def test_no_gradient_of_a_frozen_weight_is_computed() -> None:
    frozen, free = (adapted(1, target_modules="w") for _ in range(2))
    weights = [p for p in free.get_parameters() if p.name.endswith(".weight") and p.ndim == 2]
    for parameter in weights:
        parameter.requires_grad = True
    assert len(weights) == 8
    products = matrix_products(frozen)
    assert 0 < products <= matrix_products(free) - len(weights)


def test_a_frozen_head_keeps_no_logits_and_gives_the_same_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    def losses() -> list[float]:
        network = adapted(1)
        cell = trainer(network)
        return [float(cell(Tensor(records(False)))[0].asnumpy()) for _ in range(4)]

    together = losses()
    monkeypatch.setattr(LlamaForCausalLM, "_is_head_frozen", lambda _: False)
    np.testing.assert_allclose(together, losses(), rtol=1e-6)
    assert together[-1] < together[0]


@pytest.mark.parametrize(("tied", "frozen"), [(False, True), (True, True), (False, False)])
def test_when_the_head_counts_as_frozen(tied: bool, frozen: bool) -> None:
    network = LlamaForCausalLM(tiny_config("gqa", num_layers=1, tie_word_embeddings=tied))
    if frozen:
        get_pet_model(network, LoraConfig(lora_rank=4, lora_dropout=0.0, **FP32))
    assert network._is_head_frozen() == frozen


def test_every_field_reaches_the_layer() -> None:
    network = adapted(1, lora_rank=3, lora_alpha=7.5, lora_dropout=0.5, lora_a_init="ones", lora_b_init="one",
                      param_init_type="float16", compute_dtype="float16", target_modules="w[13]")  # fmt: skip
    layers = dict(adapted_layers(network))
    assert sorted(layers) == ["model.layers.0.feed_forward.w1", "model.layers.0.feed_forward.w3"]
    layer = layers["model.layers.0.feed_forward.w1"]
    assert layer.mindpet_delta_lora_a.dtype == layer.mindpet_delta_lora_b.dtype == ms.float16
    assert np.all(layer.mindpet_delta_lora_a.asnumpy() == 1)
    assert np.all(layer.mindpet_delta_lora_b.asnumpy() == 1)
    assert layer.adapter_dtype == ms.float16
    assert layer.scaling == 7.5 / 3
    assert layer.dropped.scaling == pytest.approx(2 * 7.5 / 3, rel=2e-3)
    x = np.random.default_rng(0).standard_normal((5, 72)).astype(np.float32)
    layer.set_train(False)
    expected = x @ layer.weight.asnumpy().T + 2.5 * 3 * x.sum(1, keepdims=True)
    np.testing.assert_allclose(layer(Tensor(x)).asnumpy(), expected, rtol=2e-2, atol=5e-2)  # the adapter is fp16


@pytest.mark.parametrize(
    ("name", "low", "high"), [("normal", 0.02, 0.06), ("he_uniform", 0.1, 72**-0.5 + 1e-6), ("zero", 0.0, 0.0)]
)
def test_initializers(name: str, low: float, high: float) -> None:
    layer = LoRADense(Linear(72, 8), rank=16, alpha=1, a_init=name)
    assert low <= np.abs(layer.mindpet_delta_lora_a.asnumpy()).max() <= high


def test_targets_are_matched_from_the_start_of_the_last_part() -> None:
    assert len(dict(adapted_layers(adapted(2, target_modules=".*wq|.*wv")))) == 4
    assert len(dict(adapted_layers(adapted(2, target_modules="w")))) == 14
    with pytest.raises(ConfigError, match=r"'q' matches no linear layer.*wq, wk, wv, wo, w1, w2, w3"):
        adapted(2, target_modules="q")
    with pytest.raises(ConfigError, match="matches no linear layer"):
        adapted(2, target_modules="model.layers.0.*")  # a path: the last part counts


@pytest.mark.parametrize(
    ("excluded", "left"),
    [("wq", 6), (["wq", "wk"], 4), (r"model\.layers\.0\.", 4), ([r"model\.layers\.1\..*wo", "wk"], 5)],
)
def test_excluded_layers(excluded: object, left: int) -> None:
    assert len(dict(adapted_layers(adapted(2, exclude_layers=excluded)))) == left


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"exclude_layers": "w"}, "excludes all 8 layers"),
        ({"exclude_layers": ["wq", "nothing"]}, "'nothing' matches no linear layer"),
        ({"target_modules": "("}, "not a regular expression"),
        ({"lora_a_init": "normale"}, "Did you mean 'normal'"),
        ({"lora_rank": 0}, "lora_rank"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"pet_type": "prefix"}, "pet_type"),
        ({"lora_ranc": 4}, "Did you mean 'lora_rank'"),
    ],
)
def test_wrong_fields(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapted(2, **fields)


def test_a_mapping_is_a_config_and_twice_is_an_error() -> None:
    network = get_pet_model(LlamaForCausalLM(tiny_config("gqa", num_layers=1)), {"pet_type": "lora", "lora_rank": 2})
    with pytest.raises(ConfigError, match="has adapters already"):
        get_pet_model(network, LoraConfig())
    with pytest.raises(ConfigError, match="no cell 'model'"):
        get_pet_model(nn.ReLU(), LoraConfig())


def test_the_fingerprint_knows_the_base() -> None:
    network = adapted(1)
    start = base_fingerprint(network)
    network.model.layers[0].attention.wq.mindpet_delta_lora_b.set_data(ops.ones((72, 4)))
    assert base_fingerprint(network) == start == base_fingerprint(adapted(1, lora_dropout=0.1))
    weight = network.model.layers[0].feed_forward.w2.weight
    weight.set_data(weight.value() * 1.01)
    assert base_fingerprint(network) != start


def test_generation_with_the_cache_equals_the_merged_model() -> None:
    network = adapted(1, lora_b_init="normal", lora_dropout=0.1, target_modules="w")
    for parameter in network.trainable_params():
        parameter.set_data(parameter.value() * 20)
    merged = LlamaForCausalLM(tiny_config("gqa", num_layers=1))
    fill(merged)
    weights = {p.name: p for p in merged.get_parameters()}
    for path, layer in adapted_layers(network):
        a, b = layer.mindpet_delta_lora_a.asnumpy(), layer.mindpet_delta_lora_b.asnumpy()
        weights[f"{path}.weight"].set_data(Tensor(layer.weight.asnumpy() + layer.scaling * b @ a))
    prompts = [[1, 5, 9], [7, 3, 8, 2, 4]]
    texts = [
        [row.tolist() for row in model.set_train(False).generate(prompts, do_sample=False, max_new_tokens=12)]
        for model in (network, merged, adapted(1))
    ]
    assert texts[0] == texts[1] != texts[2]


class Masked(nn.Cell):
    """A dropout with its input."""

    def __init__(self, place: int, seed: int = 5, rate: float = 0.3) -> None:
        super().__init__()
        self.step = ms.Parameter(Tensor([0], ms.int32), name="dropout_step")
        self.drop = PooledDropout(rate, mask_pool(24, rate, seed), self.step, place, seed)

    def construct(self, x: Tensor) -> Tensor:
        """What is kept."""
        return self.drop(x)

    def at(self, step: int) -> np.ndarray:
        self.step.set_data(Tensor([step], ms.int32))
        return self(Tensor(np.ones((700, 24)), ms.float32)).asnumpy()


def test_dropout_follows_from_seed_step_and_place() -> None:
    first = Masked(0)
    masks = [first.at(step) for step in (0, 1, 2**30)]
    assert set(np.unique(masks)) == {0.0, 1.0}
    for mask in masks:
        assert abs(mask.mean() - kept_share(0.3)) < 0.01
        assert len(np.unique(mask, axis=0)) == 700  # every token has a mask of its own
    np.testing.assert_array_equal(masks[0], first.at(0))
    np.testing.assert_array_equal(masks[1], Masked(0).at(1))  # another process would compute the same
    for other in (masks[1], Masked(1).at(0), Masked(0, seed=6).at(0)):
        agree = (masks[0] == other).mean()
        assert abs(agree - (0.3**2 + 0.7**2)) < 0.02  # as two independent draws


def test_pool_drops_the_same_share_of_every_feature() -> None:
    pool = mask_pool(9, 0.05, 0).asnumpy()
    assert pool.shape == (POOL_ROWS, 9)
    assert set((pool == 0).sum(0)) == {51}
    assert kept_share(0.05) == 1 - 51 / POOL_ROWS


def test_dropout_acts_in_training_only_and_moves_on_with_every_pass() -> None:
    network = adapted(1, lora_dropout=0.5, lora_b_init="ones")
    cell = trainer(network, accumulation=2)
    batch = Tensor(records(False))
    losses = [float(cell(batch)[0].asnumpy()) for _ in range(2)]
    assert network.dropout_step.asnumpy().tolist() == [2]
    assert losses[0] != losses[1]
    network.set_train(False)
    logits = [network(Tensor(records(False)[:, :-1]))[0].asnumpy() for _ in range(2)]
    np.testing.assert_array_equal(*logits)
    assert network.dropout_step.asnumpy().tolist() == [2]


class Plain(nn.Cell):
    """The formula of an adapter with dropout, differentiated by MindSpore."""

    def __init__(self, low_rank: DroppedLowRank) -> None:
        super().__init__()
        self.low_rank = low_rank

    def construct(self, x: Tensor, a: Tensor, b: Tensor, rows: Tensor) -> Tensor:
        """As DroppedLowRank."""
        dropped = x * self.low_rank.dropout.mask(rows)
        return ops.matmul(ops.matmul(dropped, a.T) * self.low_rank.scaling, b.T)


class Weighed(nn.Cell):
    """A scalar of a cell's output whose gradient differs at every place."""

    def __init__(self, cell: nn.Cell, weights: np.ndarray) -> None:
        super().__init__()
        self.cell = cell
        self.weights = Tensor(weights)

    def construct(self, *inputs: Tensor) -> Tensor:
        """Weighted sum."""
        return ops.reduce_sum(self.cell(*inputs) * self.weights)


def test_gradient_by_hand_is_that_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((10, 24), (3, 24), (5, 3), (10, 5))]
    low_rank = DroppedLowRank(Masked(0).drop, 1.7)
    rows = Tensor(rng.integers(0, POOL_ROWS, 10), ms.int32)
    results = []
    for cell in (low_rank, Plain(low_rank)):
        gradient = ms.value_and_grad(Weighed(cell, arrays[3]), (0, 1, 2))
        value, gradients = gradient(*map(Tensor, arrays[:3]), rows)
        results.append([value.asnumpy(), *(g.asnumpy() for g in gradients)])
    for ours, expected in zip(*results, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
