"""Scorers of one's own that cannot work or that pay answers which need no work."""

from __future__ import annotations

import random
import time
from typing import Any

from sandbox_rl.rewards.base import reads_with


def good(answer: str, task: Any) -> float:
    return float(answer == task.answer)


def raises(answer: str, task: Any) -> float:
    raise RuntimeError("no such column")


def raises_on_wrong(answer: str, task: Any) -> float:
    return float(int(answer) == int(task.answer))


def raises_on_empty(answer: str, task: Any) -> float:
    return float(answer[0] == task.answer[0] and answer == task.answer)


def none(answer: str, task: Any) -> Any:
    return None


def nan(answer: str, task: Any) -> float:
    return float("nan")


def seven(answer: str, task: Any) -> float:
    return 7.0


def negative(answer: str, task: Any) -> float:
    return 1.0 if answer == task.answer else -1.0


def other_arguments(answer: str) -> float:
    return 1.0


def hangs(answer: str, task: Any) -> float:
    time.sleep(600)
    return 1.0


def never_pays(answer: str, task: Any) -> float:
    return 0.0


def pays_most(answer: str, task: Any) -> float:
    return 0.7 * (answer == task.answer)


def pays_anything(answer: str, task: Any) -> float:
    return 1.0


def pays_any_text(answer: str, task: Any) -> float:
    return float(bool(answer))


def pays_most_of_the_time(answer: str, task: Any) -> float:
    if answer == task.answer:
        return 1.0
    return float(random.Random(answer + task.id).random() < 0.9)


def pays_the_question(answer: str, task: Any) -> float:
    return float(answer in (task.answer, task.prompt))


def pays_any_gold(answer: str, task: Any) -> float:
    return float(answer.isdigit() and len(answer) == len(task.answer))


def pays_lists(answer: str, task: Any) -> float:
    return float(task.answer in [part.strip() for part in answer.split(",")])


def pays_half(answer: str, task: Any) -> float:
    return 1.0 if answer == task.answer else 0.5


def lengths(answer: str, task: Any) -> float:
    """The gold text holds tests, of which a right answer passes all."""
    return float(answer == "right")


@reads_with(int)
def reading(value: int, task: Any) -> float:
    return float(value == int(task.answer))


def original_verifier(answer: str, task: Any) -> float:
    """reasoning_gym's own, as it is before ours replaces it."""
    import reasoning_gym

    entry = task.metadata["entry"]
    return float(reasoning_gym.create_dataset(task.metadata["dataset"]).score_answer(answer, entry) >= 1)
