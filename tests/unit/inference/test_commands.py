# SPDX-License-Identifier: Apache-2.0
"""tools/export.py and run_infer_main.py, and the task behind them."""

import io
import sys

import pytest

import run_infer_main
from mindformers.errors import ConfigError, DataError, MindFormersError
from mindformers.inference import InferConfig, InferTask, get_mslite_pipeline
from mindformers.models.llama.llama_tokenizer import LlamaTokenizer
from mindformers.tools import export


@pytest.fixture
def files(pair, tiny_model_file) -> list[str]:
    return ["--prefill_model_path", str(pair[0]), "--increment_model_path", str(pair[1]), "--tokenizer_path",
            str(tiny_model_file), "--backend", "ms", "--device_target", "CPU"]  # fmt: skip


def typed(monkeypatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_dialogue(files, pair, tiny_model_file, network, monkeypatch, capsys):
    typed(monkeypatch, "the quick fox\n\n" + "word " * 50 + "\nseven\nexit\nnever read\n")
    assert run_infer_main.main([*files, "--add_special_tokens", "True", "--max_length", "20"]) == 0
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[0].startswith("backend ms, ready in ")
    assert lines.count("Please enter your predict data: ") == 5
    assert lines[-1] == "Task is over."
    tokenizer = LlamaTokenizer(str(tiny_model_file))
    rows = network.generate(tokenizer("the quick fox")["input_ids"], max_length=20)
    assert str([tokenizer.decode(rows[0].tolist(), skip_special_tokens=True)]) in lines
    assert "error: prompt 0 has " in output.err


def test_stream_and_prompt_template_give_the_same_text(files, monkeypatch, capsys):
    sampling = ["--do_sample", "True", "--top_k", "20", "--temperature", "0.7", "--seed", "5", "--max_length", "24"]
    typed(monkeypatch, "fox\n")
    run_infer_main.main([*files, *sampling, "--prompt", "the quick {} jumps"])
    whole = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("["))
    typed(monkeypatch, "the quick fox jumps\n")
    run_infer_main.main([*files, *sampling, "--stream"])
    streamed = capsys.readouterr().out.split("predict data: \n")[1].split("\nPlease")[0]
    assert ("the quick fox jumps" + streamed).split() == eval(whole)[0].split()


def test_do_sample_alone_draws_from_all_tokens(files, monkeypatch, capsys):
    def told(*flags: str) -> str:
        typed(monkeypatch, "the quick fox\n")
        run_infer_main.main([*files, "--max_length", "24", *flags])
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("["))

    draws = [told("--do_sample", "True", "--seed", seed) for seed in ("1", "2", "2")]
    assert told() != draws[0] != draws[1] == draws[2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], r"give one of --prefill_model_path"),
        (["--model_dir", "x", "--prefill_model_path", "y"], r"give one of"),
        (["--model_dir", "x", "--model_name", "glm"], r"'glm' is not known"),
        (["--model_dir", "x", "--prompt", "no place"], r"must contain \{\} once"),
        (["--model_dir", "x", "--is_sample_acceleration", "True"], r"leave it False"),
        (["--model_dir", "/nonexistent"], r"SentencePiece model not found: /nonexistent"),
    ],
)
def test_flags_that_do_not_fit(flags, message):
    with pytest.raises(MindFormersError, match=message):
        run_infer_main.main(flags)


def test_task(pair, tiny_model_file, tmp_path):
    tokenizer = LlamaTokenizer(str(tiny_model_file))
    config = InferConfig(str(pair[0]), str(pair[1]), infer_seq_length=32, target="CPU", backend="ms")
    task = InferTask.get_infer_task("text_generation", config, tokenizer)
    texts = ["the lazy dog", "seven", "a toxic brew"]  # three over a batch of two
    together = task.infer(texts, max_length=16, add_special_tokens=True)
    assert together == [task.infer(text, max_length=16, add_special_tokens=True)[0] for text in texts]
    assert get_mslite_pipeline("text_generation", pair[0].parent, tokenizer, backend="ms")(
        texts[0], max_length=16, add_special_tokens=True
    ) == together[:1]  # fmt: skip
    with pytest.raises(ConfigError, match=r"no task is called 'translate'"):
        InferTask.get_infer_task("translate", config, tokenizer)
    with pytest.raises(ConfigError, match=r"needs a tokenizer"):
        InferTask.get_infer_task("text_generation", config)
    with pytest.raises(ConfigError, match=r"unknown generation setting 'top_q'"):
        task.infer("a", top_q=1)
    with pytest.raises((ConfigError, DataError), match=r"empty"):
        task.infer("")
    with pytest.raises(ConfigError, match=r"must hold one MindIR file"):
        get_mslite_pipeline("text_generation", tmp_path, tokenizer)


def test_export_reports_every_mistake(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text(
        "infer: {infer_seq_length: 64, increment_model_path: i.mindir}\n"
        "context: {device_target: CPU}\nmodel: {model_config: {seq_length: 32, use_past: False}}\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError) as caught:
        export.main(["--config_path", str(path)])
    for part in ("prefill_model_path: it is empty", "64 is not the model's seq_length 32", "it needs use_past True"):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match=r"give one of --config_path"):
        export.main([])
    with pytest.raises(ConfigError, match=r"must hold one checkpoint file, it holds: none"):
        export.main(["--model_dir", str(tmp_path)])


def test_export_command(network, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MINDFORMERS_NATIVE")  # the kernels it would use to compute are not exported
    import mindspore as ms

    from mindformers.config.save import save_text, to_yaml

    ms.save_checkpoint(network, str(tmp_path / "w.ckpt"))
    model = {"model_config": network.config.to_dict() | {"checkpoint_name_or_path": ""}}
    infer = {"prefill_model_path": str(tmp_path / "out" / "p.mindir"), "infer_seq_length": 32}
    infer["increment_model_path"] = str(tmp_path / "out" / "i.mindir")
    save_text(tmp_path / "c.yaml", to_yaml({"context": {"device_target": "CPU"}, "infer": infer, "model": model}))
    assert export.main(["--model_dir", str(tmp_path), "--batch_size", "1"]) == 0
    output = capsys.readouterr().out
    assert "exporting the prefill graph: input_ids [1, 32] int32, input_position [1] int32" in output
    assert "outputs: logits [1, 1, 400]" in output
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["i.mindir", "p.json", "p.mindir"]
