# SPDX-License-Identifier: Apache-2.0
"""The compiled training step broadcasts no big tensor in an elementwise op.

MindSpore's CPU kernels of these keep 16 bytes per output element for the life of the graph, more than the weights of a
small model (docs/performance.md). The graph that is executed is written by MindSpore and read here.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from mindformers.core.optim import AdamW
from mindformers.models.llama.llama import LlamaForCausalLM
from mindformers.models.llama.llama_config import LlamaConfig
from mindformers.pet import LoraConfig, get_pet_model
from mindformers.wrapper import MFTrainOneStepCell

BATCH, LENGTH, HIDDEN = 2, 16, 32
BIG = BATCH * LENGTH * 8  # elements: the smallest activation of a layer (half of a key) and all above
ELEMENTWISE = {
    "Add", "AddExt", "Sub", "SubExt", "Mul", "Muls", "Div", "RealDiv", "Divs", "FloorDiv", "FloorMod", "Mod", "Pow",
    "Maximum", "Minimum", "SquaredDifference", "Select", "Equal", "NotEqual", "Less", "LessEqual", "Greater",
    "GreaterEqual", "LogicalAnd", "LogicalOr", "LogicalXor", "Atan2",
}  # fmt: skip
_NODE = re.compile(r"^\s+%\w+\(.*?\) = (?:PrimFunc_)?(\w+)\(")
_SHAPES = re.compile(r"<(?:Ref\[)?Tensor\[\w+\]\]?, \(([\d, ]*)\)")


@dataclass(frozen=True)
class Node:
    """An op of a compiled graph with the shapes of its tensors."""

    op: str
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]


def nodes_of(folder: Path) -> Iterator[Node]:
    """The ops of the executed graphs that MindSpore has written to a folder."""
    for file in sorted(folder.glob("graph_build_*.ir")):
        lines = file.read_text(encoding="utf-8").splitlines()
        for line, types in pairwise(lines):
            match = _NODE.match(line)
            if match and " -> " in types:
                before, _, after = types.partition(" -> ")
                yield Node(match[1], _shapes(before), _shapes(after))


def _shapes(text: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(n) for n in found.split(",") if n.strip()) for found in _SHAPES.findall(text))


def broadcasts(nodes: list[Node]) -> list[Node]:
    """The elementwise ops with a big output that spread an input which is no single number."""
    return [
        node for node in nodes
        if node.op in ELEMENTWISE and math.prod(node.outputs[0]) >= BIG
        and any(shape != node.outputs[0] and math.prod(shape) > 1 for shape in node.inputs)
    ]  # fmt: skip


class BroadcastingNorm(nn.Cell):
    """RMSNorm as one would write it first, which this test is there to refuse."""

    def __init__(self, weight: Parameter) -> None:
        super().__init__()
        self.weight = weight
        self.mean = ops.ReduceMean(keep_dims=True)

    def construct(self, x: Tensor) -> Tensor:
        """(T, H) -> (T, H)."""
        return x * ops.rsqrt(self.mean(x * x, -1) + 1e-5) * self.weight


@pytest.fixture(autouse=True)
def plain_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """No native kernels, also where they are asked for."""
    monkeypatch.setenv("MINDFORMERS_NATIVE", "0")


def _network() -> LlamaForCausalLM:
    kinds = ("compute_dtype", "param_init_type", "layernorm_compute_type", "softmax_compute_type", "rotary_dtype")
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=HIDDEN, intermediate_size=48, num_layers=1, num_heads=4, n_kv_heads=2, vocab_size=96,
            seq_length=LENGTH, pretrain_seqlen=LENGTH, **dict.fromkeys(kinds, "float32"),
        )
    )  # fmt: skip


def _step_nodes(network: nn.Cell, folder: Path, packed: bool = False) -> list[Node]:
    """Run one training step and read back its graph."""
    optimizer = AdamW(network.trainable_params(), learning_rate=1e-3, weight_decay=0.1)
    step = MFTrainOneStepCell(network.set_train(), optimizer, use_clip_grad=True).set_train()
    ids = np.random.default_rng(0).integers(3, 96, (BATCH, LENGTH + 1)).astype(np.int32)
    batch = [Tensor(ids)]
    if packed:
        batch += [Tensor(ids), Tensor((np.arange(LENGTH + 1) // 6).astype(np.int32)[None].repeat(BATCH, 0))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MS_DEV_SAVE_GRAPHS", "1")
        patch.setenv("MS_DEV_SAVE_GRAPHS_PATH", str(folder))
        patch.setenv("MS_DEV_DUMP_IR_PASSES", "graph_build")
        loss = float(step(*batch)[0].asnumpy())
    assert math.isfinite(loss)
    nodes = list(nodes_of(folder))
    # the reader understands the file: it finds the products of the layer and elementwise ops on what they give
    tokens = BATCH * LENGTH
    assert any(node.op == "MatMul" and node.outputs == ((tokens, 48),) for node in nodes)
    assert any(node.op == "Mul" and node.inputs == ((tokens, 48),) * 2 for node in nodes)
    return nodes


def test_full_training(tmp_path: Path) -> None:
    nodes = _step_nodes(_network(), tmp_path)
    assert any(node.op == "Adam" for node in nodes)  # the update is in what was read
    assert broadcasts(nodes) == []


def test_lora_with_dropout_on_packed_data(tmp_path: Path) -> None:
    network = get_pet_model(_network(), LoraConfig(lora_rank=4, lora_alpha=8, lora_dropout=0.1, target_modules=".*w.*"))
    assert broadcasts(_step_nodes(network, tmp_path, packed=True)) == []


def test_a_broadcasting_norm_is_found(tmp_path: Path) -> None:
    network = _network()
    network.model.norm_out = BroadcastingNorm(network.model.norm_out.weight)
    found = broadcasts(_step_nodes(network, tmp_path))
    wide, row, number = (BATCH * LENGTH, HIDDEN), (HIDDEN,), (BATCH * LENGTH, 1)
    assert {node.op for node in found} == {"Mul"}
    assert any(node.inputs == (wide, row) for node in found)  # x * weight
    assert any(node.inputs == (wide, number) for node in found)  # x * r
