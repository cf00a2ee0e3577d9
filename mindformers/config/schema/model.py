# SPDX-License-Identifier: Apache-2.0
"""Section ``model``: the shape, the types and the generation defaults of a Llama model."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mindformers.config.schema.base import (
    Dtype,
    Finding,
    Fraction,
    Int,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    inert,
)
from mindformers.config.schema.parallel import TransformerOpParallelConfig
from mindformers.tools.utils import did_you_mean


def _null_is_none_text(value: Any) -> Any:
    return "None" if value in (None, "null", "~") else value


ExtendMethod = Annotated[Literal["None", "PI", "NTK"], BeforeValidator(_null_is_none_text)]


LORA_INITS = (
    "normal", "zero", "zeros", "one", "ones", "uniform", "he_uniform", "he_normal", "xavier_uniform",
    "xavier_normal", "truncatednormal",
)  # fmt: skip


class LoraSection(Section):
    """Key ``model.model_config.pet_config``: low-rank adapters."""

    pet_type: Literal["lora"] = Field("lora", description="Method of parameter-efficient finetuning.")
    lora_rank: PositiveInt = Field(8, description="Rank of the two adapter matrices.")
    lora_alpha: PositiveFloat = Field(16, description="Scale: the adapter's output is multiplied by alpha / rank.")
    lora_dropout: Fraction = Field(0.01, description="Share of the adapter's inputs dropped in training.")
    lora_a_init: str = Field(
        "normal", description="Initializer of matrix A: " + ", ".join(LORA_INITS) + "; he_uniform is PEFT's."
    )
    lora_b_init: str = Field("zero", description="Initializer of matrix B; zero starts from the base model.")
    param_init_type: Dtype = Field("float16", description="Type the adapter matrices are kept in.")
    compute_dtype: Dtype = Field("float16", description="Type the adapter computes in.")
    target_modules: str = Field(
        ".*wq|.*wk|.*wv|.*wo",
        min_length=1,
        description="Regular expression for the layers that get an adapter, matched from the start with the last part "
        "of their name: wq, wk, wv, wo, w1, w2, w3.",
    )
    exclude_layers: str | list[str] | None = Field(
        None,
        description="Regular expressions of layers left alone, matched from the start with the last part of the name "
        "or with the whole path (model.layers.0.attention.wq).",
    )

    @field_validator("target_modules", "exclude_layers")
    @classmethod
    def _compiles(cls, value: str | list[str] | None) -> str | list[str] | None:
        for pattern in [value] if isinstance(value, str) else value or []:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return value

    @field_validator("target_modules", mode="before")
    @classmethod
    def _default_targets(cls, value: Any) -> Any:
        return cls.model_fields["target_modules"].default if value is None else value

    @field_validator("lora_a_init", "lora_b_init")
    @classmethod
    def _is_initializer(cls, value: str) -> str:
        if value.lower() not in LORA_INITS:
            raise ValueError(f"{value!r} is no initializer.{did_you_mean(value, LORA_INITS)}")
        return value.lower()

    @field_validator("lora_dropout")
    @classmethod
    def _keeps_something(cls, value: float) -> float:
        if value >= 1:
            raise ValueError(f"{value} would drop everything the adapter sees; allowed: 0 up to, not including, 1")
        return value


class LlamaModelConfig(Section):
    """Key ``model.model_config`` with type LlamaConfig; the fields stay assignable and are checked on assignment."""

    type: Literal["LlamaConfig"] = Field("LlamaConfig", description="Class of the model's config.")
    batch_size: PositiveInt = Field(1, description="Sequences generated at once; size of the key/value cache.")
    seq_length: PositiveInt = Field(2048, description="Tokens per record: graph, mask, cache and rotary table length.")
    hidden_size: PositiveInt = Field(4096, description="Width of the model.")
    num_layers: PositiveInt = Field(32, description="Decoder layers.")
    num_heads: PositiveInt = Field(32, description="Query heads.")
    n_kv_heads: PositiveInt | None = Field(None, description="Key and value heads (GQA); num_heads if absent.")
    vocab_size: PositiveInt = Field(32000, description="Tokens in the vocabulary.")
    multiple_of: PositiveInt = Field(256, description="The feed-forward width is rounded up to a multiple of this.")
    ffn_dim_multiplier: PositiveFloat | None = Field(
        None, description="Factor on the feed-forward width before rounding; 1 if absent."
    )
    intermediate_size: PositiveInt | None = Field(
        None, description="Feed-forward width; from hidden_size, ffn_dim_multiplier and multiple_of if absent."
    )
    rms_norm_eps: PositiveFloat = Field(1e-5, description="Added to the mean square in RMSNorm.")
    bos_token_id: NonNegativeInt = Field(1, description="Id of the begin token.")
    eos_token_id: NonNegativeInt | list[NonNegativeInt] = Field(2, description="Id, or ids, that end generation.")
    pad_token_id: NonNegativeInt = Field(0, description="Id that fills short sequences.")
    ignore_token_id: Int = Field(-100, description="Label that does not count in the loss.")
    max_position_embedding: PositiveInt | None = Field(
        None,
        description="Longest position of the rotary table; the larger of seq_length and pretrain_seqlen if absent.",
    )
    pretrain_seqlen: PositiveInt = Field(2048, description="Sequence length of pretraining, for extend_method.")
    extend_method: ExtendMethod = Field("None", description="Rotary extension beyond pretrain_seqlen: None, PI or NTK.")
    scaling_factor: PositiveFloat = Field(
        1.0, description="Factor of PI and NTK; 1 takes seq_length / pretrain_seqlen."
    )
    rope_theta: PositiveFloat = Field(10000.0, description="Base of the rotary frequencies (old name: theta).")
    tie_word_embeddings: bool = Field(False, description="Output layer and embedding share one weight.")
    initializer_range: PositiveFloat = Field(0.01, description="Standard deviation of new weights.")
    compute_dtype: Dtype = Field("float16", description="Type of matrix products.")
    layernorm_compute_type: Dtype = Field("float32", description="Type of the norms' products; statistics are fp32.")
    softmax_compute_type: Dtype = Field("float32", description="Type of the attention softmax.")
    rotary_dtype: Dtype = Field("float32", description="Type of the rotary rotation.")
    param_init_type: Dtype = Field("float16", description="Type the weights are kept in; norm weights are fp32.")
    weight_dtype: Literal["float32", "bfloat16", "int8"] | None = Field(
        None,
        description="Type the linear layers' weights are kept in to generate and evaluate on CPU by native kernels; "
        "int8 has a scale per row. None or float32 leaves them as loaded.",
    )
    parallel_config: TransformerOpParallelConfig = Field(
        default_factory=TransformerOpParallelConfig,
        exclude=True,
        description="Split over the ranks, for scripts; a run takes the top-level section parallel_config.",
    )
    compute_in_2d: bool = inert(False, "flatten batch and sequence", "the layers always work on (tokens, hidden)")
    use_flash_attention: bool = Field(False, description="Ascend's fused attention; other devices use the plain one.")
    use_past: bool = Field(False, description="Generate with a key/value cache.")
    use_past_shard: bool = Field(False, description="Split the cache's heads over model_parallel.")
    offset: Int | list[Int] = Field(0, description="Shift of layers between pipeline stages; a list has one per stage.")
    checkpoint_name_or_path: str | None = Field(
        "", description="Weights loaded when the model is built: a known name or a file; empty means random weights."
    )
    repetition_penalty: PositiveFloat = Field(1.0, description="Above 1 makes tokens already there less likely.")
    max_decode_length: PositiveInt = Field(1024, description="Longest generated sequence, prompt included.")
    max_new_tokens: PositiveInt | None = Field(
        None, description="Most tokens generated after the prompt; wins over max_decode_length."
    )
    temperature: PositiveFloat = Field(1.0, description="Divides the logits before sampling.")
    top_k: NonNegativeInt = Field(5, description="Sample among this many likeliest tokens; 0 means all.")
    top_p: Fraction = Field(1.0, description="Sample among the likeliest tokens that together reach this probability.")
    do_sample: bool = Field(True, description="Draw tokens at random; False takes the likeliest.")
    pet_config: LoraSection | None = Field(None, description="Low-rank adapters; none if absent.")

    @model_validator(mode="before")
    @classmethod
    def _old_names(cls, data: Any) -> Any:
        if isinstance(data, dict) and "theta" in data and "rope_theta" not in data:
            data = {("rope_theta" if key == "theta" else key): value for key, value in data.items()}
        return data

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads, the default resolved."""
        return self.n_kv_heads or self.num_heads

    @property
    def ffn_size(self) -> int:
        """Feed-forward width: two thirds of 4 * hidden_size * (multiplier + 0.01), rounded up, unless given.

        The 0.01 is the old library's: with it multiple_of 256 gives 70B's 28672 as Meta's multiple of 4096 does.
        """
        if self.intermediate_size:
            return self.intermediate_size
        width = 4 * self.hidden_size
        if self.ffn_dim_multiplier is not None:
            width = int((self.ffn_dim_multiplier + 0.01) * width)
        width = 2 * width // 3
        return self.multiple_of * ((width + self.multiple_of - 1) // self.multiple_of)

    @property
    def num_parameters(self) -> int:
        """Weights of the model, adapters left out."""
        width, kv_width = self.hidden_size, self.hidden_size // self.num_heads * self.num_kv_heads
        layer = 2 * width * width + 2 * width * kv_width + 3 * width * self.ffn_size + 2 * width
        embeddings = self.vocab_size * width * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_layers * layer + width

    def findings(self) -> Iterator[Finding]:
        """Shapes that cannot be built, and token ids outside the vocabulary."""
        if self.hidden_size % self.num_heads:
            message = f"{self.hidden_size} is not divisible by num_heads {self.num_heads}"
            yield Finding("hidden_size", message, ("num_heads",))
        elif self.hidden_size // self.num_heads % 2:
            size = self.hidden_size // self.num_heads
            message = f"{self.hidden_size} / {self.num_heads} heads gives heads of odd size {size}; rotary needs even"
            yield Finding("hidden_size", message, ("num_heads",))
        if self.num_heads % self.num_kv_heads:
            message = f"num_heads {self.num_heads} is not divisible by n_kv_heads {self.num_kv_heads}"
            yield Finding("n_kv_heads", message, ("num_heads",))
        eos = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        ids = [("bos_token_id", self.bos_token_id), ("pad_token_id", self.pad_token_id)]
        for key, number in [*ids, *(("eos_token_id", number) for number in eos)]:
            if number >= self.vocab_size:
                yield Finding(key, f"{number} is not below vocab_size {self.vocab_size}", ("vocab_size",))
        if not eos:
            yield Finding("eos_token_id", "the list is empty; give one id at least")
        if self.max_position_embedding and self.max_position_embedding < self.seq_length:
            message = f"{self.max_position_embedding} is below seq_length {self.seq_length}"
            yield Finding("max_position_embedding", message, ("seq_length",))


class ArchSection(Section):
    """Key ``model.arch``."""

    type: str = Field("LlamaForCausalLM", description="Class of the model.")


class ModelSection(Section):
    """Section ``model``."""

    config: LlamaModelConfig = Field(
        alias="model_config", default_factory=LlamaModelConfig, description="Shape and types of the model."
    )
    arch: ArchSection = Field(default_factory=ArchSection, description="Class of the model.")

    def findings(self) -> Iterator[Finding]:
        """The findings of the model's config."""
        for found in self.config.findings():
            involved = tuple(f"model_config.{key}" for key in found.involved)
            yield Finding(f"model_config.{found.key}", found.message, involved)
