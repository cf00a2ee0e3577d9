# SPDX-License-Identifier: Apache-2.0
"""``python -m mindformers``: ls, validate, show, cp; and the lazy names of the package."""

import importlib
import subprocess
import sys

import pytest
import yaml

import mindformers
from mindformers.__main__ import main
from mindformers.config import load_config
from mindformers.config.files import shipped_configs
from mindformers.errors import ConfigError
from mindformers.tools.utils import (
    count_params,
    did_you_mean,
    get_output_root_path,
    get_output_subpath,
    nearest,
    parse_value,
    str2bool,
)
from tests.helpers import REPO
from tests.unit.config.helpers import SMALL, write


def test_ls_lists_every_config(capsys):
    assert main(["ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "PARAMS", "DEVICES", "RUN_MODE", "FOR"]
    assert [line.split()[0] for line in lines[1:]] == list(shipped_configs())
    seventy = next(line for line in lines if line.startswith("run_llama2_70b "))
    assert seventy.split()[1:5] == ["69.0B", "128", "Ascend", "train"]


def test_validate(tmp_path, capsys):
    good, bad = write(tmp_path, SMALL, "good.yaml"), write(tmp_path, SMALL + "sed: 1\n", "bad.yaml")
    warned = write(tmp_path, SMALL + "layer_scale: True\n", "warned.yaml")
    assert main(["validate", str(good), str(warned)]) == 0
    output = capsys.readouterr()
    assert output.out == f"OK {good}\nOK {warned}\n"
    assert "line 11: layer_scale: no effect" in output.err
    assert main(["validate", str(bad), str(good), str(tmp_path / "none.yaml")]) == 2
    output = capsys.readouterr()
    assert output.out == f"OK {good}\n"
    assert "line 11: sed: unknown key" in output.err
    assert "none.yaml: no such file" in output.err


def test_show_prints_a_config_that_loads(tmp_path, capsys):
    assert main(["show", "run_llama2_tiny", "--options", "seed=7"]) == 0
    shown = load_config(write(tmp_path, capsys.readouterr().out))
    assert shown == load_config("run_llama2_tiny", ["seed=7"])


def test_show_diff_prints_what_differs(tmp_path, capsys):
    assert main(["show", "run_llama2_tiny", "--diff"]) == 0
    text = capsys.readouterr().out
    assert load_config(write(tmp_path, text)) == load_config("run_llama2_tiny")
    values = yaml.safe_load(text)
    assert "seed" not in values
    assert values["model"]["model_config"]["hidden_size"] == 128


def test_cp(tmp_path, capsys):
    target = tmp_path / "deep" / "mine.yaml"
    assert main(["cp", "run_llama2_7b", str(target)]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert load_config(target) == load_config("run_llama2_7b")
    assert "base_config" not in target.read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine.yaml exists; --force"):
        main(["cp", "run_llama2_7b", str(target)])
    assert main(["cp", "run_llama2_13b", str(target), "--force"]) == 0
    assert load_config(target).trainer.model_name == "llama2_13b"
    assert main(["cp", "run_llama2_tiny", str(tmp_path)]) == 0
    assert (tmp_path / "run_llama2_tiny.yaml").is_file()
    with pytest.raises(ConfigError, match=r"Did you mean 'run_llama2_7b'"):
        main(["cp", "run_lama2_7b", str(tmp_path / "x.yaml")])
    with pytest.raises(ConfigError, match=r"must end in .yaml"):
        main(["cp", "run_llama2_7b", str(tmp_path / "x.txt")])


def test_exit_codes_of_the_program():
    command = [sys.executable, "-X", "importtime", "-m", "mindformers"]
    good = subprocess.run(
        [*command, "validate", "run_llama2_7b"], cwd=REPO, capture_output=True, text=True, timeout=900
    )
    assert (good.returncode, good.stdout) == (0, "OK run_llama2_7b\n")
    assert "| mindspore" not in good.stderr
    bad = subprocess.run([*command, "show", "nothing"], cwd=REPO, capture_output=True, text=True, timeout=900)
    assert bad.returncode == 2
    assert "error: nothing: no such file." in bad.stderr
    assert "Traceback" not in bad.stderr


@pytest.mark.parametrize("name", [name for name in mindformers.__all__ if name != "__version__"])
def test_public_names_resolve(name):
    namespace: dict = {}
    exec(f"from mindformers import {name}", namespace)
    assert namespace[name] is getattr(mindformers, name)
    assert name in dir(mindformers)


def test_the_package_is_lazy():
    with pytest.raises(AttributeError, match=r"no attribute 'Nothing'"):
        _ = mindformers.Nothing
    assert mindformers.__version__ == importlib.import_module("mindformers.version").__version__


def test_small_helpers(monkeypatch, tmp_path):
    assert [str2bool(text) for text in ("True", "false", " TRUE ", True)] == [True, False, True, True]
    with pytest.raises(ConfigError, match=r"expected True or False, got 'yes'"):
        str2bool("yes")
    words = ("3", "1.5", "True", "none", "[1, 2]", '{"a": 1}', "a b", "1.0")
    assert [parse_value(word) for word in words] == [3, 1.5, True, None, [1, 2], {"a": 1}, "a b", 1.0]
    monkeypatch.setenv("LOCAL_DEFAULT_PATH", str(tmp_path))
    assert get_output_root_path() == str(tmp_path)
    assert get_output_subpath("checkpoint", 3) == str(tmp_path / "checkpoint" / "rank_3")
    assert get_output_subpath("strategy", append_rank=False) == str(tmp_path / "strategy")
    assert list(tmp_path.iterdir()) == []


def test_count_params():
    class Net:
        def trainable_params(self):
            return [type("P", (), {"shape": (1000, 2500)}), type("P", (), {"shape": (600_000,)})]

    assert count_params(Net()) == 3


def test_suggestions():
    assert nearest("epoch", ["epochs", "batch_size"]) == "epochs"
    assert nearest("EPOCHS", ["epochs"]) == "epochs"
    assert nearest("zzz", ["epochs"]) is None
    assert did_you_mean("epoch", ["epochs"]) == " Did you mean 'epochs'? (allowed: epochs)"
    assert did_you_mean("x", []) == ""
    assert did_you_mean("x", map(str, range(30))).endswith("... 6 more)")
