"""An episode with a policy behind a chat endpoint: messages instead of token ids.

The same tools, budgets, stop reasons and answer as `sandbox_rl.episode`, and a trajectory without ids:
it can be scored, shown and counted, not trained on. Token counts are those that the endpoint reports.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sandbox_rl.episode import EpisodeSettings, answer_calls, why_stop
from sandbox_rl.policies.base import Sampling
from sandbox_rl.policies.openai_chat import ChatClient, ChatReply, ContextFull
from sandbox_rl.sandboxes.base import Sandbox
from sandbox_rl.seeds import derive_seed
from sandbox_rl.tools.toolbox import Toolbox
from sandbox_rl.types import (
    Action,
    Message,
    Observation,
    StopReason,
    Trajectory,
    Turn,
    TurnTiming,
)

__all__ = ["ChatTranscript", "MessageTrajectory", "run_chat_episode", "to_wire"]

CHARS_PER_TOKEN = 4
"""For endpoints that do not count; only budgets rely on it."""


@dataclass(frozen=True, slots=True)
class MessageTrajectory(Trajectory):
    """A trajectory whose text stands in `messages`; its actions have no ids.

    Args:
        usage: tokens by "prompt", "sampled" and "observed", as the endpoint reports them.
    """

    messages: tuple[Mapping[str, Any], ...] = ()
    usage: Mapping[str, int] | None = None

    def extras(self) -> dict[str, Any]:
        """Further fields of the journal line."""
        return {"messages": list(self.messages), "usage": dict(self.usage or {})}


@dataclass(frozen=True, slots=True)
class ChatTranscript:
    """What the loop hands back."""

    turns: tuple[Turn, ...]
    stop: StopReason
    messages: tuple[Mapping[str, Any], ...]
    usage: Mapping[str, int]
    last_text: str


def to_wire(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as the endpoint takes them."""
    return [{"role": message.role, "content": message.content} for message in messages]


async def run_chat_episode(
    messages: Sequence[Message],
    *,
    client: ChatClient,
    toolbox: Toolbox,
    sandbox: Sandbox,
    settings: EpisodeSettings,
    sampling: Sampling,
    seed: int,
    deadline: float,
) -> ChatTranscript:
    """Let the policy act until it submits or a budget is used up.

    Args:
        deadline: on the clock of `time.monotonic`, in seconds.

    Raises:
        EngineFault, SandboxFault: our failures; the episode is lost.
        ConfigError: the endpoint refuses key, model or address.
    """
    history = to_wire(messages)
    turns: list[Turn] = []
    count = _Counter(history)
    text = ""

    def end(stop: StopReason) -> ChatTranscript:
        return ChatTranscript(tuple(turns), stop, tuple(history), count.usage, text)

    for index in range(settings.max_turns):
        room = min(settings.turn_tokens, settings.max_tokens - count.completion)
        if room <= 0:
            return end(StopReason.MAX_TOKENS)
        started = time.monotonic()
        try:
            reply = await client.reply(
                history,
                toolbox.schemas,
                sampling.turn(max_tokens=room, seed=derive_seed(seed, index)),
                timeout=max(deadline - started, 0.001),
            )
        except TimeoutError:
            return end(StopReason.TIMEOUT)
        except ContextFull:
            return end(StopReason.MAX_TOKENS)
        generation = time.monotonic() - started
        text = reply.text
        count.add(reply)
        history.append(dict(reply.message))

        started = time.monotonic()
        calls = tuple(call.call for call in reply.calls)
        observations = await answer_calls(calls, toolbox, sandbox, deadline)
        turns.append(
            Turn(
                Action((), None, reply.finish_reason),
                calls,
                observations,
                (),
                TurnTiming(generation, time.monotonic() - started),
            )
        )
        left = settings.max_turns - index - 1
        history.extend(_observed(reply, observations, left))
        stop = why_stop(observations, deadline)
        if stop is not None:
            return end(stop)
    return end(StopReason.MAX_TURNS)


class _Counter:
    """Tokens so far. What the environment added is what the next prompt holds beyond reply and prompt."""

    def __init__(self, history: Sequence[Mapping[str, Any]]) -> None:
        self._first = sum(len(str(m.get("content", ""))) for m in history) // CHARS_PER_TOKEN
        self._counted = False
        self._sampled = 0
        self._observed = 0
        self._end = 0  # prompt and completion of the last turn

    def add(self, reply: ChatReply) -> None:
        said = reply.completion_tokens
        if said is None:
            written = len(reply.text) + len(reply.reasoning) + sum(len(str(c.call)) for c in reply.calls)
            said = written // CHARS_PER_TOKEN + 1
        self._sampled += said
        if reply.prompt_tokens is None:
            return
        if not self._counted:
            self._counted, self._first = True, reply.prompt_tokens
        else:
            # Templates that drop earlier reasoning make prompts shorter; that is no negative observation.
            self._observed += max(0, reply.prompt_tokens - self._end)
        self._end = reply.prompt_tokens + said

    @property
    def completion(self) -> int:
        """Sampled and observed tokens."""
        return self._sampled + self._observed

    @property
    def usage(self) -> dict[str, int]:
        """For the journal."""
        return {"prompt": self._first, "sampled": self._sampled, "observed": self._observed}


def _observed(reply: ChatReply, observations: Sequence[Observation], left: int) -> list[dict[str, Any]]:
    """One tool message per call, as the API demands, also for calls that were not run."""
    steps = f"\nSteps Remaining: {left}"
    if not reply.calls:
        return [{"role": "user", "content": observations[0].text + steps}]
    texts = [o.text for o in observations] + ["Not run."] * (len(reply.calls) - len(observations))
    texts[-1] += steps
    return [
        {"role": "tool", "tool_call_id": call.id, "content": text}
        for call, text in zip(reply.calls, texts, strict=True)
    ]
