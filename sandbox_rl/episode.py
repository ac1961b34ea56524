"""One episode: the agent works on one task until it submits or a budget ends.

What the policy does wrong becomes an observation and leaves the loop turning; only `InfraFault` escapes.
Without a sandbox an episode is one turn, and the answer is in the reply.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sandbox_rl.agents.base import AgentSession, BudgetSpent, EpisodeRequest, Said
from sandbox_rl.agents.settings import EpisodeSettings
from sandbox_rl.errors import SandboxFault
from sandbox_rl.observer import Observer
from sandbox_rl.sandboxes.base import Sandbox
from sandbox_rl.tools.toolbox import MAX_TURN_CHARS, Toolbox, fitted
from sandbox_rl.types import Observation, StopReason, ToolFailure, Turn, TurnTiming

__all__ = ["EpisodeSettings", "Transcript", "closed", "run_episode"]

HOST_GRACE_S = 15.0
"""How long a tool may outlast its own deadline before the host side is held to be broken."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """What the loop hands back. The answer is read afterwards.

    Args:
        reply: the text of the last turn; without a sandbox the answer is in it.
    """

    turns: tuple[Turn, ...]
    stop: StopReason
    reply: str = ""


async def run_episode(
    episode: EpisodeRequest,
    session: AgentSession,
    *,
    toolbox: Toolbox,
    sandbox: Sandbox | None,
    settings: EpisodeSettings,
    deadline: float,
    observer: Observer,
) -> Transcript:
    """Let the agent act until it submits or a budget is used up.

    Args:
        sandbox: None for one turn without tools.
        deadline: on the clock of `time.monotonic`, in seconds.

    Raises:
        EngineFault, SandboxFault: our failures; the episode is lost.
    """
    observer.started(episode)
    stop = None
    try:
        if sandbox is None:
            transcript = await _reply(episode, session, deadline, observer)
        else:
            transcript = await _turns(episode, session, toolbox, sandbox, settings, deadline, observer)
        stop = transcript.stop
        return transcript
    finally:
        observer.ended(episode, stop)


async def _turns(
    episode: EpisodeRequest,
    session: AgentSession,
    toolbox: Toolbox,
    sandbox: Sandbox,
    settings: EpisodeSettings,
    deadline: float,
    observer: Observer,
) -> Transcript:
    turns: list[Turn] = []
    reply = ""
    for steps_left in reversed(range(settings.max_turns)):
        started = time.monotonic()
        said = await _act(episode, session, deadline, observer)
        if isinstance(said, StopReason):
            return Transcript(closed(turns), said, reply)
        sampled, reply = time.monotonic(), said.text
        observations = await _answer_calls(
            episode, said, toolbox, sandbox, deadline, session.call_example, observer
        )
        executed = time.monotonic()
        stop = _why_stop(observations, deadline, steps_left)
        ids = await session.observe(observations, steps_left, last=stop is not None)
        if ids is None:
            stop, ids = StopReason.MAX_TOKENS, ()
        timing = TurnTiming(sampled - started, executed - sampled)
        turns.append(Turn(said.action, said.calls, observations, ids, timing))
        observer.turn(episode, turns[-1])
        if stop is not None:
            return Transcript(tuple(turns), stop, reply)
    raise AssertionError("the last turn has a reason to stop")


async def _reply(
    episode: EpisodeRequest, session: AgentSession, deadline: float, observer: Observer
) -> Transcript:
    """The only turn of an episode without a sandbox."""
    started = time.monotonic()
    said = await _act(episode, session, deadline, observer)
    if isinstance(said, StopReason):
        return Transcript((), said)
    turn = Turn(said.action, timing=TurnTiming(time.monotonic() - started))
    observer.turn(episode, turn)
    cut = said.action.finish_reason == "length"
    return Transcript((turn,), StopReason.MAX_TOKENS if cut else StopReason.SUBMITTED, said.text)


async def _act(
    episode: EpisodeRequest, session: AgentSession, deadline: float, observer: Observer
) -> Said | StopReason:
    """The agent's next turn, or which budget is used up."""
    observer.sampling(episode)
    try:
        said = await session.act(timeout=max(deadline - time.monotonic(), 0.001))
    except TimeoutError:
        return StopReason.TIMEOUT
    except BudgetSpent:
        return StopReason.MAX_TOKENS
    observer.said(episode, said)
    return said


async def _answer_calls(
    episode: EpisodeRequest,
    said: Said,
    toolbox: Toolbox,
    sandbox: Sandbox,
    deadline: float,
    example: str,
    observer: Observer,
) -> tuple[Observation, ...]:
    """Run the calls of a turn in order; what follows a submit or the deadline is not run.

    All their observations together are bounded: the later ones get what the earlier ones have left.

    Raises:
        SandboxFault: the host side failed, or hangs beyond its grace.
    """
    if not said.calls:
        observation = toolbox.no_call(example)
        observer.observed(episode, observation)
        return (observation,)
    observations: list[Observation] = []
    chars_left = MAX_TURN_CHARS
    for call in said.calls:
        budget = deadline - time.monotonic()
        if budget <= 0:
            break
        observer.calling(episode, call)
        try:
            async with asyncio.timeout(budget + HOST_GRACE_S):
                observation = await toolbox.run(sandbox, call, timeout=budget)
        except TimeoutError as error:
            raise SandboxFault(
                f"sandbox {sandbox.id}: a tool call did not return within its {budget:.0f} s "
                f"and {HOST_GRACE_S:.0f} s of grace; the host side of the sandbox hangs"
            ) from error
        observations.append(fitted(observation, chars_left))
        observer.observed(episode, observations[-1])
        chars_left -= len(observations[-1].text)
        if observation.submitted or observation.failure is ToolFailure.SANDBOX_DEAD:
            break
    return tuple(observations)


def _why_stop(observations: Sequence[Observation], deadline: float, steps_left: int) -> StopReason | None:
    """Why the episode ends after these observations; None if it goes on."""
    if any(o.submitted for o in observations):
        return StopReason.SUBMITTED
    if any(o.failure is ToolFailure.SANDBOX_DEAD for o in observations):
        return StopReason.SANDBOX_DEAD
    if time.monotonic() >= deadline:
        return StopReason.TIMEOUT
    return None if steps_left else StopReason.MAX_TURNS


def closed(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Turns without the last one's observation ids: no action followed them, so they are not trained on."""
    return (*turns[:-1], replace(turns[-1], observation_ids=())) if turns else ()
