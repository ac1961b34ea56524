"""What the kernel counts per user: hostile sandboxes leave the trainer, and each other, a part of it."""

from __future__ import annotations

import subprocess

from .conftest import Tier
from .test_starvation import owner_python

_OWNER = """
import asyncio, ctypes, json, os, signal, sys
from sandbox_rl.sandboxes.base import SandboxLimits
from sandbox_rl.sandboxes.cases import ALL_CASES
from tests.contract.backends import BACKENDS

libc = ctypes.CDLL(None)
cases = {case.id: case for case in ALL_CASES}
then_hold = "import time; open('/tmp/all','w').close(); time.sleep(60); print("
terminals = cases["RES-20"].command.replace("print(", then_hold)

async def main(name, count):
    entered, leave = asyncio.Semaphore(0), asyncio.Event()
    async with BACKENDS[name](SandboxLimits()) as backend:
        async def greedy():
            async with backend.sandbox() as sandbox:
                await sandbox.exec(cases["RES-20b"].command, timeout=60)
                held = f"({terminals}\\n) >/dev/null 2>&1 & until [ -e /tmp/all ]; do sleep .05; done"
                await sandbox.exec(held, timeout=60)
                entered.release()
                await leave.wait()
        tasks = [asyncio.create_task(greedy()) for _ in range(count)]
        for _ in tasks: await entered.acquire()
        signal.signal(40, lambda *_: None)
        left = {
            "inotify": libc.inotify_init1(0) >= 0,
            "signals": all(libc.sigqueue(os.getpid(), 40, None) == 0 for _ in range(64)),
            "terminals": len(os.openpty()) == 2,
            "pipes": len(os.pipe()) == 2,
        }
        async with backend.sandbox() as sandbox:
            left["another sandbox"] = (await sandbox.exec("echo on", timeout=60)).stdout.head == b"on\\n"
        leave.set()
        await asyncio.gather(*tasks)
    print(json.dumps(left), flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def test_greedy_sandboxes_leave_the_trainer_its_part(tier: Tier) -> None:
    ran = owner_python(tier, _OWNER, tier.backend, "12", stdout=subprocess.PIPE)
    with ran:
        said, _ = ran.communicate(timeout=250)
    assert ran.returncode == 0
    assert said.strip() == (
        '{"inotify": true, "signals": true, "terminals": true, "pipes": true, "another sandbox": true}'
    )
