# SPDX-License-Identifier: Apache-2.0
"""Files that hold named tensors, read one tensor at a time: ``.safetensors``, and PyTorch's ``.bin`` and ``.pth``.

Values are read with plain file reads, or from a mapping that is given up again soon, so that a process that walks
through a file of any size never holds more than the tensor at hand.
"""

import json
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from mindformers.checkpoint.foreign.arrays import Raw, new_array
from mindformers.errors import CheckpointError
from mindformers.tools.logger import get_logger

__all__ = ["Facts", "SafetensorsFile", "TensorFile", "TorchFile", "import_torch", "open_file"]

logger = get_logger(__name__)

_SAFE_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64"}
_SAFE_TYPES |= {"I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
_MAPPED_BYTES = 64 << 20  # of a PyTorch file kept mapped before the mapping is renewed
TORCH_SUFFIXES = (".bin", ".pth", ".pt")
TORCH_MAGIC = (b"PK\x03\x04", b"\x80")  # a zip archive; a pickle, as PyTorch wrote before 1.6


class Facts(NamedTuple):
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: str


class TensorFile(Protocol):
    """Named tensors of one file."""

    path: Path
    facts: dict[str, Facts]

    def read(self, name: str) -> Raw:
        """The value, in memory of its own."""


def open_file(path: Path) -> TensorFile:
    """Open a file by its extension; only names, shapes and types are read.

    Raises:
        CheckpointError: it is absent, damaged, or not what its name says.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    return TorchFile(path) if path.suffix in TORCH_SUFFIXES else SafetensorsFile(path)


class SafetensorsFile:
    """A ``.safetensors`` file; the header is checked by the safetensors library.

    Raises:
        CheckpointError: the header is damaged, the file is cut off, or an element type is unknown.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header, self._start = _safetensors_header(path)
        self._places: dict[str, int] = {}
        self.facts: dict[str, Facts] = {}
        for name, fields in header.items():
            dtype = _SAFE_TYPES.get(fields["dtype"])
            if dtype is None:
                raise CheckpointError(
                    f"{path}: {name} has element type {fields['dtype']}, which is not supported "
                    f"(quantised weights cannot be converted; supported: {', '.join(_SAFE_TYPES)})"
                )
            self.facts[name] = Facts(tuple(fields["shape"]), dtype)
            self._places[name] = fields["data_offsets"][0]

    def read(self, name: str) -> Raw:
        """The value, in memory of its own."""
        shape, dtype = self.facts[name]
        value = new_array(shape, dtype)
        self.read_into(name, 0, value)
        return Raw(value, dtype)

    def read_into(self, name: str, offset: int, target: np.ndarray) -> None:
        """Fill ``target``, contiguous, with the bytes of a value from ``offset`` on."""
        content = memoryview(target.reshape(-1).view(np.uint8))
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self._start + self._places[name] + offset)
            place = 0
            while place < len(content):
                count = file.readinto(content[place:])
                if not count:
                    raise CheckpointError(f"{self.path} became shorter while it was read")
                place += count


def _safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header without its metadata, and where the data begins."""
    try:
        with safe_open(str(path), framework="np"):  # the library checks lengths and offsets
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        size = path.stat().st_size if path.exists() else 0
        raise CheckpointError(
            f"{path} is damaged, cut off, or not a safetensors file ({_first_line(error)}; {size:,} bytes)"
        ) from error
    header.pop("__metadata__", None)
    return header, 8 + length


class TorchFile:
    """A file of ``torch.save``: a flat mapping of names to tensors. Its pickle may build tensors and nothing else.

    Raises:
        CheckpointError: torch is absent, the file is damaged, would run code, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mapped = True
        self._touched = 0
        self._state: dict[str, Any] | None = None
        torch = import_torch(f"reading {path.name}")
        state = self._open()
        self.facts = {name: Facts(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in state.items()}
        for name, tensor in state.items():
            if tensor.layout != torch.strided or tensor.is_quantized:
                raise CheckpointError(f"{path}: {name} is sparse or quantised; only dense weights can be converted")

    def _open(self) -> dict[str, Any]:
        """The tensors, mapped from the file."""
        if self._state is None:
            self._state = _load_torch(self.path, self._mapped)
            if self._state is None:
                self._mapped = False
                self._state = _load_torch(self.path, False)
                logger.warning("%s has the format of PyTorch before 1.6 and is held in memory as a whole", self.path)
            self._touched = 0
        return self._state

    def read(self, name: str) -> Raw:
        """The value, in memory of its own."""
        import torch

        tensor = self._open()[name].detach().contiguous()
        dtype = self.facts[name].dtype
        if dtype == "bfloat16":
            tensor = tensor.view(torch.int16)
        data = np.array(tensor.numpy(), copy=True)
        self._touched += data.nbytes
        if self._mapped and self._touched > _MAPPED_BYTES:
            self._state = None  # unmaps: pages that were read do not count as ours for longer
        return Raw(data.view(np.uint16) if dtype == "bfloat16" else data, dtype)


def import_torch(purpose: str) -> Any:
    """The module torch.

    Raises:
        CheckpointError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            f"{purpose} needs PyTorch, which is not installed: pip install 'mindformers[convert]' "
            "(.safetensors files need nothing more)"
        ) from error
    return torch


def _load_torch(path: Path, mapped: bool) -> dict[str, Any] | None:
    """``torch.load`` that cannot run code; None when a file of the old format was to be mapped."""
    torch = import_torch(f"reading {path.name}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global|Unsupported (?:class|operand))\s+(\S+)", str(error))
        what = f" ({found[1].rstrip('.')})" if found else f" ({_first_line(error)})"
        raise CheckpointError(
            f"{path} was refused: loading it would call something that is not a tensor{what}. It is damaged or "
            "malicious, or no file of weights; get the weights as .safetensors from a source you trust."
        ) from error
    except (RuntimeError, ValueError, OSError, EOFError, KeyError, TypeError, AttributeError) as error:
        if mapped and "_use_new_zipfile_serialization" in str(error):
            return None
        raise CheckpointError(f"{path} is damaged, cut off, or no PyTorch file ({_first_line(error)})") from error
    if not isinstance(content, dict) or not content or not all(isinstance(name, str) for name in content):
        raise CheckpointError(f"{path} holds {_describe(content)}, not a mapping of names to tensors")
    others = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise CheckpointError(
            f"{path}: {listed(others)}: not a tensor but {_describe(content[others[0]])}; "
            "a plain state_dict is needed (torch.save(model.state_dict(), FILE))"
        )
    return content


def _describe(content: Any) -> str:
    empty = isinstance(content, dict | list) and not content
    return f"{'an empty' if empty else 'one'} {type(content).__name__}"


def listed(names: Sequence[str], limit: int = 10) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
