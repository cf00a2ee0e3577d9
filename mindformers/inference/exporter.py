# SPDX-License-Identifier: Apache-2.0
"""A LlamaForCausalLM to MindIR: one graph that reads prompts and one that makes a token, or one without any cache.

Legend: B batch, S infer_seq_length, V vocabulary.
"""

import filecmp
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindformers.errors import CheckpointError, ConfigError
from mindformers.inference.mindir_files import PairInfo, description_path, graph_file, stem_of, variables_dir
from mindformers.modules.kernels import has_native_kernels
from mindformers.tools.logger import get_logger

__all__ = ["CachedGraph", "FullGraph", "export_mindir"]

logger = get_logger(__name__)

_NAMES = ("input_ids", "input_position", "init_reset", "batch_valid_length")


class CachedGraph(nn.Cell):
    """One of the two graphs of a cached model; they have the same inputs and outputs.

    Args:
        network: a LlamaForCausalLM with its cache allocated.
        first: read prompts; False appends one token.
    """

    def __init__(self, network: nn.Cell, first: bool) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.first = first
        self.pad_token_id = network.config.pad_token_id

    def construct(
        self, input_ids: Tensor, input_position: Tensor, init_reset: Tensor, batch_valid_length: Tensor
    ) -> tuple:
        """int32 (B, S) or (B, 1), int32 (B,), bool (1,), int32 (B,) -> logits fp32 (B, V) or (B, 1, V), ids, mask."""
        logits = self.network(input_ids, None, input_position, None, None, None, init_reset, batch_valid_length)
        return logits, input_ids, ops.cast(ops.not_equal(input_ids, self.pad_token_id), ms.float32)


class FullGraph(nn.Cell):
    """The graph of a model without cache: all tokens in, logits of every position out."""

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, input_ids: Tensor) -> tuple:
        """int32 (B, S) -> logits fp32 (B, S, V), ids, mask."""
        return self.network(input_ids)


@dataclass(frozen=True)
class _Part:
    """A graph to write: its kind, its file, the cell, and example inputs."""

    kind: str
    stem: Path
    cell: nn.Cell
    inputs: tuple[Tensor, ...]
    names: tuple[str, ...]


def export_mindir(
    network: nn.Cell,
    prefill_path: str | Path,
    increment_path: str | Path = "",
    batch_size: int = 1,
    report: Callable[[str], None] = logger.info,
) -> list[Path]:
    """Write the MindIR files of a model, and a JSON beside the first that describes them.

    Args:
        network: a LlamaForCausalLM with its weights.
        prefill_path: file of the graph that reads prompts, or of the only graph.
        increment_path: file of the graph that appends a token; empty exports one graph without cache.
        batch_size: prompts computed together, B.
        report: gets a line per step.

    Returns:
        The graph files. Graphs of over 1 GB get a folder ``NAME_variables`` for their weights, which the two graphs
        share on disk where the file system has hard links.

    Raises:
        ConfigError: the two paths are one, or the model was built with native kernels.
        CheckpointError: nothing can be written there. Files of an earlier export stay as they were.
    """
    prefill = stem_of(prefill_path)
    increment = stem_of(increment_path) if increment_path else None
    if increment is not None and increment.absolute() == prefill.absolute():
        raise ConfigError(f"infer.prefill_model_path and increment_model_path are the same file, {prefill_path}")
    if has_native_kernels(network):
        raise ConfigError(
            "the model was built with native CPU kernels, which a MindIR file cannot hold: build it with "
            "context.native_kernels: False, or set the environment variable MINDFORMERS_NATIVE=0"
        )
    network.set_train(False)
    config = network.config
    info = PairInfo(batch_size, config.seq_length, config.to_dict() | {"checkpoint_name_or_path": ""})
    for stem in {prefill, increment or prefill}:
        _writable(stem.parent)
    parts = _parts(network, prefill, increment, batch_size)
    files = []
    with tempfile.TemporaryDirectory(prefix=f".{prefill.name}.", suffix=".tmp", dir=prefill.parent) as name:
        written = [_write(part, Path(name), network, report) for part in parts]
        _share_variables(written, report)
        for part, temporary in zip(parts, written, strict=True):
            files.append(_move(temporary, part.stem))
            info.graphs[part.kind] = {"file": os.path.relpath(files[-1], prefill.parent), **_interface(part)}
    info.write(description_path(prefill))
    return files


def _parts(network: nn.Cell, prefill: Path, increment: Path | None, batch: int) -> list[_Part]:
    length = network.config.seq_length
    ids = Tensor(np.ones((batch, length)), ms.int32)
    if increment is None:
        return [_Part("full", prefill, FullGraph(network), (ids,), _NAMES[:1])]
    network.config.batch_size = batch
    network.allocate_cache()
    position = Tensor(np.arange(batch) * length, ms.int32)
    ones = Tensor(np.ones(batch), ms.int32)
    rest = (position, Tensor([False]), ones)
    one = Tensor(np.ones((batch, 1)), ms.int32)
    return [
        _Part("prefill", prefill, CachedGraph(network, True), (ids, *rest), _NAMES),
        _Part("increment", increment, CachedGraph(network, False), (one, ones, Tensor([True]), ones), _NAMES),
    ]


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot make the folder {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CheckpointError(f"no permission to write in the folder {folder}")


def _write(part: _Part, folder: Path, network: nn.Cell, report: Callable[[str], None]) -> Path:
    """Export one graph into a temporary folder of its own; returns its stem there."""
    inputs = ", ".join(f"{n} {list(t.shape)} {_dtype(t)}" for n, t in zip(part.names, part.inputs, strict=True))
    report(f"exporting the {part.kind} graph: {inputs}")
    stem = folder / part.kind / part.stem.name
    stem.parent.mkdir()
    network.is_first_iteration = part.kind == "prefill"
    part.cell.set_train(False)
    try:
        ms.export(part.cell, *part.inputs, file_name=str(stem) + ".mindir", file_format="MINDIR")
    except OSError as error:
        raise CheckpointError(f"cannot write {part.stem}.mindir: {error.strerror or error}") from error
    finally:
        network.is_first_iteration = True
    outputs = _interface(part)["outputs"]
    report("  outputs: " + ", ".join(f"{name} {shape}" for name, shape in outputs.items()))
    return stem


def _interface(part: _Part) -> dict[str, Any]:
    """Inputs and outputs of a graph, for the description."""
    vocab = part.cell.network.config.vocab_size
    batch, length = part.inputs[0].shape
    logits = {"prefill": [batch, vocab], "increment": [batch, 1, vocab], "full": [batch, length, vocab]}[part.kind]
    shapes = {name: list(tensor.shape) for name, tensor in zip(part.names, part.inputs, strict=True)}
    return {"inputs": shapes, "outputs": {"logits": logits, "tokens": [batch, length], "mask": [batch, length]}}


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).lower()


def _share_variables(stems: list[Path], report: Callable[[str], None]) -> None:
    """Let equal weight files of the two graphs be one file on disk."""
    if len(stems) < 2:
        return
    first, second = (variables_dir(stem) for stem in stems)
    if not (first.is_dir() and second.is_dir()):
        return
    saved = 0
    for file in sorted(second.iterdir()):
        twin = first / file.name
        if twin.is_file() and filecmp.cmp(twin, file, shallow=False):
            file.unlink()
            try:
                os.link(twin, file)
            except OSError:  # a file system without hard links keeps two copies
                shutil.copyfile(twin, file)
            else:
                saved += file.stat().st_size
    if saved:
        report(f"the two graphs share {saved / 1e9:.1f} GB of weights")


def _move(source: Path, target: Path) -> Path:
    """Put a finished graph in the place of an older one; returns the graph's file."""
    external = variables_dir(source).is_dir()
    folder = variables_dir(target)
    if folder.is_dir():
        shutil.rmtree(folder)
    if external:
        os.replace(variables_dir(source), folder)
        os.chmod(folder, 0o755 & ~_umask())
        for data in folder.iterdir():
            _readable(data)
    file = graph_file(target, external)
    os.replace(graph_file(source, external), file)
    _readable(file)
    graph_file(target, not external).unlink(missing_ok=True)
    return file


def _readable(file: Path) -> None:
    """Give a file the ordinary rights: MindSpore makes it private and read-only, even for its owner."""
    os.chmod(file, 0o644 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
