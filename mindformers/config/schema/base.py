# SPDX-License-Identifier: Apache-2.0
"""What every section of the config shares: strictness, readable errors, sections chosen by their ``type:``."""

import contextlib
import contextvars
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator

from mindformers.errors import ConfigError
from mindformers.registry import ALIASES, MindFormerRegister
from mindformers.tools.utils import did_you_mean

# True while a whole config is being read: the sections then leave their errors to the reader, which collects them.
_collecting: contextvars.ContextVar[bool] = contextvars.ContextVar("collecting", default=False)

OTHER = "<other>"


@dataclass(frozen=True)
class Finding:
    """One thing that does not fit between keys that are each fine.

    Args:
        key: dotted key the message is shown at, relative to the section that was checked.
        message: what is wrong and what is allowed.
        involved: further dotted keys the rule looked at; where one of them has an error of its own the finding is
            left out.
    """

    key: str
    message: str
    involved: tuple[str, ...] = ()


@contextlib.contextmanager
def collecting() -> Iterator[None]:
    """Within this block sections raise pydantic's own error, so that the caller can collect all of them."""
    token = _collecting.set(True)
    try:
        yield
    finally:
        _collecting.reset(token)


class Section(BaseModel):
    """A mapping of the config: unknown keys and wrong values raise ConfigError, also on assignment."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, protected_namespaces=(), arbitrary_types_allowed=True
    )

    def __init__(self, /, **data: Any) -> None:
        if _collecting.get():
            super().__init__(**data)
            return
        try:
            with collecting():
                super().__init__(**data)
        except ValidationError as error:
            raise _readable(type(self), error, data) from None
        self.check()

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or isinstance(getattr(type(self), name, None), property):
            super().__setattr__(name, value)
            return
        if name not in type(self).model_fields and self.model_config.get("extra") != "allow":
            names = type(self).model_fields
            raise ConfigError(f"{type(self).__name__}: unknown key {name!r}.{did_you_mean(name, names, 'keys')}")
        try:
            with collecting():
                super().__setattr__(name, value)
        except ValidationError as error:
            alias = type(self).model_fields[name].alias
            raise _readable(type(self), error, {alias or name: value}) from None

    def findings(self) -> Iterator[Finding]:
        """Rules between the keys of this section that it breaks."""
        return iter(())

    def check(self) -> None:
        """Raise ConfigError when keys of this section do not fit together.

        Assigning to one key checks that key alone, so that two keys can be changed one after the other; whoever
        uses the section calls this first.
        """
        found = list(self.findings())
        if found:
            lines = [f"  {finding.key}: {finding.message}" for finding in found]
            raise ConfigError("\n".join([f"{type(self).__name__}: {count_problems(len(found))}", *lines]))

    def to_dict(self) -> dict[str, Any]:
        """The section as plain dicts and lists under its YAML names; keys that are None by default are left out."""
        result = {}
        for name, info in type(self).model_fields.items():
            value = getattr(self, name)
            if not info.exclude and not (value is None and info.default is None):
                result[info.alias or name] = _plain(value)
        return result | {key: _plain(value) for key, value in (self.model_extra or {}).items()}


class Component(Section):
    """A section with a ``type:`` whose other keys are the arguments of the thing it names."""

    type: str = Field(description="Name of the class.")

    def options(self) -> dict[str, Any]:
        """The arguments, given or defaulted, without ``type``, those that are None, and those without effect."""
        fields = type(self).model_fields.items()
        names = [name for name, info in fields if name != "type" and "inert" not in (info.json_schema_extra or {})]
        values = {name: getattr(self, name) for name in names} | (self.model_extra or {})
        return {name: value for name, value in values.items() if value is not None}


def count_problems(number: int) -> str:
    """``1 problem``, ``2 problems``."""
    return f"{number} problem" + ("" if number == 1 else "s")


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.to_dict()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _readable(cls: type[Section], error: ValidationError, data: dict[str, Any]) -> ConfigError:
    from mindformers.config.problems import problems_of  # it reads the schema: imported when it is needed

    found = problems_of(cls, error, data)
    lines = [f"  {'.'.join(map(str, problem.path)) or 'value'}: {problem.message}" for problem in found]
    return ConfigError("\n".join([f"{cls.__name__}: {count_problems(len(found))}", *lines]))


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {value}")
    return value


Int = Annotated[int, BeforeValidator(_no_bool)]
PositiveInt = Annotated[Int, Field(gt=0)]
NonNegativeInt = Annotated[Int, Field(ge=0)]
Float = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
PositiveFloat = Annotated[Float, Field(gt=0)]
NonNegativeFloat = Annotated[Float, Field(ge=0)]
Fraction = Annotated[Float, Field(ge=0, le=1)]


def _dtype_name(value: Any) -> Any:
    return value if isinstance(value, str) or value is None else str(value).lower()


# MindSpore's own type objects (str(ms.float16) is "Float16") are taken by their name.
Dtype = Annotated[Literal["float32", "float16", "bfloat16"], BeforeValidator(_dtype_name)]


def inert(default: Any, meaning: str, reason: str) -> Any:
    """A key that old files hold and that changes nothing here; a value other than the default gives a warning.

    Args:
        default: the value of the old files.
        meaning: what the key was for.
        reason: why it has no effect.
    """
    return Field(default, description=f"No effect: {reason}. ({meaning})", json_schema_extra={"inert": reason})


def other_component(kind: str, what: str) -> type[Component]:
    """A component whose ``type`` the schema does not describe: MindSpore's or the user's; its keys stay as given.

    Args:
        kind: the registry's kind that ``type`` is looked up in.
        what: the name of the class made.
    """

    def known(cls: type, value: str) -> str:
        if MindFormerRegister.is_exist(kind, value):
            return value
        choices = sorted({*OWN_TYPES.get(kind, ()), *MindFormerRegister.names(kind)})
        raise ValueError(
            f"no {kind} is called {value!r}.{did_you_mean(value, choices)} One of your own: --register_path FILE"
        )

    body = {
        "__module__": __name__,
        "__doc__": f"A {kind} that MindSpore or the user provides; its arguments are checked when it is built.",
        "model_config": ConfigDict(extra="allow"),
        "known": field_validator("type")(classmethod(known)),
    }
    return type(what, (Component,), body)


# Registry kind -> the types the schema describes, filled by by_type().
OWN_TYPES: dict[str, tuple[str, ...]] = {}


def by_type(kind: str, own: tuple[type[Component], ...], other: type[Component]) -> Any:
    """The annotation of a field that holds one of several components, chosen by ``type``.

    Args:
        kind: the registry's kind.
        own: components the schema describes; the Literal of their ``type`` lists the names.
        other: the component for every other name.
    """
    table = {name: cls for cls in own for name in type_names(cls)}
    fallback = default_section(own)
    OWN_TYPES[kind] = tuple(dict.fromkeys([*OWN_TYPES.get(kind, ()), *table]))

    def choose(value: Any) -> str | None:
        if isinstance(value, dict) and "type" not in value:
            return f"<{fallback.__name__}>" if fallback is not None else None
        name = value["type"] if isinstance(value, dict) else getattr(value, "type", None)
        if not isinstance(name, str):
            return None
        if name not in table:
            name = ALIASES.get(kind, {}).get(name, name)
        return f"<{table[name].__name__}>" if name in table else OTHER

    members = [Annotated[cls, Tag(f"<{cls.__name__}>")] for cls in own] + [Annotated[other, Tag(OTHER)]]
    return Annotated[Union[tuple(members)], Discriminator(choose)]  # noqa: UP007 - the members are computed


def default_section(candidates: Iterable[type[Section]]) -> type[Section] | None:
    """The section meant when ``type`` is left out: the first one whose ``type`` has a default."""
    return next((cls for cls in candidates if not cls.model_fields["type"].is_required()), None)


def type_names(cls: type[Component]) -> tuple[str, ...]:
    """The values of ``type`` that a component stands for."""
    return getattr(cls.model_fields["type"].annotation, "__args__", ())
