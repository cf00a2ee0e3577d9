# SPDX-License-Identifier: Apache-2.0
"""Addresses, ports and processes of this machine: who holds a port, and is an earlier run still alive."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mindformers.errors import ConfigError, DeviceError

PORT_SECONDS = 15.0
"""How long a launcher waits for a port that an earlier run is about to leave."""

_LISTEN = "0A"


def is_local(address: str) -> bool | None:
    """Whether an address or name belongs to this machine; None when it does not resolve."""
    try:
        family, kind, _, _, target = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        return None
    with socket.socket(family, kind) as probe:
        try:
            probe.bind(target)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return False
            raise
    return True


def port_is_free(address: str, port: int) -> bool:
    """Whether a server may listen there now; a connection that is only fading away does not count."""
    family, kind, _, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(target)
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def reserve_port(address: str) -> socket.socket:
    """Keep a port nobody uses, for a server that another process will start there.

    The socket is bound but does not listen. As long as it is open the system gives the port to nobody that asks for any
    port, and a second reservation cannot have it; a server that allows the reuse of addresses, as MindSpore's scheduler
    and :func:`port_is_free` do, may still bind and listen.
    """
    family, kind, _, _, target = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
    reserved = socket.socket(family, kind)
    reserved.bind(target)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # from now on: two reservations stay apart
    return reserved


def wait_for_port(address: str, port: int, seconds: float) -> None:
    """Wait until a port is free.

    Raises:
        DeviceError: somebody listens there for longer than ``seconds``; the message names the process.
    """
    deadline = time.monotonic() + seconds
    while not port_is_free(address, port):
        if time.monotonic() > deadline:
            holder = port_holder(port)
            who = f"process {holder} ({command_of(holder)})" if holder else "a process of another user"
            advice = f"end it with: kill {holder}" if holder else "ask for it with: ss -ltnp"
            raise DeviceError(
                f"port {port} of {address} is in use by {who}. If that is left over from an earlier run, "
                f"{advice}; otherwise take another port on every host: --port {port + 10}"
            )
        time.sleep(0.2)


def port_holder(port: int) -> int | None:
    """Process that listens on a port, as far as we may see it."""
    wanted = f":{port:04X}"
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[1].endswith(wanted) and fields[3] == _LISTEN:
                    inodes.add(f"socket:[{fields[9]}]")
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            for entry in folder.iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(entry) in inodes:
                        return int(folder.parent.name)
    return None


def command_of(pid: int | None) -> str:
    """The command line of a process, shortened."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "command unknown"
    return words if len(words) <= 120 else words[:117] + "..."


def birth(pid: int) -> int | None:
    """When a process started, in clock ticks since boot: with the pid it names one process for good.

    None for a process that does not exist or is dead and not yet waited for.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


class RunRecord:
    """The file that says which processes of a run live; one launcher at a time may own it.

    Args:
        path: the file; it is locked while the launcher lives and removed at its end.

    Raises:
        DeviceError: another launcher owns it, or processes of an earlier run are alive.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - open as long as the run lasts
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error
        locked = self._lock()
        self._file.seek(0)
        content = self._file.read()
        alive = [(name, pid) for name, pid, born in _entries(content) if birth(pid) == born]
        if not locked or alive:
            self._file.close()
            raise DeviceError(_still_running(path, alive))
        self.leftover = bool(content.strip())
        self.write([])

    def _lock(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True  # a file system without locks: the list of processes has to do
        return True

    def write(self, processes: Sequence[tuple[str, int]]) -> None:
        """Note the processes that live now, ``(name, pid)``, this launcher included."""
        listed = [{"name": n, "pid": p, "birth": birth(p)} for n, p in [("launcher", os.getpid()), *processes]]
        self._file.seek(0)
        self._file.truncate()
        json.dump({"host": socket.gethostname(), "processes": listed}, self._file)
        self._file.flush()

    def close(self) -> None:
        """The run is over."""
        self.path.unlink(missing_ok=True)
        self._file.close()


def _entries(content: str) -> Iterator[tuple[str, int, int]]:
    try:
        record = json.loads(content)
        entries = record["processes"] if record["host"] == socket.gethostname() else []
        yield from [(str(e["name"]), int(e["pid"]), int(e["birth"] or 0)) for e in entries]
    except (ValueError, KeyError, TypeError):
        return  # empty or cut: nothing is known to live


def _still_running(path: Path, alive: list[tuple[str, int]]) -> str:
    listed = ", ".join(f"{name} (process {pid})" for name, pid in alive) or "its launcher"
    kill = f"end it with: kill {alive[0][1]}" if alive and alive[0][0] == "launcher" else (
        f"end it with: kill -9 {' '.join(str(pid) for _, pid in alive)}" if alive else "wait for it"
    )  # fmt: skip
    return (
        f"an earlier run writes to {path.parent.parent} and is still alive: {listed}. "
        f"Let it finish, or {kill}; or give this run another folder with --output_dir DIR"
    )
