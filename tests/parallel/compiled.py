# SPDX-License-Identifier: Apache-2.0
"""Compiles variants of a tiny Llama as one rank of a simulated cluster, and reports what the compiler made of them.

``python -m tests.parallel.compiled RANK FILE``: FILE is JSON, {name: [options]}; the answer takes its place.
"""

import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from mindformers.config import load_config

BASE = [
    "use_parallel=True", "context.device_target=Ascend", "runner_config.batch_size=2", "lr_schedule=null",
    "optimizer.learning_rate=0.001", "model.model_config.num_layers=1", "model.model_config.hidden_size=64",
    "model.model_config.vocab_size=64", "model.model_config.seq_length=16", "model.model_config.pretrain_seqlen=16",
    "model.model_config.max_decode_length=16",
]  # fmt: skip
PASSES = "symbol_engine_optimizer,validate"
MARKS = ("strided_slice_flag", "micro_interleaved_add_flag")
OPERATION = re.compile(r"^\s*%\d+\([^)]*\) = (?:PrimFunc_)?(\w+)\(")


def compile_variant(cell, batch: object, folder: str) -> dict:
    """Compile a train cell and count what its last graph holds."""
    from mindspore import nn

    from mindformers.simulate.plan_worker import read_communication

    os.environ["MS_DEV_SAVE_GRAPHS_PATH"] = folder
    nn.Cell.compile(cell, batch)
    (graph,) = sorted(Path(folder).rglob("*validate*.ir"))[-1:]
    before = sorted(Path(folder).rglob("*symbol_engine_optimizer*.ir"))[-1]
    lines = graph.read_text(encoding="utf-8").splitlines()
    operations, fused = Counter(), Counter()
    for line in lines:
        found = OPERATION.match(line)
        if found:
            operations[found.group(1)] += 1
            fused.update(int(number) for number in re.findall(r"fusion: I64\((\d+)\)", line) if number != "0")
    return {
        "operations": operations,
        "recomputed": sum("recompute: Bool(1)" in line for line in lines),
        "fused": fused,  # number of a message -> tensors in it
        "marks": {mark: sum(mark in line for line in lines) for mark in MARKS},
        "communication": read_communication(before),
        "shapes": {name: layout[2] for name, layout in cell.parameter_layout_dict.items()},
        "cut": [name for name, layout in cell.parameter_layout_dict.items() if layout[5]],  # by the optimizer
        "dropout_advances": sum("dropout_step" in line and "AssignAdd" in line for line in lines),
    }


def main(rank: int, file: str) -> None:
    """Compile all variants of a file as one rank; they need the same number of devices."""
    os.environ |= {"MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_DUMP_IR_PASSES": PASSES}
    variants = json.loads(Path(file).read_text(encoding="utf-8"))
    configs = {name: load_config("run_llama2_tiny", [*BASE, *options]) for name, options in variants.items()}

    import mindspore as ms
    import numpy as np
    from mindspore import Tensor

    from mindformers.core.progress import TrainProgress
    from mindformers.simulate.cpu_auto_parallel import enable_simulation
    from mindformers.trainer.build import build_optimizer, build_train_cell
    from mindformers.trainer.network import build_network
    from mindformers.trainer.parallel import gather_weights_again, lay_out, parallel_section, split_records

    ms.set_context(mode=ms.GRAPH_MODE)
    (size,) = {cfg.parallel_config.ranks for cfg in configs.values()}
    enable_simulation(size, rank)
    answers = {}
    for name, cfg in configs.items():
        section = parallel_section(cfg)
        ms.reset_auto_parallel_context()
        ms.set_auto_parallel_context(
            parallel_mode="semi_auto_parallel", device_num=size, global_rank=rank, full_batch=True,
            pipeline_stages=cfg.parallel_config.pipeline_stage,
            enable_parallel_optimizer=section.enable_parallel_optimizer,
            parallel_optimizer_config=section.parallel_optimizer_config.model_dump(exclude_none=True),
        )  # fmt: skip
        gather_weights_again(cfg)
        network = lay_out(build_network(cfg).set_train(), cfg)
        optimizer = build_optimizer(cfg, network, TrainProgress(10, 1, 1, 16, 1, 0))
        cell = build_train_cell(cfg, network, optimizer)
        batch = Tensor(np.zeros((cfg.runner_config.batch_size * split_records(cfg), 17)), ms.int32)
        folder = tempfile.mkdtemp()
        answers[name] = compile_variant(cell, batch, folder)
        shutil.rmtree(folder)
    Path(file).write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
