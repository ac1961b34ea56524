"""The supervisor of a managed server, here of shells: it needs no vLLM."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from sandbox_rl.policies.vllm.launch import PLUGIN
from tests.processes import alive


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_supervisor_takes_everything_down_with_the_run(tmp_path, number):
    """Also what left its session and its parent, as engines do."""
    directory = tmp_path / "directory"
    directory.mkdir()
    pids = tmp_path / "pids"
    command = f"(setsid sh -c 'echo $$ >>{pids}; sleep 300' &) ; echo $$ >>{pids}; sleep 300 & sleep 300"
    supervisor = str(PLUGIN / "sandbox_rl_supervise.py")
    run = (
        "import subprocess,sys,time\n"
        f"p=subprocess.Popen([sys.executable,'-I','-S',{supervisor!r},{str(directory)!r},"
        f"'sh','-c',{command!r}],stdin=subprocess.PIPE,start_new_session=True)\n"
        "print(p.pid,flush=True)\ntime.sleep(300)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", run], stdout=subprocess.PIPE, text=True)
    try:
        pid = int(parent.stdout.readline())
        deadline = time.monotonic() + 60
        while not pids.exists() or len(pids.read_text().split()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        started = [int(pid) for pid in pids.read_text().split()]
        assert all(map(alive, started))
        parent.send_signal(number)
        parent.wait(60)
        deadline = time.monotonic() + 60
        while any(map(alive, [*started, pid])) or directory.exists():
            assert time.monotonic() < deadline, [p for p in (*started, pid) if alive(p)]
            time.sleep(0.02)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
