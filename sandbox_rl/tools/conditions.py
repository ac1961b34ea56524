"""States of the sandbox that the policy brought about, as observations."""

from __future__ import annotations

from sandbox_rl.errors import FileProblem, SandboxCondition, SandboxFileError
from sandbox_rl.tools.text import quote
from sandbox_rl.types import Observation, ToolFailure

__all__ = ["DEAD_TEXT", "from_condition"]

DEAD_TEXT = (
    "The sandbox no longer answers: what ran in it has destroyed it. The episode ends here; "
    "do not kill processes that you did not start."
)

_PROBLEMS = {
    FileProblem.MISSING: "does not exist. Look around with view on a directory or `ls`",
    FileProblem.EXISTS: "exists already",
    FileProblem.NOT_REGULAR: "is not a regular file, or lies below one. Choose another path",
    FileProblem.IS_DIRECTORY: "is a directory. Name a file in it",
    FileProblem.TOO_LARGE: "is too large for the editor. Use execute_bash, for example `sed -n '1,100p'`",
    FileProblem.PERMISSION: "may not be accessed. Take the rights back with `chmod u+rwx`",
    FileProblem.NO_SPACE: "cannot be written: no space is left. Delete files that you do not need",
    FileProblem.BAD_PATH: "is not a usable path. Use a plain one such as /testbed/notes.txt",
    FileProblem.BUSY: "is busy. Stop what uses it and try again",
}


def from_condition(condition: SandboxCondition, tool: str) -> Observation:
    """What to tell the model about `condition`."""
    if isinstance(condition, SandboxFileError):
        text = f"{quote(condition.path, 200)} {_PROBLEMS[condition.problem]}."
        return Observation(text, tool=tool, failure=ToolFailure.FILE)
    return Observation(DEAD_TEXT, tool=tool, failure=ToolFailure.SANDBOX_DEAD)
