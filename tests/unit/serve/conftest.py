# SPDX-License-Identifier: Apache-2.0
"""A tiny model behind the service, compiled once; requests go through a real HTTP server on a free port."""

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.parity.llama_cases import formula_weight, tiny_config

LENGTH = 64
SLOTS = 4
NAME = "tiny"


@pytest.fixture(scope="session")
def network():
    """LlamaForCausalLM, GQA, as many tokens as the tiny tokenizer has."""
    from mindspore import Tensor

    from mindformers.models.llama.llama import LlamaForCausalLM

    config = tiny_config("gqa", vocab_size=400, seq_length=LENGTH, use_past=True, do_sample=False)
    net = LlamaForCausalLM(config)
    for parameter in net.get_parameters():
        scale = 1.0 if len(parameter.shape) == 1 else 4.0
        parameter.set_data(Tensor(scale * formula_weight(parameter.name, parameter.shape)))
    return net


@pytest.fixture(scope="session")
def tokenizer(tiny_model_file):
    from mindformers.models.llama.llama_tokenizer import LlamaTokenizer

    return LlamaTokenizer(str(tiny_model_file))


@pytest.fixture(scope="session")
def engine(network) -> Iterator:
    """The engine of the service."""
    from mindformers.serve.engine import Engine
    from mindformers.serve.slot_model import SlotModel, graph_mode

    def make_model() -> SlotModel:
        graph_mode("CPU")
        slots = SlotModel(network, SLOTS)
        slots.compile()
        return slots

    engine = Engine(make_model, max_waiting=20)
    engine.start()
    yield engine
    engine.stop()
    assert not engine.alive


class Server:
    """A service on a port of its own."""

    def __init__(self, app) -> None:
        import uvicorn

        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._server.should_exit = True
        self._thread.join(20)


@pytest.fixture(scope="session")
def service(engine, tokenizer):
    """The service behind the server."""
    from mindformers.serve.answers import Service

    return Service(engine, tokenizer, [2], LENGTH, timeout=60)


@pytest.fixture(scope="session")
def server(service) -> Iterator[Server]:
    """A server with the chat format and no API key."""
    from mindformers.serve.api import build_app

    server = Server(build_app(service, NAME, chat=True))
    yield server
    server.stop()


@pytest.fixture
def client(server):
    """The official client."""
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client
