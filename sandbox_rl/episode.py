"""One episode: the policy works on one task in one sandbox until it submits or a budget ends.

What the policy does wrong becomes an observation and leaves the loop turning; only `InfraFault`
escapes. Nothing is decoded and encoded again: the sequence grows by the ids that were sampled and
by the ids of each observation in the chat template's own frame.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.cooperate import give_way
from sandbox_rl.errors import SandboxFault
from sandbox_rl.policies.base import PolicySession, Sampling
from sandbox_rl.sandboxes.base import Sandbox
from sandbox_rl.seeds import derive_seed
from sandbox_rl.settings import Settings
from sandbox_rl.tools.toolbox import MAX_TURN_CHARS, Toolbox, fitted
from sandbox_rl.types import (
    Action,
    MalformedCall,
    Observation,
    StopReason,
    ToolCall,
    ToolFailure,
    Turn,
    TurnTiming,
)

__all__ = [
    "EpisodeSettings",
    "Transcript",
    "answer_calls",
    "run_episode",
    "why_stop",
]

INLINE_CHARS = 2_000
"""Observations of a turn that are encoded in the event loop; a thread costs more than so little text."""

HOST_GRACE_S = 15.0
"""How long a tool may outlast its own deadline before the host side is held to be broken."""


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
class Transcript:
    """What the loop hands back: the turns and why they ended. The answer is read afterwards."""

    turns: tuple[Turn, ...]
    stop: StopReason


async def run_episode(
    prompt_ids: Sequence[int],
    *,
    chat: ChatFormat,
    toolbox: Toolbox,
    session: PolicySession,
    sandbox: Sandbox,
    settings: EpisodeSettings,
    sampling: Sampling,
    max_context: int,
    seed: int,
    deadline: float,
) -> Transcript:
    """Let the policy act until it submits or a budget is used up.

    Args:
        prompt_ids: the rendered prompt, shape (P,).
        max_context: longest sequence that the policy takes, in tokens.
        seed: of this episode; every turn derives its own.
        deadline: on the clock of `time.monotonic`, in seconds.

    Raises:
        EngineFault, SandboxFault: our failures; the episode is lost.
    """
    sequence = list(prompt_ids)
    limit = min(len(prompt_ids) + settings.max_tokens, max_context)
    turns: list[Turn] = []
    for index in range(settings.max_turns):
        room = min(settings.turn_tokens, limit - len(sequence))
        if room <= 0:
            return Transcript(_closed(turns), StopReason.MAX_TOKENS)
        remaining = deadline - time.monotonic()
        started = time.monotonic()
        try:
            action = await session.act(
                sequence,
                sampling.turn(max_tokens=room, seed=derive_seed(seed, index)),
                timeout=max(remaining, 0.001),
            )
        except TimeoutError:
            return Transcript(_closed(turns), StopReason.TIMEOUT)
        generation = time.monotonic() - started
        sequence.extend(action.token_ids)

        started = time.monotonic()
        await give_way()
        calls = chat.parse(action.token_ids)
        observations = await answer_calls(calls, toolbox, sandbox, deadline, example=chat.call_example)
        execution = time.monotonic() - started
        stop = why_stop(observations, deadline)
        last = index + 1 == settings.max_turns
        ids: tuple[int, ...] = ()
        if stop is None and not last:
            ids = await _observation_ids(chat, action, calls, observations, settings.max_turns - index - 1)
            if len(sequence) + len(ids) >= limit:
                stop, ids = StopReason.MAX_TOKENS, ()
        sequence.extend(ids)
        turns.append(Turn(action, calls, observations, ids, TurnTiming(generation, execution)))
        if stop is not None:
            return Transcript(tuple(turns), stop)
    return Transcript(tuple(turns), StopReason.MAX_TURNS)


async def answer_calls(
    calls: Sequence[ToolCall | MalformedCall],
    toolbox: Toolbox,
    sandbox: Sandbox,
    deadline: float,
    *,
    example: str = "",
) -> tuple[Observation, ...]:
    """Run the calls of a turn in order; what follows a submit or the deadline is not run.

    All their observations together are bounded: the later ones get what the earlier ones have left.

    Args:
        deadline: on the clock of `time.monotonic`, in seconds.
        example: how a call is written, for a turn that holds none.

    Raises:
        SandboxFault: the host side failed, or hangs beyond its grace.
    """
    if not calls:
        return (toolbox.no_call(example),)
    observations: list[Observation] = []
    room = MAX_TURN_CHARS
    for call in calls:
        budget = deadline - time.monotonic()
        if budget <= 0:
            break
        try:
            async with asyncio.timeout(budget + HOST_GRACE_S):
                observation = await toolbox.run(sandbox, call, timeout=budget)
        except TimeoutError as error:
            raise SandboxFault(
                f"sandbox {sandbox.id}: a tool call did not return within its {budget:.0f} s "
                f"and {HOST_GRACE_S:.0f} s of grace; the host side of the sandbox hangs"
            ) from error
        observations.append(fitted(observation, room))
        room -= len(observations[-1].text)
        if observation.submitted or observation.failure is ToolFailure.SANDBOX_DEAD:
            break
    return tuple(observations)


def why_stop(observations: Sequence[Observation], deadline: float) -> StopReason | None:
    """Why the episode ends after these observations; None if it goes on."""
    if any(o.submitted for o in observations):
        return StopReason.SUBMITTED
    if any(o.failure is ToolFailure.SANDBOX_DEAD for o in observations):
        return StopReason.SANDBOX_DEAD
    if time.monotonic() >= deadline:
        return StopReason.TIMEOUT
    return None


async def _observation_ids(
    chat: ChatFormat,
    action: Action,
    calls: Sequence[ToolCall | MalformedCall],
    observations: Sequence[Observation],
    steps_left: int,
) -> tuple[int, ...]:
    texts = [o.text for o in observations]
    texts[-1] += f"\nSteps Remaining: {steps_left}"
    ended_by = chat.ends.closed_by(action.token_ids)
    if sum(map(len, texts)) <= INLINE_CHARS:
        return chat.render_observations(texts, ended_by=ended_by, calls=calls)
    # The tokenizer lets go of the interpreter's lock, so the loop goes on meanwhile.
    return await asyncio.to_thread(chat.render_observations, texts, ended_by=ended_by, calls=calls)


def _closed(turns: list[Turn]) -> tuple[Turn, ...]:
    """Drop the last turn's observation ids: no action followed them, so they are not trained on."""
    if not turns:
        return ()
    last = turns[-1]
    return (*turns[:-1], Turn(last.action, last.calls, last.observations, (), last.timing))
