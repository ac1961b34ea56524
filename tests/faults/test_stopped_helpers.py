"""Processes that serve a trainer end with it, also where somebody had stopped them when it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sandbox_rl
from tests.contract.test_sandbox_agent import settles
from tests.processes import alive, tree_of

SUPERVISOR = Path(sandbox_rl.__file__).parent / "policies" / "vllm" / "plugin" / "sandbox_rl_supervise.py"
SPAWNER = """
import asyncio
import psutil
from sandbox_rl.sandboxes.embedded import EmbeddedBackend
async def main():
    async with EmbeddedBackend() as backend, backend.sandbox() as sandbox:
        await sandbox.exec("sleep 306 >/dev/null 2>&1 &", timeout=60)
        print(psutil.Process().children()[0].pid, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
SCORER = """
import asyncio
import psutil
from sandbox_rl.rewards.config import RewardSettings
from sandbox_rl.rewards.places import PlainPlace
from sandbox_rl.rewards.pool import ScoringPool
async def main():
    async with ScoringPool(PlainPlace(), RewardSettings(workers=1), expected=("exact",)):
        print(psutil.Process().children()[0].pid, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
SERVER = f"""
import subprocess, sys, time
command = [sys.executable, "-I", "-S", {str(SUPERVISOR)!r}, sys.argv[1], "sleep", "306"]
print(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True).pid, flush=True)
time.sleep(60)
"""


def started(program: str, directory: Path) -> subprocess.Popen[str]:
    (directory / "socket").mkdir()
    command = [sys.executable, "-c", program, str(directory / "socket")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("program", [SPAWNER, SCORER, SERVER], ids=["spawner", "scorer", "server"])
async def test_a_helper_that_is_stopped_ends_with_its_trainer(program, tmp_path):
    trainer = started(program, tmp_path)
    assert trainer.stdout is not None
    helper = int(trainer.stdout.readline())
    assert await settles(lambda: len(tree_of(helper)) > 1 or program is SCORER)
    family = tree_of(helper)
    os.kill(helper, signal.SIGSTOP)
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    try:
        assert await settles(lambda: not any(map(alive, family))), [p for p in family if alive(p)]
    finally:
        for pid in filter(alive, family):
            os.kill(pid, signal.SIGKILL)
