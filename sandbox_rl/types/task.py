"""What is asked and answered: a task, the messages of its prompt, the answer file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message of a prompt: `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Task:
    """One problem. The gold `answer` and `metadata` never enter the sandbox or the prompt.

    Args:
        id: unique within a data set; decides the train/held-out split.
        prompt: the problem statement in words.
        answer: the gold answer, in the form that `scorer` expects.
        files: relative POSIX path → content, placed under the sandbox's input directory.
        domain: names the prompt set and the row in reports.
        scorer: name of a scorer (`sandbox_rl.rewards`) or `package.module:function`.
        metadata: JSON values for the scorer and for reports.
    """

    id: str
    prompt: str
    answer: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    domain: str = "general"
    scorer: str = "exact"
    metadata: Mapping[str, Any] = field(default_factory=dict)


class AnswerStatus(StrEnum):
    """What was found at the answer path after the sandbox was frozen."""

    OK = "ok"
    MISSING = "missing"
    NOT_REGULAR = "not_regular"
    TOO_LARGE = "too_large"
    UNDECODABLE = "undecodable"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer file as read once from outside; `text` is "" unless `status` is OK."""

    status: AnswerStatus
    text: str = ""
