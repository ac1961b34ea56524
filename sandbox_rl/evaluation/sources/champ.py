"""CHAMP (Mao, Kim and Zhou 2024, arXiv 2401.06961): competition problems of the package `champ-dataset`."""

from __future__ import annotations

import json
import re

from sandbox_rl.evaluation.sources.config import ChampSource
from sandbox_rl.evaluation.sources.packages import package_folder
from sandbox_rl.types import Task

__all__ = ["champ_tasks", "number_in"]

_NUMBER = r"-?\d+(?:/\d+)?"
_ALONE = re.compile(rf"({_NUMBER})(?: \(i\.e\., .*\)| values|, or approximately .*)?")
_EQUIVALENT = re.compile(rf".*, or equivalently ({_NUMBER})")


def champ_tasks(source: ChampSource) -> list[Task]:
    """The problems whose answer is one number: formulas, proofs and yes or no are left out.

    Raises:
        DataError: the package is not installed.
    """
    path = package_folder("champ_dataset", "champ-dataset") / "dataset_files" / "v0.json"
    problems = json.loads(path.read_text(encoding="utf-8"))["problems"]
    found = ((name, row, number_in(row["_answer"])) for name, row in problems.items())
    return [
        Task(
            id=f"champ-{name}",
            prompt=row["_text"],
            answer=number,
            domain=source.domain,
            scorer=source.scorer,
            metadata={"category": row["category"]},
        )
        for name, row, number in found
        if number is not None
    ]


def number_in(answer: str) -> str | None:
    """The number that an answer such as "C(10, 5), or equivalently 252" comes to; None where it is none."""
    for form in (_ALONE, _EQUIVALENT):
        if match := form.fullmatch(answer.strip()):
            return match.group(1)
    return None
