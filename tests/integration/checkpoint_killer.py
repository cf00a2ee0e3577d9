# SPDX-License-Identifier: Apache-2.0
"""Saves checkpoints in children and kills them: run by test_checkpoint_kill.py in a process of its own.

MindSpore is imported once; each trial is a fork. Prints one JSON line with the count of trials, of kills that
hit a save, and of leftovers; any wrong state is an AssertionError.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np

from mindformers.checkpoint.layout import OutputLayout, parse_step_file, temp_files
from mindformers.checkpoint.load import read_checkpoint
from mindformers.checkpoint.manifest import scan
from mindformers.checkpoint.resume import find_resume
from mindformers.checkpoint.save import rotate, save_step

FLOATS = 1 << 19  # of each of ten arrays: 20 MB in all


def state(step: int) -> dict[str, np.ndarray]:
    """Content that tells of which step it is, in every array."""
    return {f"w{i}": np.full(FLOATS, step * 100 + i, np.float32) for i in range(10)} | {"step": np.int32(step)}


def save_for_ever(layout: OutputLayout, fmt: str, step: int, report: int) -> None:
    """Save step after step; write each number to ``report`` once the save has returned."""
    while True:
        path = layout.step_file("CKP", 1, step, fmt)
        save_step(state(step), path, manifest_fields={"step": step}, fmt=fmt)
        os.write(report, f"{step}\n".encode())
        rotate(path.parent, "CKP", 2)
        step += 1


def check(layout: OutputLayout, at_least: int) -> None:
    """The newest complete checkpoint loads, is as new as the last one reported, and holds its values."""
    step = find_resume(layout).manifest.step
    assert step >= at_least, (step, at_least)
    for candidate in scan(layout.checkpoint_dir):
        if candidate.manifest is not None:
            params = read_checkpoint(candidate.path)
            for name, value in state(candidate.manifest.step).items():
                assert np.array_equal(params[name].asnumpy(), value), (candidate.path, name)


def remains(layout: OutputLayout) -> set[tuple[Path, int]]:
    """Temporary and incomplete files, with their times: what a kill in the middle of a save leaves."""
    incomplete = [c.path for c in scan(layout.checkpoint_dir) if c.manifest is None and c.path.exists()]
    paths = [*temp_files(layout.checkpoint_dir), *incomplete]
    return {(path, path.stat().st_mtime_ns) for path in paths}


def in_child(function, *args) -> int:
    """Fork; the child runs the function and leaves with 0, or 1 after an exception."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function(*args)
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    return pid


def trial(layout: OutputLayout, fmt: str, step: int, delay: float) -> int:
    """Start saving at ``step``, kill after ``delay`` seconds; returns the last step whose save returned."""
    reader, writer = os.pipe()
    pid = in_child(save_for_ever, layout, fmt, step, writer)
    os.close(writer)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as lines:
        numbers = [int(line) for line in lines.read().split()]
    return numbers[-1] if numbers else 0


def main(root: Path, trials: int, seed: int) -> None:
    """Kill ``trials`` times, alternating the formats, and check after each."""
    rng = random.Random(seed)
    layout = OutputLayout(root)
    start = time.monotonic()
    save_step(state(1), layout.step_file("CKP", 1, 1), manifest_fields={"step": 1})
    one_save = time.monotonic() - start
    done, hits = 1, 0
    for number in range(trials):
        before = remains(layout)
        delay = rng.uniform(0.005, 1.6 * min(one_save, 0.6))
        reported = trial(layout, ("ckpt", "safetensors")[number % 2], done + 1, delay)
        last = max(done, reported)
        _, status = os.waitpid(in_child(check, layout, last), 0)
        assert status == 0, f"trial {number}: wrong state"
        done = find_resume(layout).manifest.step
        hits += bool(remains(layout) - before)
    names = [p.name for p in layout.checkpoint_dir.iterdir() if parse_step_file(p)]
    print(json.dumps({"trials": trials, "hits": hits, "last": done, "files": names, "one_save": one_save}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
