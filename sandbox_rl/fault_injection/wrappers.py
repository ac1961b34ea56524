"""The parts of an engine, each with faults in it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from sandbox_rl.agents.base import Agent, AgentSession, AgentTurn, Around, SessionRecord, SessionSetup
from sandbox_rl.errors import EngineFault, SandboxFault
from sandbox_rl.fault_injection.settings import ChaosSettings, FaultKind
from sandbox_rl.rewards.base import Scores
from sandbox_rl.sandboxes.base import Sandbox, SandboxBackend, SandboxInfo
from sandbox_rl.sandboxes.forwarding import ForwardingSandbox, Method, P, T
from sandbox_rl.seeds import derive_seed
from sandbox_rl.types import Answer, Message, Observation, Reward, Task

logger = logging.getLogger(__name__)

CALLS = 3
"""A sandbox breaks in one of its first calls: most episodes have few."""


class Injector:
    """Decides which tries get a fault, and counts them. One for all parts of an engine.

    Attributes:
        injected: kind → how often.
    """

    def __init__(self, settings: ChaosSettings) -> None:
        self._settings = settings
        self._asked: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()

    def strikes(self, kind: FaultKind) -> int | None:
        """For the next thing that a fault of this kind could befall: a number for details; None if spared.

        The n-th of a kind is struck or spared by the seed alone; which episode that is depends on which comes
        first.
        """
        self._asked[kind] += 1
        settings = self._settings
        share = settings.share * settings.kinds.get(kind, 0.0) / sum(settings.kinds.values())
        drawn = derive_seed(settings.seed, "chaos", kind, self._asked[kind])
        return drawn & 0xFFFF if drawn / 2**63 < share else None

    def inject(self, kind: FaultKind, where: str) -> str:
        """Count one and say so; returns the words for the fault."""
        self.injected[kind] += 1
        logger.warning("injected fault: %s (%s)", kind, where)
        return f"injected fault: {kind}"


class FaultyBackend(Around[SandboxBackend]):
    """Sandboxes of another backend, some of which are killed or hang in the middle of a call."""

    def __init__(self, backend: SandboxBackend, injector: Injector) -> None:
        super().__init__(backend)
        self._injector = injector

    @property
    def info(self) -> SandboxInfo:
        """The backend's."""
        return self.inner.info

    @asynccontextmanager
    async def sandbox(
        self, files: Mapping[str, bytes] | None = None, *, timeout: float = 60.0
    ) -> AsyncIterator[Sandbox]:
        killed, hangs = self._injector.strikes("sandbox_killed"), self._injector.strikes("sandbox_hangs")
        async with AsyncExitStack() as stack:
            sandbox = await stack.enter_async_context(self.inner.sandbox(files, timeout=timeout))
            if killed is not None:
                yield _Breaking(sandbox, self._injector, "sandbox_killed", killed % CALLS, stack)
            elif hangs is not None:
                yield _Breaking(sandbox, self._injector, "sandbox_hangs", hangs % CALLS, None)
            else:
                yield sandbox


class _Breaking(ForwardingSandbox):
    """A sandbox that breaks in its n-th call, counted from 0, or when its answer is read if that is sooner.

    Args:
        destroy: holds the real one, which is destroyed then; None: it is there and never answers.
    """

    def __init__(
        self, sandbox: Sandbox, injector: Injector, kind: FaultKind, call: int, destroy: AsyncExitStack | None
    ) -> None:
        self._sandbox = sandbox
        self._injector = injector
        self._kind = kind
        self._calls_left = call
        self._destroy = destroy
        self._broken = False

    @property
    def id(self) -> str:
        return self._sandbox.id

    async def _call(self, method: Method[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        await self._perhaps(last=method is Sandbox.read_answer)
        result: T = await getattr(self._sandbox, method.__name__)(*args, **kwargs)
        return result

    async def _perhaps(self, *, last: bool) -> None:
        if not self._broken:
            if self._calls_left > 0 and not last:
                self._calls_left -= 1
                return
            self._broken = True
            self._injector.inject(self._kind, f"sandbox {self.id}")
        if self._destroy is None:
            await asyncio.Event().wait()  # whoever owns the deadline of the call ends this
        else:
            await self._destroy.aclose()
        raise SandboxFault(f"injected fault: {self._kind}")


class FaultyAgent(Around[Agent]):
    """Sessions of another agent, some of which lose their engine in the middle of a turn."""

    def __init__(self, agent: Agent, injector: Injector) -> None:
        super().__init__(agent)
        self._injector = injector

    @asynccontextmanager
    async def session(self, setup: SessionSetup) -> AsyncIterator[AgentSession]:
        async with self.inner.session(setup) as session:
            struck = self._injector.strikes("server_reset")
            if struck is None:
                yield session
            else:
                yield _Losing(session, self._injector, struck % CALLS, setup.request.id)

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return self.inner.prompt_ids(messages)

    def reasoning_and_words(self, turn: AgentTurn) -> tuple[str, str]:
        return self.inner.reasoning_and_words(turn)


class _Losing:
    """A session whose engine hangs up in its n-th turn, after it has begun to sample it."""

    def __init__(self, session: AgentSession, injector: Injector, turn: int, episode: str) -> None:
        self._session = session
        self._injector = injector
        self._turns_left = turn
        self._episode = episode

    @property
    def call_example(self) -> str:
        return self._session.call_example

    async def act(self, *, timeout: float) -> AgentTurn:
        if self._turns_left:
            self._turns_left -= 1
            return await self._session.act(timeout=timeout)
        begun = asyncio.ensure_future(self._session.act(timeout=timeout))
        try:
            await asyncio.wait([begun], timeout=0.01)
        finally:
            begun.cancel()
            await asyncio.gather(begun, return_exceptions=True)
        raise EngineFault(self._injector.inject("server_reset", f"episode {self._episode}"))

    async def observe(
        self, observations: Sequence[Observation], steps_left: int, *, last: bool
    ) -> tuple[int, ...] | None:
        return await self._session.observe(observations, steps_left, last=last)

    def add_user(self, text: str) -> tuple[int, ...]:
        return self._session.add_user(text)

    def record(self) -> SessionRecord:
        return self._session.record()


class FaultyScoring(Around[Scores]):
    """Another's rewards, some of which are lost."""

    def __init__(self, scoring: Scores, injector: Injector) -> None:
        super().__init__(scoring)
        self._injector = injector

    async def score(self, task: Task, answer: Answer) -> Reward:
        if self._injector.strikes("scorer_lost") is not None:
            return Reward(None, detail=self._injector.inject("scorer_lost", f"task {task.id}"))
        return await self.inner.score(task, answer)
