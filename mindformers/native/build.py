# SPDX-License-Identifier: Apache-2.0
"""Compile the native kernels into one shared library that serves every CPU of this machine's architecture.

Files named ``*_isa.cc`` are compiled once per variant (VARIANTS), the others once; nothing is left beside the library.
This module imports the standard library only, so that setup.py can run it before anything is installed.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "src"
LIBRARY_NAME = "libmindformers_native.so"
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",  # fused multiply-add within an expression; no other freedom with floating point
    "-fno-math-errno",
    "-fopenmp-simd",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
)
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
# variant -> flags of its copy of a kernel file
VARIANTS = {
    "x86_64": {
        "portable": (),
        "avx2": _AVX2,
        "avx512": _AVX512,
        "avx512_bf16": (*_AVX512, "-mavx512bf16", "-mavx512vnni"),
    },
}


class BuildError(RuntimeError):
    """No compiler, or it failed; the message says which and what it printed."""


@dataclass(frozen=True)
class Unit:
    """One run of the compiler.

    Args:
        source: the file.
        variant: name of the CPU variant, None for files compiled once.
        flags: of this variant.
    """

    source: Path
    variant: str | None
    flags: tuple[str, ...]

    @property
    def object_name(self) -> str:
        """File name of the object it makes."""
        return f"{self.source.stem}.{self.variant or 'once'}.o"


def units() -> list[Unit]:
    """Everything to be compiled on this architecture."""
    variants = VARIANTS.get(platform.machine(), {"portable": ()})
    found = []
    for source in sorted(SOURCES.glob("*.cc")):
        if source.stem.endswith("_isa"):
            found += [Unit(source, name, (f"-DMF_ISA={name}", *flags)) for name, flags in variants.items()]
        else:
            found.append(Unit(source, None, ()))
    return found


def sources_hash() -> str:
    """16 hexadecimal digits over sources, flags and architecture; a library carries that of its build."""
    digest = hashlib.sha256(repr((FLAGS, sorted(VARIANTS.items()), platform.machine())).encode())
    for path in sorted(SOURCES.glob("*.[ch]*")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def find_compiler() -> list[str] | None:
    """The C++ compiler as a command: the environment variable CXX, else c++, g++ or clang++ on PATH; None without."""
    given = os.environ.get("CXX")
    if given:
        command = shlex.split(given)
        return command if shutil.which(command[0]) else None
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    return None


def compiler_version(compiler: list[str]) -> str:
    """First line of what the compiler says about itself."""
    result = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False)
    return (result.stdout or result.stderr).partition("\n")[0].strip()


def package_library() -> Path:
    """Where the library lies when the package's folder can be written."""
    return SOURCES.parent / LIBRARY_NAME


def cache_library() -> Path:
    """Where it lies otherwise: in the user's cache folder, below the hash of the sources."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "mindformers" / "native" / sources_hash() / LIBRARY_NAME


def build(target: Path | None = None, jobs: int | None = None) -> Path:
    """Compile and link; the finished library replaces an old one in a single step.

    Args:
        target: the file to make; None is beside the package, or in the user's cache when that is read-only.
        jobs: compilers run at a time; None is one per core.

    Returns:
        The library.

    Raises:
        BuildError: no compiler was found, it failed, or the file cannot be written.
    """
    compiler = find_compiler()
    if compiler is None:
        raise BuildError(
            "no C++ compiler found (CXX, c++, g++, clang++). Install one (Debian: apt-get install g++) "
            "and run python -m mindformers native build; without it the plain MindSpore ops are used"
        )
    if sys.platform != "linux":
        raise BuildError(f"native kernels are built on Linux only, this is {sys.platform}")
    if target is None:
        target = package_library()
        if not os.access(target.parent, os.W_OK):
            target = cache_library()
    with tempfile.TemporaryDirectory(prefix="mindformers-native-") as folder:
        linked = compile_and_link(compiler, Path(folder), jobs or os.cpu_count() or 1)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".native-", delete=False) as file:
                file.write(linked.read_bytes())
                file.flush()
                os.fsync(file.fileno())
            os.chmod(file.name, 0o755)
            os.replace(file.name, target)
        except OSError as error:
            raise BuildError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def compile_and_link(
    compiler: list[str], folder: Path, jobs: int, flags: tuple[str, ...] = (), sources: tuple[Path, ...] = (),
    executable: bool = False,
) -> Path:  # fmt: skip
    """Objects of all units and of further sources, linked into one file of ``folder``.

    Args:
        compiler: its command.
        folder: for the objects and the result.
        jobs: compilers run at a time.
        flags: added when compiling and linking, such as those of a sanitizer.
        sources: further files, compiled once.
        executable: link a program instead of a shared library.

    Raises:
        BuildError: the compiler failed.
    """
    work = [*units(), *(Unit(path, None, (f"-I{SOURCES}",)) for path in sources)]
    stamp = f'-DMF_BUILD_HASH="{sources_hash()}"'

    def compile_one(unit: Unit) -> str:
        path = str(folder / unit.object_name)
        _run([*compiler, *FLAGS, *flags, stamp, *unit.flags, "-c", str(unit.source), "-o", path])
        return path

    with ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(compile_one, work))
    result = folder / ("program" if executable else LIBRARY_NAME)
    kind = [] if executable else ["-shared"]
    _run([*compiler, *flags, *kind, *objects, "-o", str(result), "-lpthread", "-ldl"])
    return result


def _run(command: list[str]) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error.strerror or error}") from error
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines()[:20]
        raise BuildError("\n".join([f"{shlex.join(command)} failed with exit code {result.returncode}:", *lines]))
