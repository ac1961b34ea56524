"""A scoring worker: a warm parent that forks a child for every answer and never touches one.

The parent speaks with the trainer on a standing socket. For each job it is handed the end of a socket
that was made for this job alone, gives it to a child, and says how the child ended. Items and verdicts
pass between child and trainer directly: the parent reads none, so nothing of an answer can reach the
next, and no child can speak for another. Where the parent is process 1 of its sandbox, no child can
signal it, and everything else in the sandbox is killed after each job.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from typing import Any, NoReturn

JOB_FOLLOWS, SLOWED, FULL_SPEED, PREPARE = b"J", b"S", b"F", b"P"
"""What the trainer sends, one byte each: a job comes; leave the processors to others, what runs now and what
comes later; and not any longer; load what a data set's verifier needs (a byte and its name follow)."""

CONFIG = struct.Struct("<I")
"""Before the configuration, and before what answers it: length of the JSON that follows."""

JOB = struct.Struct("<QddId")
"""Number, processor seconds, wall seconds, MiB of memory, processor seconds of one item; one descriptor."""

REPORT = struct.Struct("<QBid")
"""Number, how the child ended (below), its exit code (negative: signal), processor seconds."""

_ALONE = 71
"""Exit code of a process with several answers where one needs a process of its own."""

_SHARE = 8
"""Of the memory of one answer, the part that the answers before it in a process may have left occupied."""

_WAITS = 0.1
"""Seconds that a process may wait for anything but a processor, at least."""

WARM_S = 0.005
"""Processor seconds more that the first item of a process may take: it pays for the pages that they share."""

_RUNS_S, _STOPS_S = 0.005, 0.045
"""Seconds that a slowed process runs and is stopped, in turn."""

EXITED, OUT_OF_CPU, OUT_OF_TIME = 0, 1, 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38


def main() -> None:
    """Serve until the trainer goes away; `sys.argv[1]` is the descriptor of the standing socket."""
    control = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(control.fileno(), False)
    config = json.loads(_receive(control, *CONFIG.unpack(_receive(control, CONFIG.size))))
    try:
        worker = _Worker(control, config)
    except Exception as error:
        _answer(control, {"error": f"{type(error).__name__}: {error}"[:1000]})
        return
    _answer(control, {"reads": worker.reads})
    worker.serve()


class _Worker:
    def __init__(self, control: socket.socket, config: dict[str, Any]) -> None:
        from sandbox_rl.rewards.scoring import warm

        os.chdir("/")
        sys.path[:0] = [place for place in config["path"] if place not in sys.path]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        self.control = control
        self.first = os.getpid() == 1
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # no child may look into this process
        self.libc.prctl(_PR_SET_PDEATHSIG, signal.SIGCONT, 0, 0, 0)  # stopped, it would not see its end
        steps = bytes.fromhex(config["filter"])
        self.filter = _FilterProgram(len(steps) // 8, steps) if steps else None
        self.slowed = False
        self.reads = warm(config["scorers"])
        gc.collect()
        gc.freeze()  # the collector would write to every object, and so copy every page in every child
        gc.disable()

    def serve(self) -> None:
        """One job after another."""
        while True:
            kind, descriptors, _, _ = socket.recv_fds(self.control, 1, 1)
            if not kind:
                return
            if kind == PREPARE:
                self.prepare(_receive(self.control, _receive(self.control, 1)[0]).decode("utf-8", "replace"))
                continue
            if kind != JOB_FOLLOWS:
                self.slowed = kind == SLOWED
                continue
            number, cpu, wall, memory_mb, item_cpu = JOB.unpack(_receive(self.control, JOB.size))
            started = time.monotonic()
            pid = os.fork()
            if pid == 0:
                self.child(descriptors[0], cpu, memory_mb, item_cpu)
            os.close(descriptors[0])
            how = self.watch(pid, cpu, started + wall)
            self.control.sendall(REPORT.pack(number, how, *self.end(pid)))

    def prepare(self, dataset: str) -> None:
        """Load once here what every child would load again."""
        from sandbox_rl.rewards.gym import prepare

        prepare(dataset)
        gc.freeze()

    def watch(self, pid: int, cpu: float, deadline: float) -> int:
        """Wait until a child ends or its time is over, and which of them it was.

        Its time is `cpu` seconds on processors, and as much of waiting for anything but a processor (but at
        least _WAITS: the trainer sends what is to be scored after the process was started). While it is
        slowed, the time in which it is stopped counts for nothing.
        """
        clock = (~pid << 3) | 2  # CPUCLOCK_SCHED of a process, as clock_getcpuclockid(3) makes it
        handle = os.pidfd_open(pid)
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        poller.register(self.control, select.POLLIN)
        started, stopped = time.monotonic(), 0.0
        try:
            while True:
                now = time.monotonic()
                try:
                    left = cpu - time.clock_gettime(clock)
                    idle = now - started - stopped - waited_for_processor(pid) - max(cpu, _WAITS)
                except OSError:
                    left, idle = 1.0, 0.0  # it has just ended
                if left <= 0 or idle > 0 or now > deadline + stopped:
                    return OUT_OF_CPU if left <= 0 else OUT_OF_TIME
                seconds = min(left, deadline - now)
                if self.ended(poller, handle, min(seconds, _RUNS_S) if self.slowed else seconds):
                    return EXITED
                if self.slowed:
                    began = time.monotonic()
                    self.signal(pid, signal.SIGSTOP)
                    ended = self.ended(poller, handle, _STOPS_S)
                    self.signal(pid, signal.SIGCONT)
                    if ended:
                        return EXITED
                    stopped += time.monotonic() - began
        finally:
            os.close(handle)

    def ended(self, poller: select.poll, handle: int, seconds: float) -> bool:
        """Wait so long for the end of a child; what the trainer says of its speed ends that too."""
        for descriptor, _ in poller.poll(max(1.0, seconds * 1000)):
            if descriptor == handle:
                return True
            self.slowed = _receive(self.control, 1) == SLOWED
        return False

    def signal(self, pid: int, number: int) -> None:
        """Signal a child, and where no other process is in the sandbox whatever it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1 if self.first else pid, number)

    def end(self, pid: int) -> tuple[int, float]:
        """Kill and reap whatever there is; (exit code of the child, its processor seconds)."""
        self.signal(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        while self.first:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
        return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime

    def child(self, descriptor: int, cpu: float, memory_mb: int, item_cpu: float) -> NoReturn:
        """Read items, write a verdict for each, end. Whatever happens here stays here."""
        try:
            os.dup2(descriptor, 3)
            os.closerange(4, 1 << 16)
            null = os.open("/dev/null", os.O_RDWR)
            for standard in (0, 1, 2):
                os.dup2(null, standard)
            os.close(null)
            most = _size() + (memory_mb << 20) // _SHARE
            self.confine(cpu, memory_mb)
            with os.fdopen(3, "rb", closefd=False) as reader:
                items = json.loads(reader.read())
            from sandbox_rl.rewards.scoring import judge_item

            if len(items) > 1:
                sys.addaudithook(_stop_at_evaluation)
            for number, item in enumerate(items):
                if item_cpu:
                    # By default the signal kills: the answers before this one have their verdicts.
                    signal.setitimer(signal.ITIMER_PROF, item_cpu + (0.0 if number else WARM_S))
                if len(items) > 1 and _size() > most:
                    os._exit(_ALONE)  # the answers before it have left it too little memory
                verdict = judge_item(item)
                if len(items) > 1 and verdict["kind"] != "value":
                    os._exit(_ALONE)  # an answer before it may be to blame
                _write(3, json.dumps(verdict, allow_nan=False).encode() + b"\n")
        except BaseException:
            os._exit(70)
        os._exit(0)

    def confine(self, cpu: float, memory_mb: int) -> None:
        """Bound memory, time and system calls."""
        used = _size()
        seconds = int(cpu) + 2
        for kind, value in (
            (resource.RLIMIT_AS, used + (memory_mb << 20)),
            (resource.RLIMIT_CPU, seconds),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, 0),
        ):
            resource.setrlimit(kind, (value, value))
        if self.filter is not None:
            self.libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            if self.libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(self.filter), 0, 0) != 0:
                raise OSError(ctypes.get_errno(), "the system-call filter cannot be loaded")


def _size() -> int:
    """Bytes of this process's address space."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def waited_for_processor(pid: int) -> float:
    """Seconds that a process could have run but had no processor, 0 where the kernel does not count.

    Raises:
        OSError: there is no such process.
    """
    with open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
        return int(file.read().split()[1]) / 1e9


def _stop_at_evaluation(event: str, arguments: tuple[Any, ...]) -> None:
    # Raised by the interpreter before the first instruction of a text that was compiled just now.
    if event == "exec":
        name: str = arguments[0].co_filename
        if name.startswith("<") and not name.startswith("<frozen"):
            os._exit(_ALONE)


class _FilterProgram(ctypes.Structure):
    """`struct sock_fprog` of a filter; it keeps the bytes that it points to."""

    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def _receive(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        if not (more := connection.recv(length - len(data))):
            raise SystemExit(0)  # the trainer has gone
        data += more
    return data


def _answer(connection: socket.socket, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    connection.sendall(CONFIG.pack(len(data)) + data)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
