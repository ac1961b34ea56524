"""An engine of shipped fakes around the real chat format and tools: what episode tests run in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sandbox_rl.agents.base import EpisodeRequest, EpisodeSettings
from sandbox_rl.agents.tokens import TokenAgent
from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.fakes import RecordingBackend
from sandbox_rl.policies.base import Policy, Sampling
from sandbox_rl.policies.scripted import ScriptedPolicy
from sandbox_rl.rollout.disk import DiskSpace
from sandbox_rl.rollout.engine import RolloutEngine
from sandbox_rl.rollout.settings import RolloutSettings
from sandbox_rl.tools.toolbox import make_toolbox
from sandbox_rl.training.tiny import tiny_tokenizer
from sandbox_rl.types import Answer, AnswerStatus, Message, Reward, Task, ToolCall

TOOLBOX = make_toolbox()
CHAT = ChatFormat.from_tokenizer(tiny_tokenizer(), TOOLBOX.schemas)
SUBMIT = ToolCall("submit", {})
NO_SANDBOX = object()


def bash(command: str) -> ToolCall:
    return ToolCall("execute_bash", {"command": command})


def write(text: str) -> ToolCall:
    """Creates the answer file through the editor, which the fake sandbox really has."""
    return ToolCall(
        "str_replace_editor", {"command": "create", "path": "/testbed/answer.txt", "file_text": text}
    )


def say(*calls: ToolCall, text: str = "") -> tuple[int, ...]:
    return CHAT.render_call(text, calls)


class ExactScoring:
    """Scores by equality, in place: the real pool has tests of its own."""

    def __init__(self) -> None:
        self.scored = 0

    async def __aenter__(self) -> ExactScoring:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None

    async def score(self, task: Task, answer: Answer) -> Reward:
        self.scored += 1
        return Reward(float(answer.status is AnswerStatus.OK and answer.text.strip() == task.answer))


def make_engine(
    script: Callable[[str, int, Sequence[int]], Sequence[int]] | Policy,
    *,
    backend: Any = None,
    scoring: Any = None,
    episode: dict[str, Any] | None = None,
    rollout: dict[str, Any] | None = None,
    max_context: int = 100_000,
    disk: DiskSpace | None = None,
) -> RolloutEngine:
    policy = script if hasattr(script, "session") else ScriptedPolicy(script, max_context=max_context)
    return RolloutEngine(
        agent=TokenAgent(policy, CHAT),
        backend=None if backend is NO_SANDBOX else (backend or RecordingBackend()),
        scoring=scoring if scoring is not None else ExactScoring(),
        toolbox=TOOLBOX,
        render=lambda task: (Message("user", task.prompt),),
        episode=EpisodeSettings(**{"timeout_s": 20, **(episode or {})}),
        sampling=Sampling(),
        settings=RolloutSettings(**{"backoff_s": 0.01, **(rollout or {})}),
        disk=disk,
    )


def request(name: str = "e0", **task: Any) -> EpisodeRequest:
    fields = {"id": name, "prompt": "What is 6*7?", "answer": "42", **task}
    return EpisodeRequest(name, Task(**fields), seed=1)


async def run_one(script: Any, **options: Any) -> Any:
    """The rollout of one episode that plays `script`, a list of turns."""
    turns = list(script)
    async with make_engine(lambda _, turn, ids: turns[turn], **options) as engine:
        (rollout,) = await engine.run([request()])
    return rollout
