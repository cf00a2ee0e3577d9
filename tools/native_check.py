# SPDX-License-Identifier: Apache-2.0
"""``make native-check``: the native kernels' randomized campaign under sanitizers, and their formatting.

``python tools/native_check.py [--seconds 10] [--seed N]``

Builds ``tests/native/*.cc`` with the kernels twice: with AddressSanitizer and UndefinedBehaviorSanitizer, run for every
CPU variant this machine has, and with ThreadSanitizer. Warnings of the compiler are errors here. clang-format checks
the sources where it is installed. The exit code is 0 when nothing was found.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mindformers.native import build  # noqa: E402

CASES = ROOT / "tests" / "native"
COMMON = ("-O1", "-g", "-Werror", "-fno-omit-frame-pointer")
SANITIZERS = {
    "address+undefined": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}
# leaks: worker threads, their pool and kept working memory live until the process ends, on purpose
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1", "UBSAN_OPTIONS": "print_stacktrace=1"}


def formatted() -> bool:
    """Whether clang-format has nothing to change; True with a note where it is absent."""
    program = shutil.which("clang-format", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    if program is None:
        print("clang-format: not installed, formatting not checked")
        return True
    files = [str(path) for folder in (build.SOURCES, CASES) for path in sorted(folder.glob("*.[ch]*"))]
    return subprocess.run([program, "--dry-run", "--Werror", *files], check=False).returncode == 0


def variants() -> list[str]:
    """Names of the CPU variants compiled here, the least demanding first."""
    return list(build.VARIANTS.get(os.uname().machine, {"portable": ()}))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="of the campaign per variant")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="default: another one every time")
    args = parser.parse_args()
    compiler = build.find_compiler()
    if compiler is None:
        print("error: no C++ compiler found (CXX, c++, g++, clang++)", file=sys.stderr)
        return 2
    good = formatted()
    with tempfile.TemporaryDirectory(prefix="mindformers-native-check-") as folder:
        for name, flags in SANITIZERS.items():
            place = Path(folder, name)
            place.mkdir()
            try:
                program = build.compile_and_link(
                    compiler, place, os.cpu_count() or 1, (*COMMON, *flags), tuple(sorted(CASES.glob("*.cc"))), True
                )
            except build.BuildError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            # the variants differ in arithmetic, not in what threads do
            for variant in variants() if "address" in name else variants()[-1:]:
                print(f"{name}, {variant}, seed {args.seed}", flush=True)
                environment = os.environ | OPTIONS | {"MINDFORMERS_NATIVE_ISA": variant}
                command = [str(program), str(args.seconds), str(args.seed)]
                good &= subprocess.run(command, env=environment, check=False).returncode == 0
    print("native-check: passed" if good else "native-check: FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
