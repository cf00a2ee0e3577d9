# SPDX-License-Identifier: Apache-2.0
"""The command line of run_mindformer.py: one table of flags, and every key of the schema as ``--a.b.c``."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from mindformers.config.load import load_config
from mindformers.config.overrides import Override, split_option
from mindformers.config.problems import Place, Places, Problem, raise_problems
from mindformers.config.schema.run import RUN_MODES, RunConfig
from mindformers.config.tree import keys_of, sections_in, walk_fields
from mindformers.errors import ConfigError
from mindformers.tools.utils import nearest

__all__ = ["FLAGS", "Flag", "build_parser", "parse_command_line"]

# Later levels win: the file < simple flags < --options < flags about data and length < --a.b.c
_SIMPLE, _OPTIONS, _LATE, _FREE = range(4)


@dataclass(frozen=True)
class Flag:
    """One documented flag.

    Args:
        name: as it is typed.
        keys: the config keys it sets.
        meaning: for ``--help``.
        group: heading in ``--help``.
        shown: what ``--help`` writes for the value.
        level: its place in the precedence.
        several: whether it takes several values.
    """

    name: str
    keys: tuple[str, ...]
    meaning: str
    group: str
    shown: str = "TEXT"
    level: int = _SIMPLE
    several: bool = False


_BOOL = "True|False"
_RUN, _DATA, _WEIGHTS, _DEVICE = "run", "data and length", "weights", "device and ranks"

FLAGS: tuple[Flag, ...] = (
    Flag("--run_mode", ("run_mode",), "what to do", _RUN, "|".join(mode for mode in RUN_MODES if mode != "export")),
    Flag("--do_eval", ("do_eval",), "evaluate while training", _RUN, _BOOL),
    Flag("--seed", ("seed",), "seed of weights, data order, dropout and sampling", _RUN, "INT"),
    Flag("--output_dir", ("output_dir",), "folder for everything the run writes", _RUN, "DIR"),
    Flag("--profile", ("profile",), "profile some steps", _RUN, _BOOL),
    Flag("--remote_save_url", ("remote_save_url",), "accepted, without effect", _RUN, "URL"),
    Flag("--train_dataset_dir", ("train_dataset.data_loader.dataset_dir",), "training data", _DATA, "PATH", _LATE),
    Flag("--eval_dataset_dir", ("eval_dataset.data_loader.dataset_dir",), "evaluation data", _DATA, "PATH", _LATE),
    Flag("--predict_data", ("input_data",), "prompts, or a file with one per line", _DATA, "TEXT", _LATE, several=True),
    Flag("--predict_batch_size", ("predict_batch_size",), "prompts generated together", _DATA, "INT", _LATE),
    Flag("--epochs", ("runner_config.epochs",), "passes over the training data", _DATA, "INT", _LATE),
    Flag("--batch_size", ("runner_config.batch_size",), "records per data parallel rank", _DATA, "INT", _LATE),
    Flag("--sink_mode", ("runner_config.sink_mode",), "feed data by the device queue", _DATA, _BOOL, _LATE),
    Flag(
        "--num_samples",
        ("train_dataset.data_loader.num_samples", "eval_dataset.data_loader.num_samples"),
        "use only this many records",
        _DATA,
        "INT",
        _LATE,
    ),
    Flag("--load_checkpoint", ("load_checkpoint",), "weights to start from", _WEIGHTS, "PATH|NAME"),
    Flag("--adapter_checkpoint", ("adapter_checkpoint",), "LoRA adapter on top of these weights", _WEIGHTS, "PATH"),
    Flag(
        "--quantize",
        ("model.model_config.weight_dtype",),
        "keep the weights in fewer bits, on CPU (docs/native.md)",
        _WEIGHTS,
        "int8|bfloat16",
    ),
    Flag("--resume_training", ("resume_training",), "go on with an earlier run", _WEIGHTS, _BOOL),
    Flag("--auto_trans_ckpt", ("auto_trans_ckpt",), "slice the weights anew for this layout", _WEIGHTS, _BOOL),
    Flag("--src_strategy_path_or_dir", ("src_strategy_path_or_dir",), "how the weights were sliced", _WEIGHTS, "PATH"),
    Flag("--only_save_strategy", ("only_save_strategy",), "write the strategies, then stop", _WEIGHTS, _BOOL),
    Flag(
        "--strategy_load_checkpoint",
        ("parallel.strategy_ckpt_load_file",),
        "strategy file to take the sharding from",
        _WEIGHTS,
        "PATH",
    ),
    Flag("--device_target", ("context.device_target",), "kind of device", _DEVICE, "Ascend|GPU|CPU"),
    Flag("--device_id", ("context.device_id",), "number of the device", _DEVICE, "INT"),
    Flag("--mode", ("context.mode",), "0 graph, 1 pynative", _DEVICE, "0|1"),
    Flag("--use_parallel", ("use_parallel",), "run on several ranks", _DEVICE, _BOOL),
    Flag("--register_path", ("register_path",), "Python files of your own to import", _RUN, "PATH", several=True),
)
_BY_NAME = {flag.name: flag for flag in FLAGS}
_OWN = ("--config", "--options", "--help")


def build_parser() -> argparse.ArgumentParser:
    """The parser behind ``--help``; the values are read by :func:`parse_command_line`."""
    parser = argparse.ArgumentParser(
        prog="run_mindformer.py",
        allow_abbrev=False,
        description="Train, finetune, evaluate or generate with the model of a YAML file.",
        epilog="Every key of the config is a flag as well: --model.model_config.seq_length 1024, "
        "--callbacks.CheckpointMonitor.prefix mine, --train_dataset.input_columns [input_ids,labels]. "
        "Which wins: file < plain flags < --options < data and length < --a.b.c. All keys: docs/config.md",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file, or the name of a shipped one (required)")
    parser.add_argument("--options", metavar="KEY=VALUE", nargs="+", help="config keys, as runner_config.epochs=3")
    groups = {name: parser.add_argument_group(name) for name in (_RUN, _DATA, _WEIGHTS, _DEVICE)}
    for flag in FLAGS:
        nargs = "+" if flag.several else None
        groups[flag.group].add_argument(flag.name, metavar=flag.shown, help=flag.meaning, nargs=nargs)
    return parser


def parse_command_line(argv: Sequence[str] | None = None, ranks: int | None = None) -> RunConfig:
    """The checked config of a run from its command line.

    Args:
        argv: the words after the script's name; None takes those of the process.
        ranks: number of processes; None takes RANK_SIZE of the environment.

    Raises:
        ConfigError: with every problem of the file and the flags.
        SystemExit: after ``--help``.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if any(word in ("-h", "--help") for word in words):
        build_parser().print_help()
        raise SystemExit(0)
    problems: list[Problem] = []
    config, overrides = read_flags(words, problems)
    if ranks is None and os.environ.get("RANK_SIZE", "").isdecimal():
        ranks = int(os.environ["RANK_SIZE"])
    return load_config(config, overrides, launch=True, ranks=ranks, problems=problems)


def read_flags(words: Sequence[str], problems: list[Problem]) -> tuple[str, list[Override]]:
    """Words -> the config file and the overrides, in the order in which they are applied.

    Args:
        words: the command line.
        problems: unknown flags and missing values are added here.

    Raises:
        ConfigError: there is no ``--config``.
    """
    levels: list[list[Override]] = [[], [], [], []]
    config = None
    for name, values in _split(words, problems):
        flag = _BY_NAME.get(name)
        if name == "--config":
            config = _single(name, values, problems) or config
        elif name == "--options":
            levels[_OPTIONS] += _options(values, problems)
        elif flag is not None and flag.several:
            levels[flag.level] += _several(flag, values, problems)
        else:
            text = _single(name, values, problems)
            keys = flag.keys if flag is not None else (name[2:],)
            level = flag.level if flag is not None else _FREE
            if text is not None and (flag is not None or _is_key(name, problems)):
                levels[level] += [Override(key, text, f"{name} {text}") for key in keys]
    if config is None:
        problems.append(_problem("--config", "FILE is needed; the shipped ones: python -m mindformers ls"))
        raise_problems(Places("command line"), problems)
    return str(config), [override for level in levels for override in level]


def _split(words: Sequence[str], problems: list[Problem]) -> list[tuple[str, list[str]]]:
    """Words -> (flag, its values): a word that starts with ``--`` and a letter opens a flag."""
    found: list[tuple[str, list[str]]] = []
    for word in words:
        match = re.match(r"(--[A-Za-z][\w.\-]*)(?:=(.*))?$", word, re.DOTALL)
        if match:
            found.append((match[1], [] if match[2] is None else [match[2]]))
        elif found:
            found[-1][1].append(word)
        else:
            problems.append(_problem(repr(word), "stands before any flag; flags are written --name VALUE"))
    return found


def _single(name: str, values: list[str], problems: list[Problem]) -> str | None:
    if len(values) == 1:
        return values[0]
    if not values:
        known = name in _BY_NAME or name in _OWN or _is_key(name, [])
        shown = _BY_NAME[name].shown if name in _BY_NAME else "VALUE"
        if known:
            problems.append(_problem(name, f"needs a value: {name} {shown}"))
        else:
            _is_key(name, problems)
    else:
        listed = " ".join(map(repr, values[:4]))
        problems.append(_problem(name, f"takes one value, got {len(values)}: {listed} (quote a value with spaces)"))
    return None


def _options(values: list[str], problems: list[Problem]) -> list[Override]:
    if not values:
        problems.append(_problem("--options", "needs KEY=VALUE"))
    found = []
    for word in values:
        try:
            key, text = split_option(word, "--options")
            found.append(Override(key, text, f"--options {word}"))
        except ConfigError as error:
            problems.append(_problem("--options", str(error).removeprefix("--options: ")))
    return found


def _several(flag: Flag, values: list[str], problems: list[Problem]) -> list[Override]:
    if not values:
        problems.append(_problem(flag.name, f"needs a value: {flag.name} {flag.shown} ..."))
        return []
    texts = [value.replace("\\n", "\n") for value in values] if flag.name == "--predict_data" else values
    value = texts[0] if len(texts) == 1 else texts
    return [Override(key, value, f"{flag.name} {values[0]}", is_text=False) for key in flag.keys]


def _problem(flag: str, message: str) -> Problem:
    return Problem((), message, place=Place(flag=flag))


def _is_key(name: str, problems: list[Problem]) -> bool:
    """Whether a free flag can be a config key; a dotted one is left to the schema, which knows the nearest key."""
    key = name[2:]
    if "." in key:
        return True
    settable = [
        str(path[0]) for path, info, _ in walk_fields(RunConfig) if len(path) == 1 and not sections_in(info.annotation)
    ]
    if key in settable:
        return True
    flags = [*_BY_NAME, "--config", "--options", *(f"--{name}" for name in settable)]
    best = nearest(name, flags)
    text = "unknown flag."
    if key in keys_of(RunConfig):
        starts = [flag for flag in flags if flag.startswith(name)]
        text = f"a section, not a single value; give one of its keys: {name}.KEY VALUE."
        best = starts[0] if starts else None
    problems.append(_problem(name, text + (f" Did you mean {best!r}?" if best else "") + " (all flags: --help)"))
    return False
