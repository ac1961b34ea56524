"""A sandbox that is hostile from its first second: nothing in it delays its end or the next start."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .conftest import Tier
from .container import REPOSITORY
from .test_ordinary_user import python_for_everyone

pytestmark = pytest.mark.alone

_HOSTILE = """
import ctypes, os, resource, signal, sys
def attempt(function, *arguments):
    try: function(*arguments)
    except (OSError, ValueError): pass
libc = ctypes.CDLL(None)
attempt(os.sched_setscheduler, 1, os.SCHED_IDLE, os.sched_param(0))
attempt(os.setpriority, os.PRIO_PROCESS, 1, 19)
attempt(os.setpriority, os.PRIO_USER, 0, 19)
attempt(os.setpriority, os.PRIO_PGRP, 1, 19)
attempt(os.sched_setaffinity, 1, {0})
for name in ("NOFILE", "AS", "DATA", "STACK", "SIGPENDING", "NPROC", "FSIZE", "CPU", "MEMLOCK"):
    attempt(resource.prlimit, 1, getattr(resource, "RLIMIT_" + name), (1, 1))
def last(number):
    os.setsid()
    attempt(os.sched_setscheduler, 0, os.SCHED_IDLE, os.sched_param(0))
    held = bytearray(2 << 20)
    if number % 4 == 0: os.kill(os.getpid(), signal.SIGSTOP)
    while number % 4 == 1: attempt(os.kill, 1, signal.SIGCHLD)
    while number % 4 == 2:
        try:
            if os.fork(): os._exit(0)
        except OSError: pass
    while True: pass
for number in range(110):
    try:
        if os.fork() == 0: last(number)
    except OSError: break
while True: signal.pause()
"""

_OWNER = """
import asyncio, json, sys, time
from sandbox_rl.sandboxes.base import SandboxLimits
from tests.contract.backends import BACKENDS

async def hostile(backend, program, mark, reached, leave):
    async with backend.sandbox() as sandbox:
        await sandbox.write_file("/testbed/hostile.py", program.encode())
        await sandbox.exec(f"python3 hostile.py {mark} >/dev/null 2>&1 &", timeout=60)
        await asyncio.sleep(1)
        reached.release()
        await leave.wait()
        started = time.monotonic()
    return time.monotonic() - started

async def main(name, program, mark, count):
    reached, leave = asyncio.Semaphore(0), asyncio.Event()
    async with BACKENDS[name](SandboxLimits()) as backend:
        tasks = [asyncio.create_task(hostile(backend, program, mark, reached, leave)) for _ in range(count)]
        for _ in tasks:
            await reached.acquire()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        leave.set()
        slowest = max(await asyncio.gather(*tasks), default=0)
        async with backend.sandbox(timeout=60) as sandbox:
            said = (await sandbox.exec("echo alive", timeout=60)).stdout.head.decode()
    print(json.dumps({"slowest": slowest, "said": said}), flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
"""


def owner_python(tier: Tier, program: str, *arguments: str, **pipes: Any) -> subprocess.Popen[str]:
    """A process that owns sandboxes of this tier, as the tier's user."""
    who = {"user": tier.user, "group": tier.user, "extra_groups": []} if tier.user else {}
    libraries = os.pathsep.join([str(REPOSITORY), sysconfig.get_path("purelib")])
    return subprocess.Popen(
        [python_for_everyone(), "-c", program, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": libraries, "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"},
        text=True,
        **who,
        **pipes,
    )


@contextmanager
def owner_of(tier: Tier, mark: str, count: int) -> Iterator[subprocess.Popen[str]]:
    """The owner of `count` hostile sandboxes, once they have been so for a second and are many."""
    arguments = (_OWNER, tier.backend, _HOSTILE, mark, str(count))
    with owner_python(tier, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "ready\n"
            deadline = time.monotonic() + 60
            while len(marked(mark)) <= 20 * count and count:
                assert time.monotonic() < deadline, "the attack must be there before it is ended"
                time.sleep(0.1)
            yield owner
        finally:
            owner.kill()


def outcome(owner: subprocess.Popen[str]) -> dict[str, Any]:
    """What it saw when it let its sandboxes go."""
    assert owner.stdin is not None
    assert owner.stdout is not None
    owner.stdin.write("\n")
    owner.stdin.flush()
    seen: dict[str, Any] = json.loads(owner.stdout.readline())
    assert owner.wait(60) == 0
    return seen


def marked(mark: str) -> list[str]:
    """Processes of the hostile program."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[1:3] == [b"hostile.py", mark.encode()]:
            found.append(entry)
    return found


def test_closing_is_as_quick_as_ever(tier: Tier) -> None:
    """LIF-09: it can neither slow, limit nor stop the process that serves and ends it."""
    mark = f"closing-{os.getpid()}"
    with owner_of(tier, mark, tier.count) as owner:
        seen = outcome(owner)
    assert seen["slowest"] < tier.gone_s
    assert seen["said"] == "alive\n"
    assert not marked(mark)


def test_nothing_outlives_a_killed_owner_and_the_next_starts(tier: Tier) -> None:
    """LIF-09b."""
    mark = f"killed-{os.getpid()}"
    with owner_of(tier, mark, tier.count):
        pass  # it is killed
    started = time.monotonic()

    def next_run() -> dict[str, Any]:
        with owner_of(tier, "none", 0) as owner:
            return outcome(owner)

    with ThreadPoolExecutor(1) as beside:
        following = beside.submit(next_run)
        while marked(mark) and time.monotonic() - started < 2 * tier.gone_s:
            time.sleep(0.02)
        took = time.monotonic() - started
        assert following.result(timeout=60)["said"] == "alive\n"
    assert took < tier.gone_s
    assert not marked(mark)
