"""Fairness in the event loop that all episodes share.

Work on text that the policy controls is bounded to some milliseconds a piece. When many episodes have such a
piece ready at the same instant, the loop would run them all before it looks at anything else.
"""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

__all__ = ["give_way"]

_doors: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


async def give_way() -> None:
    """Wait for a pass of the loop in which nobody else comes through here: one coroutine passes at a time."""
    door = _doors.setdefault(asyncio.get_running_loop(), asyncio.Lock())
    async with door:
        await asyncio.sleep(0)
