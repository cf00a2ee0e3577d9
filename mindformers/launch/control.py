# SPDX-License-Identifier: Apache-2.0
"""How the launchers of several servers act as one: they start together, and a failure on one stops all.

The first server's launcher listens one port above the job's meeting point; the others connect to it. Messages are
lines of JSON: ``hello`` (who, for which attempt, with which table and config), ``go``, ``fail`` and ``done``. A
connection that closes before ``done`` means that a launcher is gone.
"""

import errno
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mindformers.errors import ConfigError, DeviceError
from mindformers.launch import hosts
from mindformers.tools.rank_table import spans

START_SECONDS = 1800.0  # people start the other servers by hand
AGAIN_SECONDS = 300.0
_LONGEST_LINE = 64 << 10


@dataclass(frozen=True)
class Identity:
    """Who a launcher is and what must be the same on all servers.

    Args:
        first_rank: the first rank it starts.
        settings: name -> digest of what must agree, as ``{"rank table": "ab12..."}``.
    """

    first_rank: int
    settings: Mapping[str, str]


class Alone:
    """The launcher of a job on one server: nobody to wait for."""

    alone = True

    def gather(self, attempt: int, resumable: bool, tick: Callable[[str], None]) -> bool:
        """Whether all servers can resume: this one is all."""
        return resumable

    def trouble(self) -> tuple[str, bool] | None:
        """No other server can fail."""
        return None

    def tell_failure(self, text: str, final: bool) -> None:
        """Nobody to tell."""

    def close(self, well: bool) -> None:
        """Nothing to close."""


class _Line:
    """One connection: JSON lines in both directions, never blocking."""

    def __init__(self, connection: socket.socket):
        connection.setblocking(False)
        self._socket = connection
        self._received = b""
        self.closed = False
        self.done = False
        self.peer: int | None = None

    def send(self, **message: Any) -> None:
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.closed = True

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have arrived; a line that is none of ours closes the connection."""
        while not self.closed:
            try:
                part = self._socket.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                part = b""
            self.closed = not part
            self._received += part
        *lines, self._received = self._received.split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            messages = [None]
        if len(self._received) > _LONGEST_LINE or not all(isinstance(m, dict) for m in messages):
            self.close()
            return []
        self.done = self.done or any("done" in message for message in messages)
        return messages

    def close(self) -> None:
        self.closed = True
        self._socket.close()


class Head:
    """The first server's side.

    Args:
        address, port: where to listen.
        identity: this launcher's.
        others: first rank -> address of each further server.
    """

    alone = False

    def __init__(self, address: str, port: int, identity: Identity, others: Mapping[int, str]):
        self._identity, self._others = identity, dict(others)
        self._lines: list[_Line] = []
        self._hello: dict[int, dict[str, Any]] = {}
        self._ended: set[int] = set()
        self._attempt = -1
        family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
        try:
            hosts.wait_for_port(address, port, hosts.PORT_SECONDS)  # raises with the process that listens there
            self._listener = socket.create_server((address, port), family=family, backlog=64)
        except OSError as error:
            raise DeviceError(
                f"port {port} of {address}, over which the launchers of this job talk, cannot be used: "
                f"{error.strerror}. Take another --port on every server"
            ) from error
        self._listener.setblocking(False)

    def gather(self, attempt: int, resumable: bool, tick: Callable[[str], None]) -> bool:
        """Wait for the other servers, let all start, and say whether all can resume.

        Args:
            attempt: 0, 1, 2 ...: how often the job was started before.
            resumable: whether this server has a complete checkpoint to go on from.
            tick: called while waiting with what is waited for; may raise to give up.

        Raises:
            ConfigError: another server was started with other settings.
            DeviceError: a launcher is gone, or does not come.
        """
        self._attempt = attempt
        deadline = time.monotonic() + (AGAIN_SECONDS if attempt else START_SECONDS)
        while missing := self._missing():
            problem = self.trouble()
            if problem and problem[1]:
                raise DeviceError(problem[0])
            ended = [self._others[rank] for rank in missing if rank in self._ended]
            if ended:
                raise DeviceError(f"the launcher of server {ended[0]} has ended, its ranks were done: no restart")
            names = ", ".join(f"{self._others[rank]} (its ranks start at {rank})" for rank in missing)
            if time.monotonic() > deadline:
                raise DeviceError(f"no launcher has started on {names}; give the command of each server")
            tick(f"waiting for the launcher of {names}")
        resume = resumable and all(hello.get("resumable") for hello in self._hello.values())
        self._broadcast(go=attempt, resume=resume)
        return resume

    def _missing(self) -> list[int]:
        return [rank for rank in self._others if self._hello.get(rank, {}).get("attempt") != self._attempt]

    def trouble(self) -> tuple[str, bool] | None:
        """A failure on another server: its text, and whether it ends the job for good."""
        self._accept()
        found = None
        for line in self._lines:
            for message in line.receive():  # all of them: a greeting for the next attempt may follow a failure
                if "hello" in message:
                    self._greet(line, message)
                elif "fail" in message and message.get("attempt", -1) >= self._attempt:
                    self._broadcast(but=line, **message)
                    found = found or (str(message["fail"]), bool(message.get("final")))
        if found:
            return found
        self._ended |= {line.peer for line in self._lines if line.done and line.peer is not None}
        gone = [line.peer for line in self._lines if line.closed and not line.done and line.peer is not None]
        self._lines = [line for line in self._lines if not line.closed]
        if gone:
            self.tell_failure(f"the launcher of {self._others[gone[0]]} is gone", True)
            return f"the launcher of server {self._others[gone[0]]} is gone", True
        return None

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._lines.append(_Line(connection))

    def _greet(self, line: _Line, message: dict[str, Any]) -> None:
        rank, settings = message["hello"], message.get("settings")
        if not isinstance(rank, int) or not isinstance(settings, dict):
            line.close()
            return
        taken = any(other.peer == rank and other is not line and not other.closed for other in self._lines)
        if rank not in self._others or taken:
            refused = f"ranks from {rank} on are already started or not in the rank table"
        else:
            wrong = [name for name, value in self._identity.settings.items() if settings.get(name) != value]
            refused = f"the {' and the '.join(wrong)} differ from those of the first server" if wrong else ""
        if refused:
            line.send(refuse=refused)
            line.close()
            return
        line.peer = rank
        self._hello[rank] = message

    def _broadcast(self, but: _Line | None = None, **message: Any) -> None:
        for line in self._lines:
            if line is not but and line.peer is not None:
                line.send(**message)

    def tell_failure(self, text: str, final: bool) -> None:
        """Tell the other servers that this one failed."""
        self._broadcast(fail=text, attempt=self._attempt, final=final)

    def close(self, well: bool) -> None:
        """End; ``well`` tells the others that nothing is wrong."""
        if well:
            self._broadcast(done=True)
        for line in self._lines:
            line.close()
        self._listener.close()


def _connect(where: tuple[str, int]) -> socket.socket:
    """A connection to the first server.

    The system may give a client the very port it calls, which then talks to itself (a simultaneous open) and keeps the
    server from listening there.
    """
    connection = socket.create_connection(where, timeout=2)
    if connection.getsockname() == connection.getpeername():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # free the port at once
        connection.close()
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    return connection


class Member:
    """The side of every other server.

    Args:
        address, port: of the first server's launcher.
        identity: this launcher's.
    """

    alone = False

    def __init__(self, address: str, port: int, identity: Identity):
        self._where, self._identity = (address, port), identity
        self._line: _Line | None = None
        self._attempt = -1
        self._go: dict[str, Any] | None = None

    def gather(self, attempt: int, resumable: bool, tick: Callable[[str], None]) -> bool:
        """Wait until the first server lets all start; as :meth:`Head.gather`."""
        self._attempt, self._go = attempt, None
        deadline = time.monotonic() + (AGAIN_SECONDS if attempt else START_SECONDS)
        where = f"{self._where[0]}:{self._where[1]}"
        while self._line is None:
            try:
                self._line = _Line(_connect(self._where))
            except OSError as error:
                if time.monotonic() > deadline:
                    raise DeviceError(f"no launcher answers at {where}: {error}. Start the first server") from error
                tick(f"waiting for the launcher of the first server at {where}")
        self._line.send(
            hello=self._identity.first_rank,
            attempt=attempt,
            resumable=resumable,
            settings=dict(self._identity.settings),
        )
        while self._go is None:
            problem = self.trouble()
            if problem and problem[1]:
                raise DeviceError(problem[0])
            if time.monotonic() > deadline:
                raise DeviceError(f"the launcher at {where} does not let this one start: is every server started?")
            tick("waiting for the other servers")
        return bool(self._go["resume"])

    def trouble(self) -> tuple[str, bool] | None:
        """A failure on another server: its text, and whether it ends the job for good."""
        found = None
        for message in self._line.receive():
            if message.get("go") == self._attempt:
                self._go = message
            elif "refuse" in message:
                raise ConfigError(
                    f"the first server refuses ranks {spans([self._identity.first_rank])}...: {message['refuse']}"
                )
            elif "fail" in message and message.get("attempt", -1) >= self._attempt:
                found = found or (str(message["fail"]), bool(message.get("final")))
        if found:
            return found
        if self._line.closed and not self._line.done:
            return f"the launcher of the first server ({self._where[0]}) is gone", True
        return None

    def tell_failure(self, text: str, final: bool) -> None:
        """Tell the first server, which tells the others."""
        if self._line is not None:
            self._line.send(fail=text, attempt=self._attempt, final=final)

    def close(self, well: bool) -> None:
        """End; ``well`` tells the first server that nothing is wrong."""
        if self._line is not None:
            if well:
                self._line.send(done=True)
            self._line.close()
