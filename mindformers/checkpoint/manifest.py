# SPDX-License-Identifier: Apache-2.0
"""The JSON file beside a checkpoint: what is in it, where the run stood, and a checksum."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mindformers.atomic import write_text
from mindformers.checkpoint.digest import ALGORITHM, Pieces, digest_bytes, file_digest, is_hex, wrong_pieces
from mindformers.checkpoint.layout import manifest_path, parse_step_file
from mindformers.errors import CheckpointError

__all__ = [
    "FORMAT_VERSION",
    "Candidate",
    "Manifest",
    "config_hash",
    "damage",
    "flatten_config",
    "read_manifest",
    "scan",
    "write_manifest",
]

FORMAT_VERSION = 1
_SHOWN = 3  # damaged places named in an error


@dataclass
class Manifest:
    """Description of one complete checkpoint file.

    Args:
        step: optimizer steps done since the run began.
        epoch: epoch of that step, from 1.
        step_in_epoch: its number within the epoch, from 1.
        global_batch_size: records per optimizer step over all ranks.
        records_consumed: records read since the run began; the position in the data.
        seed: seed of the run, which fixes the data order.
        loss_scale: loss scale in use.
        config_hash: see :func:`config_hash`.
        created: seconds since 1970, never smaller than that of an older checkpoint in the folder.
        size: bytes of the file.
        algorithm: name of the checksum, as in ``hashlib``.
        checksum: hex digest of the file.
        pieces: checksums of its pieces, which are checked in its place; None in manifests of older versions.
        parameters: ``{"name", "shape", "dtype"}`` of every value in the file.
        extra: further facts the trainer wants back (dataset size, shuffle, the flat config, ...).
        mindformers_version: who wrote it.
        format_version: version of this description.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    global_batch_size: int | None = None
    records_consumed: int | None = None
    seed: int | None = None
    loss_scale: float | None = None
    config_hash: str | None = None
    created: float = 0.0
    size: int = 0
    algorithm: str = ALGORITHM
    checksum: str = ""
    pieces: Pieces | None = None
    parameters: list[dict[str, Any]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    mindformers_version: str = ""
    format_version: int = FORMAT_VERSION

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> "Manifest":
        """Build one from loose values; names that are not fields go to ``extra``."""
        known = {f.name for f in fields(cls)}
        extra = dict(values.get("extra") or {})
        extra.update({k: v for k, v in values.items() if k not in known})
        return cls(**{k: v for k, v in values.items() if k in known and k != "extra"}, extra=extra)

    def value(self, name: str) -> Any:
        """A field or an entry of ``extra``; None when the checkpoint does not say."""
        return getattr(self, name) if name in {f.name for f in fields(self)} else self.extra.get(name)


@dataclass
class Candidate:
    """A step checkpoint found in a folder; complete when it has a manifest, else ``reason`` says why not."""

    path: Path
    epoch: int
    step: int
    manifest: Manifest | None = None
    reason: str = ""


def flatten_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping to ``{"a.b.c": value}``, the form in which configs are compared."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten_config(value, name + "."))
        else:
            flat[name] = value
    return flat


def config_hash(config: Mapping[str, Any]) -> str:
    """Hex digest of a configuration; the order of keys does not matter."""
    text = json.dumps(flatten_config(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest of checkpoint ``path`` atomically and durably."""
    write_text(manifest_path(path), json.dumps(asdict(manifest), indent=1) + "\n")


def read_manifest(path: str | Path) -> Manifest:
    """Read the manifest of checkpoint file ``path``.

    Raises:
        CheckpointError: it is absent, not readable as JSON, or of a newer format.
    """
    source = manifest_path(path)
    try:
        values = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no manifest {source.name} beside it") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{source}: not a readable manifest ({error})") from error
    problem = _manifest_problem(values)
    if problem:
        raise CheckpointError(f"{source}: not a usable manifest: {problem}")
    known = {f.name for f in fields(Manifest)}
    if (pieces := values.get("pieces")) is not None:
        values["pieces"] = Pieces(**{f.name: pieces[f.name] for f in fields(Pieces)})
    return Manifest(**{k: v for k, v in values.items() if k in known})


def _manifest_problem(values: Any) -> str:
    """Why decoded JSON is not a manifest of ours; empty when it is one."""
    if not isinstance(values, dict):
        return "no JSON object"
    version = values.get("format_version")
    if not isinstance(version, int) or version < 1:
        return "format_version is missing"
    if version > FORMAT_VERSION:
        return f"format version {version} is newer than {FORMAT_VERSION}; install a newer mindformers"
    kinds = {"step": int, "epoch": int, "step_in_epoch": int, "size": int, "created": (int, float)}
    kinds |= {"checksum": str, "algorithm": str, "parameters": list, "extra": dict}
    for name, kind in kinds.items():
        if not isinstance(values.get(name), kind) or isinstance(values.get(name), bool):
            return f"{name} is missing or of the wrong type"
    if not digest_bytes(values["algorithm"]):
        return f"unknown checksum algorithm {values['algorithm']!r}"
    if not is_hex(values["checksum"]):
        return "checksum is not a hex digest"
    return "" if values.get("pieces") is None else Pieces.problem(values["pieces"], values["size"])


def damage(path: Path, manifest: Manifest, checksum: bool = True) -> str:
    """Why the file is not the one its manifest describes; empty when it is. All that verify a manifest ask here.

    Args:
        path: checkpoint file.
        manifest: its manifest.
        checksum: also read the whole file, not only its size, and compare the checksums of its pieces; that of the
            whole when the manifest has no pieces.
    """
    size = path.stat().st_size
    if size != manifest.size:
        return f"it has {size} bytes, its manifest says {manifest.size}"
    if not checksum:
        return ""
    pieces = manifest.pieces
    if pieces is None:
        same = file_digest(path, manifest.algorithm) == manifest.checksum
        return "" if same else f"its {manifest.algorithm} checksum is not the one in its manifest"
    wrong = wrong_pieces(path, pieces)
    if not wrong:
        return ""
    places = ", ".join(pieces.place(number, size) for number in wrong[:_SHOWN])
    places += f" and {len(wrong) - _SHOWN} more pieces" if len(wrong) > _SHOWN else ""
    return f"its {pieces.algorithm} checksum is not the one in its manifest: {places} differ"


def scan(directory: Path, prefix: str | None = None) -> list[Candidate]:
    """Step checkpoints of a folder, oldest first, complete or not; file contents are not read.

    Args:
        directory: a ``rank_N`` folder; an absent one is empty.
        prefix: only files of this prefix; None takes all.

    Complete ones are ordered by creation (a run restarted in the same folder counts from step 1 again), which
    is never smaller than that of an older save; incomplete ones by (epoch, step) among themselves, before
    them.
    """
    found: dict[Path, Candidate] = {}
    for entry in sorted(directory.iterdir()) if directory.is_dir() else ():
        path = entry.with_suffix("") if entry.suffix == ".json" else entry
        name = parse_step_file(path)
        if name is None or path in found or (prefix is not None and name.prefix != prefix):
            continue
        found[path] = _candidate(path, name.epoch, name.step)
    return sorted(found.values(), key=lambda c: (c.manifest.created if c.manifest else -1.0, c.epoch, c.step))


def _candidate(path: Path, epoch: int, step: int) -> Candidate:
    """Look at one checkpoint name: is the file there, and a manifest that can be read?"""
    if not path.is_file():
        return Candidate(path, epoch, step, reason="its manifest is there, the file is not")
    if not manifest_path(path).exists():
        return Candidate(path, epoch, step, reason="it has no manifest (the save did not finish, or it is foreign)")
    try:
        return Candidate(path, epoch, step, manifest=read_manifest(path))
    except CheckpointError as error:
        return Candidate(path, epoch, step, reason=str(error))
