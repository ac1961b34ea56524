"""Scorers as a user might write them, good and bad; the pool imports them by path."""

import mmap
import os
import signal
import time

from sandbox_rl.types import Task


def length(answer: str, task: Task) -> float:
    return len(answer) / 10


def parts(answer: str, task: Task) -> dict[str, float]:
    return {"value": 0.5, "form": 1.0}


def raises(answer: str, task: Task) -> float:
    raise RuntimeError("no such column")


def hangs(answer: str, task: Task) -> float:
    time.sleep(600)
    return 1.0


def does_as_told(answer: str, task: Task) -> float:
    if answer == "wait":
        time.sleep(600)
    while answer == "cost" and time.process_time() < 0.025:
        pass
    return 1.0


def spins(answer: str, task: Task) -> float:
    while True:
        pass


def dies(answer: str, task: Task) -> float:
    os._exit(11)


def ends_its_worker(answer: str, task: Task) -> float:
    """Without isolation an answer can."""
    if answer == "boom":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    return 1.0


def eats(answer: str, task: Task) -> float:
    return float(len(bytearray(64 << 30)))


def pid(answer: str, task: Task) -> dict[str, float]:
    time.sleep(0.1)  # long enough for every worker to get one of several
    return {"value": 1.0, "pid": float(os.getpid())}


_LEFT: list[object] = []


def leaves_things(answer: str, task: Task) -> float:
    """Is spoilt for the answers after it in the same process."""
    if answer == "hoard":
        _LEFT.append(mmap.mmap(-1, 900 << 20))
        return 0.0
    if answer in ("break", "kill", "lie"):
        _LEFT.append(answer)
    elif "break" in _LEFT:
        raise RuntimeError("broken before")
    elif "kill" in _LEFT:
        os._exit(1)
    elif "lie" in _LEFT:
        return 7.0
    with mmap.mmap(-1, 500 << 20):
        return float(answer == task.answer)


def nan(answer: str, task: Task) -> float:
    return float("nan")


def modules(answer: str, task: Task) -> dict[str, float]:
    import sys

    return {
        "value": 1.0,
        "torch": float("torch" in sys.modules),
        "gym": float("reasoning_gym" in sys.modules),
    }


NOT_A_FUNCTION = 3
