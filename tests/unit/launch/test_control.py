# SPDX-License-Identifier: Apache-2.0
"""Launchers of several servers: they start together, refuse each other's mistakes, and fail together."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable

import pytest

from mindformers.errors import ConfigError, DeviceError
from mindformers.launch import control, hosts
from mindformers.launch.control import Head, Identity, Member
from tests.helpers import free_port
from tests.unit.launch.helpers import SLEEP, Running, alive, program, wait_until

SAME = {"rank table": "a", "config": "b"}


def nothing(waiting: str) -> None:
    """A tick that does nothing."""


class InThread:
    """A call in a thread: its result or its error."""

    def __init__(self, call: Callable):
        self.result = self.error = None
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable) -> None:
        try:
            self.result = call()
        except Exception as error:
            self.error = error

    def wait(self) -> "InThread":
        """Wait for its end."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self


@pytest.fixture
def pair():
    port = free_port()
    head = Head("127.0.0.1", port, Identity(0, SAME), {2: "server-b"})
    member = Member("127.0.0.1", port, Identity(2, SAME))
    yield head, member
    member.close(False)
    head.close(False)


def start(head: Head, member: Member, attempt: int = 0, a: bool = False, b: bool = False) -> tuple[bool, bool]:
    """Let both start; what they hear about resuming."""
    other = InThread(lambda: member.gather(attempt, b, nothing))
    mine = head.gather(attempt, a, nothing)
    return mine, other.wait().result


def eventually(side: Head | Member) -> tuple[str, bool]:
    """The trouble a side hears of."""
    found = []
    wait_until(lambda: found.append(side.trouble()) or found[-1])
    return found[-1]


@pytest.mark.parametrize(("a", "b"), [(True, True), (True, False), (False, True)])
def test_all_resume_or_none(pair, a, b):
    assert start(*pair, 1, a, b) == (a and b, a and b)
    assert pair[0].trouble() is None
    assert pair[1].trouble() is None


def test_a_failure_reaches_the_other_side_and_both_start_again(pair):
    head, member = pair
    start(head, member)
    member.tell_failure("rank 2 failed: exit code 1", False)
    assert eventually(head) == ("rank 2 failed: exit code 1", False)
    assert start(head, member, 1, True, True) == (True, True)
    head.tell_failure("rank 0 failed: exit code 3", True)
    assert eventually(member) == ("rank 0 failed: exit code 3", True)


def test_a_late_message_about_an_earlier_attempt_is_not_believed(pair):
    head, member = pair
    start(head, member)
    head.tell_failure("rank 0 failed", False)
    member.tell_failure("rank 2 failed", False)
    assert start(head, member, 1) == (False, False)
    assert member.trouble() is None
    assert head.trouble() is None


def test_a_launcher_that_is_gone(pair):
    head, member = pair
    start(head, member)
    member.close(False)
    assert eventually(head) == ("the launcher of server server-b is gone", True)


def test_the_first_launcher_is_gone(pair):
    head, member = pair
    start(head, member)
    head.close(False)
    assert eventually(member) == ("the launcher of the first server (127.0.0.1) is gone", True)


def test_a_launcher_that_has_done_its_work_is_not_missed(pair):
    head, member = pair
    start(head, member)
    member.close(True)
    for _ in range(5):
        assert head.trouble() is None
    with pytest.raises(DeviceError, match=r"server-b has ended.*no restart"):
        head.gather(1, True, nothing)


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        (Identity(2, SAME | {"config": "other"}), "the config differ"),
        (Identity(5, SAME), "not in the rank table"),
    ],
)
def test_another_config_or_other_ranks_are_refused(identity, message):
    port = free_port()
    head = Head("127.0.0.1", port, Identity(0, SAME), {2: "server-b"})
    member = Member("127.0.0.1", port, identity)
    waiting = InThread(lambda: member.gather(0, False, nothing))
    wait_until(lambda: head.trouble() or waiting.error is not None)
    assert isinstance(waiting.error, ConfigError)
    assert message in str(waiting.error)
    head.close(False)


def test_rubbish_on_the_port_disturbs_nobody(pair):
    head, member = pair
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"hello": []}\n', b'{"hello": 2}\n', b"\xff" * 200_000):
        with socket.create_connection(("127.0.0.1", head._listener.getsockname()[1])) as visitor:
            visitor.settimeout(0.2)
            with contextlib.suppress(OSError):
                visitor.sendall(data)
            for _ in range(3):
                assert head.trouble() is None
    assert start(head, member) == (False, False)


def test_nobody_comes(pair, monkeypatch):
    monkeypatch.setattr(control, "START_SECONDS", 0.0)
    with pytest.raises(DeviceError, match="no launcher has started on server-b"):
        pair[0].gather(0, False, nothing)
    pair[0].close(False)
    with pytest.raises(DeviceError, match=r"no launcher answers at 127.0.0.1"):
        pair[1].gather(0, False, nothing)


def test_a_port_that_is_taken(monkeypatch):
    monkeypatch.setattr(hosts, "PORT_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(DeviceError, match=rf"port {port} of 127.0.0.1 is in use by process {os.getpid()} .*--port"):
            Head("127.0.0.1", port, Identity(0, {}), {})


def test_an_address_of_another_machine():
    with pytest.raises(DeviceError, match="over which the launchers of this job talk, cannot be used"):
        Head("192.0.2.1", free_port(), Identity(0, {}), {})


def test_a_member_that_is_given_the_port_it_calls(monkeypatch):
    """A client may be given the very port it calls: it must not take itself for the first server."""

    def call_oneself(where: tuple[str, int], timeout: float) -> socket.socket:
        connection = socket.socket()
        connection.bind(where)
        connection.connect(where)
        return connection

    def give_up(text: str) -> None:
        raise TimeoutError(text)

    port = free_port()
    monkeypatch.setattr(socket, "create_connection", call_oneself)
    member = Member("127.0.0.1", port, Identity(1, {}))
    with pytest.raises(TimeoutError, match="waiting for the launcher of the first server"):
        member.gather(0, False, give_up)
    Head("127.0.0.1", port, Identity(0, {}), {}).close(True)  # and the port is left free


def test_two_supervisors_fail_and_end_together(tmp_path):
    port = free_port()
    first = Running(tmp_path / "a", {"rank 0": program(0, SLEEP)}, {"head": port, "others": {"1": "server-b"}})
    second = Running(tmp_path / "b", {"rank 1": program(1, SLEEP)}, {"member": port, "first_rank": 1})
    pids = first.pids(0) + second.pids(1)
    os.kill(pids[3], 9)
    code, _, err = second.end()
    assert code == 137
    assert "rank 1 failed first: killed by SIGKILL" in err
    code, _, err = first.end()
    assert code == 1
    assert "another server failed: rank 1 failed: killed by SIGKILL" in err
    wait_until(lambda: not alive(pids))


def test_two_supervisors_restart_together(tmp_path):
    port = free_port()
    at_first = "import os, time\nif not os.path.exists('tried'):\n    open('tried', 'w').close(); "
    extra, member = {"head": port, "others": {"1": "server-b"}}, {"member": port, "first_rank": 1}
    first = Running(tmp_path / "a", {"rank 0": f"{at_first}time.sleep(600)"}, extra, max_restarts=1)
    second = Running(tmp_path / "b", {"rank 1": f"{at_first}raise SystemExit(1)"}, member, max_restarts=1)
    (code, out, err), other = first.end(), second.end()
    assert (code, other[0]) == (0, 0), (out, err, other)
    assert "restart 1 of 1" in out
    assert "restart 1 of 1" in other[1]
