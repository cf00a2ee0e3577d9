# SPDX-License-Identifier: Apache-2.0
"""One training run over three layouts: its losses are those of a run that never moved."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mindformers.checkpoint.sources import open_source
from mindformers.checkpoint.strategy import read_strategy, whole_box
from mindformers.checkpoint.transform import transform
from tests.helpers import REPO
from tests.parallel.ranks import run_ranks
from tests.parallel.test_run_cpu import SHARDED_OPTIMIZER, SPLIT, TWO_GROUPS, job, perplexity

__all__ = ["job"]

ADAM = ("--optimizer.type", "FP32StateAdamWeightDecay", "--optimizer.learning_rate", "0.01", "--do_eval", "False")
ADAM += ("--callbacks.CheckpointMonitor.save_checkpoint_steps", "2")
CONTINUE = ("--resume_training", "True", "--auto_trans_ckpt", "True", "--load_checkpoint")

EVALUATE = ("--run_mode", "eval", "--load_checkpoint")


def run(job: Path, name: str, ranks: int, *arguments: str) -> str:
    command = [str(REPO / "run_mindformer.py"), "--config", "run.yaml", "--output_dir", name, *ADAM, *arguments]
    return run_ranks(ranks, command, job)[0]


def losses(job: Path, name: str) -> dict[int, float]:
    """Step of the run -> loss."""
    lines = (job / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {record["step"]: record["loss"] for record in map(json.loads, lines)}


def forget_after(job: Path, name: str, step: int) -> None:
    """Make it look as if the run had been stopped after a step."""
    for file in (job / name / "checkpoint").glob("rank_*/*"):
        if int(file.name.split("-1_")[1].split(".")[0]) > step:
            file.unlink()


@pytest.fixture(scope="module")
def moved(job: Path) -> Path:
    """The three parts of the run, and the run that stayed in one process."""
    run(job, "stayed", 1)
    run(job, "first", 2, *SPLIT, *TWO_GROUPS, "2", *SHARDED_OPTIMIZER)
    forget_after(job, "first", 2)
    run(job, "second", 2, *SPLIT, "--parallel_config.model_parallel", "2", *CONTINUE, "first")
    forget_after(job, "second", 4)
    run(job, "third", 1, *CONTINUE, "second")
    return job


@pytest.fixture(scope="module")
def one_perplexity(job: Path) -> float:
    """That of the weights the job starts from, in one process."""
    return perplexity(run(job, "one", 1, *EVALUATE, "init.ckpt"))


def test_losses_continue_over_three_layouts(moved: Path) -> None:
    expected = losses(moved, "stayed")
    assert list(expected) == [1, 2, 3, 4, 5, 6]
    for name, steps in {"first": [1, 2, 3, 4, 5, 6], "second": [3, 4, 5, 6], "third": [5, 6]}.items():
        found = losses(moved, name)
        assert list(found) == steps
        np.testing.assert_allclose(list(found.values()), [expected[s] for s in steps], rtol=0, atol=2e-6, err_msg=name)


def test_checkpoints_say_how_they_were_cut(moved: Path) -> None:
    """They need no strategy files, and joined they are the state of the run that stayed."""
    shutil.rmtree(moved / "second" / "strategy")
    source = open_source(moved / "second").source
    assert source.layout.ranks == 2
    whole = open_source(moved / "stayed/checkpoint/rank_0/llama2_tiny_rank_0-1_4.ckpt").source
    assert set(source.facts) == set(whole.facts)
    for name, (shape, dtype) in whole.facts.items():
        if "float" in dtype:
            one, other = (s.read(name, whole_box(shape)).data for s in (source, whole))
            np.testing.assert_allclose(one, other, rtol=0, atol=2e-5, err_msg=name)


def test_cut_weights_load_whole_in_one_process(moved: Path) -> None:
    from mindformers.config import load_config
    from mindformers.trainer.network import build_network, load_weights

    cfg = load_config(moved / "run.yaml", ["auto_trans_ckpt=True", f"load_checkpoint={moved / 'first'}"])
    network = build_network(cfg)
    load_weights(network, cfg, required=True)
    whole = open_source(moved / "first").source
    for parameter in network.get_parameters():
        if parameter.name in whole.facts:
            expected = whole.read(parameter.name, whole_box(parameter.shape)).data
            np.testing.assert_array_equal(parameter.asnumpy(), expected)


def test_strategy_alone_then_cut_by_hand_then_loaded_as_it_is(moved: Path, one_perplexity: float) -> None:
    mp2 = (*SPLIT, "--parallel_config.model_parallel", "2")
    run(moved, "planned", 2, *mp2, "--only_save_strategy", "True")
    assert not (moved / "planned/checkpoint").exists()
    strategy = read_strategy(moved / "planned/strategy")
    transform(open_source(moved / "init.ckpt"), moved / "cut", strategy)
    found = perplexity(run(moved, "of_cut", 2, *mp2, *EVALUATE, "cut"))
    assert found == pytest.approx(one_perplexity, rel=1e-5)


def test_a_whole_checkpoint_is_evaluated_on_two_ranks(moved: Path, one_perplexity: float) -> None:
    """The card's folder with rank_0/model.ckpt."""
    (moved / "whole/rank_0").mkdir(parents=True)
    shutil.copy(moved / "init.ckpt", moved / "whole/rank_0/model.ckpt")
    split = (*SPLIT, "--parallel_config.model_parallel", "2", "--auto_trans_ckpt", "True")
    found = perplexity(run(moved, "two", 2, *split, *EVALUATE, "whole"))
    assert found == pytest.approx(one_perplexity, rel=1e-5)
    assert [p.name.split(".", 1)[1] for p in sorted((moved / "two/transformed_checkpoint").iterdir())] == [
        "load.rank_0", "load.rank_1"
    ]  # fmt: skip
