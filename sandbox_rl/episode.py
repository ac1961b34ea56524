"""One episode: the agent works on one task until it submits or a budget ends.

What the policy does wrong becomes an observation and leaves the loop turning; only `InfraFault` escapes.
Without a sandbox an episode is one turn, and the answer is in the reply.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sandbox_rl.agents.base import AgentSession, AgentTurn, BudgetSpent, EpisodeRequest, EpisodeSettings
from sandbox_rl.errors import SandboxFault
from sandbox_rl.observer import Observer
from sandbox_rl.sandboxes.base import Sandbox
from sandbox_rl.tools.toolbox import MAX_TURN_CHARS, Toolbox, fitted
from sandbox_rl.types import MalformedCall, Observation, StopReason, ToolCall, ToolFailure, Turn, TurnTiming

HOST_GRACE_S = 15.0
"""How long a tool may outlast its own deadline before the host side is held to be broken."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """What the loop hands back. The answer is read afterwards.

    Args:
        reply: without a sandbox, the text that the answer is in.
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
    observer.started(episode, session.record().prompt_ids)
    stop = None
    loop = _Loop(episode, session, toolbox, deadline, observer)
    try:
        transcript = await (loop.reply() if sandbox is None else loop.turns(sandbox, settings.max_turns))
        stop = transcript.stop
        return transcript
    finally:
        observer.ended(episode, stop)


@dataclass(frozen=True, slots=True)
class _Loop:
    episode: EpisodeRequest
    session: AgentSession
    toolbox: Toolbox
    deadline: float
    observer: Observer

    async def turns(self, sandbox: Sandbox, max_turns: int) -> Transcript:
        """Act, answer the calls, show what came of them, until there is a reason to stop."""
        turns: list[Turn] = []
        deadline = self.deadline
        for steps_left in reversed(range(max_turns)):
            started = time.monotonic()
            acted = await self._act(deadline)
            if isinstance(acted, StopReason):
                return Transcript(closed(turns), acted)
            deadline += acted.action.lost_s  # what we have lost is not the episode's
            sampled = time.monotonic()
            observations = await self._answer_calls(acted, sandbox, deadline)
            timing = TurnTiming(sampled - started, time.monotonic() - sampled)
            stop = _why_stop(observations, steps_left, deadline)
            ids = await self.session.observe(observations, steps_left, last=stop is not None)
            if ids is None:
                stop, ids = StopReason.MAX_TOKENS, ()
            turns.append(Turn(acted.action, acted.calls, observations, ids, timing))
            self.observer.turn(self.episode, turns[-1])
            if stop is not None:
                return Transcript(tuple(turns), stop)
        raise AssertionError("the last turn has a reason to stop")

    async def reply(self) -> Transcript:
        """The only turn of an episode without a sandbox."""
        started = time.monotonic()
        acted = await self._act(self.deadline)
        if isinstance(acted, StopReason):
            return Transcript((), acted)
        turn = Turn(acted.action, timing=TurnTiming(time.monotonic() - started))
        self.observer.turn(self.episode, turn)
        cut = acted.action.finish_reason == "length"
        return Transcript((turn,), StopReason.MAX_TOKENS if cut else StopReason.SUBMITTED, acted.text)

    async def _act(self, deadline: float) -> AgentTurn | StopReason:
        """The agent's next turn, or which budget is used up."""
        self.observer.sampling(self.episode)
        try:
            acted = await self.session.act(timeout=max(deadline - time.monotonic(), 0.001))
        except TimeoutError:
            return StopReason.TIMEOUT
        except BudgetSpent:
            return StopReason.MAX_TOKENS
        self.observer.sampled(self.episode, acted)
        return acted

    async def _answer_calls(
        self, acted: AgentTurn, sandbox: Sandbox, deadline: float
    ) -> tuple[Observation, ...]:
        """Run the calls of a turn in order; what follows a submit or the deadline is not run.

        All their observations together are bounded: the later ones get what the earlier ones have left.

        Raises:
            SandboxFault: the host side failed, or hangs beyond its grace.
        """
        if not acted.calls:
            observation = self.toolbox.no_call(self.session.call_example)
            self.observer.observed(self.episode, observation)
            return (observation,)
        observations: list[Observation] = []
        chars_left = MAX_TURN_CHARS
        for call in acted.calls:
            budget = deadline - time.monotonic()
            if budget <= 0:
                break
            self.observer.calling(self.episode, call)
            observation = fitted(await _run(self.toolbox, call, sandbox, budget), chars_left)
            self.observer.observed(self.episode, observation)
            observations.append(observation)
            chars_left -= len(observation.text)
            if observation.submitted or observation.failure is ToolFailure.SANDBOX_DEAD:
                break
        return tuple(observations)


def _why_stop(observations: Sequence[Observation], steps_left: int, deadline: float) -> StopReason | None:
    """Why the episode ends after these observations; None if it goes on."""
    if any(o.submitted for o in observations):
        return StopReason.SUBMITTED
    if any(o.failure is ToolFailure.SANDBOX_DEAD for o in observations):
        return StopReason.SANDBOX_DEAD
    if time.monotonic() >= deadline:
        return StopReason.TIMEOUT
    return None if steps_left else StopReason.MAX_TURNS


async def _run(
    toolbox: Toolbox, call: ToolCall | MalformedCall, sandbox: Sandbox, budget: float
) -> Observation:
    """One call, within the seconds that are left of the episode and the host's grace."""
    try:
        async with asyncio.timeout(budget + HOST_GRACE_S):
            return await toolbox.run(sandbox, call, timeout=budget)
    except TimeoutError as error:
        raise SandboxFault(
            f"sandbox {sandbox.id}: a tool call did not return within its {budget:.0f} s "
            f"and {HOST_GRACE_S:.0f} s of grace; the host side of the sandbox hangs"
        ) from error


def closed(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Turns without the last one's observation ids: no action followed them, so they are not trained on."""
    return (*turns[:-1], replace(turns[-1], observation_ids=())) if turns else ()
