"""`train` whose episodes never end from the third step on; what test_signals.py sends signals to.

`python -m tests.faults.slow_run SECONDS RECIPE [ARGUMENT]...`: they sleep for that long in their sandboxes.
"""

from __future__ import annotations

import sys

from sandbox_rl.agents.base import SessionSetup
from sandbox_rl.cli import main
from sandbox_rl.training.groups import group_of
from tests.faults.killed_run import answer_of, earn_by_answer, script_first_turns

FIRST_SLOW = 4
"""Groups before it are those of the first two steps."""


if __name__ == "__main__":
    seconds, *arguments = sys.argv[1:]

    def command_of(setup: SessionSetup) -> str:
        return f"sleep {seconds}" if (group_of(setup.request.id) or 0) >= FIRST_SLOW else answer_of(setup)

    script_first_turns(command_of)
    earn_by_answer()
    main(["train", *arguments])
