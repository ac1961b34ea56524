"""Processes of a run do not stay when their launcher is killed, however early."""

from __future__ import annotations

import signal
import subprocess
import sys

SCRIPT = """
import ctypes, os, time
from sandbox_rl.training.stopping import LAUNCHER, end_with_launcher

ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # those who lose their parent become ours
for late in (False, True):
    reader, writer = os.pipe()
    launcher = os.fork()
    if launcher == 0:
        os.environ |= {LAUNCHER: str(os.getpid()), "WORLD_SIZE": "2"}
        if os.fork() == 0:
            parent = os.getppid()
            if not late:
                end_with_launcher()
            os.write(writer, str(os.getpid()).encode())
            while late and os.getppid() == parent:
                time.sleep(0.01)
            try:
                end_with_launcher()
            except SystemExit as ended:
                os._exit(ended.code)
            time.sleep(60)
            os._exit(0)
        time.sleep(60)
        os._exit(0)
    process = int(os.read(reader, 20))
    os.kill(launcher, 9)
    os.waitpid(launcher, 0)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
"""


def test_a_process_ends_with_its_launcher_also_if_that_is_gone_before_it_is_ready() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert ran.stdout.split() == [str(-signal.SIGTERM), str(128 + signal.SIGTERM)], ran.stderr
