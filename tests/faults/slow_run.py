"""`train` whose episodes never end from the third step on; what test_signals.py sends signals to.

`python -m tests.faults.slow_run SECONDS RECIPE [ARGUMENT]...`: they sleep for that long in their sandboxes.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar
from typing import Any

from sandbox_rl.cli import main
from sandbox_rl.rollout.engine import RolloutEngine
from sandbox_rl.training.groups import group_of
from tests.faults.killed_run import earn_by_answer, script_first_turns

FIRST_SLOW = 4
"""Groups before it are those of the first two steps."""
_group: ContextVar[int] = ContextVar("group", default=0)


if __name__ == "__main__":
    seconds, *arguments = sys.argv[1:]
    inner = RolloutEngine._attempt

    async def attempt(self: Any, request: Any, **given: Any) -> Any:
        _group.set(group_of(request.id) or 0)
        return await inner(self, request, **given)

    RolloutEngine._attempt = attempt  # type: ignore[method-assign]
    script_first_turns(lambda: f"sleep {seconds}" if _group.get() >= FIRST_SLOW else "")
    earn_by_answer()
    main(["train", *arguments])
