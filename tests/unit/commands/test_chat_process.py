# SPDX-License-Identifier: Apache-2.0
"""``python -m mindformers chat`` and ``serve`` as processes: through a pipe, and in a terminal with Ctrl-C."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pexpect
import pytest
import yaml

from tests.helpers import REPO, shared_data
from tests.parity.llama_cases import formula_weight

SEQ_LENGTH = 4096


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_model_file: Path) -> Path:
    """A folder with the YAML, weights and tokenizer of a tiny model that talks without end."""
    import mindspore as ms

    from mindformers.models.llama.llama import LlamaForCausalLM
    from mindformers.models.llama.llama_config import LlamaConfig

    folder = tmp_path_factory.mktemp("talker")
    shutil.copy(tiny_model_file, folder / "tokenizer.model")
    config = yaml.safe_load((REPO / "configs/llama2/run_llama2_tiny.yaml").read_text(encoding="utf-8"))
    config["base_config"] = str(REPO / "configs/llama2/_base.yaml")
    config["model"]["model_config"] |= {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "n_kv_heads": 2, "vocab_size": 400,
        "seq_length": SEQ_LENGTH, "pretrain_seqlen": SEQ_LENGTH, "max_decode_length": SEQ_LENGTH,
        "checkpoint_name_or_path": str(folder / "weights.ckpt"),
    }  # fmt: skip
    config["processor"]["tokenizer"]["vocab_file"] = str(folder / "tokenizer.model")
    (folder / "talker.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    network = LlamaForCausalLM(LlamaConfig(**config["model"]["model_config"] | {"checkpoint_name_or_path": ""}))
    for parameter in network.get_parameters():
        scale = 1.0 if len(parameter.shape) == 1 else 4.0
        value = scale * formula_weight(parameter.name, parameter.shape)
        if "lm_head" in parameter.name:
            value[2] = -np.abs(value[2])  # the end token is never likely
        parameter.set_data(ms.Tensor(value.astype(np.float32)))
    ms.save_checkpoint(network, str(folder / "weights.ckpt"))
    return folder


def words(model: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "mindformers", "chat", str(model / "talker.yaml"), *options]


def test_pipe(model):
    lines = "the quick \U0001f600 fox\n/system\nlazy dog\r\n\n/reset\n/nonsense\nthe quick \U0001f600 fox"
    options = ("--max_new_tokens", "8", "--seed", "3", "--chat", "--system", "\u4f60\u597d")
    done = subprocess.run(words(model, *options), cwd=REPO, input=lines.encode(), capture_output=True, timeout=300)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 0, err
    assert "> " not in out
    assert "\033" not in out + err
    first = out[: out.index("\n")]
    assert first
    assert out.rstrip("\n").endswith(f"\n{first}")  # the same words after /reset, with the same seed
    assert err.count("8 tokens, ") == 3
    assert err.count("tokens/s") == 3
    assert "[system prompt: \u4f60\u597d]" in err
    assert "[a new conversation]" in err
    assert "no command is called /nonsense" in err


def test_bad_input_of_a_pipe(model):
    done = subprocess.run(words(model), cwd=REPO, input=b"caf\xe9\n", capture_output=True, timeout=300)
    assert done.returncode == 2
    assert b"error: stdin is not UTF-8 text" in done.stderr
    assert b"Traceback" not in done.stderr


def test_terminal_and_ctrl_c(model):
    environment = {**os.environ, "TERM": "dumb", "PYTHONPATH": str(REPO)}
    options = ("--max_new_tokens", "4000", "--greedy")
    chat = pexpect.spawn(words(model, *options)[0], words(model, *options)[1:], cwd=str(REPO), env=environment,
                         encoding="utf-8", timeout=120)  # fmt: skip
    chat.expect("continues text: .*/help lists the commands")
    chat.expect("> ")
    chat.sendline("the quick brown fox")
    chat.expect("\r\n")  # the echo of what was typed
    chat.expect(r"\S+ *\S+")  # the reply has begun
    chat.sendintr()
    chat.expect(r"\[(\d+) tokens?, .*stopped\]")
    assert 1 <= int(chat.match[1]) < 4000
    chat.expect("> ")
    chat.sendline("/help")
    chat.expect("An empty line lets the model go on")
    chat.expect("> ")
    chat.sendintr()
    chat.expect("Ctrl-C once more leaves")
    chat.expect("> ")
    chat.sendintr()
    chat.expect(pexpect.EOF)
    chat.close()
    assert chat.exitstatus == 0


def test_folder_of_hugging_face_tells_its_story():
    folder = shared_data("stories260k/hf")
    greedy = [sys.executable, "-m", "mindformers", "chat", str(folder), "--greedy", "--max_new_tokens", "44"]
    done = subprocess.run(greedy, cwd=REPO, input=b"Once upon a time\n", capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().startswith(
        ", there was a little girl named Lily. She loved to play outside in the park."
    )


def test_output_folder_of_a_run(model, tmp_path):
    shutil.copy(model / "talker.yaml", tmp_path / "config.yaml")
    (tmp_path / "checkpoint" / "rank_0").mkdir(parents=True)
    shutil.copy(model / "weights.ckpt", tmp_path / "checkpoint" / "rank_0" / "mine.ckpt")
    command = [*words(model)[:4], str(tmp_path), "--greedy", "--max_new_tokens", "3"]
    done = subprocess.run(command, cwd=REPO, input=b"the\n", capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    assert b"3 tokens" in done.stderr


def test_ctrl_c_ends_the_service(model):
    command = [*words(model), "--port", "0", "--slots", "1", "--seq_length", "32"]
    command[3] = "serve"
    # a script's jobs in the background ignore SIGINT, and so would a service they start
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    service = subprocess.Popen(
        command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heard
    )
    try:
        address = next(line.split()[2] for line in service.stdout if "chat page" in line)
        body = json.dumps({"model": "talker.yaml", "prompt": "the", "max_tokens": 3}).encode()
        request = urllib.request.Request(address + "v1/completions", body, {"Content-Type": "application/json"})
        assert urllib.request.urlopen(request, timeout=60).status == 200  # MindSpore's own SIGINT handler is in place
        service.send_signal(signal.SIGINT)
        assert service.stdout.read() == "interrupted\n"
        assert service.wait(timeout=60) == 130
    finally:
        service.kill()
        service.stdout.close()
        service.wait()
