"""A scorer of your own: `scorer: own_scorer:digits` on a source, or `reward: {scorer: own_scorer:digits}`.

It is imported in the processes that score, which have no network and see no file; the recipe's folder is
shown to them, nothing has to be installed.
"""

from __future__ import annotations

from collections.abc import Mapping

from sandbox_rl import BadGold, Task


def digits(answer: str, task: Task) -> Mapping[str, float]:
    """1 for the right number, else 0; the share of right digits is a part of the record, not of the reward.

    A plain number may be returned as well.

    Raises:
        BadGold: the row is wrong, not the answer.
    """
    gold = task.answer.strip()
    if not gold.isdecimal():
        raise BadGold(f"{gold!r} is no number")
    said = answer.strip()
    right = sum(a == b for a, b in zip(said, gold, strict=False)) / len(gold)
    return {"value": float(said == gold), "digits_right": right}
