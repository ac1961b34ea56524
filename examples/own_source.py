"""A data source of your own: `data: {sources: [{type: "own_source:Codes", size: 64}]}`."""

from __future__ import annotations

import random
from collections.abc import Iterable

from pydantic import Field

from sandbox_rl import Task, TaskSource


class Codes(TaskSource):
    """A number that nobody can know stands in a file. Fields are keys of the recipe, checked like all."""

    size: int = Field(64, ge=1)
    """Tasks, training and held-out together."""
    seed: int = 0
    """Of the numbers."""
    domain: str = "codes"
    """`prompts/codes.yaml`."""

    def tasks(self) -> Iterable[Task]:
        """The same in every process and every start."""
        rng = random.Random(self.seed)
        for index in range(self.size):
            code = str(rng.randrange(100, 1000))
            yield Task(
                id=f"code-{self.seed}-{index}",
                prompt="What is the code?",
                answer=code,
                files={"code.txt": f"{code}\n".encode()},
                domain=self.domain,
                scorer=self.scorer,
            )
