# SPDX-License-Identifier: Apache-2.0
"""``python -m mindformers serve MODEL``: an OpenAI-compatible service and a chat page."""

import argparse
import importlib.util
import os
import socket
import time

from mindformers.commands import Command
from mindformers.commands.interrupts import Interrupts
from mindformers.errors import ConfigError

_KEY_VARIABLE = "MINDFORMERS_API_KEY"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``serve``."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="registered name, YAML, folder of ours, or Hugging Face folder")
    add("--load_checkpoint", default="", help="weights that replace those of MODEL")
    add("--quantize", choices=("int8", "bfloat16"), help="keep the weights in fewer bits, on CPU (docs/native.md)")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (default: 127.0.0.1)")
    add("--port", type=int, default=8000, help="port, 0 for a free one (default: 8000)")
    add("--served_model_name", help="name that clients ask for (default: the last part of MODEL)")
    add("--slots", type=int, default=8, help="answers generated together (default: 8)")
    add("--max_waiting", type=int, default=64, help="answers that may wait; more are refused with 429 (default: 64)")
    add("--seq_length", type=int, help="longest prompt with its answer (default: the model's seq_length)")
    add("--timeout", type=float, default=600, help="seconds a request may take, 0 for no limit (default: 600)")
    add("--api_key", help=f"clients must send it as a bearer token (default: the variable {_KEY_VARIABLE}, if set)")
    add("--chat", action=argparse.BooleanOptionalAction, help="Llama 2's chat format (default: as the model says)")


def run(args: argparse.Namespace) -> int:
    """Load the model, then serve until Ctrl-C.

    Raises:
        ConfigError: a flag is out of range, the port is taken, or a package of the extra ``serve`` is missing.
    """
    _check(args)
    listener = _listen(args.host, args.port)  # a port that is taken is said before a model is loaded
    with Interrupts():  # before MindSpore is imported
        return _serve(args, listener)


def _serve(args: argparse.Namespace, listener: socket.socket) -> int:
    import uvicorn

    from mindformers.commands.chat_model import load_partner, speaks_llama2
    from mindformers.serve.answers import Service
    from mindformers.serve.api import build_app
    from mindformers.serve.engine import Engine
    from mindformers.serve.slot_model import SlotModel, graph_mode

    parts = {}

    def make_model() -> SlotModel:
        graph_mode()
        parts["partner"] = load_partner(args.model, args.load_checkpoint, args.quantize)
        slots = SlotModel(parts["partner"].model, args.slots, args.seq_length)
        slots.compile()
        parts["length"] = slots.length
        return slots

    begin = time.perf_counter()
    engine = Engine(make_model, args.max_waiting)
    engine.start()
    partner = parts["partner"]
    eos = partner.model.config.eos_token_id
    service = Service(
        engine, partner.tokenizer, eos if isinstance(eos, list) else [eos], parts["length"], args.timeout or None
    )
    chat, reason = (args.chat, "as asked for") if args.chat is not None else speaks_llama2(args.model)
    name = args.served_model_name or os.path.basename(os.path.abspath(args.model))
    app = build_app(service, name, chat, args.api_key or os.environ.get(_KEY_VARIABLE))
    host, port = listener.getsockname()[:2]
    print(f"chat format: {'Llama 2' if chat else 'none, messages are continued as text'} ({reason})")
    print(f"serving {name} at http://{host}:{port} ({args.slots} slots, ready in {time.perf_counter() - begin:.1f} s)")
    print(f"  chat page http://{host}:{port}/   OpenAI API http://{host}:{port}/v1", flush=True)
    try:
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)).run([listener])
    finally:
        engine.stop()
    return 0


def _check(args: argparse.Namespace) -> None:
    for flag, smallest in (("slots", 1), ("max_waiting", 0), ("port", 0), ("timeout", 0)):
        if getattr(args, flag) < smallest:
            raise ConfigError(f"--{flag} {getattr(args, flag)} is not allowed: give at least {smallest}")
    if args.port > 65535:
        raise ConfigError(f"--port {args.port} is not allowed: give 0 to 65535")
    if args.seq_length is not None and args.seq_length < 2:
        raise ConfigError(f"--seq_length {args.seq_length} is not allowed: give at least 2")
    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"serve needs {', '.join(missing)}: pip install 'mindformers[serve]'")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error
    return listener


SERVE = Command(arguments, run)
