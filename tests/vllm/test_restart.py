"""A server that fails, dies or is left behind."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time

import pytest

from sandbox_rl.errors import EngineFault
from sandbox_rl.policies.vllm.launch import PLUGIN
from tests.processes import alive
from tests.vllm.support import PROMPT, Broken, ask, disturb, front, gap

SAME = 1e-5


def test_a_broken_transfer_is_never_sampled_from_and_a_restart_serves_the_last_good_weights(shared):
    disturb(shared.model, seed=7)
    shared.publish()
    good, version = copy.deepcopy(shared.model), shared.weights.version.value
    (server,) = shared.server.servers

    disturb(shared.model, seed=8)
    with pytest.raises(EngineFault, match="weight transfer to"):
        shared.weights.publish(Broken(shared.model), version + 1)
    assert shared.loop.run(server.call("GET", "/is_paused")) == {"is_paused": True}
    assert shared.weights.version.value == version
    with pytest.raises((EngineFault, TimeoutError)):
        ask(shared, timeout=2.0)

    (pid,) = front(shared)
    os.kill(pid, signal.SIGKILL)
    action = ask(shared, timeout=240.0)  # waits for the restart within the episode's time
    assert gap(good, PROMPT, action) < SAME
    assert action.weight_version == version
    shared.publish()
    assert gap(shared.model, PROMPT, ask(shared)) < SAME


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
        deadline = time.monotonic() + 20
        while not pids.exists() or len(pids.read_text().split()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        started = [int(pid) for pid in pids.read_text().split()]
        assert all(map(alive, started))
        parent.send_signal(number)
        parent.wait(10)
        deadline = time.monotonic() + 10
        while any(map(alive, [*started, pid])) or directory.exists():
            assert time.monotonic() < deadline, [p for p in (*started, pid) if alive(p)]
            time.sleep(0.02)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
