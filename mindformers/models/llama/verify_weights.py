# SPDX-License-Identifier: Apache-2.0
"""Do converted weights compute what the source computes? Logits of a fixed prompt, each by its own library's rules.

Ours are computed by our model, Hugging Face's by transformers. Meta's code needs GPUs and is not installed, so that
:func:`meta_logits` repeats its mathematics in numpy, from the shards as they are: every shard computes with its own
heads and columns, and the partial results are joined or summed as fairscale's parallel layers do; neighbouring features
are rotated as complex numbers. No weight is joined or reordered there, and no name is translated, so that a mistake in
these cannot cancel out.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindformers.checkpoint.foreign.arrays import FLOATS, as_float32
from mindformers.checkpoint.foreign.detect import HF_CONFIG, META_PARAMS, meta_shards, read_json
from mindformers.checkpoint.foreign.files import TorchFile
from mindformers.checkpoint.foreign.table import foreign_name
from mindformers.errors import CheckpointError
from mindformers.models.llama.conversion import OwnWeights, Written
from mindformers.models.llama.llama_config import LlamaConfig

__all__ = ["hf_logits", "meta_logits", "our_logits", "prompt_ids", "verify"]

# Largest difference of logits, relative to the largest logit. Without a change of type only the order of fp32 sums
# differs; a change of type moves each weight by up to 2^-11 (fp16) or 2^-8 (bf16) of its size.
LIMITS = {None: 1e-4, "float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-1}
_PROMPT_LENGTH = 16

Shards = Callable[[str], list[np.ndarray]]


def prompt_ids(config: LlamaConfig) -> np.ndarray:
    """int32 (1, S): the begin token and ids spread over the vocabulary, the same for each call."""
    length = min(_PROMPT_LENGTH, config.seq_length)
    ids = (np.arange(length) * 7919 + 13) % config.vocab_size
    ids[0] = config.bos_token_id
    return ids.astype(np.int32)[None]


def verify(source: Written, results: Sequence[Written], config: LlamaConfig, dtype: str | None) -> None:
    """Compare the logits of each result with those of the source; prints the differences.

    Args:
        source: where the weights came from.
        results: what was written.
        config: the model's config.
        dtype: the type the values were converted to, if any.

    Raises:
        CheckpointError: a difference is above the limit, or a library is missing.
    """
    ids = prompt_ids(config)
    reference = _logits(source, config, ids)
    largest = float(np.abs(reference).max())
    for result in results:
        logits = _logits(result, config, ids)
        difference = float(np.abs(logits - reference).max()) / largest
        same = int((logits.argmax(-1) == reference.argmax(-1)).sum())
        words = (
            f"logits of {result.path} differ from those of {source.path} by at most {difference * largest:.3g}, "
            f"{difference:.2g} of the largest ({largest:.4g}); {same} of {ids.size} likeliest tokens agree"
        )
        if not difference <= LIMITS[dtype]:  # also when it is NaN
            raise CheckpointError(
                f"verification failed: {words}. Allowed is {LIMITS[dtype]:g}. The files were written; do not use them."
            )
        print(f"verified: {words}")


def _logits(weights: Written, config: LlamaConfig, ids: np.ndarray) -> np.ndarray:
    """fp32 (S, V) logits by the rules of the weights' own library."""
    if weights.kind == "huggingface":
        return hf_logits(weights.path, ids, config.num_parameters)
    if weights.kind == "meta":
        params = read_json(weights.path / META_PARAMS)
        shards = [TorchFile(path) for path in meta_shards(weights.path)]
        return meta_logits(params, lambda name: [as_float32(shard.read(name)) for shard in shards], ids)
    if weights.kind == "interleaved":
        return interleaved_logits(weights.path, config, ids)
    return our_logits(weights.path, config, ids)


def _check_memory(parameters: int, extra: int = 0) -> None:
    """Refuse a comparison that would end with the process being killed."""
    import psutil

    needed, free = 4 * parameters + extra, psutil.virtual_memory().available
    if needed > free:
        raise CheckpointError(
            f"--verify computes in fp32 and needs about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free. "
            "The files are written; verify them on a larger machine"
        )


def our_logits(path: Path, config: LlamaConfig, ids: np.ndarray) -> np.ndarray:
    """fp32 (S, V) of our model on the CPU, everything in fp32, weights loaded the way every run loads them."""
    import mindspore as ms

    from mindformers.checkpoint.load import load_into, read_checkpoint
    from mindformers.core.context import init_context
    from mindformers.models.llama.llama import LlamaForCausalLM

    _check_memory(config.num_parameters, extra=2 * path.stat().st_size)
    init_context(context_config={"mode": 0, "device_target": "CPU"})
    kinds = [name for name in type(config).model_fields if name.endswith(("_dtype", "_compute_type"))]
    changes = dict.fromkeys([*kinds, "param_init_type"], FLOATS[0])
    changes |= {"checkpoint_name_or_path": "", "use_flash_attention": False, "pet_config": None}
    network = LlamaForCausalLM(LlamaConfig(**{**config.model_dump(), **changes}))
    load_into(network, read_checkpoint(path))
    network.set_train(False)
    return network(ms.Tensor(ids))[0].asnumpy()[0]


def hf_logits(path: Path, ids: np.ndarray, parameters: int = 0) -> np.ndarray:
    """fp32 (S, V) of transformers' model.

    Raises:
        CheckpointError: torch or transformers is absent, or the folder has no config.json.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise CheckpointError(
            "--verify compares with transformers, which is not installed: pip install 'mindformers[convert]'"
        ) from error
    folder = path if path.is_dir() else path.parent
    if not (folder / HF_CONFIG).is_file():
        raise CheckpointError(f"--verify needs {folder / HF_CONFIG}, from which transformers builds the model")
    _check_memory(parameters)
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    kind = {"dtype" if version >= (4, 56) else "torch_dtype": torch.float32}
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", local_files_only=True, **kind
    )
    with torch.no_grad():
        return model.eval()(torch.from_numpy(ids).long()).logits[0].numpy()


def interleaved_logits(path: Path, config: LlamaConfig, ids: np.ndarray) -> np.ndarray:
    """fp32 (S, V) of an old checkpoint of MindFormers whose wq and wk have Meta's order."""
    weights = OwnWeights(path)
    ours = {foreign_name(name, "meta"): name for name in weights}
    if config.tie_word_embeddings:
        ours["output.weight"] = ours["tok_embeddings.weight"]
    params: dict[str, Any] = {"dim": config.hidden_size, "n_layers": config.num_layers, "n_heads": config.num_heads}
    params |= {"n_kv_heads": config.num_kv_heads, "norm_eps": config.rms_norm_eps, "rope_theta": config.rope_theta}
    return meta_logits(params, lambda name: [as_float32(weights.raw(ours[name]))], ids)


def meta_logits(params: dict[str, Any], shards: Shards, ids: np.ndarray) -> np.ndarray:
    """fp32 (S, V) of Meta's model, computed shard by shard.

    Args:
        params: the content of params.json.
        shards: Meta's name of a weight -> its parts, one of each shard.
        ids: int32 (1, S).
    """
    eps, heads = params.get("norm_eps", 1e-5), params["n_heads"]
    size, length = params["dim"] // heads, ids.shape[1]
    angles = np.outer(np.arange(length), (params.get("rope_theta") or 10000.0) ** (-np.arange(0, size, 2) / size))
    turns = np.exp(1j * angles)[:, None, :].astype(np.complex64)  # (S, 1, D/2)

    def rms(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * shards(name)[0]

    x = np.concatenate([part[ids[0]] for part in shards("tok_embeddings.weight")], axis=1)  # (S, H)
    for layer in range(params["n_layers"]):
        prefix = f"layers.{layer}."
        h = rms(x, f"{prefix}attention_norm.weight")
        parts = zip(*(shards(f"{prefix}attention.{w}.weight") for w in ("wq", "wk", "wv", "wo")), strict=True)
        x = x + sum(_meta_attention(h, *part, turns) for part in parts)
        h = rms(x, f"{prefix}ffn_norm.weight")
        parts = zip(*(shards(f"{prefix}feed_forward.{w}.weight") for w in ("w1", "w2", "w3")), strict=True)
        x = x + sum(_meta_ffn(h, *part) for part in parts)
    h = rms(x, "norm.weight")
    tail = shards("output.weight")
    return np.concatenate([h @ part.T for part in tail], axis=1)


def _meta_attention(
    h: np.ndarray, wq: np.ndarray, wk: np.ndarray, wv: np.ndarray, wo: np.ndarray, turns: np.ndarray
) -> np.ndarray:
    """One shard's share of attention: h (S, H), its heads' weights, turns (S, 1, D/2) -> (S, H)."""
    length, size = h.shape[0], 2 * turns.shape[-1]

    def turned(weight: np.ndarray) -> np.ndarray:
        pairs = np.ascontiguousarray((h @ weight.T).reshape(length, -1, size)).view(np.complex64)
        return np.ascontiguousarray(pairs * turns).view(np.float32)

    q, k, v = turned(wq), turned(wk), (h @ wv.T).reshape(length, -1, size)  # (S, heads, D)
    k, v = (np.repeat(part, q.shape[1] // part.shape[1], axis=1) for part in (k, v))
    scores = np.einsum("qnd,knd->nqk", q, k) / np.sqrt(size)
    scores += np.triu(np.full((length, length), -np.inf), 1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (np.einsum("nqk,knd->qnd", weights, v).reshape(length, -1) @ wo.T).astype(np.float32)


def _meta_ffn(h: np.ndarray, w1: np.ndarray, w2: np.ndarray, w3: np.ndarray) -> np.ndarray:
    """One shard's share of the feed-forward layer."""
    gate = h @ w1.T
    return (gate / (1 + np.exp(-gate)) * (h @ w3.T)) @ w2.T
