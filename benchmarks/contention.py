# SPDX-License-Identifier: Apache-2.0
"""Training and decoding with the native kernels beside a busy neighbour.

``python benchmarks/contention.py [--models T M] [--neighbours 1 2] [--peer torch] [--json out.jsonl]``

A neighbour is a process that computes without a pause on one core. Rounds alone and beside it alternate.
``slowdown`` is the time beside it over the time alone, median over pairs. ``core_share`` is the slowdown of work that
loses nothing but its share: threads of all over cores, for threads that are given equal time. Above 1, ``beyond_share``
says that threads waited for each other while the neighbour ran; the share of memory and caches that a neighbour takes
is part of it too.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import MODELS, THREADS, Worker, emit, spread

FOLDER = Path(__file__).resolve().parent
SETTLE = 0.5  # seconds after which nothing remembers the neighbours
BUSY = "x = 1\nwhile True:\n    x = x * 5 % 1000003"


class Neighbours:
    """Some busy processes that run when told to."""

    def __init__(self, count: int) -> None:
        self._processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
        self.run(False)

    def run(self, on: bool) -> None:
        """Let them run, or stop them."""
        for process in self._processes:
            process.send_signal(signal.SIGCONT if on else signal.SIGSTOP)

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            process.kill()
            process.wait()


def jobs(name: str, peer: str) -> Iterator[tuple[str, str, Worker]]:
    """(what, who, worker) for a model size, one after the other."""
    train = ["--models", name, "--native", "--dtype", "bfloat16", "--worker"]
    decode = ["--models", name, "--native", "--batch", "1", "--worker"]
    for who in ["mindformers"] + ([peer] if peer != "none" else []):
        yield "train", who, Worker(str(FOLDER / "train.py"), [*train, "torch-bf16" if who == "torch" else who])
        yield "decode", who, Worker(str(FOLDER / "decode.py"), [*decode, who])


def measure(worker: Worker, neighbours: Neighbours, rounds: int) -> list[tuple[float, float]]:
    """Seconds alone and beside the neighbours, for each round."""
    found = []
    for _ in range(rounds):
        time.sleep(SETTLE)
        alone = worker.round()["seconds"]
        neighbours.run(True)
        beside = worker.round()["seconds"]
        neighbours.run(False)
        found.append((alone, beside))
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["T", "M"])
    parser.add_argument("--neighbours", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--peer", choices=["torch", "none"], default="none")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", help="file the records are appended to")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    for name in args.models:
        for what, who, worker in jobs(name, args.peer):
            try:
                for count in args.neighbours:
                    neighbours = Neighbours(count)
                    try:
                        pairs = measure(worker, neighbours, args.rounds)
                    finally:
                        neighbours.close()
                    slowdown = spread([beside / alone for alone, beside in pairs])
                    share = max(1.0, (THREADS + count) / cores)
                    record = {"benchmark": "contention", "job": what, "who": who, "model": name, "neighbours": count}
                    record |= {"alone_s": spread([alone for alone, _ in pairs]), "slowdown": slowdown}
                    record |= {"core_share": share, "beyond_share": slowdown["median"] / share}
                    emit(record, args.json)
            finally:
                worker.close()


if __name__ == "__main__":
    main()
