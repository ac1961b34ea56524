"""Attacks on scoring for `self-check`: a scorer that evaluates its answer is the worst there may be."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

from sandbox_rl.builders import scoring_place
from sandbox_rl.rewards.config import RewardSettings
from sandbox_rl.rewards.pool import ScoringPool
from sandbox_rl.sandboxes.cases import HostWitness
from sandbox_rl.sandboxes.config import BackendSettings
from sandbox_rl.sandboxes.self_check import CheckRow, CheckVerdict
from sandbox_rl.types import Answer, AnswerStatus, Task

__all__ = ["ATTACKS", "check_scoring"]

_SCORER = "def score(answer, task):\n    return 1.0 if eval(answer) else 0.0\n"
_NAME = "self_check_scorer"
_TIMEOUT_S = 2.0

_ATTACKS = (
    # (id, what the answer tries in one sentence, the answer, the reward of a place that holds)
    (
        "SCO-20",
        "An answer runs as code in the scorer and reads a file of the host.",
        "open({path!r}).read()",
        0.0,
    ),
    (
        "SCO-20b",
        "An answer runs as code in the scorer and connects to the host.",
        "__import__('socket').create_connection(('127.0.0.1', {port}), 1)",
        0.0,
    ),
    (
        "SCO-20c",
        "An answer runs as code in the scorer and ends every process it can.",
        "__import__('os').kill(-1, 9) or True",
        0.0,
    ),
    (
        "SCO-20d",
        "An answer runs as code in the scorer and leaves something for the next answer to find.",
        "setattr(__import__('builtins'), 'left', 1) or 1",
        1.0,
    ),
    (
        "SCO-20e",
        "The next answer looks for what the one before has left.",
        "__import__('builtins').left",
        0.0,
    ),
    ("SCO-20f", "An honest answer is scored after all of these.", "6 * 7 == 42", 1.0),
)

ATTACKS = len(_ATTACKS)
"""Rows that `check_scoring` yields."""


async def check_scoring(sandbox: BackendSettings | None = None) -> AsyncIterator[CheckRow]:
    """One row per attack, in the place where answers are scored by default.

    Args:
        sandbox: settings of the sandboxes that commands run in; with a Docker image, a further such place.

    Raises:
        SetupError: this machine has no such place.
    """
    place = scoring_place(RewardSettings(), sandbox)
    with HostWitness() as witness, tempfile.TemporaryDirectory() as directory, _failures_are_expected():
        scorer = Path(directory)
        await asyncio.to_thread((scorer / f"{_NAME}.py").write_text, _SCORER)
        names = ((f"{_NAME}:score", 1.0),)
        async with ScoringPool(place, workers=1, timeout=_TIMEOUT_S, scorers=names, beside=scorer) as pool:
            for id, title, text, expected in _ATTACKS:
                started = time.monotonic()
                filled = text.format(path=witness.path, port=witness.port)
                task = Task(id, "?", "True", scorer=names[0][0])
                reward = await pool.score(task, Answer(AnswerStatus.OK, filled))
                problems = [f"was worth {reward.value}, expected {expected}"] * (reward.value != expected)
                problems += witness.problems()
                yield CheckRow(
                    case=id,
                    title=title,
                    required=f"It is worth {expected:g}, and nothing outside is reached.",
                    observed="; ".join(problems) or "as required",
                    tier=f"scoring: {place.isolation}",
                    verdict=CheckVerdict.FAIL if problems else CheckVerdict.PASS,
                    seconds=time.monotonic() - started,
                )


@contextmanager
def _failures_are_expected() -> Iterator[None]:
    """The pool warns of a scorer that fails on an answer; here that is what an attack comes to."""
    log = logging.getLogger("sandbox_rl.rewards")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
