# SPDX-License-Identifier: Apache-2.0
"""The main job by its command line: train, kill, resume, evaluate, predict; exact files and exact losses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.helpers import REPO

STEPS_PER_EPOCH, EPOCHS, SAVE_EVERY = 8, 3, 5
TOTAL = STEPS_PER_EPOCH * EPOCHS


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with records, a tokenizer and a config of a model that trains in seconds."""
    import sentencepiece

    from mindformers.dataset.mindrecord import MindRecordWriter

    folder = tmp_path_factory.mktemp("run")
    text = "\n".join(
        f"the {a} {b} sat on the {c}" for a in ("big", "small") for b in ("cat", "dog") for c in ("mat", "hat")
    )
    (folder / "text.txt").write_text(text * 20, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "tokenizer"), vocab_size=300, byte_fallback=True,
        model_type="bpe", hard_vocab_limit=False, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for name, count in (("train", 4 * STEPS_PER_EPOCH + 3), ("valid", 7)):
        writer = MindRecordWriter(folder / f"{name}.mindrecord", {"input_ids": 17})
        starts = rng.integers(3, 60, (count, 1))
        writer.write(input_ids=(starts + np.arange(17)).astype(np.int32))
        writer.close()
    config = yaml.safe_load((REPO / "configs/llama2/run_llama2_tiny.yaml").read_text(encoding="utf-8"))
    config["base_config"] = str(REPO / "configs/llama2/_base.yaml")
    config["runner_config"] |= {"epochs": EPOCHS, "batch_size": 4}
    config["model"]["model_config"] |= {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "n_kv_heads": 2, "vocab_size": 300, "seq_length": 16,
        "pretrain_seqlen": 16, "max_decode_length": 16,
    }  # fmt: skip
    config["train_dataset"]["data_loader"]["dataset_dir"] = "train.mindrecord"
    config["eval_dataset"]["data_loader"]["dataset_dir"] = "valid.mindrecord"
    config["processor"]["tokenizer"]["vocab_file"] = "tokenizer.model"
    config["callbacks"][0]["per_print_times"] = 1
    config["callbacks"][1]["save_checkpoint_steps"] = SAVE_EVERY
    (folder / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(REPO / "run_mindformer.py"), "--config", str(folder / "run.yaml"), *arguments]


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    """Run the command in the folder; its combined output."""
    done = subprocess.run(
        command(folder, *arguments),
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=900,
    )
    assert done.returncode == code, done.stdout[-3000:]
    return done.stdout


def losses(folder: Path, output: str) -> list[tuple[int, float]]:
    lines = (folder / output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(record["step"], record["loss"]) for record in map(json.loads, lines)]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(workplace: Path) -> str:
    """An uninterrupted run; its output folder."""
    run(workplace, "--run_mode", "train", "--output_dir", "whole")
    return "whole"


def test_losses_fall_and_every_step_is_logged(workplace: Path, whole: str) -> None:
    values = losses(workplace, whole)
    assert [step for step, _ in values] == list(range(1, TOTAL + 1))
    assert values[0][1] == pytest.approx(np.log(300), abs=0.1)
    assert values[-1][1] < values[0][1] - 0.5


def test_exact_file_set(workplace: Path, whole: str) -> None:
    saved = [(2, 7), (3, 4), (3, 8)]  # steps 15, 20, 24: the newest three
    names = [f"checkpoint/rank_0/llama2_tiny_rank_0-{epoch}_{step}.ckpt" for epoch, step in saved]
    names.append("checkpoint_network/rank_0/llama2_tiny_rank_0-network.ckpt")
    expected = {name + end for name in names for end in ("", ".json")} | {"config.yaml", "metrics.jsonl"}
    assert files(workplace / whole) == expected


DIES = """
import os, runpy, signal, sys
from mindformers.core.callback.loss_monitor import MFLossMonitor

report = MFLossMonitor._report

def report_and_die(self, step, *arguments):
    report(self, step, *arguments)
    if step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)

MFLossMonitor._report = report_and_die
runpy.run_path({program!r}, run_name="__main__")
"""


def die_after(folder: Path, step: int, *arguments: str) -> None:
    """A run that is killed as soon as it has logged a step. It does so itself: nobody else is quick enough for sure."""
    program, *words = command(folder, *arguments)[1:]
    code = DIES.format(step=step, program=program)
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert [number for number, _ in losses(folder, arguments[arguments.index("--output_dir") + 1])][-1] == step


def interrupt_after(folder: Path, step: int, *arguments: str) -> int:
    """Start a run and send it a SIGINT when it has logged a step; its exit code."""
    with open(folder / "killed.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command(folder, *arguments), cwd=folder, stdout=log, stderr=log)
    metrics = folder / arguments[arguments.index("--output_dir") + 1] / "metrics.jsonl"
    deadline = time.monotonic() + 900
    while not (metrics.exists() and f'"step": {step},' in metrics.read_text(encoding="utf-8")):
        assert process.poll() is None, (folder / "killed.log").read_text()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    return process.wait(120)


@pytest.mark.parametrize("options", [(), ("--runner_config.gradient_accumulation_steps", "2", "--batch_size", "2")])
def test_kill_and_resume_give_the_same_losses(workplace: Path, whole: str, options: tuple[str, ...]) -> None:
    reference = whole
    if options:
        reference = "accumulated"
        run(workplace, "--run_mode", "train", "--output_dir", reference, *options)
    output = f"killed{len(options)}"
    arguments = ("--run_mode", "train", "--output_dir", output, *options)
    die_after(workplace, 12, *arguments)
    text = run(workplace, *arguments, "--resume_training", "True")
    assert "training from step 11" in text
    assert losses(workplace, output) == losses(workplace, reference)


def test_an_interrupted_run_saves_its_last_step_and_goes_on(workplace: Path) -> None:
    """MindSpore makes a SIGTERM of a SIGINT, so both are passed through here."""
    output = "interrupted"
    rarely = ("--callbacks.1.save_checkpoint_steps", "1000")
    arguments = ("--run_mode", "train", "--output_dir", output, "--epochs", "40", *rarely)
    assert interrupt_after(workplace, 12, *arguments) == 130
    said = re.search(r"interrupted after step (\d+) of 320; saved (\S+);", (workplace / "killed.log").read_text())
    step = int(said[1])
    manifest = json.loads((workplace / f"{said[2]}.json").read_text(encoding="utf-8"))
    assert 12 <= step < 320
    assert manifest["step"] == step
    assert f"training from step {step + 1} to" in run(workplace, *arguments, "--resume_training", "True")
    assert [number for number, _ in losses(workplace, output)] == list(range(1, 321))


def test_resume_refuses_other_data_order_and_finished_runs(workplace: Path, whole: str) -> None:
    arguments = ("--run_mode", "train", "--output_dir", whole, "--resume_training", "True")
    assert "nothing is left to do" in run(workplace, *arguments, code=2)
    assert "seed 0 -> 5" in run(workplace, *arguments, "--epochs", "4", "--seed", "5", code=2)


def test_damaged_checkpoint_is_refused_by_name(workplace: Path, whole: str) -> None:
    copy = workplace / "damaged"
    subprocess.run(["cp", "-r", str(workplace / whole), str(copy)], check=True)
    newest = copy / "checkpoint/rank_0/llama2_tiny_rank_0-3_8.ckpt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(bytes(content))
    text = run(workplace, "--run_mode", "eval", "--load_checkpoint", str(newest), code=2)
    assert "3_8.ckpt" in text
    assert "3_4.ckpt" in text  # the one before it is offered


def test_accumulation_equals_the_large_batch(workplace: Path, whole: str) -> None:
    run(workplace, "--run_mode", "train", "--output_dir", "micro", "--batch_size", "2",
        "--runner_config.gradient_accumulation_steps", "2")  # fmt: skip
    ours = np.array(losses(workplace, "micro"))
    np.testing.assert_allclose(ours, np.array(losses(workplace, whole)), rtol=1e-4)


def test_sink_mode_of_an_ascend_yaml_is_harmless_on_cpu(workplace: Path, whole: str) -> None:
    run(workplace, "--run_mode", "train", "--output_dir", "sink", "--sink_mode", "True",
        "--runner_config.sink_size", "2")  # fmt: skip
    assert losses(workplace, "sink") == losses(workplace, whole)


def test_safetensors_checkpoints_and_evaluation_while_training(workplace: Path, whole: str) -> None:
    text = run(workplace, "--run_mode", "train", "--output_dir", "st", "--callbacks.1.checkpoint_format", "safetensors",
               "--do_eval", "True", "--eval_step_interval", "10")  # fmt: skip
    assert text.count("PerplexityMetric = ") == 2
    assert losses(workplace, "st") == losses(workplace, whole)
    run(workplace, "--run_mode", "eval", "--load_checkpoint", "st/checkpoint")


def test_eval_reports_loss_and_perplexity_of_every_record(workplace: Path, whole: str) -> None:
    text = run(workplace, "--run_mode", "eval", "--load_checkpoint", f"{whole}/checkpoint", "--batch_size", "4")
    assert "112 predicted tokens" in text  # 7 records x 16, the last batch of 3 included
    line = next(line for line in text.splitlines() if "PerplexityMetric = " in line)
    result = json.loads(line.split("PerplexityMetric = ")[1].replace("'", '"'))["PerplexityMetric"]
    assert result["PPL"] == pytest.approx(np.exp(result["loss"]))
    again = run(workplace, "--run_mode", "eval", "--load_checkpoint", f"{whole}/checkpoint", "--batch_size", "1")
    other = json.loads(again.split("PerplexityMetric = ")[1].splitlines()[0].replace("'", '"'))["PerplexityMetric"]
    assert other["loss"] == pytest.approx(result["loss"], rel=1e-6)


def test_predict_writes_texts_that_start_with_the_prompts(workplace: Path, whole: str) -> None:
    text = run(workplace, "--run_mode", "predict", "--load_checkpoint", f"{whole}/checkpoint",
               "--predict_data", "the big cat", "the small dog")  # fmt: skip
    assert "'text_generation_text': ['the big cat" in text
    written = (workplace / "text_generation_result.txt").read_text(encoding="utf-8")
    assert "'text_generation_text': ['the small dog" in written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--run_mode", "eval"), "load_checkpoint"),
        (("--run_mode", "eval", "--load_checkpoint", "nowhere.ckpt"), "nowhere.ckpt"),
        (("--run_mode", "finetune"), "load_checkpoint"),
        (("--run_mode", "train", "--train_dataset_dir", "text.txt"), "text.txt"),
        (("--run_mode", "train", "--model.model_config.seq_length", "15"), "16"),
        (("--run_mode", "train", "--batch_size", "1000"), "batch_size"),
        (("--run_mode", "train", "--device_target", "Ascend"), "--device_target CPU"),
        (("--run_mode", "train", "--model.model_config.compute_dtype", "bfloat16"), "bfloat16"),
    ],
)
def test_mistakes_end_with_one_clear_message(workplace: Path, arguments: tuple[str, ...], message: str) -> None:
    text = run(workplace, "--output_dir", "mistake", *arguments, code=2)
    assert "error: " in text
    assert message in text
    assert "Traceback" not in text


def test_finetune_starts_from_the_given_weights_at_step_one(workplace: Path, whole: str) -> None:
    run(workplace, "--run_mode", "finetune", "--load_checkpoint", f"{whole}/checkpoint", "--output_dir", "tuned",
        "--epochs", "1")  # fmt: skip
    tuned, pretrained = losses(workplace, "tuned"), losses(workplace, whole)
    assert [step for step, _ in tuned] == list(range(1, STEPS_PER_EPOCH + 1))
    assert tuned[0][1] < pretrained[0][1] - 0.4
