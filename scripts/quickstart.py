# SPDX-License-Identifier: Apache-2.0
"""The main job on a CPU with the product's own commands: data, training, perplexity, text, loss curve.

Every step prints the command it runs. A step that is finished is kept until its command or its inputs change;
a training that was interrupted goes on from its last checkpoint.
"""

import argparse
import ast
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
WORK = Path("quickstart")  # all paths are relative to the repository, where every command runs
RUN = Path("output/quickstart")
STATE = WORK / "steps.json"
CONFIG = "configs/llama2/run_llama2_tiny.yaml"
PREPROCESS = "mindformers/tools/dataset_preprocess/llama/llama_preprocess.py"
PROMPTS = ("The value of the expression is", "A class definition")
TOKENIZER = WORK / "tokenizer.model"
EVALUATION = WORK / "eval.log"
PREDICTION = WORK / "predictions.txt"
METRICS = RUN / "metrics.jsonl"
PICTURE = WORK / "loss.png"


def text_of(part: str) -> Path:
    """Text file of the train or valid part."""
    return WORK / f"{part}.txt"


def records_of(part: str) -> Path:
    """MindRecord file of the train or valid part."""
    return WORK / f"{part}.mindrecord"


@dataclass(frozen=True)
class Step:
    """One command of the quickstart.

    Args:
        name: key in the state file.
        title: what it does, for the reader.
        command: words after ``python``.
        inputs: files whose content decides whether a finished step may be kept.
        outputs: files it must leave behind.
        log: file that keeps what it prints, for the summary; without one, progress bars reach the terminal.
    """

    name: str
    title: str
    command: tuple[str, ...]
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    log: Path | None = None

    def key(self) -> str:
        """Digest of the command and of everything it reads."""
        digest = hashlib.sha256(repr((self.command, sys.version_info[:2])).encode())
        for path in self.inputs:
            digest.update((REPO / path).read_bytes())
        return digest.hexdigest()


def read_state() -> dict:
    """What earlier calls finished; nothing when the file is absent or damaged."""
    try:
        state = json.loads((REPO / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(state: dict) -> None:
    """Save the state so that a kill leaves the old or the new one."""
    path = REPO / STATE
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(state, indent=1), encoding="utf-8")
    os.replace(temporary, path)


def run_command(words: tuple[str, ...], log: Path | None) -> int:
    """Run ``python WORDS`` in the repository, its output on this terminal and in a file; its exit code."""
    print(f"  $ python {shlex.join(words)}", flush=True)
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if log else {}
    pipe["env"] = os.environ | {"PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen([sys.executable, *words], cwd=REPO, text=True, encoding="utf-8", errors="replace", **pipe)
    try:
        if log:
            with open(REPO / log, "w", encoding="utf-8") as file:
                for line in child.stdout:
                    print(line, end="", flush=True)
                    file.write(line)
        return child.wait()
    except KeyboardInterrupt:  # Ctrl-C reaches the child too: give it the time to finish what it is writing
        try:
            child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            child.kill()
        raise


def run_step(step: Step, number: str, state: dict) -> None:
    """Run a step unless it is finished; leave the program with its exit code when it fails."""
    entry, key = state.get(step.name, {}), step.key()
    same = entry.get("key") == key
    if same and entry.get("seconds") is not None and all((REPO / path).exists() for path in step.outputs):
        print(f"[{number}] {step.title}: kept, done before in {entry['seconds']:.1f} s", flush=True)
        return
    print(f"[{number}] {step.title}", flush=True)
    command = step.command
    if step.name == "train":
        command = prepare_training(command, resume=same)
    state[step.name] = {"key": key}
    write_state(state)
    started = time.monotonic()
    code = run_command(command, step.log)
    if code:
        print(f"error: this step failed (exit code {code}); its own message stands above.", file=sys.stderr)
        print("The same command tries it again; with --fresh it starts from nothing.", file=sys.stderr)
        sys.exit(code if code > 0 else 128 - code)
    missing = [str(path) for path in step.outputs if not (REPO / path).exists()]
    if missing:
        sys.exit(f"error: the command ended without writing {', '.join(missing)}")
    state[step.name]["seconds"] = time.monotonic() - started
    write_state(state)
    print(f"  done in {state[step.name]['seconds']:.1f} s\n", flush=True)


def prepare_training(command: tuple[str, ...], resume: bool) -> tuple[str, ...]:
    """Go on from the checkpoint of an interrupted run with the same inputs; else start in an empty folder."""
    if resume and any((REPO / RUN / "checkpoint" / "rank_0").glob("*-*_*.*")):
        print("  an interrupted training is there: it goes on from its last checkpoint")
        return (*command, "--resume_training", "True")
    shutil.rmtree(REPO / RUN, ignore_errors=True)
    return command


def data_steps(seq_length: str, vocab_size: str) -> list[Step]:
    """From nothing to records: text, tokenizer, MindRecord files of both parts."""
    script = "scripts/quickstart_data.py"
    steps = [
        Step(
            "text",
            "Text: the language reference inside this Python",
            (script, "text", "--output_dir", str(WORK)),
            (Path(script),),
            (text_of("train"), text_of("valid")),
        ),
        Step(
            "tokenizer",
            f"Tokenizer: SentencePiece with {vocab_size} pieces",
            (script, "tokenizer", "--input", str(text_of("train")))
            + ("--output", str(TOKENIZER), "--vocab_size", vocab_size),
            (Path(script), text_of("train")),
            (TOKENIZER,),
        ),
    ]
    for part in ("train", "valid"):
        words = (PREPROCESS, "--dataset_type", "wiki", "--input_glob", str(text_of(part)))
        words += (
            "--model_file",
            str(TOKENIZER),
            "--seq_length",
            seq_length,
            "--output_file",
            str(records_of(part)),
        )
        title = f"Records of {seq_length} tokens, {part}"
        steps.append(Step(f"records_{part}", title, words, (text_of(part), TOKENIZER), (records_of(part),)))
    return steps


def run_steps() -> list[Step]:
    """Training, evaluation, generation and the picture."""
    run = ("run_mindformer.py", "--config", CONFIG, "--output_dir", str(RUN))
    weights = ("--load_checkpoint", str(RUN / "checkpoint"))
    return [
        Step(
            "train",
            "Training",
            (*run, "--run_mode", "train", "--train_dataset_dir", str(records_of("train"))),
            (Path(CONFIG), records_of("train")),
            (METRICS,),
        ),
        Step(
            "eval",
            "Perplexity of text it has not seen",
            (*run, "--run_mode", "eval", "--eval_dataset_dir", str(records_of("valid")), *weights),
            (Path(CONFIG), records_of("valid"), METRICS),
            (EVALUATION,),
            EVALUATION,
        ),
        Step(
            "predict",
            "Generated text",
            (
                *run,
                "--run_mode",
                "predict",
                "--predict_data",
                *PROMPTS,
                "--save_file",
                str(PREDICTION),
                *weights,
            ),
            (Path(CONFIG), TOKENIZER, METRICS),
            (PREDICTION,),
        ),
        Step(
            "curve",
            "Loss curve",
            (
                "tools/plot_loss.py",
                str(METRICS),
                "--output",
                str(PICTURE),
                "--title",
                "Llama 2, tiny, on this CPU",
            ),
            (METRICS,),
            (PICTURE,),
        ),
    ]


def make_steps() -> list[Step]:
    """All steps in order; the sizes come from the YAML."""
    try:
        from mindformers.config import load_config
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}, needed by the quickstart; run it as: bash scripts/quickstart.sh")
    model = load_config(str(REPO / CONFIG)).model.config
    return data_steps(str(model.seq_length), str(model.vocab_size)) + run_steps()


def summary(seconds: float) -> str:
    """What came out, where it is, and what to try next."""
    from mindformers.errors import DataError

    lines = (REPO / METRICS).read_text(encoding="utf-8").splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    found = re.search(r"PerplexityMetric = (\{.*\})", (REPO / EVALUATION).read_text(encoding="utf-8"))
    if found is None:
        raise DataError(f"{EVALUATION} holds no line 'PerplexityMetric = ...'; run again with --fresh")
    metric = ast.literal_eval(found[1])["PerplexityMetric"]
    texts = ast.literal_eval((REPO / PREDICTION).read_text(encoding="utf-8"))
    python = os.path.relpath(sys.executable, REPO) if REPO in Path(sys.executable).parents else sys.executable
    command = f"{shlex.quote(python)} run_mindformer.py --config {CONFIG} --output_dir {RUN}"
    parts = [
        f"== Done in {seconds:.0f} s",
        f"training loss   {first['loss']:.3f} -> {last['loss']:.3f} per token in {last['step']} steps",
        f"perplexity      {metric['PPL']:.2f} on chapters it has not seen (loss {metric['loss']:.3f})",
        *(f"generated       {text!r}" for result in texts for text in result["text_generation_text"]),
        f"loss curve      {PICTURE}",
        f"checkpoints     {RUN / 'checkpoint'}",
        f"all numbers     {METRICS}",
        "",
        "Try next:",
        f"  {command} --run_mode predict --load_checkpoint {RUN}/checkpoint --predict_data 'An import'",
        f"  {shlex.quote(python)} -m mindformers show {CONFIG}",
        f"  {shlex.quote(python)} -m mindformers ls",
    ]
    return "\n".join(parts)


def main() -> None:
    """Run the steps in order, then print the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="throw away earlier results of the quickstart")
    arguments = parser.parse_args()
    if arguments.fresh:
        for folder in (WORK, RUN):
            shutil.rmtree(REPO / folder, ignore_errors=True)
    started = time.monotonic()
    (REPO / WORK).mkdir(exist_ok=True)
    state = read_state()
    steps = make_steps()
    try:
        for index, step in enumerate(steps, 1):
            run_step(step, f"{index}/{len(steps)}", state)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
        sys.exit(130)
    print(summary(time.monotonic() - started))


if __name__ == "__main__":
    main()
