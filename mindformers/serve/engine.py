# SPDX-License-Identifier: Apache-2.0
"""Engine: one thread that admits waiting sequences into free slots and advances all of them, step by step."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mindformers.serve.request import Sequence
from mindformers.tools.logger import get_logger

__all__ = ["Counters", "Engine", "QueueFullError"]

logger = get_logger(__name__)


class QueueFullError(Exception):
    """No more sequences may wait; the client should try again later."""


@dataclass
class Counters:
    """What the engine did since it started; read by /metrics."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    finished: int = 0
    cancelled: int = 0
    timeouts: int = 0
    rejected: int = 0
    failed: int = 0


class Engine:
    """Continuous batching over a SlotModel (Yu et al. 2022, "Orca": scheduling per step, not per request).

    Args:
        make_model: builds the SlotModel; called in the engine's thread, where MindSpore is used and nowhere else.
        max_waiting: sequences that may wait for a slot.

    Sequences are admitted in the order they came, one prompt between two steps, so that a burst of long prompts does
    not stop the answers that are under way.
    """

    def __init__(self, make_model: Callable[[], object], max_waiting: int = 64) -> None:
        self.counters = Counters()
        self.max_waiting = max_waiting
        self.num_slots = 0
        self._make_model = make_model
        self._arrivals: queue.SimpleQueue[Sequence | None] = queue.SimpleQueue()
        self._waiting: deque[Sequence] = deque()
        self._active: dict[int, Sequence] = {}
        self._pending = 0  # arrived and not yet admitted
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread and wait until the model is built and compiled.

        Raises:
            the error that building the model raised.
        """
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End every answer and the thread."""
        self._stopping = True
        self._arrivals.put(None)
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether requests can be served."""
        return self._ready.is_set() and self._thread.is_alive() and self._error is None

    @property
    def num_active(self) -> int:
        """Sequences in slots."""
        return len(self._active)

    @property
    def num_waiting(self) -> int:
        """Sequences without a slot yet."""
        return self._pending

    def submit(self, *sequences: Sequence) -> None:
        """Queue the sequences of one request; callable from any thread.

        Raises:
            QueueFullError: they do not all fit into the queue; none was taken.
        """
        with self._lock:
            free = max(0, self.num_slots - len(self._active))
            if self._pending + len(sequences) > self.max_waiting + free:
                self.counters.rejected += len(sequences)
                raise QueueFullError(f"{self._pending} requests are waiting already")
            self._pending += len(sequences)
        for sequence in sequences:
            self._arrivals.put(sequence)

    def _run(self) -> None:
        try:
            self._model = self._make_model()
            self.num_slots = self._model.num_slots
        except BaseException as error:
            self._error = error
            self._ready.set()
            return
        self._ready.set()
        while not self._stopping:
            try:
                self._loop_once()
            except Exception as error:  # a bug or a device fault: the clients are told, the service goes on
                logger.exception("a step failed")
                self.counters.failed += len(self._active)
                self._end_all("error")
                time.sleep(0.1 if isinstance(error, MemoryError) else 0)
        self._end_all("cancelled")

    def _loop_once(self) -> None:
        self._receive(block=not self._active and not self._waiting)
        self._drop_expired()
        self._admit_one()
        if self._active:
            self._step()

    def _receive(self, block: bool) -> None:
        """Move arrivals to the waiting line; sleep while there is nothing to do at all."""
        try:
            while True:
                sequence = self._arrivals.get(block=block)
                if sequence is not None:
                    self._waiting.append(sequence)
                block = False
        except queue.Empty:
            return

    def _drop_expired(self) -> None:
        for sequence in [s for s in self._waiting if s.expired()]:
            self._waiting.remove(sequence)
            self._left_queue()
            self._finish(sequence, sequence.expired())
        for slot, sequence in list(self._active.items()):
            if reason := sequence.expired():
                del self._active[slot]
                self._finish(sequence, reason)

    def _admit_one(self) -> None:
        free = [slot for slot in range(self.num_slots) if slot not in self._active]
        if not (free and self._waiting):
            return
        sequence, slot = self._waiting.popleft(), free[0]
        self._active[slot] = sequence
        self._left_queue()
        logits = self._model.read_prompt(sequence.prompt, slot)
        self.counters.prompt_tokens += len(sequence.prompt)
        self._give(slot, sequence, *sequence.choose(logits))

    def _left_queue(self) -> None:
        with self._lock:
            self._pending -= 1

    def _step(self) -> None:
        tokens = np.zeros(self.num_slots, np.int32)
        positions = np.zeros(self.num_slots, np.int32)
        for slot, sequence in self._active.items():
            tokens[slot], positions[slot] = sequence.tokens[-1], sequence.position
        self.counters.steps += 1
        if all(sequence.greedy for sequence in self._active.values()):
            chosen = self._model.next_tokens(tokens, positions).tolist()
            for slot, sequence in list(self._active.items()):
                self._give(slot, sequence, chosen[slot])
            return
        logits = self._model.next_logits(tokens, positions)
        for slot, sequence in list(self._active.items()):
            self._give(slot, sequence, *sequence.choose(logits[slot]))

    def _give(self, slot: int, sequence: Sequence, token: int, report: dict | None = None) -> None:
        self.counters.generated_tokens += 1
        if not sequence.take(token, report):
            del self._active[slot]
            self.counters.finished += 1

    def _finish(self, sequence: Sequence, reason: str) -> None:
        if reason == "timeout":
            self.counters.timeouts += 1
        elif reason == "cancelled":
            self.counters.cancelled += 1
        sequence.end(reason)

    def _end_all(self, reason: str) -> None:
        """End the sequences in slots; when the service stops, the waiting ones too."""
        ending = list(self._active.values())
        self._active.clear()
        if self._stopping:
            self._receive(block=False)
            ending += self._waiting
            self._waiting.clear()
        for sequence in ending:
            sequence.end(reason)
