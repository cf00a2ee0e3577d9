# SPDX-License-Identifier: Apache-2.0
"""Strategy files: which part of each parameter a rank holds.

MindSpore writes one when a rank of a semi-auto parallel run is compiled (``node_strategy.proto``, or the same as JSON).
It arranges the devices of a pipeline stage in a matrix, row-major, and maps each axis of a parameter to one of the
matrix' axes, counted from the right; -1 is not split. With optimizer parallel, devices that would hold the same part
divide it once more along its first axis, in blocks of ``opt_weight_shard_size`` neighbours (-1: all of them). That is
what ``mindspore.parallel.checkpoint_transform`` and ``_tensor.py`` of MindSpore 2.10 compute with; here a part is a
box in the whole tensor, so that going from one layout to another is copying the boxes' intersections.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mindformers.checkpoint.names import is_state_name
from mindformers.errors import CheckpointError

__all__ = [
    "Box",
    "ClusterLayout",
    "ParamLayout",
    "from_records",
    "read_own_strategy",
    "read_strategy",
    "slices_record",
    "whole_box",
]

Box = tuple[tuple[int, int], ...]
"""(start, stop) along each axis of the whole tensor."""

_RANK_FILE = re.compile(r"(?P<stem>.+)_rank_(?P<rank>\d+)\.(?:ckpt|json)")
_MERGED = re.compile(r"(?P<stage>\d+)-(?P<name>.+)")


def whole_box(shape: Sequence[int]) -> Box:
    """The box of a tensor that is not split."""
    return tuple((0, size) for size in shape)


class ParamLayout(NamedTuple):
    """How one parameter lies on the devices of its stage.

    Args:
        devices: the device matrix.
        axes: for each axis of the parameter, the axes of the matrix (from the right) it is split over, in order.
        shard_size: optimizer parallel: parts the first axis is divided into once more; 1 without.
    """

    devices: tuple[int, ...]
    axes: tuple[tuple[int, ...], ...]
    shard_size: int = 1

    @property
    def parts(self) -> tuple[int, ...]:
        """Into how many parts each axis is divided."""
        counts = [math.prod(self.devices[-1 - number] for number in axis) for axis in self.axes]
        if counts:
            counts[0] *= self.shard_size
        return tuple(counts)

    def whole_shape(self, part: Sequence[int]) -> tuple[int, ...]:
        """Shape of the whole tensor, from that of one part."""
        if not self.axes:
            return tuple(part)
        return tuple(size * count for size, count in zip(part, self.parts, strict=True))

    def box(self, device: int, whole: Sequence[int]) -> Box:
        """The part of a device.

        Args:
            device: its number within the stage.
            whole: shape of the whole tensor.
        """
        if not self.axes:
            return whole_box(whole)
        place: list[int] = []
        for size in reversed(self.devices):
            device, own = divmod(device, size)
            place.append(own)  # place[n] belongs to axis n from the right
        result = []
        for index, (axis, size) in enumerate(zip(self.axes, whole, strict=True)):
            number, count = 0, 1
            for matrix_axis in axis:
                number = number * self.devices[-1 - matrix_axis] + place[matrix_axis]
                count *= self.devices[-1 - matrix_axis]
            if index == 0:
                number = number * self.shard_size + self._shard(place)
                count *= self.shard_size
            step = size // count
            result.append((number * step, number * step + step))
        return tuple(result)

    def _shard(self, place: list[int]) -> int:
        """Which of the optimizer's parts: the number among the devices that hold the same part otherwise."""
        taken = {number for axis in self.axes for number in axis}
        number = 0
        for matrix_axis in reversed(range(len(self.devices))):
            if matrix_axis not in taken:
                number = number * self.devices[-1 - matrix_axis] + place[matrix_axis]
        return number % self.shard_size


@dataclass
class ClusterLayout:
    """Where every parameter of a run lies.

    Args:
        stages: of each pipeline stage, the layouts of its parameters by name.
        stage_devices: devices of one stage.
        source: the file or folder it was read from, for messages.
        only_stage: the one stage that is known; None when all are.
    """

    stages: list[dict[str, ParamLayout]]
    stage_devices: int
    source: Path
    only_stage: int | None = None
    _names: set[str] = field(default_factory=set, compare=False)

    def __post_init__(self) -> None:
        self._names = {name for stage in self.stages for name in stage}

    @property
    def ranks(self) -> int:
        """Devices of the run."""
        return len(self.stages) * self.stage_devices

    def stage_of(self, rank: int) -> int:
        """The pipeline stage of a rank."""
        return rank // self.stage_devices

    def layout(self, name: str, rank: int) -> ParamLayout | None:
        """How a parameter lies on the stage of ``rank``; None when it is not split there, or not of that stage."""
        return self.stages[self.stage_of(rank)].get(self._known(name))

    def holds(self, name: str, rank: int) -> bool:
        """Whether the rank has (a part of) a parameter: it is in its stage's strategy, or in that of none."""
        name = self._known(name)
        if self.only_stage is not None and name not in self._names and "." in name:
            return False  # a weight, or state of one: of another stage
        return name not in self._names or name in self.stages[self.stage_of(rank)]

    def _known(self, name: str) -> str:
        """The name in the strategy: of optimizer state that has no entry, that of its weight."""
        return name if name in self._names or not is_state_name(name) else name.partition(".")[2]

    def box(self, name: str, rank: int, whole: Sequence[int]) -> Box:
        """The part of a parameter that a rank holds.

        Raises:
            CheckpointError: the strategy does not fit the shape.
        """
        layout = self.layout(name, rank)
        if layout is None or not layout.axes:
            return whole_box(whole)
        parts = layout.parts
        if len(parts) != len(whole) or any(size % count for size, count in zip(whole, parts, strict=True)):
            raise CheckpointError(
                f"{self.source}: {name} of shape {list(whole)} cannot be split into {list(parts)} parts, as the "
                "strategy says: it belongs to another model"
            )
        return layout.box(rank % self.stage_devices, whole)


def read_strategy(path: str | Path, ranks: Sequence[int] | None = None) -> ClusterLayout:
    """Read how a run was split; nothing is written beside the files.

    Args:
        path: a folder of ``*_rank_N.ckpt`` (or ``.json``), one of these files, or a file in which MindSpore merged the
            stages of a pipeline.
        ranks: of a folder, only the files of these ranks; None takes all.

    Raises:
        CheckpointError: no such file, not a strategy file, stages are missing, or files contradict each other.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _read_folder(path, ranks)
    stages = _parse(path)
    return _combine(path, stages, None)


def read_own_strategy(path: Path, stages: int) -> ClusterLayout:
    """The layout of one rank's own pipeline stage; the parameters of the others are unknown.

    Args:
        path: the rank's strategy file.
        stages: pipeline stages of the run.
    """
    ((stage, layouts),) = _parse(path).items()
    devices = {math.prod(layout.devices) for layout in layouts.values()}
    if len(devices) != 1:
        raise CheckpointError(f"{path}: device matrices of different size")
    others = [layouts if number == stage else {} for number in range(stages)]
    return ClusterLayout(others, devices.pop(), path, only_stage=stage if stages > 1 else None)


def slices_record(layout: ClusterLayout, rank: int) -> dict[str, Any]:
    """The layout of a rank's stage as JSON; :func:`from_records` is the way back."""
    stage = layout.stage_of(rank)
    kinds = list(dict.fromkeys(layout.stages[stage].values()))
    numbers = {kind: number for number, kind in enumerate(kinds)}
    return {
        "stage": stage,
        "stages": len(layout.stages),
        "layouts": [[kind.devices, kind.axes, kind.shard_size] for kind in kinds],
        "parameters": {name: numbers[kind] for name, kind in layout.stages[stage].items()},
    }


def from_records(records: Mapping[Path, Mapping[str, Any]]) -> ClusterLayout:
    """The layout of a run from what the manifests of its ranks say.

    Args:
        records: checkpoint file -> its entry, one of each stage at least.

    Raises:
        CheckpointError: they contradict each other, or stages are missing.
    """
    stages: dict[int, dict[str, ParamLayout]] = {}
    first: dict[int, Path] = {}
    for path, record in records.items():
        try:
            kinds = [ParamLayout(tuple(d), tuple(tuple(a) for a in axes), size) for d, axes, size in record["layouts"]]
            layouts = {name: kinds[number] for name, number in record["parameters"].items()}
            stage = int(record["stage"])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise CheckpointError(f"the manifest of {path} does not say how it was cut ({error!r})") from error
        if stages.setdefault(stage, layouts) != layouts:
            raise CheckpointError(
                f"{first[stage]} and {path} were cut by different layouts: they are of different runs"
            )
        first.setdefault(stage, path)
    return _combine(next(iter(records)).parent.parent, stages, None)


def _read_folder(folder: Path, ranks: Sequence[int] | None) -> ClusterLayout:
    """Join the files of the ranks; one of each stage would do, but all are compared."""
    files = {int(m["rank"]): p for p in sorted(folder.iterdir()) if (m := _RANK_FILE.fullmatch(p.name)) and p.is_file()}
    if not files:
        others = [p for p in sorted(folder.iterdir()) if p.suffix in (".ckpt", ".json") and p.is_file()]
        if len(others) == 1:
            return read_strategy(others[0])
        raise CheckpointError(f"{folder} holds no strategy files (ckpt_strategy_rank_0.ckpt, ...)")
    if ranks is not None:
        files = {rank: file for rank, file in files.items() if rank in ranks} or files
    stages: dict[int, dict[str, ParamLayout]] = {}
    first: dict[int, Path] = {}
    for _, file in sorted(files.items()):
        content = _parse(file)
        if len(content) != 1:
            raise CheckpointError(f"{file} holds {len(content)} pipeline stages; a file of one rank holds one")
        ((stage, layouts),) = content.items()
        if stages.setdefault(stage, layouts) != layouts:
            raise CheckpointError(
                f"{first[stage]} and {file} describe stage {stage} differently: they are of different runs. "
                "Remove those of the older run, or name one file"
            )
        first.setdefault(stage, file)
    return _combine(folder, stages, max(files))


def _combine(source: Path, stages: Mapping[int, dict[str, ParamLayout]], last_rank: int | None) -> ClusterLayout:
    """Check that the stages are those of one run."""
    sizes = {math.prod(layout.devices) for layouts in stages.values() for layout in layouts.values()}
    if len(sizes) != 1:
        found = ", ".join(map(str, sorted(sizes))) or "none"
        raise CheckpointError(f"{source}: strategies of runs of different size (devices of a stage: {found})")
    devices = sizes.pop()
    missing = sorted(set(range(max(stages) + 1)) - set(stages))
    if missing:
        raise CheckpointError(
            f"{source}: no strategy of pipeline stage {', '.join(map(str, missing))}. Give the folder with the files "
            "of all ranks"
        )
    if last_rank is not None and last_rank >= devices * len(stages):
        raise CheckpointError(
            f"{source} has a strategy of rank {last_rank}, but those found are of a run of {devices * len(stages)} "
            "devices: they are of different runs, or files of the last pipeline stages are missing"
        )
    return ClusterLayout([stages[stage] for stage in sorted(stages)], devices, source)


def _parse(path: Path) -> dict[int, dict[str, ParamLayout]]:
    """Stage -> name -> layout of one file."""
    if not path.is_file():
        raise CheckpointError(f"strategy file {path} does not exist")
    if not path.stat().st_size:
        raise CheckpointError(f"strategy file {path} is empty")
    try:
        stage, items = _json_items(path) if path.suffix == ".json" else _protobuf_items(path)
        result: dict[int, dict[str, ParamLayout]] = {}
        for name, *values in items:
            merged = _MERGED.fullmatch(name)
            own, name = (int(merged["stage"]), merged["name"]) if merged else (stage, name)
            result.setdefault(own, {})[name] = _layout(*values)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{path} is no strategy file of MindSpore ({error})") from error
    if not result:
        raise CheckpointError(f"{path} is no strategy file of MindSpore: it names no parameter")
    return result


def _protobuf_items(path: Path) -> tuple[int, Iterator[tuple]]:
    from google.protobuf.message import DecodeError
    from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

    content = ParallelStrategyMap()
    try:
        content.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(str(error) or "its bytes are not those of one") from error
    nodes = content.parallel_strategy_item
    stage = nodes[0].parallel_strategys.stage if nodes else 0

    def items() -> Iterator[tuple]:
        for item in content.parallel_layout_item:
            layout = item.parallel_layouts
            maps = [list(axis.dim) for axis in layout.tensor_map]
            yield (
                item.param_name, list(layout.dev_matrix[0].dim), [axis for axis in maps if axis] if len(maps) > 1 else
                [n for axis in maps for n in axis], layout.opt_weight_shard_step, layout.opt_weight_shard_size,
            )  # fmt: skip

    return stage, items()


def _json_items(path: Path) -> tuple[int, Iterator[tuple]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    nodes = list(content["parallel_strategy_item"].values())
    stage = int(nodes[0].get("stage", 0)) if nodes else 0
    return stage, (
        (name, item["dev_matrix"], item["tensor_map"], item["opt_weight_shard_step"], item["opt_weight_shard_size"])
        for name, item in content["parallel_layout_item"].items()
    )


def _layout(devices: Sequence[int], axes: Sequence[Any], shard_step: int, shard_size: int) -> ParamLayout:
    """A layout from the numbers in a file."""
    split = tuple(tuple(n for n in (axis if isinstance(axis, list) else [axis]) if n != -1) for axis in axes)
    used = [n for axis in split for n in axis]
    if not devices or min(devices) < 1 or len(used) != len(set(used)) or any(not 0 <= n < len(devices) for n in used):
        raise ValueError(f"device matrix {list(devices)} with tensor map {list(axes)}")
    spare = math.prod(size for n, size in enumerate(reversed(devices)) if n not in used)
    size = spare if shard_size == -1 else shard_size or 1
    if shard_step == 0:
        size = 1
    if size < 1 or spare % size:
        raise ValueError(f"optimizer shards {shard_size} of {spare} devices")
    return ParamLayout(tuple(devices), split, size)
