# SPDX-License-Identifier: Apache-2.0
"""Merging an adapter into its base, one tensor at a time: ``W + (alpha / rank) * B A``."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from mindformers.checkpoint.ckpt_file import CkptFile
from mindformers.checkpoint.foreign import foreign_kind, open_foreign
from mindformers.checkpoint.foreign.arrays import Raw, as_float32, cast
from mindformers.checkpoint.foreign.files import SafetensorsFile
from mindformers.checkpoint.load import resolve_checkpoint, sound_checkpoint
from mindformers.checkpoint.names import is_weight_name, modern_name
from mindformers.checkpoint.stream import CheckpointStream, Planned
from mindformers.errors import CheckpointError
from mindformers.pet.adapter import is_adapter_name
from mindformers.pet.lora import LORA_A, LORA_B
from mindformers.tools.utils import listing

__all__ = ["BaseWeights", "MergeReport", "adapter_deltas", "check_unmerge", "merge_into", "open_base"]

Progress = Callable[[list[Planned]], Iterable[Planned]]
_EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
_TINY = 2.0**-24  # spacing of the smallest fp16 numbers


class BaseWeights(Protocol):
    """Weights of a base model, read one at a time."""

    path: Path
    plan: list[Planned]
    read: Callable[[str], Raw]


@dataclass
class _Base:
    path: Path
    plan: list[Planned]
    read: Callable[[str], Raw]


@dataclass
class MergeReport:
    """What a merge did.

    Args:
        merged: weights that got an adapter's product.
        kept: weights written as they were.
        largest_change: largest absolute change of any value.
        unmerge_error: with the check: largest distance of ``merged - product`` from the base.
        allowed: with the check: what rounding explains at that place.
    """

    merged: int = 0
    kept: int = 0
    largest_change: float = 0.0
    unmerge_error: float = 0.0
    allowed: float = 0.0


def open_base(value: str | Path) -> BaseWeights:
    """Find the weights of a base: a checkpoint of ours, or a folder of Hugging Face or Meta.

    Args:
        value: as for ``load_checkpoint``.

    Returns:
        Its weights under our names; optimizer state and adapters in the file are left out.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = resolve_checkpoint(value)
    if foreign_kind(path):
        foreign = open_foreign(path)
        return _Base(path, [Planned(n, foreign.shape(n), foreign.dtype(n)) for n in foreign], foreign.raw)
    path = sound_checkpoint(path)
    file = SafetensorsFile(path) if path.suffix == ".safetensors" else CkptFile(path)
    plan = [
        Planned(name, facts.shape, facts.dtype)
        for name, facts in file.facts.items()
        if is_weight_name(name) and not is_adapter_name(modern_name(name))
    ]
    return _Base(path, plan, file.read)


def adapter_deltas(tensors: dict[str, np.ndarray], scaling: float, base: BaseWeights) -> dict[str, tuple]:
    """Pair the matrices of an adapter with the weights of a base.

    Args:
        tensors: A and B by their names, fp32.
        scaling: alpha / rank.
        base: what they shall be merged into.

    Returns:
        Weight name -> (B * scaling, A), whose product is the change.

    Raises:
        CheckpointError: a weight is absent, shapes do not fit, a half is missing, or all of B is zero.
    """
    shapes = {item.name: item.shape for item in base.plan}
    pairs = {}
    places = sorted({name.rpartition(".")[0] for name in tensors})
    absent = [f"{place}.weight" for place in places if f"{place}.weight" not in shapes]
    if absent:
        raise CheckpointError(f"{base.path} has no {listing(absent)}: the adapter belongs to another model")
    for place in places:
        a, b = tensors.get(f"{place}.{LORA_A}"), tensors.get(f"{place}.{LORA_B}")
        if a is None or b is None:
            raise CheckpointError(f"{place}: the adapter holds {LORA_B if a is None else LORA_A} only")
        want = shapes[f"{place}.weight"]
        if (b.shape[0], a.shape[1]) != want or a.shape[0] != b.shape[1]:
            raise CheckpointError(
                f"{place}: A {list(a.shape)} and B {list(b.shape)} do not fit the weight {list(want)} of {base.path}"
            )
        pairs[f"{place}.weight"] = (b * np.float32(scaling), a)
    if not any(b.any() for b, _ in pairs.values()):
        raise CheckpointError("every B of the adapter is zero: it was not trained, and merging it would change nothing")
    return pairs


def merge_into(
    base: BaseWeights, pairs: dict[str, tuple], output: Path, fmt: str, progress: Progress = iter
) -> MergeReport:
    """Write the merged model.

    Args:
        base: from :func:`open_base`.
        pairs: from :func:`adapter_deltas`.
        output: the checkpoint to write; it appears when the last weight is written, or not at all.
        fmt: ckpt or safetensors.
        progress: what the weights are walked through, for a progress bar.

    Products are computed in fp32 and rounded once to the type of the base.
    """
    report = MergeReport()
    with CheckpointStream(output, base.plan, fmt) as stream:
        for item in progress(base.plan):
            value = base.read(item.name)
            if item.name in pairs:
                b, a = pairs[item.name]
                delta = b @ a
                report.merged += 1
                report.largest_change = max(report.largest_change, float(np.abs(delta).max()))
                value = cast(Raw(as_float32(value) + delta, "float32"), item.dtype, item.name)
            else:
                report.kept += 1
            stream.add(item, value)
    return report


def check_unmerge(
    base: BaseWeights, pairs: dict[str, tuple], output: Path, report: MergeReport, progress: Progress = iter
) -> None:
    """Prove a merge by taking the products out of the written file again; arguments as :func:`merge_into`.

    Raises:
        CheckpointError: a weight without adapter is not the base's bit for bit, or one with an adapter is further from
            the base than rounding explains.
    """
    merged = open_base(output)
    for item in progress(base.plan):
        before, after = base.read(item.name), merged.read(item.name)
        if item.name not in pairs:
            if before.data.tobytes() != after.data.tobytes():
                raise CheckpointError(f"{output}: {item.name} has no adapter and differs from the base")
        else:
            b, a = pairs[item.name]
            delta, wide = b @ a, as_float32(after)
            error = np.abs(wide - delta - as_float32(before))
            allowed = _EPS[item.dtype] * (np.abs(wide) + np.abs(delta)) + (_TINY if item.dtype == "float16" else 1e-38)
            worst = int(np.argmax(error - allowed))
            if error.flat[worst] > allowed.flat[worst]:
                raise CheckpointError(
                    f"{output}: taking the adapter out of {item.name} misses the base by {error.flat[worst]:.3g}, "
                    f"rounding explains {allowed.flat[worst]:.3g}"
                )
            if float(error.max()) >= report.unmerge_error:
                report.unmerge_error = float(error.max())
                report.allowed = float(allowed.flat[int(np.argmax(error))])
