# SPDX-License-Identifier: Apache-2.0
"""The quickstart: its data, what it keeps, how it stops and goes on, what its shell scripts say."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mindformers.errors import DataError
from tests.helpers import REPO


def load(path: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, REPO / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def quickstart(tmp_path, monkeypatch):
    module = load("scripts/quickstart.py")
    monkeypatch.setattr(module, "REPO", tmp_path)
    return module


@pytest.fixture(scope="module")
def data():
    return load("scripts/quickstart_data.py")


def count_step(module: ModuleType, folder: Path, name: str = "count"):
    """A step that appends a line to the file `runs`."""
    (folder / "in.txt").write_text("a")
    words = ("-c", "open('runs', 'a').write('x')")
    return module.Step(name, "Count", words, (Path("in.txt"),), (Path("runs"),))


def test_validation_text_is_not_in_the_training_text(data, tmp_path):
    data.make_text(tmp_path)
    train, valid = ((tmp_path / f"{part}.txt").read_text() for part in ("train", "valid"))
    assert len(train) > 200_000
    assert 0.02 < len(valid) / len(train) < 0.2
    long = [p for p in valid.split("\n\n") if len(p) >= data.LONG_PARAGRAPH]
    assert len(long) > 50
    assert not set(long) & set(train.split("\n\n"))


def test_tokenizer_has_the_special_ids_and_is_the_same_each_time(data, tmp_path):
    import sentencepiece

    data.make_text(tmp_path)
    models = []
    for name in ("a.model", "b.model"):
        data.make_tokenizer(tmp_path / "train.txt", tmp_path / name, 512)
        models.append((tmp_path / name).read_bytes())
    assert models[0] == models[1]
    processor = sentencepiece.SentencePieceProcessor(model_proto=models[0])
    assert processor.get_piece_size() == 512
    assert [processor.id_to_piece(i) for i in range(4)] == ["<unk>", "<s>", "</s>", "<0x00>"]
    text = "if x:\n    return  y  # \u4f60\u597d"
    assert processor.decode(processor.encode(text)) == text


def test_tokenizer_errors_name_the_file_and_the_cause(data, tmp_path):
    with pytest.raises(DataError, match=r"nothing\.txt does not exist"):
        data.make_tokenizer(tmp_path / "nothing.txt", tmp_path / "x.model", 512)
    (tmp_path / "text.txt").write_text("abc")
    with pytest.raises(DataError, match="cannot learn 100 pieces"):
        data.make_tokenizer(tmp_path / "text.txt", tmp_path / "x.model", 100)
    assert not (tmp_path / "x.model").exists()


def test_a_finished_step_is_kept_until_its_input_changes(quickstart, tmp_path, capfd):
    step = count_step(quickstart, tmp_path)
    for _ in range(2):
        quickstart.run_step(step, "1/1", quickstart.read_state())
    assert (tmp_path / "runs").read_text() == "x"
    assert "kept, done before" in capfd.readouterr().out
    (tmp_path / "in.txt").write_text("b")
    quickstart.run_step(step, "1/1", quickstart.read_state())
    assert (tmp_path / "runs").read_text() == "xx"
    (tmp_path / "runs").unlink()
    quickstart.run_step(step, "1/1", quickstart.read_state())
    assert (tmp_path / "runs").read_text() == "x"


def test_a_damaged_state_file_means_nothing_is_finished(quickstart, tmp_path):
    (tmp_path / "quickstart").mkdir()
    (tmp_path / quickstart.STATE).write_text('{"count": {"key')
    assert quickstart.read_state() == {}


def test_a_failing_step_stops_with_its_exit_code_and_is_not_kept(quickstart, tmp_path, capfd):
    step = quickstart.Step("bad", "Bad", ("-c", "import sys; sys.exit('why it failed')"), (), ())
    with pytest.raises(SystemExit) as stop:
        quickstart.run_step(step, "1/1", {})
    assert stop.value.code == 1
    captured = capfd.readouterr().err
    assert "why it failed" in captured
    assert "this step failed" in captured
    assert "seconds" not in quickstart.read_state()["bad"]


def test_a_step_that_writes_nothing_is_an_error(quickstart):
    step = quickstart.Step("lazy", "Lazy", ("-c", "pass"), (), (Path("result"),))
    with pytest.raises(SystemExit, match="without writing result"):
        quickstart.run_step(step, "1/1", {})


def test_output_goes_to_the_terminal_and_the_log(quickstart, tmp_path, capfd):
    words = ("-c", "import sys; print('out'); print('err', file=sys.stderr)")
    assert quickstart.run_command(words, Path("step.log")) == 0
    assert (tmp_path / "step.log").read_text().splitlines() == ["out", "err"]
    assert "out\nerr" in capfd.readouterr().out


def test_interrupted_training_resumes_and_other_inputs_start_anew(quickstart, tmp_path):
    folder = tmp_path / quickstart.RUN / "checkpoint" / "rank_0"
    assert quickstart.prepare_training(("run",), resume=True) == ("run",)
    folder.mkdir(parents=True)
    (folder / "llama2_tiny_rank_0-1_50.ckpt").touch()
    assert quickstart.prepare_training(("run",), resume=True) == ("run", "--resume_training", "True")
    assert quickstart.prepare_training(("run",), resume=False) == ("run",)
    assert not folder.exists()


SLEEPER = """
import time
try:
    print("started", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.5)
    print("saved", flush=True)
"""
DRIVER = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import quickstart
quickstart.REPO = pathlib.Path(sys.argv[2])
step = quickstart.Step("sleep", "Sleep", ("-c", sys.argv[3]), (), ())
quickstart.make_steps = lambda: [step]
sys.argv[1:] = []
quickstart.main()
"""


def test_interrupt_waits_for_the_child_and_says_how_to_go_on(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(REPO / "scripts"), str(tmp_path), SLEEPER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.stdout.readline() != "started\n":
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    out, err = process.communicate(timeout=900)
    assert process.returncode == 130
    assert out == "saved\n"
    assert err == "\nInterrupted. The same command goes on from here.\n"


def bash(*words: str, **env: str) -> subprocess.CompletedProcess:
    """Run bash in the repository."""
    return subprocess.run(["bash", *words], cwd=REPO, env=os.environ | env, capture_output=True, text=True, timeout=900)


def test_shell_options():
    result = bash("scripts/quickstart.sh", "--help")
    assert result.returncode == 0
    assert "--fresh" in result.stdout
    result = bash("scripts/quickstart.sh", "--frehs")
    assert result.returncode == 2
    assert "unknown option: --frehs" in result.stderr
    assert bash("scripts/quickstart.sh", "--venv").returncode == 2


def test_no_fit_python_is_told_with_what_to_install(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "cat", "ls"):
        (tools / name).symlink_to(shutil.which(name))
    result = bash(
        "scripts/quickstart.sh",
        "--venv",
        str(tmp_path / "venv"),
        PATH=str(tools),
        PYTHON="",
        MINDFORMERS_PYTHON="",
    )
    assert result.returncode == 1
    assert "no Python 3.10, 3.11 or 3.12" in result.stderr
    assert "python3.11-venv" in result.stderr
    result = bash(
        "scripts/quickstart.sh",
        "--venv",
        str(tmp_path / "venv"),
        PYTHON="no-such-python",
        MINDFORMERS_PYTHON="",
    )
    assert "PYTHON=no-such-python" in result.stderr
    assert not (tmp_path / "venv").exists()


def test_a_folder_with_other_things_is_never_made_an_environment(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years")
    result = bash("scripts/quickstart.sh", "--reinstall", "--venv", str(tmp_path), MINDFORMERS_PYTHON="")
    assert result.returncode == 2
    assert "not a virtual environment" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_plot_takes_the_later_record_and_leaves_out_a_cut_line(tmp_path):
    pytest.importorskip("matplotlib")
    plot = load("tools/plot_loss.py")
    metrics = tmp_path / "metrics.jsonl"
    rows = [{"step": s, "loss": 7.0 - s / 10, "lr": 1e-3} for s in (1, 2, 3)] + [{"step": 2, "loss": 5.0, "lr": 1e-3}]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')
    records = plot.read_metrics(metrics)
    assert [record["loss"] for record in records] == [6.9, 5.0, 6.7]
    plot.draw(records, tmp_path / "sub" / "loss.png", "tiny")
    assert (tmp_path / "sub" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "sub").iterdir())) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no record"),
        ('{"step": 1}\n{"step": 2, "loss": 3}\n', ":1: not a record"),
        ("[1]\n[2]\n", ":1: not a record"),
    ],
)
def test_plot_refuses_other_files(tmp_path, content, message):
    plot = load("tools/plot_loss.py")
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        plot.read_metrics(path)
    with pytest.raises(DataError, match="does not exist"):
        plot.read_metrics(tmp_path / "absent.jsonl")
