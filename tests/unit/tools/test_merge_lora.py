# SPDX-License-Identifier: Apache-2.0
"""merge_lora.py: types, old files, and everything that must not be merged."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mindformers.checkpoint.load import read_checkpoint
from mindformers.checkpoint.manifest import read_manifest
from mindformers.checkpoint.save import save_network
from mindformers.errors import CheckpointError, ConfigError, MindFormersError
from mindformers.pet.adapter_file import read_adapter
from mindformers.pet.merge import MergeReport, adapter_deltas, check_unmerge, open_base
from mindformers.tools import merge_lora

WQ, W2 = "model.layers.0.attention.wq", "model.layers.1.feed_forward.w2"
CONFIG = {"lora_rank": 2, "lora_alpha": 8.0, "target_modules": "wq|w2"}


def base_weights(dtype: type = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {f"{WQ}.weight": (6, 4), f"{W2}.weight": (4, 10), "model.norm_out.weight": (4,)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def adapter_weights(part: str = "mindpet_delta") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {f"{WQ}.{part}_lora_a": (2, 4), f"{WQ}.{part}_lora_b": (6, 2)}
    shapes |= {f"{W2}.{part}_lora_a": (2, 10), f"{W2}.{part}_lora_b": (4, 2)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def expected(base: dict[str, np.ndarray], alpha: float = 8.0) -> dict[str, np.ndarray]:
    adapter, result = adapter_weights(), {name: value.astype(np.float64) for name, value in base.items()}
    for place in (WQ, W2):
        a, b = (adapter[f"{place}.mindpet_delta_lora_{half}"].astype(np.float64) for half in "ab")
        result[f"{place}.weight"] += alpha / 2 * b @ a
    return result


def save_adapter(path: Path, values: dict | None = None, config: dict | None = CONFIG) -> Path:
    fields = {} if config is None else {"adapter": {"config": config, "base": "somewhere.ckpt"}}
    save_network(values or adapter_weights(), path, manifest_fields=fields, fmt=path.suffix[1:])
    return path


def merge(tmp_path: Path, *words: object, output: str = "merged.safetensors") -> Path:
    target = tmp_path / output
    assert merge_lora.main([*map(str, words), "--output", str(target)]) == 0
    return target


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("fmt", ["ckpt", "safetensors"])
def test_values_and_types_of_the_base_are_kept(tmp_path: Path, dtype: type, fmt: str, capsys) -> None:
    base = base_weights(dtype)
    state = {"adam_m.x": np.zeros(3, np.float32), "global_step": np.array([5], np.int32)}
    save_network(base | state, tmp_path / f"base.{fmt}", fmt=fmt)
    adapter = save_adapter(tmp_path / "adapter.ckpt")
    merged = merge(tmp_path, "--base", tmp_path / f"base.{fmt}", "--adapter", adapter, "--check", output=f"m.{fmt}")
    values = read_checkpoint(merged)
    assert set(values) == set(base)
    for name, value in expected(base).items():
        got = values[name].asnumpy()
        assert got.dtype == dtype
        np.testing.assert_allclose(got, value, rtol=np.finfo(dtype).eps, atol=np.finfo(dtype).eps)
    assert values["model.norm_out.weight"].asnumpy().tobytes() == base["model.norm_out.weight"].tobytes()
    printed = capsys.readouterr().out
    assert "2 weights changed" in printed
    assert "check passed" in printed


def test_old_file_with_base_and_adapter_in_one(tmp_path: Path) -> None:
    both = tmp_path / "old.ckpt"
    save_network(base_weights() | adapter_weights("tk_delta"), both)
    both.with_name("old.ckpt.json").unlink()  # the old library wrote no manifest
    with pytest.raises(CheckpointError, match="give --lora_alpha"):
        merge(tmp_path, "--base", both)
    values = read_checkpoint(merge(tmp_path, "--base", both, "--lora_alpha", 8))
    for name, value in expected(base_weights()).items():
        np.testing.assert_allclose(values[name].asnumpy(), value, rtol=1e-6, atol=1e-6)


def broken(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    values = adapter_weights()
    for half, value in changes.items():
        name = f"{WQ}.mindpet_delta_lora_{half}"
        values.pop(name) if value is None else values.update({name: value})
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (broken(a=None), "lora_b only"),
        (broken(b=np.ones((5, 2), np.float32)), r"do not fit the weight \[6, 4\]"),
        (broken(a=np.ones((3, 4), np.float32)), "do not fit the weight"),
        ({n: v * (not n.endswith("b")) for n, v in adapter_weights().items()}, "every B of the adapter is zero"),
        ({n.replace("layers.1", "layers.7"): v for n, v in adapter_weights().items()}, "layers.7.feed_forward.w2"),
    ],
)
def test_adapters_that_do_not_fit_write_nothing(tmp_path: Path, values: dict, message: str) -> None:
    save_network(base_weights(), tmp_path / "base.ckpt")
    adapter = save_adapter(tmp_path / "adapter.safetensors", values)
    with pytest.raises(CheckpointError, match=message):
        merge(tmp_path, "--base", tmp_path / "base.ckpt", "--adapter", adapter)
    assert not list(tmp_path.glob("*merged*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of --output"),
        (["--adapter", "a", "--output", "m.ckpt", "--to_peft", "p"], "--output and --to_peft"),
        (["--adapter", "a", "--output", "m.ckpt"], "merging needs --base"),
        (["--adapter", "a", "--to_peft", "p", "--check"], "--check belongs to merging"),
        (["--to_peft", "p"], "--adapter PATH is needed"),
        (["--base", "b", "--output", "m.bin"], "must end with .ckpt or .safetensors"),
        (["--base", "b", "--output", "m.ckpt", "--lora_alpha", "-1"], "--lora_alpha must be positive"),
        (["--adapter", "a", "--to_mindformers", "m.ckpt", "--base_name", "x"], "--base_name belongs to --to_peft"),
        (["--base", "nowhere.ckpt", "--output", "m.ckpt"], "nowhere.ckpt does not exist"),
    ],
)
def test_wrong_arguments(words: list[str], message: str) -> None:
    with pytest.raises(MindFormersError, match=message):
        merge_lora.main(words)


def test_output_never_replaces_its_sources_and_alpha_cannot_contradict(tmp_path: Path) -> None:
    save_network(base_weights(), tmp_path / "base.ckpt")
    adapter = save_adapter(tmp_path / "adapter.ckpt")
    words = ("--base", tmp_path / "base.ckpt", "--adapter", adapter)
    for name in ("base.ckpt", "adapter.ckpt"):
        with pytest.raises(ConfigError, match="would replace"):
            merge(tmp_path, *words, output=name)
    with pytest.raises(ConfigError, match="was made with 8"):
        merge(tmp_path, *words, "--lora_alpha", 4)


def test_the_check_sees_a_wrong_merge(tmp_path: Path) -> None:
    save_network(base_weights(), tmp_path / "base.ckpt")
    base = open_base(tmp_path / "base.ckpt")
    pairs = adapter_deltas(adapter_weights(), 4.0, base)
    for name, message in ((f"{WQ}.weight", "misses the base"), ("model.norm_out.weight", "has no adapter and differs")):
        wrong = {n: v.astype(np.float32) for n, v in expected(base_weights()).items()}
        wrong[name] = wrong[name] + np.float32(1e-4)
        save_network(wrong, tmp_path / "wrong.ckpt")
        with pytest.raises(CheckpointError, match=message):
            check_unmerge(base, pairs, tmp_path / "wrong.ckpt", MergeReport())


PEFT = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"}
KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


def peft_folder(folder: Path, config: object = PEFT, names: dict[str, str] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    names = names or {"A": f"{KEY}A.weight", "B": f"{KEY}B.weight"}
    shapes = {"A": (2, 4), "B": (6, 2)}
    save_file({n: np.ones(shapes[half], np.float32) for half, n in names.items()}, folder / "adapter_model.safetensors")
    return folder


def test_peft_folder_is_read(tmp_path: Path) -> None:
    adapter = read_adapter(peft_folder(tmp_path))
    assert set(adapter.tensors) == {f"{WQ}.mindpet_delta_lora_a", f"{WQ}.mindpet_delta_lora_b"}
    assert adapter.config.target_modules == "wq$"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "only LORA"),
        (PEFT | {"peft_type": "IA3"}, "'IA3'; only LORA"),
        (PEFT | {"use_dora": True}, "use_dora True"),
        (PEFT | {"bias": "all"}, "bias 'all'"),
        (PEFT | {"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        (PEFT | {"modules_to_save": ["lm_head"]}, "modules_to_save"),
        (PEFT | {"r": 0}, "r must be a positive number"),
        (PEFT | {"lora_alpha": None}, "lora_alpha must be a positive number"),
        (PEFT | {"r": 3}, "does not fit r = 3"),
    ],
)
def test_peft_adapters_that_cannot_be_used(tmp_path: Path, config: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_adapter(peft_folder(tmp_path, config))


def test_peft_files_that_are_not_there_or_not_llama(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="unknown names"):
        read_adapter(peft_folder(tmp_path, names={"A": "transformer.h.0.attn.c_attn.lora_A.weight"}))
    with pytest.raises(CheckpointError, match="without its other half"):
        read_adapter(peft_folder(tmp_path, names={"A": f"{KEY}A.weight"}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is damaged"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="safe_serialization=True"):
        read_adapter(tmp_path)


def test_import_keeps_the_config_in_the_manifest(tmp_path: Path) -> None:
    target = tmp_path / "ours.safetensors"
    assert merge_lora.main(["--adapter", str(peft_folder(tmp_path / "p")), "--to_mindformers", str(target)]) == 0
    assert read_manifest(target).extra["adapter"]["config"]["lora_alpha"] == 4
    assert len(read_checkpoint(target)) == 2
