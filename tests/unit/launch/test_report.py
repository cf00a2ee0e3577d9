# SPDX-License-Identifier: Apache-2.0
"""The words about a failed run, and the table of known messages."""

import io
from pathlib import Path

import pytest

from mindformers.launch.report import HINTS, describe_exit, hint_for, shell_code, tail
from mindformers.launch.status import StatusLine, status_text
from tests.helpers import REPO


def test_exit_codes():
    assert describe_exit(3) == "exit code 3"
    assert describe_exit(-9) == "killed by SIGKILL"
    assert describe_exit(-200) == "killed by signal 200"
    assert [shell_code(code) for code in (3, -9, 0)] == [3, 137, 1]


def test_tail_leaves_out_notices_and_progress_bars(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(
        b"==== 2030-01-01 10:00:00 python run.py\nold\nfirst\n\n10%\r20%\r100% done\r\n\xff\xfe odd\n"
        b"[WARNING] DISTRIBUTED(1,f,python):2030 noise\nlast"
    )
    assert tail(log, lines=3) == ["100% done", "\ufffd\ufffd odd", "last"]
    assert tail(log, start=log.stat().st_size - 4) == ["last"]
    log.write_text("[WARNING] DISTRIBUTED(1,f,python):2030 noise\n")
    assert len(tail(log)) == 1
    assert tail(tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (
            "EJ0001: Failed to initialize the HCCP process. Reason: Maybe the last training process is running.",
            "npu-smi",
        ),
        ("EI0006: Getting socket times out. Reason: Remote Rank did not send the data in time.", "first error"),
        ("EI0002: The wait execution of the Notify register times out. Reason: ...", "HCCL_EXEC_TIMEOUT"),
        ("RuntimeError: Allocate memory failed", "batch_size"),
        ("OSError: [Errno 28] No space left on device", "disk"),
        ("libascendcl.so: cannot open shared object file", "CANN"),
        ("error: this machine has no usable Ascend device, or its driver", "--device_target CPU"),
        ("BuildCluster] Topology build timed out., retry(6/3600).", None),  # every start says so while it waits
        ("BuildCluster] Topology build timed out.", "--port"),
        ("Listen] Failed to call bind, url: 127.0.0.1:8118 Address already in use", "--port"),
        ("ValueError: something else", None),
    ],
)
def test_hints(line, part):
    hint = hint_for(f"before\n{line}\nafter")
    assert hint is None if part is None else part in hint


def test_the_documents_explain_every_hint():
    page = (REPO / "docs" / "launch.md").read_text(encoding="utf-8")
    for _, meaning, remedy in HINTS:
        assert meaning in page
        assert remedy in page


class _Rank:
    """A child as the status line sees it."""

    def __init__(self, rank: int, log: Path, code: int | None):
        self.spec = type("Spec", (), {"rank": rank, "log": log})
        self.log_start = 0
        self._code = code

    def poll(self) -> int | None:
        return self._code


def test_status(tmp_path):
    log = tmp_path / "log"
    log.write_text("2030-01-01 - mindformers.x - INFO - { Epoch:[ 1/ 2], loss: 3.1 }\n")
    ranks = [_Rank(4, log, None), _Rank(5, log, None), _Rank(6, log, 0)]
    assert status_text(ranks, 3725) == "[1:02:05] ranks 4-5 running, 6 finished | { Epoch:[ 1/ 2], loss: 3.1 }"
    assert status_text([_Rank(0, tmp_path / "none", None)], 0) == "[0:00:00] ranks 0 running | starting"


def test_a_terminal_gets_one_line_that_is_rewritten(tmp_path, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    line = StatusLine(stream)
    line.update([_Rank(0, tmp_path / "none", None)])
    line.say("restart 1")
    text = stream.getvalue()
    assert "\n" not in text.partition("restart")[0]
    assert text.endswith("\r\033[Krestart 1\n")
    quiet = io.StringIO()
    StatusLine(quiet).update([_Rank(0, tmp_path / "none", None)])
    assert quiet.getvalue() == ""
