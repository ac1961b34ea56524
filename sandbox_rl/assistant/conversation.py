"""One sandbox from the first question to the results, whatever ends it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from sandbox_rl.agents.base import (
    Agent,
    AgentSession,
    AgentTurn,
    EpisodeRequest,
    EpisodeSettings,
    SessionSetup,
)
from sandbox_rl.assistant.files import without_inputs
from sandbox_rl.assistant.view import TerminalView
from sandbox_rl.episode import closed, run_episode
from sandbox_rl.errors import FileProblem, InfraFault, SandboxDead, SandboxFault, SandboxFileError
from sandbox_rl.observer import Observer
from sandbox_rl.policies.base import Sampling
from sandbox_rl.sandboxes.base import ANSWER_FILE, INPUT_DIR, WORKING_DIR, Sandbox, SandboxBackend
from sandbox_rl.tools.toolbox import Toolbox
from sandbox_rl.types import (
    Answer,
    AnswerStatus,
    MalformedCall,
    Message,
    Observation,
    StopReason,
    Task,
    ToolCall,
    ToolFailure,
    Trajectory,
    Turn,
)

MAX_ANSWER_BYTES = 65_536
COLLECT_TIMEOUT_S = 30.0
"""Seconds that fetching the results may take, also after an interrupt."""

INTERRUPTED = "interrupted"
"""The `fault` of a conversation that the user ended."""

NextMessage = Callable[[], Awaitable[str | None]]
"""What the user says next; None when there is nothing more."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is left of a conversation.

    Args:
        files: the output directory's files (relative path → content) without the unchanged inputs.
        notes: what could not be fetched and why, one sentence each.
        interrupted: the user ended it; `trajectory.stop` then is INFRA_FAULT, `fault` "interrupted".
    """

    trajectory: Trajectory
    files: dict[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    interrupted: bool = False


async def converse(
    request: EpisodeRequest,
    messages: Sequence[Message],
    *,
    backend: SandboxBackend,
    agent: Agent,
    toolbox: Toolbox,
    viewer: TerminalView,
    next_message: NextMessage | None,
    limits: EpisodeSettings,
    sampling: Sampling,
    max_output_bytes: int,
) -> Conversation:
    """Ask, let the policy work, go on as long as the user does, and fetch the results.

    Cancelled while the policy works or the user thinks, it fetches what there is and returns; cancelled
    earlier, it raises.

    Args:
        messages: the rendered prompt of the request's task.
        next_message: None for a single question. Otherwise a turn without a call waits for the user instead
            of being reminded of the tools.
        limits: of each exchange.

    Raises:
        SandboxFault: the sandbox could not be made.
        UserError: this machine can make none, or the endpoint refuses key, model or address.
    """
    started, task = time.monotonic(), request.task
    record = Record(agent, viewer)
    if next_message is not None:
        toolbox = _UserAnswers(toolbox)
    async with backend, agent, backend.sandbox(task.files or None, timeout=limits.boot_timeout_s) as sandbox:
        async with agent.session(
            SessionSetup(request, messages, toolbox.schemas, sampling, limits)
        ) as session:
            viewer.opened(backend.info, len(task.files))
            exchanges = _exchanges(request, session, sandbox, toolbox, limits, record, next_message)
            stop, fault = await _ended(exchanges)
            files, notes, answer = await _collect(sandbox, task, max_output_bytes)
    kept = session.record()
    trajectory = Trajectory(
        task_id=task.id,
        prompt_ids=kept.prompt_ids,
        turns=record.turns,
        stop=stop,
        answer=answer,
        episode_id=request.id,
        fault=fault,
        seconds=time.monotonic() - started,
        chat=kept.chat,
    )
    return Conversation(trajectory, files, notes, interrupted=fault == INTERRUPTED)


async def _exchanges(
    request: EpisodeRequest,
    session: AgentSession,
    sandbox: Sandbox,
    toolbox: Toolbox,
    limits: EpisodeSettings,
    record: Record,
    next_message: NextMessage | None,
) -> StopReason:
    """One after the other, until the user has nothing more or the sandbox is dead."""
    while True:
        transcript = await run_episode(
            request,
            session,
            toolbox=toolbox,
            sandbox=sandbox,
            settings=limits,
            deadline=time.monotonic() + limits.timeout_s,
            observer=record,
        )
        stop = transcript.stop
        submitted = stop is StopReason.SUBMITTED and bool(record.turns[-1].calls)
        record.viewer.ended(stop, await _answer_so_far(sandbox) if submitted else None)
        if next_message is None or stop is StopReason.SANDBOX_DEAD:
            return stop
        if (text := await next_message()) is None:
            return stop
        record.user_spoke(session.add_user(text))


async def _ended(exchanges: Awaitable[StopReason]) -> tuple[StopReason, str]:
    """Why it ended, and what went wrong: our fault, or `INTERRUPTED`."""
    try:
        return await exchanges, ""
    except InfraFault as error:
        return StopReason.INFRA_FAULT, f"{type(error).__name__}: {error}"
    except asyncio.CancelledError:
        task_now = asyncio.current_task()
        if task_now is not None:
            task_now.uncancel()
        return StopReason.INFRA_FAULT, INTERRUPTED


class Record(Observer):
    """The turns of all exchanges; the one that was interrupted as far as it came."""

    def __init__(self, agent: Agent, viewer: TerminalView) -> None:
        self._agent = agent
        self.viewer = viewer
        self._turns: list[Turn] = []
        self._open: Turn | None = None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """As a trajectory has them: nothing follows the last action."""
        return closed((*self._turns, *([self._open] if self._open is not None else [])))

    def user_spoke(self, ids: tuple[int, ...]) -> None:
        """Ids of what the user said after the last turn."""
        if self._turns:
            last = self._turns[-1]
            self._turns[-1] = replace(last, observation_ids=last.observation_ids + ids)

    def sampling(self, episode: EpisodeRequest) -> None:
        self.viewer.thinking()

    def sampled(self, episode: EpisodeRequest, turn: AgentTurn) -> None:
        self._open = Turn(turn.action, turn.calls)
        self.viewer.sampled(*self._agent.reasoning_and_words(turn))

    def calling(self, episode: EpisodeRequest, call: ToolCall | MalformedCall) -> None:
        self.viewer.calling(call)

    def observed(self, episode: EpisodeRequest, observation: Observation) -> None:
        if self._open is not None:
            self._open = replace(self._open, observations=(*self._open.observations, observation))
        self.viewer.observed(observation)

    def turn(self, episode: EpisodeRequest, turn: Turn) -> None:
        self._turns.append(turn)
        self._open = None


class _UserAnswers(Toolbox):
    """The same tools; a turn without a call ends the exchange, because somebody is there to answer it."""

    def __init__(self, inner: Toolbox) -> None:
        super().__init__(())
        self.schemas = inner.schemas
        self._inner = inner

    async def run(self, sandbox: Sandbox, call: ToolCall | MalformedCall, *, timeout: float) -> Observation:
        return await self._inner.run(sandbox, call, timeout=timeout)

    def no_call(self, example: str = "") -> Observation:
        return Observation("", failure=ToolFailure.NO_CALL, submitted=True)


async def _answer_so_far(sandbox: Sandbox) -> str | None:
    """The answer file while the sandbox lives on; read once more, with everything dead, at the end."""
    try:
        data = await sandbox.read_file(ANSWER_FILE, max_bytes=MAX_ANSWER_BYTES)
    except (SandboxFileError, SandboxDead):
        return None
    return data.decode("utf-8-sig", "replace")


async def _collect(
    sandbox: Sandbox, task: Task, max_bytes: int
) -> tuple[dict[str, bytes], tuple[str, ...], Answer]:
    files: dict[str, bytes] = {}
    notes: list[str] = []
    answer = Answer(AnswerStatus.MISSING)
    try:
        async with asyncio.timeout(COLLECT_TIMEOUT_S):
            try:
                found = await sandbox.get_files(WORKING_DIR, max_bytes=max_bytes)
                files = without_inputs(found, task.files, below=INPUT_DIR.removeprefix(f"{WORKING_DIR}/"))
            except SandboxFileError as error:
                notes.append(_why_no_files(error, max_bytes))
            except SandboxDead:
                notes.append("The sandbox is dead: its files are lost.")
            answer = await sandbox.read_answer(max_bytes=MAX_ANSWER_BYTES)
    except TimeoutError:
        notes.append(f"Fetching the results took longer than {COLLECT_TIMEOUT_S:.0f} s and was given up.")
    except SandboxFault as error:
        notes.append(f"The results could not be fetched: {error}")
    if answer.status is AnswerStatus.OK and not files:
        files = {ANSWER_FILE.removeprefix(f"{WORKING_DIR}/"): answer.text.encode()}
    return files, tuple(notes), answer


def _why_no_files(error: SandboxFileError, max_bytes: int) -> str:
    if error.problem is FileProblem.TOO_LARGE:
        return (
            f"The files in {WORKING_DIR} exceed {max_bytes / (1 << 20):g} MiB together: only the answer is "
            "kept; raise max_output_mb."
        )
    return f"The files in {WORKING_DIR} could not be fetched: {error}."
