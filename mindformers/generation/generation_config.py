# SPDX-License-Identifier: Apache-2.0
"""GenerationConfig: how long to generate, and how each token is chosen."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from mindformers.errors import ConfigError
from mindformers.tools.logger import get_logger
from mindformers.tools.utils import did_you_mean

__all__ = ["GenerationConfig"]

logger = get_logger(__name__)

_DEFAULTS: dict[str, Any] = {
    "max_length": 20,
    "max_new_tokens": None,
    "do_sample": False,
    "use_past": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "renormalize_logits": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "seed": None,
}
_ALIASES = {"max_decode_length": "max_length"}
_MODEL_FIELDS = (
    "max_decode_length",
    "max_new_tokens",
    "do_sample",
    "use_past",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)


class GenerationConfig:
    """Settings of one call of ``generate``.

    Args:
        max_length: most tokens of a sequence, prompt included (other name: max_decode_length).
        max_new_tokens: most tokens after the prompt; wins over max_length when both are given.
        do_sample: draw tokens at random; False takes the likeliest (then temperature, top_k, top_p do nothing).
        use_past: keep keys and values of earlier tokens instead of computing them again; same tokens, much faster.
        temperature: divides the logits, above 0.
        top_k: draw among this many likeliest tokens; 0 means all.
        top_p: draw among the fewest likeliest tokens whose probabilities reach this, in (0, 1].
        repetition_penalty: logits of tokens already in the row are divided by it when positive and multiplied when
            negative; above 1 discourages repeats (Keskar et al. 2019).
        encoder_repetition_penalty: only for encoder-decoder models; anything but 1 is reported as without effect.
        renormalize_logits: turn processed logits into log-probabilities; visible to custom processors only.
        pad_token_id: id that fills short prompts on the right.
        bos_token_id: id of the begin token; kept for callers.
        eos_token_id: id, or ids, that end a sequence; None never ends early.
        seed: of the random draws; None takes fresh randomness on every call.

    Raises:
        ConfigError: an unknown name (with the nearest known one), or a value that is not allowed.
    """

    max_length: int
    max_new_tokens: int | None
    do_sample: bool
    use_past: bool
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    encoder_repetition_penalty: float
    renormalize_logits: bool
    pad_token_id: int | None
    bos_token_id: int | None
    eos_token_id: int | list[int] | None
    seed: int | None

    def __init__(self, **kwargs: Any) -> None:
        self.__dict__.update(_DEFAULTS)
        self._refuse(self.update(**kwargs))

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A config from a mapping, kwargs on top.

        Args:
            config_dict: names and values, such as to_dict returns.
            return_unused_kwargs: return (config, unknown entries) instead of refusing unknown names.
            kwargs: entries that win over config_dict.
        """
        config = cls()
        unused = config.update(**{**config_dict, **kwargs})
        if return_unused_kwargs:
            return config, unused
        cls._refuse(unused)
        return config

    @classmethod
    def from_model_config(cls, model_config: Any) -> "GenerationConfig":
        """The generation defaults that a model's config carries (an object or a mapping)."""
        read = model_config.get if isinstance(model_config, Mapping) else lambda key: getattr(model_config, key, None)
        values = {key: read(key) for key in _MODEL_FIELDS}
        config = cls()
        config._assign({_ALIASES.get(key, key): value for key, value in values.items() if value is not None})
        return config

    def update(self, **kwargs: Any) -> dict[str, Any]:
        """Set fields; return the entries whose names are unknown.

        A max_length alone replaces an earlier max_new_tokens, since it is the newer wish.
        """
        known: dict[str, Any] = {}
        unused: dict[str, Any] = {}
        for key, value in kwargs.items():
            name = _ALIASES.get(key, key)
            if name not in _DEFAULTS:
                unused[key] = value
            elif name in known and known[name] != value:
                raise ConfigError(f"max_length {known[name]} and max_decode_length {value} are one setting; give one")
            else:
                known[name] = value
        if known.get("max_length") is not None:
            if known.get("max_new_tokens") is not None:
                logger.info("max_new_tokens %s wins over max_length %s", known["max_new_tokens"], known["max_length"])
            known.setdefault("max_new_tokens", None)
        self._assign(known)
        return unused

    def to_dict(self) -> dict[str, Any]:
        """All fields and their values."""
        return {key: getattr(self, key) for key in _DEFAULTS}

    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end a sequence."""
        if self.eos_token_id is None:
            return ()
        return tuple(self.eos_token_id) if isinstance(self.eos_token_id, list) else (self.eos_token_id,)

    def __repr__(self) -> str:
        return f"GenerationConfig({', '.join(f'{key}={value!r}' for key, value in self.to_dict().items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.to_dict() == other.to_dict()

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _DEFAULTS and name not in _ALIASES:
            self._refuse([name])
        self._assign({_ALIASES.get(name, name): value})

    def __getattr__(self, name: str) -> Any:
        if name in _ALIASES:
            return getattr(self, _ALIASES[name])
        raise AttributeError(f"GenerationConfig has no field {name!r}.{did_you_mean(name, _DEFAULTS, 'fields')}")

    __hash__ = None

    def _assign(self, values: Mapping[str, Any]) -> None:
        """Check all values, then set them: a refused update changes nothing."""
        self.__dict__.update({name: _checked(name, value) for name, value in values.items()})

    @staticmethod
    def _refuse(names: Iterable[str]) -> None:
        for name in names:
            raise ConfigError(
                f"unknown generation setting {name!r}.{did_you_mean(name, [*_DEFAULTS, *_ALIASES], 'settings')}"
            )


def _checked(name: str, value: Any) -> Any:
    """The value in its field's type, or a ConfigError that says what is allowed."""
    if name in ("do_sample", "use_past", "renormalize_logits"):
        if not isinstance(value, bool):
            raise ConfigError(f"{name} {value!r} is not allowed: give True or False")
        return value
    if name in ("temperature", "top_p", "repetition_penalty", "encoder_repetition_penalty"):
        return _number(name, value)
    if name == "eos_token_id" and isinstance(value, (list, tuple)):
        return [_integer(name, item, 0) for item in value]
    if name == "top_k":
        return 0 if value is None else _integer(name, value, 0)
    if value is None and name != "max_length":
        return None
    return _integer(name, value, 1 if name in ("max_length", "max_new_tokens") else 0)


def _integer(name: str, value: Any, least: int) -> int:
    whole = hasattr(value, "__index__") and not isinstance(value, bool)
    if not whole or int(value) < least:
        raise ConfigError(f"{name} {value!r} is not allowed: give an integer of at least {least}")
    return int(value)


def _number(name: str, value: Any) -> float:
    most = 1.0 if name == "top_p" else math.inf
    real = isinstance(value, (int, float)) or hasattr(value, "__float__")
    number = float(value) if real and not isinstance(value, (bool, str)) else math.nan
    if not (0.0 < number <= most and math.isfinite(number)):
        raise ConfigError(f"{name} {value!r} is not allowed: give a number above 0{' and at most 1' * (most == 1)}")
    return number
