# SPDX-License-Identifier: Apache-2.0
"""The compiled training step broadcasts no big tensor in an elementwise op.

MindSpore's CPU kernels of these keep 16 bytes per output element for the life of the graph, more than the weights of a
small model (docs/performance.md). The graph that is executed is written by MindSpore and read here.
"""

import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tests.helpers import REPO
from tests.unit.models.llama.one_step import BATCH, FEED_FORWARD, HIDDEN, LENGTH

TOKENS = BATCH * LENGTH
BIG = TOKENS * 8  # elements: the smallest activation of a layer (half of a key) and all above
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


def step_nodes(case: str, folder: Path) -> list[Node]:
    """Run a training step with plain operators and read back its graph."""
    environment = os.environ | {
        "MINDFORMERS_NATIVE": "0", "PYTHONPATH": str(REPO), "MS_DEV_SAVE_GRAPHS": "1",
        "MS_DEV_SAVE_GRAPHS_PATH": str(folder), "MS_DEV_DUMP_IR_PASSES": "graph_build",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.unit.models.llama.one_step", case]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    nodes = list(nodes_of(folder))
    # the reader understands the file: it finds the products of the layer and elementwise ops on what they give
    assert any(node.op == "MatMul" and node.outputs == ((TOKENS, FEED_FORWARD),) for node in nodes)
    assert any(node.op == "Mul" and node.inputs == ((TOKENS, FEED_FORWARD),) * 2 for node in nodes)
    return nodes


def test_full_training(tmp_path: Path) -> None:
    nodes = step_nodes("full", tmp_path)
    assert any(node.op == "Adam" for node in nodes)  # the update is in what was read
    assert broadcasts(nodes) == []


def test_lora_with_dropout_on_packed_data(tmp_path: Path) -> None:
    assert broadcasts(step_nodes("lora", tmp_path)) == []


def test_a_broadcasting_norm_is_found(tmp_path: Path) -> None:
    found = broadcasts(step_nodes("wrong", tmp_path))
    wide, row, number = (TOKENS, HIDDEN), (HIDDEN,), (TOKENS, 1)
    assert {node.op for node in found} == {"Mul"}
    assert any(node.inputs == (wide, row) for node in found)  # x * weight
    assert any(node.inputs == (wide, number) for node in found)  # x * r
