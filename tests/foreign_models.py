# SPDX-License-Identifier: Apache-2.0
"""Small foreign models on disk for the tests of conversion; names are written out here, apart from the code's table."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HIDDEN, LAYERS, HEADS, KV_HEADS, FFN, VOCAB = 16, 2, 4, 2, 44, 40
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
PARAMS = {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV_HEADS, "vocab_size": -1}
PARAMS |= {"multiple_of": 4, "norm_eps": 1e-5}


def hf_weights(tied: bool = False, dtype: type = np.float32) -> dict[str, np.ndarray]:
    """Random weights under the names of transformers."""
    rng = np.random.default_rng(3)
    kv = HIDDEN // HEADS * KV_HEADS
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    if not tied:
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        shapes |= {p + "self_attn.q_proj.weight": (HIDDEN, HIDDEN), p + "self_attn.k_proj.weight": (kv, HIDDEN)}
        shapes |= {p + "self_attn.v_proj.weight": (kv, HIDDEN), p + "self_attn.o_proj.weight": (HIDDEN, HIDDEN)}
        shapes |= {p + "mlp.gate_proj.weight": (FFN, HIDDEN), p + "mlp.up_proj.weight": (FFN, HIDDEN)}
        shapes |= {p + "mlp.down_proj.weight": (HIDDEN, FFN), p + "input_layernorm.weight": (HIDDEN,)}
        shapes |= {p + "post_attention_layernorm.weight": (HIDDEN,)}
    return {name: (rng.standard_normal(shape) * 0.3).astype(dtype) for name, shape in shapes.items()}


def write_json(path: Path, values: dict) -> None:
    """A JSON file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def hf_folder(folder: Path, shards: int = 1, tied: bool = False, **config: object) -> dict[str, np.ndarray]:
    """Write a Hugging Face folder of safetensors; returns the weights."""
    weights = hf_weights(tied)
    write_json(folder / "config.json", {**CONFIG, "tie_word_embeddings": tied, **config})
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return weights
    names, index = sorted(weights), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: weights[name] for name in names[i::shards]}, folder / file)
        index |= dict.fromkeys(names[i::shards], file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    return weights


def meta_folder(folder: Path, shards: int = 2, **params: object) -> list[dict]:
    """Write a folder of Meta with torch; returns the shards as torch tensors."""
    import torch

    torch.manual_seed(5)
    kv = HIDDEN // HEADS * KV_HEADS
    result = []
    norms = {"norm.weight": torch.rand(HIDDEN)}
    norms |= {
        f"layers.{i}.{n}.weight": torch.rand(HIDDEN) for i in range(LAYERS) for n in ("attention_norm", "ffn_norm")
    }
    for _ in range(shards):
        shard = {"tok_embeddings.weight": torch.randn(VOCAB, HIDDEN // shards), **norms}
        shard["output.weight"] = torch.randn(VOCAB // shards, HIDDEN)
        for i in range(LAYERS):
            p = f"layers.{i}."
            for name, rows in (("wq", HIDDEN), ("wk", kv), ("wv", kv)):
                shard[f"{p}attention.{name}.weight"] = torch.randn(rows // shards, HIDDEN)
            shard[p + "attention.wo.weight"] = torch.randn(HIDDEN, HIDDEN // shards)
            shard[p + "feed_forward.w1.weight"] = torch.randn(FFN // shards, HIDDEN)
            shard[p + "feed_forward.w2.weight"] = torch.randn(HIDDEN, FFN // shards)
            shard[p + "feed_forward.w3.weight"] = torch.randn(FFN // shards, HIDDEN)
        shard["rope.freqs"] = 1.0 / 10000.0 ** (torch.arange(0, HIDDEN // HEADS, 2) / (HIDDEN // HEADS))
        result.append({name: value * (0.3 if value.ndim == 2 else 1.0) for name, value in shard.items()})
    write_json(folder / "params.json", {**PARAMS, **params})
    for number, shard in enumerate(result):
        torch.save(shard, folder / f"consolidated.{number:02d}.pth")
    return result
