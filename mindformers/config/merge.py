# SPDX-License-Identifier: Apache-2.0
"""Laying one config over another: deep merge that keeps where every key was written."""

from copy import deepcopy
from typing import Any

from mindformers.config.problems import Place
from mindformers.config.schema.base import OTHER
from mindformers.config.schema.run import RunConfig
from mindformers.config.schema.train import WARMUP_KEYS
from mindformers.config.tree import Path, choose_section, find_spot, keys_of, sections_in

# Keys of which a section has one: where the upper layer gives one, those of the layer below go.
_EXCLUSIVE: dict[Path, tuple[frozenset[str], ...]] = {
    ("lr_schedule",): tuple(frozenset({key}) for key in WARMUP_KEYS),
    ("optimizer",): (frozenset({"betas"}), frozenset({"beta1", "beta2"})),
}
# What survives when the upper layer names another ``type`` that the schema does not describe.
_ALWAYS_KEPT = frozenset({"learning_rate"})


class Layer:
    """Values and where they were written.

    Args:
        value: plain dicts, lists and scalars.
        places: path -> place.
    """

    def __init__(self, value: dict[str, Any], places: dict[Path, Place]) -> None:
        self.value = value
        self.places = places

    def put_over(self, below: "Layer") -> "Layer":
        """This layer over another one, as a new layer.

        Mappings merge key by key, everything else is replaced. A section that gets another ``type`` keeps from below
        only the arguments the new type has.
        """
        value = deepcopy(below.value)
        places = dict(below.places)
        self._merge(value, self.value, (), places)
        return Layer(value, places)

    def _merge(self, value: dict[str, Any], upper: dict[str, Any], path: Path, places: dict[Path, Place]) -> None:
        for key in _outdated(value, upper, path):
            _forget(places, (*path, key))
            del value[key]
        for key, new in upper.items():
            here = (*path, key)
            if isinstance(new, dict) and isinstance(value.get(key), dict):
                self._merge(value[key], new, here, places)
            else:
                _forget(places, here)
                value[key] = deepcopy(new)
                places |= {old: place for old, place in self.places.items() if old[: len(here)] == here}
            if here in self.places:
                places[here] = self.places[here]


def _forget(places: dict[Path, Place], path: Path) -> None:
    for old in [old for old in places if old[: len(path)] == path]:
        del places[old]


def _outdated(below: dict[str, Any], upper: dict[str, Any], path: Path) -> list[str]:
    """Keys of the layer below that the upper layer makes void."""
    groups = _EXCLUSIVE.get(path, ())
    chosen = [group for group in groups if any(upper.get(key) is not None for key in group)]
    void = {key for group in groups if chosen and group not in chosen for key in group if key in below}
    new, old = upper.get("type"), below.get("type")
    if isinstance(new, str) and isinstance(old, str) and new != old:
        annotation = find_spot(RunConfig, path, below).annotation
        if len(sections_in(annotation)) > 1:
            before, after = (choose_section(annotation, {"type": name}) for name in (old, new))
            if after is None or after is sections_in(annotation).get(OTHER):
                void |= set(below) - _ALWAYS_KEPT - {"type"}
            elif before is not after:
                void |= set(below) - set(keys_of(after))
    return [key for key in below if key in void]
