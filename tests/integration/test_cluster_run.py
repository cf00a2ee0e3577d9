# SPDX-License-Identifier: Apache-2.0
"""Four ranks as data 2 x model 2 through run_distribute.sh: killed, resumed, joined; as if nothing had happened."""

import signal
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from mindformers import AutoConfig, AutoModel
from mindformers.checkpoint.sources import open_source
from mindformers.checkpoint.strategy import whole_box
from mindformers.launch.hosts import birth
from mindformers.models.llama import convert_weight
from mindformers.tools import hccl_tools, transform_ckpt
from tests.integration.test_launch import SAVE_EVERY, STEPS_PER_EPOCH, end, kill_at, metrics, start, workplace

__all__ = ["workplace"]

SPLIT = ("--parallel.parallel_mode", "1", "--parallel_config.model_parallel", "2", "--epochs", "2")


def launch(folder: Path, output: str, *words: str):
    return start(
        folder, "run_distribute.sh", "four.json", "run.yaml", "[0,4]", "train", *SPLIT, "--output_dir", output, *words
    )


def joined(folder: Path, output: str) -> dict[str, np.ndarray]:
    """The weights of a run's newest step as one file, by the command."""
    words = ["--src_ckpt_strategy", f"{folder / output}/strategy", "--src_ckpt_dir", f"{folder / output}/checkpoint"]
    target = folder / f"{output}_joined"
    assert transform_ckpt.main([*words, "--dst_ckpt_dir", str(target), "--prefix", "tiny", "--verify"]) == 0
    source = open_source(target / "rank_0" / "tiny0.ckpt").source
    return {name: source.read(name, whole_box(facts.shape)).data for name, facts in source.facts.items()}


@pytest.fixture(scope="module")
def whole(workplace: Path) -> dict[str, np.ndarray]:
    """The joined weights of a run that nothing disturbs."""
    hccl_tools.main(["--cpu", "--device_num", "[0,4)", "--output", str(workplace / "four.json")])
    end(launch(workplace, "whole"))
    return joined(workplace, "whole")


def test_a_killed_rank_of_data_and_model_parallel(workplace: Path, whole: dict[str, np.ndarray]) -> None:
    process = launch(workplace, "cut")
    pids = kill_at(workplace, SAVE_EVERY + 2, "rank 2", process, output="cut")
    _, err = end(process, 128 + signal.SIGKILL)
    assert "data_parallel: 2 instead of 1, to use all 4 ranks" in err
    assert "rank 2 failed first: killed by SIGKILL" in err
    assert [pid for pid in pids.values() if birth(pid) is not None] == []
    end(launch(workplace, "cut", "--resume_training", "True"))
    expected = metrics(workplace, "whole")
    assert [step for step, _ in expected] == list(range(1, 2 * STEPS_PER_EPOCH + 1))
    assert metrics(workplace, "cut") == expected
    for name, value in joined(workplace, "cut").items():
        np.testing.assert_array_equal(value, whole[name], err_msg=name)


def test_a_joined_checkpoint_opens_everywhere(workplace: Path, whole: dict[str, np.ndarray]) -> None:
    """It is one of an ordinary model: here, and as a Hugging Face folder in transformers."""
    torch = pytest.importorskip("torch", reason="needs the extra 'test': transformers reads the result")
    transformers = pytest.importorskip("transformers", reason="needs the extra 'test': it reads the result")
    folder, file = workplace, workplace / "whole_joined" / "rank_0" / "tiny0.ckpt"
    config = AutoConfig.from_pretrained(str(folder / "run.yaml"))
    config.checkpoint_name_or_path = str(file)
    ids = np.arange(3, 12, dtype=np.int32)[None]
    ours = AutoModel.from_config(config).set_train(False)(Tensor(ids))[0].asnumpy()
    target = folder / "joined_hf"
    assert convert_weight.main(["--mindspore_ckpt_path", str(file), "--config", str(folder / "run.yaml"),
                                "--to_hf", str(target)]) == 0  # fmt: skip
    theirs = transformers.AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids, dtype=torch.int64)).logits.numpy()
    np.testing.assert_allclose(ours.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
