"""Runs cases in a process of its own and prints one JSON line for each: `{"id", "problems"}`.

Arguments: backend name, patience, number at once, seed of the order, then case ids ("all" for all).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence

from sandbox_rl.sandboxes.base import SandboxBackend
from sandbox_rl.sandboxes.cases import ALL_CASES, CASE_LIMITS, CONTROLS, Case, HostWitness, run_case

_NEIGHBOURS = 9  # other processes of the machine, for the cases that look for them


def make_backend(name: str) -> SandboxBackend:
    if name == "weak":
        from .weak_backend import WeakBackend

        return WeakBackend()  # type: ignore[return-value]
    from ..contract.backends import embedded

    return embedded(CASE_LIMITS)


async def run_all(name: str, cases: Sequence[Case], at_once: int, patience: float) -> None:
    free = asyncio.Semaphore(at_once)

    async def one(case: Case) -> None:
        async with free:
            outcome = await run_case(backend, case, witness, patience=patience)
            if name == "weak":
                await asyncio.to_thread(_clear_up)
        print(json.dumps({"id": case.id, "problems": [p[:1000] for p in outcome.problems]}), flush=True)

    if name == "weak":
        _clear_up()
    with HostWitness() as witness:
        async with make_backend(name) as backend:
            await asyncio.gather(*map(one, cases))


def _clear_up() -> None:
    """End what the last case left running, and put up what a trainer's machine has running."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) not in (1, os.getpid()):
            with contextlib.suppress(OSError):
                os.kill(int(entry), signal.SIGKILL)
    for _ in range(_NEIGHBOURS):
        subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def main(arguments: Sequence[str]) -> None:
    name, patience, at_once, seed, *ids = arguments
    cases = [c for c in (*ALL_CASES, *CONTROLS) if ids == ["all"] or c.id in ids]
    random.Random(int(seed)).shuffle(cases)
    asyncio.run(_bounded(name, cases, int(at_once), float(patience)))
    os._exit(0)  # threads that a weak backend has left blocked would keep the interpreter


async def _bounded(name: str, cases: Sequence[Case], at_once: int, patience: float) -> None:
    try:
        await run_all(name, cases, at_once, patience)
    finally:
        sys.stdout.flush()
        if name == "weak":
            os._exit(0)  # asyncio.run would wait for its blocked threads


if __name__ == "__main__":
    main(sys.argv[1:])
