# SPDX-License-Identifier: Apache-2.0
"""Names of MindIR files, and the JSON beside them that says what they were exported from."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mindformers.atomic import write_text
from mindformers.errors import CheckpointError
from mindformers.tools.utils import nearest

__all__ = ["PairInfo", "description_path", "existing_mindir", "graph_file", "input_shapes", "stem_of", "variables_dir"]

_SUFFIX = ".mindir"
_GRAPH = "_graph"
_FORMAT = 1


def stem_of(path: str | Path) -> Path:
    """The path without ``.mindir`` and without the ``_graph`` that MindSpore adds when weights lie outside."""
    path = Path(path)
    name = path.name.removesuffix(_SUFFIX).removesuffix(_GRAPH)
    return path.with_name(name)


def graph_file(stem: Path, external: bool) -> Path:
    """The file that holds the graph: ``NAME_graph.mindir`` when the weights lie outside, else ``NAME.mindir``."""
    return stem.with_name(stem.name + (_GRAPH if external else "") + _SUFFIX)


def variables_dir(stem: Path) -> Path:
    """The folder of the weights that lie outside the graph."""
    return stem.with_name(stem.name + "_variables")


def description_path(path: str | Path) -> Path:
    """The JSON that belongs to a MindIR file."""
    stem = stem_of(path)
    return stem.with_name(stem.name + ".json")


def existing_mindir(path: str | Path, what: str) -> Path:
    """The MindIR file meant by ``path``, which may be the name given to the export or the one it came out as.

    Args:
        path: as the user wrote it.
        what: the flag or key, for the message.

    Raises:
        CheckpointError: no such file; the message names the nearest one.
    """
    for candidate in (Path(path), graph_file(stem_of(path), True), graph_file(stem_of(path), False)):
        if candidate.is_file():
            return candidate
    folder = Path(path).parent
    names = sorted(file.name for file in folder.glob("*.mindir")) if folder.is_dir() else []
    best = nearest(Path(path).name, names)
    hint = f" Did you mean {folder / best}?" if best else f" The folder holds: {', '.join(names)}." if names else ""
    raise CheckpointError(
        f"{what} {path}: no such file.{hint} python mindformers/tools/export.py --config_path YAML writes MindIR files"
    )


def input_shapes(path: Path) -> list[tuple[int, ...]]:
    """Shapes of a MindIR graph's inputs, -1 where a size is open."""
    from mindspore.train.mind_ir_pb2 import ModelProto

    proto = ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError; its class differs between protobuf versions
        raise CheckpointError(f"{path} is not a MindIR file: {error}") from error
    if not proto.graph.input:
        raise CheckpointError(f"{path} is not a MindIR file: it has no graph inputs")
    return [tuple(tensor.dims) for value in proto.graph.input for tensor in value.tensor[:1]]


@dataclass
class PairInfo:
    """What an export says of its files.

    Args:
        batch_size: prompts computed together.
        seq_length: positions of prompt and new tokens.
        model_config: the model's configuration.
        graphs: kind (``prefill``, ``increment``, ``full``) -> file name and its inputs and outputs.
    """

    batch_size: int
    seq_length: int
    model_config: dict[str, Any]
    graphs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the JSON."""
        write_text(path, json.dumps({"format": _FORMAT, **asdict(self)}, indent=2) + "\n")

    @classmethod
    def read(cls, mindir: str | Path) -> "PairInfo | None":
        """What lies beside a MindIR file; None when there is nothing.

        Raises:
            CheckpointError: the JSON is damaged.
        """
        path = description_path(mindir)
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(values["batch_size"], values["seq_length"], values["model_config"], values["graphs"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged ({error}): export again, or delete it") from error
