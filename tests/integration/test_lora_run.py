# SPDX-License-Identifier: Apache-2.0
"""LoRA by its commands: adapter-only checkpoints, kill and resume, base + adapter in eval and predict, merge."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from mindformers.checkpoint.load import read_checkpoint
from mindformers.checkpoint.manifest import read_manifest
from mindformers.checkpoint.save import save_network
from mindformers.config import RunConfig, load_config
from mindformers.config.overrides import Override
from mindformers.errors import CheckpointError, MindFormersError
from mindformers.tools import merge_lora
from mindformers.trainer import Trainer
from mindformers.trainer.network import build_network
from tests.helpers import REPO

STEPS, SAVE_EVERY = 12, 5


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with records, a base checkpoint, and configs of the base and of LoRA on it."""
    from mindformers.dataset.mindrecord import MindRecordWriter

    folder = tmp_path_factory.mktemp("lora run")
    rng = np.random.default_rng(0)
    for name, count in (("train", 4 * STEPS // 2), ("valid", 6)):
        writer = MindRecordWriter(folder / f"{name}.mindrecord", {"input_ids": 17, "labels": 17})
        ids = (rng.integers(3, 60, (count, 1)) + np.arange(17)).astype(np.int32)
        labels = ids.copy()
        labels[:, :6] = -100  # the prompt
        writer.write(input_ids=ids, labels=labels)
        writer.close()
    config = yaml.safe_load((REPO / "configs/llama2/run_llama2_tiny_lora.yaml").read_text(encoding="utf-8"))
    pet = config["model"]["model_config"].pop("pet_config")
    config["base_config"] = str(REPO / "configs/llama2/run_llama2_tiny.yaml")
    config["load_checkpoint"] = ""
    config["runner_config"] = {"epochs": 2, "batch_size": 4}
    config["model"]["model_config"] = {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "n_kv_heads": 2, "vocab_size": 100, "seq_length": 16,
        "pretrain_seqlen": 16, "max_decode_length": 16, "use_past": False,
    }  # fmt: skip
    for kind, data in (("train", "train"), ("eval", "valid")):
        config[f"{kind}_dataset"]["data_loader"] = {"dataset_dir": str(folder / f"{data}.mindrecord")}
    config["callbacks"][0]["per_print_times"] = 1
    config["callbacks"][1]["save_checkpoint_steps"] = SAVE_EVERY
    (folder / "base.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    pet |= {"lora_dropout": 0.2, "lora_rank": 4}
    lora = {"base_config": str(folder / "base.yaml"), "model": {"model_config": {"pet_config": pet}}}
    (folder / "lora.yaml").write_text(yaml.safe_dump(lora), encoding="utf-8")
    network = build_network(config_of(folder / "base.yaml", run_mode="train"))
    save_network({p.name: p for p in network.get_parameters()}, folder / "base.safetensors", fmt="safetensors")
    return folder


def config_of(path: Path, **changes: str) -> RunConfig:
    return load_config(str(path), [Override(key, text, key) for key, text in changes.items()])


def lora(place: Path, output: str, **changes: str) -> RunConfig:
    base = {"load_checkpoint": str(place / "base.safetensors"), "output_dir": str(place / output)}
    return config_of(place / "lora.yaml", **{**base, **changes})


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(record["step"], record["loss"]) for record in map(json.loads, lines)]


def evaluated(cfg: RunConfig) -> float:
    return Trainer(cfg).evaluate()["PerplexityMetric"]["loss"]


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """An uninterrupted run; its output folder."""
    Trainer(lora(place, "whole")).finetune()
    return place / "whole"


def test_only_adapters_are_saved_with_their_config(place: Path, whole: Path) -> None:
    names = [f"checkpoint/rank_0/llama2_tiny_lora_rank_0-{name}" for name in ("1_5", "2_4", "2_6")]
    names.append("checkpoint_trainable/rank_0/llama2_tiny_lora_rank_0-trainable_params")
    expected = {f"{name}.safetensors{end}" for name in names for end in ("", ".json")} | {
        "config.yaml",
        "metrics.jsonl",
    }
    assert {str(p.relative_to(whole)) for p in whole.rglob("*") if p.is_file()} == expected
    trainable = whole / f"{names[-1]}.safetensors"
    assert all("mindpet_delta_lora_" in name for name in read_checkpoint(trainable))
    assert len(read_checkpoint(trainable)) == 2 * 7 * 2
    entry = read_manifest(trainable).extra["adapter"]
    assert entry["config"]["lora_rank"] == 4
    assert entry["base"] == str(place / "base.safetensors")
    values = losses(whole)
    assert [step for step, _ in values] == list(range(1, STEPS + 1))
    assert values[-1][1] < values[0][1]


def test_kill_and_resume_give_the_same_losses(place: Path, whole: Path) -> None:
    words = [sys.executable, str(REPO / "run_mindformer.py"), "--config", str(place / "lora.yaml"), "--run_mode",
             "finetune", "--load_checkpoint", str(place / "base.safetensors"), "--output_dir", "killed"]  # fmt: skip
    with open(place / "killed.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(words, cwd=place, stdout=log, stderr=log)
    metrics, deadline = place / "killed" / "metrics.jsonl", time.monotonic() + 900
    while not (metrics.exists() and '"step": 7,' in metrics.read_text(encoding="utf-8")):
        assert process.poll() is None, (place / "killed.log").read_text(encoding="utf-8")[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    cfg = lora(place, "killed", resume_training="True", load_checkpoint="")  # the base is known from the checkpoint
    Trainer(cfg).finetune()
    assert losses(place / "killed") == losses(whole)


def test_base_and_adapter_by_every_name_and_merged(place: Path, whole: Path) -> None:
    base, adapter = str(place / "base.safetensors"), str(whole / "checkpoint_trainable")
    plain = evaluated(config_of(place / "base.yaml", run_mode="eval", load_checkpoint=base))
    both = evaluated(lora(place, "eval", run_mode="eval", adapter_checkpoint=adapter))
    assert both < plain - 0.01
    # an adapter knows its base and its config, so the config of the base is enough
    assert evaluated(config_of(place / "base.yaml", run_mode="eval", load_checkpoint=adapter)) == both
    last = str(whole)  # the run's folder: its newest full state
    assert evaluated(config_of(place / "base.yaml", run_mode="eval", adapter_checkpoint=last)) == both
    merged = place / "merged.ckpt"
    assert merge_lora.main(["--base", base, "--adapter", adapter, "--output", str(merged), "--check"]) == 0
    after = evaluated(config_of(place / "base.yaml", run_mode="eval", load_checkpoint=str(merged)))
    assert after == pytest.approx(both, rel=1e-5)


def test_mistakes_are_refused(place: Path, whole: Path) -> None:
    adapter = str(whole / "checkpoint_trainable")
    network = build_network(config_of(place / "base.yaml", run_mode="train", **{"seed": "9"}))
    for parameter in network.get_parameters():
        parameter.set_data(parameter.value() + 1)
    other = place / "other.ckpt"
    save_network({p.name: p for p in network.get_parameters()}, other)
    rank = "model.model_config.pet_config.lora_rank"
    alpha = "model.model_config.pet_config.lora_alpha"
    targets = "model.model_config.pet_config.target_modules"
    resume = {"resume_training": "True", "runner_config.epochs": "3"}
    cases = [
        ("evaluate", {"run_mode": "eval"}, "was given no adapter"),
        ("evaluate", {"run_mode": "eval", "adapter_checkpoint": adapter, alpha: "3"}, "lora_alpha: adapter 16"),
        ("evaluate", {"run_mode": "eval", "adapter_checkpoint": adapter, rank: "2"}, "lora_rank: adapter 4"),
        ("evaluate", {"run_mode": "eval", "adapter_checkpoint": adapter, targets: "wq"}, "leaves out"),
        ("evaluate", {"run_mode": "eval", "adapter_checkpoint": str(other)}, "holds no adapter"),
        ("train", {"load_checkpoint": "", "run_mode": "train"}, "needs weights"),
        ("train", {**resume, "load_checkpoint": str(other)}, "are not those the checkpoint's adapter was trained on"),
        ("train", {**resume, alpha: "8"}, "lora_alpha: adapter 16"),
    ]
    for verb, changes, message in cases:
        cfg = lora(place, "whole", **changes)
        with pytest.raises(MindFormersError, match=message):
            getattr(Trainer(cfg), verb)()
    moved = place / "moved.safetensors"
    os.rename(place / "base.safetensors", moved)
    try:
        with pytest.raises(CheckpointError, match=r"base\.safetensors, which is not there now"):
            evaluated(config_of(place / "base.yaml", run_mode="eval", load_checkpoint=adapter))
    finally:
        os.rename(moved, place / "base.safetensors")
