# SPDX-License-Identifier: Apache-2.0
"""Find and load the library of native kernels, and decide whether it is used.

Used only when all hold: asked for (``context.native_kernels: True``, or the environment variable
``MINDFORMERS_NATIVE=1``; ``MINDFORMERS_NATIVE=0`` beats both), built from the sources that are installed, on CPU.
"""

import ctypes
import functools
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from mindformers.errors import ConfigError
from mindformers.native import build
from mindformers.tools.logger import get_logger

logger = get_logger(__name__)

ENVIRONMENT = "MINDFORMERS_NATIVE"
_TEXT = 1 << 16


@dataclass
class _Choice:
    """What the context asked for."""

    enabled: bool = False
    threads: int = 0


_choice = _Choice()


def configure(enabled: bool, threads: int = 0) -> None:
    """Take over ``context.native_kernels`` and ``context.runtime_num_threads``.

    Args:
        enabled: whether native kernels are asked for.
        threads: threads a kernel is shared by; 0 is the environment variable OMP_NUM_THREADS, or one per core.
    """
    _choice.enabled = enabled
    _choice.threads = threads
    if _open.cache_info().currsize and load() is not None:
        load().mindformers_native_set_threads(_threads())


def _threads() -> int:
    """Threads of the context, else of OMP_NUM_THREADS as it was before MindSpore set it for itself, else 0."""
    given = os.environ.get("OMP_NUM_THREADS", "").strip()
    return _choice.threads or (int(given) if given.isdigit() else 0)


def wanted(by_context: bool | None = None) -> bool:
    """Whether native kernels are asked for, built or not.

    Args:
        by_context: ``context.native_kernels``; None is the value :func:`configure` was given.

    Raises:
        ConfigError: MINDFORMERS_NATIVE is neither 0, 1 nor empty.
    """
    value = os.environ.get(ENVIRONMENT, "")
    if value not in ("", "0", "1"):
        raise ConfigError(f"the environment variable {ENVIRONMENT} is {value!r}; allowed: 0 (off), 1 (on), or unset")
    asked = _choice.enabled if by_context is None else by_context
    return asked if value == "" else value == "1"


def refusal() -> str:
    """Why the kernels cannot be used even by what asks for them by other means; empty when they can."""
    if os.environ.get(ENVIRONMENT) == "0":
        return f"{ENVIRONMENT}=0 switches them off"
    return problem()


def usable() -> bool:
    """Whether native kernels are asked for and can be used; a library that cannot be is one warning."""
    if not wanted():
        return False
    if load() is None:
        _warn_once(f"native kernels are asked for but not used: {problem()}. The plain MindSpore ops run instead")
        return False
    return True


@functools.cache
def _warn_once(text: str) -> None:
    logger.warning("%s", text)


def has_onednn() -> bool:
    """Whether the library found oneDNN's products in MindSpore; without them is one warning."""
    if load() is not None and load().mindformers_native_onednn():
        return True
    _warn_once("native kernels found no oneDNN in MindSpore: fp32 products of linear layers stay MindSpore's MatMul")
    return False


def library_path() -> Path | None:
    """The library file that exists, the one beside the package first."""
    for path in (build.package_library(), build.cache_library()):
        if path.is_file():
            return path
    return None


@functools.cache
def load() -> ctypes.CDLL | None:
    """The loaded library, None when :func:`problem` has something to say. Tried once per process."""
    return None if _open()[1] else _open()[0]


def forget() -> None:
    """Look for the library again at the next use, after a build in this process."""
    _open.cache_clear()
    load.cache_clear()


def problem() -> str:
    """Why the library cannot be used, with what to do; empty when it can."""
    return _open()[1]


@functools.cache
def _open() -> tuple[ctypes.CDLL | None, str]:
    path = library_path()
    advice = "run python -m mindformers native build"
    if path is None:
        return None, f"they are not built; {advice}"
    try:
        library = ctypes.CDLL(str(path))
        library.mindformers_native_build_hash.restype = ctypes.c_char_p
        stamp = library.mindformers_native_build_hash().decode()
    except (OSError, AttributeError) as error:
        return None, f"{path} cannot be loaded ({error}); {advice}"
    if stamp != build.sources_hash():
        return None, f"{path} was built from other sources; {advice}"
    library.mindformers_native_isa.restype = ctypes.c_char_p
    library.mindformers_native_onednn.restype = ctypes.c_char_p
    library.mindformers_native_find_onednn.argtypes = [ctypes.c_char_p]
    for name in ("last_error", "timings"):
        function = getattr(library, f"mindformers_native_{name}")
        function.argtypes, function.restype = [ctypes.c_char_p, ctypes.c_int64], ctypes.c_int64
    library.mindformers_native_find_onednn(_onednn_of_mindspore().encode())
    library.mindformers_native_set_threads(_threads())
    return library, ""


def _onednn_of_mindspore() -> str:
    """The oneDNN MindSpore carries, for the case that nothing in this process has loaded it yet."""
    spec = importlib.util.find_spec("mindspore")
    folders = spec.submodule_search_locations if spec else None
    return str(Path(next(iter(folders)), "lib", "libdnnl.so.3")) if folders else ""


def last_error() -> str:
    """What the last kernel that refused its arguments said; empty when none has."""
    return _text_of("last_error")


def timings() -> dict[str, tuple[int, float]]:
    """Calls and seconds of each kernel since :func:`profile` was switched on."""
    lines = (line.split() for line in _text_of("timings").splitlines())
    return {name: (int(calls), float(seconds)) for name, calls, seconds in lines}


def profile(on: bool) -> None:
    """Begin or end measuring the kernels of this process; nothing without the library."""
    if load() is not None:
        load().mindformers_native_profile(int(on))


def _text_of(name: str) -> str:
    if load() is None:
        return ""
    buffer = ctypes.create_string_buffer(_TEXT)
    getattr(load(), f"mindformers_native_{name}")(buffer, _TEXT)
    return buffer.value.decode()


def info() -> dict[str, str]:
    """What was found and what is used, ready to print."""
    compiler = build.find_compiler()
    library, trouble = _open()
    lines = {
        "compiler": build.compiler_version(compiler) if compiler else "none (CXX, c++, g++, clang++)",
        "library": str(library_path() or "not built"),
        "sources": build.sources_hash(),
    }
    if library is not None and not trouble:
        lines |= {
            "kernels for this CPU": library.mindformers_native_isa().decode(),
            "oneDNN": library.mindformers_native_onednn().decode() or "not found: products by kernels of our own",
            "threads": str(library.mindformers_native_threads()),
        }
    asked = f"asked for by {ENVIRONMENT}=1" if wanted() else f"off; {ENVIRONMENT}=1 or context.native_kernels: True"
    lines["used"] = f"no: {trouble}" if trouble else f"yes, {asked}" if wanted() else asked
    return lines
