"""Fairness in the event loop that all episodes share.

Work on text that the policy controls is bounded to some milliseconds a piece. When many episodes have such a
piece ready at the same instant, the loop would run them all before it looks at anything else. What takes
longer and lets go of the interpreter's lock, as tokenizers do, goes to threads, of which there are few: each
that runs beside the loop delays it by up to a switch interval whenever it takes the lock again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import ParamSpec, TypeVar
from weakref import WeakKeyDictionary

P = ParamSpec("P")
T = TypeVar("T")

_MOST_THREADS = 4
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


async def give_way() -> None:
    """Wait for a pass of the loop in which nobody else comes through here: one coroutine passes at a time."""
    turn = _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
    async with turn:
        await asyncio.sleep(0)


async def off_loop(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`work(*args, **kwargs)` on one of a few threads: at most one processor less than the machine has."""
    return await asyncio.get_running_loop().run_in_executor(_threads(), partial(work, *args, **kwargs))


@cache
def _threads() -> ThreadPoolExecutor:
    count = min(_MOST_THREADS, max(1, len(os.sched_getaffinity(0)) - 1))
    return ThreadPoolExecutor(count, thread_name_prefix="off-loop")
