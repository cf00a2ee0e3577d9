# SPDX-License-Identifier: Apache-2.0
"""Every option of the layout changes in the compiled graph what it says; simulated clusters of four devices."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import REPO

GRID = ["parallel_config.data_parallel=2", "parallel_config.model_parallel=2"]
STAGES = ["parallel_config.pipeline_stage=2", "parallel_config.micro_batch_num=2", "model.model_config.num_layers=3"]
STAGES += ["parallel_config.model_parallel=2"]
CUT = ["parallel.enable_parallel_optimizer=True"]
THRESHOLD = "parallel.parallel_optimizer_config.parallel_optimizer_threshold"
LAYERS = "model.model_config.num_layers=2"
RECOMPUTE = [LAYERS, "recompute_config.recompute=True"]
LORA = {"pet_type": "lora", "lora_rank": 4, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": "w"}
LORA |= {"param_init_type": "float32", "compute_dtype": "float16"}
GRID_VARIANTS = {
    "plain": [*GRID, LAYERS],
    "sequence": [*GRID, LAYERS, "parallel_config.use_seq_parallel=True"],
    "vocabulary": [*GRID, "parallel_config.vocab_emb_dp=False"],
    "optimizer": [*GRID, *CUT, f"{THRESHOLD}=0"],
    "threshold": [*GRID, *CUT, f"{THRESHOLD}=8"],
    "gathered_again": [*GRID, *CUT, f"{THRESHOLD}=0", "recompute_config.parallel_optimizer_comm_recompute=True"],
    "one_message": [*GRID, LAYERS, "parallel_config.gradient_aggregation_group=1"],
    "interleaved": [*GRID, "micro_batch_interleave_num=2"],
    "recompute": [*GRID, *RECOMPUTE],
    "recompute_alone": [*GRID, *RECOMPUTE, "recompute_config.mp_comm_recompute=False"],
    "recompute_sliced": [*GRID, *RECOMPUTE, "recompute_config.recompute_slice_activation=True"],
    "select": [*GRID, LAYERS, "recompute_config.select_recompute=True"],
    "lora_half": [
        *GRID, f"model.model_config.pet_config={json.dumps(LORA)}", "model.model_config.compute_dtype=float16",
    ],
}  # fmt: skip
STAGE_VARIANTS = {
    "stages": STAGES,
    "offset": [*STAGES, "model.model_config.offset=1"],
    "lora": [*STAGES, LAYERS, f"model.model_config.pet_config={json.dumps(LORA)}"],
    "optimizer": [*STAGES, LAYERS, *CUT, f"{THRESHOLD}=0"],
}


def compiled(folder: Path, rank: int, variants: dict[str, list[str]]) -> dict[str, dict]:
    """Variants as one rank of four devices, see tests/parallel/compiled.py."""
    file = folder / f"{rank}.json"
    file.write_text(json.dumps(variants), encoding="utf-8")
    command = [sys.executable, "-m", "tests.parallel.compiled", str(rank), str(file)]
    environment = {"PYTHONPATH": str(REPO), "GLOG_v": "3"}
    done = subprocess.run(command, cwd=folder, text=True, env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Data 2 x model 2, rank 0."""
    return compiled(tmp_path_factory.mktemp("grid"), 0, GRID_VARIANTS)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict]]:
    """Model 2 x pipeline 2, a rank of the first and one of the last stage."""
    return [compiled(tmp_path_factory.mktemp(f"stage{rank}"), rank, STAGE_VARIANTS) for rank in (0, 3)]


def messages(variant: dict, operation: str, ranks: list[int] | None = None) -> int:
    """How many messages of a kind a step sends, among some ranks."""
    found = [m for m in variant["communication"] if m["operation"] == operation and ranks in (None, m["ranks"])]
    return sum(message["count"] for message in found)


def layers(variant: dict) -> set[int]:
    """Decoder layers whose weights a rank has."""
    return {int(name.split(".")[2]) for name in variant["shapes"] if name.startswith("model.layers.")}


def test_sequence_parallel_replaces_each_sum_of_activations(grid: dict) -> None:
    plain, sequence = grid["plain"], grid["sequence"]
    assert messages(plain, "AllReduce", [0, 1]) == 8  # two forward, two backward, two layers
    assert messages(plain, "AllGather") == messages(plain, "ReduceScatter") == 0
    assert messages(sequence, "AllReduce", [0, 1]) == 0
    assert messages(sequence, "AllGather", [0, 1]) == messages(sequence, "ReduceScatter", [0, 1]) == 9  # and the head's


def test_vocabulary_is_cut_over_model_parallel(grid: dict) -> None:
    for name in ("model.tok_embeddings.embedding_weight", "lm_head.weight"):
        assert grid["plain"]["shapes"][name] == [64, 64]
        assert grid["vocabulary"]["shapes"][name] == [32, 64]
    assert messages(grid["interleaved"], "AllReduce", [0, 1]) == 2 * 4
    assert messages(grid["vocabulary"], "AllReduce", [0, 1]) == 4 + 7  # a layer; look-up, head, loss


def test_parallel_optimizer_and_its_threshold(grid: dict) -> None:
    weights = {name for name in grid["optimizer"]["shapes"] if name.startswith(("model.", "lm_head"))}
    assert grid["plain"]["cut"] == []
    assert weights <= set(grid["optimizer"]["cut"])
    below = {name for name in grid["threshold"]["shapes"] if name.endswith("norm.weight") or "norm_out" in name}
    assert below  # 64 values in fp32 are below 8 KB
    assert not below & set(grid["threshold"]["cut"])
    assert "lm_head.weight" in grid["threshold"]["cut"]


def test_cut_weights_are_gathered_again(grid: dict) -> None:
    once, again = (messages(grid[name], "AllGather") for name in ("optimizer", "gathered_again"))
    assert (once, again) == (12, 20)  # for the products of the backward pass
    assert messages(grid["gathered_again"], "ReduceScatter") == messages(grid["optimizer"], "ReduceScatter")


def test_gradient_aggregation_group_is_the_number_of_messages(grid: dict) -> None:
    assert set(grid["plain"]["fused"]) == {"1", "2", "3"}  # the embedding; layer 0; layer 1 with norm and head
    assert grid["one_message"]["fused"] == {"1": 1, "2": 20}


def test_interleaved_parts_are_marked_for_the_scheduler(grid: dict) -> None:
    assert set(grid["plain"]["marks"].values()) == {0}
    assert grid["interleaved"]["marks"] == {"strided_slice_flag": 2, "micro_interleaved_add_flag": 1}
    assert messages(grid["interleaved"], "AllReduce", [0, 1]) == 8  # one layer, twice


def test_recompute_options(grid: dict) -> None:
    plain, whole = grid["plain"], grid["recompute"]
    assert plain["recomputed"] == 0
    assert whole["operations"]["MatMul"] > plain["operations"]["MatMul"]
    # the sums after wo, whose results the feed-forward needs again
    assert messages(whole, "AllReduce", [0, 1]) == messages(plain, "AllReduce", [0, 1]) + 2
    assert messages(grid["recompute_alone"], "AllReduce", [0, 1]) == messages(plain, "AllReduce", [0, 1])
    assert grid["recompute_alone"]["recomputed"] > 0
    assert messages(whole, "AllGather") == 0
    assert messages(grid["recompute_sliced"], "AllGather", [0, 1]) > 0


def test_select_recompute_leaves_the_large_products(grid: dict) -> None:
    plain, select = grid["plain"], grid["select"]
    assert select["operations"]["SiLU"] == 2 * plain["operations"]["SiLU"]
    assert plain["operations"]["MatMul"] <= select["operations"]["MatMul"] < grid["recompute"]["operations"]["MatMul"]
    assert 0 < select["recomputed"] < grid["recompute"]["recomputed"]


def test_adapters_are_cut_as_their_layers(grid: dict) -> None:
    shapes = grid["lora_half"]["shapes"]
    path = "model.layers.0.{}.mindpet_delta_lora_{}"
    assert shapes[path.format("attention.wq", "a")] == [4, 64]
    assert shapes[path.format("attention.wq", "b")] == [32, 4]
    assert shapes[path.format("attention.wo", "a")] == [4, 32]
    assert shapes[path.format("attention.wo", "b")] == [64, 4]
    # no part of a layer changes its layout on the way: only sums between model parallel ranks
    assert messages(grid["lora_half"], "AllGather") == 0
    assert grid["lora_half"]["dropout_advances"] > 0
    assert grid["lora_half"]["recomputed"] > 0  # the masks


def test_layers_offsets_and_messages_of_stages(stages: list[dict]) -> None:
    first, last = stages
    assert layers(first["stages"]) == {0, 1}
    assert layers(last["stages"]) == {2}
    assert layers(first["offset"]) == {0}
    assert layers(last["offset"]) == {1, 2}
    for stage, other in ((first, 2), (last, 1)):
        for variant in ("stages", "offset", "optimizer"):
            for operation in ("Send", "Receive"):
                assert messages(stage[variant], operation, [other]) == 2  # one for each micro batch
            # the norm of the gradients and the loss, which only the last stage knows, on all ranks
            assert messages(stage[variant], "AllReduce", [0, 1, 2, 3]) == 2
    assert "lm_head.weight" in last["stages"]["shapes"]
    assert "lm_head.weight" not in first["stages"]["shapes"]


def test_pipelines_train_adapters_whose_dropout_advances(stages: list[dict]) -> None:
    for stage in stages:
        assert stage["lora"]["dropout_advances"] > 0
        assert messages(stage["lora"], "AllGather") == 0
        trained = {name.split(".")[-1] for name in stage["lora"]["shapes"] if name.startswith("accu_grads.")}
        assert trained == {"mindpet_delta_lora_a", "mindpet_delta_lora_b"}
    assert stages[0]["stages"]["dropout_advances"] == 0
