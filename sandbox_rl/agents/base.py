"""The Protocols of whoever acts in an episode, whatever the policy speaks: token ids or messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

from pydantic import Field

from sandbox_rl.policies.base import Sampling
from sandbox_rl.settings import Settings
from sandbox_rl.types import Action, ChatRecord, MalformedCall, Message, Observation, Task, ToolCall


class EpisodeSettings(Settings):
    """The budgets of one episode (defaults: the paper's, arXiv 2601.16206)."""

    max_turns: int = Field(100, ge=1)
    """Policy turns."""
    max_tokens: int = Field(65_536, ge=1)
    """Completion tokens, sampled and observed together."""
    turn_tokens: int = Field(8_192, ge=1)
    """Tokens that one turn may sample."""
    timeout_s: float = Field(5_400.0, gt=0)
    """Seconds from sandbox boot to the end of the last turn."""
    exec_timeout_s: float = Field(120.0, gt=0)
    """Seconds that one command may run."""
    boot_timeout_s: float = Field(60.0, gt=0)
    """Seconds within which a sandbox must be up."""


@dataclass(frozen=True, slots=True)
class EpisodeRequest:
    """One episode to run. `seed` alone decides its sampling; `id` names it in the journal.

    Args:
        attempt: 0, or how often it failed on our side before; set by the engine.
    """

    id: str
    task: Task
    seed: int
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class SessionSetup:
    """What a session begins with.

    Args:
        messages: the task's prompt.
        tools: OpenAI function schemas.
        limits: the budgets of the episode, or of each exchange.
    """

    request: EpisodeRequest
    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]]
    sampling: Sampling
    limits: EpisodeSettings


class BudgetSpent(Exception):
    """Nothing fits into the token budget or the model's context any more. It is no fault of ours."""


@dataclass(frozen=True, slots=True)
class AgentTurn:
    """One turn of the agent.

    Args:
        action: as it was sampled; of an endpoint without ids.
        calls: in order, those that cannot be parsed included.
        text: its words; calls are part of it where the policy writes them itself.
        reasoning: where an endpoint returns it beside the text.
    """

    action: Action
    calls: tuple[ToolCall | MalformedCall, ...]
    text: str
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """What a trajectory keeps besides its turns.

    Args:
        prompt_ids: what the first turn was sampled after, shape (P,); () of an endpoint.
        chat: None of a policy of token ids.
    """

    prompt_ids: tuple[int, ...]
    chat: ChatRecord | None = None


class AgentSession(Protocol):
    """One episode of an agent: it acts, is shown what came of it, and acts again."""

    @property
    def call_example(self) -> str:
        """How the policy writes a call; "" where that is not its business."""
        ...

    async def act(self, *, timeout: float) -> AgentTurn:
        """The next turn; `timeout` is the episode's remaining time in seconds.

        Raises:
            TimeoutError: the time is up.
            BudgetSpent: nothing fits any more.
            EngineFault: the engine broke.
        """
        ...

    async def observe(
        self, observations: Sequence[Observation], steps_left: int, *, last: bool
    ) -> tuple[int, ...] | None:
        """Take in what answered the turn, with how many turns are left.

        Args:
            last: no turn follows; a sequence of ids then ends with the policy's own.

        Returns:
            The ids that follow the turn in the sequence; None where no further turn would fit after them.
        """
        ...

    def add_user(self, text: str) -> tuple[int, ...]:
        """The user speaks after a turn that was the last; budgets begin anew. Returns the ids of it.

        Raises:
            ModelError: the chat template has no frame for a second user message.
        """
        ...

    def record(self) -> SessionRecord:
        """What there is so far."""
        ...


class Agent(AbstractAsyncContextManager[Any], Protocol):
    """An async context manager that opens the sessions of many episodes side by side."""

    def session(self, setup: SessionSetup) -> AbstractAsyncContextManager[AgentSession]:
        """Open one episode's session."""
        ...

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The ids of a prompt, shape (P,); () of an endpoint."""
        ...

    def reasoning_and_words(self, turn: AgentTurn) -> tuple[str, str]:
        """A turn for people to read: its reasoning, and its words without the calls."""
        ...


Inner = TypeVar("Inner", bound=AbstractAsyncContextManager[Any])


class Around(Generic[Inner]):
    """Entered and left together with what it stands around."""

    def __init__(self, inner: Inner) -> None:
        self.inner = inner

    async def __aenter__(self) -> Self:
        await self.inner.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self.inner.__aexit__(*exc)
