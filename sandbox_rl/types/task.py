"""What is asked: a task and the messages of its prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Message", "Task"]


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
