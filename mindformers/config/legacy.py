# SPDX-License-Identifier: Apache-2.0
"""Spellings of the old library that are still read: each gives one warning, or none where it was the usual form."""

from typing import Any

from mindformers.config.merge import Layer
from mindformers.config.problems import Place, Problem
from mindformers.config.tree import Path, value_at

# (old key, new key); the model card writes the first one.
_RENAMED_KEYS: tuple[tuple[Path, Path], ...] = ((("anto_trans_ckpt",), ("auto_trans_ckpt",)),)
# key -> {old value: new value}
_RENAMED_VALUES: dict[Path, dict[str, str]] = {
    ("processor", "tokenizer", "type"): {"LLaMATokenizer": "LlamaTokenizer", "LlamaProcessor": "LlamaTokenizer"},
}
_DATASETS = ("train_dataset", "eval_dataset")


def modernise(layer: Layer, warnings: list[str], problems: list[Problem]) -> None:
    """Rewrite old spellings in one file, in place.

    Args:
        layer: the content of the file.
        warnings: a line per old spelling is added here.
        problems: what cannot be rewritten is added here.
    """
    for old, new in _RENAMED_KEYS:
        section = value_at(layer.value, old[:-1])
        if isinstance(section, dict) and old[-1] in section:
            if new[-1] in section:
                problems.append(Problem(old, f"an old spelling of {new[-1]}, which is given too; remove this one"))
                section.pop(old[-1])
                continue
            warnings.append(f"{_where(layer, old)}{old[-1]}: read as {new[-1]}")
            section[new[-1]] = section.pop(old[-1])
            layer.places[new] = layer.places.pop(old)
    for path, table in _RENAMED_VALUES.items():
        value = value_at(layer.value, path)
        if isinstance(value, str) and value in table:
            warnings.append(f"{_where(layer, path)}{'.'.join(map(str, path))}: {value} is read as {table[value]}")
            value_at(layer.value, path[:-1])[path[-1]] = table[value]
    _model_names(layer)
    for name in _DATASETS:
        _task(layer, name, problems)


def _model_names(layer: Layer) -> None:
    config = value_at(layer.value, ("model", "model_config"))
    if isinstance(config, dict) and "theta" in config and "rope_theta" not in config:
        config["rope_theta"] = config.pop("theta")
        path = ("model", "model_config")
        layer.places[(*path, "rope_theta")] = layer.places.pop((*path, "theta"), Place())


def _task(layer: Layer, name: str, problems: list[Problem]) -> None:
    """``x_dataset_task.dataset_config`` repeats ``x_dataset`` by an alias in the old files; here it is one section."""
    task = layer.value.get(f"{name}_task")
    if not isinstance(task, dict) or "dataset_config" not in task:
        return
    given: Any = task["dataset_config"]
    if name not in layer.value:
        layer.value[name] = given
        below = (f"{name}_task", "dataset_config")
        layer.places |= {(name, *p[2:]): place for p, place in layer.places.items() if p[:2] == below}
    elif given != layer.value[name]:
        problems.append(
            Problem((f"{name}_task", "dataset_config"), f"differs from {name}; leave it out, it is taken from there")
        )
    del task["dataset_config"]


def _where(layer: Layer, path: Path) -> str:
    place = layer.places.get(path)
    if place is None:
        return ""
    return f"{place.flag}: " if place.flag else f"{place.file} line {place.line}: "
