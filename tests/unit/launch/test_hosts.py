# SPDX-License-Identifier: Apache-2.0
"""Ports, addresses and the record of living processes."""

import json
import os
import socket
import subprocess
import sys

import pytest

from mindformers.errors import ConfigError, DeviceError
from mindformers.launch.hosts import (
    RunRecord,
    birth,
    command_of,
    is_local,
    port_holder,
    port_is_free,
    reserve_port,
    wait_for_port,
)
from tests.unit.launch.helpers import SLEEP, Running, program, wait_until


def test_addresses_of_this_machine():
    assert is_local("127.0.0.1")
    assert is_local("127.0.0.2")
    assert is_local("192.0.2.1") is False  # reserved for documentation, nobody's
    assert is_local("no-such-host.invalid") is None
    assert is_local("\u00e9" * 80) is None


def test_a_busy_port_is_named_with_its_process():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not port_is_free("127.0.0.1", port)
        assert port_holder(port) == os.getpid()
        with pytest.raises(DeviceError, match=rf"port {port} of 127\.0\.0\.1 .* process {os.getpid()} .*--port"):
            wait_for_port("127.0.0.1", port, 0.0)
    wait_for_port("127.0.0.1", port, 0.0)


def test_a_reserved_port_is_for_a_server_alone():
    with reserve_port("127.0.0.1") as reserved, socket.socket() as another:
        address = reserved.getsockname()
        assert port_is_free(*address)
        with pytest.raises(OSError, match="in use"):  # as a reservation or a connection would ask for it
            another.bind(address)
        with socket.create_server(address):
            assert not port_is_free(*address)


def test_birth_names_a_process_for_good():
    assert birth(os.getpid()) == birth(os.getpid())
    process = subprocess.Popen([sys.executable, "-S", "-c", "pass"])
    wait_until(lambda: birth(process.pid) is None)  # dead, though not yet waited for
    process.wait()
    assert birth(process.pid) is None
    assert command_of(process.pid) == "command unknown"


def test_two_launchers_in_one_folder(tmp_path):
    job = Running(tmp_path / "a", {"rank 0": program(0, SLEEP)})
    path = tmp_path / "a" / "out" / "log" / "launch.json"
    job.pids(0)
    wait_until(lambda: '"rank 0"' in path.read_text())
    with pytest.raises(DeviceError, match=rf"still alive: launcher \(process {job.process.pid}\), rank 0 .*kill"):
        RunRecord(path)
    assert path.exists()
    job.process.terminate()
    job.end()
    assert not path.exists()


def test_ranks_that_outlived_their_launcher_are_named(tmp_path):
    path = tmp_path / "launch.json"
    sleeper = subprocess.Popen(["sleep", "600"])
    entries = [{"name": "launcher", "pid": sleeper.pid, "birth": 1},  # its number was taken by another process
               {"name": "rank 3", "pid": sleeper.pid, "birth": birth(sleeper.pid)}]  # fmt: skip
    path.write_text(json.dumps({"host": socket.gethostname(), "processes": entries}))
    with pytest.raises(DeviceError, match=rf"rank 3 \(process {sleeper.pid}\).*kill -9 {sleeper.pid}"):
        RunRecord(path)
    sleeper.kill()
    sleeper.wait()
    record = RunRecord(path)
    assert record.leftover
    record.close()
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "elsewhere", "processes": [{}]}', '{"processes": 3}'])
def test_a_damaged_record_stops_nobody(tmp_path, content):
    path = tmp_path / "launch.json"
    path.write_text(content)
    RunRecord(path).close()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "log").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be written"):
        RunRecord(tmp_path / "log" / "launch.json")
