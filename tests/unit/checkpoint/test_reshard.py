# SPDX-License-Identifier: Apache-2.0
"""Cutting and joining checkpoints by the strategies that MindSpore compiles; MindSpore's own conversion agrees."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindformers.checkpoint.foreign.arrays import Raw
from mindformers.checkpoint.foreign.table import expected_shapes
from mindformers.checkpoint.manifest import read_manifest
from mindformers.checkpoint.reshard import load_slices
from mindformers.checkpoint.sources import open_source
from mindformers.checkpoint.strategy import read_strategy
from mindformers.checkpoint.stream import CheckpointStream, Planned
from mindformers.checkpoint.transform import transform
from mindformers.errors import CheckpointError
from mindformers.models.llama.llama_config import LlamaConfig
from mindformers.tools.transform_ckpt import main
from tests.helpers import REPO
from tests.unit.checkpoint.helpers import LogLines
from tests.unit.checkpoint.strategy_maker import LAYOUTS, MODEL

STEP = {"step": 7, "epoch": 1, "step_in_epoch": 7, "seed": 3, "global_batch_size": 4, "dataset_records": 40}


@pytest.fixture(scope="session")
def strategies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Strategy files of every layout, by compilation."""
    folder = tmp_path_factory.mktemp("strategies")
    command = [sys.executable, "-m", "tests.unit.checkpoint.strategy_maker", str(folder)]
    done = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:]
    return folder


def _environment() -> dict[str, str]:
    return dict(os.environ, PYTHONPATH=str(REPO), GLOG_v="3", OMP_NUM_THREADS="1")


def write_state(path: Path, values: dict[str, Raw], fmt: str = "ckpt") -> None:
    plan = [Planned(name, value.data.shape, value.dtype) for name, value in values.items()]
    with CheckpointStream(path, plan, fmt, STEP) as stream:
        for item in plan:
            stream.add(item, values[item.name])


@pytest.fixture(scope="session")
def state() -> dict[str, Raw]:
    """A training state: weights, moments, counters."""
    rng = np.random.default_rng(0)
    values: dict[str, Raw] = {}
    for name, shape in expected_shapes(LlamaConfig(**MODEL)).items():
        for prefix in ("", "adam_m.", "adam_v."):
            values[prefix + name] = Raw(rng.normal(size=shape).astype(np.float32), "float32")
    values["global_step"] = Raw(np.array([7], np.int32), "int32")
    values["scale_sense"] = Raw(np.array(1024.0, np.float32), "float32")
    return values


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Raw]) -> Path:
    path = tmp_path_factory.mktemp("whole") / "whole.ckpt"
    write_state(path, state)
    return path


def contents(path: Path) -> dict[str, Raw]:
    source = open_source(path).source
    return {name: source.read(name, tuple((0, n) for n in facts.shape)) for name, facts in source.facts.items()}


def assert_same(found: dict[str, Raw], expected: dict[str, Raw]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert (found[name].dtype, found[name].data.shape) == (value.dtype, value.data.shape), name
        assert found[name].data.tobytes() == value.data.tobytes(), name


def assert_holds(network: Any, expected: dict[str, Raw]) -> None:
    assert {p.name for p in network.get_parameters()} == set(expected)
    for parameter in network.get_parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), expected[parameter.name].data, err_msg=parameter.name)


@pytest.mark.parametrize("name", LAYOUTS)
def test_split_and_merge_is_exact_and_slices_are_those_compiled(
    strategies: Path, whole: Path, state: dict[str, Raw], tmp_path: Path, name: str
) -> None:
    layout = read_strategy(strategies / name / "strategy")
    assert layout.ranks == LAYOUTS[name].ranks
    assert len(layout.stages) == LAYOUTS[name].pp
    done = transform(open_source(whole), tmp_path / "cut", layout, with_optimizer=True, verify=True)
    assert len(done.files) == LAYOUTS[name].ranks
    for file in (strategies / name).glob("shapes_*.json"):
        rank = int(file.stem.split("_")[1])
        compiled = {n: tuple(s) for n, s in json.loads(file.read_text()).items() if n in state}
        cut = {n: v.data.shape for n, v in contents(done.files[rank]).items()}
        assert compiled.items() <= cut.items()
    fmt = "safetensors" if name.startswith("dp4") else "ckpt"
    joined = transform(
        open_source(tmp_path / "cut", strategies / name / "strategy"), tmp_path / "joined", fmt=fmt,
        with_optimizer=True, verify=True,
    )  # fmt: skip
    assert_same(contents(joined.files[0]), state)
    assert read_manifest(joined.files[0]).step == 7


@pytest.mark.parametrize("name", ["dp4_mp2_optimizer", "dp4_optimizer_of_2", "dp2_mp2_pp2_optimizer"])
def test_mindspore_cuts_the_same(strategies: Path, whole: Path, tmp_path: Path, name: str) -> None:
    import mindspore as ms

    layout = read_strategy(strategies / name / "strategy")
    done = transform(open_source(whole), tmp_path / "ours", layout, with_optimizer=True)
    files = sorted((strategies / name / "strategy").iterdir())
    strategy = str(files[0])
    if len(files) > 1:
        strategy = str(tmp_path / "merged.ckpt")
        ms.parallel.merge_pipeline_strategys(str(files[0].parent), strategy)
        assert read_strategy(strategy).stages == layout.stages
    for rank in (1, layout.ranks - 2):
        theirs = tmp_path / f"theirs{rank}.ckpt"
        ms.parallel.transform_checkpoint_by_rank(rank, {0: str(whole)}, str(theirs), None, strategy)
        assert_same(contents(done.files[rank]), contents(theirs))


def test_one_layout_becomes_another(strategies: Path, whole: Path, state: dict[str, Raw], tmp_path: Path) -> None:
    """Eight slices to four to eight of a pipeline; no whole file in between. Strategies come from the manifests too."""
    places = {name: strategies / name / "strategy" for name in ("dp4_mp2_optimizer", "mp4", "dp2_mp2_pp2_optimizer")}
    transform(open_source(whole), tmp_path / "0", read_strategy(places["dp4_mp2_optimizer"]), with_optimizer=True)
    transform(open_source(tmp_path / "0"), tmp_path / "1", read_strategy(places["mp4"]), with_optimizer=True)
    last = read_strategy(places["dp2_mp2_pp2_optimizer"])
    transform(open_source(tmp_path / "1", places["mp4"]), tmp_path / "2", last, with_optimizer=True, fmt="safetensors")
    joined = transform(open_source(tmp_path / "2"), tmp_path / "3", with_optimizer=True, verify=True)
    assert_same(contents(joined.files[0]), state)
    with pytest.raises(CheckpointError, match=r"is not how .* was cut"):
        open_source(tmp_path / "2", places["mp4"])


@pytest.mark.parametrize(
    ("before", "after"), [("dp2_mp2_pp2_optimizer", "mp4"), ("mp4", "dp2_mp2_pp2_optimizer"), ("mp2_pp2", "mp2_pp2")]
)
def test_a_run_takes_its_parts_of_another_layout(
    strategies: Path, whole: Path, tmp_path: Path, before: str, after: str
) -> None:
    """auto_trans_ckpt: each rank of four or eight, stages too, gets what a conversion by hand would give it."""
    import mindspore as ms

    layout = read_strategy(strategies / after / "strategy")
    transform(
        open_source(whole), tmp_path / "cut", read_strategy(strategies / before / "strategy"), with_optimizer=True
    )
    by_hand = transform(open_source(whole), tmp_path / "by_hand", layout)
    for rank, file in enumerate(by_hand.files):
        expected = contents(file)
        network = {n: ms.Parameter(ms.Tensor(np.zeros_like(raw.data)), name=n) for n, raw in expected.items()}
        others = {n: ms.Parameter(ms.Tensor([0.0]), name=n) for n in expected_shapes(LlamaConfig(**MODEL))}
        report = load_slices(others | network, tmp_path / "cut", layout=layout, rank=rank)
        assert report.loaded == len(expected)
        for name, parameter in network.items():
            np.testing.assert_array_equal(parameter.asnumpy(), expected[name].data, err_msg=f"{name} of rank {rank}")


def test_without_manifests_the_strategy_is_used(strategies: Path, whole: Path, state: dict, tmp_path: Path) -> None:
    """As the files of other programs come: one file in each folder, strategies of all stages, or merged in one file."""
    import mindspore as ms

    folder = strategies / "dp2_mp2_pp2_optimizer" / "strategy"
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    transform(open_source(whole), tmp_path / "cut", read_strategy(folder))
    for manifest in (tmp_path / "cut").glob("rank_*/*.json"):
        manifest.unlink()
    merged = tmp_path / "merged.ckpt"
    ms.parallel.merge_pipeline_strategys(str(folder), str(merged))
    weights = {name: value for name, value in state.items() if name.startswith(("model.", "lm_head."))}
    for place, strategy in enumerate((folder, merged)):
        joined = transform(open_source(tmp_path / "cut", strategy), tmp_path / str(place), verify=True)
        assert_same(contents(joined.files[0]), weights)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    with pytest.raises(CheckpointError, match="no strategy of pipeline stage 0"):
        open_source(tmp_path / "cut", folder / "ckpt_strategy_rank_4.ckpt")


def test_command_and_foreign_weights(strategies: Path, whole: Path, tmp_path: Path, capsys) -> None:
    """The card's command; AutoModel opens what it joins, and its conversion to Hugging Face, which is cut again."""
    from mindformers import AutoModel
    from mindformers.models.llama.convert_weight import main as convert

    strategy = str(strategies / "mp4" / "strategy")
    flags = ["--src_ckpt_dir", str(whole), "--dst_ckpt_strategy", strategy, "--dst_ckpt_dir", str(tmp_path / "cut")]
    assert main(flags) == 0
    flags = ["--src_ckpt_strategy", strategy, "--src_ckpt_dir", str(tmp_path / "cut"), "--prefix", "llama2_7b"]
    assert main([*flags, "--dst_ckpt_dir", str(tmp_path / "joined"), "--verify", "--workers", "3"]) == 0
    assert "verified: the checksums of 21 parts agree" in capsys.readouterr().out
    joined = tmp_path / "joined/rank_0/llama2_7b0.ckpt"
    weights = contents(joined)
    network = AutoModel.from_config(LlamaConfig(**MODEL | {"checkpoint_name_or_path": str(joined)}))
    assert_holds(network, weights)
    config = tmp_path / "model.yaml"
    config.write_text("model:\n  model_config:\n" + "".join(f"    {k}: {json.dumps(v)}\n" for k, v in MODEL.items()))
    assert (
        convert(["--mindspore_ckpt_path", str(joined), "--to_hf", str(tmp_path / "hf"), "--config", str(config)]) == 0
    )
    assert_holds(AutoModel.from_pretrained(tmp_path / "hf"), weights)
    pp = read_strategy(strategies / "mp2_pp2" / "strategy")
    transform(open_source(tmp_path / "hf"), tmp_path / "again", pp, verify=True)
    again = transform(open_source(tmp_path / "again"), tmp_path / "last")
    assert_same(contents(again.files[0]), contents(joined))


def test_killed_while_writing_leaves_nothing_that_counts(strategies: Path, whole: Path, tmp_path: Path) -> None:
    code = """
import os, sys
from mindformers.checkpoint.stream import CheckpointStream
from mindformers.tools.transform_ckpt import main
add, count = CheckpointStream.add, []
def counted(*args):
    add(*args)
    count.append(1)
    if len(count) == 30:
        os.kill(os.getpid(), 9)
CheckpointStream.add = counted
main(sys.argv[1:])
"""
    flags = ["--src_ckpt_dir", str(whole), "--dst_ckpt_strategy", str(strategies / "mp4/strategy")]
    command = [sys.executable, "-c", code, *flags, "--dst_ckpt_dir", str(tmp_path / "cut")]
    assert subprocess.run(command, env=_environment(), capture_output=True, timeout=300).returncode == -9
    assert not list((tmp_path / "cut").glob("rank_*"))
    with LogLines() as log:
        assert main([*flags, "--dst_ckpt_dir", str(tmp_path / "cut")]) == 0
    assert log.having("is of a conversion under way, or of one that was killed")
