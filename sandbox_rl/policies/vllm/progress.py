"""Whether a server's engine works while turns wait for it; `/health` speaks for the process in front of it.

An engine works if the tokens that it has read and sampled grow between two looks at its metrics. Frozen for
a publication it need not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from sandbox_rl.http_client import Refused, Unreachable
from sandbox_rl.policies.vllm.api import EngineCounts, VLLMServer

LOOK_S = 5.0
"""Between two looks."""
ANSWER_S = 5.0
"""What a look may take."""
FORGOTTEN = 4
"""Times `LOOK_S`: what was seen longer ago says nothing about the time since."""


class EngineProgress:
    """What is known of one engine; those who wait for it share the looks."""

    def __init__(self, server: VLLMServer) -> None:
        self._server = server
        self._looking = asyncio.Lock()
        self._counts: EngineCounts | None = None
        self._looked_at = self._idle_since = 0.0
        self._worked_at = 0.0  # as it was last seen
        self._silent = False  # the last look found nobody there

    async def watched(self, asked: Coroutine[Any, Any, Any], *, deadline: float, stalled_s: float) -> Any:
        """The answer to a turn, given up where the engine does nothing.

        Args:
            deadline: on the clock of `time.monotonic`; an answer that comes later is none.
            stalled_s: seconds without any work after which it counts as hung.

        Raises:
            TimeoutError: no answer by the deadline, while the engine worked. Where that is not clear by then,
                it is waited for.
            Unreachable: the request failed, or the engine did nothing.
        """
        started = time.monotonic()
        answer = asyncio.ensure_future(asked)
        judging: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            if started >= deadline:
                raise TimeoutError
            while True:
                left = deadline - time.monotonic()
                await asyncio.wait([answer], timeout=min(left, LOOK_S) if left > 0 else LOOK_S)
                if not answer.done():
                    judging = asyncio.ensure_future(self._judge(started, deadline, stalled_s))
                    await asyncio.wait([answer, judging], return_when=asyncio.FIRST_COMPLETED)
                if answer.done():
                    break
                await judging
            said = answer.result()
        finally:
            answer.cancel()
            judging.cancel()
            await asyncio.gather(answer, judging, return_exceptions=True)
        self._worked_at = self._idle_since = self._looked_at = time.monotonic()
        return said

    async def _judge(self, started: float, deadline: float, stalled_s: float) -> None:
        """Whether a turn may go on waiting; raises as `watched`."""
        idle_s = await self.idle_s(turn_waits=True)
        beyond_s = time.monotonic() - deadline
        if beyond_s >= 0 and self._silent:
            raise Unreachable("it does not answer at the end of the episode")
        if idle_s >= stalled_s:
            raise Unreachable(f"its engine has sampled nothing for {idle_s:.0f} s while turns waited")
        if beyond_s >= stalled_s:
            raise Unreachable(f"requests were frozen for {beyond_s:.0f} s after the end of the episode")
        if beyond_s >= 0 and self._worked_at >= max(started, deadline - 3 * LOOK_S):
            raise TimeoutError

    async def idle_s(self, *, turn_waits: bool) -> float:
        """Seconds for which it was not seen to do anything; 0 where nothing waits for it.

        Args:
            turn_waits: the caller has one there; else the server's own word is taken.
        """
        async with self._looking:
            now = time.monotonic()
            if now - self._looked_at > FORGOTTEN * LOOK_S:
                self._counts, self._idle_since = None, now
            if now - self._looked_at >= LOOK_S:
                await self._look(turn_waits=turn_waits)
            return time.monotonic() - self._idle_since

    async def _look(self, *, turn_waits: bool) -> None:
        try:
            counts = await self._server.engine_counts(timeout=ANSWER_S)
        except (Refused, Unreachable):
            self._silent, self._looked_at = True, time.monotonic()
            return
        before, self._counts, self._silent = self._counts, counts, False
        now = self._looked_at = time.monotonic()
        if before is not None and counts.tokens != before.tokens:
            self._worked_at = self._idle_since = now
        elif (not turn_waits and not counts.requests) or await self._frozen():
            self._idle_since = now

    async def _frozen(self) -> bool:
        """Whether requests are frozen; an engine that hangs does not say."""
        try:
            answer = await self._server.call("GET", "/is_paused", timeout=ANSWER_S)
        except (Refused, Unreachable):
            return False
        return isinstance(answer, dict) and bool(answer.get("is_paused"))
