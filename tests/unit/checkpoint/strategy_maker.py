# SPDX-License-Identifier: Apache-2.0
"""Compiles the ranks of small clusters, without running them: strategy files, and the shapes of each rank's slices.

``python -m tests.unit.checkpoint.strategy_maker FOLDER``, a process of its own; each rank is a fork of it. It leaves
``FOLDER/<layout>/strategy/ckpt_strategy_rank_N.ckpt`` and ``FOLDER/<layout>/shapes_N.json`` for one rank of each
pipeline stage.
"""

import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

MODEL = {
    "hidden_size": 32, "num_layers": 2, "num_heads": 8, "n_kv_heads": 4, "vocab_size": 64, "seq_length": 16,
    "intermediate_size": 48, "checkpoint_name_or_path": "", "use_flash_attention": False,
    "compute_dtype": "float32", "param_init_type": "float32", "layernorm_compute_type": "float32",
    "softmax_compute_type": "float32", "rotary_dtype": "float32",
}  # fmt: skip


class Cluster(NamedTuple):
    """One way to split the model."""

    dp: int = 1
    mp: int = 1
    pp: int = 1
    optimizer: bool = False
    embedding_dp: bool = True
    sequence: bool = False
    shard_size: int = -1

    @property
    def ranks(self) -> int:
        """Devices of the cluster."""
        return self.dp * self.mp * self.pp


LAYOUTS = {
    "mp2": Cluster(mp=2),
    "mp4": Cluster(mp=4),
    "dp2_mp2": Cluster(dp=2, mp=2),
    "dp2_mp2_vocabulary_sequence": Cluster(dp=2, mp=2, embedding_dp=False, sequence=True),
    "dp4_optimizer": Cluster(dp=4, optimizer=True),
    "dp4_mp2_optimizer": Cluster(dp=4, mp=2, optimizer=True),
    "dp4_optimizer_of_2": Cluster(dp=4, optimizer=True, shard_size=2),
    "dp2_mp2_pp2_optimizer": Cluster(dp=2, mp=2, pp=2, optimizer=True),
    "mp2_pp2": Cluster(mp=2, pp=2),
}


def compile_rank(cluster: Cluster, rank: int, folder: Path) -> None:
    """Be one rank: write its strategy and the shapes of its slices."""
    import mindspore as ms
    import numpy as np
    from mindspore import nn
    from mindspore.nn.wrap.cell_wrapper import _TrainGradAccuStepCell

    from mindformers.config.schema.parallel import TransformerOpParallelConfig
    from mindformers.models.llama.llama import LlamaForCausalLM
    from mindformers.models.llama.llama_config import LlamaConfig
    from mindformers.models.llama.llama_parallel import apply_parallel
    from mindformers.simulate.cpu_auto_parallel import enable_simulation

    enable_simulation(cluster.ranks, rank)
    options: dict = {"pipeline_stages": cluster.pp} if cluster.pp > 1 else {}
    if cluster.optimizer:
        sharding = {"parallel_optimizer_threshold": 0, "optimizer_weight_shard_size": cluster.shard_size}
        options |= {"enable_parallel_optimizer": True, "parallel_optimizer_config": sharding}
    file = folder / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt"
    file.parent.mkdir(parents=True, exist_ok=True)
    ms.set_auto_parallel_context(
        parallel_mode="semi_auto_parallel", device_num=cluster.ranks, global_rank=rank, full_batch=True,
        strategy_ckpt_config={"save_file": str(file)}, **options,
    )  # fmt: skip
    network = LlamaForCausalLM(LlamaConfig(**MODEL))
    network.set_train(True)
    layout = TransformerOpParallelConfig(
        data_parallel=cluster.dp, model_parallel=cluster.mp, pipeline_stage=cluster.pp, micro_batch_num=cluster.pp,
        vocab_emb_dp=cluster.embedding_dp, use_seq_parallel=cluster.sequence,
    )  # fmt: skip
    apply_parallel(network, layout)
    optimizer = nn.AdamWeightDecay(network.trainable_params(), 1e-3)
    if cluster.pp > 1:
        cell = _TrainGradAccuStepCell(nn.PipelineCell(network, cluster.pp), optimizer)
    else:
        cell = nn.TrainOneStepCell(network, optimizer)
    cell.set_train(True)
    tokens = np.zeros((cluster.dp * cluster.pp, MODEL["seq_length"] + 1))
    cell.compile(ms.Tensor(tokens, ms.int32))
    stage = cell.parameter_layout_dict
    shapes = {p.name: list(p.shape) for p in cell.get_parameters() if p.name in stage or cluster.pp == 1}
    (folder / f"shapes_{rank}.json").write_text(json.dumps(shapes), encoding="utf-8")


def main(folder: Path, names: list[str]) -> int:
    """Compile, rank after rank; the number of failures."""
    os.environ["MS_SIMULATION_LEVEL"] = "0"  # read when MindSpore is imported
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    failed = 0
    for name in names or LAYOUTS:
        cluster = LAYOUTS[name]
        for rank in range(0, cluster.ranks, cluster.ranks // cluster.pp):
            child = os.fork()
            if child == 0:
                try:
                    compile_rank(cluster, rank, folder / name)
                except BaseException as error:  # the child must never come back into this loop
                    print(f"{name} rank {rank}: {error!r}", flush=True)
                    os._exit(1)
                os._exit(0)
            failed += os.waitpid(child, 0)[1] != 0
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
