# SPDX-License-Identifier: Apache-2.0
"""Compiles the training step of one rank of a cluster and reports what the compiler made of it.

Run by ``simulate.plan`` as ``python -m mindformers.simulate.plan_worker REQUEST``, a process per rank; the weights are
never allocated.
"""

import json
import math
import os
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

_PASS = "symbol_engine_optimizer"  # the last pass that still shows every communication
_SIZES = {"Float64": 8, "Float32": 4, "Float16": 2, "BFloat16": 2, "Int64": 8, "Int32": 4, "Bool": 1, "UInt8": 1}
_COMMUNICATION = re.compile(
    r"^\s*%\d+\([^)]*\) = (AllReduce|AllGather|ReduceScatter|AlltoAll|Send|Receive|Broadcast)\("
)
_ONE_TO_ONE = ("Send", "Receive")
_TENSOR = re.compile(r"Tensor\[(\w+)\]\]?, \(([\d, ]*)\)")
STEPS_OF_SCHEDULE = 1000  # a learning rate schedule needs a length; it changes nothing that is reported


def read_communication(path: Path) -> list[dict[str, Any]]:
    """Every communication in a dumped graph, added up by kind and ranks.

    Returns:
        Dicts of ``operation``, ``ranks`` (list), ``count``, ``bytes`` (of all its messages, the larger of input and
        output), ``per_micro_batch``, and ``everybody`` where the group is that of all ranks.
    """
    counts: Counter[tuple] = Counter()
    volume: Counter[tuple] = Counter()
    pending: tuple | None = None
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            found = _COMMUNICATION.match(line)
            if found:
                everybody = found.group(1) not in _ONE_TO_ONE and 'group: "nccl_world_group"' in line
                pending = (found.group(1), _partners(line), "micro: I64(" in line, everybody)
            elif pending is not None and ") -> (" in line:
                sizes = [
                    math.prod(int(length) for length in shape.split(",") if length.strip()) * _SIZES.get(kind, 4)
                    for kind, shape in _TENSOR.findall(line)
                ]
                if len(pending[1]) != 1 or pending[0] in _ONE_TO_ONE:  # a group of one rank moves nothing
                    counts[pending] += 1
                    volume[pending] += max(sizes, default=0)
                pending = None
    keys = ("operation", "ranks", "per_micro_batch", "everybody")
    return [dict(zip(keys, key, strict=True)) | {"count": counts[key], "bytes": volume[key]} for key in sorted(counts)]


def _partners(line: str) -> tuple[int, ...]:
    """The ranks of the group, or the other end of a Send or Receive."""
    other = re.search(r"(?:dest|src)_rank: I64\((\d+)\)", line)
    peers = re.search(r"group_rank_ids: \(([\d, ]*)\)", line)
    members = tuple(int(rank) for rank in peers.group(1).split(",") if rank.strip()) if peers else ()
    return (members[int(other.group(1))] if members else int(other.group(1)),) if other else members


def compile_rank(cfg: Any, size: int, rank: int, strategy_file: str | None) -> dict[str, Any]:
    """Compile rank ``rank`` of ``size`` devices in this process.

    Returns:
        ``parameters``: name -> (bytes on this rank, ranks that share one slice's optimizer state); ``communication``;
        ``seconds`` and ``peak_bytes`` of the compilation.
    """
    import mindspore as ms
    from mindspore import nn
    from mindspore.parallel._auto_parallel_context import auto_parallel_context

    from mindformers.core.context import set_seed
    from mindformers.core.parallel_context import SPLITTING_MODES
    from mindformers.core.progress import TrainProgress
    from mindformers.simulate.cpu_auto_parallel import enable_simulation
    from mindformers.tools.utils import PARALLEL_MODE, peak_memory_bytes
    from mindformers.trainer.build import build_optimizer, build_train_cell
    from mindformers.trainer.network import build_network
    from mindformers.trainer.parallel import gather_weights_again, lay_out, parallel_section, step_inputs

    start = time.perf_counter()
    ms.set_context(mode=ms.GRAPH_MODE)
    set_seed(cfg.seed)
    groups = enable_simulation(size, rank)
    section = parallel_section(cfg)
    mode = PARALLEL_MODE[section.parallel_mode]
    ms.set_auto_parallel_context(
        parallel_mode=mode if mode in SPLITTING_MODES else "semi_auto_parallel",
        search_mode=section.search_mode,
        device_num=size,
        global_rank=rank,
        full_batch=True,
        pipeline_stages=cfg.parallel_config.pipeline_stage,
        enable_parallel_optimizer=section.enable_parallel_optimizer and size > 1,
        parallel_optimizer_config=section.parallel_optimizer_config.model_dump(exclude_none=True),
        enable_alltoall=section.enable_alltoall,
        **({"strategy_ckpt_config": {"save_file": strategy_file}} if strategy_file else {}),
    )
    gather_weights_again(cfg)
    auto_parallel_context().set_init_param_in_compile(False)
    network = lay_out(build_network(cfg).set_train(), cfg)
    seq_length = cfg.model.config.seq_length
    optimizer = build_optimizer(cfg, network, TrainProgress(STEPS_OF_SCHEDULE, 1, 1, seq_length, 1, 0))
    cell = build_train_cell(cfg, network, optimizer)
    for parameter in cell.get_parameters():
        parameter.init_param = True  # MindSpore then fits the shape to the slice and makes no data
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_SAVE_GRAPHS_PATH": folder, "MS_DEV_DUMP_IR_PASSES": _PASS}
        nn.Cell.compile(cell, *step_inputs(cfg))
        graphs = sorted(Path(folder).rglob(f"*{_PASS}*.ir"))
        communication = read_communication(graphs[-1]) if graphs else []
    return {
        "rank": rank,
        "parameters": _parameter_bytes(cell, groups, size),
        "communication": communication,
        "seconds": time.perf_counter() - start,
        "peak_bytes": peak_memory_bytes(),
    }


def _parameter_bytes(cell: Any, groups: dict[str, list[int]], size: int) -> dict[str, tuple[int, int]]:
    """Name -> (bytes on this rank, parts the optimizer cuts the slice into), from the compiled layouts."""
    types = {parameter.name: parameter.dtype for parameter in cell.get_parameters()}
    result = {}
    for name, layout in cell.parameter_layout_dict.items():
        if name not in types:
            continue  # a column of the batch
        group = layout[5]
        parts = (len(groups[group]) if group in groups else size) if group else 1
        width = _SIZES.get(str(types[name]), 4)
        result[name] = (math.prod(layout[2]) * width // parts, parts)
    return result


def main(request_file: str) -> None:
    """Do what a request file says and write the answer beside it."""
    from mindformers.config import load_config

    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    cfg = load_config(request["config"])
    answer = compile_rank(cfg, request["size"], request["rank"], request["strategy_file"])
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
