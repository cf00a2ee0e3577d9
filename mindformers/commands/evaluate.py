# SPDX-License-Identifier: Apache-2.0
"""``python -m mindformers eval --harness TASK MODEL``: tasks of lm-evaluation-harness on one of our models."""

import argparse
import json
from pathlib import Path
from typing import Any

from mindformers.atomic import write_text
from mindformers.commands import Command
from mindformers.config import load_config
from mindformers.errors import ConfigError


def evaluate(args: argparse.Namespace) -> int:
    """Run the tasks, print the harness's table, write all results as JSON."""
    output = _output_file(args.output)
    tasks = [name for name in args.harness.split(",") if name]
    if not tasks:
        raise ConfigError("--harness names no task: give one, or several with commas between them")
    for name in ("batch_size", "limit"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value} is not allowed: give 1 or more")
    if args.include_path and not Path(args.include_path).is_dir():
        raise ConfigError(f"--include_path {args.include_path}: no such folder; it holds the YAML files of your tasks")
    from mindformers.evaluation.harness import harness_model, run_harness

    network, tokenizer = load_model(args.model, args.load_checkpoint, args.options or [], args.device_target)
    model = harness_model(network, tokenizer, args.batch_size)
    chosen = {name: getattr(args, name) for name in ("num_fewshot", "limit", "gen_kwargs")}
    results = run_harness(
        model, tasks, args.include_path, **{key: value for key, value in chosen.items() if value is not None}
    )
    from lm_eval.utils import make_table

    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    if output is not None:
        _write(output, {key: results[key] for key in ("results", "groups", "versions", "n-samples") if key in results})
        print(output)
    return 0


def load_model(source: str, checkpoint: str | None, options: list[str], device_target: str | None) -> tuple[Any, Any]:
    """Network with weights, and tokenizer.

    Args:
        source: a YAML, whose ``load_checkpoint`` and ``processor.tokenizer.vocab_file`` are taken; or what
            ``AutoModel.from_pretrained`` takes: a name, or a folder of ours or of Hugging Face's.
        checkpoint: weights to load in place of the YAML's.
        options: ``key=value`` changes of the YAML.
        device_target: Ascend or CPU; None takes the YAML's, or CPU.
    """
    from mindformers.core.context import init_context, set_seed

    if Path(source).suffix in (".yaml", ".yml"):
        from mindformers.trainer.network import build_network, load_weights
        from mindformers.trainer.predict import build_tokenizer

        changes = [*options, "run_mode=eval", "use_parallel=False"]
        changes += [f"load_checkpoint={json.dumps(checkpoint)}"] if checkpoint else []
        changes += [f"context.device_target={device_target}"] if device_target else []
        config = load_config(source, changes)
        tokenizer = build_tokenizer(config)  # before the weights: it fails faster
        init_context(False, config.context)
        set_seed(config.seed)
        network = build_network(config)
        load_weights(network, config, required=True)
        return network, tokenizer
    if checkpoint or options:
        raise ConfigError(f"--load_checkpoint and --options belong to a YAML, but the model is {source!r}")
    from mindformers.auto_class import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    init_context(False, {"device_target": device_target or "CPU", "mode": 0})
    return AutoModel.from_pretrained(source), tokenizer


def _output_file(name: str | None) -> Path | None:
    """Where the results go; a place that cannot be written is said before the tasks run."""
    if name is None:
        return None
    path = Path(name)
    if path.is_dir() or (path.parent.exists() and not path.parent.is_dir()):
        raise ConfigError(f"--output {name}: give the name of a JSON file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path.with_name(path.name + ".trial"), {})
        path.with_name(path.name + ".trial").unlink()
    except OSError as error:
        raise ConfigError(f"--output {name} cannot be written: {error}") from error
    return path


def _write(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1, default=str) + "\n")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``eval``."""
    parser.add_argument("model", metavar="MODEL", help="a run's YAML, a name, or a folder with weights and tokenizer")
    parser.add_argument("--harness", required=True, metavar="TASK[,TASK]", help="tasks of lm-evaluation-harness")
    parser.add_argument("--include_path", metavar="DIR", help="folder with task YAML files of your own")
    parser.add_argument("--load_checkpoint", metavar="PATH", help="weights, in place of the YAML's")
    parser.add_argument("--options", nargs="+", metavar="KEY=VALUE", help="changes of the YAML")
    parser.add_argument("--num_fewshot", type=int, metavar="N", help="examples before each question")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N questions of each task")
    parser.add_argument("--gen_kwargs", metavar="KEY=VALUE,...", help="generation options over those of the tasks")
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help="texts computed together (default 8)")
    parser.add_argument("--device_target", choices=("Ascend", "CPU"), help="default: the YAML's, else CPU")
    parser.add_argument("--output", metavar="FILE", help="JSON file for all results")


EVAL = Command(arguments, evaluate)
