"""Which processes there are."""

from __future__ import annotations

import atexit
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil


def tree_of(top: int) -> set[int]:
    """A process and its descendants; none once it is gone."""
    try:
        process = psutil.Process(top)
        return {top, *(below.pid for below in process.children(recursive=True))}
    except psutil.NoSuchProcess:
        return set()


def commands() -> dict[int, list[str]]:
    """Process id → its words, of all there are.

    By psutil, since a process may end between any two looks at it: even a pattern over `/proc` then fails.
    """
    return {found.pid: found.info["cmdline"] or [] for found in psutil.process_iter(["cmdline"])}


def command(pid: int) -> list[str]:
    """Its words; none of what is gone, or a zombie."""
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return psutil.Process(pid).cmdline()
    return []


def alive(pid: int) -> bool:
    """Whether it is there, and no zombie."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def gone(family: set[int], *, within_s: float = 60.0) -> None:
    """Every process of a family ends soon after its head."""
    deadline = time.monotonic() + within_s
    while left := [pid for pid in family if alive(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def reserved_port() -> int:
    """A free port of this host, for a program that is going to listen there and reuses addresses.

    It stays bound until the tests end: nobody else is given it meanwhile, as a port that is only looked for
    may be. A connection to it is refused until somebody listens.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    atexit.register(held.close)
    return int(held.getsockname()[1])


class at_work:
    """Another process holds a run or an evaluation while open; its id."""

    def __init__(self, run: Path) -> None:
        code = "import sys, pathlib, sandbox_rl.lock\n"
        code += "with sandbox_rl.lock.alone(pathlib.Path(sys.argv[1])): print(flush=True); input()"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._other = subprocess.Popen([sys.executable, "-c", code, str(run)], **pipes)

    def __enter__(self) -> int:
        assert self._other.stdout is not None
        self._other.stdout.readline()
        return self._other.pid

    def __exit__(self, *exc: object) -> None:
        self._other.communicate("\n", timeout=60)
