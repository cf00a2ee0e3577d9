# SPDX-License-Identifier: Apache-2.0
"""LlamaConfig from Hugging Face's config.json or Meta's params.json, and back."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mindformers.checkpoint.foreign import ForeignTensors, foreign_kind, open_foreign
from mindformers.checkpoint.foreign.arrays import FLOATS
from mindformers.checkpoint.foreign.detect import HF_CONFIG, META_PARAMS, read_json
from mindformers.checkpoint.foreign.table import EMBEDDING, HEAD, TABLE
from mindformers.errors import CheckpointError, ConfigError
from mindformers.models.llama.llama_config import LlamaConfig

__all__ = ["hf_config_dict", "llama_config_from", "meta_params_dict"]

META_CONTEXT = 4096  # positions Llama 2 was trained with; params.json does not say
GENERATION = "generation_config.json"

# key of config.json -> our field; what transformers takes when the key is absent, None where it must be there
_HF_FIELDS: dict[str, tuple[str, Any]] = {
    "hidden_size": ("hidden_size", None),
    "intermediate_size": ("intermediate_size", None),
    "num_hidden_layers": ("num_layers", None),
    "num_attention_heads": ("num_heads", None),
    "vocab_size": ("vocab_size", None),
    "max_position_embeddings": ("seq_length", 2048),
    "rms_norm_eps": ("rms_norm_eps", 1e-6),
    "initializer_range": ("initializer_range", 0.02),
    "tie_word_embeddings": ("tie_word_embeddings", False),
    "bos_token_id": ("bos_token_id", 1),
    "eos_token_id": ("eos_token_id", 2),
}
# key of generation_config.json -> our field; only keys that are there are taken
_GENERATION_FIELDS = {
    "eos_token_id": "eos_token_id",
    "do_sample": "do_sample",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "repetition_penalty": "repetition_penalty",
    "max_length": "max_decode_length",
    "max_new_tokens": "max_new_tokens",
}
_W1 = next(entry for entry in TABLE if entry.ours.endswith("feed_forward.w1.weight")).ours.replace("{i}", "0")


def llama_config_from(path: str | Path, weights: ForeignTensors | None = None, **changes: Any) -> LlamaConfig:
    """The LlamaConfig of foreign weights.

    Args:
        path: a folder of Hugging Face or Meta, a file in it, or config.json itself.
        weights: the opened weights, where the caller has them; else they are opened when something is only in them
            (Meta: vocabulary and feed-forward width; the element type where config.json does not name it).
        changes: fields that replace what is found.

    Returns:
        The config. ``param_init_type`` and ``compute_dtype`` are the element type of the weights; ``seq_length`` is
        the longest sequence the model was made for (4096 for Meta's files, which do not say).

    Raises:
        CheckpointError: the files are missing or damaged.
        ConfigError: the model is no Llama 2, or has a feature that this library does not have.
    """
    path = Path(path).expanduser()
    folder = path if path.is_dir() else path.parent
    kind = foreign_kind(path) or ("huggingface" if (folder / HF_CONFIG).is_file() else None)
    if kind == "meta":
        source = folder / META_PARAMS
        fields = _fields_of_meta(read_json(source), weights or open_foreign(folder))
    elif kind == "huggingface":
        source = folder / HF_CONFIG
        if not source.is_file():
            raise CheckpointError(f"{path}: no {HF_CONFIG} beside it, which says how many heads the model has")
        fields = _fields_of_hf(read_json(source), source)
        if "param_init_type" not in fields:
            opened = weights or open_foreign(path if foreign_kind(path) else folder)
            fields |= _dtypes(opened.dtype(EMBEDDING), str(path))
        if (folder / GENERATION).is_file():
            values = read_json(folder / GENERATION)
            named = {ours: values.get(theirs) for theirs, ours in _GENERATION_FIELDS.items()}
            fields |= {key: value for key, value in named.items() if value is not None}
    else:
        raise CheckpointError(f"{path}: neither {HF_CONFIG} with weights of Hugging Face nor {META_PARAMS} with Meta's")
    fields.setdefault("do_sample", False)  # the default of transformers; r0.8's was to draw
    try:
        return LlamaConfig(**{**fields, **changes})
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _fields_of_hf(values: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Our fields from config.json."""
    problems = list(_hf_problems(values))
    fields: dict[str, Any] = {"n_kv_heads": values.get("num_key_value_heads")}
    for key, (ours, default) in _HF_FIELDS.items():
        value = values.get(key)
        fields[ours] = default if value is None else value
        if fields[ours] is None:
            problems.append(f"{key} is missing")
    rope, rope_problem = _rope(values)
    if rope_problem:
        problems.append(rope_problem)
    if problems:
        raise ConfigError(f"{source}: this model cannot be used here\n" + "\n".join(f"  {line}" for line in problems))
    pad = values.get("pad_token_id")
    fields["pad_token_id"] = 0 if pad in (None, -1) else pad  # -1 is what the first Llama files had
    fields["pretrain_seqlen"] = fields["seq_length"]
    dtype = values.get("dtype") or values.get("torch_dtype")
    return fields | rope | (_dtypes(str(dtype).removeprefix("torch."), str(source)) if dtype else {})


def _hf_problems(values: Mapping[str, Any]) -> Iterator[str]:
    """What config.json asks for and this library does not have."""
    if values.get("model_type", "llama") != "llama":
        yield f"model_type is {values['model_type']!r}; only 'llama' is supported"
    if values.get("hidden_act", "silu") != "silu":
        yield f"hidden_act is {values['hidden_act']!r}; only 'silu' is supported"
    for key in ("attention_bias", "mlp_bias"):
        if values.get(key):
            yield f"{key} is true; linear layers have no bias here"
    if values.get("quantization_config"):
        yield "quantization_config: quantised weights are not supported; use the original ones"
    head_dim, width, heads = (values.get(key) for key in ("head_dim", "hidden_size", "num_attention_heads"))
    if head_dim and isinstance(width, int) and isinstance(heads, int) and head_dim * heads != width:
        yield f"head_dim is {head_dim}; only hidden_size / num_attention_heads ({width} / {heads}) is supported"


def _rope(values: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Our rotary fields, and what is wrong; transformers 5 calls rope_scaling rope_parameters and puts theta there."""
    scaling = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        return {}, f"rope_scaling is {scaling!r}, not a mapping"
    fields = {"rope_theta": scaling.get("rope_theta") or values.get("rope_theta") or 10000.0}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "linear":  # positions divided by a factor: our PI
        return fields | {"extend_method": "PI", "scaling_factor": scaling.get("factor", 1.0)}, ""
    if kind != "default":
        return {}, f"rope_scaling of type {kind!r} is not supported (supported: default, linear)"
    return fields, ""


def _dtypes(name: str, source: str) -> dict[str, str]:
    """The fields that hold the type of the weights."""
    if name not in FLOATS:
        raise ConfigError(f"{source}: element type {name!r} is not supported (supported: {', '.join(FLOATS)})")
    return {"param_init_type": name, "compute_dtype": name}


def _fields_of_meta(params: Mapping[str, Any], weights: ForeignTensors) -> dict[str, Any]:
    """Our fields from params.json and the shapes of the weights."""
    for name in (EMBEDDING, _W1):
        if name not in weights:
            raise CheckpointError(f"{weights.path}: the weight of {name} is missing")
    vocab, (width, _) = weights.shape(EMBEDDING)[0], weights.shape(_W1)
    said = params.get("vocab_size", -1)
    if said not in (-1, vocab):
        raise CheckpointError(f"{weights.path}: {META_PARAMS} says vocab_size {said}, the embedding has {vocab} rows")

    fields = {
        "hidden_size": params["dim"],
        "num_layers": params["n_layers"],
        "num_heads": params["n_heads"],
        "n_kv_heads": params.get("n_kv_heads"),
        "vocab_size": vocab,
        "intermediate_size": width,
        "ffn_dim_multiplier": params.get("ffn_dim_multiplier"),
        "rms_norm_eps": params.get("norm_eps", 1e-5),
        "rope_theta": params.get("rope_theta") or 10000.0,
        "seq_length": META_CONTEXT,
        "pretrain_seqlen": META_CONTEXT,
        "tie_word_embeddings": HEAD not in weights,
    }
    if params.get("multiple_of"):
        fields["multiple_of"] = params["multiple_of"]
    if params.get("use_scaled_rope"):
        raise ConfigError(f"{weights.path}: use_scaled_rope (Llama 3.1) is not supported")
    return fields | _dtypes(weights.dtype(EMBEDDING), str(weights.path))


def _extension(config: LlamaConfig) -> tuple[float, float]:
    """(factor positions are divided by, base of the frequencies) of a config's rotary embedding."""
    ratio = config.scaling_factor
    if ratio == 1.0:
        ratio = max(1.0, config.seq_length / config.pretrain_seqlen)
    if config.extend_method == "PI":
        return ratio, config.rope_theta
    return 1.0, config.rope_theta * (ratio if config.extend_method == "NTK" else 1.0)


def hf_config_dict(config: LlamaConfig, dtype: str | None = None) -> dict[str, Any]:
    """The content of config.json for a model of ours.

    Args:
        config: the model's config.
        dtype: element type of the weights; None takes ``param_init_type``.
    """
    divisor, theta = _extension(config)
    values: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    values |= {theirs: getattr(config, ours) for theirs, (ours, _) in _HF_FIELDS.items()}
    values |= {
        "intermediate_size": config.ffn_size,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": config.max_position_embedding or max(config.seq_length, config.pretrain_seqlen),
        "rope_theta": theta,
        "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": divisor} if divisor != 1.0 else None,
        "pad_token_id": config.pad_token_id,
        "attention_bias": False,
        "torch_dtype": dtype or config.param_init_type,
        "use_cache": True,
    }
    return values


def meta_params_dict(config: LlamaConfig) -> dict[str, Any]:
    """The content of params.json for a model of ours; Meta's own formula gives its feed-forward width.

    Raises:
        ConfigError: position interpolation (extend_method PI), which Meta's code does not have.
    """
    divisor, theta = _extension(config)
    if divisor != 1.0:
        raise ConfigError("extend_method PI cannot be written in Meta's layout, whose code has no such option")
    multiple_of, multiplier = _meta_ffn(config)
    params: dict[str, Any] = {
        "dim": config.hidden_size,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        "multiple_of": multiple_of,
        "norm_eps": config.rms_norm_eps,
    }
    if multiplier is not None:
        params["ffn_dim_multiplier"] = multiplier
    if theta != 10000.0:
        params["rope_theta"] = theta
    return params


def _meta_ffn(config: LlamaConfig) -> tuple[int, float | None]:
    """multiple_of and ffn_dim_multiplier with which Meta's formula gives the model's feed-forward width.

    Meta: two thirds of 4 * dim, times the multiplier, rounded up to multiple_of (the whole parts at each step). The old
    library's formula differs, so that the config's own numbers are only tried first.
    """
    width, base = config.ffn_size, int(2 * (4 * config.hidden_size) / 3)
    for multiple_of in dict.fromkeys((config.multiple_of, 256, *(2**n for n in range(12, 0, -1)))):
        for multiplier in (config.ffn_dim_multiplier, None):
            scaled = base if multiplier is None else int(multiplier * base)
            if multiple_of * math.ceil(scaled / multiple_of) == width:
                return multiple_of, multiplier
    return 1, (width + 0.5) / base
