# SPDX-License-Identifier: Apache-2.0
"""The model card, typed: every command block of the page runs in a copy of the repository, scaled down by card.yaml."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.helpers import REPO, free_port

PAGES = {name: REPO / "docs" / "model_cards" / f"{name}.md" for name in ("llama2", "llama2_cn")}
BLOCK = re.compile(r"<!-- card: ([\w-]+) -->\n```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TABLE = yaml.safe_load((REPO / "tests" / "docs" / "card.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Block:
    """A command block of the page."""

    name: str
    language: str
    text: str


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page in their order."""
    return [Block(*found) for found in BLOCK.findall(page.read_text(encoding="utf-8"))]


def code(block: Block) -> str:
    """A block without its comments, which differ between the languages of the cards."""
    return re.sub(r"\s+#.*", "", block.text)


def scaled(block: Block, folder: Path) -> str:
    """What is run in place of a block."""
    text = block.text
    for old, new in [*TABLE["blocks"].get(block.name, {}).get("replace", ()), *TABLE["everywhere"]]:
        text = text.replace(old, new.replace("{folder}", str(folder)))
    if "{port}" in text:  # the same for the two launchers of a block
        text = text.replace("{port}", str(free_port()))
    return text


def test_every_block_has_a_name_and_every_entry_a_block():
    for page in PAGES.values():
        text = page.read_text(encoding="utf-8")
        fences = re.findall(r"^```(?:bash|python|shell|sh)$", text, re.MULTILINE)
        assert len(fences) == len(blocks_of(page)), f"{page.name}: a block without <!-- card: NAME -->"
    names = [block.name for block in blocks_of(PAGES["llama2"])]
    assert len(names) == len(set(names))
    assert set(TABLE["blocks"]) <= set(names)
    for name, entry in TABLE["blocks"].items():
        block = next(block for block in blocks_of(PAGES["llama2"]) if block.name == name)
        for old, _ in entry.get("replace", ()):
            assert old in block.text, f"{name}: {old!r} is no longer there to be replaced"


def test_both_languages_have_the_same_commands():
    english, chinese = (blocks_of(page) for page in PAGES.values())
    assert [(b.name, b.language, code(b)) for b in english] == [(b.name, b.language, code(b)) for b in chinese]


def copy_repository(folder: Path) -> None:
    """The files a user has, with tiny YAMLs."""
    listed = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True)
    kinds = ("mindformers/", "configs/", "scripts/")
    for name in listed.stdout.splitlines():
        if name.startswith(kinds) or name in ("run_mindformer.py", "run_infer_main.py", "setup.py"):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, target)
    for file in (folder / "configs" / "llama2").glob("*_llama2_*b*.yaml"):
        changes = dict(TABLE["tiny"])
        if file.name.startswith("export"):
            changes = {"model": changes["model"], **TABLE["export"]}
        if "_lora_" in file.name:
            model = {"model_config": {**changes["model"]["model_config"], **TABLE["lora"]}}
            changes = {**changes, "model": model}
        full = file.with_name(f"_full_{file.name}")
        file.rename(full)
        file.write_text(yaml.safe_dump({"base_config": full.name, **changes}), encoding="utf-8")


def make_data(folder: Path) -> None:
    """Text, instructions, questions, a tokenizer, and a Hugging Face folder with a random model of that vocabulary."""
    from pydoc_data.topics import topics

    import sentencepiece
    from safetensors.numpy import save_file

    data = folder / "data"
    (data / "squad").mkdir(parents=True)
    texts = [text for _, text in sorted(topics.items())][:16]
    (data / "wiki.train.tokens").write_text("\n\n".join(texts[:12]), encoding="utf-8")
    (data / "wiki.valid.tokens").write_text("\n\n".join(texts[12:]), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(data / "wiki.train.tokens"), model_prefix=str(data / "tokenizer"), vocab_size=600, model_type="bpe",
        byte_fallback=True, minloglevel=2, normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip
    alpaca = [
        {"instruction": f"Name the number {i}.", "input": "" if i % 2 else "as a word", "output": f"number {i}"}
        for i in range(16)
    ]
    (data / "alpaca_data.json").write_text(json.dumps(alpaca), encoding="utf-8")
    questions = [{"id": str(i), "question": "Who?", "answers": [{"text": "Lily", "answer_start": 0}]} for i in range(2)]
    paragraphs = [{"context": "Lily went out.", "qas": [question]} for question in questions]
    squad = {"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}
    (data / "squad" / "dev-v1.1.json").write_text(json.dumps(squad), encoding="utf-8")

    tiny = TABLE["tiny"]["model"]["model_config"]
    hidden, layers, vocab, kv, ffn = tiny["hidden_size"], tiny["num_layers"], tiny["vocab_size"], 32, 192
    rng = np.random.default_rng(0)
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(layers):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qo"}
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": (kv, hidden) for name in "kv"}
        shapes |= {f"{layer}.mlp.{name}_proj.weight": (ffn, hidden) for name in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, ffn)
    weights = {
        name: (np.ones(shape) if len(shape) == 1 else 0.1 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
    hf = folder / "tiny_hf"
    hf.mkdir()
    save_file(weights, hf / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(data / "tokenizer.model", hf)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn,
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": vocab,
        "max_position_embeddings": tiny["seq_length"], "rms_norm_eps": 1e-5, "torch_dtype": "float32",
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "hidden_act": "silu",
    }  # fmt: skip
    (hf / "config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The copy, with data."""
    folder = tmp_path_factory.mktemp("card")
    copy_repository(folder)
    make_data(folder)
    return folder


def run(block: Block, folder: Path) -> str:
    """Run a block as a user would: in a shell, from the root of the checkout; its output."""
    text = scaled(block, folder)
    if block.language == "python":
        script = folder / f"{block.name}.py"
        script.write_text(text, encoding="utf-8")
        text = f"python {script.name}"
    environment = os.environ | {"PYTHONPATH": str(folder), "MINDFORMERS_PYTHON": sys.executable}
    environment.pop("MINDFORMERS_NATIVE", None)  # that of the other tests
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=900, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    output = result.stdout + result.stderr
    assert result.returncode == 0, f"{block.name} ended with {result.returncode}:\n{text}\n{output[-4000:]}"
    return output


@pytest.mark.slow
def test_the_card_runs_from_top_to_bottom(folder):
    for block in blocks_of(PAGES["llama2"]):
        entry = TABLE["blocks"].get(block.name, {})
        if "skip" in entry:
            continue
        output = run(block, folder)
        for text in entry.get("expect", ()):
            assert text in output, f"{block.name}: {text!r} is not in what it printed:\n{output[-4000:]}"
