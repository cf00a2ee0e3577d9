# SPDX-License-Identifier: Apache-2.0
"""Type a text, get its continuation from the MindIR files of ``tools/export.py``; ``exit`` leaves."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mindformers.errors import ConfigError, MindFormersError, run_cli
from mindformers.tools.utils import str2bool

_LONGEST = 512  # tokens of a text when neither --max_length nor the files say less


def build_parser() -> argparse.ArgumentParser:
    """The command line: the old flags, and what they left out."""
    parser = argparse.ArgumentParser(description="Generate text from exported MindIR files.", allow_abbrev=False)
    add = parser.add_argument
    add("--prefill_model_path", help="MindIR of the graph that reads prompts, or of the only graph")
    add("--increment_model_path", help="MindIR of the graph that appends a token")
    add("--model_dir", help="a folder that holds these files, in place of naming them")
    add("--model_name", default="llama2", help="name of the model; only Llama models are known (default: llama2)")
    add("--tokenizer_path", help="tokenizer.model, or a folder with it (default: the folder of the MindIR files)")
    add("--seq_length", type=int, help="sequence length of the files; another one in them is an error")
    add("--backend", choices=["ms", "mslite"], help="engine (default: mslite where it is installed)")
    add("--config_path", default="", help="configuration of MindSpore Lite (lite.ini)")
    add("--device_target", choices=["Ascend", "CPU"], help="default: Ascend where there is one")
    add("--device_id", type=int, default=0, help="device of this process (default: 0)")
    add("--rank_id", type=int, default=0, help="rank of this process, for MindSpore Lite (default: 0)")
    add("--do_sample", type=str2bool, default=False, help="draw tokens at random (default: False)")
    add("--temperature", type=float, default=1.0, help="divides the logits when drawing (default: 1.0)")
    add("--top_k", type=int, help="draw among this many likeliest tokens (default: 0, all of them)")
    add("--top_p", type=float, default=1.0, help="draw among the likeliest that reach this probability (default: 1.0)")
    add("--repetition_penalty", type=float, default=1.0, help="above 1: repeat less (default: 1.0)")
    add("--seed", type=int, help="of the random draws")
    add("--max_length", type=int, help=f"most tokens, prompt included (default: {_LONGEST}, or seq_length)")
    add("--add_special_tokens", type=str2bool, default=False, help="put <s> before the text (default: False)")
    add("--is_sample_acceleration", type=str2bool, default=False, help="must be False: tokens are chosen on the host")
    add("--prompt", help="template with {} where the text goes")
    add("--stream", type=str2bool, default=False, nargs="?", const=True, help="print tokens as they come")
    return parser


def _check(args: argparse.Namespace) -> None:
    """Raise a ConfigError for flags that do not fit each other, before anything is loaded."""
    if not args.model_name.lower().startswith("llama"):
        raise ConfigError(f"--model_name {args.model_name!r} is not known: this library runs Llama models (llama2)")
    if bool(args.model_dir) == bool(args.prefill_model_path):
        raise ConfigError("give one of --prefill_model_path FILE (with --increment_model_path) and --model_dir FOLDER")
    if args.prompt is not None and args.prompt.count("{}") != 1:
        raise ConfigError(f"--prompt {args.prompt!r} must contain {{}} once, where the text goes")
    if args.is_sample_acceleration:
        raise ConfigError("--is_sample_acceleration True needs a third exported graph; leave it False")


def open_task(args: argparse.Namespace) -> Any:
    """The tokenizer and the exported files as a task."""
    from mindformers.core.context import default_device_target, init_context
    from mindformers.inference.infer_task import get_mslite_pipeline

    target = args.device_target or default_device_target()
    init_context(False, {"mode": 0, "device_target": target, "device_id": args.device_id})
    files = args.model_dir or [path for path in (args.prefill_model_path, args.increment_model_path) if path]
    return get_mslite_pipeline(
        "text_generation",
        files,
        _tokenizer(args),
        model_name=args.model_name,
        infer_seq_length=args.seq_length,
        target=target,
        device_id=args.device_id,
        rank_id=args.rank_id,
        ge_config_path=args.config_path,
        backend=args.backend,
    )


def _tokenizer(args: argparse.Namespace) -> Any:
    from mindformers.models.llama.llama_tokenizer import LlamaTokenizer

    folder = Path(args.model_dir or Path(args.prefill_model_path).parent)
    path = Path(args.tokenizer_path or folder)
    file = path / "tokenizer.model" if path.is_dir() else path
    return LlamaTokenizer(str(file))


def _settings(args: argparse.Namespace, task: Any) -> dict[str, Any]:
    names = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "seed", "add_special_tokens")
    limit = args.max_length or min(_LONGEST, task.model.config.seq_length)
    settings = {name: getattr(args, name) for name in names} | {"max_length": limit}
    return settings | {"top_k": args.top_k or 0}


def answer(task: Any, text: str, settings: dict[str, Any], stream: bool) -> None:
    """Print the continuation of one text."""
    if not stream:
        print(task.infer(text, **settings), flush=True)
        return
    from mindformers.generation import TextStreamer

    task.infer(text, streamer=TextStreamer(task.tokenizer, skip_prompt=True, skip_special_tokens=True), **settings)


def main(argv: Sequence[str] | None = None) -> int:
    """The command: a text per line of standard input until ``exit`` or its end."""
    args = build_parser().parse_args(argv)
    _check(args)
    started = time.perf_counter()
    task = open_task(args)
    settings = _settings(args, task)
    print(f"backend {task.model.backend.name}, ready in {time.perf_counter() - started:.1f} s", flush=True)
    while True:
        print("Please enter your predict data: ", flush=True)
        line = sys.stdin.readline()
        text = line.rstrip("\n")
        if not line or text == "exit":
            print("Task is over.")
            return 0
        if not text.strip():
            continue
        try:
            answer(task, args.prompt.replace("{}", text) if args.prompt else text, settings, args.stream)
        except MindFormersError as error:  # a text too long for the files, for instance: the next one may fit
            print(f"error: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_cli(main)
