# SPDX-License-Identifier: Apache-2.0
"""Several runs of run_mindformer.py in one process, which is imported and connected once.

``python -m tests.parallel.several_runs FILE``: FILE is JSON, a list of the words of each run; what a run prints goes to
OUTPUT_DIR.rank_N.log.
"""

import contextlib
import json
import os
import sys
from pathlib import Path

import run_mindformer
from mindformers.errors import run_cli


def main(file: str) -> None:
    """Do all runs, in order; the first that fails ends the process with its error."""
    rank = os.environ.get("MS_NODE_ID", "0")
    for words in json.loads(Path(file).read_text(encoding="utf-8")):
        name = words[words.index("--output_dir") + 1]
        with open(f"{name}.rank_{rank}.log", "w", encoding="utf-8") as log, printing_to(log.fileno()):
            try:
                run_mindformer.main(words)
            except (Exception, SystemExit) as error:
                raise RuntimeError(f"run {name}") from error


@contextlib.contextmanager
def printing_to(file: int):
    """Standard output and error of the whole process go to an open file."""
    kept = [(stream, os.dup(stream)) for stream in (1, 2)]
    for stream, _ in kept:
        os.dup2(file, stream)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, copy in kept:
            os.dup2(copy, stream)
            os.close(copy)


if __name__ == "__main__":
    run_cli(lambda: main(sys.argv[1]))
