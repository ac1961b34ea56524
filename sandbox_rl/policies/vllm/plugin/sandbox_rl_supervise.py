"""Runs a command and kills all that it became when the parent goes away, however it goes.

    python -I -S sandbox_rl_supervise.py DIRECTORY COMMAND...

The parent holds the other end of standard input. Its death closes it, a SIGKILL too, and then every
descendant of the command is killed: an inference server forks engines that outlive their front end.
DIRECTORY, the folder of its socket, is removed at the end.
Linux only; standard library only.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PATIENCE_S = 10.0
"""Seconds that SIGKILL may take to empty the tree."""


def main(directory, command):
    """Run the command; its exit code, or 0 when the parent went first."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGCONT, 0, 0, 0)  # stopped, it would not see the parent go
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans come to us, so that none is lost sight of
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the parent's to answer
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    me = os.getpid()

    def die_with_supervisor():
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != me:
            os._exit(1)

    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_supervisor)
    pidfd = os.pidfd_open(child.pid)
    try:
        poll = select.poll()
        poll.register(0, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if pidfd in ready:
                code = child.wait()
                return code if code >= 0 else 128 - code  # by a signal, as shells say it
            if 0 in ready and not os.read(0, 4096):
                return 0
    finally:
        _kill_descendants(child)
        shutil.rmtree(directory, ignore_errors=True)


def _kill_descendants(child):
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        alive = _descendants()
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        child.poll()
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    break
            except ChildProcessError:
                break
        if not alive:
            return
        time.sleep(0.02)


def _descendants():
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError):
                continue
    found, front = set(), {os.getpid()}
    while front:
        front = {pid for pid, parent in parents.items() if parent in front and pid not in found}
        found |= front
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
