"""The one rule of what is tried again, how often and when: requests to servers, endpoints and judges."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential

from sandbox_rl.http_client import Unreachable

T = TypeVar("T")

LONGEST_WAIT_S = 20.0
"""Between two tries, unless the endpoint asks for more."""


class GaveUp(Exception):
    """Every try failed; `failures` are all of them."""

    def __init__(self, failures: Sequence[Unreachable]) -> None:
        super().__init__(str(failures[-1]))
        self.failures = tuple(failures)


@dataclass(frozen=True, slots=True)
class Retries:
    """The one rule.

    Args:
        count: further tries after the first.
        first_wait_s: before the first of them; doubles each time.
        patience_s: seconds from the first failure in which tries go on beyond `count` while `run` is told
            that the server is away.
    """

    count: int
    first_wait_s: float = 0.5
    patience_s: float = 0.0

    async def run(
        self,
        attempt: Callable[[], Awaitable[T]],
        *,
        timeout: float | None = None,
        begin_within: float | None = None,
        between: Callable[[], Awaitable[None]] | None = None,
        away: Callable[[Unreachable], bool] = lambda _: False,
    ) -> T:
        """What `attempt` returns at last.

        Args:
            timeout: seconds for all of it, waits included.
            begin_within: seconds within which the last try must begin; each ends by itself.
            between: awaited before each further try.
            away: whether a failure, the last one, says that the server serves nobody.

        Raises:
            TimeoutError: the time was up before any try had failed.
            GaveUp: too many tries failed, or the time was up after the first.
        """
        failures: list[Unreachable] = []
        patient_until = math.inf
        began = asyncio.get_running_loop().time()

        async def pause(seconds: float) -> None:
            async with asyncio.timeout_at(None if begin_within is None else began + begin_within):
                await asyncio.sleep(max(seconds, failures[-1].wait_s))
                if between is not None:
                    await between()

        async def one_try() -> T:
            try:
                return await attempt()
            except Unreachable as error:
                nonlocal patient_until
                failures.append(error)
                patient_until = min(patient_until, time.monotonic() + self.patience_s)
                raise

        def enough(state: RetryCallState) -> bool:
            gone = away(failures[-1])  # asked each time: it may compare with the last time
            return state.attempt_number > self.count and not (gone and time.monotonic() < patient_until)

        tries = AsyncRetrying(
            stop=enough, wait=self.wait, retry=retry_if_exception_type(Unreachable), sleep=pause, reraise=True
        )
        try:
            async with asyncio.timeout(timeout):
                return await tries(one_try)
        except TimeoutError:
            if not failures:
                raise
        except Unreachable:
            pass
        raise GaveUp(failures)

    def wait(self, state: RetryCallState) -> float:
        """Seconds before the next try: doubling, up to `LONGEST_WAIT_S`, times 0.5 to 1.5.

        Those who share a server fail together and must not come back together.
        """
        doubling = wait_exponential(multiplier=self.first_wait_s, max=LONGEST_WAIT_S)
        return doubling(state) * random.uniform(0.5, 1.5)
