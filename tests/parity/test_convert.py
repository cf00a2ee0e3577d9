# SPDX-License-Identifier: Apache-2.0
"""Converted weights compute what transformers computes, from random models and from the real one; files of either side
are read by the other."""

import numpy as np
import pytest

from mindformers.checkpoint.foreign import open_foreign
from mindformers.checkpoint.foreign.files import SafetensorsFile
from mindformers.checkpoint.load import load_into, read_checkpoint
from mindformers.checkpoint.save import save_network
from mindformers.errors import CheckpointError
from mindformers.models.llama.conversion import Written
from mindformers.models.llama.convert_weight import main
from mindformers.models.llama.foreign_config import llama_config_from
from mindformers.models.llama.llama import LlamaForCausalLM
from mindformers.models.llama.llama_tokenizer import LlamaTokenizer
from mindformers.models.llama.verify_weights import hf_logits, meta_logits, our_logits, prompt_ids, verify
from tests.helpers import shared_data
from tests.parity.llama_cases import hf_model, hf_name, tiny_config

torch = pytest.importorskip("torch", reason="extra `test` brings torch")
transformers = pytest.importorskip("transformers", reason="extra `test` brings transformers")

TOLERANCE = 1e-5  # of the largest logit, fp32
STORY = """Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she \
saw a big, red ball. She wanted to play with it, but it was too high.
Lily's mom said, "Lily, let's go to the park." Lily was sad and didn't know what to do. She said, "I want to play with \
your ball, but I can't find it."
Lily was sad and didn't know what to do. She said, "I'm sorry, Lily. I didn't know what to do."
Lily didn't want to help her mom, so"""


def convert(*words):
    """The command."""
    assert main([str(word) for word in words]) == 0


def close(ours, theirs):
    """Whether logits agree within the tolerance."""
    return np.abs(ours - theirs).max() < TOLERANCE * np.abs(theirs).max()


@pytest.mark.parametrize("name", ["gqa_grouped", "tied"])
def test_transformers_writes_we_read_and_the_other_way_round(tmp_path, name):
    """Through every layout: transformers' folder -> Meta -> ours -> a folder transformers loads."""
    model = hf_model(name)
    model.save_pretrained(tmp_path / "hf", max_shard_size="50KB")
    assert (tmp_path / "hf" / "model.safetensors.index.json").is_file()
    config = llama_config_from(tmp_path / "hf")
    wanted = tiny_config(name)
    for field in ("hidden_size", "num_heads", "num_kv_heads", "ffn_size", "rope_theta", "tie_word_embeddings"):
        assert getattr(config, field) == getattr(wanted, field), field
    convert("--torch_ckpt_dir", tmp_path / "hf", "--to_meta", tmp_path / "meta", "--verify")
    convert("--torch_ckpt_dir", tmp_path / "meta", "--mindspore_ckpt_path", tmp_path / "m.ckpt", "--verify")
    convert("--mindspore_ckpt_path", tmp_path / "m.ckpt", "--to_hf", tmp_path / "back")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    mine, theirs = back.state_dict(), model.state_dict()
    assert set(mine) == set(theirs)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    network = LlamaForCausalLM(tiny_config(name, checkpoint_name_or_path=str(tmp_path / "hf")))
    for parameter in network.get_parameters():
        value = theirs[hf_name(parameter.name)].numpy()
        np.testing.assert_array_equal(parameter.asnumpy(), value, err_msg=parameter.name)


def test_bin_folder_of_transformers_in_half_precision(tmp_path):
    model = hf_model("gqa").half()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    opened = open_foreign(tmp_path)
    state = model.state_dict()
    assert {hf_name(name) for name in opened} == set(state)
    for name in opened:
        assert opened.dtype(name) == "float16"
        np.testing.assert_array_equal(opened[name].asnumpy(), state[hf_name(name)].numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_verify_passes_lower_precision_within_its_limit_and_no_more(tmp_path, dtype, capsys):
    hf_model("gqa").save_pretrained(tmp_path / "hf")
    words = ("--torch_ckpt_dir", tmp_path / "hf", "--mindspore_ckpt_path", tmp_path / "m.safetensors", "--dtype", dtype)
    convert(*words, "--verify")
    assert "verified: logits of" in capsys.readouterr().out
    values = SafetensorsFile(tmp_path / "m.safetensors")
    state = hf_model("gqa").state_dict()
    for name, facts in values.facts.items():
        want = state[hf_name(name)].to(getattr(torch, dtype)).view(torch.int16).numpy()
        assert facts.dtype == dtype
        np.testing.assert_array_equal(values.read(name).data.view(np.int16), want)


@pytest.mark.parametrize("part", ["wq", "wk", "w1", "norm_out"])
def test_verify_finds_what_is_in_the_wrong_order(tmp_path, part):
    hf_model("gqa").save_pretrained(tmp_path / "hf")
    convert("--torch_ckpt_dir", tmp_path / "hf", "--mindspore_ckpt_path", tmp_path / "m.safetensors")
    config = llama_config_from(tmp_path / "hf")
    network = LlamaForCausalLM(config)
    load_into(network, read_checkpoint(tmp_path / "m.safetensors"))
    values = {p.name: p.asnumpy() for p in network.get_parameters()}
    name = next(n for n in values if f"{part}.weight" in n)
    values[name] = values[name][::-1].copy()
    save_network(values, tmp_path / "m.safetensors", fmt="safetensors")
    source, result = Written("huggingface", tmp_path / "hf"), Written("mindspore", tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="verification failed"):
        verify(source, [result], config, None)


class TestRealModel:
    """The 260K-parameter TinyStories Llama."""

    @pytest.fixture(scope="class")
    def converted(self, tmp_path_factory):
        """Folder with hf.ckpt and meta.ckpt, verified by the command."""
        folder = tmp_path_factory.mktemp("stories")
        for kind in ("hf", "meta"):
            source = shared_data(f"stories260k/{kind}")
            convert("--torch_ckpt_dir", source, "--mindspore_ckpt_path", folder / f"{kind}.ckpt", "--verify")
        return folder

    @pytest.mark.parametrize("kind", ["hf", "meta"])
    def test_logits_are_those_of_transformers(self, converted, kind):
        config = llama_config_from(shared_data(f"stories260k/{kind}"))
        ids = prompt_ids(config)
        theirs = hf_logits(shared_data("stories260k/hf"), ids)
        assert close(our_logits(converted / f"{kind}.ckpt", config, ids), theirs)

    def test_back_again_is_bit_exact(self, converted, tmp_path):
        convert("--mindspore_ckpt_path", converted / "hf.ckpt", "--to_hf", tmp_path / "hf")
        one, two = (SafetensorsFile(d / "model.safetensors") for d in (shared_data("stories260k/hf"), tmp_path / "hf"))
        assert one.facts == two.facts
        assert all(one.read(name).data.tobytes() == two.read(name).data.tobytes() for name in one.facts)
        convert("--mindspore_ckpt_path", converted / "meta.ckpt", "--to_meta", tmp_path / "meta", "--shards", 2)
        for number in range(2):
            file = f"consolidated.{number:02d}.pth"
            old = torch.load(shared_data("stories260k/meta") / file, weights_only=True)
            new = torch.load(tmp_path / "meta" / file, weights_only=True)
            assert set(old) - set(new) == {"rope.freqs"}
            assert all(torch.equal(new[name], old[name]) for name in new)

    @pytest.mark.parametrize("kind", ["hf", "meta"])
    def test_greedy_story(self, converted, kind):
        tokenizer = LlamaTokenizer(str(converted / "tokenizer.model"))
        changes = {"checkpoint_name_or_path": str(converted / f"{kind}.ckpt"), "use_past": True}
        network = LlamaForCausalLM(llama_config_from(shared_data(f"stories260k/{kind}"), **changes))
        prompt = tokenizer("Once upon a time")["input_ids"]
        ids = network.generate([prompt, prompt], do_sample=False, max_length=200)
        assert [tokenizer.decode(row, skip_special_tokens=True) for row in ids] == [STORY, STORY]

    @pytest.mark.parametrize("kind", ["hf", "meta"])
    def test_greedy_story_from_the_foreign_folder_without_cache(self, kind):
        tokenizer = LlamaTokenizer(str(shared_data("stories260k/hf/tokenizer.model")))
        folder = shared_data(f"stories260k/{kind}")
        network = LlamaForCausalLM(llama_config_from(folder, checkpoint_name_or_path=str(folder), use_past=False))
        ids = network.generate(tokenizer("Once upon a time")["input_ids"], do_sample=False, max_length=60)
        text = tokenizer.decode(ids[0], skip_special_tokens=True)
        assert STORY.startswith(text)
        assert len(text) > 100


def test_meta_reference_in_numpy_equals_transformers():
    """The reference of --verify is checked itself: one random model in both layouts."""
    model = hf_model("gqa_grouped")
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    config = tiny_config("gqa_grouped")
    params = {"dim": config.hidden_size, "n_layers": config.num_layers, "n_heads": config.num_heads}
    params |= {"norm_eps": config.rms_norm_eps, "rope_theta": config.rope_theta}
    theirs = {
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
    }
    theirs |= {
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
    }
    theirs |= {"feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm"}
    theirs |= {"ffn_norm": "post_attention_layernorm", "tok_embeddings": "model.embed_tokens", "output": "lm_head"}

    def weight(name):
        if name == "norm.weight":
            return [state["model.norm.weight"]]
        plain = name.removeprefix("layers.").removesuffix(".weight")
        layer, _, part = plain.partition(".")
        if name.startswith("layers."):
            value = state[f"model.layers.{layer}.{theirs[part]}.weight"]
        else:
            value = state[f"{theirs[plain]}.weight"]
        heads = {"attention.wq": config.num_heads, "attention.wk": config.num_kv_heads}.get(part)
        if heads:  # half i of a head's rows beside half i + D/2, as Meta keeps them
            size = value.shape[0] // heads
            order = [h * size + i // 2 + (i % 2) * size // 2 for h in range(heads) for i in range(size)]
            value = value[order]
        return [value]

    ids = prompt_ids(config)
    with torch.no_grad():
        want = model(torch.from_numpy(ids).long()).logits[0].numpy()
    assert close(meta_logits(params, weight, ids), want)
