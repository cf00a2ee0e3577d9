# SPDX-License-Identifier: Apache-2.0
"""Tiny odd-sized Llamas whose weights are a formula, shared by the parity tests and the golden files' script."""

import numpy as np

from mindformers.models.llama.llama_config import LlamaConfig

DTYPE_FIELDS = (
    "compute_dtype",
    "param_init_type",
    "layernorm_compute_type",
    "softmax_compute_type",
    "rotary_dtype",
)
FLOAT32 = dict.fromkeys(DTYPE_FIELDS, "float32")
COMMON = {"hidden_size": 72, "num_layers": 2, "num_heads": 3, "vocab_size": 101, "seq_length": 32, **FLOAT32}

# name -> fields that differ from COMMON
CASES = {
    "mha": {"intermediate_size": 100},
    "gqa": {"n_kv_heads": 1, "intermediate_size": 100, "rms_norm_eps": 1e-6},
    "gqa_grouped": {"num_heads": 6, "n_kv_heads": 2, "multiple_of": 36, "rope_theta": 5000.0},
    "tied": {"n_kv_heads": 1, "intermediate_size": 68, "tie_word_embeddings": True},
}


def tiny_config(name: str, **changes: object) -> LlamaConfig:
    """The LlamaConfig of a case."""
    return LlamaConfig(**{**COMMON, **CASES[name], **changes})


def formula_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """fp32 weights that depend on the parameter's name and shape only: normal(0, 0.05), norms near 1."""
    seed = int.from_bytes(name.encode(), "little") % (2**63)
    noise = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
    return (1.0 + 0.1 * noise if len(shape) == 1 else 0.05 * noise).astype(np.float32)


def records(padded: bool) -> np.ndarray:
    """int32 (2, 33) token records; padded: the second ends in 11 pads."""
    ids = np.random.Generator(np.random.PCG64(7)).integers(3, 101, (2, 33)).astype(np.int32)
    if padded:
        ids[1, 22:] = 0
    return ids


def fill(network: object) -> None:
    """Give every parameter of a MindSpore network its formula weight."""
    from mindspore import Tensor

    for parameter in network.get_parameters():
        parameter.set_data(Tensor(formula_weight(parameter.name, parameter.shape)))


HF_PARTS = (
    ("model.tok_embeddings.embedding_weight", "model.embed_tokens.weight"),
    ("attention.wq", "self_attn.q_proj"),
    ("attention.wk", "self_attn.k_proj"),
    ("attention.wv", "self_attn.v_proj"),
    ("attention.wo", "self_attn.o_proj"),
    ("feed_forward.w1", "mlp.gate_proj"),
    ("feed_forward.w2", "mlp.down_proj"),
    ("feed_forward.w3", "mlp.up_proj"),
    ("attention_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("norm_out", "norm"),
)


def hf_name(name: str) -> str:
    """Name of one of our parameters in transformers' LlamaForCausalLM."""
    for ours, theirs in HF_PARTS:
        name = name.replace(ours, theirs)
    return name


def hf_model(name: str) -> object:
    """transformers' LlamaForCausalLM of a case, with the same formula weights, fp32, eager attention."""
    import torch
    import transformers

    config = tiny_config(name)
    hf_config = transformers.LlamaConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        vocab_size=config.vocab_size,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=config.rope_theta,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        max_position_embeddings=64,
        tie_word_embeddings=config.tie_word_embeddings,
        attn_implementation="eager",
        pad_token_id=0,
    )
    model = transformers.LlamaForCausalLM(hf_config).float()
    theirs = dict(model.named_parameters())
    from mindformers.models.llama.llama import LlamaForCausalLM

    with torch.no_grad():
        for parameter in LlamaForCausalLM(config).get_parameters():
            weight = formula_weight(parameter.name, parameter.shape)
            theirs[hf_name(parameter.name)].copy_(torch.from_numpy(weight))
    return model


def hf_outputs(name: str, padded: bool) -> dict[str, np.ndarray]:
    """Logits of the first 32 tokens, loss, and the gradient of every parameter under our names, by transformers."""
    import torch

    model = hf_model(name)
    ids = torch.from_numpy(records(padded).astype(np.int64))
    mask = (ids[:, :-1] != 0).long()
    logits = model(ids[:, :-1], attention_mask=mask).logits
    labels = ids[:, 1:].clone()
    labels[labels == 0] = -100
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
    loss.backward()
    theirs = dict(model.named_parameters())
    from mindformers.models.llama.llama import LlamaForCausalLM

    result = {"logits": logits.detach().numpy(), "loss": loss.detach().numpy()}
    for parameter in LlamaForCausalLM(tiny_config(name)).get_parameters():
        result[f"grad:{parameter.name}"] = theirs[hf_name(parameter.name)].grad.numpy()
    return result
