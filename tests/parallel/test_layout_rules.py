# SPDX-License-Identifier: Apache-2.0
"""Layouts that cannot work are refused in the configuration, with what would."""

import pytest

from mindformers.config import load_config
from mindformers.config.schema.layout_checks import working_layouts
from mindformers.config.schema.parallel import layer_stages
from mindformers.errors import ConfigError

TINY = ["use_parallel=True", "context.device_target=CPU"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["parallel_config.model_parallel=4"], "2 key/value heads .* layouts of 4 ranks that work: 2 . 2 . 1"),
        (["parallel.device_num=4"], r"= 1, but parallel.device_num is 4; layouts that work: 2 \* 2 \* 1, 4 \* 1 \* 1"),
        (["parallel_config.pipeline_stage=2", "parallel_config.micro_batch_num=2"], "stages cannot run on CPU"),
        (
            ["parallel_config.use_seq_parallel=True", "parallel_config.data_parallel=2",
             "parallel_config.model_parallel=2"],
            "on CPU it needs data_parallel 1, got 2",
        ),
        (["parallel_config.vocab_emb_dp=False", "parallel_config.model_parallel=2"], "set vocab_emb_dp True"),
        (
            ["context.device_target=Ascend", "parallel_config.pipeline_stage=2", "parallel_config.micro_batch_num=2",
             "runner_config.gradient_accumulation_steps=2"],
            "a pipeline accumulates over parallel_config.micro_batch_num",
        ),
        (
            ["context.device_target=Ascend", "parallel_config.pipeline_stage=2", "parallel_config.micro_batch_num=2",
             "model.model_config.offset=4"],
            "offset 4 leaves stage 0 of 2 without a layer",
        ),
        (
            ["context.device_target=Ascend", "parallel_config.pipeline_stage=2", "parallel_config.micro_batch_num=2",
             "micro_batch_interleave_num=2"],
            "interleaved halves and pipeline stages together do not compile",
        ),
        (
            ["recompute_config.parallel_optimizer_comm_recompute=True",
             "parallel.parallel_optimizer_config.gradient_accumulation_shard=True"],
            "without parallel_optimizer_config.gradient_accumulation_shard",
        ),
        (["parallel.parallel_mode=3"], r"hybrid parallel needs a model .* take 0 \(data parallel\)"),
        (["parallel.parallel_mode=3", "parallel_config.model_parallel=2"], r"take 1 \(semi-auto parallel\)"),
        (
            ["parallel.parallel_mode=2", "parallel_config.pipeline_stage=2", "context.device_target=Ascend"],
            r"no pipeline \(2 stages\) in auto parallel; take 1 \(semi-auto parallel\)",
        ),
        (
            ["parallel.parallel_mode=2", "parallel.search_mode=dynamic_programming"],
            "take sharding_propagation or recursive_programming",
        ),
        (["parallel.parallel_mode=STAND_ALONE"], "set use_parallel False"),
        (
            ["parallel.full_batch=False", "parallel_config.model_parallel=2", "parallel.device_num=2",
             "runner_config.batch_size=3"],
            "2 ranks cannot read equal parts of the 3 records of a batch",
        ),
        (
            ["parallel.full_batch=False", "parallel_config.pipeline_stage=2", "context.device_target=Ascend"],
            "does not compile a pipeline behind a batch that ranks read in parts",
        ),
    ],
)  # fmt: skip
def test_refused_before_mindspore_is_asked(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("run_llama2_tiny", [*TINY, *options])


def test_data_parallel_does_not_ask_for_the_whole_batch() -> None:
    load_config("run_llama2_tiny", [*TINY, "parallel.parallel_mode=0", "parallel.full_batch=False"])


@pytest.mark.parametrize(
    ("layers", "stages", "offset", "counts"),
    [
        (32, 4, 0, [8, 8, 8, 8]),
        (80, 16, 0, [5] * 16),
        (30, 4, 0, [7, 7, 7, 9]),
        (4, 2, 1, [1, 3]),
        (4, 2, [0, -1], [3, 1]),
    ],
)
def test_layers_of_stages(layers: int, stages: int, offset: int | list[int], counts: list[int]) -> None:
    places = layer_stages(layers, stages, offset)
    assert [places.count(stage) for stage in range(stages)] == counts
    assert places == sorted(places)


def test_nearest_layout_comes_first() -> None:
    cfg = load_config("run_llama2_70b_910b")
    assert working_layouts(cfg, 64)[0] in ("2 * 8 * 4", "1 * 8 * 8")
    assert sorted(working_layouts(cfg, 7)) == ["1 * 1 * 7", "7 * 1 * 1"]
