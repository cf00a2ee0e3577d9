# SPDX-License-Identifier: Apache-2.0
"""Find and load the library of native kernels, and decide whether it is used.

Used on CPU where it is built from the sources that are installed and finds the products of oneDNN, unless switched off
(``context.native_kernels: False``, or the environment variable ``MINDFORMERS_NATIVE=0``, which beats the context).
Asked for (``True``, ``1``), it is used without oneDNN too, and a warning says why it cannot be.
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
    """What the context asked for; None: nothing."""

    enabled: bool | None = None
    threads: int = 0


_choice = _Choice()


def configure(enabled: bool | None, threads: int = 0) -> None:
    """Take over ``context.native_kernels`` and ``context.runtime_num_threads``.

    Args:
        enabled: whether native kernels are asked for; None: used where they can be.
        threads: threads a kernel is shared by; 0 is the environment variable OMP_NUM_THREADS, or one per core.
    """
    _choice.enabled = enabled
    _choice.threads = threads
    if _open.cache_info().currsize and load() is not None:
        load().mindformers_native_set_threads(_threads())


def wish(by_context: bool | None, use_parallel: bool) -> bool | None:
    """What ``context.native_kernels`` means for a run: ranks, which share a machine's cores, have to ask for them."""
    return False if by_context is None and use_parallel else by_context


def _threads() -> int:
    """Threads of the context, else of OMP_NUM_THREADS as it was before MindSpore set it for itself, else 0."""
    given = os.environ.get("OMP_NUM_THREADS", "").strip()
    return _choice.threads or (int(given) if given.isdigit() else 0)


def wanted(by_context: bool | None) -> bool:
    """Whether native kernels are asked for, built or not; where nothing is asked, whether they would be used.

    Args:
        by_context: ``context.native_kernels``.

    Raises:
        ConfigError: MINDFORMERS_NATIVE is neither 0, 1 nor empty.
    """
    asked = _asked(by_context)
    return _complete() if asked is None else asked


def _asked(by_context: bool | None) -> bool | None:
    """The environment's wish, else the context's; None when neither has one."""
    value = os.environ.get(ENVIRONMENT, "")
    if value not in ("", "0", "1"):
        raise ConfigError(f"the environment variable {ENVIRONMENT} is {value!r}; allowed: 0 (off), 1 (on), or unset")
    return by_context if value == "" else value == "1"


def _complete() -> bool:
    """Whether there is a library, and oneDNN beside it."""
    return load() is not None and bool(load().mindformers_native_onednn())


def refusal() -> str:
    """Why the kernels cannot be used even by what asks for them by other means; empty when they can."""
    if os.environ.get(ENVIRONMENT) == "0":
        return f"{ENVIRONMENT}=0 switches them off"
    return problem()


def usable() -> bool:
    """Whether native kernels are used; asked for and impossible is one warning."""
    if not wanted(_choice.enabled):
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
    if _complete():
        return True
    _warn_once("native kernels found no oneDNN in MindSpore: fp32 products of linear layers stay MindSpore's MatMul")
    return False


def library_path() -> Path | None:
    """The library file that exists, the one beside the package first."""
    for place in (build.package_library, build.cache_library):
        path = place()
        if path.is_file():
            return path
    return None


@functools.cache
def load() -> ctypes.CDLL | None:
    """The loaded library, None when :func:`problem` has something to say. Tried once per process."""
    return None if _open()[1] else _open()[0]


def loaded_file() -> str:
    """Path of the loaded library."""
    return load()._name


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
    lines["used"] = f"no: {trouble}" if trouble else _use()
    return lines


def _use() -> str:
    """Whether the library, which can be loaded, is used, and why."""
    asked = _asked(_choice.enabled)
    if asked is None:
        return "yes, as a rule" if _complete() else f"no: without oneDNN they have to be asked for, by {ENVIRONMENT}=1"
    by = f"{ENVIRONMENT}={os.environ[ENVIRONMENT]}" if os.environ.get(ENVIRONMENT) else "context.native_kernels"
    return f"yes, asked for by {by}" if asked else f"no: switched off by {by}"
