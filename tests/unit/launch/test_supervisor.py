# SPDX-License-Identifier: Apache-2.0
"""Watching over processes: every way in which a job can end, and that nothing outlives it."""

import os
import signal
import subprocess

import pytest

from tests.unit.launch.helpers import SLEEP, Running, alive, program, wait_until

IGNORES_SIGTERM = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nnote('deaf', 1)\n" + SLEEP


def test_a_job_that_ends_well(tmp_path):
    job = Running(tmp_path, {f"rank {i}": f"print('hello from {i}')" for i in range(3)})
    code, _, err = job.end()
    assert (code, err) == (0, "")
    assert (tmp_path / "rank 2.log").read_text().splitlines()[-1] == "hello from 2"
    assert not (tmp_path / "out" / "log" / "launch.json").exists()


def test_a_log_is_appended_to_and_only_the_new_part_is_quoted(tmp_path):
    (tmp_path / "rank 0.log").write_text("words of an earlier run\n")
    code, _, err = Running(tmp_path, {"rank 0": "raise SystemExit('this time')"}).end()
    assert code == 1
    assert "earlier run" not in err
    assert (tmp_path / "rank 0.log").read_text().startswith("words of an earlier run\n==== ")


def test_a_failing_rank_ends_all_and_is_named(tmp_path):
    fails = program(1, "print('\\u00e9 the reason', flush=True); sys.exit(3)")
    job = Running(tmp_path, {"rank 0": program(0, SLEEP), "rank 1": WAIT_FOR_START0 + fails, "scheduler": SLEEPER})
    pids = job.pids(0, 1)
    code, _, err = job.end()
    assert code == 3
    assert "error: rank 1 failed first: exit code 3, after" in err
    assert f"last lines of {tmp_path}/rank 1.log:\n    | \u00e9 the reason" in err
    assert "stopped by the launcher: rank 0, scheduler" in err
    assert f"all logs: {tmp_path}/out/log/rank_*/mindformer.log" in err
    wait_until(lambda: not alive(pids))


SLEEPER = "import time; time.sleep(600)"
WAIT_FOR_START0 = "import os, time\nwhile not os.path.exists(os.environ['PLACE'] + '/pid0'): time.sleep(0.01)\n"


def test_a_killed_rank(tmp_path):
    job = Running(tmp_path, {"rank 0": program(0, SLEEP), "rank 1": program(1, SLEEP)})
    pids = job.pids(0, 1)
    os.kill(pids[3], signal.SIGKILL)
    code, _, err = job.end()
    assert code == 128 + signal.SIGKILL
    assert "rank 1 failed first: killed by SIGKILL" in err
    assert "out of memory" in err
    wait_until(lambda: not alive(pids))


def test_a_rank_that_ignores_sigterm_is_killed(tmp_path):
    programs = {"rank 0": program(0, IGNORES_SIGTERM), "rank 1": program(1, SLEEP)}
    job = Running(tmp_path, programs, grace=0.5)
    pids = job.pids(0, 1)
    wait_until((tmp_path / "deaf").exists)
    os.kill(pids[3], signal.SIGSEGV)
    code, _, err = job.end()
    assert code == 128 + signal.SIGSEGV
    assert "killed by SIGSEGV" in err
    wait_until(lambda: not alive(pids))


def test_a_stopped_rank_is_ended_too(tmp_path):
    job = Running(tmp_path, {"rank 0": program(0, SLEEP), "rank 1": program(1, SLEEP)}, grace=0.5)
    pids = job.pids(0, 1)
    os.kill(pids[1], signal.SIGSTOP)
    os.kill(pids[3], signal.SIGKILL)
    assert job.end()[0] == 137
    wait_until(lambda: not alive(pids))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_leaves_nothing_behind(tmp_path, number):
    job = Running(tmp_path, {"rank 0": program(0, SLEEP), "rank 1": program(1, SLEEP)})
    pids = job.pids(0, 1)
    job.process.send_signal(number)
    code, out, _ = job.end()
    assert code == 128 + number
    assert f"{number.name}: stopping 2 processes" in out
    wait_until(lambda: not alive(pids))
    assert not (tmp_path / "out" / "log" / "launch.json").exists()


def test_killing_the_launcher_kills_ranks_and_their_helpers(tmp_path):
    job = Running(tmp_path, {"rank 0": program(0, IGNORES_SIGTERM), "rank 1": program(1, SLEEP)})
    pids = job.pids(0, 1)
    job.process.kill()
    job.end()
    wait_until(lambda: not alive(pids))


def test_hang_up_is_ignored_below_nohup(tmp_path):
    code = "import signal, sys, runpy; signal.signal(signal.SIGHUP, signal.SIG_IGN); sys.argv = sys.argv[1:]\n"
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    job = Running.__new__(Running)
    started = Running(tmp_path, {"rank 0": program(0, SLEEP)})  # writes the job's file
    started.process.kill()
    started.end()
    (tmp_path / "pid0").unlink(missing_ok=True)
    job.folder = tmp_path
    words = [started.process.args[0], "-c", code, *started.process.args[1:]]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job.process:
        job.pids(0)
        job.process.send_signal(signal.SIGHUP)
        job.process.send_signal(signal.SIGTERM)
        code, out, _ = job.end()
    assert code == 128 + signal.SIGTERM
    assert "SIGHUP" not in out


REPORTS_AND_HANGS = (
    """
import json, time
with open(os.environ["MINDFORMERS_OUTCOME_FILE"], "w") as file:
    json.dump({"time": time.time() - 5, "error": "DataError: x", "exit_code": 2}, file)
"""
    + SLEEP
)


def test_the_rank_that_reported_an_error_is_the_first_even_when_it_cannot_end(tmp_path):
    victim = WAIT_FOR_START0 + "while not os.path.exists(os.environ['PLACE'] + '/rank 0.outcome'): time.sleep(0.01)\n"
    job = Running(tmp_path, {"rank 0": program(0, REPORTS_AND_HANGS), "rank 1": victim + "raise SystemExit(7)"})
    code, _, err = job.end()
    assert code == 2
    assert "rank 0 failed first: exit code 2" in err
    assert "ended after it: rank 1 (exit code 7)" in err


DIES = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
SAYS_AND_DIES = """
import json
with open(os.environ["MINDFORMERS_OUTCOME_FILE"], "w") as file:
    json.dump({"time": 0.0, "exit_code": CODE}, file)
"""


def test_a_rank_that_dies_when_its_work_is_done_has_ended_well(tmp_path):
    done = program(0, SAYS_AND_DIES.replace("CODE", "0") + DIES)
    code, out, err = Running(tmp_path, {"rank 0": done, "rank 1": "pass"}).end()
    assert (code, err) == (0, "")
    assert "note: rank 0 had finished its work and was killed by SIGSEGV on its way out" in out


@pytest.mark.parametrize("said", ["", SAYS_AND_DIES.replace("CODE", "1")])
def test_a_rank_that_dies_before_its_work_is_done_has_failed(tmp_path, said):
    code, out, err = Running(tmp_path, {"rank 0": program(0, said + DIES)}).end()
    assert code == 128 + signal.SIGSEGV
    assert "rank 0 failed first: killed by SIGSEGV" in err
    assert "note:" not in out


def test_the_scheduler_can_be_the_first(tmp_path):
    code, _, err = Running(tmp_path, {"rank 0": SLEEPER, "scheduler": "raise SystemExit(9)"}).end()
    assert code == 9
    assert "scheduler failed first: exit code 9" in err


def test_a_scheduler_that_does_not_leave_is_ended(tmp_path):
    code, _, err = Running(tmp_path, {"scheduler": SLEEPER, "rank 0": "pass"}, grace=0.2).end()
    assert (code, err) == (0, "")


FAILS_ONCE = """
import os, sys
place = os.environ["PLACE"]
if os.path.exists(f"{place}/tried"):
    print("resumed:", os.environ["RESUME"]); sys.exit(0)
open(f"{place}/tried", "w").close(); sys.exit(%d)
"""


@pytest.mark.parametrize("saved", [True, False])
def test_restart(tmp_path, saved):
    if saved:
        (tmp_path / "saved").touch()
    code, out, err = Running(tmp_path, {"rank 0": FAILS_ONCE % 1, "rank 1": "pass"}, max_restarts=2).end()
    assert code == 0
    assert "rank 0 failed first" in err
    assert "error:" not in err
    assert "restart 1 of 2, " + ("from the last complete" if saved else "from the beginning") in out
    assert (tmp_path / "rank 0.log").read_text().endswith(f"resumed: {saved}\n")


def test_restarts_run_out(tmp_path):
    code, out, err = Running(tmp_path, {"rank 0": "raise SystemExit(5)"}, max_restarts=2).end()
    assert code == 5
    assert out.count("restart ") == 2
    assert err.count("rank 0 failed first") == 3
    assert err.count("error:") == 1


def test_a_wrong_configuration_is_not_tried_again(tmp_path):
    code, out, _ = Running(tmp_path, {"rank 0": FAILS_ONCE % 2}, max_restarts=2).end()
    assert code == 2
    assert "restart" not in out


def test_a_program_that_does_not_exist(tmp_path):
    (tmp_path / "rank 0.log").mkdir()
    code, _, err = Running(tmp_path, {"rank 0": "pass"}).end()
    assert code == 1
    assert "cannot be written" in err
