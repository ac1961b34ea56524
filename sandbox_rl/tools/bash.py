"""`execute_bash`: one command in a fresh shell."""

from __future__ import annotations

from pydantic import Field, field_validator

from sandbox_rl.cooperate import give_way
from sandbox_rl.sandboxes.base import WORKING_DIR, Sandbox
from sandbox_rl.tools.arguments import DEAD_TEXT, CheckedTool, ToolArguments
from sandbox_rl.tools.text import MAX_OBSERVATION_CHARS, stream_text
from sandbox_rl.types import ExecResult, ExecStatus, Observation, ToolFailure

MAX_COMMAND_BYTES = 100_000

_FAILURES = {
    ExecStatus.TIMEOUT: ToolFailure.TIMEOUT,
    ExecStatus.OOM: ToolFailure.OOM,
    ExecStatus.SANDBOX_DEAD: ToolFailure.SANDBOX_DEAD,
}


class _Arguments(ToolArguments):
    command: str = Field(description="The command to run.")

    @field_validator("command")
    @classmethod
    def _runnable(cls, command: str) -> str:
        if not command.strip():
            raise ValueError("is empty; write the shell command to run")
        if "\0" in command:
            raise ValueError("holds a NUL character, which no command can; use printf '\\0' to make one")
        if len(command.encode()) > MAX_COMMAND_BYTES:
            raise ValueError(
                f"is longer than {MAX_COMMAND_BYTES} bytes; put the script into a file and run that"
            )
        return command


class ExecuteBash(CheckedTool[_Arguments]):
    """Runs a command and reports exit code, standard output and standard error."""

    name = "execute_bash"
    description = (
        f"Run a bash command in {WORKING_DIR}. Every call is a new shell: the working directory and "
        "variables do not carry over to the next call, files do. Long output is cut in the middle. Standard "
        "input is empty."
    )
    arguments = _Arguments

    async def _run(self, sandbox: Sandbox, given: _Arguments, timeout: float) -> Observation:
        command = given.command
        result = await sandbox.exec(command, timeout=timeout)
        why = _not_entered(result)
        if why:  # the policy has locked itself out: from / it can repair that
            result = await sandbox.exec(command, timeout=timeout, cwd="/")
        await give_way()
        return Observation(
            why + self._report(result, timeout),
            tool=self.name,
            failure=_FAILURES.get(result.status),
            exit_code=result.exit_code,
            seconds=result.seconds,
        )

    def _report(self, result: ExecResult, timeout: float) -> str:
        if result.status is ExecStatus.SANDBOX_DEAD:
            return DEAD_TEXT
        lines = [_headline(result, timeout)]
        if result.exit_code is not None:
            lines.append(f"Exit code: {result.exit_code}")
        left = MAX_OBSERVATION_CHARS - 600  # for the lines above and the headings
        error = stream_text(result.stderr, left // 2)
        output = stream_text(result.stdout, left - len(error))
        if len(output) < left // 2:
            error = stream_text(result.stderr, left - len(output))
        lines += ["[STDOUT]", output]
        if error:
            lines += ["[STDERR]", error]
        return "\n".join(line for line in lines if line)


def _not_entered(result: ExecResult) -> str:
    """What to say where no shell could start in the working directory, "" if one did.

    A command that ran has taken time, so none can have written this.
    """
    start = f"cannot start in {WORKING_DIR}: "
    said = result.stderr.head.decode("utf-8", "replace")
    if result.exit_code != 126 or result.seconds or not said.startswith(start):
        return ""
    return (
        f"{WORKING_DIR} cannot be entered ({said.removeprefix(start).strip()}), so the command ran in /. "
        f"Repair it, for example with `chmod u+rwx {WORKING_DIR}`.\n"
    )


def _headline(result: ExecResult, timeout: float) -> str:
    """What happened, if the command did not run to its end."""
    if result.status is ExecStatus.TIMEOUT:
        return (
            f"The command was killed: it ran longer than {timeout:.3g} s. Find a quicker way, or start it "
            "with `nohup COMMAND > log.txt 2>&1 &` and read the log later. Output until then:"
        )
    if result.status is ExecStatus.OOM:
        return "The command was killed: it used more memory than the sandbox has. Work on smaller pieces."
    if result.status is ExecStatus.OUTPUT_LIMIT:
        return "The command was killed: it printed far too much. Redirect its output to a file."
    return ""
