# SPDX-License-Identifier: Apache-2.0
"""The one table of weight names: ours, Hugging Face's, Meta's; shapes, shards and the order inside q and k.

Every direction of the conversion, the expected shapes and docs/weights.md follow from ``TABLE``. It was written down
from transformers' LlamaForCausalLM and from ``llama/model.py`` of Meta's repository.

Meta rotates neighbouring features (x_2i, x_2i+1) of a head; Hugging Face and we rotate (x_i, x_i+D/2). The rows of wq
and wk, and of no other weight, are therefore in another order: see :func:`permute`.
"""

import re
from functools import cache
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "EMBEDDING",
    "HEAD",
    "KINDS",
    "TABLE",
    "Entry",
    "entry_of",
    "expected_shapes",
    "foreign_name",
    "is_derived",
    "our_name",
    "permute",
]

KINDS = ("huggingface", "meta")


class Entry(NamedTuple):
    """One weight, or one of every layer where the names hold ``{i}``.

    Args:
        ours: its name here.
        huggingface: its name in transformers.
        meta: its name in Meta's files.
        axes: what each axis of its shape is, in words of ``model.model_config``.
        split: the axis Meta's model-parallel shards divide; None where each shard holds the whole.
        heads: whose features its rows are, for :func:`permute`; empty where the order is the same everywhere.
    """

    ours: str
    huggingface: str
    meta: str
    axes: tuple[str, ...]
    split: int | None
    heads: str = ""


_V, _H, _F, _K = "vocab_size", "hidden_size", "intermediate_size", "n_kv_heads * head_dim"
_OURS, _HF, _META = "model.layers.{i}.", "model.layers.{i}.", "layers.{i}."

TABLE: tuple[Entry, ...] = (
    Entry("model.tok_embeddings.embedding_weight", "model.embed_tokens.weight", "tok_embeddings.weight", (_V, _H), 1),
    *(
        Entry(f"{_OURS}{ours}.weight", f"{_HF}{theirs}.weight", f"{_META}{ours}.weight", axes, split, heads)
        for ours, theirs, axes, split, heads in (
            ("attention_norm", "input_layernorm", (_H,), None, ""),
            ("attention.wq", "self_attn.q_proj", (_H, _H), 0, "num_heads"),
            ("attention.wk", "self_attn.k_proj", (_K, _H), 0, "num_kv_heads"),
            ("attention.wv", "self_attn.v_proj", (_K, _H), 0, ""),
            ("attention.wo", "self_attn.o_proj", (_H, _H), 1, ""),
            ("ffn_norm", "post_attention_layernorm", (_H,), None, ""),
            ("feed_forward.w1", "mlp.gate_proj", (_F, _H), 0, ""),
            ("feed_forward.w2", "mlp.down_proj", (_H, _F), 1, ""),
            ("feed_forward.w3", "mlp.up_proj", (_F, _H), 0, ""),
        )
    ),
    Entry("model.norm_out.weight", "model.norm.weight", "norm.weight", (_H,), None),
    Entry("lm_head.weight", "lm_head.weight", "output.weight", (_V, _H), 0),
)
EMBEDDING, HEAD = TABLE[0].ours, TABLE[-1].ours

# Values that are tables of the rotary embedding, not weights: they follow from the config.
_DERIVED = {
    "huggingface": re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq|model\.rotary_emb\.inv_freq"),
    "meta": re.compile(r"rope\.freqs"),
}


@cache
def _patterns(kind: str) -> list[tuple[re.Pattern[str], Entry]]:
    """A pattern for each name of the table in one library's words, with the layer as its group."""
    texts = [(re.escape(getattr(entry, kind)).replace(r"\{i\}", r"(0|[1-9]\d*)"), entry) for entry in TABLE]
    return [(re.compile(text), entry) for text, entry in texts]


@cache
def _find(name: str, kind: str) -> tuple[Entry, str] | None:
    """The table's entry of a name and its layer (empty where it has none)."""
    for pattern, entry in _patterns(kind):
        match = pattern.fullmatch(name)
        if match:
            return entry, match[1] if match.groups() else ""
    return None


def our_name(name: str, kind: str) -> str | None:
    """Our name of a weight that library ``kind`` calls ``name``; None when the table does not know it."""
    found = _find(name, kind)
    return found[0].ours.replace("{i}", found[1]) if found else None


def foreign_name(name: str, kind: str) -> str | None:
    """What library ``kind`` calls our weight ``name``; None when the table does not know it."""
    found = _find(name, "ours")
    return getattr(found[0], kind).replace("{i}", found[1]) if found else None


def entry_of(name: str) -> Entry | None:
    """The table's entry of one of our names."""
    found = _find(name, "ours")
    return found[0] if found else None


def is_derived(name: str, kind: str) -> bool:
    """Whether a foreign value is no weight but a rotary table, which conversion drops."""
    return _DERIVED[kind].fullmatch(name) is not None


def expected_shapes(config: Any, head: bool | None = None) -> dict[str, tuple[int, ...]]:
    """Our name to shape of every weight of a model.

    Args:
        config: a LlamaConfig.
        head: whether the output layer is a weight of its own; None asks the config.
    """
    kv_width = config.hidden_size // config.num_heads * config.num_kv_heads
    sizes = {_V: config.vocab_size, _H: config.hidden_size, _F: config.ffn_size, _K: kv_width}
    own_head = not config.tie_word_embeddings if head is None else head
    shapes = {}

    def add(entry: Entry, layer: str) -> None:
        shapes[entry.ours.replace("{i}", layer)] = tuple(sizes[axis] for axis in entry.axes)

    add(TABLE[0], "")
    for layer in range(config.num_layers):
        for entry in TABLE:
            if "{i}" in entry.ours:
                add(entry, str(layer))
    for entry in TABLE[1:]:
        if "{i}" not in entry.ours and (entry.ours != HEAD or own_head):
            add(entry, "")
    return shapes


def permute(weight: np.ndarray, heads: int, to_meta: bool = False) -> np.ndarray:
    """Rows of wq or wk from Meta's order to ours, or back.

    Args:
        weight: (heads * D, H).
        heads: query heads for wq, key/value heads for wk.
        to_meta: from ours to Meta's.

    Row 2i + j of a head at Meta's is row j * D/2 + i of that head here (i < D/2, j < 2).
    """
    rows, width = weight.shape
    half = rows // heads // 2
    split = (heads, 2, half, width) if to_meta else (heads, half, 2, width)
    return np.ascontiguousarray(weight.reshape(split).swapaxes(1, 2)).reshape(rows, width)
