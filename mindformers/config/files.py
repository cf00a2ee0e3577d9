# SPDX-License-Identifier: Apache-2.0
"""Where config files lie: the folder of shipped ones, and the file a user meant."""

from pathlib import Path

from mindformers.errors import ConfigError
from mindformers.tools.utils import nearest

_PACKAGE = Path(__file__).resolve().parent.parent


def configs_dir() -> Path:
    """The folder of the shipped configs: ``configs/`` of a checkout, else the copy inside the installed package.

    Raises:
        ConfigError: neither is there.
    """
    for folder in (_PACKAGE.parent / "configs", _PACKAGE / "_configs"):
        if (folder / "llama2").is_dir():
            return folder
    raise ConfigError(f"no shipped configs found beside or inside {_PACKAGE}; install the package anew")


def shipped_configs() -> dict[str, Path]:
    """name -> file of every shipped config, sorted; files that others are based on (``_base``) are left out."""
    return {file.stem: file for file in sorted(configs_dir().rglob("*.yaml")) if not file.name.startswith("_")}


def find_config(name: str | Path) -> Path:
    """The file meant by ``name``: a path from the current folder or from the checkout's root, or a shipped name.

    Raises:
        ConfigError: no such file; names the nearest one and the command that lists them.
    """
    path = Path(name)
    candidates = [path] if path.is_absolute() else [path, _PACKAGE.parent / path]
    if path.parts[:1] == ("configs",):  # an installed package has them inside
        candidates.append(_PACKAGE / "_configs" / Path(*path.parts[1:]))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise ConfigError(f"{path}: a folder, not a YAML file{_suggest('', path)}")
    if path.suffix not in (".yaml", ".yml") and len(path.parts) == 1 and path.name in shipped_configs():
        return shipped_configs()[path.name]
    folder = next((candidate.parent for candidate in candidates if candidate.parent.is_dir()), None)
    hint = _suggest(path.name, folder) if folder else ""
    raise ConfigError(f"{path}: no such file.{hint} The shipped ones: python -m mindformers ls")


def _suggest(name: str, folder: Path) -> str:
    files = sorted(file.name for file in folder.iterdir() if file.suffix in (".yaml", ".yml"))
    if not name:
        return f" (it holds: {', '.join(files[:20])})" if files else ""
    best = nearest(name, files)
    best = best or nearest(name, shipped_configs())
    return f" Did you mean {best if best not in files else str(folder / best)!r}?" if best else ""
