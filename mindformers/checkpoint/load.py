# SPDX-License-Identifier: Apache-2.0
"""Finding, verifying and reading checkpoints; loading them with every name accounted for."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np

from mindformers.checkpoint.ckpt_index import ckpt_problem
from mindformers.checkpoint.foreign import foreign_kind, open_foreign
from mindformers.checkpoint.foreign.detect import foreign_hint
from mindformers.checkpoint.foreign.files import TORCH_SUFFIXES
from mindformers.checkpoint.layout import FORMATS, OutputLayout, manifest_path
from mindformers.checkpoint.lazy import LazyTensors, read_in_order
from mindformers.checkpoint.manifest import damage, read_manifest, scan
from mindformers.checkpoint.names import is_unsaved_name, is_weight_name, missing_hint, modern_name, shape_hint
from mindformers.checkpoint.tied import match_output_layer
from mindformers.errors import CheckpointError
from mindformers.model_zoo import known_name
from mindformers.tools.logger import get_logger

__all__ = [
    "LazyTensors",
    "LoadReport",
    "checkpoint_being_checked",
    "damaged_error",
    "get_last_checkpoint",
    "load_into",
    "named_parameters",
    "newest_sound",
    "read_checkpoint",
    "resolve_checkpoint",
    "sound_checkpoint",
]

logger = get_logger(__name__)

_SHOWN = 10  # names listed in an error
_LOGGED = 5  # names listed in the log line
_SUFFIXES = tuple(f".{fmt}" for fmt in FORMATS)
_MAGIC = {b"PK\x03\x04": "a PyTorch or zip archive", b"\x80": "a Python pickle (PyTorch)", b"{": "JSON text"}


@dataclass
class LoadReport:
    """What a load did: names the network misses, names nobody wanted, and how many values changed dtype."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    cast: int = 0
    loaded: int = 0


def read_checkpoint(path: str | Path, verify: bool = True) -> Mapping[str, ms.Tensor]:
    """Read a checkpoint file, after proving that it is whole.

    Args:
        path: a ``.ckpt`` or ``.safetensors`` file; or weights of Hugging Face or Meta, see
            :func:`~mindformers.checkpoint.foreign.foreign_kind`.
        verify: compare size and checksum with the manifest, when there is one.

    Returns:
        Name to tensor, under our names; the values are read when asked for. What is no tensor (text, maps) is left
        out.

    Raises:
        CheckpointError: the file is absent, damaged, or not of its format; the message names the newest older
            complete checkpoint of the folder.
    """
    if foreign_kind(path):
        return open_foreign(path)
    return _open(sound_checkpoint(path, verify))


def _open(path: Path) -> LazyTensors:
    """The contents of a file of ours whose records are whole."""
    try:
        return LazyTensors(path)
    except (CheckpointError, ValueError, OSError) as error:
        raise damaged_error(path, f"it cannot be read ({_first_line(error)})") from error


@contextlib.contextmanager
def checkpoint_being_checked(path: str | Path) -> Iterator[Mapping[str, ms.Tensor]]:
    """As :func:`read_checkpoint`, but the checksum is computed while the values are in use already.

    For values that are thrown away when the block is left with an error. Size and structure are checked before.

    Raises:
        CheckpointError: as for :func:`read_checkpoint`; damage that only the checksum shows is raised at the end of the
            block, in place of an error it caused there.
    """
    if foreign_kind(path):
        yield open_foreign(path)
        return
    path = _existing_file(Path(path))
    with ThreadPoolExecutor(1, "checksum") as pool:
        found = pool.submit(_verify, path)
        try:
            yield _open(sound_checkpoint(path, verify=False))
        except Exception as error:  # what damaged values led to: the damage is named, not its consequence
            if reason := found.result():
                raise damaged_error(path, reason) from error
            raise
        if reason := found.result():
            raise damaged_error(path, reason)


def sound_checkpoint(path: str | Path, verify: bool = True) -> Path:
    """Prove that a file of ours is whole, without reading its values; see :func:`read_checkpoint`."""
    path = _existing_file(Path(path))
    reason = _format_problem(path) or (_verify(path) if verify else "")
    if not reason and path.suffix == ".ckpt":
        reason = ckpt_problem(path)
    if reason:
        raise damaged_error(path, reason)
    return path


def _verify(path: Path) -> str:
    """Why a file does not pass the check against its manifest; empty when it does, or has none."""
    manifest = manifest_path(path)
    if not manifest.exists():
        logger.info("%s has no manifest, so it cannot be checked for damage", path)
        return ""
    try:
        return damage(path, read_manifest(path))
    except CheckpointError as error:
        return f"its manifest is damaged ({error}); delete {manifest.name} to load the file unchecked"
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"


def damaged_error(path: Path, reason: str) -> CheckpointError:
    """The error for a file that must not be used, with the one to use instead."""
    other = newest_sound(path)
    if other is None:
        advice = "There is no older complete checkpoint in its folder."
    else:
        advice = f"Use the newest older complete one: --load_checkpoint {other} --resume_training True"
    return CheckpointError(f"{path} cannot be used: {reason}. {advice}")


def newest_sound(path: Path) -> Path | None:
    """The newest complete checkpoint beside ``path`` that is older than it and passes its checksum."""
    found = scan(path.parent)
    place = next((i for i, c in enumerate(found) if c.path == path and c.manifest), len(found))
    for candidate in reversed(found[:place]):
        if candidate.manifest and candidate.path != path and not damage(candidate.path, candidate.manifest):
            return candidate.path
    return None


def load_into(
    network: Any,
    params: Mapping[str, Any],
    *,
    strict: bool = True,
    ignore: Iterable[str] = (),
    source: str | Path | None = None,
    wanted: Callable[[str], bool] = is_weight_name,
) -> LoadReport:
    """Copy values into a network's parameters; all names and shapes are compared before the first is written.

    Args:
        network: a Cell, or a mapping of name to Parameter.
        params: name to Tensor or array, as from :func:`read_checkpoint`. Old ``tk_delta`` names are accepted.
        strict: fail when the network has a weight that ``params`` lacks.
        ignore: name patterns (``*`` wildcards) that count neither as missing nor as unexpected.
        source: where ``params`` came from, for messages; known already when :func:`read_checkpoint` made
            them.
        wanted: which names are to be loaded; the default takes the weights and leaves optimizer state and
            caches.

    Returns:
        What is missing, unexpected, and how many values changed dtype.

    Raises:
        CheckpointError: a weight is missing (with ``strict``), a shape differs, or a dtype cannot be
            converted.
    """
    ignore = tuple(ignore)
    source = source or getattr(params, "path", "the given parameters")

    def counts(name: str) -> bool:
        return wanted(name) and not any(fnmatchcase(name, pattern) for pattern in ignore)

    targets = {name: p for name, p in named_parameters(network).items() if counts(name)}
    origin = {modern_name(name): name for name in params if counts(modern_name(name))}
    match_output_layer(params, targets, origin, source)
    report = LoadReport(missing=sorted(set(targets) - set(origin)), unexpected=sorted(set(origin) - set(targets)))
    common = [name for name in targets if name in origin]
    if report.missing and (strict or not common):
        raise CheckpointError(_missing_message(source, report, len(targets)))
    _compare_shapes({n: (_shape(params, origin[n]), tuple(targets[n].shape)) for n in common}, source)
    own = hasattr(params, "shape")
    for name, value in zip(common, read_in_order(params, [origin[name] for name in common]), strict=True):
        report.cast += _assign(targets[name], value, own=own)
    report.loaded = len(common)
    _log_report(report, source)
    return report


def resolve_checkpoint(value: str | Path, rank: int = 0) -> Path:
    """Turn the value of ``load_checkpoint`` into the file to read.

    Args:
        value: a file; a folder of checkpoint files; a folder with ``rank_N`` folders; an output folder of
            a run; a folder in the layout of Hugging Face or Meta; or, when nothing of that name is on disk, the name of
            a model whose weights are published.
        rank: whose ``rank_N`` folder to look into.

    Returns:
        The file. In a folder: the newest complete step checkpoint, else the newest file by time. A foreign folder is
        returned as it is: :func:`read_checkpoint` takes it.

    Raises:
        CheckpointError: nothing there (the message lists what is there and the nearest name), or a download failed.
    """
    path = Path(value).expanduser()
    if not path.exists() and known_name(value):
        from mindformers.checkpoint.download import fetch  # its library for HTTP takes 0.2 s to import

        return fetch(str(value), "checkpoint")
    if not path.is_dir():
        return _existing_file(path)
    kind = foreign_kind(path)
    if kind:
        logger.info("load_checkpoint %s: weights in the layout of %s", path, kind)
        return path
    for folder in (path / f"rank_{rank}", OutputLayout(path, rank).checkpoint_dir, path):
        if not folder.is_dir():
            continue
        complete = [c.path for c in scan(folder) if c.manifest]
        chosen = complete[-1] if complete else get_last_checkpoint(folder)
        if chosen is not None:
            logger.info("load_checkpoint %s: using %s", path, chosen)
            return Path(chosen)
    raise CheckpointError(
        f"no checkpoint for rank {rank} in {path}: looked for *.ckpt and *.safetensors in rank_{rank}/, "
        f"checkpoint/rank_{rank}/ and the folder itself; it holds {_listing(path)}"
        + (f" ({hint})" if (hint := foreign_hint(path)) else "")
    )


def get_last_checkpoint(directory: str | Path) -> str | None:
    """Newest ``*.ckpt`` or ``*.safetensors`` of a folder by modification time; None when there is none.

    Raises:
        NotADirectoryError: ``directory`` is not a folder.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise NotADirectoryError(f"{directory} is not a folder")
    files = [p for p in folder.iterdir() if _is_checkpoint_name(p) and p.is_file()]
    newest = max(files, key=lambda p: (p.stat().st_mtime_ns, p.name), default=None)
    return None if newest is None else str(newest)


def _is_checkpoint_name(path: Path) -> bool:
    return path.suffix in _SUFFIXES and not path.name.startswith(".")


def _existing_file(path: Path) -> Path:
    """``path`` when it is a checkpoint file, else an error that shows what is in its folder."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name a .ckpt or .safetensors file in it")
    if path.is_file() and (path.suffix in _SUFFIXES or foreign_kind(path)):
        return path
    if path.is_file():
        raise CheckpointError(
            f"{path} is not a checkpoint: its name must end with {' or '.join(_SUFFIXES)}, or "
            f"{', '.join(TORCH_SUFFIXES)} for weights of PyTorch"
        )
    if not path.parent.is_dir():
        raise CheckpointError(f"checkpoint {path} does not exist, nor does its folder {path.parent}")
    near = get_close_matches(path.name, [p.name for p in path.parent.iterdir() if _is_checkpoint_name(p)], 1, 0.5)
    guess = f" Did you mean {path.parent / near[0]}?" if near else ""
    raise CheckpointError(f"checkpoint {path} does not exist.{guess} Its folder holds {_listing(path.parent)}")


def _listing(folder: Path) -> str:
    """Up to ten names of a folder, checkpoints and folders only."""
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if p.is_dir() or _is_checkpoint_name(p))
    return _some(names, _SHOWN) if names else "no checkpoint and no folder"


def _format_problem(path: Path) -> str:
    """Why the first bytes cannot be those of a checkpoint; empty when they can."""
    with open(path, "rb") as file:
        head = file.read(16)
    if not head:
        return "it is empty (0 bytes)"
    if path.suffix == ".ckpt":
        if head[8:10] == b'{"':
            return "it is a safetensors file under a .ckpt name; rename it to .safetensors"
        for magic, what in _MAGIC.items():
            if head.startswith(magic):
                return f"it is {what}, not a MindSpore checkpoint; convert_weight.py reads PyTorch files"
    return ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def named_parameters(network: Any) -> dict[str, ms.Parameter]:
    """Name to Parameter of a Cell or of a mapping; caches left out."""
    items = network.items() if isinstance(network, Mapping) else ((p.name, p) for p in network.get_parameters())
    return {name: p for name, p in items if not is_unsaved_name(name)}


def _shape(params: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Shape of a value; mappings that read on access know it without reading."""
    return params.shape(name) if hasattr(params, "shape") else tuple(params[name].shape)


def _compare_shapes(shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]], source: str | Path) -> None:
    """Fail when (checkpoint shape, network shape) differ; () and (1,) are the same thing."""
    wrong = {n: s for n, s in shapes.items() if s[0] != s[1] and not {s[0], s[1]} <= {(), (1,)}}
    if not wrong:
        return
    lines = [f"  {n}: checkpoint {list(given)}, model {list(want)}" for n, (given, want) in wrong.items()]
    more = [f"  ... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    hints = sorted({h for n, (given, want) in wrong.items() if (h := shape_hint(n, given, want))})
    advice = [f"Check {hint}" for hint in hints]
    text = "\n".join(lines[:_SHOWN] + more + advice)
    raise CheckpointError(f"{source} does not fit the model: {len(wrong)} shapes differ\n{text}")


def _kind(dtype: Any) -> str:
    """Group of dtypes between which a value may be converted."""
    name = str(dtype).lower()
    return "float" if "float" in name else "int" if "int" in name else name


def _assign(param: ms.Parameter, value: Any, own: bool) -> int:
    """Give ``param`` the value, converted to its dtype; returns 1 when the dtype changed.

    Args:
        param: the target.
        value: Tensor or array of the same shape.
        own: the value's memory belongs to nobody else and may be taken over without a copy.
    """
    tensor = value if isinstance(value, ms.Tensor) else ms.Tensor(value)
    cast = tensor.dtype != param.dtype
    if cast and _kind(tensor.dtype) != _kind(param.dtype):
        raise CheckpointError(f"{param.name}: a {tensor.dtype} value cannot become {param.dtype}")
    if cast or not own:
        tensor = ms.Tensor(np.array(tensor.asnumpy(), copy=True), param.dtype)
    if tensor.shape != param.shape:
        tensor = tensor.reshape(param.shape)
    param.set_data(tensor, param.sliced)
    return int(cast)


def _some(names: list[str], limit: int) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _missing_message(source: str | Path, report: LoadReport, total: int) -> str:
    """The text of a load that lacks weights."""
    missing = report.missing
    lines = [f"{source} lacks {len(missing)} of the model's {total} weights: {_some(missing, _SHOWN)}"]
    if report.unexpected:
        lines.append(f"it holds {len(report.unexpected)} unknown names: {_some(report.unexpected, _SHOWN)}")
    hint = missing_hint(report.missing, report.unexpected)
    return "\n".join(lines + ([hint] if hint else []))


def _log_report(report: LoadReport, source: str | Path) -> None:
    """One line on what was loaded."""
    parts = [f"missing {len(report.missing)}, unexpected {len(report.unexpected)}"]
    parts += [f"missing: {_some(report.missing, _LOGGED)}"] if report.missing else []
    parts += [f"unexpected: {_some(report.unexpected, _LOGGED)}"] if report.unexpected else []
    parts += [f"{report.cast} converted to the model's dtype"] if report.cast else []
    log = logger.warning if report.missing or report.unexpected else logger.info
    log("loaded %d weights from %s (%s)", report.loaded, source, "; ".join(parts))
